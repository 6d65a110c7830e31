//! Holds off segments for connections whose sockets are closed for a while: between a dump to disk and its restore they
//! would be answered with a reset. A table of nf_tables (Linux 3.13) for each family drops what comes in for a set of
//! (peer, local) addresses and ports; what bears our mark passes.
//!
//! The table's name follows from the connections themselves, so that a restore finds what its dump has left, and
//! [`leftovers`] finds those of dumps that nobody restored. The netlink messages are spoken here: a few dozen attributes.

use super::lock::NetLock;
use super::segment::{PASS_MARK, parse_address};
use super::{Result, failed, namespace, push_attribute};
use crate::sys::{Errno, socket};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the names of all our tables begin with.
pub(super) const PREFIX: &str = "migrate-";
const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10 << 8;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;
/// `NFPROTO_IPV4`.
const V4: u8 = 2;
/// `NFPROTO_IPV6`.
pub(super) const V6: u8 = 10;
/// `NF_INET_LOCAL_IN`.
const LOCAL_IN: u32 = 1;
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// `NFT_REG32_00`; each register holds 4 bytes.
const REGISTER: u32 = 8;
/// Elements of a set in one message: attributes are at most 64 KiB long.
const ELEMENTS_MAX: usize = 800;

/// A connection: (our address, the peer's).
pub type Tuple = (SocketAddr, SocketAddr);

/// Name of the table for these connections, in any order.
pub fn name_of(tuples: &[Tuple]) -> String {
    let mut lines: Vec<String> = tuples.iter().map(|(local, peer)| format!("{local} {peer}\n")).collect();
    lines.sort_unstable();
    format!("{PREFIX}{:016x}", xxhash_rust::xxh3::xxh3_64(lines.concat().as_bytes()))
}

/// What becomes of a table when the program that made it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It stays until somebody removes it.
    Stays,
    /// It goes with the descriptor it was made through (`NFT_TABLE_F_OWNER`, Linux 5.12; stays on older ones).
    WithUs,
}

/// A table that is removed when dropped.
#[derive(Debug)]
pub struct PacketLock {
    net: Option<OwnedFd>,
    name: String,
    kept: bool,
    /// What the table was made through, where it goes with it.
    owner: Option<OwnedFd>,
}

impl PacketLock {
    /// Holds off segments for these connections in the network namespace `net`, this thread's if `None`. Needs
    /// CAP_NET_ADMIN there.
    pub fn set(net: Option<OwnedFd>, tuples: &[Tuple], lifetime: Lifetime) -> Result<Self> {
        let mut lock = Self { name: name_of(tuples), net, kept: false, owner: None };
        // A table of this name is a leftover of a dump of the same connections.
        remove(lock.net.as_ref().map(AsFd::as_fd), &lock.name)?;
        let keys = |family| keys(tuples, family);
        let (v4, v6) = (keys(V4), keys(V6));
        let make = |lifetime| -> std::result::Result<OwnedFd, Errno> {
            let netlink = netlink()?;
            for (family, keys) in [(V4, &v4), (V6, &v6)].iter().filter(|(_, keys)| !keys.is_empty()) {
                table(*family, &lock.name, keys, lifetime).run(netlink.as_fd())?;
            }
            Ok(netlink)
        };
        let made = namespace::inside(lock.net.as_ref().map(AsFd::as_fd), || match lifetime {
            Lifetime::Stays => make(lifetime).map(|_| None),
            // Refused by a kernel that does not know owners.
            Lifetime::WithUs => make(lifetime).map(Some).or_else(|_| make(Lifetime::Stays).map(|_| None)),
        })?;
        lock.owner = made.map_err(failed("netfilter", "holding off packets"))?;
        Ok(lock)
    }

    /// Leaves the table in place for the restore to come.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for PacketLock {
    fn drop(&mut self) {
        if self.owner.is_none()
            && !self.kept
            && let Err(e) = remove(self.net.as_ref().map(AsFd::as_fd), &self.name)
        {
            tracing::error!("table {} of nf_tables stays: {e}", self.name);
        }
    }
}

