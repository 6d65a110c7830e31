//! The directory of one process or thread, and how its files are read.

use super::{Error, Result, Syntax, scan};
use crate::image::{Bytes, Pid};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, fstatat},
};
use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStringExt,
    path::Path,
};

/// Longer files than this are refused: 500 times the `smaps` of a process with a thousand mappings.
const FILE_MAX: u64 = 512 << 20;

/// First size of an empty buffer: most files of `/proc` fit.
const BUFFER_MIN: usize = 4096;

/// Files that the kernel makes in one go: a read that does not fill the buffer has met their end. Others end with an empty
/// read.
fn is_one_record(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "stat",
        "status",
        "sched",
        "syscall",
        "comm",
        "limits",
        "cgroup",
        "oom_score_adj",
        "coredump_filter",
        "loginuid",
    ];
    name.starts_with("fdinfo/") || NAMES.contains(&name.rsplit('/').next().unwrap_or(name))
}

/// Nor is there more of a list of short records where a read has left room for several of them.
fn is_whole_list(name: &str, read: usize) -> bool {
    const ROOM: usize = 64;
    name.ends_with("/children") && read < BUFFER_MIN - ROOM
}

/// `/proc/PID` or `/proc/PID/task/TID`, held open.
///
/// The descriptor belongs to the process, not to its number: after the process has ended every access gives
/// [`Error::Gone`], also when the number is used again.
#[derive(Debug)]
pub struct ProcDir {
    fd: OwnedFd,
    /// What messages show: `/proc/12` or `/proc/12/task/13`.
    path: String,
    pid: Pid,
}

impl ProcDir {
    /// Opens the directory of a process.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such process.
    pub fn open(pid: Pid) -> Result<Self> {
        Self::open_path(format!("/proc/{pid}"), pid)
    }

    /// The directory of this program itself.
    ///
    /// # Errors
    /// Fails where `/proc` is not mounted.
    pub fn of_self() -> Result<Self> {
        let pid = i32::try_from(std::process::id()).expect("the kernel's process ids fit a pid_t");
        Self::open_path("/proc/self".into(), Pid(pid))
    }

    /// The directory of the calling thread.
    ///
    /// # Errors
    /// Fails where `/proc` is not mounted.
    pub fn of_this_thread() -> Result<Self> {
        Self::open_path("/proc/thread-self".into(), Pid(nix::unistd::gettid().as_raw()))
    }

