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
//!
//! | room | what is in it |
//! |---|---|
//! | [`cli`] | from arguments to an exit code: one file a verb, configuration, signals |
//! | [`ui`] | what a person or a program sees: progress, events, failures, reports |
//! | [`agent`] | the side that listens, and the processes of its sessions |
//! | [`ops`] | use cases: `move_` is `migrate move`, `receive` its other end |
//! | [`migration`] | a move between two hosts: protocol, rounds, handover, journal; it knows no pipe and no socket of a target |
//! | [`collect`] | live tree to model |
//! | [`restore`] | model to live tree |
//! | [`companion`] | processes of ours that outlive a command: tracker, pager, guards |
//! | [`files`] | files that go along with a target |
//! | [`memory`] | pages: which have changed, where they are stored, how they come late |
//! | [`net`] | what the network sees meanwhile: sockets kept still, packets kept, addresses moved |
//! | [`trace`] | stopped tasks, and calls that they make for us (ptrace) |
//! | [`transport`] | links between hosts: ssh, TLS, frames, proxies |
//! | [`kernel`] | what this kernel can do, found by trying |
//! | [`arch`] | what depends on the processor |
//! | [`proc`] | readers of `/proc`, one for each of its files |
//! | [`sys`] | system calls; all unsafe code |
//! | [`image`] | the model of a tree, and how it is written |
//! | [`blocker`] | what stands in the way of a move, by its code |
//! | [`failure`] | what a command says when it fails |
//! | [`fault`] | named places at which a test has something fail |
//!
//! The first lines of each room say what its files are for. The same name in [`image`], [`collect`] and [`restore`] is the same kind of
//! thing: what it is, read, made.

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
