//! `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).

use super::{
    ProcDir, Result, Syntax,
    locks::{self, Lock},
    scan::{self, OrSyntax},
};
use crate::image::{Bytes, timers::TimerSpec};

/// What the kernel tells of one open file description.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// Offset; may be "negative" as a signed number for files such as `/proc/PID/mem`.
    pub pos: i64,
    /// `O_*` of the description, with `O_CLOEXEC` if the descriptor has it.
    pub flags: u32,
    /// Mount it was opened through: an id as in mountinfo; of the kernel's own mounts for pipes, sockets, memfds.
    pub mnt_id: u32,
    /// Inode (5.14+).
    pub ino: Option<u64>,
    /// Locks of this description, and POSIX locks of this descriptor table on its file.
    pub locks: Vec<Lock>,
    /// What the kind of file adds.
    pub detail: Detail,
}

/// What a kind of file adds. An epoll or inotify instance that watches nothing adds nothing: the link's text tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Detail {
    /// Nothing.
    #[default]
    None,
    /// eventfd(2).
    EventFd {
        /// The counter.
        count: u64,
        /// `EFD_SEMAPHORE`; `None` before 6.5, which does not tell.
        semaphore: Option<bool>,
    },
    /// epoll(7), by descriptor number; a number may occur several times (re-used while its old file is still open).
    Epoll(Vec<EpollTarget>),
    /// signalfd(2): bit n-1 for signal n.
    SignalFd {
        /// Signals it reads.
        mask: u64,
    },
    /// timerfd_create(2).
    TimerFd {
        /// `CLOCK_*`.
        clock: i32,
        /// Expirations not read yet.
        ticks: u64,
        /// `TFD_TIMER_*`.
        settime_flags: u32,
        /// Time left and period.
        spec: TimerSpec,
    },
    /// inotify(7).
    Inotify(Vec<InotifyWatch>),
    /// fanotify(7): not saved.
    Fanotify,
    /// pidfd_open(2).
    PidFd {
        /// In the PID namespace of the mounted `/proc`: -1 = ended and reaped, 0 = not visible.
        pid: i32,
        /// In each PID namespace inwards from there; empty if it was reaped.
        ns_pids: Vec<i32>,
    },
    /// Master of a pseudo-terminal.
    PtyMaster {
        /// Number below `/dev/pts`.
        index: u32,
    },
    /// io_uring(7).
    IoUring(Box<IoUring>),
    /// userfaultfd(2).
    Userfaultfd,
    /// A kind this program cannot save, named by its first key (`bpf` programs, `tun`, `drm`, ...).
    Other(String),
}

/// One registration of an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollTarget {
    /// Descriptor number at registration time: it may be closed or re-used by now.
    pub fd: u32,
    /// `EPOLL*`.
    pub events: u32,
    /// `epoll_data_t`.
    pub data: u64,
    /// Inode of the watched file; 0 before 5.? kernels that do not tell.
    pub ino: u64,
    /// Device of the watched file's file system, `makedev(3)` encoding.
    pub device: u64,
}

/// One watch of an inotify instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode.
    pub ino: u64,
    /// Device of the file system, `makedev(3)` encoding.
    pub device: u64,
    /// `IN_*`, without the kernel's internal bits.
    pub mask: u32,
    /// Type of the file handle (`open_by_handle_at(2)`); -1 or 255 where the file system has none.
    pub handle_type: i32,
    /// The file handle; empty where the file system has none.
    pub handle: Bytes,
}

/// What of an io_uring matters for the question whether it is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoUring {
    /// Submission ring: entries - 1.
    pub sq_mask: u32,
    /// Completion ring: entries - 1.
    pub cq_mask: u32,
    /// Thread that polls the submission ring; -1 = none.
    pub sq_thread: i32,
    /// Registered files.
    pub user_files: u32,
    /// Registered buffers.
    pub user_bufs: u32,
    /// Submissions that wait in the ring.
    pub sqes: u32,
    /// Completions that were not read.
    pub cqes: u32,
}

/// Words `KEY:VALUE` and `KEY: VALUE` of one line, in order. Values may be separated from their keys by blanks.
struct Pairs<'a, I: Iterator<Item = &'a [u8]>> {
    words: I,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Pairs<'a, I> {
    /// The value of the next key that is `key`, passing over others.
    fn value(&mut self, key: &[u8]) -> Option<&'a [u8]> {
        loop {
            let word = self.words.next()?;
            if let Some(value) = word.strip_prefix(key).and_then(|rest| rest.strip_prefix(b":")) {
                return if value.is_empty() { self.words.next() } else { Some(value) };
            }
        }
    }
}

