//! Tells the neighbours of an interface that an address lives here now: gratuitous ARP (RFC 5227) and unsolicited
//! neighbour advertisements (RFC 4861, 7.2.6) over packet(7) sockets.
//!
//! Closing or re-binding a packet socket waits for a grace period of 5 to 22 ms: an [`Announcer`] is opened before a pause
//! and dropped after it.

use super::address::Place;
use super::segment::checksum;
use super::{Result, failed, namespace};
use crate::sys::packet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A packet socket bound to an interface, with the interface's hardware address.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
    hardware: [u8; 6],
}

impl Announcer {
    /// Opens one for `interface` of the network namespace `ns` (this thread's if `None`). Needs CAP_NET_RAW there.
    pub fn open(ns: Option<BorrowedFd<'_>>, interface: &str) -> Result<Self> {
        namespace::inside(ns, || {
            let (index, hardware) =
                packet::interface(interface).map_err(failed("packet", &format!("looking up {interface}")))?;
            // Protocol 0: it sends, and receives nothing.
            let socket = packet::open(index, 0).map_err(failed("packet", "socket"))?;
            Ok(Self { socket, hardware })
        })?
    }

    /// Says that `address` is at this interface.
    pub fn announce(&self, address: IpAddr) -> Result<()> {
        let frame = frame(&self.hardware, address);
        packet::send(self.socket.as_fd(), &frame).map_err(failed("packet", "announcing an address"))
    }
}

/// Tells the neighbours of its interface that an address is there, with an [`Announcer`] for this once. That it cannot is logged.
pub fn tell_neighbours(place: &Place) {
    let told = Announcer::open(None, &place.interface).and_then(|announcer| announcer.announce(place.ip));
    if let Err(error) = told {
        tracing::warn!(%error, "neighbours were not told of a moved address");
    }
}

/// The frame that announces `address` at `hardware`.
fn frame(hardware: &[u8; 6], address: IpAddr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    match address {
        IpAddr::V4(address) => {
            frame.extend([0xff; 6]);
            frame.extend(hardware);
            frame.extend(ETHERTYPE_ARP.to_be_bytes());
            // Ethernet, IPv4, address lengths 6 and 4, a request: sender and target are the address itself.
            frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(hardware);
            frame.extend(address.octets());
            frame.extend([0; 6]);
            frame.extend(address.octets());
        }
        IpAddr::V6(address) => {
            let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            frame.extend([0x33, 0x33, 0, 0, 0, 1]);
            frame.extend(hardware);
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            // Neighbour advertisement with the override flag and the target's link-layer address.
            let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
            body.extend(address.octets());
            body.extend([2, 1]);
            body.extend(hardware);
            let mut pseudo = address.octets().to_vec();
            pseudo.extend(all_nodes);
            pseudo.extend((body.len() as u32).to_be_bytes());
            pseudo.extend([0, 0, 0, 58]);
            let sum = checksum(&[&pseudo, &body]);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((body.len() as u16).to_be_bytes());
            frame.extend([58, 255]);
            frame.extend(address.octets());
            frame.extend(all_nodes);
            frame.extend(body);
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_announcement_names_the_address_twice() {
        let f = frame(&[2, 0, 0, 0, 0, 1], "10.9.0.5".parse().unwrap());
        assert_eq!(f.len(), 42);
        assert_eq!(f[28..32], [10, 9, 0, 5]);
        assert_eq!(f[38..42], [10, 9, 0, 5]);
    }

    #[test]
    fn a_neighbour_advertisement_has_a_correct_checksum() {
        let f = frame(&[2, 0, 0, 0, 0, 1], "fd09::5".parse().unwrap());
        let (header, body) = f[14..].split_at(40);
        let length = (body.len() as u32).to_be_bytes();
        assert_eq!(checksum(&[&header[8..40], &length, &[0, 0, 0, 58], body]), 0);
    }
}
