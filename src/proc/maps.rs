//! `/proc/PID/maps` (proc_pid_maps(5)).

use super::{ProcDir, Result, Syntax, scan};
use crate::image::Bytes;

/// One mapping as `maps` and the heads of `smaps` show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address past the end.
    pub end: u64,
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub exec: bool,
    /// `MAP_SHARED` (letter `s`; a shared mapping of a file opened for reading alone shows it, too).
    pub shared: bool,
    /// Offset in the file, bytes; 0 for anonymous memory.
    pub offset: u64,
    /// Device as `makedev(3)` encodes it, 0 for anonymous memory. On btrfs and overlay not what `stat(2)` says.
    pub device: u64,
    /// Inode, 0 for anonymous memory.
    pub inode: u64,
    /// The name column, as written: a path (a newline in it stands as `\012`, a backslash as itself, so a path with a
    /// backslash is better asked of `map_files/`), perhaps with ` (deleted)`, or `[heap]`, `[anon:NAME]`, ... or nothing.
    pub name: Bytes,
}

/// Names that the kernel gives to mappings without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special<'a> {
    /// `[heap]`
    Heap,
    /// `[stack]`
    Stack,
    /// `[vdso]`
    Vdso,
    /// `[vvar]`, `[vvar_vclock]` and other data pages of the vDSO.
    Vvar,
    /// `[vsyscall]`: lies above user space, belongs to no process.
    Vsyscall,
    /// `[uprobes]`: a tracer's trampolines.
    Uprobes,
    /// `[anon:NAME]`: private memory named by `PR_SET_VMA_ANON_NAME`.
    Anon(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared memory named likewise.
    AnonShmem(&'a [u8]),
    /// `anon_inode:[KIND]` or `/anon_inode:[KIND]`: perf events, io_uring, KVM, ...
    AnonInode(&'a [u8]),
    /// Another name in brackets.
    Other(&'a [u8]),
}

impl Mapping {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never true for what [`parse`] returns.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// `PROT_*` bits.
    pub fn prot(&self) -> u32 {
        let bit = |on: bool, bit: i32| if on { bit.cast_unsigned() } else { 0 };
        bit(self.read, libc::PROT_READ) | bit(self.write, libc::PROT_WRITE) | bit(self.exec, libc::PROT_EXEC)
    }

    /// There is a file (or a shared memory object) behind it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.device != 0
    }

    /// The kernel's own name of a mapping without a file; `None` for files and unnamed memory.
    pub fn special(&self) -> Option<Special<'_>> {
        let name = self.name.0.as_slice();
        let kind = name.strip_prefix(b"/").unwrap_or(name);
        if let Some(kind) = kind.strip_prefix(b"anon_inode:") {
            return Some(Special::AnonInode(kind));
        }
        let inner = name.strip_prefix(b"[")?.strip_suffix(b"]")?;
        Some(match inner {
            b"heap" => Special::Heap,
            b"stack" => Special::Stack,
            b"vdso" => Special::Vdso,
            b"vsyscall" => Special::Vsyscall,
            b"uprobes" => Special::Uprobes,
            _ if inner.starts_with(b"vvar") => Special::Vvar,
            _ => {
                if let Some(name) = inner.strip_prefix(b"anon:") {
                    Special::Anon(name)
                } else if let Some(name) = inner.strip_prefix(b"anon_shmem:") {
                    Special::AnonShmem(name)
                } else {
                    Special::Other(inner)
                }
            }
        })
    }

    /// The path without the ` (deleted)` the kernel appends, and whether it did. A file may really be called so:
    /// `stat(2)` of `map_files/` decides.
    pub fn path(&self) -> (&[u8], bool) {
        match self.name.0.strip_suffix(b" (deleted)") {
            Some(path) if path.starts_with(b"/") => (path, true),
            _ => (&self.name.0, false),
        }
    }

    /// Name of the link below `map_files/` of the process's directory.
    pub fn map_file(&self) -> String {
        format!("map_files/{:x}-{:x}", self.start, self.end)
    }
}

/// Reads one line; `None` if it is not one of `maps`.
pub(super) fn line(text: &[u8]) -> Option<Mapping> {
    let (range, rest) = scan::cut(text, b' ')?;
    let (start, end) = scan::cut(range, b'-')?;
    let (start, end) = (scan::hex(start)?, scan::hex(end)?);
    let (perms, rest) = scan::cut(rest, b' ')?;
    let &[r, w, x, s] = perms else { return None };
    if start >= end || !matches!(s, b's' | b'p') {
        return None;
    }
    let (offset, rest) = scan::cut(rest, b' ')?;
    let (device, rest) = scan::cut(rest, b' ')?;
    let (inode, name) = scan::cut(rest, b' ').unwrap_or((rest, b""));
    // The kernel pads with blanks up to the name's column; a name that begins with one cannot be told apart, but paths
    // begin with a slash.
    let padding = name.iter().take_while(|&&b| b == b' ').count();
    Some(Mapping {
        start,
        end,
        read: r == b'r',
        write: w == b'w',
        exec: x == b'x',
        shared: s == b's',
        offset: scan::hex(offset)?,
        device: scan::device(device, 16)?,
        inode: scan::dec(inode)?,
        name: name[padding..].into(),
    })
}

/// Reads the mappings: ascending, not overlapping.
///
/// # Errors
/// A line of another form, or one that lies below the end of the one before.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Mapping>, Syntax> {
    let mut mappings: Vec<Mapping> = Vec::with_capacity(text.len() / 80);
    for (number, text) in scan::lines(text) {
        let syntax = |what| Syntax::new(number, what, text);
        let mapping = line(text).ok_or_else(|| syntax("expected a mapping"))?;
        if mappings.last().is_some_and(|last| last.end > mapping.start) {
            return Err(syntax("mappings overlap: the process changed them while they were read"));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

impl ProcDir {
    /// Reads `maps`. Of a process that is not stopped, mappings may be missing or cut.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]. Empty for a zombie or a kernel thread.
    pub fn maps(&self, buf: &mut Vec<u8>) -> Result<Vec<Mapping>> {
        self.settled("maps", buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"\
55d0c0000000-55d0c0002000 r--p 00001000 fd:01 1234                       /usr/bin/a b\\012c (deleted)
55d0c0002000-55d0c0003000 rwxs 00000000 00:01 5                          /dev/zero (deleted)
7f0000000000-7f0000001000 ---p 00000000 00:00 0 
7f0000001000-7f0000002000 rw-p 00000000 00:00 0                          [anon:my name]
7f0000002000-7f0000003000 rw-s 00000000 00:0f 77                         anon_inode:[io_uring]
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
7ffc00030000-7ffc00034000 r--p 00000000 00:00 0                          [vvar]
7ffc00034000-7ffc00036000 r--p 00000000 00:00 0                          [vvar_vclock]
7ffc00036000-7ffc00038000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    #[test]
    fn columns_and_names() {
        let maps = parse(SAMPLE).unwrap();
        assert_eq!(maps.len(), 10);
        let first = &maps[0];
        assert_eq!(
            (first.start, first.end, first.offset, first.inode),
            (0x55d0_c000_0000, 0x55d0_c000_2000, 0x1000, 1234)
        );
        assert_eq!(first.device, nix::sys::stat::makedev(0xfd, 1));
        assert_eq!(first.path(), (b"/usr/bin/a b\\012c".as_slice(), true));
        assert_eq!(first.map_file(), "map_files/55d0c0000000-55d0c0002000");
        assert!(maps[1].shared && maps[1].prot() == 7 && maps[1].has_file() && maps[1].special().is_none());
        assert!(maps[2].name.0.is_empty() && maps[2].prot() == 0 && !maps[2].has_file());
        assert_eq!(maps[3].special(), Some(Special::Anon(b"my name")));
        assert_eq!(maps[4].special(), Some(Special::AnonInode(b"[io_uring]")));
        let kinds: Vec<_> = maps[5..].iter().map(|m| m.special().unwrap()).collect();
        assert_eq!(kinds, [Special::Stack, Special::Vvar, Special::Vvar, Special::Vdso, Special::Vsyscall]);
    }

    #[test]
    fn overlaps_and_foreign_lines_are_errors() {
        assert!(parse(b"1000-3000 r--p 0 0:0 0\n2000-4000 r--p 0 0:0 0\n").is_err());
        assert!(parse(b"3000-1000 r--p 0 0:0 0\n").is_err());
        assert!(parse(b"Size: 4 kB\n").is_err());
        assert!(parse(b"1000-2000 r--p 0 0:0 0").is_ok());
    }

    #[test]
    fn reads_itself() {
        let maps = ProcDir::of_self().unwrap().maps(&mut Vec::new()).unwrap();
        assert!(maps.iter().any(|m| m.special() == Some(Special::Vdso)));
        assert!(maps.iter().any(|m| m.exec && m.name.0.starts_with(b"/")));
    }
}
