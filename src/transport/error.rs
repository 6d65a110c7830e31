//! Everything that can go wrong between two hosts.

use super::frame::FrameKind;
use crate::blocker::{Code, codes};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Result of this layer.
pub type Result<T> = std::result::Result<T, TransportError>;

/// A failure of the connection, of authentication, or of a peer that breaks the rules.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection.
    #[error("Cannot connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Cannot listen.
    #[error("Cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call on an existing connection failed.
    #[error("Cannot {operation} the connection to {peer}")]
    Io {
        /// `read from`, `write to`, ...
        operation: &'static str,
        /// The other side.
        peer: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other side closed the connection.
    #[error("{peer} closed the connection while {during}")]
    Closed {
        /// The other side.
        peer: String,
        /// What was going on.
        during: &'static str,
    },
    /// Nothing was heard, or nothing could be sent, for as long as `--peer-timeout` allows.
    #[error("{peer} was silent for {after:?} while {during}")]
    Silent {
        /// The other side.
        peer: String,
        /// What was going on.
        during: &'static str,
        /// The time-out.
        after: Duration,
    },
    /// A step with a deadline was not done in time.
    #[error("{during} with {peer} was not done in time")]
    Deadline {
        /// The other side.
        peer: String,
        /// What was going on.
        during: &'static str,
    },
    /// The wait was given up by this side.
    #[error("Interrupted while {during}")]
    Aborted {
        /// What was going on.
        during: &'static str,
    },
    /// A frame longer than its kind may be.
    #[error("{peer} announced a frame {kind} of {length} bytes, more than the {limit} allowed")]
    FrameTooLong {
        /// The other side.
        peer: String,
        /// Kind of frame.
        kind: FrameKind,
        /// Bytes announced.
        length: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Not a frame at all.
    #[error("{peer} sent {found:02x?} where a frame begins")]
    NotAFrame {
        /// The other side.
        peer: String,
        /// The first bytes.
        found: [u8; 4],
    },
    /// Damaged on the way.
    #[error("The checksum of a frame {kind} from {peer} is wrong")]
    Checksum {
        /// The other side.
        peer: String,
        /// Kind of frame.
        kind: FrameKind,
    },
    /// A kind this version does not know.
    #[error("{peer} sent a frame of kind {kind}, which this version does not know")]
    UnknownKind {
        /// The other side.
        peer: String,
        /// Kind of frame.
        kind: FrameKind,
    },
    /// A known kind at the wrong time.
    #[error("{peer} sent a frame {got} where {expected} was due")]
    UnexpectedKind {
        /// The other side.
        peer: String,
        /// What would have been right.
        expected: &'static str,
        /// What came.
        got: FrameKind,
    },
    /// The other side said no, in these words.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// The other side.
        peer: String,
        /// Its words, printable.
        reason: String,
    },
    /// The two programs have no protocol version in common.
    #[error("{peer} speaks protocol {theirs}, this program {ours}: update the older one, or use --bootstrap over ssh")]
    NoCommonVersion {
        /// The other side.
        peer: String,
        /// Range of the peer.
        theirs: String,
        /// Range of this program.
        ours: String,
    },
    /// A message that could not be read.
    #[error("{peer} sent a {what} that cannot be read: {reason}")]
    Malformed {
        /// The other side.
        peer: String,
        /// Which message.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// Whatever answers is not `migrate`.
    #[error("{peer} does not answer as migrate does{}", noise_suffix(.noise))]
    NotMigrate {
        /// The other side.
        peer: String,
        /// What it printed instead, printable and cut.
        noise: String,
    },
    /// ssh ended before `migrate` answered.
    #[error("{command:?} ended with {status}{}", noise_suffix(.noise))]
    Ssh {
        /// The command that was run here.
        command: String,
        /// `exit status 255`, ...
        status: String,
        /// What it printed, printable and cut.
        noise: String,
    },
    /// There is no `migrate` on the other side.
    #[error("There is no usable {program:?} on {host}{}", noise_suffix(.noise))]
    NoProgram {
        /// The other host.
        host: String,
        /// The command that was tried there.
        program: String,
        /// What it printed, printable and cut.
        noise: String,
    },
    /// Our own binary cannot be sent.
    #[error("This program cannot be sent to {host}: {reason}")]
    Bootstrap {
        /// The other host.
        host: String,
        /// Why not.
        reason: String,
    },
    /// A TLS failure.
    #[error("TLS with {peer} failed: {reason}")]
    Tls {
        /// The other side.
        peer: String,
        /// In rustls' words.
        reason: String,
    },
    /// The peer's user may not connect here.
    #[error("User {uid} may not use this socket, only root and user {own}")]
    NotAuthorised {
        /// The peer.
        uid: u32,
        /// The user this agent runs as.
        own: u32,
    },
    /// Unprotected TCP to another host was not asked for twice.
    #[error("{address} is not this host, and tcp+plain neither encrypts nor authenticates")]
    PlainNotAllowed {
        /// The address.
        address: String,
    },
    /// A wrong line in the peers file.
    #[error("{}, line {line}: {reason}", .path.display())]
    Peers {
        /// The file.
        path: PathBuf,
        /// 1 for the first.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file of ours (key, certificate, peers, socket) that cannot be used.
    #[error("Cannot {operation} {}", .path.display())]
    File {
        /// `read`, `write`, ...
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A key or certificate file whose content cannot be used.
    #[error("{} is not usable: {reason}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

fn noise_suffix(noise: &str) -> String {
    if noise.is_empty() { String::new() } else { format!("; it printed: {noise}") }
}

impl TransportError {
    /// What to do about it, where there is something general to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram { .. } | Self::NotMigrate { .. } | Self::NoCommonVersion { .. } => Some(
                "install this version of migrate on that host (or name it with --remote COMMAND), or let --bootstrap send it over ssh".into(),
            ),
            Self::PlainNotAllowed { .. } => {
                Some("use ssh or tcp:// (mutual TLS, see migrate keygen), or insist with --allow-plain".into())
            }
            Self::Tls { .. } => Some(
                "each host needs a key (migrate keygen) and the other's fingerprint line in its peers file".into(),
            ),
            Self::Key { .. } => Some("migrate keygen makes a key and a certificate".into()),
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("migrate keygen makes a key and a certificate; the peers file names the other hosts".into())
            }
            Self::Ssh { .. } => Some("try the same ssh command by hand; it must not ask for a password (BatchMode)".into()),
            _ => None,
        }
    }

    /// What `migrate explain` says more about it.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::NoProgram { .. } | Self::NotMigrate { .. } => Some(codes::PEER_MISSING),
            Self::NoCommonVersion { .. } => Some(codes::PEER_VERSION),
            Self::Tls { .. } | Self::NotAuthorised { .. } => Some(codes::PEER_AUTH),
            Self::PlainNotAllowed { .. } => Some(codes::PLAIN),
            Self::Connect { .. } | Self::Ssh { .. } => Some(codes::PEER_UNREACHABLE),
            // It may say which, as the last word.
            Self::Refused { reason, .. } => {
                reason.strip_suffix(')').and_then(|text| text.rsplit('(').next()).and_then(|word| word.parse().ok())
            }
            error => error.is_link_lost().then_some(codes::PEER_UNREACHABLE),
        }
    }

    /// Whether the link is gone (as against a peer that broke a rule or said no).
    pub fn is_link_lost(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Closed { .. } | Self::Silent { .. } | Self::Deadline { .. })
    }
}
