//! The byte streams below a channel, all non-blocking: one `enum`, no generics.

use super::error::{Result, TransportError};
use super::tls::TlsStream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A connected, authenticated stream of bytes.
#[derive(Debug)]
pub enum Stream {
    /// A UNIX socket (also one half of a pair, for tests and for children).
    Unix(UnixStream),
    /// Bare TCP.
    Tcp(TcpStream),
    /// TCP with TLS 1.3.
    Tls(Box<TlsStream>),
    /// One of two hands on TCP with TLS 1.3, and its socket.
    SharedTls(Arc<Mutex<TlsStream>>, TcpStream),
    /// Two one-way descriptors: an ssh child's, or our own stdin and stdout.
    Pipes {
        /// Read from here.
        input: File,
        /// Write to here.
        output: File,
    },
}

impl Stream {
    /// A UNIX socket.
    pub fn unix(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::Unix(socket))
    }

    /// A TCP connection, tuned for messages: no delay, and dead peers are found by the kernel too.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        Ok(Self::Tcp(socket))
    }

    /// Two descriptors. They are made non-blocking, which those who share their open file descriptions see too.
    pub fn pipes(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        for fd in [&input, &output] {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self::Pipes { input: input.into(), output: output.into() })
    }

    /// Two ends of one stream inside this program.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = UnixStream::pair()?;
        Ok((Self::unix(a)?, Self::unix(b)?))
    }

    /// Two hands on it: one to read by and one to write by, each in a thread of its own. It ends when both are dropped.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn split(self) -> io::Result<(Self, Self)> {
        Ok(match self {
            Self::Unix(socket) => (Self::Unix(socket.try_clone()?), Self::Unix(socket)),
            Self::Tcp(socket) => (Self::Tcp(socket.try_clone()?), Self::Tcp(socket)),
            Self::Tls(tls) => {
                let sockets = (tls.socket().try_clone()?, tls.socket().try_clone()?);
                let tls = Arc::new(Mutex::new(*tls));
                (Self::SharedTls(Arc::clone(&tls), sockets.0), Self::SharedTls(tls, sockets.1))
            }
            Self::SharedTls(tls, socket) => {
                (Self::SharedTls(Arc::clone(&tls), socket.try_clone()?), Self::SharedTls(tls, socket))
            }
            Self::Pipes { input, output } => {
                (Self::Pipes { input: input.try_clone()?, output: output.try_clone()? }, Self::Pipes { input, output })
            }
        })
    }

    /// Whether something to read waits inside, invisible to poll(2).
    pub fn has_plain_text(&mut self) -> bool {
        match self {
            Self::Tls(tls) => tls.has_plain_text(),
            Self::SharedTls(tls, _) => lock(tls).has_plain_text(),
            Self::Unix(_) | Self::Tcp(_) | Self::Pipes { .. } => false,
        }
    }

    /// TLS is spoken on it.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::SharedTls(..))
    }

    /// The TCP socket, also below TLS.
    pub fn tcp_socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(socket) | Self::SharedTls(_, socket) => Some(socket),
            Self::Tls(tls) => Some(tls.socket()),
            Self::Unix(_) | Self::Pipes { .. } => None,
        }
    }

    /// Tunes a TCP connection for bulk data: cubic congestion control (the host's default may be half as fast on a
    /// clean path; a kernel without it keeps its default), and an end to unacknowledged data after `silence`.
    pub fn tune_for_bulk(&self, silence: Duration) {
        let Some(socket) = self.tcp_socket() else { return };
        if let Err(errno) = setsockopt(socket, sockopt::TcpCongestion, &"cubic".into()) {
            tracing::debug!(%errno, "no cubic congestion control");
        }
        let ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
        if let Err(errno) = setsockopt(socket, sockopt::TcpUserTimeout, &ms) {
            tracing::debug!(%errno, "no TCP user time-out");
        }
    }

    /// Reads what there is. `WouldBlock`: wait as [`Stream::interest`] says. 0 = the peer has closed.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read(buf),
            Self::Tcp(socket) => socket.read(buf),
            Self::Tls(tls) => tls.try_read(buf),
            Self::SharedTls(tls, _) => lock(tls).try_read(buf),
            Self::Pipes { input, .. } => input.read(buf),
        }
    }

    /// Writes some of `parts`. `WouldBlock`: wait until writable.
    pub fn try_write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.write_vectored(parts),
            Self::Tcp(socket) => socket.write_vectored(parts),
            Self::Tls(tls) => tls.try_write(parts),
            Self::SharedTls(tls, _) => lock(tls).try_write(parts),
            Self::Pipes { output, .. } => output.write_vectored(parts),
        }
    }

    /// Pushes out what TLS still holds. `WouldBlock`: wait until writable.
    pub fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(tls) => tls.try_flush(),
            Self::SharedTls(tls, _) => lock(tls).try_flush(),
            Self::Unix(_) | Self::Tcp(_) | Self::Pipes { .. } => Ok(()),
        }
    }

    /// The descriptor and events to wait for before the next read.
    pub fn read_interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self {
            Self::Unix(socket) => (socket.as_fd(), PollFlags::POLLIN),
            Self::Tcp(socket) => (socket.as_fd(), PollFlags::POLLIN),
            Self::Tls(tls) => (tls.socket().as_fd(), tls.read_events()),
            Self::SharedTls(tls, socket) => (socket.as_fd(), lock(tls).read_events()),
            Self::Pipes { input, .. } => (input.as_fd(), PollFlags::POLLIN),
        }
    }

    /// The descriptor and events to wait for before the next write.
    pub fn write_interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self {
            Self::Unix(socket) => (socket.as_fd(), PollFlags::POLLOUT),
            Self::Tcp(socket) => (socket.as_fd(), PollFlags::POLLOUT),
            Self::Tls(tls) => (tls.socket().as_fd(), PollFlags::POLLOUT),
            Self::SharedTls(_, socket) => (socket.as_fd(), PollFlags::POLLOUT),
            Self::Pipes { output, .. } => (output.as_fd(), PollFlags::POLLOUT),
        }
    }

    /// Tells the peer that nothing more will come, as far as the kind of stream can.
    pub fn close_write(&mut self) {
        // Whoever has gone already needs no goodbye.
        let _ = match self {
            Self::Unix(socket) => socket.shutdown(std::net::Shutdown::Write),
            Self::Tcp(socket) => socket.shutdown(std::net::Shutdown::Write),
            Self::Tls(tls) => tls.close_notify(),
            Self::SharedTls(tls, _) => lock(tls).close_notify(),
            Self::Pipes { .. } => Ok(()),
        };
    }
}

/// Nothing that is done with it blocks.
fn lock(tls: &Mutex<TlsStream>) -> MutexGuard<'_, TlsStream> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Effective uid of the process at the other end of a UNIX socket (unix(7), SO_PEERCRED).
pub fn peer_uid(socket: &UnixStream) -> Result<u32> {
    nix::sys::socket::getsockopt(socket, sockopt::PeerCredentials).map(|credentials| credentials.uid()).map_err(
        |errno: Errno| TransportError::Io {
            operation: "read the credentials of",
            peer: "a local process".into(),
            source: errno.into(),
        },
    )
}

/// Refuses a local peer that is neither root nor the user this program runs as.
pub fn check_peer_uid(uid: u32) -> Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    if uid == 0 || uid == own { Ok(()) } else { Err(TransportError::NotAuthorised { uid, own }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_may() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(check_peer_uid(0).is_ok());
        assert!(check_peer_uid(own).is_ok());
        assert!(matches!(check_peer_uid(own + 4711), Err(TransportError::NotAuthorised { .. })));
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&a).unwrap(), own);
    }
}
