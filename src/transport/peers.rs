//! The peers file: who may connect, and what for. One peer a line, as in authorized_keys:
//!
//! ```text
//! SHA256:... NAME [user=U] [max-memory=SIZE] [only=receive|send] [then=refuse]
//! ```
//! Empty lines and lines that begin with `#` are skipped. Who may send without `user=` can run anything as the user the
//! agent runs as.

use super::error::{Result, TransportError};
use super::keys::Fingerprint;
use std::fs;
use std::path::Path;

/// Longest peers file that is read, bytes.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// A peer that may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Of its certificate.
    pub fingerprint: Fingerprint,
    /// What it is called in messages.
    pub name: String,
    /// Targets it sends run as this user; `None` = as any.
    pub user: Option<String>,
    /// Most memory a target it sends may have, bytes; `None` = no limit of its own.
    pub max_memory_bytes: Option<u64>,
    /// What it may do.
    pub only: Direction,
    /// No target it sends is moved on from here.
    pub refuses_then: bool,
}

/// What a peer may do with this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Send targets here and receive targets from here.
    Both,
    /// It only receives: targets go from here to it.
    Receive,
    /// It only sends: targets come from it.
    Send,
}

impl Peer {
    /// Whether it may send targets to this host.
    pub fn may_send(&self) -> bool {
        self.only != Direction::Receive
    }

    /// Whether it may receive targets from this host.
    pub fn may_receive(&self) -> bool {
        self.only != Direction::Send
    }
}

/// All peers.
#[derive(Debug, Clone, Default)]
pub struct Peers(Vec<Peer>);

impl Peers {
    /// Reads the file. One wrong line makes the whole file wrong: a limit that was mistyped must not be ignored.
    pub fn load(path: &Path) -> Result<Self> {
        let failed = |source| TransportError::File { operation: "read", path: path.into(), source };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > FILE_LIMIT_BYTES {
            return Err(failed(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "more than 1 MiB")));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|(line, reason)| TransportError::Peers { path: path.into(), line, reason })
    }

    /// Reads the text of the file; the error names the line, 1 for the first.
    pub fn parse(text: &str) -> std::result::Result<Self, (usize, String)> {
        let mut peers: Vec<Peer> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let peer = parse_line(line).map_err(|reason| (index + 1, reason))?;
            if peers.iter().any(|other| other.fingerprint == peer.fingerprint) {
                return Err((index + 1, format!("{} stands here twice", peer.fingerprint)));
            }
            peers.push(peer);
        }
        Ok(Self(peers))
    }

    /// The peer with this fingerprint.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<&Peer> {
        self.0.iter().find(|peer| peer.fingerprint == *fingerprint)
    }
}

/// What may stand behind the name.
const OPTIONS: &str = "user=, max-memory=, only=, then=";

fn parse_line(line: &str) -> std::result::Result<Peer, String> {
    let mut words = line.split_whitespace();
    let fingerprint = words.next().unwrap_or_default().parse().map_err(str::to_owned)?;
    let name = words.next().ok_or("the name of the peer is missing")?;
    if name.contains('=') {
        return Err(format!("{name:?} stands where the name of the peer is due"));
    }
    let (name, only) = (name.into(), Direction::Both);
    let mut peer = Peer { fingerprint, name, user: None, max_memory_bytes: None, only, refuses_then: false };
    let mut seen: Vec<&str> = Vec::new();
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no option; there are {OPTIONS}"))?;
        if seen.contains(&key) {
            return Err(format!("{key}= stands twice"));
        }
        seen.push(key);
        match (key, value) {
            (_, "") => return Err(format!("{key}= has no value")),
            ("user", user) => peer.user = Some(user.into()),
            ("max-memory", size) => {
                peer.max_memory_bytes =
                    Some(parse_size(size).ok_or_else(|| format!("{size:?} is no size, as in 512MiB or 4GiB"))?)
            }
            ("only", "receive") => peer.only = Direction::Receive,
            ("only", "send") => peer.only = Direction::Send,
            ("only", other) => return Err(format!("only={other} is neither receive nor send")),
            ("then", "refuse") => peer.refuses_then = true,
            ("then", other) => return Err(format!("then={other} is not then=refuse")),
            (other, _) => return Err(format!("{other}= is no option; there are {OPTIONS}")),
        }
    }
    Ok(peer)
}

/// Whole bytes, or with one of the units of the command line.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1u64 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "SHA256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0";
    const B: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    #[test]
    fn lines_of_the_contract() {
        let text = format!("# hosts\n\n{A} alpha user=web max-memory=4GiB only=send then=refuse\n  {B} beta\n");
        let peers = Peers::parse(&text).unwrap();
        let alpha = peers.find(&A.parse().unwrap()).unwrap();
        assert_eq!(
            (alpha.name.as_str(), alpha.user.as_deref(), alpha.max_memory_bytes),
            ("alpha", Some("web"), Some(4 << 30))
        );
        assert!(alpha.may_send() && !alpha.may_receive());
        let beta = peers.find(&B.parse().unwrap()).unwrap();
        assert!(beta.may_send() && beta.may_receive());
        assert!(alpha.refuses_then && !beta.refuses_then);
    }

    #[test]
    fn wrong_lines_are_refused_by_number() {
        for (wrong, why) in [
            (format!("{A}\n"), "name"),
            ("SHA256:short a\n".into(), "43 characters"),
            (format!("{A} user=web\n"), "name of the peer"),
            (format!("{A} a user=web user=root\n"), "twice"),
            (format!("{A} a only=look\n"), "neither"),
            (format!("{A} a then=allow\n"), "then=refuse"),
            (format!("{A} a max-memory=lots\n"), "no size"),
            (format!("{A} a max-memory=99999999999TiB\n"), "no size"),
            (format!("{A} a max-memroy=1GiB\n"), "no option"),
            (format!("{A} a user=\n"), "no value"),
            (format!("{A} a\n{A} b\n"), "twice"),
        ] {
            let (line, reason) = Peers::parse(&wrong).unwrap_err();
            assert!(reason.contains(why), "{wrong:?}: {reason}");
            assert_eq!(line, wrong.lines().count(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(.|\n){0,200}") {
            let _ = Peers::parse(&text);
        }
    }
}
