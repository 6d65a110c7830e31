//! How other hosts are reached from here: what a person says of a destination, as the transport takes it.

use super::options::PeerOptions;
use super::places::Places;
use super::proxies::ways::Ways;
use super::words::Dest;
use super::{interrupt, proxies};
use crate::failure::{Failure, FailureKind};
use crate::migration::handover::Candidate;
use crate::transport::connect::{self, ConnectOptions};
use crate::transport::hello::Purpose;
use crate::transport::link::{Link, Request};
use crate::transport::{Abort, PeerAddress, TransportError};

/// Opens a link with this many bulk channels.
///
/// # Errors
/// See [`connect::connect`].
pub(crate) fn to(
    dest: &Dest,
    peer: &PeerOptions,
    purpose: Purpose,
    streams: u16,
    abort: &Abort,
) -> std::result::Result<Link, TransportError> {
    connect::connect(&address(dest), &manner(dest, peer), Request { purpose, streams }, abort)
}

/// Opens a link for a question, which ends by itself alone.
///
/// # Errors
/// See [`connect::connect`].
pub(super) fn to_ask(dest: &Dest, peer: &PeerOptions) -> std::result::Result<Link, TransportError> {
    Abort::new()
        .map_err(|source| TransportError::Io { operation: "reach", peer: dest.to_string(), source })
        .and_then(|abort| to(dest, peer, Purpose::Send, 0, &abort))
}

/// How a destination or a proxy is reached from here.
pub(super) fn manner(dest: &Dest, peer: &PeerOptions) -> ConnectOptions {
    let places = Places::here();
    ConnectOptions {
        keys: places.keys,
        peers: places.peers,
        connect_timeout: peer.connect_timeout,
        peer_timeout: peer.peer_timeout,
        allow_plain: peer.allow_plain,
        rsh: peer.rsh.clone(),
        remote: peer.remote.clone(),
        bootstrap: peer.bootstrap,
        program: crate::companion::OWN_PROGRAM.into(),
        route: peer.route_to(dest).cloned(),
    }
}

/// Opens a link to one of several destinations again, without channels for pages. `ways`: those that there were through others.
///
/// # Errors
/// See [`connect::connect`].
pub(super) fn again(
    dests: &[Dest],
    to: Candidate,
    (peer, ways): (&PeerOptions, Option<&Ways>),
    abort: &Abort,
) -> std::result::Result<Link, TransportError> {
    let nobody = || TransportError::Io {
        operation: "find",
        peer: format!("destination {}", to.0),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let dest = dests.get(usize::from(to.0)).ok_or_else(nobody)?;
    proxies::link_again(dest, peer, ways, abort)
}

/// A destination as the transport knows it.
pub(super) fn address(dest: &Dest) -> PeerAddress {
    match dest.clone() {
        Dest::Ssh { user, host, port } => PeerAddress::Ssh { user, host, port },
        Dest::Tls(address) => PeerAddress::Tls { host: address.host, port: address.port },
        Dest::Plain(address) => PeerAddress::Plain { host: address.host, port: address.port },
        Dest::Unix(path) => PeerAddress::Unix(path),
        Dest::Local => PeerAddress::Local,
    }
}

/// No link: nothing has happened to the target.
pub(crate) fn failure(dest: &str, error: &TransportError) -> Failure {
    let failure = Failure::of(format!("{dest} cannot be reached"), error).kind(FailureKind::Peer);
    let failure = failure.code(error.code());
    let failure = match error {
        TransportError::Aborted { .. } => failure.kind(interrupt::requested().unwrap_or(FailureKind::Interrupted)),
        _ => failure,
    };
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
