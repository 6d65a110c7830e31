//! What becomes of an accepted connection: a session process of its own, or a way to the one it joins.

use super::attend::Bell;
use super::session::{Carrier, SessionSpec, socket_path};
use crate::proc::ProcDir;
use crate::sys::pass_fd;
use crate::transport::preamble::{ChannelRole, SessionNumber};
use crate::transport::stream::{self, Stream};
use crate::transport::wait::Patience;
use crate::transport::{Abort, Channel, Result, TransportError, address, link};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a connection may take to say what it is for.
const PREAMBLE_TIME: Duration = Duration::from_secs(10);

/// Connections beyond sessions that may be waiting to say what they are for.
const WAITING_MAX: u32 = 64;

/// A connection that was accepted.
#[derive(Debug)]
pub enum Arrival {
    /// Known by its credentials.
    Unix(UnixStream),
    /// Will have to show a certificate.
    Tls(TcpStream, SocketAddr),
    /// Known, if at all, by who owns the socket at its other end.
    Plain(TcpStream, SocketAddr),
}

/// Hands connections to session processes.
#[derive(Debug)]
pub struct Router {
    template: SessionSpec,
    program: PathBuf,
    sessions_max: u32,
    sessions: AtomicU32,
    waiting: AtomicU32,
    /// Who looks after what a session leaves that was killed.
    attendants: Bell,
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    /// `None` if there are `max` already.
    fn within(counter: &'a AtomicU32, max: u32) -> Option<Self> {
        let counted = Self(counter);
        // The guard takes back what this adds, also when it was too much.
        (counter.fetch_add(1, Ordering::SeqCst) < max).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Router {
    /// Sessions are made after `template`, at most `sessions_max` at a time.
    pub fn new(template: SessionSpec, program: PathBuf, sessions_max: u32, attendants: Bell) -> Self {
        let (sessions, waiting) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { template, program, sessions_max, sessions, waiting, attendants }
    }

    /// Takes care of a connection, in a thread of its own.
    pub fn take(self: &Arc<Self>, arrival: Arrival) {
        let router = Arc::clone(self);
        let started = std::thread::Builder::new().name("connection".into()).spawn(move || {
            if let Err(error) = router.handle(arrival) {
                tracing::warn!(%error, "a connection ended");
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for a connection");
        }
    }

    fn handle(&self, arrival: Arrival) -> Result<()> {
        let Some(waiting) = Counted::within(&self.waiting, WAITING_MAX) else {
            tracing::warn!("too many connections that have not said what they are for");
            return Ok(());
        };
        let (carrier, peer, fd) = identify(arrival)?;
        let (mut channel, raw) = peek_channel(fd, &peer, &carrier)?;
        channel.during("opening a connection");
        let preamble = channel.receive_preamble(&mut Vec::new())?;
        let (role, number) = preamble.check().map_err(|reason| malformed(&peer, reason))?;
        drop(waiting);
        match role {
            ChannelRole::Bulk => self.pass(number, &raw, &peer),
            ChannelRole::Control => {
                drop(channel);
                self.session(carrier, peer, raw)
            }
        }
    }

    /// Runs a session process and waits for its end (so that there are no zombies, and sessions are counted).
    fn session(&self, carrier: Carrier, peer: String, connection: OwnedFd) -> Result<()> {
        let place = Counted::within(&self.sessions, self.sessions_max);
        // The refusal must be said inside TLS, therefore by a process as well.
        let refusal =
            place.is_none().then(|| format!("there are {} sessions already (--max-sessions)", self.sessions_max));
        let spec = SessionSpec { carrier, peer, session: link::random_bits()?, refusal, ..self.template.clone() };
        let number = SessionNumber(spec.session);
        let failed = |source| TransportError::Io { operation: "start a process for", peer: spec.peer.clone(), source };
        let mut child = super::command(&spec, &self.program)
            .stdin(Stdio::from(connection))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        tracing::info!(peer = spec.peer, session = %number, pid = child.id(), "session");
        let status = child.wait().map_err(failed)?;
        tracing::info!(session = %number, %status, "session ended");
        self.attendants.ring();
        Ok(())
    }

    /// Passes a bulk connection to the session it names.
    fn pass(&self, number: SessionNumber, connection: &OwnedFd, peer: &str) -> Result<()> {
        let path = socket_path(&self.template.run, number);
        let failed = |source| TransportError::Connect { address: format!("session {number} (for {peer})"), source };
        let socket = UnixStream::connect(path).map_err(failed)?;
        pass_fd::send_fd(&socket, connection.as_fd()).map_err(failed)
    }
}

fn malformed(peer: &str, reason: String) -> TransportError {
    TransportError::Malformed { peer: peer.into(), what: "preamble", reason }
}

/// Who is there, as far as the connection itself tells.
fn identify(arrival: Arrival) -> Result<(Carrier, String, OwnedFd)> {
    match arrival {
        Arrival::Unix(socket) => {
            let uid = stream::peer_uid(&socket)?;
            stream::check_peer_uid(uid)?;
            Ok((Carrier::Unix, format!("a local process of user {uid}"), socket.into()))
        }
        Arrival::Tls(socket, from) => Ok((Carrier::Tls, from.to_string(), socket.into())),
        Arrival::Plain(socket, from) => {
            // From another host nobody is known: --allow-plain has said that this is so.
            if address::check_plain(&from, false).is_ok() {
                let here = socket.local_addr().map_err(|source| TransportError::Io {
                    operation: "look at",
                    peer: from.to_string(),
                    source,
                })?;
                stream::check_peer_uid(owner(from, here).unwrap_or(u32::MAX))?;
            }
            Ok((Carrier::Plain, from.to_string(), socket.into()))
        }
    }
}

/// User of the socket at the other end of a connection within this host (and network namespace).
fn owner(theirs: SocketAddr, ours: SocketAddr) -> Option<u32> {
    let file = if theirs.is_ipv4() { "tcp" } else { "tcp6" };
    let all = ProcDir::of_self().ok()?.net_inet(file, &mut Vec::new()).ok()?;
    // Without an inode nobody has it any more, and it looks like root's.
    all.iter().find(|s| s.local == theirs && s.remote == ours && s.inode != 0).map(|s| s.uid)
}

/// A channel for the preamble alone (it reads no byte beyond it), and the connection itself.
fn peek_channel(fd: OwnedFd, peer: &str, carrier: &Carrier) -> Result<(Channel, OwnedFd)> {
    let failed = |source| TransportError::Io { operation: "take", peer: peer.into(), source };
    let copy = fd.try_clone().map_err(failed)?;
    let stream = match carrier {
        Carrier::Tls | Carrier::Plain => Stream::tcp(copy.into()),
        Carrier::Unix | Carrier::Stdio => Stream::unix(copy.into()),
    }
    .map_err(failed)?;
    let abort = Abort::new().map_err(failed)?;
    let patience = Patience { abort, silence: PREAMBLE_TIME, deadline: Some(Instant::now() + PREAMBLE_TIME) };
    Ok((Channel::new(stream, peer, patience), fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_stops_at_the_limit_and_gives_back() {
        let counter = AtomicU32::new(0);
        let first = Counted::within(&counter, 1).unwrap();
        assert!(Counted::within(&counter, 1).is_none());
        assert_eq!(counter.load(Ordering::SeqCst), 1);
        drop(first);
        assert!(Counted::within(&counter, 1).is_some());
    }
}
