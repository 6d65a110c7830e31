//! Addresses that move with a target: taken off an interface at the source, put on one at the destination (rtnetlink(7)).
//!
//! Taking an IPv4 address away neither closes nor resets the sockets that are bound to it. What the kernel removes with an
//! address (the route to its own network) comes back with it; other routes over it do not.

use super::{Result, failed};
use crate::sys::{Errno, socket};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const NETLINK_ROUTE: i32 = 0;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
/// `RTA_DST`, `RTN_LOCAL`.
const DESTINATION: u16 = 1;
const LOCAL_ROUTE: u8 = 2;
/// How long the route to an address of this host may take to appear.
const ROUTE_MAX: Duration = Duration::from_secs(1);
pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
/// `IFA_ADDRESS`, `IFA_LOCAL`.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// `IFA_F_NODAD`: an IPv6 address is of use at once; nobody else has it, the source has just given it up.
const NO_DETECTION: u8 = 2;

/// An address on an interface of this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix, bits.
    pub prefix: u8,
    /// Name of the interface.
    pub interface: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} at {}", self.ip, self.prefix, self.interface)
    }
}

impl Place {
    /// Whether this host has the interface.
    pub fn has_interface(&self) -> bool {
        socket::interface_index(&self.interface).is_ok()
    }

    /// Whether the address is on the interface now.
    pub fn is_here(&self) -> bool {
        let Ok(all) = nix::ifaddrs::getifaddrs() else { return false };
        all.filter(|entry| entry.interface_name == self.interface).any(|entry| {
            let Some(storage) = entry.address else { return false };
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let v6 = storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
            v4.or(v6) == Some(self.ip)
        })
    }

    /// Puts the address on the interface, and waits until packets to it are taken for local: for IPv6 that is done by a work
    /// queue, up to some milliseconds later. Needs CAP_NET_ADMIN.
    pub fn add(&self) -> Result<()> {
        self.ask(NEWADDR, REQUEST | ACK | CREATE | EXCLUSIVE).map_err(failed("netlink", &format!("adding {self}")))?;
        let until = Instant::now() + ROUTE_MAX;
        while self.ip.is_ipv6() && !self.is_routed().map_err(failed("netlink", "RTM_GETROUTE"))? {
            if Instant::now() > until {
                return Err(failed("netlink", &format!("waiting for the route to {self}"))(Errno::ETIMEDOUT));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Whether packets to the address are for this host.
    fn is_routed(&self) -> std::result::Result<bool, Errno> {
        let IpAddr::V6(ip) = self.ip else { return Ok(true) };
        let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_ROUTE)?;
        let mut message = Vec::with_capacity(48);
        message.extend(48u32.to_ne_bytes());
        message.extend(GETROUTE.to_ne_bytes());
        message.extend(REQUEST.to_ne_bytes());
        message.extend([0; 8]);
        // rtmsg: family, length of the destination; then the destination.
        message.extend([libc::AF_INET6 as u8, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend([20, 0]);
        message.extend(DESTINATION.to_ne_bytes());
        message.extend(ip.octets());
        socket::send(netlink.as_fd(), &message, &[], &[], None, 0)?;
        let mut room = [0u8; 4096];
        let received = socket::receive(netlink.as_fd(), &mut room, 0)?;
        // nlmsghdr, then rtmsg with the route's kind at 7; or an error: no route yet.
        let kind = room[..received.len].get(4..6).map(|kind| [kind[0], kind[1]]);
        Ok(kind == Some(NEWROUTE.to_ne_bytes()) && room[..received.len].get(16 + 7) == Some(&LOCAL_ROUTE))
    }

    /// Takes the address off the interface. Needs CAP_NET_ADMIN.
    pub fn remove(&self) -> Result<()> {
        self.ask(DELADDR, REQUEST | ACK).map_err(failed("netlink", &format!("removing {self}")))
    }

    fn ask(&self, kind: u16, flags: u16) -> std::result::Result<(), Errno> {
        let index = socket::interface_index(&self.interface)?;
        ask(&self.message(kind, flags, index))
    }

    fn message(&self, kind: u16, flags: u16, index: u32) -> Vec<u8> {
        let (family, octets, ifa_flags) = match self.ip {
            IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec(), 0),
            IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec(), NO_DETECTION),
        };
        let mut message = Vec::with_capacity(64);
        message.extend(0u32.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        // ifaddrmsg: family, prefix length, flags, scope (0 = global), interface.
        message.extend([family as u8, self.prefix, ifa_flags, 0]);
        message.extend(index.to_ne_bytes());
        for attribute in [LOCAL, ADDRESS] {
            message.extend((4 + octets.len() as u16).to_ne_bytes());
            message.extend(attribute.to_ne_bytes());
            message.extend(&octets);
        }
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message
    }
}

/// Sends a request that is acknowledged (rtnetlink(7)), and waits for the answer.
pub(super) fn ask(message: &[u8]) -> std::result::Result<(), Errno> {
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_ROUTE)?;
    socket::send(netlink.as_fd(), message, &[], &[], None, 0)?;
    let mut room = [0u8; 4096];
    let received = socket::receive(netlink.as_fd(), &mut room, 0)?;
    match &room[..received.len] {
        // nlmsghdr, then nlmsgerr whose first member is the answer.
        [_, _, _, _, kind_low, kind_high, rest @ ..] if u16::from_ne_bytes([*kind_low, *kind_high]) == ERROR => {
            let code = rest.get(10..14).and_then(|code| code.try_into().ok()).ok_or(Errno::EBADMSG)?;
            match i32::from_ne_bytes(code) {
                0 => Ok(()),
                code => Err(Errno::from_raw(-code)),
            }
        }
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_and_goes() {
        if !nix::unistd::geteuid().is_root() {
            crate::skip!("not root, addresses cannot be changed");
            return;
        }
        // A thread of its own in a network namespace of its own: only its loopback is changed.
        std::thread::spawn(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                crate::skip!("no network namespace can be made");
                return;
            }
            crate::sys::packet::set_up("lo").unwrap();
            for (ip, prefix) in [("10.7.0.1", 24), ("fd00::7", 64)] {
                let place = Place { ip: ip.parse().unwrap(), prefix, interface: "lo".into() };
                assert!(place.has_interface() && !place.is_here());
                place.add().unwrap();
                assert!(place.is_here() && place.is_routed().unwrap());
                let twice = place.add().unwrap_err().to_string();
                assert!(twice.contains("EEXIST"), "{twice}");
                place.remove().unwrap();
                assert!(!place.is_here() && (place.ip.is_ipv4() || !place.is_routed().unwrap()));
                let gone = place.remove().unwrap_err().to_string();
                assert!(gone.contains("EADDRNOTAVAIL"), "{gone}");
            }
            let nowhere = Place { ip: "10.7.0.1".parse().unwrap(), prefix: 24, interface: "none0".into() };
            assert!(!nowhere.has_interface() && nowhere.add().is_err());
        })
        .join()
        .unwrap();
    }
}
