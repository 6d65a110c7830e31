//! The process of one session: it authenticates the peer, exchanges versions, collects the bulk connections, and serves
//! what the session is for. It is a re-exec of this program with the connection as standard input.

use super::confined::{self, User};
use crate::companion::detach;
use crate::migration::MoveError;
use crate::migration::protocol::AttemptId;
use crate::ops::{proxies, receive};
use crate::sys::pass_fd;
use crate::transport::frame::FrameKind;
use crate::transport::hello::{self, HostFacts, Purpose};
use crate::transport::keys::Identity;
use crate::transport::link::{Grant, Link};
use crate::transport::peers::Peers;
use crate::transport::preamble::{Preamble, SessionNumber};
use crate::transport::stream::{self, Stream};
use crate::transport::tls::TlsStream;
use crate::transport::wait::Patience;
use crate::transport::{Abort, Channel, TransportError};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// First argument of a session process; not a verb of the command line.
pub const ENTRY: &str = "session-process";

/// How long authentication, versions and joins may take in all.
const OPENING_TIME: Duration = Duration::from_secs(20);

/// Silence of this length means the client is lost.
const SILENCE: Duration = Duration::from_secs(30);

/// Most bulk channels of one session.
const STREAMS_MAX: u16 = 16;

/// What carries the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    /// A UNIX socket whose peer was checked, preamble read.
    Unix,
    /// A TCP connection, preamble read, TLS to come.
    Tls,
    /// A TCP connection without protection whose peer was looked at, preamble read.
    Plain,
    /// Standard input and output, preamble to come; whoever could start this program is authorised.
    Stdio,
}

/// What a session process is told by the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// What standard input is.
    pub carrier: Carrier,
    /// The client's name in messages, until TLS gives a better one.
    pub peer: String,
    /// Number of the session.
    pub session: [u8; 16],
    /// Directory of key and certificate.
    pub keys: PathBuf,
    /// Peers file.
    pub peers: PathBuf,
    /// Directory of sockets.
    pub run: PathBuf,
    /// Directory of journals.
    pub state: PathBuf,
    /// The most memory a target may have, bytes.
    pub max_memory_bytes: Option<u64>,
    /// Whom this process becomes before anything else.
    pub user: Option<User>,
    /// Whoever was authenticated by somebody else before this process, the same over each connection.
    #[serde(default)]
    pub principal: String,
    /// Say this to the client, once it is authenticated, and end.
    pub refusal: Option<String>,
    /// Nobody is served: the copy of this attempt, whose session is dead, is attended ([`super::attend`]).
    #[serde(default)]
    pub attend: Option<AttemptId>,
    /// No target that comes is moved on from here.
    #[serde(default)]
    pub refuse_then: bool,
    /// How much of its log goes to standard error: as `-v` and `-vv`.
    pub verbose: u8,
}

impl SessionSpec {
    /// As the argument that [`main`] reads.
    pub fn to_argument(&self) -> String {
        serde_json::to_string(self).expect("paths of ours are UTF-8 and keys are strings")
    }
}

/// The socket through which connections join a session.
pub fn socket_path(run: &Path, session: SessionNumber) -> PathBuf {
    run.join(format!("session-{session}.sock"))
}

/// Why a session ended before its time.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    /// Authentication, versions, the link.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A target did not come.
    #[error(transparent)]
    Move(#[from] MoveError),
}

/// Runs a session process; the exit code.
pub fn main(argument: &OsStr) -> u8 {
    let spec: SessionSpec = match argument.to_str().map(serde_json::from_str) {
        Some(Ok(spec)) => spec,
        _ => return 2,
    };
    // Without a file there is nothing that can fail.
    let _ = crate::ui::log::begin(spec.verbose, None);
    detach::leave_the_caller();
    if let Some(Err(error)) = spec.user.as_ref().map(User::become_it) {
        tracing::error!(peer = spec.peer, %error, "cannot become the user that the peers file names");
        return 5;
    }
    if let Some(attempt) = spec.attend {
        return match receive::attend(&spec.state, &spec.run, attempt) {
            Ok(()) => 0,
            // Somebody decides about it by now.
            Err(error) => {
                tracing::info!(%error, %attempt, "not attended");
                5
            }
        };
    }
    match run(&spec) {
        Ok(()) => 0,
        Err(error) => {
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
            tracing::warn!(peer = spec.peer, error = text, "session failed");
            5
        }
    }
}

fn run(spec: &SessionSpec) -> Result<(), SessionError> {
    let abort = Abort::new().map_err(|e| local("prepare", e))?;
    let door = Door::of(spec)?;
    let mut control = door.control(spec, &abort)?;
    if let Some(reason) = &spec.refusal {
        control.channel.send_preamble(Preamble::control())?;
        control.channel.refuse(reason);
        return Ok(());
    }
    if let Some(user) = control.user {
        let spec = SessionSpec { principal: control.principal, ..spec.clone() };
        return Ok(confined::run(control.channel, &spec, user, control.max_memory_bytes)?);
    }
    let grant = Grant {
        session: SessionNumber(spec.session),
        // Over ssh there is one stream.
        streams_max: if spec.carrier == Carrier::Stdio { 0 } else { STREAMS_MAX },
        max_memory_bytes: control.max_memory_bytes,
        may_send: control.may_send,
        may_receive: control.may_receive,
    };
    let joined = Joins::listen(spec, door, &abort)?;
    let rule = rule(spec, control.refuses_then);
    let link = Link::accept(control.channel, &grant, &joined.connections, OPENING_TIME)?;
    drop(joined);
    serve(link, &SessionSpec { principal: control.principal, ..spec.clone() }, rule)
}

