//! Interval timers and POSIX timers.

use serde::{Deserialize, Serialize};

/// `setitimer(2)`: real, virtual, profiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IntervalTimers {
    /// `ITIMER_REAL`, also `alarm(2)`.
    pub real: TimerSpec,
    /// `ITIMER_VIRTUAL`.
    pub virt: TimerSpec,
    /// `ITIMER_PROF`.
    pub prof: TimerSpec,
}

/// Time left and period, nanoseconds; 0 left = disarmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TimerSpec {
    /// Nanoseconds until the next expiry.
    pub remaining_ns: u64,
    /// Period in nanoseconds, 0 = once.
    pub interval_ns: u64,
}

/// One timer of `timer_create(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// `timer_t` as the kernel numbers it.
    pub id: i32,
    /// `CLOCK_*`; negative for CPU clocks of a process or thread.
    pub clock: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread for `SIGEV_THREAD_ID`, as the target sees it; 0 otherwise.
    pub tid: i32,
    /// Time left and period.
    pub spec: TimerSpec,
    /// `timer_getoverrun(2)`.
    pub overrun: i32,
}
