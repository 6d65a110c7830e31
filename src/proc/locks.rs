//! `/proc/locks` (proc_locks(5)), and the same lines in fdinfo.

use super::{Error, Result, Syntax, scan};

/// One file lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// Number of the line; blocked requests carry the number of the lock they wait for.
    pub id: u64,
    /// It is not held, but waited for (`->`).
    pub blocked: bool,
    /// Whose lock it is.
    pub kind: Kind,
    /// `MANDATORY` (before 5.15) as opposed to advisory.
    pub mandatory: bool,
    /// A lease that somebody waits for: it is about to become what `mode` says.
    pub breaking: bool,
    /// `F_RDLCK` = 0, `F_WRLCK` = 1, `F_UNLCK` = 2 (a lease that is being broken).
    pub mode: i32,
    /// Owner in the reader's PID namespace; -1 for locks that belong to a description, 0 where it is not visible.
    pub pid: i32,
    /// Device of the file system, `makedev(3)` encoding.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` to the end of the file.
    pub end: Option<u64>,
}

/// Kinds of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `F_SETLK`: belongs to a descriptor table.
    Posix,
    /// `F_OFD_SETLK`: belongs to an open file description.
    Ofd,
    /// flock(2): belongs to an open file description.
    Flock,
    /// `F_SETLEASE`.
    Lease,
    /// A delegation of the NFS server.
    Delegation,
    /// An access-based lock or a kind of a newer kernel.
    Other,
}

/// `1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF`, blocked ones with `->` behind the number.
pub(super) fn line(text: &[u8]) -> Option<Lock> {
    let mut words = scan::words(text).peekable();
    let id = scan::dec(words.next()?.strip_suffix(b":")?)?;
    let blocked = words.next_if(|w| *w == b"->").is_some();
    let kind = match words.next()? {
        b"POSIX" => Kind::Posix,
        b"OFDLCK" => Kind::Ofd,
        b"FLOCK" => Kind::Flock,
        b"LEASE" => Kind::Lease,
        b"DELEG" => Kind::Delegation,
        _ => Kind::Other,
    };
    let state = words.next()?;
    let (mandatory, breaking) = (state == b"MANDATORY", state == b"BREAKING");
    let mode = match words.next()? {
        b"READ" => libc::F_RDLCK,
        b"WRITE" | b"RW" => libc::F_WRLCK,
        b"UNLCK" | b"NONE" => libc::F_UNLCK,
        _ => return None,
    };
    let pid = scan::int32(words.next()?)?;
    let file = words.next()?;
    let colon = file.iter().rposition(|&b| b == b':')?;
    let (device, inode) = match &file[..colon] {
        // Of somebody who waits until a lease is given back: no file is noted there.
        b"<none>" => (0, 0),
        device => (scan::device(device, 16)?, scan::dec(&file[colon + 1..])?),
    };
    let start = scan::dec(words.next()?)?;
    let end = match words.next()? {
        b"EOF" => None,
        n => Some(scan::dec(n)?),
    };
    let mode = i32::from(mode as i16);
    Some(Lock { id, blocked, kind, mandatory, breaking, mode, pid, device, inode, start, end })
}

/// Reads the locks of the whole system.
///
/// # Errors
/// A line of another form.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Lock>, Syntax> {
    scan::lines(text)
        .map(|(number, text)| line(text).ok_or_else(|| Syntax::new(number, "expected a lock", text)))
        .collect()
}

/// Locks that `/proc/locks` shows: those of the reader's PID namespace.
///
/// # Errors
/// The file cannot be read or understood.
pub fn all() -> Result<Vec<Lock>> {
    let file = || "/proc/locks".to_owned();
    let text = std::fs::read(file()).map_err(|source| Error::Io { operation: "read", file: file(), source })?;
    parse(&text).map_err(|syntax| Error::Syntax { file: file(), syntax })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"\
1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF
1: -> POSIX  ADVISORY  READ  360 00:13:11691 5 9
2: FLOCK  ADVISORY  WRITE -1 fd:01:7 0 EOF
3: LEASE  ACTIVE    READ  12 08:01:8 0 EOF
4: OFDLCK MANDATORY READ -1 08:01:9 100 199
3: -> LEASE  BREAKER   WRITE 1745 <none>:0 0 EOF\n";

    #[test]
    fn kinds_and_ranges() {
        let locks = parse(SAMPLE).unwrap();
        assert_eq!(
            (locks[0].kind, locks[0].mode, locks[0].pid, locks[0].start, locks[0].end),
            (Kind::Posix, 1, 359, 0, None)
        );
        assert!(locks[1].blocked && locks[1].end == Some(9) && locks[1].mode == 0);
        assert_eq!(
            (locks[2].kind, locks[2].device, locks[2].inode),
            (Kind::Flock, nix::sys::stat::makedev(0xfd, 1), 7)
        );
        assert_eq!(locks[3].kind, Kind::Lease);
        assert!(locks[4].kind == Kind::Ofd && locks[4].mandatory);
        assert_eq!((locks[5].blocked, locks[5].kind, locks[5].inode, locks[5].end), (true, Kind::Lease, 0, None));
        assert!(parse(b"1: POSIX ADVISORY\n").is_err());
    }

    #[test]
    fn the_systems_file_can_be_read() {
        all().unwrap();
    }
}
