//! Blockers: what cannot be saved or restored, found before anything is stopped.
//!
//! Codes are stable (cli.md): M01 tasks, M02 memory, M03 descriptors, M04 sockets, M05 files and mounts, M06 namespaces
//! and cgroups, M07 CPU and kernel, M08 privilege, M09 peer and transport, M10 image, M11 supervisor and container.
//! Never re-used, never re-numbered.

/// A stable code, shown as `M0301`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "M{:04}", self.0)
    }
}

/// One thing that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Stable code; `migrate explain CODE` has more.
    pub code: Code,
    /// What: `pid 1234 fd 7 (socket:[9876])`.
    pub object: String,
    /// Why it is in the way.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}
