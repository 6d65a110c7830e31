//! socket(2), bind(2), connect(2), getsockopt(2), recvmsg(2), sendmsg(2), unix(7): with raw addresses and raw option
//! values, so that what the kernel gave goes back unchanged.

use super::{Errno, Result, check};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for any address (`struct sockaddr_storage`).
pub const ADDRESS_MAX: usize = 128;
/// Room for any ancillary data we ask for: 253 descriptors, credentials, a time stamp, a packet info.
const CONTROL_MAX: usize = 4096;

/// `SIOCINQ`: bytes received and not read.
pub const SIOCINQ: u64 = 0x541B;
/// `SIOCATMARK`: whether the next byte to be read is the urgent one.
pub const SIOCATMARK: u64 = 0x8905;
/// `SIOCOUTQ`: bytes written and not acknowledged.
pub const SIOCOUTQ: u64 = 0x5411;
/// `SIOCOUTQNSD`: bytes written and not yet sent.
pub const SIOCOUTQNSD: u64 = 0x894B;
/// `SO_BUF_LOCK`, Linux 5.14.
pub const SO_BUF_LOCK: i32 = 72;
/// `SO_RCVTIMEO_NEW`, Linux 5.1.
pub const SO_RCVTIMEO_NEW: i32 = 66;
/// `SO_SNDTIMEO_NEW`, Linux 5.1.
pub const SO_SNDTIMEO_NEW: i32 = 67;

/// In which order of bytes an option is the number of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// That of the processor.
    Host,
    /// That of the network, as ip(7) says of `IP_UNICAST_IF`.
    Network,
}

impl Order {
    /// The number of the interface, of the value of an option; and the other way round.
    pub fn number(self, value: i32) -> u32 {
        match self {
            Self::Host => value.cast_unsigned(),
            Self::Network => u32::from_be(value.cast_unsigned()),
        }
    }
}

/// An option that is the number of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceOption {
    /// Its level, as of setsockopt(2).
    pub level: i32,
    /// Its number.
    pub name: i32,
    /// The order of its bytes.
    pub order: Order,
    /// Whether a stream socket has it by choice. A connection of TCP says in `IPV6_MULTICAST_IF` by which interface its first segment
    /// has come, and no call sets that.
    pub of_streams: bool,
}

/// All of them, in the order in which they can be set.
pub const INTERFACE_OPTIONS: [InterfaceOption; 3] = [
    // IP_UNICAST_IF and IPV6_UNICAST_IF, Linux 3.3
    InterfaceOption { level: libc::SOL_IP, name: 50, order: Order::Network, of_streams: true },
    InterfaceOption { level: libc::SOL_IPV6, name: 76, order: Order::Network, of_streams: true },
    InterfaceOption { level: libc::SOL_IPV6, name: libc::IPV6_MULTICAST_IF, order: Order::Host, of_streams: false },
];

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: only called with a descriptor that the kernel has just given us.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// socket(2), close-on-exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: integers only.
    check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) }.into()).map(owned)
}

/// socketpair(2) of `AF_UNIX`, close-on-exec.
pub fn socketpair(kind: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0i32; 2];
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) }.into())?;
    Ok((owned(fds[0].into()), owned(fds[1].into())))
}

/// bind(2) to a raw address.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: pointer and length are of one slice.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) }.into()).map(drop)
}

/// connect(2) to a raw address.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: pointer and length are of one slice.
    check(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) }.into()).map(drop)
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: integers only.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }.into()).map(drop)
}

/// accept4(2), close-on-exec.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: no address is asked for.
    let fd = unsafe { libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    check(fd.into()).map(owned)
}

/// shutdown(2): `SHUT_RD`, `SHUT_WR`, `SHUT_RDWR`.
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) }.into()).map(drop)
}

type AddressCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn address(fd: BorrowedFd<'_>, call: AddressCall) -> Result<Vec<u8>> {
    let mut room = vec![0u8; ADDRESS_MAX];
    let mut len = ADDRESS_MAX as libc::socklen_t;
    // SAFETY: `room` has `len` bytes.
    check(unsafe { call(fd.as_raw_fd(), room.as_mut_ptr().cast(), &mut len) }.into())?;
    room.truncate(len as usize);
    Ok(room)
}

/// getsockname(2), raw.
pub fn local_address(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(fd, libc::getsockname)
}

/// getpeername(2), raw.
pub fn peer_address(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(fd, libc::getpeername)
}

/// getsockopt(2) into `room`; the length of the value.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, room: &mut [u8]) -> Result<usize> {
    let mut len = room.len() as libc::socklen_t;
    // SAFETY: `room` has `len` bytes.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, room.as_mut_ptr().cast(), &mut len) }.into())?;
    Ok(len as usize)
}

