//! Made by the engine: options every socket has (`SOL_SOCKET`).

use crate::image::fd::SocketOptions;
use crate::net::{Error, Result, failed};
use crate::sys::{Errno, socket};
use std::os::fd::BorrowedFd;

/// Options that would disturb the making of the socket: set when all else is done.
const LATE: &[i32] = &[libc::SO_SNDBUF, libc::SO_RCVBUF, libc::SO_KEEPALIVE, libc::SO_RCVLOWAT, libc::SO_PEEK_OFF];

/// The half of `SOL_SOCKET` that must be there before the socket gets an address: reuse, device, mark, ...
/// `skip` names options that the caller sets itself.
pub fn early(fd: BorrowedFd<'_>, options: &SocketOptions, skip: &[i32]) -> Result<()> {
    for &(name, value) in &options.ints {
        if !LATE.contains(&name) && !skip.contains(&name) {
            set_if_differs(fd, libc::SOL_SOCKET, name, value)?;
        }
    }
    for (name, value) in &options.raw {
        if *name == libc::SO_BINDTODEVICE {
            socket::set_option(fd, libc::SOL_SOCKET, *name, &value.0).map_err(failed("any", "SO_BINDTODEVICE"))?;
        }
    }
    for (level, name, interface) in &options.interfaces {
        set_interface(fd, *level, *name, &interface.0)?;
    }
    // Large enough for whatever is in the queues; `late` sets what the program had.
    for (name, force) in [(libc::SO_SNDBUF, libc::SO_SNDBUFFORCE), (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE)] {
        if let Some(value) = int(options, name) {
            force_buffer(fd, name, force, value)?;
        }
    }
    Ok(())
}

/// Sets an option to the number that an interface has here.
fn set_interface(fd: BorrowedFd<'_>, level: i32, name: i32, interface: &[u8]) -> Result<()> {
    let bad = || Error::BadModel { kind: "any", reason: format!("option {name} of level {level} names an interface") };
    let option = socket::INTERFACE_OPTIONS.into_iter().find(|o| (o.level, o.name) == (level, name)).ok_or_else(bad)?;
    let what = || format!("looking for the interface {}", String::from_utf8_lossy(interface));
    let index = socket::interface_index_at(fd, interface).map_err(|e| failed("any", &what())(e))?;
    let value = option.order.number(index.cast_signed()).cast_signed();
    socket::set_int_option(fd, level, name, value)
        .map_err(failed("any", &format!("setting option {name} of level {level}")))
}

/// The rest of `SOL_SOCKET`, when queues are filled and the connection is made.
pub fn late(fd: BorrowedFd<'_>, options: &SocketOptions) -> Result<()> {
    for (name, force) in [(libc::SO_SNDBUF, libc::SO_SNDBUFFORCE), (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE)] {
        if let Some(value) = int(options, name) {
            force_buffer(fd, name, force, value)?;
        }
    }
    // Setting a size has fixed it; give back to the kernel what the program left to it (Linux 5.14).
    match socket::set_int_option(fd, libc::SOL_SOCKET, socket::SO_BUF_LOCK, options.buffer_lock) {
        Ok(()) | Err(Errno::ENOPROTOOPT) => {}
        Err(e) => return Err(failed("any", "SO_BUF_LOCK")(e)),
    }
    for &(name, value) in &options.ints {
        if LATE.contains(&name) && name != libc::SO_SNDBUF && name != libc::SO_RCVBUF {
            set_if_differs(fd, libc::SOL_SOCKET, name, value)?;
        }
    }
    for (name, value) in &options.raw {
        if *name != libc::SO_BINDTODEVICE {
            socket::set_option(fd, libc::SOL_SOCKET, *name, &value.0)
                .map_err(failed("any", &format!("option {name} of SOL_SOCKET")))?;
        }
    }
    if !options.filter.is_empty() {
        socket::attach_filter(fd, &options.filter).map_err(failed("any", "SO_ATTACH_FILTER"))?;
    }
    if options.filter_locked {
        socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 1)
            .map_err(failed("any", "SO_LOCK_FILTER"))?;
    }
    if (options.uid, options.gid) != (0, 0) {
        socket::set_owner(fd, options.uid, options.gid).map_err(failed("any", "fchown"))?;
    }
    Ok(())
}

/// Value of an integer option of the model, if it has one.
pub fn int(options: &SocketOptions, name: i32) -> Option<i32> {
    options.ints.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

/// Sets the size of a buffer past `net.core.?mem_max`; getsockopt(2) gives twice what is set.
fn force_buffer(fd: BorrowedFd<'_>, name: i32, force: i32, value: i32) -> Result<()> {
    if socket::int_option(fd, libc::SOL_SOCKET, name) == Ok(value) {
        return Ok(());
    }
    match socket::set_int_option(fd, libc::SOL_SOCKET, force, value / 2) {
        Ok(()) => Ok(()),
        // Without CAP_NET_ADMIN: as much as an ordinary program may have.
        Err(Errno::EPERM) => {
            socket::set_int_option(fd, libc::SOL_SOCKET, name, value / 2).map_err(failed("any", "size of a buffer"))
        }
        Err(e) => Err(failed("any", "size of a buffer")(e)),
    }
}

/// Sets an integer option where the socket does not have that value already: many cannot be set to what they are.
pub fn set_if_differs(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    if socket::int_option(fd, level, name) == Ok(value) {
        return Ok(());
    }
    socket::set_int_option(fd, level, name, value)
        .map_err(failed("any", &format!("setting option {name} of level {level} to {value}")))
}

/// Sets integer options of any level, but for those in `skip` as (level, name).
pub fn set_ints(fd: BorrowedFd<'_>, ints: &[(i32, i32, i32)], skip: &[(i32, i32)]) -> Result<()> {
    for &(level, name, value) in ints {
        if !skip.contains(&(level, name)) {
            set_if_differs(fd, level, name, value)?;
        }
    }
    Ok(())
}

/// Checks that an address of the image belongs to the family the socket is made in.
pub fn check_address(kind: &'static str, address: &[u8], domain: i32) -> Result<()> {
    let (family, len) = match address {
        [a, b, ..] => (i32::from(u16::from_ne_bytes([*a, *b])), address.len()),
        _ => (-1, address.len()),
    };
    let wanted = if domain == libc::AF_INET6 { 28 } else { 16 };
    if family == domain && len == wanted {
        Ok(())
    } else {
        Err(Error::BadModel { kind, reason: format!("an address of {len} bytes and family {family}") })
    }
}