fn local(operation: &'static str, source: io::Error) -> TransportError {
    TransportError::Io { operation, peer: "a session".into(), source }
}

/// What forbids it to move a target on that comes in this session, if something does. What a peer that is confined to a user sends has
/// no keys to show to a further host.
fn rule(spec: &SessionSpec, by_peers_file: bool) -> Option<&'static str> {
    let rules = [
        (spec.refuse_then, "--refuse-then of the agent"),
        (by_peers_file, "then=refuse in the peers file"),
        (spec.user.is_some(), "user= in the peers file"),
    ];
    rules.into_iter().find(|(holds, _)| *holds).map(|(_, rule)| rule)
}

/// What the session is for.
fn serve(link: Link, spec: &SessionSpec, rule: Option<&'static str>) -> Result<(), SessionError> {
    match link.purpose {
        Purpose::Look => Ok(look(link)?),
        Purpose::Send => {
            let limit = link.max_memory_bytes;
            Ok(receive::run(link, (&spec.state, &spec.run), (limit, &spec.principal), rule)?)
        }
        Purpose::Relay => {
            let own = own_session(&link, spec, rule);
            Ok(proxies::serve(link, (&spec.keys, &spec.peers), own)?)
        }
        Purpose::Receive => {
            link.control.refuse("this version gives no targets away on request");
            Ok(())
        }
    }
}

/// How a source that has this host pass things on has a session here itself, as one of the destinations: what holds for this session
/// holds for that one.
fn own_session(link: &Link, spec: &SessionSpec, rule: Option<&'static str>) -> Result<Vec<OsString>, String> {
    if spec.user.is_some() {
        // A program that this one starts would not have what a session of the user keeps (confined.rs).
        return Err("a destination that has user= in its peers file is connected to directly".to_owned());
    }
    let mut arguments = vec!["--peers".into(), spec.peers.clone().into_os_string()];
    if let Some(bytes) = link.max_memory_bytes {
        arguments.extend(["--max-memory".into(), bytes.to_string().into()]);
    }
    arguments.extend(rule.map(|_| "--refuse-then".into()));
    Ok(arguments)
}

