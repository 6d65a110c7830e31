//! TCP segments made by hand, given to this host's own stack as if they came from a peer.
//!
//! They go out through a raw socket with a header of our own to a local address: such packets come back in through `lo`
//! with the route they left with, so neither `rp_filter` nor `accept_local` nor the martian checks see them.

use super::packet::Header;
use super::{Result, failed, namespace};
use crate::sys::socket;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Packets with this mark pass our locks.
pub const PASS_MARK: u32 = 0xC114;

/// Longest packet that goes through `lo` with certainty, bytes: its interface takes 65536.
const INJECTED_BYTES_MAX: usize = 60_000;

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// The Internet checksum (RFC 1071) of the concatenation; every part but the last must have an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A raw `sockaddr_in` or `sockaddr_in6` as an address; v4-mapped ones become IPv4.
pub fn parse_address(raw: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(raw.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = raw.get(4..8)?.try_into().ok()?;
            Some(SocketAddrV4::new(octets.into(), port).into())
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = raw.get(8..24)?.try_into().ok()?;
            let address = Ipv6Addr::from(octets);
            let scope = raw.get(24..28).map_or(0, |s| u32::from_ne_bytes([s[0], s[1], s[2], s[3]]));
            match address.to_ipv4_mapped() {
                Some(v4) => Some(SocketAddrV4::new(v4, port).into()),
                None => Some(SocketAddrV6::new(address, port, 0, scope).into()),
            }
        }
        _ => None,
    }
}

/// An address as raw `sockaddr_in` or `sockaddr_in6`.
pub fn raw_address(address: SocketAddr) -> Vec<u8> {
    match address {
        SocketAddr::V4(a) => {
            let mut raw = (libc::AF_INET as u16).to_ne_bytes().to_vec();
            raw.extend(a.port().to_be_bytes());
            raw.extend(a.ip().octets());
            raw.extend([0; 8]);
            raw
        }
        SocketAddr::V6(a) => {
            let mut raw = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
            raw.extend(a.port().to_be_bytes());
            raw.extend(a.flowinfo().to_be_bytes());
            raw.extend(a.ip().octets());
            raw.extend(a.scope_id().to_ne_bytes());
            raw
        }
    }
}

/// A segment without data and without options.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// [`FIN`], [`ACK`].
    pub flags: u8,
    /// Window, scaled.
    pub window: u16,
}

