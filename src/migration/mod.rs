//! Moving a live process tree from one host to another.
//!
//! *Source*: where it runs. *Destination*: where it is to run. *Round*: one pass over dirty pages. *Switch-over*: the
//! pause, from the last instruction on the source to the first on the destination. *Residual*: what is still to send
//! when the pause begins.
//!
//! Source and destination are mirror images: one function for each step of [`protocol`], with the same name on both
//! sides. [`handover`] is the two-phase commit as a pure state machine, [`switchover`] decides when to pause, [`pages`] is how
//! pages travel, [`journal`] is what survives the program. Nothing here knows what a pipe is.

pub mod handover;
pub mod journal;
pub mod pages;
pub mod protocol;
pub mod switchover;
