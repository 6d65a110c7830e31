//! Addresses that go with a target into an image and come out of it again (`--move-address` of `dump` and `restore`).
//!
//! They leave this host when the target ends, and come to one when it is restored, before its sockets are made and while
//! what peers send to its connections is held off: a segment for an address that is here and a socket that is not would be
//! answered with a reset. Whatever fails, they are as they were before.

use super::options::{MoveAddress, StateOptions};
use crate::blocker::{Blocker, codes};
use crate::failure::{Failure, Result};
use crate::image::Model;
use crate::image::fd::FileKind;
use crate::image::fd::tcp::TcpState;
use crate::net::address::Place;
use crate::net::announce::tell_neighbours;
use crate::net::nft::{Lifetime, PacketLock, Tuple};
use crate::net::segment::parse_address;

/// Addresses that move with the target and where they are, on this host.
///
/// # Errors
/// One is not where the person says.
pub fn here(state: &StateOptions) -> Result<Vec<Place>> {
    let place =
        |address: &MoveAddress| Place { ip: address.ip, prefix: address.prefix, interface: address.interface.clone() };
    let places: Vec<Place> = state.move_addresses.iter().map(place).collect();
    let missing = places.iter().filter(|place| !place.is_here());
    let blockers: Vec<_> = missing.map(|place| Blocker::new(codes::ADDRESS_MISSING, place.to_string())).collect();
    if blockers.is_empty() {
        return Ok(places);
    }
    Err(Failure::blocked("an address that is to move with the target is not here", blockers))
}

/// Where addresses go on this host.
pub fn there(state: &StateOptions) -> Vec<Place> {
    let place = |address: &MoveAddress| Place {
        ip: address.ip,
        prefix: address.prefix,
        interface: address.dest_interface.clone().unwrap_or_else(|| address.interface.clone()),
    };
    state.move_addresses.iter().map(place).collect()
}

/// Places that this host has not.
pub fn blockers<'p>(places: impl IntoIterator<Item = &'p Place>) -> Vec<Blocker> {
    let unknown = places.into_iter().filter(|place| !place.has_interface());
    let blocker = |place: &Place| {
        Blocker::new(codes::ADDRESS_MISSING, place.to_string()).because("there is no such interface here")
    };
    unknown.map(blocker).collect()
}

/// Addresses that were taken off their interfaces. Dropped, they come back and neighbours hear of it.
#[derive(Debug, Default)]
pub struct Gone(Vec<Place>);

impl Gone {
    /// Takes them off.
    ///
    /// # Errors
    /// One cannot be; then all are where they were.
    pub fn take(places: Vec<Place>) -> crate::net::Result<Self> {
        let mut gone = Self::default();
        for place in places {
            place.remove()?;
            gone.0.push(place);
        }
        Ok(gone)
    }

    /// The target has ended: they stay away.
    pub fn leave(mut self) {
        self.0.clear();
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        for place in &self.0 {
            if let Err(error) = place.add() {
                tracing::error!(%error, "an address did not come back to its interface");
            }
            tell_neighbours(place);
        }
    }
}

/// Addresses that have come. Dropped, they are taken off again.
#[derive(Debug, Default)]
pub struct Come {
    added: Vec<Place>,
    /// Removed by the restore when its sockets speak, else with this.
    _held_off: Option<PacketLock>,
}

impl Come {
    /// Puts them on their interfaces, but for those that are there already.
    ///
    /// # Errors
    /// One cannot be; then none is.
    pub fn take(places: Vec<Place>, model: &Model) -> crate::net::Result<Self> {
        let mut come = Self::default();
        let places: Vec<Place> = places.into_iter().filter(|place| !place.is_here()).collect();
        let tuples = connections(model);
        if !places.is_empty() && !tuples.is_empty() {
            come._held_off = PacketLock::set(None, &tuples, Lifetime::Stays)
                .inspect_err(|error| tracing::warn!(%error, "peers may be answered with a reset"))
                .ok();
        }
        for place in places {
            place.add()?;
            come.added.push(place);
        }
        Ok(come)
    }

    /// The target runs: they stay, and neighbours hear of it.
    pub fn stay(mut self) {
        self.added.drain(..).for_each(|place| tell_neighbours(&place));
    }
}

impl Drop for Come {
    fn drop(&mut self) {
        for place in &self.added {
            if let Err(error) = place.remove() {
                tracing::warn!(%error, "an address was left behind");
            }
        }
    }
}

/// Connections as the restore names what holds their segments off.
fn connections(model: &Model) -> Vec<Tuple> {
    let tuple = |kind: &FileKind| match kind {
        FileKind::Tcp(tcp) if matches!(tcp.state, TcpState::Connected(_)) => {
            Some((parse_address(&tcp.local.0)?, parse_address(&tcp.peer.0)?))
        }
        _ => None,
    };
    model.files.iter().filter_map(|file| tuple(&file.kind)).collect()
}
