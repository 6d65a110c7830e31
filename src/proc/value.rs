//! Files of `/proc/PID` that hold one value: `comm`, `wchan`, `personality`, `oom_score_adj`, `coredump_filter`, `loginuid`,
//! `autogroup`, `timerslack_ns`.

use super::{ProcDir, Result, Syntax, scan};
use crate::image::Bytes;

fn whole<T>(
    what: &'static str,
    convert: impl Fn(&[u8]) -> Option<T>,
) -> impl Fn(&[u8]) -> std::result::Result<T, Syntax> {
    move |text| convert(scan::trim(text)).ok_or_else(|| Syntax::new(1, what, text))
}

/// `autogroup` (sched(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autogroup {
    /// Number of the group; sessions get one each.
    pub id: u64,
    /// Nice value of the group.
    pub nice: i32,
}

/// Reads `/autogroup-25 nice 0`.
///
/// # Errors
/// Another form.
pub fn parse_autogroup(text: &[u8]) -> std::result::Result<Autogroup, Syntax> {
    let parsed = || {
        let mut words = scan::words(scan::trim(text));
        let id = scan::dec(words.next()?.strip_prefix(b"/autogroup-")?)?;
        let nice = words.nth(1).and_then(scan::int32)?;
        Some(Autogroup { id, nice })
    };
    parsed().ok_or_else(|| Syntax::new(1, "expected /autogroup-N nice N", text))
}

impl ProcDir {
    /// `comm`: the name without escapes, any bytes.
    ///
    /// # Errors
    /// See [`ProcDir::read_into`].
    pub fn comm(&self, buf: &mut Vec<u8>) -> Result<Bytes> {
        let text = self.read_into("comm", buf)?;
        Ok(text.strip_suffix(b"\n").unwrap_or(text).into())
    }

    /// `wchan`: the kernel function the task waits in (`handle_userfault`); empty where it runs or nothing is shown.
    ///
    /// # Errors
    /// See [`ProcDir::read_into`].
    pub fn wchan(&self, buf: &mut Vec<u8>) -> Result<Bytes> {
        let text = self.read_into("wchan", buf)?;
        Ok(if text == b"0" { Bytes::default() } else { text.into() })
    }

    /// `personality(2)` of the task.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn personality(&self, buf: &mut Vec<u8>) -> Result<u32> {
        let hex = |text: &[u8]| u32::try_from(scan::hex(text)?).ok();
        self.parsed("personality", buf, whole("expected a hexadecimal number", hex))
    }

    /// `oom_score_adj`, -1000..1000.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn oom_score_adj(&self, buf: &mut Vec<u8>) -> Result<i32> {
        self.parsed("oom_score_adj", buf, whole("expected a number", scan::int32))
    }

    /// `coredump_filter`, a bit mask (core(5)); `None` without an address space.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn coredump_filter(&self, buf: &mut Vec<u8>) -> Result<Option<u32>> {
        let parse = |text: &[u8]| match scan::trim(text) {
            b"" => Some(None),
            digits => u32::try_from(scan::hex(digits)?).ok().map(Some),
        };
        self.parsed("coredump_filter", buf, whole("expected a hexadecimal number", parse))
    }

    /// `loginuid`; `u32::MAX` = unset, also where the kernel has no auditing.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn loginuid(&self, buf: &mut Vec<u8>) -> Result<u32> {
        match self.parsed("loginuid", buf, whole("expected a user id", scan::dec32)) {
            Err(e) if e.is_absent() => Ok(u32::MAX),
            other => other,
        }
    }

    /// `autogroup`; `None` in kernels without CONFIG_SCHED_AUTOGROUP, and for a task outside every autogroup, whose file is empty
    /// (`proc_sched_autogroup_show_task` of the kernel prints nothing where the task's group belongs to a cpu cgroup).
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn autogroup(&self, buf: &mut Vec<u8>) -> Result<Option<Autogroup>> {
        let some = |text: &[u8]| if text.is_empty() { Ok(None) } else { parse_autogroup(text).map(Some) };
        match self.parsed("autogroup", buf, some) {
            Err(e) if e.is_absent() => Ok(None),
            other => other,
        }
    }

    /// `timerslack_ns` of the task, nanoseconds. The directories below `task/` have no such file: open a thread by its id as if
    /// it were a process.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; EPERM without CAP_SYS_NICE, but for the calling thread.
    pub fn timer_slack_ns(&self, buf: &mut Vec<u8>) -> Result<u64> {
        self.parsed("timerslack_ns", buf, whole("expected a number", scan::dec))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const AUTOGROUP: &[u8] = b"/autogroup-25 nice -5\n";

    #[test]
    fn values_of_this_process() {
        let dir = ProcDir::of_self().unwrap();
        let mut buf = Vec::new();
        assert!(!dir.comm(&mut buf).unwrap().0.is_empty());
        dir.wchan(&mut buf).unwrap();
        dir.loginuid(&mut buf).unwrap();
        dir.autogroup(&mut buf).unwrap();
        assert_eq!(dir.personality(&mut buf).unwrap() & 0xff, 0);
        assert!((-1000..=1000).contains(&dir.oom_score_adj(&mut buf).unwrap()));
        assert!(dir.coredump_filter(&mut buf).unwrap().is_some());
        // A thread may always ask about itself; about another, the first of its process included, only with CAP_SYS_NICE.
        let thread = ProcDir::open(crate::image::Pid(nix::unistd::gettid().as_raw())).unwrap();
        assert!(thread.timer_slack_ns(&mut buf).unwrap() > 0);
    }

    #[test]
    fn autogroups() {
        assert_eq!(parse_autogroup(AUTOGROUP).unwrap(), Autogroup { id: 25, nice: -5 });
        assert!(parse_autogroup(b"/autogroup-x nice 0").is_err());
    }
}
