//! Nonce files: what the other side can see of a file made here a moment ago lies on a file system that both have.

use super::{Result, Use, Wanted, failed};
use crate::image::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest content that is read, bytes.
const CONTENT_MAX: u64 = 128;

/// Nonce files of this side; removed when dropped.
#[derive(Debug, Default)]
pub struct Nonces(Vec<PathBuf>);

impl Nonces {
    /// Makes one beside a file, if the target writes there itself or the file system can be another host's as well: where it
    /// lies, and what it holds.
    pub fn beside(&mut self, wanted: &Wanted) -> Option<(Bytes, String)> {
        let path = Path::new(std::ffi::OsStr::new("/")).join(os(&wanted.file.path.0));
        let is_dir = wanted.file.mode & libc::S_IFMT == libc::S_IFDIR;
        let dir = if is_dir { &path } else { path.parent()? };
        if wanted.usage != Use::Write && !is_network(dir) {
            return None;
        }
        let (name, content) = (random()?, random()?);
        let path = dir.join(format!(".migrate-{name}"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).ok()?;
        self.0.push(path.clone());
        file.write_all(content.as_bytes()).ok()?;
        Some((Bytes(path.into_os_string().into_vec()), content))
    }
}

impl Drop for Nonces {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, path = %path.display(), "a nonce file was left behind");
            }
        }
    }
}

/// The device of a nonce file of the other side, if it can be seen here.
///
/// # Errors
/// It is there and cannot be read.
pub fn device(root: &OwnedFd, path: &Bytes, content: &str) -> Result<Option<u64>> {
    let flags = (libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK) as u32;
    let Ok(fd) = crate::sys::openat2::open_plain(root.as_fd(), &path.0, flags, 0) else { return Ok(None) };
    let file = File::from(fd);
    let meta = file.metadata().map_err(failed("stat", &path.0))?;
    let mut text = String::new();
    let read = if meta.is_file() { (&file).take(CONTENT_MAX).read_to_string(&mut text) } else { Ok(0) };
    match read {
        Ok(_) => Ok((!content.is_empty() && text == content).then_some(meta.dev())),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(e) => Err(failed("read", &path.0)(e)),
    }
}

/// 128 random bits, hexadecimal.
fn random() -> Option<String> {
    let mut bits = [0; 16];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bits)).ok()?;
    Some(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// File systems that several hosts can have mounted (statfs(2): NFS, SMB, CIFS, 9P, Ceph, FUSE, GFS2, OCFS2, Lustre, AFS,
/// Coda, GPFS, BeeGFS).
const NETWORK: [i64; 14] = [
    0x6969,
    0x517b,
    0xfe53_4d42,
    0xff53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x6573_5546,
    0x0116_1970,
    0x7461_636f,
    0x0bd0_0bd0,
    0x5346_414f,
    0x7375_7245,
    0x4750_4653,
    0x1983_0326,
];

/// Whether several hosts can have this file system.
pub fn is_network(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| NETWORK.contains(&(fs.filesystem_type().0 & 0xffff_ffff)))
}

fn os(bytes: &[u8]) -> std::ffi::OsString {
    std::ffi::OsString::from_vec(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{NsId, fd::PathRef};
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn what_one_side_makes_the_other_sees_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = Bytes(dir.path().join("data").as_os_str().as_bytes().to_vec());
        let file = PathRef { path, mnt: NsId(0), mode: libc::S_IFREG, device: 0, inode: 0, size: 1, mtime_ns: 1 };
        let wanted = Wanted { file, usage: Use::Write, appends: false, mapped: false };
        let root: OwnedFd = File::open("/").unwrap().into();
        let mut nonces = Nonces::default();
        let (path, content) = nonces.beside(&wanted).unwrap();
        let here = fs::metadata(dir.path()).unwrap().dev();
        assert_eq!(device(&root, &path, &content).unwrap(), Some(here));
        assert_eq!(device(&root, &path, "something else").unwrap(), None);
        drop(nonces);
        assert_eq!(device(&root, &path, &content).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let read = Wanted { usage: Use::Read, ..wanted };
        assert_eq!(Nonces::default().beside(&read), None, "nothing is written where the target does not write");
    }
}
