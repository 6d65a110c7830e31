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

/// A packet socket that sees packets of every interface of this thread's network namespace from the network header on. It
/// receives nothing before [`bind_cooked`]; what it receives tells whether its checksum is filled in. Needs CAP_NET_RAW.
pub fn open_cooked() -> Result<OwnedFd> {
    let fd = socket::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    socket::set_int_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    Ok(fd)
}

/// Has a socket of [`open_cooked`] see what comes in of a protocol (`ETH_P_*`, host order; not `ETH_P_ALL`: then it would see
/// what goes out as well).
pub fn bind_cooked(fd: BorrowedFd<'_>, protocol: u16) -> Result<()> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    let size = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: pointer and length are of one struct.
    check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), size) }.into()).map(drop)
}

/// A packet of [`receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its length, bytes; more than the buffer's if only its beginning is there.
    pub len: usize,
    /// `TP_STATUS_CSUMNOTREADY`: its sender is on this machine, or it was put together from several: nobody has filled in its
    /// transport checksum, and it needs none.
    pub partial_checksum: bool,
}

/// recvmsg(2) of a socket of [`open_cooked`]; `None` = there is nothing.
pub fn receive(fd: BorrowedFd<'_>, room: &mut [u8]) -> Result<Option<Received>> {
    const CSUM_NOT_READY: u32 = 1 << 3;
    let mut control = [0u64; 8];
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: every pointer of `header` has the room its length field says.
    let len = match check(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags) } as i64) {
        Ok(len) => len as usize,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut received = Received { len, partial_checksum: false };
    // SAFETY: the kernel has filled `control` up to `msg_controllen`; its first message is looked at if it is whole.
    unsafe {
        let cmsg = libc::CMSG_FIRSTHDR(&header);
        if !cmsg.is_null()
            && (*cmsg).cmsg_level == libc::SOL_PACKET
            && (*cmsg).cmsg_type == libc::PACKET_AUXDATA
            && (*cmsg).cmsg_len >= libc::CMSG_LEN(4) as usize
        {
            // The first member of struct tpacket_auxdata.
            let status = libc::CMSG_DATA(cmsg).cast::<u32>().read_unaligned();
            received.partial_checksum = status & CSUM_NOT_READY != 0;
        }
    }
    Ok(Some(received))
}

/// How many packets found no room in the socket's buffer since this was last asked (`PACKET_STATISTICS`).
pub fn lost(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut stats = [0u8; 8];
    socket::option(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)?;
    Ok(u32::from_ne_bytes([stats[4], stats[5], stats[6], stats[7]]))
}

/// Sends a whole frame.
pub fn send(fd: BorrowedFd<'_>, frame: &[u8]) -> Result<()> {
    socket::send(fd, frame, &[], &[], None, 0).map(drop)
}
