//! Connecting to a peer, by whatever way its address names.

use super::address::{self, PeerAddress};
use super::channel::Channel;
use super::error::{Result, TransportError};
use super::keys::Identity;
use super::link::{Link, Request};
use super::peers::Peers;
use super::preamble::{Preamble, SessionNumber};
use super::route::Route;
use super::ssh::{self, SshChild};
use super::stream::{self, Stream};
use super::tls::TlsStream;
use super::wait::{Abort, Ended, Patience};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How a peer is reached.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Key and certificate of this host, for TLS.
    pub keys: PathBuf,
    /// Peers file, for TLS.
    pub peers: PathBuf,
    /// For each of: connection, TLS, first exchange.
    pub connect_timeout: Duration,
    /// Silence of this length means the peer is lost.
    pub peer_timeout: Duration,
    /// Bare TCP also beyond loopback.
    pub allow_plain: bool,
    /// Remote shell: program and first arguments; port, host and command follow.
    pub rsh: Vec<OsString>,
    /// How `migrate` is called over there: a shell command whose last word is the program.
    pub remote: String,
    /// Send our own binary where there is none that fits.
    pub bootstrap: bool,
    /// The binary to send.
    pub program: PathBuf,
    /// The way that connections take from here, where that is not left to the kernel.
    pub route: Option<Route>,
}

/// Connects, authenticates, exchanges versions, and opens the bulk channels that both sides want.
pub fn connect(address: &PeerAddress, options: &ConnectOptions, request: Request, abort: &Abort) -> Result<Link> {
    if let PeerAddress::Ssh { user, host, port } = address {
        let place = ssh::Place { user: user.as_deref(), host, port: *port };
        return ssh::connect(&place, options, request, abort);
    }
    if let PeerAddress::Local = address {
        return ssh::connect_local(options, request, abort);
    }
    let trust = trust(address, options)?;
    let one = |preamble: Preamble| open_channel(address, options, trust.as_ref(), preamble, options.patience(abort));
    let control = greeted(one(Preamble::control())?)?;
    Link::open(control, request, None, &mut |session: SessionNumber| one(Preamble::bulk(session)))
}

/// One connection, authenticated, for somebody else to speak on: a control channel, or a further one of this session.
pub fn connection(
    address: &PeerAddress,
    options: &ConnectOptions,
    session: Option<SessionNumber>,
    abort: &Abort,
) -> Result<(Channel, Option<SshChild>)> {
    match address {
        PeerAddress::Ssh { user, host, port } if session.is_none() => {
            let place = ssh::Place { user: user.as_deref(), host, port: *port };
            ssh::connection(&place, options, abort).map(|(channel, ssh)| (channel, Some(ssh)))
        }
        PeerAddress::Ssh { host, .. } => Err(ssh::only_one_stream(host)),
        PeerAddress::Unix(_) | PeerAddress::Local => Err(TransportError::Connect {
            address: address.to_string(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "that is no other host"),
        }),
        PeerAddress::Tls { .. } | PeerAddress::Plain { .. } => {
            let (trust, patience) = (trust(address, options)?, options.patience(abort));
            let one = |preamble| open_channel(address, options, trust.as_ref(), preamble, patience);
            let channel = match session {
                Some(session) => one(Preamble::bulk(session)),
                None => greeted(one(Preamble::control())?),
            };
            channel.map(|channel| (channel, None))
        }
    }
}

/// Key and peers, where TLS is spoken.
fn trust(address: &PeerAddress, options: &ConnectOptions) -> Result<Option<(Identity, Peers)>> {
    match address {
        PeerAddress::Tls { .. } => Ok(Some((Identity::load(&options.keys)?, Peers::load(&options.peers)?))),
        _ => Ok(None),
    }
}

/// `migrate` has answered.
fn greeted(mut control: Channel) -> Result<Channel> {
    let mut noise = Vec::new();
    control.receive_preamble(&mut noise)?;
    if noise.is_empty() {
        return Ok(control);
    }
    let noise = super::channel::printable(&noise, 500);
    Err(TransportError::NotMigrate { peer: control.peer().to_owned(), noise })
}

