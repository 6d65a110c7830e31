//! What a restore does with things that reach beyond the tree: as its options say, else as the dump was told.

use super::options::{Cgroup, Cpu, ExternalUnix, Files, MoveAddress, Pids, StateOptions, Tcp};
use crate::blocker::{Blocker, codes};
use crate::collect::fd::unix::is_log;
use crate::failure::{Failure, FailureKind, Result};
use crate::image::fd::FileKind;
use crate::image::fd::tcp::{Tcp as TcpSocket, TcpState};
use crate::image::fd::unix::UnixState;
use crate::image::manifest::Wishes;
use crate::image::{Bytes, Model};
use crate::net::segment::parse_address;
use crate::net::{self, nft};
use crate::restore::fd::tcp;
use serde::{Deserialize, Serialize};

/// What a dump notes in its image for the restore. Absent = not said.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Noted {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<Pids>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Files>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<Cgroup>,
    #[serde(rename = "move-address", skip_serializing_if = "Vec::is_empty")]
    move_addresses: Vec<String>,
}

/// What is noted in an image of the options of its dump.
pub fn to_note(state: &StateOptions) -> Wishes {
    let StateOptions { cpu, pids, files, cgroup, .. } = state.clone();
    let move_addresses = state.move_addresses.iter().map(ToString::to_string).collect();
    let noted = serde_json::to_value(Noted { cpu, pids, files, cgroup, move_addresses });
    match noted {
        Ok(serde_json::Value::Object(wishes)) => wishes,
        _ => Wishes::new(),
    }
}

/// The options of a restore, completed by what its image says.
///
/// # Errors
/// The image says what no dump says.
pub fn completed(state: &StateOptions, wishes: &Wishes) -> Result<StateOptions> {
    let noted: Noted = serde_json::from_value(wishes.clone().into())
        .map_err(|e| Failure::of("what the image says of a restore cannot be read", &e).kind(FailureKind::Image))?;
    let addresses =
        noted.move_addresses.iter().map(|word| word.parse()).collect::<std::result::Result<Vec<MoveAddress>, _>>();
    let addresses = addresses
        .map_err(|e| Failure::of("what the image says of addresses cannot be read", &e).kind(FailureKind::Image))?;
    let climbs = |path: &std::path::Path| path.components().any(|part| part == std::path::Component::ParentDir);
    if let Some(Cgroup::Path(path)) = &noted.cgroup
        && (climbs(path) || !path.is_absolute())
    {
        let what = format!("the image names the cgroup {}, which is no path below a hierarchy", path.display());
        return Err(Failure::new(what).kind(FailureKind::Image));
    }
    Ok(StateOptions {
        cpu: state.cpu.or(noted.cpu),
        pids: state.pids.or(noted.pids),
        files: state.files.or(noted.files),
        cgroup: state.cgroup.clone().or(noted.cgroup),
        move_addresses: if state.move_addresses.is_empty() { addresses } else { state.move_addresses.clone() },
        ..state.clone()
    })
}

/// TCP connections that a restore ends (`--tcp close`): their peers are told when the tree runs.
#[derive(Debug, Default)]
pub struct Closed {
    connections: Vec<TcpSocket>,
}

/// Does to the connections of a saved tree what was asked for; what was asked to be refused is in the way.
pub fn apply(model: &mut Model, state: &StateOptions) -> (Closed, Vec<Blocker>) {
    let mut blockers = outside(model, state.external_unix);
    let mut closed = Closed::default();
    for file in &mut model.files {
        let FileKind::Tcp(socket) = &mut file.kind else { continue };
        if !matches!(socket.state, TcpState::Connected(_) | TcpState::Connecting) {
            continue;
        }
        let peer = parse_address(&socket.peer.0).map_or_else(|| "somebody".to_owned(), |peer| peer.to_string());
        match state.tcp {
            Tcp::Keep => {}
            Tcp::Refuse => {
                let local = parse_address(&socket.local.0).map_or_else(String::new, |local| local.to_string());
                let blocker = Blocker::new(codes::TCP_REFUSED, format!("TCP socket {local}"));
                blockers.push(blocker.because(format!("it is connected to {peer}")));
            }
            Tcp::Close => {
                closed.connections.push(socket.clone());
                // As a dump with --tcp close leaves it.
                socket.state = TcpState::Ended { recv_queue: Bytes::default(), reset: true };
            }
        }
    }
    (closed, blockers)
}

