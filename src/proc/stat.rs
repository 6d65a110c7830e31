//! `/proc/PID/stat` (proc_pid_stat(5)): all 52 fields.

use super::{Error, ProcDir, Result, Syntax, scan};
use crate::image::{Bytes, Pid};
use std::io::Read;

/// `/proc/PID/stat` or `/proc/PID/task/TID/stat`, fields in the file's order.
///
/// Addresses and exit_code are 0 for a reader who may not ptrace the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stat {
    /// Process or thread id.
    pub pid: i32,
    /// Name, any bytes; up to 15 for a user process, up to 63 for a kernel worker.
    pub comm: Bytes,
    /// `R`, `S`, `D`, `Z`, `T`, `t`, `X`, `I`.
    pub state: u8,
    /// Parent; 0 if it is outside the reader's PID namespace.
    pub ppid: i32,
    /// Process group; 0 if it is not visible here.
    pub pgrp: i32,
    /// Session; 0 if it is not visible here.
    pub session: i32,
    /// Controlling terminal in the kernel's old encoding; see [`Stat::tty_device`].
    pub tty_nr: i32,
    /// Foreground process group of the terminal, -1 without one.
    pub tpgid: i32,
    /// `PF_*`.
    pub flags: u32,
    /// Minor faults.
    pub minflt: u64,
    /// Minor faults of waited-for children.
    pub cminflt: u64,
    /// Major faults.
    pub majflt: u64,
    /// Major faults of waited-for children.
    pub cmajflt: u64,
    /// Time in user mode, clock ticks.
    pub utime: u64,
    /// Time in kernel mode, clock ticks.
    pub stime: u64,
    /// User time of waited-for children, clock ticks.
    pub cutime: i64,
    /// Kernel time of waited-for children, clock ticks.
    pub cstime: i64,
    /// Scheduling priority as the kernel shows it.
    pub priority: i64,
    /// Nice value.
    pub nice: i64,
    /// Threads in the process.
    pub num_threads: i64,
    /// Always 0.
    pub itrealvalue: i64,
    /// When it started, clock ticks after boot (in the reader's time namespace).
    pub starttime: u64,
    /// Virtual memory, bytes.
    pub vsize: u64,
    /// Resident set, pages.
    pub rss: i64,
    /// Soft limit of the resident set, bytes.
    pub rsslim: u64,
    /// First address of the text.
    pub startcode: u64,
    /// End of the text.
    pub endcode: u64,
    /// Start of the stack.
    pub startstack: u64,
    /// Stack pointer, where the kernel shows it (a process that is exiting).
    pub kstkesp: u64,
    /// Instruction pointer, likewise.
    pub kstkeip: u64,
    /// Pending signals 1 to 31.
    pub signal: u64,
    /// Blocked signals 1 to 31.
    pub blocked: u64,
    /// Ignored signals 1 to 31.
    pub sigignore: u64,
    /// Caught signals 1 to 31.
    pub sigcatch: u64,
    /// 1 if it waits in the kernel.
    pub wchan: u64,
    /// Always 0.
    pub nswap: u64,
    /// Always 0.
    pub cnswap: u64,
    /// Signal sent to the parent at the end.
    pub exit_signal: i32,
    /// Processor it ran on last.
    pub processor: i32,
    /// Real-time priority, 0 without.
    pub rt_priority: u32,
    /// Scheduling policy.
    pub policy: u32,
    /// Waited for block I/O, clock ticks.
    pub delayacct_blkio_ticks: u64,
    /// Time of a guest, clock ticks.
    pub guest_time: u64,
    /// Guest time of children, clock ticks.
    pub cguest_time: i64,
    /// First address of the initialised data.
    pub start_data: u64,
    /// End of the data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Command line.
    pub arg_start: u64,
    /// Its end.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// Its end.
    pub env_end: u64,
    /// Wait status of a zombie.
    pub exit_code: i32,
}

impl Stat {
    /// The controlling terminal as `makedev(3)` encodes it; 0 without one.
    pub fn tty_device(&self) -> u64 {
        // new_encode_dev() of the kernel: minor's low 8 bits, 12 bits major, the rest of the minor.
        let raw = self.tty_nr.cast_unsigned();
        let major = u64::from((raw >> 8) & 0xfff);
        let minor = u64::from((raw & 0xff) | ((raw >> 12) & 0xf_ff00));
        nix::sys::stat::makedev(major, minor)
    }

    /// A thread of the kernel.
    pub fn is_of_kernel(&self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.flags & PF_KTHREAD != 0
    }

    /// It ends, or has: it has given up its memory and tables already, or is about to.
    pub fn is_ending(&self) -> bool {
        const PF_EXITING: u32 = 0x4;
        self.is_zombie() || self.flags & PF_EXITING != 0
    }

    /// It has ended and waits for its parent.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// The fields after the name, one at a time.
struct Fields<'a, I> {
    words: I,
    rest: &'a [u8],
}

impl<'a, I: Iterator<Item = &'a [u8]>> Fields<'a, I> {
    fn next<T>(&mut self, convert: impl FnOnce(&[u8]) -> Option<T>) -> std::result::Result<T, Syntax> {
        let rest = self.rest;
        self.words
            .next()
            .and_then(convert)
            .ok_or_else(|| Syntax::new(1, "expected 52 fields of numbers after the name", rest))
    }
    fn i(&mut self) -> std::result::Result<i64, Syntax> {
        self.next(scan::int)
    }
    fn i32(&mut self) -> std::result::Result<i32, Syntax> {
        self.next(scan::int32)
    }
    fn u(&mut self) -> std::result::Result<u64, Syntax> {
        self.next(scan::dec)
    }
    fn u32(&mut self) -> std::result::Result<u32, Syntax> {
        self.next(scan::dec32)
    }
}

