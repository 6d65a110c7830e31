//! migrate: checkpoint, restore and live migration of Linux process trees.
//!
//! # Rooms
//!
//! ```text
//! cli, ui, agent -> ops -> migration, restore, collect -> companion -> memory, net, trace, transport -> image, proc, kernel, arch -> sys
//! ```
//! Imports go only to the right; `blocker`, `failure` and `fault` are leaves that everybody may use.

#[allow(unsafe_code)]
pub mod sys;

pub mod arch;
pub mod image;
pub mod kernel;
pub mod proc;

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

pub mod blocker;
pub mod failure;
pub mod fault;