impl ConnectOptions {
    /// For everything up to the end of the first exchange.
    pub(super) fn patience(&self, abort: &Abort) -> Patience {
        Patience {
            abort: abort.clone(),
            silence: self.peer_timeout,
            deadline: Some(Instant::now() + self.connect_timeout),
        }
    }
}

/// One connection with its preamble sent and TLS done.
fn open_channel(
    address: &PeerAddress,
    options: &ConnectOptions,
    tls: Option<&(Identity, Peers)>,
    preamble: Preamble,
    patience: Patience,
) -> Result<Channel> {
    let name = address.to_string();
    let (host, port) = match address {
        PeerAddress::Unix(path) => {
            let failed = |source| TransportError::Connect { address: name.clone(), source };
            let socket = UnixStream::connect(path).map_err(failed)?;
            // Whoever sits at a path in a shared directory must not be handed a target.
            stream::check_peer_uid(stream::peer_uid(&socket)?)?;
            let mut channel = Channel::new(Stream::unix(socket).map_err(failed)?, name, patience);
            channel.send_preamble(preamble)?;
            return Ok(channel);
        }
        PeerAddress::Tls { host, port } | PeerAddress::Plain { host, port } => (host, *port),
        PeerAddress::Ssh { .. } | PeerAddress::Local => unreachable!("a child has one stream, made in ssh.rs"),
    };
    let socket = connect_tcp(
        host,
        port,
        &name,
        |to| match address {
            PeerAddress::Plain { .. } => address::check_plain(to, options.allow_plain),
            _ => Ok(()),
        },
        options.route.as_ref(),
        &patience,
    )?;
    let failed = |source| TransportError::Connect { address: name.clone(), source };
    let reader = socket.try_clone().map_err(failed)?;
    let mut channel = Channel::new(Stream::tcp(socket).map_err(failed)?, &name, patience);
    channel.send_preamble(preamble)?;
    if let Some((identity, peers)) = tls {
        let (stream, peer) = TlsStream::connect(reader, identity, peers, channel.patience(), &name)?;
        let patience = Patience { silence: options.peer_timeout, ..channel.patience().clone() };
        return Ok(Channel::new(Stream::Tls(Box::new(stream)), format!("{} ({name})", peer.name), patience));
    }
    Ok(channel)
}

/// Tries each address of the host until one answers.
fn connect_tcp(
    host: &str,
    port: u16,
    name: &str,
    allowed: impl Fn(&SocketAddr) -> Result<()>,
    route: Option<&Route>,
    patience: &Patience,
) -> Result<TcpStream> {
    let mut last = None;
    for to in address::resolve(host, port)? {
        allowed(&to)?;
        match connect_one(&to, route, patience) {
            Ok(socket) => return Ok(socket),
            Err(Ended::Aborted) => return Err(TransportError::Aborted { during: "connecting" }),
            Err(Ended::Poll(source)) => last = Some(source),
            Err(Ended::Silent(_) | Ended::Deadline) => {
                last = Some(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
            }
        }
    }
    let source = last.unwrap_or_else(|| io::ErrorKind::NotFound.into());
    Err(TransportError::Connect { address: name.into(), source })
}

fn connect_one(to: &SocketAddr, route: Option<&Route>, patience: &Patience) -> std::result::Result<TcpStream, Ended> {
    let failed = |errno: Errno| Ended::Poll(errno.into());
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, SockType::Stream, flags, None).map_err(failed)?;
    route.map_or(Ok(()), |route| route.pin(&fd, to)).map_err(failed)?;
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(*to)) {
        Ok(()) => return Ok(fd.into()),
        Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(errno) => return Err(failed(errno)),
    }
    patience.wait(fd.as_fd(), PollFlags::POLLOUT)?;
    match socket::getsockopt(&fd, sockopt::SocketError).map_err(failed)? {
        0 => Ok(fd.into()),
        error => Err(Ended::Poll(io::Error::from_raw_os_error(error))),
    }
}
