//! Sockets that the agent listens on: made here, or passed by systemd.

use super::route::{Arrival, Router};
use crate::ops::words::Listen;
use crate::sys::pass_fd;
use crate::transport::address::{check_plain, resolve};
use crate::transport::{Abort, TransportError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, getsockname, listen,
    socket,
};
use nix::sys::stat::{Mode, fchmod};
use std::fs::{self, DirBuilder};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// One socket.
#[derive(Debug)]
pub struct Listener {
    /// As a person would write it.
    pub name: String,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tls(TcpListener),
    Plain(TcpListener),
}

impl Listener {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tls(socket) | Socket::Plain(socket) => socket.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Arrival> {
        match &self.socket {
            Socket::Unix(socket) => socket.accept().map(|(stream, _)| Arrival::Unix(stream)),
            Socket::Tls(socket) => socket.accept().map(|(stream, from)| Arrival::Tls(stream, from)),
            Socket::Plain(socket) => socket.accept().map(|(stream, from)| Arrival::Plain(stream, from)),
        }
    }
}

/// Opens all addresses and takes what systemd passed. `run` is made if it is not there. `allow_plain`: TCP without protection also
/// beyond loopback.
pub fn open(addresses: &[Listen], run: &Path, allow_plain: bool) -> Result<Vec<Listener>, TransportError> {
    DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(|source| TransportError::File {
        operation: "make",
        path: run.into(),
        source,
    })?;
    let mut listeners = passed()?;
    for address in addresses {
        let failed = |source| TransportError::Listen { address: address.to_string(), source };
        let (socket, name) = match address {
            Listen::Unix(path) => (Socket::Unix(bind_unix(path).map_err(failed)?), address.to_string()),
            Listen::Tls(to) => {
                let socket = bind_tcp(&to.host, to.port).map_err(failed)?;
                let name = socket.local_addr().map(|at| format!("tcp://{at}")).map_err(failed)?;
                (Socket::Tls(socket), name)
            }
            Listen::Plain(to) => {
                for at in resolve(&to.host, to.port)? {
                    check_plain(&at, allow_plain)?;
                }
                let socket = bind_tcp(&to.host, to.port).map_err(failed)?;
                let name = socket.local_addr().map(|at| format!("tcp+plain://{at}")).map_err(failed)?;
                (Socket::Plain(socket), name)
            }
        };
        listeners.push(Listener { name, socket });
    }
    for listener in &listeners {
        let blocking = match &listener.socket {
            Socket::Unix(socket) => socket.set_nonblocking(true),
            Socket::Tls(socket) | Socket::Plain(socket) => socket.set_nonblocking(true),
        };
        blocking.map_err(|source| TransportError::Listen { address: listener.name.clone(), source })?;
    }
    Ok(listeners)
}

/// An empty host is every address, IPv6 and IPv4.
fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    if !host.is_empty() {
        return TcpListener::bind((host, port));
    }
    TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
}

/// A socket with mode 0600 from its first moment. One that nobody listens on any more is replaced.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file of that name, and it is no socket",
            ));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    // The node gets the mode of the socket itself (unix_bind in the kernel's net/unix/af_unix.c). A umask would be the
    // whole process's: what other threads make meanwhile would lose its rights.
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

/// Sockets passed by systemd (sd_listen_fds(3)).
fn passed() -> Result<Vec<Listener>, TransportError> {
    let for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u16>().ok()).unwrap_or(0);
    if !for_us || count == 0 {
        return Ok(Vec::new());
    }
    let failed = |source| TransportError::Listen { address: "a socket passed by systemd".into(), source };
    pass_fd::take_listen_fds(count).map_err(failed)?.into_iter().map(|fd| classify(fd).map_err(failed)).collect()
}

fn classify(fd: OwnedFd) -> io::Result<Listener> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    match address.family() {
        Some(AddressFamily::Unix) => {
            Ok(Listener { name: "unix socket of systemd".into(), socket: Socket::Unix(fd.into()) })
        }
        Some(AddressFamily::Inet | AddressFamily::Inet6) => {
            let socket = TcpListener::from(fd);
            Ok(Listener { name: format!("tcp://{}", socket.local_addr()?), socket: Socket::Tls(socket) })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a UNIX nor a TCP socket")),
    }
}

/// Takes connections until `abort` is triggered.
pub fn accept_all(listeners: Vec<Listener>, router: &Arc<Router>, abort: &Abort) -> Result<(), TransportError> {
    loop {
        let mut fds: Vec<_> = listeners.iter().map(|listener| PollFd::new(listener.fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(abort.fd(), PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(TransportError::Listen { address: "all addresses".into(), source: errno.into() }),
            Ok(_) => {}
        }
        if fds.last().and_then(PollFd::any).unwrap_or(false) {
            return Ok(());
        }
        for (listener, _) in listeners.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false)) {
            match listener.accept() {
                Ok(arrival) => router.take(arrival),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, say: others may end meanwhile.
                    tracing::warn!(%error, listener = listener.name, "cannot accept");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let first = bind_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind_unix(&path).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(bind_unix(&file).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }
}