/// Holds off segments for all connections among these sockets, a table for each network namespace they are in. Where the kernel
/// has no nf_tables nothing is held off, and that is logged.
pub fn hold_off(sockets: &[NetLock], lifetime: Lifetime) -> Result<Vec<PacketLock>> {
    let mut by_namespace: BTreeMap<u64, (OwnedFd, Vec<Tuple>)> = BTreeMap::new();
    for fd in sockets.iter().filter(|lock| lock.is_connection()).filter_map(NetLock::fd) {
        let address = |raw: std::result::Result<Vec<u8>, Errno>| raw.ok().and_then(|raw| parse_address(&raw));
        let addresses = (address(socket::local_address(fd)), address(socket::peer_address(fd)));
        let (Some(local), Some(peer)) = addresses else { continue };
        let ns = socket::namespace_of(fd).map_err(failed("TCP", "SIOCGSKNS"))?;
        let inode = nix::sys::stat::fstat(&ns).map_err(failed("TCP", "fstat of a network namespace"))?.st_ino;
        by_namespace.entry(inode).or_insert_with(|| (ns, Vec::new())).1.push((local, peer));
    }
    let mut locks = Vec::new();
    for (_, (ns, tuples)) in by_namespace {
        match PacketLock::set(Some(ns), &tuples, lifetime) {
            Ok(lock) => locks.push(lock),
            Err(super::Error::Kernel { errno: Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT, .. }) => {
                tracing::warn!("no nf_tables here: what peers send before the restore is answered with a reset");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(locks)
}

/// Removes a table of this name; none there is no error.
pub fn remove(net: Option<BorrowedFd<'_>>, name: &str) -> Result<()> {
    remove_from(net, name, &[V4, V6]).map(drop)
}

/// Removes tables of this name from these families; says whether there was one.
pub(super) fn remove_from(net: Option<BorrowedFd<'_>>, name: &str, families: &[u8]) -> Result<bool> {
    // Asking is cheap; a transaction that removes nothing waits for a grace period (10 ms) all the same.
    if leftovers(net).is_ok_and(|names| names.iter().all(|known| known != name)) {
        return Ok(false);
    }
    namespace::inside(net, || {
        for &family in families {
            let mut batch = Batch::new();
            batch.message(DELTABLE, family, 0, |m| m.text(1, name));
            match netlink().and_then(|netlink| batch.run(netlink.as_fd())) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // No nf_tables in this kernel, or no IPv6: then there is no table either.
                Err(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL) => {}
                Err(e) => return Err(failed("netfilter", "letting packets in again")(e)),
            }
        }
        Ok(true)
    })?
}

/// Names of all our tables in a network namespace.
pub fn leftovers(net: Option<BorrowedFd<'_>>) -> Result<Vec<String>> {
    namespace::inside(net, || {
        let list = || -> std::result::Result<Vec<String>, Errno> {
            let netlink = netlink()?;
            let mut batch = Batch::default();
            batch.message(GETTABLE, 0, DUMP, |_| {});
            socket::send(netlink.as_fd(), &batch.bytes, &[], &[], None, 0)?;
            let mut names = Vec::new();
            read_answers(netlink.as_fd(), |kind, body| {
                if kind == SUBSYSTEM | NEWTABLE
                    && let Some(name) = attribute(body.get(4..).unwrap_or(&[]), 1)
                {
                    let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned();
                    if name.starts_with(PREFIX) && !names.contains(&name) {
                        names.push(name);
                    }
                }
                kind == DONE
            })?;
            Ok(names)
        };
        list().map_err(failed("netfilter", "listing tables"))
    })?
}

/// Keys of the set as a packet of the peer shows them: source and destination address, source and destination port.
fn keys(tuples: &[Tuple], family: u8) -> Vec<Vec<u8>> {
    let octets = |ip: IpAddr| match (ip, family) {
        (IpAddr::V4(ip), V4) => Some(ip.octets().to_vec()),
        (IpAddr::V6(ip), V6) => Some(ip.octets().to_vec()),
        _ => None,
    };
    let key = |(local, peer): &Tuple| {
        let mut key = octets(peer.ip())?;
        key.extend(octets(local.ip())?);
        key.extend(peer.port().to_be_bytes());
        key.extend(local.port().to_be_bytes());
        Some(key)
    };
    let mut keys: Vec<_> = tuples.iter().filter_map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

pub(super) fn netlink() -> std::result::Result<OwnedFd, Errno> {
    socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_NETFILTER)
}

/// Makes a table with a set, a chain and two rules.
fn table(family: u8, name: &str, keys: &[Vec<u8>], lifetime: Lifetime) -> Batch {
    const ACCEPT: u32 = 1;
    const DROP: u32 = 0;
    let addresses = if family == V4 { (12, 8) } else { (8, 32) };
    let mut batch = Batch::new();
    batch.new_table(family, name, (lifetime == Lifetime::WithUs).then_some(OWNER));
    batch.message(NEWSET, family, CREATE, |m| {
        m.text(1, name);
        m.text(2, "connections");
        m.number(3, 0);
        // The key's type only matters to programs that print it.
        m.number(4, 0);
        m.number(5, addresses.1 + 4);
        m.number(10, 1);
    });
    for keys in keys.chunks(ELEMENTS_MAX) {
        batch.message(NEWSETELEM, family, CREATE, |m| {
            m.text(1, name);
            m.text(2, "connections");
            m.nest(3, |m| keys.iter().for_each(|key| m.nest(1, |m| m.nest(1, |m| m.bytes(1, key)))));
        });
    }
    batch.new_chain(family, name, LOCAL_IN, ACCEPT);
    batch.new_rule(family, name, &|m| {
        m.load_meta(3);
        m.compare(&PASS_MARK.to_ne_bytes());
        m.verdict(ACCEPT);
    });
    batch.new_rule(family, name, &|m| {
        m.load_meta(16);
        m.compare(&[libc::IPPROTO_TCP as u8]);
        m.load_payload(1, addresses.0, addresses.1, REGISTER);
        m.load_payload(2, 0, 4, REGISTER + addresses.1 / 4);
        m.expression("lookup", |m| {
            m.text(1, "connections");
            m.number(2, REGISTER);
            m.number(4, 1);
        });
        m.verdict(DROP);
    });
    batch
}

/// Netlink messages one after the other.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// Begins a transaction.
    pub(super) fn new() -> Self {
        let mut batch = Self::default();
        batch.raw_message(BATCH_BEGIN, 0, 0, 10, |_| {});
        batch
    }

    pub(super) fn new_table(&mut self, family: u8, name: &str, flags: Option<u32>) {
        self.message(NEWTABLE, family, CREATE, |m| {
            m.text(1, name);
            flags.into_iter().for_each(|flags| m.number(2, flags));
        });
    }

    /// A chain for what comes in, before everybody else's; what none of its rules is about passes.
    pub(super) fn new_chain(&mut self, family: u8, table: &str, hook: u32, policy: u32) {
        self.message(NEWCHAIN, family, CREATE, |m| {
            m.text(1, table);
            m.text(3, "in");
            m.nest(4, |m| {
                m.number(1, hook);
                m.number(2, (-450i32) as u32);
            });
            m.number(5, policy);
            m.text(7, "filter");
        });
    }

    pub(super) fn new_rule(&mut self, family: u8, table: &str, expressions: &dyn Fn(&mut Self)) {
        self.message(NEWRULE, family, CREATE | APPEND, |m| {
            m.text(1, table);
            m.text(2, "in");
            m.nest(4, expressions);
        });
    }

    fn message(&mut self, kind: u16, family: u8, flags: u16, body: impl FnOnce(&mut Self)) {
        let ack = if flags & DUMP == DUMP { 0 } else { ACK };
        self.raw_message(SUBSYSTEM | kind, family, flags | ack, 0, body);
    }

    fn raw_message(&mut self, kind: u16, family: u8, flags: u16, resource: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        body(self);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.count += 1;
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        push_attribute(&mut self.bytes, kind, value);
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        body(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Self)) {
        self.nest(1, |m| {
            m.text(1, name);
            m.nest(2, body);
        });
    }

    pub(super) fn load_meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.number(1, REGISTER);
            m.number(2, key);
        });
    }

    /// Into the register that [`Self::compare`] looks at.
    pub(super) fn load_payload_at_once(&mut self, base: u32, offset: u32, len: u32) {
        self.load_payload(base, offset, len, REGISTER);
    }

    fn load_payload(&mut self, base: u32, offset: u32, len: u32, register: u32) {
        self.expression("payload", |m| {
            m.number(1, register);
            m.number(2, base);
            m.number(3, offset);
            m.number(4, len);
        });
    }

    pub(super) fn compare(&mut self, value: &[u8]) {
        self.expression("cmp", |m| {
            m.number(1, REGISTER);
            m.number(2, 0);
            m.nest(3, |m| m.bytes(1, value));
        });
    }

    pub(super) fn verdict(&mut self, code: u32) {
        self.expression("immediate", |m| {
            m.number(1, 0);
            m.nest(2, |m| m.nest(2, |m| m.number(1, code)));
        });
    }

    /// Ends the transaction, sends it and waits for the answers.
    pub(super) fn run(mut self, netlink: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        let expected = self.count - 1;
        self.raw_message(BATCH_END, 0, 0, 10, |_| {});
        let room = i32::try_from(self.bytes.len() * 2 + (64 << 10)).unwrap_or(i32::MAX / 2);
        socket::set_int_option(netlink, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)?;
        socket::send(netlink, &self.bytes, &[], &[], None, 0)?;
        let mut acknowledged = 0;
        read_answers(netlink, |_, _| {
            acknowledged += 1;
            acknowledged >= expected
        })
    }
}

