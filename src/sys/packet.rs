//! packet(7) sockets and netdevice(7) look-ups.

use super::{Errno, Result, check, socket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Index and hardware address of an interface of this thread's network namespace.
pub fn interface(name: &str) -> Result<(u32, [u8; 6])> {
    let index = socket::interface_index(name)?;
    let any = socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = request_for(name)?;
    // SAFETY: SIOCGIFHWADDR reads the name and writes the address of `request`.
    check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFHWADDR as libc::c_ulong, &mut request) }.into())?;
    // SAFETY: the call has filled this member of the union.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut hardware = [0u8; 6];
    for (to, from) in hardware.iter_mut().zip(data) {
        *to = from as u8;
    }
    Ok((index, hardware))
}

/// Brings an interface of this thread's network namespace up.
pub fn set_up(name: &str) -> Result<()> {
    let any = socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = request_for(name)?;
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of `request`.
    check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFFLAGS as libc::c_ulong, &mut request) }.into())?;
    // SAFETY: the call has filled this member of the union; every bit pattern of it is valid.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
    // SAFETY: SIOCSIFFLAGS only reads `request`.
    check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS as libc::c_ulong, &request) }.into()).map(drop)
}

fn request_for(name: &str) -> Result<libc::ifreq> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// A packet socket that sees whole frames, bound to an interface and a protocol (`ETH_P_*`, host order; 0 = sends only).
pub fn open(interface: u32, protocol: u16) -> Result<OwnedFd> {
    let fd = socket::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface as i32;
    let size = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: pointer and length are of one struct.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), std::ptr::from_ref(&address).cast(), size) }.into())?;
    Ok(fd)
}

/// Sends a whole frame.
pub fn send(fd: BorrowedFd<'_>, frame: &[u8]) -> Result<()> {
    socket::send(fd, frame, &[], &[], None, 0).map(drop)
}