/// Reads the one line of a `stat` file. The name may contain anything, also `) (` and newlines.
///
/// # Errors
/// Fewer than 52 fields, or one that is not a number.
pub fn parse(text: &[u8]) -> std::result::Result<Stat, Syntax> {
    let syntax = |what| Syntax::new(1, what, text);
    let open = text.iter().position(|&b| b == b'(').ok_or_else(|| syntax("expected a name in parentheses"))?;
    let close = text.iter().rposition(|&b| b == b')').filter(|&at| at > open);
    let close = close.ok_or_else(|| syntax("expected a name in parentheses"))?;
    let pid = scan::int32(scan::trim(&text[..open])).ok_or_else(|| syntax("expected a process id"))?;
    let rest = scan::trim(&text[close + 1..]);
    let mut f = Fields { words: scan::words(rest), rest };
    // The order below is the order of the file: struct expressions are evaluated as written.
    Ok(Stat {
        pid,
        comm: scan::unescape_comm(&text[open + 1..close]),
        state: f.next(|word| match word {
            [letter] if letter.is_ascii_alphabetic() => Some(*letter),
            _ => None,
        })?,
        ppid: f.i32()?,
        pgrp: f.i32()?,
        session: f.i32()?,
        tty_nr: f.i32()?,
        tpgid: f.i32()?,
        flags: f.u32()?,
        minflt: f.u()?,
        cminflt: f.u()?,
        majflt: f.u()?,
        cmajflt: f.u()?,
        utime: f.u()?,
        stime: f.u()?,
        cutime: f.i()?,
        cstime: f.i()?,
        priority: f.i()?,
        nice: f.i()?,
        num_threads: f.i()?,
        itrealvalue: f.i()?,
        starttime: f.u()?,
        vsize: f.u()?,
        rss: f.i()?,
        rsslim: f.u()?,
        startcode: f.u()?,
        endcode: f.u()?,
        startstack: f.u()?,
        kstkesp: f.u()?,
        kstkeip: f.u()?,
        signal: f.u()?,
        blocked: f.u()?,
        sigignore: f.u()?,
        sigcatch: f.u()?,
        wchan: f.u()?,
        nswap: f.u()?,
        cnswap: f.u()?,
        exit_signal: f.i32()?,
        processor: f.i32()?,
        rt_priority: f.u32()?,
        policy: f.u32()?,
        delayacct_blkio_ticks: f.u()?,
        guest_time: f.u()?,
        cguest_time: f.i()?,
        start_data: f.u()?,
        end_data: f.u()?,
        start_brk: f.u()?,
        arg_start: f.u()?,
        arg_end: f.u()?,
        env_start: f.u()?,
        env_end: f.u()?,
        exit_code: f.i32()?,
    })
}

impl ProcDir {
    /// Reads `stat`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn stat(&self, buf: &mut Vec<u8>) -> Result<Stat> {
        self.parsed("stat", buf, parse)
    }

    /// Reads `stat` of a process of which nothing else is wanted: half the system calls, which counts where it is done for
    /// every process of the host.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such process; see [`ProcDir::parsed`].
    pub fn stat_of_process(pid: Pid, buf: &mut Vec<u8>) -> Result<Stat> {
        let path = format!("/proc/{pid}/stat");
        let failed = |e: std::io::Error| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Error::Gone { pid, file: path.clone() },
            _ => Error::Io { operation: "read", file: path.clone(), source: e },
        };
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        // Made in one go (fs/proc/array.c): 52 numbers and a name of at most 64 bytes.
        buf.resize(4096, 0);
        let length = file.read(buf).map_err(failed)?;
        buf.truncate(length);
        parse(buf).map_err(|syntax| Error::Syntax { file: path, syntax })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"7408 (a) (b\\n c) S 7398 7398 6227 34816 7408 4194560 198 1 2 3 4 5 6 -7 20 0 3 0 \
        12345678 3133440 418 18446744073709551615 94206 94207 140722 0 0 1 2 4096 8 0 0 0 17 1 0 0 0 0 0 94208 94209 94210 94211 94212 94213 94214 9\n";

    #[test]
    fn names_may_contain_anything() {
        let stat = parse(SAMPLE).unwrap();
        assert_eq!(stat.comm.0, b"a) (b\n c");
        assert_eq!((stat.pid, stat.state, stat.ppid, stat.pgrp, stat.session), (7408, b'S', 7398, 7398, 6227));
        assert_eq!((stat.cutime, stat.cstime, stat.num_threads, stat.starttime), (6, -7, 3, 12_345_678));
        assert_eq!((stat.exit_signal, stat.env_end, stat.exit_code), (17, 94214, 9));
        assert_eq!(stat.tty_device(), nix::sys::stat::makedev(136, 0));
    }

    #[test]
    fn too_few_fields_are_an_error() {
        let cut = &SAMPLE[..SAMPLE.len() - 3];
        assert_eq!(parse(cut).unwrap_err().what, "expected 52 fields of numbers after the name");
        assert!(parse(b"1 )x( S").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn reads_itself() {
        let stat = ProcDir::of_self().unwrap().stat(&mut Vec::new()).unwrap();
        assert_eq!(stat.pid as u32, std::process::id());
        assert!(stat.arg_end >= stat.arg_start && stat.start_brk > 0 && stat.env_end >= stat.env_start);
    }
}
