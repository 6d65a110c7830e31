//! Who the kernel sends audit records to: the one netlink socket of that protocol that is more than an address
//! (audit_set(3); `AUDIT_GET`, `kernel/audit.c`).

use crate::image::Pid;
use crate::proc::ProcDir;
use crate::sys::{Errno, socket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

const NETLINK_AUDIT: i32 = 9;
const AUDIT_GET: u16 = 1000;
const REQUEST: u16 = 1;
const HEADER: usize = 16;
/// `pid` of `struct audit_status`, behind mask, enabled and failure.
const PID: usize = HEADER + 12;
/// The answer comes from a thread of the kernel.
const PATIENCE_MS: u16 = 1000;

/// Inode of the initial PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NS: u64 = 0xefff_fffc;

/// The process id of the audit daemon; 0 = there is none that we could see: only processes of the initial PID namespace can
/// be it (`audit_netlink_ok`, kernel/audit.c), and who is in another sees none of those. Needs CAP_AUDIT_CONTROL there.
pub fn daemon() -> Result<u32, Errno> {
    let ours = Pid(std::process::id().cast_signed());
    if ProcDir::open(ours).and_then(|dir| dir.ns("pid")).is_ok_and(|ns| ns != INITIAL_PID_NS) {
        return Ok(0);
    }
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_AUDIT)?;
    let mut message = Vec::with_capacity(HEADER);
    message.extend((HEADER as u32).to_ne_bytes());
    message.extend(AUDIT_GET.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    socket::send(netlink.as_fd(), &message, &[], &[], None, 0)?;
    let mut wait = [PollFd::new(netlink.as_fd(), PollFlags::POLLIN)];
    if poll(&mut wait, PollTimeout::from(PATIENCE_MS))? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    let mut room = [0u8; 4096];
    let received = socket::receive(netlink.as_fd(), &mut room, libc::MSG_DONTWAIT)?;
    answer(&room[..received.len])
}

fn answer(message: &[u8]) -> Result<u32, Errno> {
    let word = |at: usize| message.get(at..at + 4).map(|word| [word[0], word[1], word[2], word[3]]);
    match message.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]])) {
        Some(AUDIT_GET) => word(PID).map(u32::from_ne_bytes).ok_or(Errno::EBADMSG),
        // NLMSG_ERROR: a negative errno.
        Some(2) => Err(word(HEADER).map_or(Errno::EBADMSG, |code| Errno::from_raw(-i32::from_ne_bytes(code)))),
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let mut status = vec![0u8; HEADER + 40];
        status[4..6].copy_from_slice(&AUDIT_GET.to_ne_bytes());
        status[PID..PID + 4].copy_from_slice(&71u32.to_ne_bytes());
        assert_eq!(answer(&status), Ok(71));
        status[4..6].copy_from_slice(&2u16.to_ne_bytes());
        status[HEADER..HEADER + 4].copy_from_slice(&(-1i32).to_ne_bytes());
        assert_eq!(answer(&status), Err(Errno::EPERM));
        assert_eq!(answer(&status[..HEADER]), Err(Errno::EBADMSG));
        assert_eq!(answer(&[]), Err(Errno::EBADMSG));
    }
}
