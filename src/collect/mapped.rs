//! The file behind a mapping.
//!
//! Links below `/proc/PID/map_files` lead to it whatever became of its name, for whoever has CAP_CHECKPOINT_RESTORE (Linux 5.9)
//! or CAP_SYS_ADMIN in the first user namespace. Everybody else finds what still has the name that `maps` shows.

use crate::image::{Bytes, NsId};
use crate::proc::{ProcDir, Result, maps::Mapping};
use nix::errno::Errno;
use nix::sys::stat::FileStat;
use std::collections::HashMap;

/// Name and `stat(2)` of the file behind a mapping; `None` where only somebody with more privileges finds it.
///
/// # Errors
/// The process has ended, or the mapping is gone.
pub fn file_of(dir: &ProcDir, mapping: &Mapping) -> Result<Option<(Bytes, FileStat)>> {
    let link = mapping.map_file();
    match dir.stat_of(&link) {
        // The text of the link is that of `maps`, but for bytes that are escaped there.
        Ok(stat) if !mapping.name.0.contains(&b'\\') => Ok(Some((mapping.name.clone(), stat))),
        Ok(stat) => Ok(Some((dir.readlink(&link)?, stat))),
        Err(error) if error.errno() == Some(Errno::EPERM as i32) => Ok(by_name(dir, mapping)),
        Err(error) => Err(error),
    }
}

/// Files that have been looked at, of processes that are stopped. Each has several mappings in a process, and relatives have the
/// same.
#[derive(Debug, Default)]
pub struct Known(HashMap<(NsId, u64, u64), (Bytes, FileStat)>);

impl Known {
    /// [`file_of`] a mapping of a process in this mount namespace.
    ///
    /// # Errors
    /// As there.
    pub fn file_of(&mut self, dir: &ProcDir, mapping: &Mapping, mnt: NsId) -> Result<Option<(Bytes, FileStat)>> {
        let key = (mnt, mapping.device, mapping.inode);
        if let Some((name, stat)) = self.0.get(&key).filter(|(name, _)| *name == mapping.name) {
            return Ok(Some((name.clone(), *stat)));
        }
        let found = file_of(dir, mapping)?;
        // Of one without a name each mapping is looked at: it is taken from there.
        if let Some((name, stat)) = &found
            && *name == mapping.name
            && stat.st_nlink > 0
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG
        {
            self.0.insert(key, (name.clone(), *stat));
        }
        Ok(found)
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
        for mapping in maps.iter().filter(|m| m.has_file()) {
            // Only whoever may follow the links can compare.
            let Ok(link) = dir.readlink(&mapping.map_file()) else { continue };
            assert!(mapping.name.0.contains(&b'\\') || link == mapping.name, "{link} {}", mapping.name);
        }
        let (path, stat) = by_name(&dir, mapping).unwrap();
        assert_eq!((&path, stat.st_ino), (&mapping.name, mapping.inode));
        if let Some((path, stat)) = file_of(&dir, mapping).unwrap() {
            assert_eq!((path, stat.st_ino), (mapping.name.clone(), mapping.inode));
        }
        let removed = Mapping { name: Bytes([&mapping.name.0[..], b" (deleted)"].concat()), ..mapping.clone() };
        assert!(by_name(&dir, &removed).is_none());
        let (mut known, mnt) = (Known::default(), NsId::from(0));
        for _ in 0..2 {
            let (name, seen) = known.file_of(&dir, mapping, mnt).unwrap().unwrap();
            assert_eq!((name, seen.st_ino, seen.st_size), (path.clone(), stat.st_ino, stat.st_size));
        }
        assert_eq!(known.0.len(), 1);
        let renamed = Mapping { name: Bytes(b"/elsewhere".to_vec()), ..mapping.clone() };
        let elsewhere = known.file_of(&dir, &renamed, mnt).unwrap();
        assert!(elsewhere.is_none_or(|(name, _)| name == renamed.name), "another name is another file");
        let other = Mapping { inode: mapping.inode + 1, ..mapping.clone() };
        assert!(by_name(&dir, &other).is_none());
    }
}
