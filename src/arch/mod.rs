//! What depends on the processor: registers, the system call convention, restart codes, the vDSO.

pub mod features;
pub mod restart;
pub mod vdso;
mod x86_64;

pub use x86_64::*;
