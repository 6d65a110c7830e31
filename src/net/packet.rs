//! IP packets with a whole TCP segment in them: read, checked, completed, cut, and packed for the way to another host.

use super::segment::checksum;
use std::net::{IpAddr, SocketAddr};

/// TCP flag: asks for a connection.
pub const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

/// Longest packet that is taken, bytes: the longest IPv6 packet without a jumbo header.
pub const PACKET_BYTES_MAX: usize = 40 + 65535;

/// What a packet says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// Sequence number of the first byte of data.
    pub seq: u32,
    /// TCP flags.
    pub flags: u8,
    /// Where the TCP header begins.
    tcp: usize,
    /// Where the data begins.
    data: usize,
    /// Where the packet ends.
    end: usize,
}

impl Header {
    /// Reads a packet; `None` unless it holds one whole segment and directly behind the IP header. What follows the packet
    /// (padding of a short frame) does not count.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
        let (from, to, tcp, end): (IpAddr, IpAddr, _, _) = match packet.first()? >> 4 {
            4 => {
                let octets = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
                let header = usize::from(packet[0] & 15) * 4;
                // More fragments, or not the first.
                if header < 20 || *packet.get(9)? != TCP || half(6)? & 0x3fff != 0 {
                    return None;
                }
                (octets(12)?.into(), octets(16)?.into(), header, usize::from(half(2)?))
            }
            6 => {
                let octets = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
                if *packet.get(6)? != TCP {
                    return None;
                }
                (octets(8)?.into(), octets(24)?.into(), 40, 40 + usize::from(half(4)?))
            }
            _ => return None,
        };
        let data = tcp + usize::from(*packet.get(tcp + 12)? >> 4) * 4;
        if data < tcp + 20 || data > end || end > packet.len() {
            return None;
        }
        let seq = u32::from_be_bytes(packet.get(tcp + 4..tcp + 8)?.try_into().ok()?);
        let (from, to) = (SocketAddr::new(from, half(tcp)?), SocketAddr::new(to, half(tcp + 2)?));
        Some(Self { from, to, seq, flags: packet[tcp + 13], tcp, data, end })
    }

    /// Bytes of data.
    pub fn data_bytes(&self) -> usize {
        self.end - self.data
    }

    /// Length of the packet, bytes.
    pub fn packet_bytes(&self) -> usize {
        self.end
    }

    /// Asks for a connection.
    pub fn is_request(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// The checksum over the segment, 0 if the one in it is right.
    fn sum(&self, packet: &[u8]) -> u16 {
        let addresses = if self.to.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
        let length = ((self.end - self.tcp) as u32).to_be_bytes();
        checksum(&[addresses, &length, &[0, 0, 0, TCP], &packet[self.tcp..self.end]])
    }

    /// Whether the checksum is right.
    pub fn is_intact(&self, packet: &[u8]) -> bool {
        self.sum(packet) == 0
    }

    /// Fills the checksum in.
    pub fn complete(&self, packet: &mut [u8]) {
        packet[self.tcp + 16..self.tcp + 18].fill(0);
        let sum = self.sum(packet);
        packet[self.tcp + 16..self.tcp + 18].copy_from_slice(&sum.to_be_bytes());
    }

    /// The same data in packets of at most `max` bytes each, in order. Network cards and virtual ones put segments of a
    /// stream together, to more than a packet that is sent may hold.
    pub fn cut(&self, packet: &[u8], max: usize) -> Vec<Vec<u8>> {
        let whole = packet[..self.end].to_vec();
        // An urgent pointer counts from its own segment.
        let step = max.saturating_sub(self.data);
        if self.end <= max || step == 0 || self.flags & URG != 0 {
            return vec![whole];
        }
        let pieces: Vec<&[u8]> = packet[self.data..self.end].chunks(step).collect();
        let last = pieces.len() - 1;
        let piece = |(n, data): (usize, &&[u8])| {
            let mut piece = [&packet[..self.data], data].concat();
            let seq = self.seq.wrapping_add((n * step) as u32);
            piece[self.tcp + 4..self.tcp + 8].copy_from_slice(&seq.to_be_bytes());
            if n < last {
                piece[self.tcp + 13] &= !(FIN | PSH);
            }
            if n > 0 {
                piece[self.tcp + 13] &= !CWR;
            }
            let at = if self.to.is_ipv4() { 2 } else { 4 };
            let length = piece.len() - if self.to.is_ipv4() { 0 } else { 40 };
            piece[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
            if self.to.is_ipv4() {
                piece[10..12].fill(0);
                let sum = checksum(&[&piece[..self.tcp]]);
                piece[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let header = Self { end: piece.len(), ..*self };
            header.complete(&mut piece);
            piece
        };
        pieces.iter().enumerate().map(piece).collect()
    }
}

/// Congestion window reduced: said once.
const CWR: u8 = 0x80;
const TCP: u8 = libc::IPPROTO_TCP as u8;

/// Packs packets into bodies of at most `max` bytes (one longer packet alone is more), each packet behind its length.
pub fn pack(packets: &[Vec<u8>], max: usize) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for packet in packets {
        if bodies.last().is_none_or(|body| body.len() + 4 + packet.len() > max) {
            bodies.push(Vec::new());
        }
        if let Some(body) = bodies.last_mut() {
            body.extend((packet.len() as u32).to_le_bytes());
            body.extend(packet);
        }
    }
    bodies
}

/// The packets of a body; `None` if it is none.
pub fn unpack(mut body: &[u8]) -> Option<Vec<&[u8]>> {
    let mut packets = Vec::new();
    while !body.is_empty() {
        let length = u32::from_le_bytes(body.get(..4)?.try_into().ok()?) as usize;
        packets.push(body.get(4..4 + length).filter(|_| length <= PACKET_BYTES_MAX)?);
        body = &body[4 + length..];
    }
    Some(packets)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet from port 5 of .1 to port 6 of .2, with a time stamp option and a right checksum.
    pub fn segment(v6: bool, seq: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut tcp = [0, 5, 0, 6].to_vec();
        tcp.extend(seq.to_be_bytes());
        tcp.extend([0, 0, 0, 9, 8 << 4, flags, 1, 0, 0, 0, 0, 0]);
        tcp.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        tcp.extend(data);
        let mut packet = if v6 {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((tcp.len() as u16).to_be_bytes());
            header.extend([6, 64]);
            header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            header
        } else {
            let mut header = vec![0x45, 0];
            header.extend((20 + tcp.len() as u16).to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        };
        packet.extend(tcp);
        let header = Header::parse(&packet).unwrap();
        header.complete(&mut packet);
        packet
    }

    #[test]
    fn a_packet_is_read_and_damage_is_seen() {
        for v6 in [false, true] {
            let mut packet = segment(v6, 77, ACK | PSH, b"hello");
            let header = Header::parse(&packet).unwrap();
            assert_eq!((header.from.port(), header.to.port(), header.seq, header.data_bytes()), (5, 6, 77, 5));
            assert!(header.is_intact(&packet) && !header.is_request());
            assert!(Header::parse(&segment(v6, 1, SYN, b"")).unwrap().is_request());
            // Padding behind it is not part of it.
            packet.extend([0; 6]);
            assert_eq!(Header::parse(&packet).unwrap(), header);
            let last = header.packet_bytes() - 1;
            packet[last] ^= 1;
            assert!(!header.is_intact(&packet));
            assert_eq!(Header::parse(&packet[..last]), None, "a part of a packet is none");
        }
        let mut fragment = segment(false, 1, ACK, b"x");
        fragment[6] = 0x20;
        assert_eq!(Header::parse(&fragment), None);
    }

    #[test]
    fn a_long_packet_is_cut() {
        let data: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        for v6 in [false, true] {
            let packet = segment(v6, u32::MAX - 10, ACK | PSH | FIN, &data);
            let header = Header::parse(&packet).unwrap();
            assert_eq!(header.cut(&packet, 4000), std::slice::from_ref(&packet));
            let pieces = header.cut(&packet, 1000);
            let mut next = header.seq;
            let mut joined: Vec<u8> = Vec::new();
            for (n, piece) in pieces.iter().enumerate() {
                let part = Header::parse(piece).unwrap();
                assert!(piece.len() <= 1000 && part.is_intact(piece) && part.seq == next);
                assert_eq!(part.flags & (FIN | PSH) != 0, n == pieces.len() - 1);
                if !v6 {
                    assert_eq!(checksum(&[&piece[..20]]), 0);
                }
                next = next.wrapping_add(part.data_bytes() as u32);
                joined.extend(&piece[part.data..]);
            }
            assert_eq!(joined, data);
        }
    }

    #[test]
    fn packets_travel_in_bodies() {
        let packets: Vec<Vec<u8>> = [10, 20, 300, 5].map(|n| vec![7; n]).to_vec();
        let bodies = pack(&packets, 60);
        assert_eq!(bodies.len(), 3);
        let back: Vec<&[u8]> = bodies.iter().flat_map(|body| unpack(body).unwrap()).collect();
        assert_eq!(back, packets);
        assert_eq!(unpack(&[5, 0, 0, 0, 1]), None);
        assert_eq!(unpack(&[5, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(header) = Header::parse(&bytes) {
                header.complete(&mut bytes.clone());
                header.cut(&bytes, 50);
            }
            let _ = unpack(&bytes);
        }
    }
}
