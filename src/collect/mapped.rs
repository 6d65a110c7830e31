//! The file behind a mapping.
//!
//! Links below `/proc/PID/map_files` lead to it whatever became of its name, for whoever has CAP_CHECKPOINT_RESTORE (Linux 5.9)
//! or CAP_SYS_ADMIN in the first user namespace. Everybody else finds what still has the name that `maps` shows.

use crate::image::Bytes;
use crate::proc::{ProcDir, Result, maps::Mapping};
use nix::errno::Errno;
use nix::sys::stat::FileStat;

/// Name and `stat(2)` of the file behind a mapping; `None` where only somebody with more privileges finds it.
///
/// # Errors
/// The process has ended, or the mapping is gone.
pub fn file_of(dir: &ProcDir, mapping: &Mapping) -> Result<Option<(Bytes, FileStat)>> {
    let link = mapping.map_file();
    match dir.stat_of(&link) {
        Ok(stat) => Ok(Some((dir.readlink(&link)?, stat))),
        Err(error) if error.errno() == Some(Errno::EPERM as i32) => Ok(by_name(dir, mapping)),
        Err(error) => Err(error),
    }
}

/// Whether links of mappings of this process may be followed: what one of them says goes for all.
pub fn links_lead(dir: &ProcDir, mapping: &Mapping) -> bool {
    dir.stat_of(&mapping.map_file()).err().and_then(|error| error.errno()) != Some(Errno::EPERM as i32)
}

/// By the name in `maps`, as the process sees it; not where the kernel has escaped a byte of it.
fn by_name(dir: &ProcDir, mapping: &Mapping) -> Option<(Bytes, FileStat)> {
    let (path, deleted) = mapping.path();
    let path = std::str::from_utf8(path).ok().filter(|path| path.starts_with('/') && !path.contains('\\'))?;
    let stat = dir.stat_of(&format!("root{path}")).ok().filter(|_| !deleted)?;
    ((stat.st_dev, stat.st_ino) == (mapping.device, mapping.inode)).then(|| (Bytes(path.as_bytes().to_vec()), stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_its_name_as_by_its_link() {
        let dir = ProcDir::of_self().unwrap();
        let maps = dir.maps(&mut Vec::new()).unwrap();
        let named = |m: &&Mapping| m.has_file() && m.name.0.starts_with(b"/") && !m.path().1;
        let mapping = maps.iter().find(named).expect("this program is mapped");
        let (path, stat) = by_name(&dir, mapping).unwrap();
        assert_eq!((path, stat.st_ino), (mapping.name.clone(), mapping.inode));
        if let Some((path, stat)) = file_of(&dir, mapping).unwrap() {
            assert_eq!((path, stat.st_ino), (mapping.name.clone(), mapping.inode));
        }
        let removed = Mapping { name: Bytes([&mapping.name.0[..], b" (deleted)"].concat()), ..mapping.clone() };
        assert!(by_name(&dir, &removed).is_none());
        let other = Mapping { inode: mapping.inode + 1, ..mapping.clone() };
        assert!(by_name(&dir, &other).is_none());
    }
}
