//! `net/tcp`, `net/tcp6`, `net/udp`, `net/udp6`, `net/raw`, `net/raw6`, `net/icmp`.

use crate::proc::{ProcDir, Result, Syntax, scan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inet {
    /// Local address and port (for raw sockets the protocol stands where the port is).
    pub local: SocketAddr,
    /// Peer's address and port; all zero without one.
    pub remote: SocketAddr,
    /// `TCP_ESTABLISHED` = 1 ... `TCP_LISTEN` = 10; udp: 1 connected, 7 not.
    pub state: u8,
    /// Bytes in the send queue.
    pub send_queue: u32,
    /// Bytes in the receive queue; for a listening TCP socket, connections that wait to be accepted.
    pub recv_queue: u32,
    /// Owner.
    pub uid: u32,
    /// Inode: `socket:[INODE]`. 0 for connections nobody holds (TIME_WAIT, not accepted yet).
    pub inode: u64,
}

/// `0100007F:1F90`, or 32 digits for IPv6: words of 32 bits in the host's byte order.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = scan::cut(text, b':')?;
    let port = u16::try_from(scan::hex(port)?).ok()?;
    let word = |digits: &[u8]| Some(u32::try_from(scan::hex(digits)?).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(ip)?)),
        32 => {
            let mut bytes = [0; 16];
            for (to, digits) in bytes.chunks_exact_mut(4).zip(ip.chunks_exact(8)) {
                to.copy_from_slice(&word(digits)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn line(text: &[u8]) -> Option<Inet> {
    let mut words = scan::words(text).skip(1);
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    let state = u8::try_from(scan::hex(words.next()?)?).ok()?;
    let (send, recv) = scan::cut(words.next()?, b':')?;
    let queue = |digits| u32::try_from(scan::hex(digits)?).ok();
    let (send_queue, recv_queue) = (queue(send)?, queue(recv)?);
    // Timer and retransmissions in between.
    let uid = scan::dec32(words.nth(2)?)?;
    let inode = scan::dec(words.nth(1)?)?;
    Some(Inet { local, remote, state, send_queue, recv_queue, uid, inode })
}

/// Reads one of the files; the first line is a heading.
///
/// # Errors
/// A line of another form.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Inet>, Syntax> {
    scan::lines(text)
        .skip(1)
        .map(|(number, text)| line(text).ok_or_else(|| Syntax::new(number, "expected a socket", text)))
        .collect()
}

impl ProcDir {
    /// Reads one of `tcp`, `tcp6`, `udp`, `udp6`, `raw`, `raw6`, `icmp`, `icmp6` of the process's network namespace; empty
    /// where the kernel has no such file.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn net_inet(&self, protocol: &str, buf: &mut Vec<u8>) -> Result<Vec<Inet>> {
        match self.parsed(&format!("net/{protocol}"), buf, parse) {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            other => other,
        }
    }
}

#[cfg(test)]
pub(in crate::proc) mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    pub(in crate::proc) const SAMPLE: &[u8] = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0200007F:0001 0A 00000003:00000002 00:00000000 00000000  1000        0 12345 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 7 1\n";

    #[test]
    fn both_families() {
        let sockets = parse(SAMPLE).unwrap();
        assert_eq!(sockets[0].local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(sockets[0].remote, "127.0.0.2:1".parse().unwrap());
        assert_eq!((sockets[0].state, sockets[0].send_queue, sockets[0].recv_queue), (10, 3, 2));
        assert_eq!((sockets[0].uid, sockets[0].inode), (1000, 12345));
        assert_eq!(sockets[1].local, "[::1]:22".parse().unwrap());
        assert!(parse(b"head\n 0: 0100007F:1F90\n").is_err());
    }

    #[test]
    fn a_listener_of_ours_is_listed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = ProcDir::of_self().unwrap();
        let link = dir.readlink(&format!("fd/{}", listener.as_raw_fd())).unwrap();
        let sockets = dir.net_inet("tcp", &mut Vec::new()).unwrap();
        let found = sockets.iter().find(|s| s.local == listener.local_addr().unwrap()).unwrap();
        assert_eq!(link.to_string(), format!("socket:[{}]", found.inode));
        assert_eq!(found.state, 10);
    }
}
