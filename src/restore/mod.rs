//! restore
pub mod fd;