/// getsockopt(2) of an integer; options that are one byte long count as integers, too.
pub fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let mut room = [0u8; 4];
    match option(fd, level, name, &mut room)? {
        1 => Ok(i32::from(room[0])),
        4 => Ok(i32::from_ne_bytes(room)),
        _ => Err(Errno::EINVAL),
    }
}

/// getsockopt(2) of a value of at most 256 bytes.
pub fn raw_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<Vec<u8>> {
    let mut room = vec![0u8; 256];
    let len = option(fd, level, name, &mut room)?;
    room.truncate(len);
    Ok(room)
}

/// setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: pointer and length are of one slice.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) }.into()).map(drop)
}

/// setsockopt(2) of an integer.
pub fn set_int_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// An ioctl(2) that writes one `int`.
pub fn ioctl_int(fd: BorrowedFd<'_>, request: u64) -> Result<i32> {
    let mut value = 0i32;
    // SAFETY: the requests used (SIOC*Q*, SIOCATMARK) write one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_ulong, &mut value) }.into())?;
    Ok(value)
}

/// Attaches a classic filter (`SO_ATTACH_FILTER`), an instruction being 8 bytes (`struct sock_filter`) in memory order.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[u64]) -> Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel only reads `len` instructions of 8 bytes from `program`, which outlives the call.
    let ret = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&fprog).cast(),
            size,
        )
    };
    check(ret.into()).map(drop)
}

/// The classic filter of a socket (`SO_GET_FILTER`); empty = none. `EACCES` = it has an eBPF program, which cannot be read.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u64>> {
    // The length of this option counts instructions, not bytes.
    let get = |room: *mut u64, mut count: libc::socklen_t| {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);
        // SAFETY: `room` has `count` instructions of 8 bytes; with a count of 0 only the count is written.
        let ret = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, room.cast(), &mut count) };
        check(ret.into()).map(|_| count)
    };
    let count = get(std::ptr::null_mut(), 0)?;
    let mut program = vec![0u64; count as usize];
    if count > 0 {
        let count = get(program.as_mut_ptr(), count)?;
        program.truncate(count as usize);
    }
    Ok(program)
}

/// Removes the filter (`SO_DETACH_FILTER`); none there is no error.
pub fn detach_filter(fd: BorrowedFd<'_>) -> Result<()> {
    match set_int_option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Process, user and group of `SCM_CREDENTIALS` and `SO_PEERCRED`, as the caller's namespaces see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// `SO_PEERCRED`; a pid of 0 = none recorded.
pub fn peer_credentials(fd: BorrowedFd<'_>) -> Result<Credentials> {
    let mut room = [0u8; 12];
    option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut room)?;
    Ok(credentials_of(&room))
}

fn credentials_of(room: &[u8; 12]) -> Credentials {
    let word = |n: usize| [room[n], room[n + 1], room[n + 2], room[n + 3]];
    Credentials { pid: i32::from_ne_bytes(word(0)), uid: u32::from_ne_bytes(word(4)), gid: u32::from_ne_bytes(word(8)) }
}

/// What recvmsg(2) gave.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes written to the buffer.
    pub len: usize,
    /// The sender's raw address; empty if there is none.
    pub from: Vec<u8>,
    /// Descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// `SCM_CREDENTIALS`.
    pub credentials: Option<Credentials>,
    /// `MSG_TRUNC`: the datagram was longer than the buffer.
    pub truncated: bool,
    /// `MSG_CTRUNC`: ancillary data was lost.
    pub control_truncated: bool,
}

/// recvmsg(2) with `MSG_CMSG_CLOEXEC`.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> Result<Received> {
    let mut address = [0u8; ADDRESS_MAX];
    let mut control = [0u64; CONTROL_MAX / 8];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = ADDRESS_MAX as u32;
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MAX;
    // SAFETY: every pointer of `header` has the room its length field says.
    let len = check(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags | libc::MSG_CMSG_CLOEXEC) } as i64)?;
    let mut received = Received {
        len: len as usize,
        from: address[..(header.msg_namelen as usize).min(ADDRESS_MAX)].to_vec(),
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        control_truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
        ..Received::default()
    };
    // SAFETY: the kernel has filled `control` up to `msg_controllen`; CMSG_* walk within it.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&header);
        while !cmsg.is_null() {
            let data = libc::CMSG_DATA(cmsg);
            let bytes = (*cmsg).cmsg_len - libc::CMSG_LEN(0) as usize;
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                for n in 0..bytes / 4 {
                    let raw = data.add(n * 4).cast::<RawFd>().read_unaligned();
                    received.fds.push(owned(raw.into()));
                }
            } else if (*cmsg).cmsg_level == libc::SOL_SOCKET
                && (*cmsg).cmsg_type == libc::SCM_CREDENTIALS
                && bytes >= 12
            {
                received.credentials = Some(credentials_of(&data.cast::<[u8; 12]>().read_unaligned()));
            }
            cmsg = libc::CMSG_NXTHDR(&header, cmsg);
        }
    }
    Ok(received)
}

