//! migrate: checkpoint, restore and live migration of Linux process trees.
//!
//! # Rooms
//!
//! ```text
//! cli, agent, ui -> ops -> migration, restore, collect -> companion -> files, memory, net, trace, transport
//!     -> kernel, arch, proc -> sys -> image
//! ```
//! `image` is the vocabulary: plain data that everybody speaks, and that knows nobody.
//! Imports go only to the right, also within a floor; `blocker`, `failure` and `fault` are leaves that everybody may use.
//! A test (`tests/it/tidy.rs`) reads this picture and holds the code against it.

#[allow(unsafe_code)]
pub mod sys;

pub mod arch;
pub mod image;
pub mod kernel;
pub mod proc;

pub mod files;
pub mod memory;
pub mod net;
pub mod trace;
pub mod transport;

pub mod companion;

pub mod collect;
pub mod migration;
pub mod restore;

pub mod ops;

pub mod agent;
pub mod cli;
pub mod ui;

#[cfg(test)]
#[path = "../tests/skip.rs"]
mod skip;

pub mod blocker;
pub mod failure;
pub mod fault;
