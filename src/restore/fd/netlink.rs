//! Made by the engine: netlink sockets.

use super::socket as common;
use crate::image::fd::netlink::Netlink;
use crate::net::{Result, failed, namespace};
use crate::sys::{Errno, socket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const NETLINK_ADD_MEMBERSHIP: i32 = 1;

/// Makes a socket in the network namespace `net`, this thread's if `None`.
pub fn make(netlink: &Netlink, net: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let made = namespace::socket_in(net, libc::AF_NETLINK, netlink.socket_type, netlink.protocol)?;
    let fd = made.map_err(failed("netlink", "socket"))?;
    common::early(fd.as_fd(), &netlink.options, &[])?;
    common::set_ints(fd.as_fd(), &netlink.ints, &[])?;
    if netlink.port != 0 {
        let address = |port: u32| {
            let mut raw = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
            raw.extend([0, 0]);
            raw.extend(port.to_ne_bytes());
            raw.extend([0; 4]);
            raw
        };
        match socket::bind(fd.as_fd(), &address(netlink.port)) {
            // Somebody else here has the port id, which programs rarely choose: any will do.
            Err(Errno::EADDRINUSE) => {
                tracing::warn!("netlink port id {} is in use here: another is taken", netlink.port);
                socket::bind(fd.as_fd(), &address(0)).map_err(failed("netlink", "bind"))?;
            }
            bound => bound.map_err(failed("netlink", "bind"))?,
        }
    }
    for group in &netlink.groups {
        socket::set_int_option(fd.as_fd(), libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, *group as i32)
            .map_err(failed("netlink", "NETLINK_ADD_MEMBERSHIP"))?;
    }
    if !netlink.peer.0.is_empty() {
        socket::connect(fd.as_fd(), &netlink.peer.0).map_err(failed("netlink", "connect"))?;
    }
    common::late(fd.as_fd(), &netlink.options)?;
    Ok(fd)
}