/// For a stream of `AF_UNIX`: a peek over `len` bytes that cannot store the last one. The kernel gives up whole buffers, so
/// that it stops before the one that holds the last byte: the result is where that one begins.
pub fn peek_up_to_last_buffer(fd: BorrowedFd<'_>, len: usize) -> Result<usize> {
    let mut room = vec![0u8; len.saturating_sub(1)];
    let mut iov = [
        libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() },
        // The zero page: never mapped, the kernel answers EFAULT.
        libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 },
    ];
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iov.as_mut_ptr();
    header.msg_iovlen = 2;
    // SAFETY: the first part has the room its length says; at the second the kernel's own copy fails without harm.
    let taken = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match check(taken as i64) {
        Ok(n) => Ok(n as usize),
        Err(Errno::EFAULT) => Ok(0),
        Err(e) => Err(e),
    }
}

/// sendmsg(2) to a raw address (empty = none), with descriptors and credentials. Never raises SIGPIPE.
pub fn send(
    fd: BorrowedFd<'_>,
    data: &[u8],
    to: &[u8],
    fds: &[BorrowedFd<'_>],
    credentials: Option<Credentials>,
    flags: i32,
) -> Result<usize> {
    let mut control = [0u64; CONTROL_MAX / 8];
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    if fds.len() > 253 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if !to.is_empty() {
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len() as u32;
    }
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MAX;
    let mut used = 0usize;
    // SAFETY: 253 descriptors and one set of credentials fit into CONTROL_MAX; CMSG_* walk within it.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&header);
        if !fds.is_empty() {
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(fds.len() as u32 * 4) as usize;
            for (n, fd) in fds.iter().enumerate() {
                libc::CMSG_DATA(cmsg).add(n * 4).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
            }
            used += libc::CMSG_SPACE(fds.len() as u32 * 4) as usize;
            cmsg = libc::CMSG_NXTHDR(&header, cmsg);
        }
        if let Some(c) = credentials {
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_CREDENTIALS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(12) as usize;
            let ucred = libc::ucred { pid: c.pid, uid: c.uid, gid: c.gid };
            libc::CMSG_DATA(cmsg).cast::<libc::ucred>().write_unaligned(ucred);
            used += libc::CMSG_SPACE(12) as usize;
        }
    }
    header.msg_controllen = used;
    if used == 0 {
        header.msg_control = std::ptr::null_mut();
    }
    // SAFETY: every pointer of `header` has the room its length field says; the kernel only reads.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &header, flags | libc::MSG_NOSIGNAL) };
    check(sent as i64).map(|n| n as usize)
}

/// poll(2) of one descriptor without waiting: the events that hold.
pub fn poll_now(fd: BorrowedFd<'_>, events: i16) -> Result<i16> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry.
    check(unsafe { libc::poll(&mut entry, 1, 0) }.into())?;
    Ok(entry.revents)
}

/// fchown(2): for a socket the user that `SO_REUSEPORT` and filters by user see.
pub fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) }.into()).map(drop)
}

/// setns(2) of the calling thread into a network namespace.
pub fn enter_net(ns: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }.into()).map(drop)
}

/// if_nametoindex(3).
pub fn interface_index(name: &str) -> Result<u32> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a NUL-terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(Errno::last()),
        n => Ok(n),
    }
}

/// `SIOCGIFINDEX` of netdevice(7): the number of an interface in the network namespace of a socket. [`Errno::ENODEV`]: there is none.
pub fn interface_index_at(fd: BorrowedFd<'_>, name: &[u8]) -> Result<u32> {
    let mut request = interface_request();
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // SAFETY: the request reads the name and writes the number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX, &mut request) }.into())?;
    // SAFETY: any bytes are an integer.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex }.cast_unsigned())
}

/// `SIOCGIFNAME` of netdevice(7): the name of an interface in the network namespace of a socket. [`Errno::ENODEV`]: there is none.
pub fn interface_name_at(fd: BorrowedFd<'_>, index: u32) -> Result<Vec<u8>> {
    let mut request = interface_request();
    request.ifr_ifru.ifru_ifindex = index.cast_signed();
    // SAFETY: the request reads the number and writes the name.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME, &mut request) }.into())?;
    Ok(request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect())
}

fn interface_request() -> libc::ifreq {
    // SAFETY: integers and unions of integers: all zero is a value.
    unsafe { std::mem::zeroed() }
}

/// `SIOCGSKNS`: the network namespace of a socket. Linux 4.10, needs CAP_NET_ADMIN in it.
pub fn namespace_of(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894C;
    // SAFETY: the request takes no argument and returns a new descriptor.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS, 0) }.into()).map(owned)
}
