//! Facts of this host that are not a yes or a no.

use crate::proc::{ProcDir, sys};
use std::sync::OnceLock;

/// What `migrate check` prints beside the probes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `uname -n`.
    pub hostname: String,
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// Identity of this boot.
    pub boot_id: String,
    /// Processors that are on line.
    pub cpus: u32,
    /// Features of the processor, sorted.
    pub cpu_features: Vec<String>,
    /// Memory, bytes.
    pub memory: sys::MemInfo,
    /// One more than the largest process id.
    pub pid_max: u64,
    /// Mappings a process may have.
    pub max_map_count: u64,
    /// Largest pipe without CAP_SYS_RESOURCE, bytes.
    pub pipe_max_size: u64,
    /// Yama's `ptrace_scope`; `None` without Yama.
    pub yama_ptrace_scope: Option<u64>,
    /// `vm.unprivileged_userfaultfd`; `None` where the kernel has no such switch.
    pub unprivileged_userfaultfd: Option<bool>,
    /// Effective user.
    pub euid: u32,
    /// Effective capabilities: bit n for capability n.
    pub capabilities: u64,
    /// This process is in the first user namespace.
    pub initial_user_ns: bool,
    /// seccomp filters on this process itself (they keep it from suspending those of others).
    pub own_seccomp_filters: bool,
}

fn read() -> Facts {
    let uname = nix::sys::utsname::uname().ok();
    let text = |of: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|u| of(u).to_string_lossy().into_owned()).unwrap_or_default()
    };
    let mut buf = Vec::new();
    let dir = ProcDir::of_self().ok();
    let status = dir.as_ref().and_then(|d| d.status(&mut buf).ok());
    let map = dir.as_ref().and_then(|d| d.uid_map(&mut buf).ok()).unwrap_or_default();
    Facts {
        hostname: text(|u| u.nodename()),
        release: text(|u| u.release()),
        machine: text(|u| u.machine()),
        boot_id: sys::boot_id().unwrap_or_default(),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        cpu_features: sys::cpu_features().unwrap_or_default(),
        memory: sys::meminfo().unwrap_or_default(),
        pid_max: sys::pid_max().unwrap_or_default(),
        max_map_count: sys::max_map_count().unwrap_or_default(),
        pipe_max_size: sys::pipe_max_size().unwrap_or_default(),
        yama_ptrace_scope: sys::yama_ptrace_scope().unwrap_or_default(),
        unprivileged_userfaultfd: sys::unprivileged_userfaultfd().unwrap_or_default(),
        euid: nix::unistd::geteuid().as_raw(),
        capabilities: status.as_ref().map_or(0, |s| s.caps.effective),
        initial_user_ns: matches!(map.as_slice(), [all] if all.inside == 0 && all.outside == 0 && all.count == u32::MAX),
        own_seccomp_filters: status.is_some_and(|s| s.seccomp != 0),
    }
}

/// Whether the kernel is of this release or a later one, for what no probe can try.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    let mut numbers = facts().release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Facts of this host, read once. What cannot be read is empty or 0.
pub fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(read)
}