impl Segment {
    fn packet(&self, from: SocketAddr, to: SocketAddr) -> Option<Vec<u8>> {
        let mut tcp = Vec::with_capacity(20);
        tcp.extend(from.port().to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([5 << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        ip_packet(from, to, libc::IPPROTO_TCP as u8, 16, tcp)
    }
}

/// Puts an IP header before `payload`, whose checksum field lies at `checksum_at`. `None` for addresses of two families.
fn ip_packet(
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    checksum_at: usize,
    mut payload: Vec<u8>,
) -> Option<Vec<u8>> {
    let len = payload.len() as u16;
    let (mut packet, addresses) = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + len).to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(from.ip().octets());
            header.extend(to.ip().octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let addresses = header[12..].to_vec();
            (header, addresses)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(len.to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(from.ip().octets());
            header.extend(to.ip().octets());
            let addresses = header[8..].to_vec();
            (header, addresses)
        }
        _ => return None,
    };
    let [high, low] = len.to_be_bytes();
    let sum = checksum(&[&addresses, &[0, protocol, high, low], &payload]);
    // UDP over IPv6 must not send 0; for TCP both mean the same.
    let sum = if sum == 0 { 0xffff } else { sum };
    payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    Some(packet)
}

/// Raw sockets of one network namespace through which packets are given to its stack. Needs CAP_NET_RAW there.
#[derive(Debug)]
pub struct Injector {
    v4: OwnedFd,
    v6: Option<OwnedFd>,
}

impl Injector {
    /// Opens one for the network namespace `ns`, this thread's if `None`.
    pub fn open(ns: Option<BorrowedFd<'_>>) -> Result<Self> {
        let raw = |domain| -> std::result::Result<OwnedFd, crate::sys::Errno> {
            let fd = socket::socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
            socket::set_int_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, PASS_MARK as i32)?;
            Ok(fd)
        };
        namespace::inside(ns, || {
            let v4 = raw(libc::AF_INET).map_err(failed("raw", "socket"))?;
            // Absent where IPv6 is not compiled in.
            Ok(Self { v4, v6: raw(libc::AF_INET6).ok() })
        })?
    }

    /// Gives a segment to the local socket at `to` as if it came from `from`.
    pub fn segment(&self, from: SocketAddr, to: SocketAddr, segment: &Segment) -> Result<()> {
        let packet = segment.packet(from, to).ok_or_else(two_families)?;
        self.send(to, &packet)
    }

    /// Gives a datagram to the local socket of this protocol (UDP or UDP-Lite) at `to` as if it came from `from`. It must fit
    /// one packet.
    pub fn datagram(&self, protocol: i32, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Result<()> {
        let len = u16::try_from(data.len() + 8).map_err(|_| super::Error::Unsupported {
            kind: "UDP",
            reason: format!("a queued datagram of {} bytes is longer than a packet", data.len()),
        })?;
        let mut udp = Vec::with_capacity(usize::from(len));
        udp.extend(from.port().to_be_bytes());
        udp.extend(to.port().to_be_bytes());
        // To UDP-Lite, how much of it the checksum covers (RFC 3828, 3.1).
        udp.extend(len.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(data);
        let packet = ip_packet(from, to, protocol as u8, 6, udp).ok_or_else(two_families)?;
        self.send(to, &packet)
    }

    /// Gives a packet to the local socket it is addressed to. What is no whole TCP segment is dropped; what is longer than
    /// this way takes is cut.
    pub fn packet(&self, packet: &[u8]) -> Result<()> {
        let Some(header) = Header::parse(packet) else { return Ok(()) };
        header.cut(packet, INJECTED_BYTES_MAX).iter().try_for_each(|piece| self.send(header.to, piece))
    }

    fn send(&self, mut to: SocketAddr, packet: &[u8]) -> Result<()> {
        // A raw socket takes the port for a protocol number and wants its own or none.
        to.set_port(0);
        let no_v6 = || failed("raw", "socket")(crate::sys::Errno::EAFNOSUPPORT);
        let fd = if to.is_ipv4() { &self.v4 } else { self.v6.as_ref().ok_or_else(no_v6)? };
        socket::send(fd.as_fd(), packet, &raw_address(to), &[], None, libc::MSG_DONTWAIT)
            .map(drop)
            .map_err(failed("raw", "handing a packet to the local stack"))
    }
}

fn two_families() -> super::Error {
    super::Error::BadModel { kind: "raw", reason: "local and peer address are of two families".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_both_ways() {
        for text in ["127.0.0.1:80", "[::1]:443", "[fe80::1%3]:7"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(parse_address(&raw_address(address)), Some(address));
        }
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(parse_address(&raw_address(mapped)), Some("10.0.0.1:5".parse().unwrap()));
        assert_eq!(parse_address(&[1]), None);
    }

    #[test]
    fn checksums_verify() {
        let segment = Segment { seq: 1, ack: 2, flags: FIN | ACK, window: 3 };
        let v4 = segment.packet("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap()).unwrap();
        assert_eq!(checksum(&[&v4[..20]]), 0);
        assert_eq!(checksum(&[&v4[12..20], &[0, 6, 0, 20], &v4[20..]]), 0);
        let v6 = segment.packet("[fd00::1]:5".parse().unwrap(), "[fd00::2]:6".parse().unwrap()).unwrap();
        assert_eq!(checksum(&[&v6[8..40], &[0, 6, 0, 20], &v6[40..]]), 0);
        assert!(segment.packet("[fd00::1]:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap()).is_none());
    }
}
