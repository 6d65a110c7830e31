//! File locks.

use crate::image::{FileId, TaskId};
use serde::{Deserialize, Serialize};

/// A lock held by the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Whose lock it is.
    pub kind: LockKind,
    /// A description of the locked file; for flock and OFD locks the owner.
    pub file: FileId,
    /// `F_RDLCK` = 0, `F_WRLCK` = 1.
    pub mode: i32,
    /// First byte.
    pub start: u64,
    /// Length in bytes, 0 = to the end.
    pub len: u64,
}

/// A lease for the file of a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// `F_RDLCK` = 0, `F_WRLCK` = 1.
    pub mode: i32,
    /// Somebody waits for it: what it is about to become, `F_RDLCK` or `F_UNLCK` = 2.
    pub breaks_to: Option<i32>,
}

/// Kinds of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// flock(2): owned by the description.
    Flock,
    /// `F_OFD_SETLK`: owned by the description.
    Ofd,
    /// `F_SETLK`: owned by the descriptor table of this task.
    Posix(TaskId),
}