/// UNIX sockets whose peer was outside the tree.
fn outside(model: &mut Model, choice: Option<ExternalUnix>) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    for socket in &mut model.unix_sockets {
        let UnixState::External { peer_name } = &socket.state else { continue };
        if is_log(&peer_name.0) {
            continue;
        }
        match choice {
            // The dump was told to.
            None | Some(ExternalUnix::Reconnect) => {}
            Some(ExternalUnix::Close) => socket.state = UnixState::Connected(None),
            Some(ExternalUnix::Refuse) => {
                let reason = format!("it was connected to {}", peer_name.0.escape_ascii());
                let blocker = Blocker::new(codes::UNIX_OUTSIDE, format!("socket:[{}]", socket.inode));
                blockers.push(blocker.because(reason).remedy("--external-unix reconnect or close"));
            }
        }
    }
    blockers
}

impl Closed {
    /// Tells the peers: from here on they find their connections reset. What was not possible is returned for a person.
    pub fn tell_peers(self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut tuples: Vec<nft::Tuple> = Vec::new();
        let connected = |socket: &&TcpSocket| matches!(socket.state, TcpState::Connected(_));
        let connections: Vec<&TcpSocket> = self.connections.iter().filter(connected).collect();
        if connections.is_empty() {
            return warnings;
        }
        tuples.extend(connections.iter().filter_map(|c| Some((parse_address(&c.local.0)?, parse_address(&c.peer.0)?))));
        // What the dump has left to hold their segments off would hold ours off, too.
        if let Err(error) = nft::remove(None, &nft::name_of(&tuples)) {
            warnings.push(format!("segments of closed connections are still held off: {}", with_cause(&error)));
        }
        for (socket, (local, peer)) in connections.iter().zip(&tuples) {
            if let Err(error) = tcp::reset(socket) {
                let why = with_cause(&error);
                warnings.push(format!("the peer of {local} at {peer} was not told that its connection is over: {why}"));
            }
        }
        warnings
    }
}

fn with_cause(error: &net::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_that_is_not_told_does_as_the_image_says() {
        let dump = StateOptions {
            cpu: Some(Cpu::Minimal),
            pids: Some(Pids::New),
            cgroup: Some(Cgroup::Path("/jobs/7".into())),
            tcp: Tcp::Close,
            move_addresses: vec!["10.0.0.7/24@eth0:eth1".parse().unwrap()],
            ..StateOptions::default()
        };
        let wishes = to_note(&dump);
        assert_eq!(wishes.len(), 4, "only what was said: {wishes:?}");
        let told = StateOptions { pids: Some(Pids::Same), ..StateOptions::default() };
        let completed = completed(&told, &wishes).unwrap();
        let expected = StateOptions {
            cpu: Some(Cpu::Minimal),
            pids: Some(Pids::Same),
            cgroup: Some(Cgroup::Path("/jobs/7".into())),
            move_addresses: dump.move_addresses,
            ..StateOptions::default()
        };
        assert_eq!(completed, expected);
        assert!(to_note(&StateOptions::default()).is_empty());
    }

    #[test]
    fn images_that_say_what_no_dump_says_are_refused() {
        for text in [
            r#"{"pids":"all"}"#,
            r#"{"cgroup":{"path":"/a/../../etc"}}"#,
            r#"{"cgroup":{"path":"a"}}"#,
            r#"{"x":1}"#,
            r#"{"move-address":["x"]}"#,
        ] {
            let wishes: Wishes = serde_json::from_str(text).unwrap();
            let failure = completed(&StateOptions::default(), &wishes).expect_err(text);
            assert_eq!(failure.kind, FailureKind::Image, "{text}");
        }
    }
}
