//! Signal actions, alternate stacks, pending signals.

use super::Bytes;
use serde::{Deserialize, Serialize};

/// A table of signal actions (`CLONE_SIGHAND`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighand {
    /// Actions of signals 1..=64, in this order.
    pub actions: Vec<SigAction>,
}

/// `struct kernel_sigaction` of x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SigAction {
    /// 0 = SIG_DFL, 1 = SIG_IGN, else the handler's address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// `SA_RESTORER`: address.
    pub restorer: u64,
    /// Signals blocked while the handler runs.
    pub mask: u64,
}

/// `stack_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AltStack {
    /// Lowest address.
    pub address: u64,
    /// `SS_*`.
    pub flags: i32,
    /// Length in bytes.
    pub size: u64,
}

/// A pending signal: `siginfo_t` as `PTRACE_PEEKSIGINFO` gives it, 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigInfo(pub Bytes);
