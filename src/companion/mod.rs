//! Small processes of ours that hold something for longer than a command runs.
//!
//! Each is this program started again with a hidden first word: no threads, no descriptor but those it was handed, a session
//! of its own, outside the caller's cgroup.

pub mod detach;
pub mod held;
pub mod lock_guard;
pub mod pager;
mod parcel;
pub mod tracker;