/// Answers every message with fresh facts of this host, until the client closes.
fn look(mut link: Link) -> Result<(), TransportError> {
    link.control.during("waiting for a question");
    loop {
        match link.control.expect(FrameKind::MESSAGE, "a question") {
            Ok(_) => {}
            Err(TransportError::Closed { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        link.control.send(FrameKind::MESSAGE, &hello::encode(&HostFacts::here()))?;
    }
}

/// How connections of this session are authenticated.
enum Door {
    /// By the agent already.
    Open,
    /// By certificates.
    Tls(Box<(Identity, Peers)>),
}

/// An authenticated control channel, and what its peer may do.
struct Control {
    channel: Channel,
    max_memory_bytes: Option<u64>,
    may_send: bool,
    may_receive: bool,
    /// Who that is, the same over each connection.
    principal: String,
    /// Whatever it sends is this user's business.
    user: Option<User>,
    /// And is not moved on from here.
    refuses_then: bool,
}

impl Door {
    fn of(spec: &SessionSpec) -> Result<Self, TransportError> {
        match spec.carrier {
            Carrier::Unix | Carrier::Plain | Carrier::Stdio => Ok(Self::Open),
            Carrier::Tls => Ok(Self::Tls(Box::new((Identity::load(&spec.keys)?, Peers::load(&spec.peers)?)))),
        }
    }

    /// Standard input (and output, for [`Carrier::Stdio`]) as the control channel; both are then /dev/null.
    fn control(&self, spec: &SessionSpec, abort: &Abort) -> Result<Control, TransportError> {
        let input = take_stdio(true).map_err(|e| local("take the connection of", e))?;
        let output = take_stdio(false).map_err(|e| local("take the connection of", e))?;
        if spec.carrier == Carrier::Stdio {
            let stream = Stream::pipes(input, output).map_err(|e| local("take the connection of", e))?;
            let mut channel = Channel::new(stream, &spec.peer, opening(abort));
            let preamble = channel.receive_preamble(&mut Vec::new())?;
            preamble.check().map_err(|reason| TransportError::Malformed {
                peer: spec.peer.clone(),
                what: "preamble",
                reason,
            })?;
            return Ok(Control {
                channel,
                max_memory_bytes: spec.max_memory_bytes,
                may_send: spec.user.as_ref().is_none_or(|user| user.may_send),
                may_receive: spec.user.as_ref().is_none_or(|user| user.may_receive),
                principal: spec.principal.clone(),
                user: None,
                refuses_then: false,
            });
        }
        self.admit(input, spec, abort)
    }

    /// Authenticates a connection whose preamble was read.
    fn admit(&self, connection: OwnedFd, spec: &SessionSpec, abort: &Abort) -> Result<Control, TransportError> {
        let taken = |e| local("take a connection of", e);
        match self {
            Self::Open => {
                let stream = match spec.carrier {
                    Carrier::Plain => Stream::tcp(connection.into()),
                    _ => Stream::unix(connection.into()),
                }
                .map_err(taken)?;
                let channel = Channel::new(stream, &spec.peer, opening(abort));
                let max_memory_bytes = spec.max_memory_bytes;
                let (may_send, may_receive, refuses_then) = (true, true, false);
                let principal = spec.principal.clone();
                Ok(Control { channel, max_memory_bytes, may_send, may_receive, principal, user: None, refuses_then })
            }
            Self::Tls(trust) => {
                let socket = TcpStream::from(connection);
                // Sets what every TCP stream of ours has; the TLS stream below shares the socket.
                Stream::tcp(socket.try_clone().map_err(taken)?).map_err(taken)?;
                let (stream, peer) = TlsStream::accept(socket, &trust.0, &trust.1, &opening(abort), &spec.peer)?;
                let name = format!("{} ({})", peer.name, spec.peer);
                let mut channel = Channel::new(Stream::Tls(Box::new(stream)), name, opening(abort));
                let named = |name: &str| User::named(name, peer.may_send(), peer.may_receive());
                let user = match peer.user.as_deref().map(named) {
                    Some(Err(error)) => {
                        channel.send_preamble(Preamble::control())?;
                        channel.refuse("the user that the peers file here names for this host cannot be found");
                        return Err(error);
                    }
                    user => user.and_then(Result::ok),
                };
                let limits = [spec.max_memory_bytes, peer.max_memory_bytes];
                Ok(Control {
                    channel,
                    max_memory_bytes: limits.into_iter().flatten().min(),
                    may_send: peer.may_send(),
                    may_receive: peer.may_receive(),
                    principal: peer.fingerprint.to_string(),
                    user,
                    refuses_then: peer.refuses_then,
                })
            }
        }
    }
}

fn opening(abort: &Abort) -> Patience {
    Patience { abort: abort.clone(), silence: SILENCE, deadline: Some(Instant::now() + OPENING_TIME) }
}

/// A copy of standard input or output, close-on-exec; the standard descriptor becomes /dev/null, so that nothing which is
/// started later holds the connection open.
fn take_stdio(input: bool) -> io::Result<OwnedFd> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    if input {
        let copy = io::stdin().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdin(&null)?;
        Ok(copy)
    } else {
        let copy = io::stdout().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(copy)
    }
}

/// Connections that the agent passes, authenticated. Dropped: the socket is gone, the thread ends.
struct Joins {
    connections: Receiver<Channel>,
    path: Option<PathBuf>,
    stop: Abort,
}

impl Joins {
    fn listen(spec: &SessionSpec, door: Door, abort: &Abort) -> Result<Self, TransportError> {
        let stop = Abort::new().map_err(|e| local("prepare", e))?;
        let (sender, connections) = bounded(STREAMS_MAX.into());
        if spec.carrier == Carrier::Stdio {
            return Ok(Self { connections, path: None, stop });
        }
        let path = socket_path(&spec.run, SessionNumber(spec.session));
        let failed = |source| TransportError::Listen { address: path.display().to_string(), source };
        let listener = super::listen::bind_unix(&path).map_err(failed)?;
        let (spec, abort, until) = (spec.clone(), abort.clone(), stop.clone());
        std::thread::Builder::new()
            .name("joins".into())
            .spawn(move || admit_all(&listener, &door, &spec, &abort, &until, &sender))
            .map_err(failed)?;
        Ok(Self { connections, path: Some(path), stop })
    }
}

impl Drop for Joins {
    fn drop(&mut self) {
        self.stop.trigger();
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

fn admit_all(
    listener: &UnixListener,
    door: &Door,
    spec: &SessionSpec,
    abort: &Abort,
    until: &Abort,
    sender: &Sender<Channel>,
) {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(until.fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err_and(|errno| errno != nix::errno::Errno::EINTR)
            || until.is_triggered()
        {
            return;
        }
        let admitted = accept_passed(listener).and_then(|connection| door.admit(connection, spec, abort));
        match admitted {
            Ok(control) => {
                if sender.send_timeout(control.channel, OPENING_TIME).is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "a connection did not join"),
        }
    }
}

/// The connection that the agent passes; anybody else is turned away.
fn accept_passed(listener: &UnixListener) -> Result<OwnedFd, TransportError> {
    let failed = |e| local("take a connection of", e);
    let (socket, _) = listener.accept().map_err(failed)?;
    stream::check_peer_uid(stream::peer_uid(&socket)?)?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    pass_fd::receive_fd(&socket).map_err(failed)
}
