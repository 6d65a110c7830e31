//! `/proc/PID/task/TID/syscall` (proc_pid_syscall(5), kernels with `CONFIG_HAVE_ARCH_TRACEHOOK`): the call that a thread
//! sleeps in. Shown to whoever may trace the thread.

use super::{ProcDir, Result, Syntax, scan};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It runs, or is about to.
    Running,
    /// It sleeps outside of any system call (in a page fault, for example).
    Blocked,
    /// It sleeps in a system call.
    Call {
        /// Its number.
        number: u64,
        /// Its arguments.
        args: [u64; 6],
    },
}

/// Reads `running`, `-1 SP PC`, or `NUMBER ARG0 ... ARG5 SP PC`.
///
/// # Errors
/// Another form.
pub fn parse(text: &[u8]) -> std::result::Result<Doing, Syntax> {
    let parsed = || {
        let mut words = scan::words(scan::trim(text));
        let number = match words.next()? {
            b"running" => return Some(Doing::Running),
            b"-1" => return Some(Doing::Blocked),
            number => scan::dec(number)?,
        };
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = scan::hex(words.next()?.strip_prefix(b"0x")?)?;
        }
        Some(Doing::Call { number, args })
    };
    parsed().ok_or_else(|| Syntax::new(1, "expected the number of a system call, and its arguments", text))
}

impl ProcDir {
    /// `task/TID/syscall`: what a thread of this process does.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; EACCES or EPERM for a thread that may not be traced.
    pub fn thread_syscall(&self, tid: crate::image::Pid, buf: &mut Vec<u8>) -> Result<Doing> {
        self.parsed(&format!("task/{tid}/syscall"), buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::Pid;

    pub(in crate::proc) const SAMPLE: &[u8] = b"202 0x7f00 0x189 0x2 0x0 0x0 0xffffffff 0x7ffd00 0x7f12\n";

    #[test]
    fn calls_have_numbers_and_arguments() {
        let args = [0x7f00, 0x189, 2, 0, 0, 0xffff_ffff];
        assert_eq!(parse(SAMPLE).unwrap(), Doing::Call { number: 202, args });
        assert_eq!(parse(b"running\n").unwrap(), Doing::Running);
        assert_eq!(parse(b"-1 0x7ffd00 0x7f12\n").unwrap(), Doing::Blocked);
        assert!(parse(b"202 0x1 0x2\n").is_err() && parse(b"").is_err() && parse(b"x").is_err());
    }

    #[test]
    fn a_thread_that_pauses_is_seen_to_pause() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let dir = ProcDir::open(pid).unwrap();
        let (mut buf, mut seen) = (Vec::new(), None);
        for _ in 0..1000 {
            seen = Some(dir.thread_syscall(pid, &mut buf));
            if matches!(seen, Some(Ok(Doing::Call { number, .. })) if number as i64 == libc::SYS_clock_nanosleep) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let Some(Ok(Doing::Call { number, .. })) = seen else { panic!("{seen:?}") };
        assert_eq!(number as i64, libc::SYS_clock_nanosleep);
    }
}
