//! Descriptors that come from outside: inherited ones, and ones passed over UNIX sockets (unix(7), SCM_RIGHTS).

use nix::cmsg_space;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

/// Passes one descriptor to whoever holds the other end of `socket`.
pub fn send_fd(socket: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let rights = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    // At least one byte must travel with it.
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &message, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one descriptor, close-on-exec. Fails if none came.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let received = receive(socket)?.and_then(|(_, fd)| fd);
    received.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
}

/// Receives one byte, and the descriptor (close-on-exec) that came with it, if one did; `None` at the end of the stream.
pub fn receive(socket: &UnixStream) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut byte = [0];
    let mut space = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => continue,
            done => break done?,
        }
    };
    let (length, mut received) = (message.bytes, None);
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made this descriptor for this process; nobody else knows its number.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((length > 0).then_some((byte[0], received)))
}

/// Takes the descriptors that systemd passed (sd_listen_fds(3)): `count` of them from number 3 on. They become
/// close-on-exec. Fails on the second call, and when one is not open.
pub fn take_listen_fds(count: u16) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the passed sockets were taken before"));
    }
    (0..RawFd::from(count))
        .map(|index| {
            let number = 3 + index;
            // SAFETY: borrowed for one fcntl(2), which fails with EBADF if the number is not open.
            let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            // SAFETY: open, as fcntl has shown; by the protocol of sd_listen_fds(3) it belongs to this program, and the
            // flag above makes sure that it is wrapped once only.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_descriptor_travels() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_fd(&a, std::os::fd::AsFd::as_fd(&writer)).unwrap();
        drop(writer);
        let mut received = File::from(receive_fd(&b).unwrap());
        received.write_all(b"through").unwrap();
        drop(received);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn bytes_alone_are_no_descriptor() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        assert!(receive_fd(&b).is_err());
        drop(a);
        assert!(receive_fd(&b).is_err());
    }
}