/// Reads messages until `last` says so, or one is an error.
fn read_answers(netlink: BorrowedFd<'_>, mut last: impl FnMut(u16, &[u8]) -> bool) -> std::result::Result<(), Errno> {
    let mut room = vec![0u8; 1 << 16];
    loop {
        let received = socket::receive(netlink, &mut room, 0)?;
        let mut bytes = &room[..received.len];
        while let Some(header) = bytes.get(..16) {
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let body = bytes.get(16..len).ok_or(Errno::EBADMSG)?;
            if kind == ERROR {
                let code: [u8; 4] = body.get(..4).and_then(|c| c.try_into().ok()).ok_or(Errno::EBADMSG)?;
                let code = i32::from_ne_bytes(code);
                if code != 0 {
                    return Err(Errno::from_raw(-code));
                }
            }
            if last(kind, body) {
                return Ok(());
            }
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// The value of an attribute in a list.
fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(header) = list.get(..4) {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = list.get(4..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) & !NESTED == wanted {
            return Some(value);
        }
        list = list.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_does_not_depend_on_the_order() {
        let a = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let b = ("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap());
        assert_eq!(name_of(&[a, b]), name_of(&[b, a]));
        assert_ne!(name_of(&[a]), name_of(&[b]));
        assert!(name_of(&[a]).starts_with(PREFIX));
    }

    #[test]
    fn keys_are_as_the_peer_writes_them() {
        let tuple: Tuple = ("10.0.0.1:258".parse().unwrap(), "10.0.0.2:3".parse().unwrap());
        assert_eq!(keys(&[tuple, tuple], V4), [[10, 0, 0, 2, 10, 0, 0, 1, 0, 3, 1, 2]]);
        assert!(keys(&[tuple], V6).is_empty());
    }

    #[test]
    fn attributes_of_damaged_lists_are_absent() {
        assert_eq!(attribute(&[8, 0, 1, 0, 1, 2, 3, 4], 1), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&[200, 0, 1, 0], 1), None);
        assert_eq!(attribute(&[0, 0, 1, 0], 1), None);
    }
}
