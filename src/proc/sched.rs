//! `/proc/PID/task/TID/sched` (sched(7), kernels with `CONFIG_SCHED_DEBUG`): since when a thread sleeps.

use super::ProcDir;

/// `se.exec_start`: the scheduler's clock when the thread last ran, nanoseconds. `None` where the file does not exist.
pub fn parse(text: &[u8]) -> Option<u64> {
    let line = text.split(|b| *b == b'\n').find(|l| l.starts_with(b"se.exec_start"))?;
    let value = std::str::from_utf8(line.rsplit(|b| *b == b':').next()?).ok()?.trim();
    // Milliseconds with six decimals.
    let (ms, ns) = value.split_once('.')?;
    let ns: u64 = if ns.len() == 6 { ns.parse().ok()? } else { return None };
    ms.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(ns)
}

impl ProcDir {
    /// When this thread last ran, on the scheduler's clock.
    pub fn last_ran(&self, buf: &mut Vec<u8>) -> Option<u64> {
        parse(self.read_into("sched", buf).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn milliseconds_with_six_decimals() {
        let text = b"sh (1, #threads: 1)\n---\nse.exec_start          :       3763470.220694\nse.vruntime : 1.0\n";
        assert_eq!(parse(text), Some(3_763_470_220_694));
        assert_eq!(parse(b"se.exec_start : 1.5\n"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn our_own_is_later_each_time() {
        let own = super::ProcDir::of_self().unwrap();
        let mut buf = Vec::new();
        let first = own.last_ran(&mut buf);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(own.last_ran(&mut buf) >= first);
    }
}
