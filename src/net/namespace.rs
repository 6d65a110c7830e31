//! Sockets of another network namespace: a socket belongs to the namespace its creator was in, and to no other.

use super::{Result, failed};
use crate::sys::{Errno, socket};
use std::os::fd::{BorrowedFd, OwnedFd};

/// Runs `f` on a thread of its own that has entered the network namespace `ns`; on this thread if there is none to enter.
pub fn inside<T: Send>(ns: Option<BorrowedFd<'_>>, f: impl FnOnce() -> T + Send) -> Result<T> {
    let Some(ns) = ns else { return Ok(f()) };
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                socket::enter_net(ns)?;
                Ok(f())
            })
            .join()
    });
    outcome.unwrap_or(Err(Errno::ECANCELED)).map_err(failed("any", "setns to a network namespace"))
}

/// socket(2) in the network namespace `ns`, or in this thread's.
pub fn socket_in(
    ns: Option<BorrowedFd<'_>>,
    domain: i32,
    kind: i32,
    protocol: i32,
) -> Result<std::result::Result<OwnedFd, Errno>> {
    inside(ns, || socket::socket(domain, kind, protocol))
}
