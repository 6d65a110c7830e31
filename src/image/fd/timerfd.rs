//! timerfd_create(2).

use crate::image::timers::TimerSpec;
use serde::{Deserialize, Serialize};

/// A timer with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerFd {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// `TFD_TIMER_*`.
    pub settime_flags: u32,
    /// Time left and period.
    pub spec: TimerSpec,
    /// When it is due on its clock, nanoseconds as the target sees that clock, for an armed timer that was set to an
    /// absolute time (`TFD_TIMER_ABSTIME`): time that passes between checkpoint and restore counts.
    pub due_ns: Option<u64>,
}
