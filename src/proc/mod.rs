//! Byte-level readers of `/proc`: one file of code for each file of `/proc`.
//!
//! Every reader is a pure function `parse(&[u8])`, total on any input: it returns a value or a [`Syntax`] error, it never
//! panics, and its cost is linear in the input. [`ProcDir`] does the I/O: it holds the directory of one process or
//! thread, so that a process id that is used again cannot mislead, and reads into a buffer that the caller re-uses.
//!
//! ```no_run
//! use migrate_engine::{image::Pid, proc::ProcDir};
//! let mut buf = Vec::new();
//! let dir = ProcDir::open(Pid(1))?;
//! let status = dir.status(&mut buf)?;
//! for tid in dir.tasks()? {
//!     let stat = dir.thread(tid)?.stat(&mut buf)?;
//! }
//! # Ok::<(), migrate_engine::proc::Error>(())
//! ```

mod dir;
mod error;
mod scan;

pub mod auxv;
pub mod cgroup;
pub mod cgroupfs;
pub mod cmdline;
pub mod cpu_limit;
pub mod fdinfo;
pub mod host;
pub mod limits;
pub mod locks;
pub mod maps;
pub mod mountinfo;
pub mod net;
pub mod ns;
pub mod pagemap;
pub mod sched;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod sys;
pub mod syscall;
pub mod sysvipc;
pub mod table;
pub mod task;
pub mod timens;
pub mod timers;
pub mod user_ns;
pub mod value;

#[cfg(test)]
mod total_tests;

pub use dir::ProcDir;
pub use error::{Error, Result, Syntax};
pub use host::{open_mem, own_vdso};
