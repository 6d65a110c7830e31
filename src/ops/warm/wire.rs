//! What is said over the socket of a warm-up: one request, then replies; each a length (u32, little-endian) and JSON.

use crate::companion::parcel;
use crate::ops::options::Mode;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Largest message, bytes: an account of all destinations with their reasons is far smaller.
const MESSAGE_MAX: u32 = 256 << 10;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// An account.
    Status,
    /// The target is to move: to one of these, none = of all.
    Switch {
        /// As they are written on the command line.
        dests: Vec<String>,
        /// Whether or not the exit condition holds.
        now: bool,
        /// How long the exit condition is waited for.
        timeout: Option<Duration>,
        /// How the target moves; post-copy waits for nothing.
        #[serde(default)]
        mode: Mode,
        /// How it is shown.
        settings: String,
    },
    /// The session is to end.
    Cancel,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// How far it is.
    Account(Box<Account>),
    /// Something to be shown, on standard output or standard error.
    Said {
        /// On standard output.
        out: bool,
        /// As it is shown.
        text: String,
    },
    /// What was wanted is over, with this exit code.
    Ended {
        /// As of the command.
        exit: u8,
    },
    /// The session is over, and its destinations have nothing of it.
    Cancelled,
    /// It cannot be, for this reason.
    Refused(String),
}

/// One destination of a warm-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// As it is written on the command line.
    pub dest: String,
    /// How far it is: the names of [`crate::migration::warm::Far`].
    pub state: String,
    /// Why it is out.
    pub reason: Option<String>,
    /// Rounds begun with it.
    pub rounds: u32,
    /// Bytes sent to it.
    pub bytes_sent: u64,
    /// Bytes that a switch would still have to send to it.
    pub left_bytes: Option<u64>,
    /// How long ago it had stored its last round, milliseconds.
    pub stored_age_ms: Option<u64>,
    /// The pause that a switch to it would have now, microseconds.
    pub expected_downtime_us: Option<u64>,
}

/// How far a warm-up is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The session.
    pub session: String,
    /// What is kept warm, as it was named.
    pub target: String,
    /// `beginning`, `warm`, `switching`, `in-pause`, `reconnecting`, `ended`.
    pub phase: String,
    /// How long it has been since it began, milliseconds.
    pub age_ms: u64,
    /// Bytes that the target writes a second.
    pub dirty_bytes_per_s: Option<u64>,
    /// Each destination.
    pub candidates: Vec<Candidate>,
    /// What a person should know, the newest last.
    pub notes: Vec<String>,
}

/// Sends a message.
///
/// # Errors
/// The socket's; a message that is too long.
pub fn send(to: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    parcel::write(to, message, MESSAGE_MAX)
}

/// Receives a message.
///
/// # Errors
/// The socket's; what is no such message.
pub fn receive<T: DeserializeOwned>(from: &mut UnixStream) -> io::Result<T> {
    parcel::read(from, MESSAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn messages_arrive_as_they_were_and_lengths_are_limited() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let settings = "{\"json\":true}".to_owned();
        let (dests, timeout) = (vec!["b".into()], Some(Duration::from_secs(3)));
        let switch = Request::Switch { dests, now: true, timeout, mode: Mode::Hybrid, settings };
        for request in [Request::Status, switch, Request::Cancel] {
            send(&mut a, &request).unwrap();
            assert_eq!(receive::<Request>(&mut b).unwrap(), request);
        }
        let long = Reply::Said { out: true, text: "x".repeat(MESSAGE_MAX as usize) };
        assert!(send(&mut a, &long).is_err());
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(receive::<Reply>(&mut b).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