    fn open_path(path: String, pid: Pid) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path, pid }),
            Err(Errno::ENOENT | Errno::ESRCH) => Err(Error::Gone { pid, file: path }),
            Err(e) => Err(Error::Io { operation: "open", file: path, source: e.into() }),
        }
    }

    /// The directory of a thread of this process.
    ///
    /// # Errors
    /// [`Error::Gone`] if the process has no such thread (any more).
    pub fn thread(&self, tid: Pid) -> Result<Self> {
        let name = format!("task/{tid}");
        let path = self.file(&name);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(&self.fd, name.as_str(), flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path, pid: tid }),
            Err(Errno::ENOENT | Errno::ESRCH) => Err(Error::Gone { pid: tid, file: path }),
            Err(e) => Err(Error::Io { operation: "open", file: path, source: e.into() }),
        }
    }

    /// The process or thread this directory belongs to.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Reads a whole file into `buf`, which is emptied first, and returns the bytes.
    ///
    /// # Errors
    /// [`Error::Gone`] when the process has ended, [`Error::TooLong`], or what the kernel says.
    pub fn read_into<'b>(&self, name: &str, buf: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        let mut file = File::from(self.open_file(name, OFlag::O_RDONLY)?);
        if name == "smaps" {
            return self.read_in_pieces(file, name, buf);
        }
        buf.resize(BUFFER_MIN, 0);
        let first = file.read(buf).map_err(|e| self.failed("read", name, e))?;
        buf.truncate(first);
        if first < BUFFER_MIN && is_one_record(name) || is_whole_list(name, first) {
            return Ok(buf);
        }
        // `take` also keeps the standard library from asking for the file's size, which /proc does not know.
        file.take(FILE_MAX + 1).read_to_end(buf).map_err(|e| self.failed("read", name, e))?;
        if buf.len() as u64 > FILE_MAX {
            return Err(Error::TooLong { file: self.file(name), limit: FILE_MAX });
        }
        Ok(buf)
    }

    /// Reads a file whose records cost the kernel much to make (a walk of page tables). It makes them into a buffer of one
    /// page (fs/seq_file.c) until that is full or a read has what it asked for; the record that does not fit any more is
    /// thrown away, and made again for the next read. Less is asked for than fits, so that there is none.
    fn read_in_pieces<'b>(&self, mut file: File, name: &str, buf: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        const PIECE: usize = 2048;
        // Of a program with many mappings; memory that is not touched costs nothing.
        const MUCH: usize = 1 << 20;
        buf.clear();
        buf.reserve(MUCH);
        loop {
            let len = buf.len();
            buf.resize(len + PIECE, 0);
            let read = file.read(&mut buf[len..]).map_err(|e| self.failed("read", name, e))?;
            buf.truncate(len + read);
            if read == 0 {
                return Ok(buf);
            }
            if buf.len() as u64 > FILE_MAX {
                return Err(Error::TooLong { file: self.file(name), limit: FILE_MAX });
            }
        }
    }

    /// Reads a file and gives it to one of the parsers of this room.
    ///
    /// # Errors
    /// As [`Self::read_into`], and [`Error::Syntax`].
    pub fn parsed<T>(
        &self,
        name: &str,
        buf: &mut Vec<u8>,
        parse: impl FnOnce(&[u8]) -> std::result::Result<T, Syntax>,
    ) -> Result<T> {
        let bytes = self.read_into(name, buf)?;
        parse(bytes).map_err(|syntax| Error::Syntax { file: self.file(name), syntax })
    }

    /// The same for a file that shows mappings: what a running process has changed while it was read makes no sense, and is
    /// read again.
    ///
    /// # Errors
    /// As [`Self::parsed`].
    pub(super) fn settled<T>(
        &self,
        name: &str,
        buf: &mut Vec<u8>,
        parse: fn(&[u8]) -> std::result::Result<T, Syntax>,
    ) -> Result<T> {
        const READS: u32 = 8;
        for _ in 1..READS {
            match self.parsed(name, buf, parse) {
                Err(Error::Syntax { .. }) => {}
                read => return read,
            }
        }
        self.parsed(name, buf, parse)
    }

    /// Opens a file of this directory; `O_CLOEXEC` is added.
    ///
    /// # Errors
    /// [`Error::Gone`] when the process has ended, or what the kernel says.
    pub fn open_file(&self, name: &str, flags: OFlag) -> Result<OwnedFd> {
        openat(&self.fd, name, flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| self.failed("open", name, e.into()))
    }

    /// The text of a link (`exe`, `cwd`, `fd/3`, `ns/mnt`), as bytes.
    ///
    /// # Errors
    /// As [`Self::open_file`]; ENOENT for the `exe` of a zombie or a kernel thread.
    pub fn readlink(&self, name: &str) -> Result<Bytes> {
        let target = readlinkat(&self.fd, name).map_err(|e| self.failed("read the link", name, e.into()))?;
        Ok(target.into_vec().into())
    }

    /// `stat(2)` of what a link refers to (`fd/3`, `exe`, `root`), also where no path leads to it.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn stat_of(&self, name: &str) -> Result<FileStat> {
        fstatat(&self.fd, name, nix::fcntl::AtFlags::empty()).map_err(|e| self.failed("stat", name, e.into()))
    }

    /// The numeric names in a directory below (`task`, `fd`, `fdinfo`), ascending.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn numbers(&self, name: &str) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        self.entries(name, |entry| {
            if let Some(n) = scan::dec32(entry) {
                found.push(n);
            }
        })?;
        found.sort_unstable();
        Ok(found)
    }

    /// Calls `each` with every name in a directory below, without `.` and `..`.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn entries(&self, name: &str, mut each: impl FnMut(&[u8])) -> Result<()> {
        let fd = self.open_file(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut dir = Dir::from_fd(fd).map_err(|e| self.failed("list", name, e.into()))?;
        for entry in dir.iter() {
            let entry = entry.map_err(|e| self.failed("list", name, e.into()))?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                found => each(found),
            }
        }
        Ok(())
    }

    /// Writes to a file of this directory in one call (`oom_score_adj`, `timens_offsets`, `uid_map`).
    ///
    /// # Errors
    /// As [`Self::open_file`]; a short write is an error.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let fd = self.open_file(name, OFlag::O_WRONLY)?;
        match nix::unistd::write(&fd, bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(self.failed("write", name, std::io::ErrorKind::WriteZero.into())),
            Err(e) => Err(self.failed("write", name, e.into())),
        }
    }

    /// The process still exists (a zombie does).
    pub fn is_alive(&self) -> bool {
        fstatat(&self.fd, "stat", nix::fcntl::AtFlags::empty()).is_ok()
    }

    /// The full name of a file of this directory, for messages and for interfaces that take paths.
    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// The directory itself as a path.
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// ENOENT and ESRCH mean that the process has ended, unless its directory still answers.
    fn failed(&self, operation: &'static str, name: &str, source: std::io::Error) -> Error {
        let file = self.file(name);
        match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) if !self.is_alive() => Error::Gone { pid: self.pid, file },
            _ => Error::Io { operation, file, source },
        }
    }
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_has_ended_is_gone_not_an_io_error() {
        let mut child = Command::new("sleep").arg("100").spawn().expect("sleep is installed");
        let dir = ProcDir::open(Pid(child.id() as i32)).unwrap();
        let mut buf = Vec::new();
        assert!(!dir.read_into("stat", &mut buf).unwrap().is_empty());
        assert!(dir.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dir.is_alive());
        for result in [
            dir.read_into("stat", &mut buf).map(|_| ()),
            dir.readlink("exe").map(|_| ()),
            dir.numbers("fd").map(|_| ()),
        ] {
            assert!(result.unwrap_err().is_gone());
        }
        assert!(ProcDir::open(Pid(child.id() as i32)).unwrap_err().is_gone());
    }

    #[test]
    fn a_missing_file_of_a_living_process_is_absent() {
        let dir = ProcDir::of_self().unwrap();
        let error = dir.read_into("no_such_file", &mut Vec::new()).unwrap_err();
        assert!(error.is_absent() && !error.is_gone(), "{error:?}");
        assert!(error.to_string().contains("/proc/self/no_such_file"), "{error}");
    }

    #[test]
    fn the_buffer_is_emptied_first_and_files_longer_than_it_are_whole() {
        let dir = ProcDir::of_self().unwrap();
        let mut buf = vec![1; 100_000];
        let len = dir.read_into("comm", &mut buf).unwrap().len();
        assert!((1..=16).contains(&len));
        let mut small = Vec::new();
        assert!(dir.read_into("smaps", &mut small).unwrap().len() > 4096);
    }
}
