//! Memory that arrives after the process runs: a fault server over userfaultfd.
//!
//! ```text
//! target touches a page --> Fault --> Server: whose page is it?  --> Source::want (ahead of all others)
//!                                     a hole                     --> zeros at once
//! Source::next --> pages ----------> Server: where are they missing? --> UFFDIO_COPY, which wakes whoever waits
//! fork, mremap, madvise, munmap ---> Server: Missing follows; the target waits until the event was read
//! ```
//! [`order`] (pure) says in which order pages come, [`missing`] (pure) where they belong, [`server`] does the I/O, a
//! [`source::Source`] has the contents. Private memory is served in each address space, shared memory once ([`objects`]). Properties of the kernel relied on:
//! - From the beginning of fork, mremap, madvise or munmap until its event was read, `UFFDIO_COPY` and `UFFDIO_ZEROPAGE` give
//!   `EAGAIN`. So nothing is copied on the ground of an outdated [`missing::Missing`], if events that were read are applied
//!   before anything is copied, and one thread does both. Faults are read before events that are older: they are looked at
//!   last.
//! - What a child does not inherit (`MADV_WIPEONFORK`, `MADV_DONTFORK`) no event says: it is looked up before the event of a
//!   fork is read ([`forks`]), and events are read one by one for that.
//! - `madvise` drops pages after its event was read: what is copied in between is dropped with them.
//! - A page is made with its content and mapped in one step; whoever waits for it is woken by that.
//! - When the last descriptor closes while pages are missing, they read as zeros. So it must not close before all are in or
//!   the rest is poisoned ([`server::Server::poison`]), which [`crate::companion`] sees to.

mod forks;
pub mod missing;
pub mod objects;
pub mod order;
pub mod server;
pub mod source;
pub mod stalls;
pub mod touches;

pub use missing::{Missing, Piece};
pub use objects::{Area, Object, Objects, View};
pub use order::{Fault, Order};
pub use server::{Counts, Server, Step};
pub use source::{Arrival, Source, StoreSource};
pub use stalls::Waits;
