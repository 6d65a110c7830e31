//! Authenticated byte streams between two `migrate` programs, and the frames that travel on them.
//!
//! A *link* has one control channel and any number of bulk channels. Over ssh there is one stream, so bulk frames travel
//! on the control channel. What an extra connection is for is announced in its first bytes ([`preamble`]), and a secret
//! token given on the control channel lets it join ([`link`]).
//!
//! ```text
//! client                                              server (agent, or its session process)
//! connect (ssh child, TCP, UNIX socket)
//! preamble: magic, role, session ------------------> routed by the agent, before any TLS
//! TLS 1.3 handshake, both certificates <-----------> fingerprints looked up in the peers file
//!           <--------------------------------------- preamble (what a remote shell printed before it is skipped)
//! HELO: versions, host facts, limits, streams wanted ->
//!           <--------------------------------------- HELO: the same, protocol chosen, token, streams granted
//! each bulk connection: preamble(bulk, session), TLS, JOIN token ->  <- JOIN
//! ```
//! Each of these connections may be a lane through a proxy ([`proxy`]). [`wait`] ends every wait, [`backoff`] says when to try again,
//! [`under_way`] how much is in queues on the way, [`path`] and [`route`] what that way is, [`pump`] joins two streams.
//!
//! Invariants: every wait ends (abort, silence time-out or deadline); every length from outside has a limit; nothing
//! here knows what a page is.

pub mod address;
pub mod backoff;
pub mod channel;
pub mod connect;
pub mod error;
pub mod frame;
pub mod hello;
pub mod keys;
pub mod link;
pub mod path;
pub mod peers;
pub mod preamble;
pub mod proxy;
pub mod pump;
pub mod route;
pub mod ssh;
pub mod ssh_config;
pub mod stream;
pub mod tls;
pub mod under_way;
pub mod wait;

pub use address::PeerAddress;
pub use channel::Channel;
pub use error::{Result, TransportError};
pub use frame::FrameKind;
pub use hello::HostFacts;
pub use link::Link;
pub use wait::Abort;
