//! Credentials, capabilities, seccomp.

use super::SeccompFilterId;
use serde::{Deserialize, Serialize};

/// Who a thread is: ids as seen in the thread's own user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creds {
    /// Real, effective, saved, file-system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient: bit n for capability n.
    pub caps: Capabilities,
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

/// Capability sets as bit masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Kept across execve.
    pub inheritable: u64,
    /// Upper bound of effective.
    pub permitted: u64,
    /// In force.
    pub effective: u64,
    /// Upper bound of what execve may give.
    pub bounding: u64,
    /// Given to unprivileged programs on execve.
    pub ambient: u64,
}

/// seccomp(2) state of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// No seccomp.
    Disabled,
    /// `SECCOMP_MODE_STRICT`.
    Strict,
    /// Filters, in the order they were installed (the first was installed first).
    Filter(Vec<SeccompFilterId>),
}

/// One seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_LOG` and the like, as of `PTRACE_SECCOMP_GET_METADATA`.
    pub flags: u64,
    /// Classic BPF: instructions of 8 bytes (`struct sock_filter`).
    pub program: Vec<u64>,
}
