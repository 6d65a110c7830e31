//! Multicast groups of a socket. No call lists them: a socket is asked about each group that somebody listens to (`MCAST_MSFILTER`
//! of ip(7), `struct group_filter`).

use super::{Error, Result, failed};
use crate::sys::{Errno, socket};
use std::os::fd::BorrowedFd;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// `struct sockaddr_storage`.
const ADDRESS: usize = 128;
/// What comes before the sources: interface, group, mode, how many.
const HEAD: usize = 8 + ADDRESS + 8;
/// `net.ipv4.igmp_max_msf` is 10, as a rule.
const SOURCES_MAX: usize = 1024;

/// From whom a socket hears what is sent to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `MCAST_INCLUDE` = 1: from these; `MCAST_EXCLUDE` = 0: from all but these.
    pub mode: u32,
    /// Raw addresses.
    pub sources: Vec<Vec<u8>>,
}

/// How a socket is a member of a group on an interface; `None` if it is not. `level` is `SOL_IP` or `SOL_IPV6`.
///
/// # Errors
/// The kernel does not answer.
pub fn filter(fd: BorrowedFd<'_>, level: i32, interface: u32, group: &[u8]) -> Result<Option<Filter>> {
    let mut room = head(interface, group, 0, SOURCES_MAX as u32)?;
    room.resize(HEAD + SOURCES_MAX * ADDRESS, 0);
    match socket::option(fd, level, MCAST_MSFILTER, &mut room) {
        // It is no member; it is of the other family.
        Err(Errno::EADDRNOTAVAIL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL) => return Ok(None),
        got => drop(got.map_err(failed("UDP", "MCAST_MSFILTER"))?),
    }
    let word = |at: usize| u32::from_ne_bytes(room[at..at + 4].try_into().expect("four bytes"));
    let (mode, count) = (word(HEAD - 8), word(HEAD - 4) as usize);
    if count > SOURCES_MAX {
        let reason = format!("it hears a multicast group from {count} sources, at most {SOURCES_MAX} are kept");
        return Err(Error::Unsupported { kind: "UDP", reason });
    }
    let sources = room[HEAD..].chunks_exact(ADDRESS).take(count).map(|source| source[..group.len()].to_vec());
    Ok(Some(Filter { mode, sources: sources.collect() }))
}

/// Makes a socket a member of a group.
///
/// # Errors
/// The kernel refuses.
pub fn join(fd: BorrowedFd<'_>, level: i32, interface: u32, group: &[u8], filter: &Filter) -> Result<()> {
    let request = &head(interface, group, 0, 0)?[..8 + ADDRESS];
    socket::set_option(fd, level, MCAST_JOIN_GROUP, request).map_err(failed("UDP", "MCAST_JOIN_GROUP"))?;
    if (filter.mode, filter.sources.len()) == (0, 0) {
        return Ok(());
    }
    let mut all = head(interface, group, filter.mode, filter.sources.len() as u32)?;
    for source in &filter.sources {
        all.extend(storage(source)?);
    }
    socket::set_option(fd, level, MCAST_MSFILTER, &all).map_err(failed("UDP", "MCAST_MSFILTER"))
}

fn head(interface: u32, group: &[u8], mode: u32, sources: u32) -> Result<Vec<u8>> {
    let mut head = interface.to_ne_bytes().to_vec();
    head.extend([0; 4]);
    head.extend(storage(group)?);
    head.extend(mode.to_ne_bytes());
    head.extend(sources.to_ne_bytes());
    Ok(head)
}

fn storage(address: &[u8]) -> Result<Vec<u8>> {
    if address.len() > ADDRESS {
        return Err(Error::BadModel { kind: "UDP", reason: format!("an address of {} bytes", address.len()) });
    }
    let mut storage = address.to_vec();
    storage.resize(ADDRESS, 0);
    Ok(storage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::segment::raw_address;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_membership_is_seen_and_made_again() {
        let raw = |text: &str| raw_address(format!("{text}:0").parse().unwrap());
        let group = raw("239.255.41.8");
        let (one, other) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("0.0.0.0:0").unwrap());
        let seen = |socket: &UdpSocket| filter(socket.as_fd(), libc::SOL_IP, 1, &group).unwrap();
        assert_eq!(seen(&one), None);
        for of in
            [Filter { mode: 0, sources: vec![] }, Filter { mode: 1, sources: vec![raw("127.0.0.9"), raw("127.0.0.7")] }]
        {
            let socket = if of.mode == 0 { &one } else { &other };
            join(socket.as_fd(), libc::SOL_IP, 1, &group, &of).unwrap();
            let mut got = seen(socket).unwrap();
            got.sources.sort();
            let mut wanted = of.clone();
            wanted.sources.sort();
            assert_eq!(got, wanted);
        }
        assert_eq!(filter(one.as_fd(), libc::SOL_IPV6, 1, &raw_address("[ff02::7]:0".parse().unwrap())).unwrap(), None);
    }
}
