//! Facts of the source host that a restore compares with its own.

use super::Bytes;
use serde::{Deserialize, Serialize};

/// The host a tree was collected on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// `uname -n`.
    pub hostname: String,
    /// `uname -r`.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`: stale absolute times and inode numbers are known by it.
    pub boot_id: String,
    /// CPU features (names as in `/proc/cpuinfo`), sorted.
    pub cpu_features: Vec<String>,
    /// XSTATE components enabled in XCR0 (CPUID leaf 0xD), as a bit mask.
    pub xfeatures: u64,
    /// CLOCK_MONOTONIC as the target saw it when it was collected, in nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME as the target saw it when it was collected, in nanoseconds.
    pub boottime_ns: i64,
    /// CLOCK_REALTIME when the tree was collected, in nanoseconds since the epoch.
    pub realtime_ns: i64,
    /// The kernel's vDSO text as it was mapped (ELF image), for a restore under another kernel.
    pub vdso: Bytes,
}
