//! Read by the engine on a duplicate: netlink sockets at rest.

use super::socket as common;
use crate::image::fd::netlink::Netlink;
use crate::image::{Bytes, NsId};
use crate::net::{Error, Result, audit, failed};
use crate::sys::socket;
use std::os::fd::BorrowedFd;

const NETLINK_LIST_MEMBERSHIPS: i32 = 9;

/// Integer options of `SOL_NETLINK` that are kept, with the value of a new socket.
const INTS: &[(i32, i32, Option<i32>)] = &[
    (libc::SOL_NETLINK, libc::NETLINK_PKTINFO, Some(0)),
    (libc::SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR, Some(0)),
    (libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, Some(0)),
    (libc::SOL_NETLINK, 8, Some(0)),  // NETLINK_LISTEN_ALL_NSID
    (libc::SOL_NETLINK, 10, Some(0)), // NETLINK_CAP_ACK
    (libc::SOL_NETLINK, 11, Some(0)), // NETLINK_EXT_ACK
    (libc::SOL_NETLINK, 12, Some(0)), // NETLINK_GET_STRICT_CHK
];

/// Protocols of which a socket is no more than an address and a set of groups: route, sock_diag, kobject uevents, generic.
pub const PLAIN: [i32; 4] = [0, 4, 15, 16];

/// Programs send audit records through one of these (dbus-daemon, sudo); only that of the audit daemon is known to the kernel.
const AUDIT: i32 = 9;

/// Reads a socket. One with unread messages, or of a protocol with state of its own, is refused.
pub fn read(fd: BorrowedFd<'_>, identity: common::Identity, net: NsId) -> Result<Netlink> {
    let refuse = |reason: String| Err(Error::Unsupported { kind: "netlink", reason });
    if !PLAIN.contains(&identity.protocol) && identity.protocol != AUDIT {
        return refuse(format!("protocol {} keeps state in the kernel", identity.protocol));
    }
    let events = socket::poll_now(fd, libc::POLLIN).map_err(failed("netlink", "poll"))?;
    if events & libc::POLLIN != 0 {
        return refuse("it has unread messages".to_owned());
    }
    let local = socket::local_address(fd).map_err(failed("netlink", "getsockname"))?;
    if identity.protocol == AUDIT {
        match audit::daemon() {
            // It is registered by its port, which is its process id.
            Ok(daemon) if daemon != 0 && daemon == word(&local, 4) => {
                return refuse("the kernel sends audit records to it".to_owned());
            }
            Ok(_) => {}
            Err(errno) => return refuse(format!("whether it is the audit daemon's cannot be found out: {errno}")),
        }
    }
    let peer = socket::peer_address(fd).unwrap_or_default();
    Ok(Netlink {
        net,
        socket_type: identity.socket_type,
        protocol: identity.protocol,
        port: word(&local, 4),
        peer: Bytes(if word(&peer, 4) == 0 && word(&peer, 8) == 0 { Vec::new() } else { peer }),
        groups: groups(fd)?,
        options: common::options(fd)?,
        ints: common::ints(fd, INTS),
    })
}

fn word(address: &[u8], at: usize) -> u32 {
    address.get(at..at + 4).map_or(0, |w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))
}

/// Numbers of the groups, from a bit map.
fn groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut map = vec![0u8; 4096];
    let len = socket::option(fd, libc::SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut map)
        .map_err(failed("netlink", "NETLINK_LIST_MEMBERSHIPS"))?;
    let map = map.get(..len).ok_or_else(|| Error::Unsupported {
        kind: "netlink",
        reason: "its protocol has more groups than are looked at".to_owned(),
    })?;
    let words = map.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
    let bits = words
        .enumerate()
        .flat_map(|(n, w)| (0..32).filter(move |b| w >> b & 1 != 0).map(move |b| n as u32 * 32 + b + 1));
    Ok(bits.collect())
}
