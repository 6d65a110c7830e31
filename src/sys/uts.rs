//! uname(2), sethostname(2), setdomainname(2) in another UTS namespace: by a thread that goes there.

use super::{Errno, Result, check};
use std::os::fd::{AsRawFd, BorrowedFd};

fn in_namespace<T: Send>(ns: BorrowedFd<'_>, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let there = || {
        // SAFETY: integers only.
        check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWUTS) }.into())?;
        act()
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap_or(Err(Errno::EIO)))
}

/// Host and domain name of a namespace.
pub fn names(ns: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    in_namespace(ns, || {
        // SAFETY: all-zero bytes are a valid utsname.
        let mut found: libc::utsname = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one utsname.
        check(unsafe { libc::uname(&raw mut found) }.into())?;
        let text = |field: &[libc::c_char]| field.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        Ok((text(&found.nodename), text(&found.domainname)))
    })
}

/// Gives a namespace its names.
pub fn set_names(ns: BorrowedFd<'_>, host: &[u8], domain: &[u8]) -> Result<()> {
    in_namespace(ns, || {
        // SAFETY: pointer and length belong together.
        check(unsafe { libc::sethostname(host.as_ptr().cast(), host.len()) }.into())?;
        // SAFETY: as above.
        check(unsafe { libc::setdomainname(domain.as_ptr().cast(), domain.len()) }.into()).map(drop)
    })
}
