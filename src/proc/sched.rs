//! `/proc/PID/task/TID/sched` (sched(7), kernels with `CONFIG_SCHED_DEBUG`): since when a thread sleeps.

use super::ProcDir;

/// What the scheduler tells of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRun {
    /// `se.exec_start`: the scheduler's clock when the thread last ran, nanoseconds.
    pub at: u64,
    /// `nr_voluntary_switches`: how often it has gone to sleep.
    pub sleeps: u64,
}

/// `None` where the file does not exist, or says nothing of it.
pub fn parse(text: &[u8]) -> Option<LastRun> {
    let value = |key: &[u8]| {
        let line = text.split(|b| *b == b'\n').find(|l| l.starts_with(key))?;
        Some(std::str::from_utf8(line.rsplit(|b| *b == b':').next()?).ok()?.trim())
    };
    // Milliseconds with six decimals.
    let (ms, ns) = value(b"se.exec_start")?.split_once('.')?;
    let ns: u64 = if ns.len() == 6 { ns.parse().ok()? } else { return None };
    let at = ms.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(ns)?;
    Some(LastRun { at, sleeps: value(b"nr_voluntary_switches")?.parse().ok()? })
}

impl ProcDir {
    /// When this thread last ran, on the scheduler's clock.
    pub fn last_ran(&self, buf: &mut Vec<u8>) -> Option<LastRun> {
        parse(self.read_into("sched", buf).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::{LastRun, parse};
    use crate::sys::sched;

    #[test]
    fn milliseconds_with_six_decimals() {
        let text =
            b"sh (1, #threads: 1)\n---\nse.exec_start          :       3763470.220694\nnr_voluntary_switches :   7\n";
        assert_eq!(parse(text), Some(LastRun { at: 3_763_470_220_694, sleeps: 7 }));
        assert_eq!(parse(b"se.exec_start : 1.5\nnr_voluntary_switches : 7\n"), None);
        assert_eq!(parse(b"se.exec_start : 1.500000\n"), None);
        assert_eq!(parse(b""), None);
    }

    /// Each processor has a clock of its own: time that a hypervisor took from it is not counted.
    #[test]
    fn on_one_processor_it_is_later_each_time() {
        let first_of = |mask: &[u8]| {
            mask.iter().enumerate().find(|(_, byte)| **byte != 0).map(|(at, byte)| (at, byte & byte.wrapping_neg()))
        };
        let own = crate::image::Pid(0);
        let (at, bit) = first_of(&sched::affinity(own).unwrap()).unwrap();
        let mut one = vec![0; at + 1];
        one[at] = bit;
        // Of this thread alone, which ends with the test.
        sched::set_affinity(own, &one).unwrap();
        let own = super::ProcDir::of_this_thread().unwrap();
        let mut buf = Vec::new();
        let first = own.last_ran(&mut buf).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let second = own.last_ran(&mut buf).unwrap();
        assert!(second.at > first.at && second.sleeps > first.sleeps, "{first:?}, then {second:?}");
    }
}
