//! `/proc/PID/timers` (proc_pid_timers(5)): POSIX timers, without the time that is left.

use super::{ProcDir, Result, Syntax, scan};

/// One timer of `timer_create(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// `timer_t` as the kernel numbers it.
    pub id: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_SIGNAL` = 0, `SIGEV_NONE` = 1, `SIGEV_THREAD` = 2, plus `SIGEV_THREAD_ID` = 4.
    pub notify: i32,
    /// The thread (for `SIGEV_THREAD_ID`) or process that is notified, as the reader's PID namespace numbers it.
    pub pid: i32,
    /// `CLOCK_*`; negative for CPU clocks of a process or thread.
    pub clock: i32,
}

/// `signal/pid.123`.
fn notify(value: &[u8]) -> Option<(i32, i32)> {
    let (how, whom) = scan::cut(value, b'/')?;
    let how = match how {
        b"signal" => libc::SIGEV_SIGNAL,
        b"none" => libc::SIGEV_NONE,
        b"thread" => libc::SIGEV_THREAD,
        _ => return None,
    };
    let (whom, pid) = scan::cut(whom, b'.')?;
    let thread = match whom {
        b"pid" => 0,
        b"tid" => libc::SIGEV_THREAD_ID,
        _ => return None,
    };
    Some((how | thread, scan::int32(pid)?))
}

/// Fills the field that `key` names; `None` for a value without the expected form. Unknown keys are left out.
fn set(timer: &mut Timer, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        b"signal" => {
            let (signal, sigval) = scan::cut(value, b'/')?;
            timer.signal = scan::int32(signal)?;
            timer.value = scan::hex(sigval)?;
        }
        b"notify" => (timer.notify, timer.pid) = notify(value)?,
        b"ClockID" => timer.clock = scan::int32(value)?,
        _ => {}
    }
    Some(())
}

/// Reads the list of timers.
///
/// # Errors
/// A line that is not one of `ID`, `signal`, `notify`, `ClockID`, or has another value than the kernel writes.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Timer>, Syntax> {
    let mut timers: Vec<Timer> = Vec::new();
    for (number, line) in scan::lines(text) {
        let syntax = |what| Syntax::new(number, what, line);
        let (key, value) = scan::cut(line, b':').ok_or_else(|| syntax("expected `KEY: VALUE`"))?;
        let value = scan::trim(value);
        if key == b"ID" {
            let id = scan::int32(value).ok_or_else(|| syntax("expected the number of a timer"))?;
            timers.push(Timer { id, signal: 0, value: 0, notify: 0, pid: 0, clock: 0 });
        } else {
            let timer = timers.last_mut().ok_or_else(|| syntax("expected `ID:` first"))?;
            set(timer, key, value).ok_or_else(|| syntax("unexpected value of a timer"))?;
        }
    }
    Ok(timers)
}

impl ProcDir {
    /// Reads `timers`, in the order of the file.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; absent in kernels without CONFIG_CHECKPOINT_RESTORE.
    pub fn timers(&self, buf: &mut Vec<u8>) -> Result<Vec<Timer>> {
        self.parsed("timers", buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] =
        b"ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n\
        ID: 0\nsignal: 14/0000000000000007\nnotify: none/tid.2635\nClockID: -6\n";

    #[test]
    fn both_timers() {
        let timers = parse(SAMPLE).unwrap();
        let expected = [
            Timer { id: 1, signal: 60, value: 0x7fff_86e4_52a8, notify: libc::SIGEV_SIGNAL, pid: 2634, clock: 0 },
            Timer {
                id: 0,
                signal: 14,
                value: 7,
                notify: libc::SIGEV_NONE | libc::SIGEV_THREAD_ID,
                pid: 2635,
                clock: -6,
            },
        ];
        assert_eq!(timers, expected);
    }

    #[test]
    fn lines_out_of_place_are_errors() {
        assert!(parse(b"signal: 1/0\n").is_err());
        assert!(parse(b"ID: 0\nnotify: pigeon/pid.1\n").is_err());
        assert_eq!(parse(b"").unwrap(), []);
    }
}