/// `tfd:        5 events:       19 data:                5  pos:0 ino:3e sdev:d`
fn epoll_target(line: &[u8]) -> Option<EpollTarget> {
    let mut pairs = Pairs { words: scan::words(line) };
    let fd = scan::dec32(pairs.value(b"tfd")?)?;
    let events = u32::try_from(scan::hex(pairs.value(b"events")?)?).ok()?;
    let data = scan::hex(pairs.value(b"data")?)?;
    // Kernels before 5.? end the line here.
    let ino = pairs.value(b"ino").map_or(Some(0), scan::hex)?;
    let device = pairs.value(b"sdev").map_or(Some(0), scan::kernel_device)?;
    Some(EpollTarget { fd, events, data, ino, device })
}

/// `inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d`
fn inotify_watch(line: &[u8]) -> Option<InotifyWatch> {
    let mut pairs = Pairs { words: scan::words(line) };
    let wd = i32::try_from(scan::hex(pairs.value(b"wd")?)?).ok()?;
    let ino = scan::hex(pairs.value(b"ino")?)?;
    let device = scan::kernel_device(pairs.value(b"sdev")?)?;
    let mask = u32::try_from(scan::hex(pairs.value(b"mask")?)?).ok()?;
    let mut watch = InotifyWatch { wd, ino, device, mask, handle_type: -1, handle: Bytes::default() };
    if let Some(length) = pairs.value(b"fhandle-bytes") {
        let length = usize::try_from(scan::hex(length)?).ok()?;
        watch.handle_type = i32::try_from(scan::hex(pairs.value(b"fhandle-type")?)?).ok()?;
        watch.handle = Bytes(unhex(pairs.value(b"f_handle").unwrap_or(b""))?);
        if watch.handle.0.len() != length {
            return None;
        }
    }
    Some(watch)
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| scan::hex(pair).and_then(|n| u8::try_from(n).ok())).collect()
}

