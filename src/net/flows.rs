//! What of a network's traffic belongs to the TCP sockets of a tree.

use super::packet::Header;
use super::segment::parse_address;
use crate::image::Model;
use crate::image::fd::FileKind;
use crate::image::fd::tcp::{Tcp, TcpState};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Whose packets are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of connections, and requests for new ones: for sockets made anew, which do not know what was half begun.
    Known,
    /// And what is sent to where somebody listens by those whose requests were answered: for sockets that were only locked.
    Same,
    /// And what connections had already when they were read: for sockets that have run since.
    Open,
}

/// TCP connections and listening sockets of a tree in its host's own network.
#[derive(Debug, Clone, Default)]
pub struct Flows {
    /// (our end, the peer's): the next byte that is expected, where that is known.
    connections: HashMap<(Place, Place), Option<u32>>,
    /// Where somebody listens; `None` = at all addresses.
    listeners: Vec<(Option<IpAddr>, u16)>,
}

type Place = (IpAddr, u16);

impl Flows {
    /// Those of a model.
    pub fn of(model: &Model) -> Self {
        let mut flows = Self::default();
        for file in &model.files {
            if let FileKind::Tcp(tcp) = &file.kind
                && model.namespaces.get(tcp.net.at()).is_none_or(|ns| ns.of_host)
            {
                flows.add(tcp);
            }
        }
        flows
    }

    fn add(&mut self, tcp: &Tcp) {
        let Some(local) = parse_address(&tcp.local.0) else { return };
        let next = match &tcp.state {
            TcpState::Listen { .. } => return self.listen(local),
            TcpState::Connected(connection) => Some(connection.recv_seq),
            TcpState::Connecting => None,
            TcpState::Closed | TcpState::Ended { .. } => return,
        };
        if let Some(peer) = parse_address(&tcp.peer.0) {
            self.connections.insert((place(local), place(peer)), next);
        }
    }

    /// Adds a listening socket.
    pub fn listen(&mut self, local: SocketAddr) {
        self.listeners.push((Some(local.ip()).filter(|ip| !ip.is_unspecified()), local.port()));
    }

    /// Adds a connection; the next byte it expects is not known.
    pub fn connected(&mut self, local: SocketAddr, peer: SocketAddr) {
        self.connections.insert((place(local), place(peer)), None);
    }

    /// There is nothing whose packets would be wanted.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.listeners.is_empty()
    }

    /// Local ports.
    pub fn ports(&self) -> BTreeSet<u16> {
        let listening = self.listeners.iter().map(|(_, port)| *port);
        self.connections.keys().map(|((_, port), _)| *port).chain(listening).collect()
    }

    /// Whether a packet is for one of them. Data that the socket had already when it was read is not.
    pub fn want(&self, header: &Header, reach: Reach) -> bool {
        if let Some(next) = self.connections.get(&(place(header.to), place(header.from))) {
            let end = header.seq.wrapping_add(header.data_bytes() as u32);
            let old = |next: u32| header.data_bytes() > 0 && next.wrapping_sub(end) < 1 << 31;
            return !next.is_some_and(old) || reach == Reach::Open;
        }
        let (ip, port) = place(header.to);
        let listens = || self.listeners.iter().any(|(at, to)| *to == port && at.is_none_or(|at| at == ip));
        (reach != Reach::Known || header.is_request()) && listens()
    }
}

/// Scope and flow of an IPv6 address do not tell sockets of one host apart here.
fn place(address: SocketAddr) -> Place {
    (address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::segment;
    use super::*;

    const ACK: u8 = 0x10;
    const SYN: u8 = 0x02;

    fn header(v6: bool, seq: u32, flags: u8, data: &[u8]) -> Header {
        Header::parse(&segment(v6, seq, flags, data)).unwrap()
    }

    #[test]
    fn a_connection_wants_what_it_has_not_got() {
        let mut flows = Flows::default();
        flows.connections.insert((("10.0.0.2".parse().unwrap(), 6), ("10.0.0.1".parse().unwrap(), 5)), Some(100));
        let wants = |seq, data: &[u8], reach| flows.want(&header(false, seq, ACK, data), reach);
        assert!(wants(100, b"new", Reach::Known) && wants(98, b"half", Reach::Known));
        assert!(!wants(90, b"old", Reach::Known), "it was read with the socket");
        assert!(wants(90, b"old", Reach::Open), "that was then");
        assert!(wants(99, b"", Reach::Known), "an acknowledgement has no data to be old");
        assert!(!flows.want(&header(true, 100, ACK, b"new"), Reach::Open), "another connection");
        assert_eq!(flows.ports(), [6].into());
    }

    #[test]
    fn a_listener_wants_requests() {
        for local in ["10.0.0.2:6", "0.0.0.0:6", "[::]:6"] {
            let mut flows = Flows::default();
            assert!(flows.is_empty());
            flows.listen(local.parse().unwrap());
            assert!(flows.want(&header(false, 1, SYN, b""), Reach::Known));
            assert!(!flows.want(&header(false, 1, ACK, b"x"), Reach::Known), "nobody knows that connection");
            assert!(flows.want(&header(false, 1, ACK, b"x"), Reach::Open), "it may be new");
        }
        let mut flows = Flows::default();
        flows.listen("10.0.0.3:6".parse().unwrap());
        flows.listen("0.0.0.0:7".parse().unwrap());
        assert!(!flows.want(&header(false, 1, SYN, b""), Reach::Open));
    }
}
