//! Interfaces of network namespaces that are joined to one of this host (rtnetlink(7), RTM_NEWLINK).

use super::address::{ACK, CREATE, EXCLUSIVE, REQUEST, ask};
use super::{Result, failed, push_attribute};
use crate::sys::socket;
use std::os::fd::{AsRawFd, BorrowedFd};

const NEWLINK: u16 = 16;
/// Attributes of an interface: its name, the one below it, where it goes, what kind it is (`IFLA_*`).
const NAME: u16 = 3;
const LINK: u16 = 5;
const KIND_AND_DATA: u16 = 18;
const NAMESPACE: u16 = 28;
/// `IFLA_INFO_KIND`, `IFLA_INFO_DATA`.
const KIND: u16 = 1;
const DATA: u16 = 2;
/// `IFLA_MACVLAN_MODE`, `MACVLAN_MODE_BRIDGE`: those that are joined to one interface reach each other, too.
const MODE: u16 = 1;
const BRIDGE: u32 = 4;

/// Makes an interface in the network namespace `ns`, by the name that `interface` has here and joined to that: with an address of
/// its own it is one more host of that network. It ends with the namespace. The host itself does not reach it over `interface`
/// (macvlan in the kernel's documentation). Needs CAP_NET_ADMIN.
pub fn join(interface: &str, ns: BorrowedFd<'_>) -> Result<()> {
    let made = socket::interface_index(interface).and_then(|index| ask(&message(interface, index, ns)));
    made.map_err(failed("netlink", &format!("joining an interface to {interface}")))
}

fn message(interface: &str, index: u32, ns: BorrowedFd<'_>) -> Vec<u8> {
    let mode = attribute(MODE, &BRIDGE.to_ne_bytes());
    let kind = [attribute(KIND, b"macvlan\0"), attribute(DATA, &mode)].concat();
    let attributes = [
        attribute(NAME, &[interface.as_bytes(), b"\0"].concat()),
        attribute(LINK, &index.to_ne_bytes()),
        attribute(NAMESPACE, &ns.as_raw_fd().to_ne_bytes()),
        attribute(KIND_AND_DATA, &kind),
    ];
    let mut message = Vec::with_capacity(128);
    message.extend(0u32.to_ne_bytes());
    message.extend(NEWLINK.to_ne_bytes());
    message.extend((REQUEST | ACK | CREATE | EXCLUSIVE).to_ne_bytes());
    // Number and sender of the request, then ifinfomsg: all of it as the kernel chooses.
    message.extend([0; 8 + 16]);
    attributes.iter().for_each(|attribute| message.extend(attribute));
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    push_attribute(&mut bytes, kind, value);
    bytes
}