/// `(seconds, nanoseconds)` as nanoseconds; times past 2^64 ns saturate.
fn timespec(value: &[u8]) -> Option<u64> {
    let (seconds, nanoseconds) = scan::cut(value.strip_prefix(b"(")?.strip_suffix(b")")?, b',')?;
    let (seconds, nanoseconds) = (scan::dec(seconds)?, scan::dec(scan::trim(nanoseconds))?);
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

fn timer(detail: &mut Detail, key: &[u8], value: &[u8]) -> Option<()> {
    if !matches!(detail, Detail::TimerFd { .. }) {
        *detail = Detail::TimerFd { clock: 0, ticks: 0, settime_flags: 0, spec: TimerSpec::default() };
    }
    let Detail::TimerFd { clock, ticks, settime_flags, spec } = detail else { return None };
    match key {
        b"clockid" => *clock = scan::int32(value)?,
        b"ticks" => *ticks = scan::dec(value)?,
        b"settime flags" => *settime_flags = u32::try_from(scan::oct(value)?).ok()?,
        b"it_value" => spec.remaining_ns = timespec(value)?,
        _ => spec.interval_ns = timespec(value)?,
    }
    Some(())
}

fn ring(detail: &mut Detail, key: &[u8], value: &[u8]) -> Option<()> {
    if !matches!(detail, Detail::IoUring(_)) {
        *detail = Detail::IoUring(Box::new(IoUring { sq_thread: -1, ..IoUring::default() }));
    }
    let Detail::IoUring(ring) = detail else { return None };
    let masked = |value: &[u8]| u32::try_from(scan::hex(value.strip_prefix(b"0x").unwrap_or(value))?).ok();
    match key {
        b"SqMask" => ring.sq_mask = masked(value)?,
        b"CqMask" => ring.cq_mask = masked(value)?,
        b"SqThread" => ring.sq_thread = scan::int32(value)?,
        b"UserFiles" => ring.user_files = scan::dec32(value)?,
        b"UserBufs" => ring.user_bufs = scan::dec32(value)?,
        b"SQEs" => ring.sqes = scan::dec32(value)?,
        _ => ring.cqes = scan::dec32(value)?,
    }
    Some(())
}

fn event_fd(detail: &mut Detail, key: &[u8], value: &[u8]) -> Option<()> {
    if !matches!(detail, Detail::EventFd { .. }) {
        *detail = Detail::EventFd { count: 0, semaphore: None };
    }
    let Detail::EventFd { count, semaphore } = detail else { return None };
    match key {
        b"eventfd-count" => *count = scan::hex(value)?,
        b"eventfd-semaphore" => *semaphore = Some(scan::dec(value)? != 0),
        _ => {}
    }
    Some(())
}

fn pid_fd(detail: &mut Detail, key: &[u8], value: &[u8]) -> Option<()> {
    if !matches!(detail, Detail::PidFd { .. }) {
        *detail = Detail::PidFd { pid: -1, ns_pids: Vec::new() };
    }
    let Detail::PidFd { pid, ns_pids } = detail else { return None };
    match key {
        b"Pid" => *pid = scan::int32(value)?,
        _ => *ns_pids = scan::words(value).map(scan::int32).collect::<Option<_>>()?,
    }
    Some(())
}

fn push<T>(list: Option<&mut Vec<T>>, item: T) -> Option<()> {
    list?.push(item);
    Some(())
}

/// Fills what the line says; `None` for a value without the expected form.
fn set(info: &mut FdInfo, key: &[u8], value: &[u8], line: &[u8]) -> Option<()> {
    let detail = &mut info.detail;
    match key {
        b"pos" => info.pos = scan::int(value)?,
        b"flags" => info.flags = u32::try_from(scan::oct(value)?).ok()?,
        b"mnt_id" => info.mnt_id = scan::dec32(value)?,
        b"ino" => info.ino = Some(scan::dec(value)?),
        b"lock" => info.locks.push(locks::line(value)?),
        b"eventfd-count" | b"eventfd-id" | b"eventfd-semaphore" => event_fd(detail, key, value)?,
        b"sigmask" => *detail = Detail::SignalFd { mask: scan::hex(value)? },
        b"clockid" | b"ticks" | b"settime flags" | b"it_value" | b"it_interval" => timer(detail, key, value)?,
        b"Pid" | b"NSpid" => pid_fd(detail, key, value)?,
        b"tty-index" => *detail = Detail::PtyMaster { index: scan::dec32(value)? },
        b"SqMask" | b"CqMask" | b"SqThread" | b"UserFiles" | b"UserBufs" | b"SQEs" | b"CQEs" => {
            ring(detail, key, value)?
        }
        b"tfd" => {
            if *detail == Detail::None {
                *detail = Detail::Epoll(Vec::new());
            }
            let list = if let Detail::Epoll(list) = detail { Some(list) } else { None };
            push(list, epoll_target(line)?)?;
        }
        b"inotify wd" => {
            if *detail == Detail::None {
                *detail = Detail::Inotify(Vec::new());
            }
            let list = if let Detail::Inotify(list) = detail { Some(list) } else { None };
            push(list, inotify_watch(line)?)?;
        }
        b"API" | b"pending" | b"total" => *detail = Detail::Userfaultfd,
        _ if key.starts_with(b"fanotify") => *detail = Detail::Fanotify,
        _ if *detail == Detail::None => *detail = Detail::Other(key.escape_ascii().to_string()),
        // Further lines of an io_uring, of a kind that is not saved anyway, or of a newer kernel.
        _ => {}
    }
    Some(())
}

/// Faults that a userfaultfd(2) of ours has to tell and that nobody has read; events are not among them.
///
/// # Errors
/// Its file in `/proc` cannot be read.
pub fn faults_pending(fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<usize> {
    let text = std::fs::read(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))?;
    let count = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"pending:"));
    let count = count.and_then(|count| std::str::from_utf8(count).ok()?.trim().parse().ok());
    count.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// Reads an fdinfo file.
///
/// # Errors
/// No `flags:`, or a known key with a value of another form.
pub fn parse(text: &[u8]) -> std::result::Result<FdInfo, Syntax> {
    let mut info = FdInfo::default();
    let mut has_flags = false;
    for at in scan::lines(text) {
        let line = at.1;
        // Lists within an io_uring's file (`    0: /path`) are indented or have no key of their own.
        if line.is_empty() || line.starts_with(b" ") || line.starts_with(b"\t") {
            continue;
        }
        let Some((key, value)) = scan::cut(line, b':') else {
            if matches!(info.detail, Detail::IoUring(_) | Detail::Other(_) | Detail::Fanotify) {
                continue;
            }
            return Err(Syntax::new(at.0, "expected `KEY: VALUE`", line));
        };
        set(&mut info, key, scan::trim(value), line).or_syntax(at, "unexpected value")?;
        has_flags |= key == b"flags";
    }
    if has_flags { Ok(info) } else { Err(Syntax::new(0, "expected `flags:`", text)) }
}

impl ProcDir {
    /// Descriptors of the process or thread, ascending.
    ///
    /// # Errors
    /// See [`ProcDir::numbers`]; EACCES without the right to ptrace.
    pub fn fds(&self) -> Result<Vec<u32>> {
        self.numbers("fd")
    }

    /// Reads `fdinfo/FD`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; absent if the descriptor was closed meanwhile.
    pub fn fdinfo(&self, fd: u32, buf: &mut Vec<u8>) -> Result<FdInfo> {
        self.parsed(&format!("fdinfo/{fd}"), buf, parse)
    }
}

#[cfg(test)]
#[path = "fdinfo_tests.rs"]
pub(super) mod tests;
