//! A link: one control channel and the bulk channels that joined it, after the first exchange.

use super::channel::Channel;
use super::error::{Result, TransportError};
use super::frame::FrameKind;
use super::hello::{self, ClientHello, HostFacts, PROTOCOL, Purpose, STREAMS_MAX, ServerHello};
use super::preamble::{Preamble, SessionNumber};
use super::proxy::Lasting;
use super::ssh::SshChild;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use ring::rand::{SecureRandom, SystemRandom};
use std::time::{Duration, Instant};

/// Version of this program, as told to peers.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A session's connections. Field order is drop order: the ssh child ends after its pipes are closed, and what was said through a
/// proxy is on its way before nobody waits for that.
#[derive(Debug)]
pub struct Link {
    /// Messages; and bulk data where `bulk` is empty.
    pub control: Channel,
    /// Bulk data only; each may go to a thread of its own.
    pub bulk: Vec<Channel>,
    /// Protocol version both speak.
    pub protocol: u16,
    /// Version of the other program.
    pub peer_program: String,
    /// The other host.
    pub peer: HostFacts,
    /// What the session is for.
    pub purpose: Purpose,
    /// The most memory a target may have on the server, bytes.
    pub max_memory_bytes: Option<u64>,
    /// Number of the session.
    pub session: SessionNumber,
    /// The ssh that carries the control channel.
    pub ssh: Option<SshChild>,
    /// It goes through a proxy.
    pub proxy: Option<Lasting>,
}

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What the session is for.
    pub purpose: Purpose,
    /// Bulk channels, if the server grants them.
    pub streams: u16,
}

/// What a server grants.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Number of the session; further connections are routed by it.
    pub session: SessionNumber,
    /// Most bulk channels; 0 where there can be but one stream.
    pub streams_max: u16,
    /// The most memory a target may have here, bytes.
    pub max_memory_bytes: Option<u64>,
    /// Whether this client may send targets.
    pub may_send: bool,
    /// Whether this client may fetch targets.
    pub may_receive: bool,
}

/// 128 random bits. Fails only where the kernel gives none.
pub fn random_bits() -> Result<[u8; 16]> {
    let mut bits = [0; 16];
    SystemRandom::new().fill(&mut bits).map_err(|_| TransportError::Io {
        operation: "make a random token for",
        peer: "a session".into(),
        source: std::io::Error::other("the kernel gave no random numbers"),
    })?;
    Ok(bits)
}

impl Link {
    /// The client's part: the server's preamble has been read. `connect_bulk` makes one more connection, its preamble
    /// sent and TLS done.
    pub fn open(
        mut control: Channel,
        request: Request,
        ssh: Option<SshChild>,
        connect_bulk: &mut dyn FnMut(SessionNumber) -> Result<Channel>,
    ) -> Result<Self> {
        control.during("exchanging versions");
        let hello = ClientHello {
            protocol: PROTOCOL,
            program: PROGRAM_VERSION.into(),
            host: HostFacts::here(),
            purpose: request.purpose,
            streams: request.streams.min(STREAMS_MAX),
        };
        control.send(FrameKind::HELLO, &hello::encode(&hello))?;
        let peer = control.peer().to_owned();
        let answer: ServerHello = hello::decode(control.expect(FrameKind::HELLO, "the first message")?, &peer)?;
        let Some(protocol) = answer.chosen.filter(|chosen| (PROTOCOL.min..=PROTOCOL.max).contains(chosen)) else {
            return Err(TransportError::NoCommonVersion {
                peer,
                theirs: answer.protocol.to_string(),
                ours: PROTOCOL.to_string(),
            });
        };
        if answer.streams > hello.streams {
            return Err(TransportError::Malformed {
                peer,
                what: "first message",
                reason: "more streams than asked for".into(),
            });
        }
        let mut bulk = Vec::with_capacity(answer.streams.into());
        for _ in 0..answer.streams {
            let mut channel = connect_bulk(answer.session())?;
            channel.during("joining the session");
            channel.send(FrameKind::JOIN, &answer.token)?;
            channel.expect(FrameKind::JOIN, "the answer to a join")?;
            channel.deadline(None);
            channel.stream().tune_for_bulk(channel.patience().silence);
            bulk.push(channel);
        }
        control.deadline(None);
        Ok(Self {
            control,
            bulk,
            protocol,
            peer_program: answer.program.clone(),
            session: answer.session(),
            max_memory_bytes: answer.max_memory_bytes,
            peer: answer.host,
            purpose: request.purpose,
            ssh,
            proxy: None,
        })
    }

    /// The server's part: the client's preamble has been read and TLS is done. Bulk connections, likewise far, come from
    /// `joins`. All is to be done within `limit`.
    pub fn accept(mut control: Channel, grant: &Grant, joins: &Receiver<Channel>, limit: Duration) -> Result<Self> {
        control.deadline(Some(limit));
        control.during("exchanging versions");
        control.send_preamble(Preamble::control())?;
        let peer = control.peer().to_owned();
        let asked: ClientHello = hello::decode(control.expect(FrameKind::HELLO, "the first message")?, &peer)?;
        let refusal = match asked.purpose {
            Purpose::Send | Purpose::Relay if !grant.may_send => {
                Some("the peers file here lets this host only receive")
            }
            Purpose::Receive if !grant.may_receive => Some("the peers file here lets this host only send"),
            _ => None,
        };
        if let Some(reason) = refusal {
            control.refuse(reason);
            return Err(TransportError::Refused { peer: "This host".into(), reason: format!("{reason} ({peer})") });
        }
        let token = random_bits()?;
        let chosen = PROTOCOL.common(asked.protocol);
        let answer = ServerHello {
            protocol: PROTOCOL,
            chosen,
            program: PROGRAM_VERSION.into(),
            host: HostFacts::here(),
            streams: asked.streams.min(grant.streams_max).min(STREAMS_MAX),
            session: grant.session.0,
            token,
            max_memory_bytes: grant.max_memory_bytes,
        };
        control.send(FrameKind::HELLO, &hello::encode(&answer))?;
        let Some(protocol) = chosen else {
            return Err(TransportError::NoCommonVersion {
                peer,
                theirs: asked.protocol.to_string(),
                ours: PROTOCOL.to_string(),
            });
        };
        let bulk = take_joins(&control, answer.streams, &token, joins, Instant::now() + limit)?;
        control.deadline(None);
        Ok(Self {
            control,
            bulk,
            protocol,
            peer_program: asked.program,
            session: grant.session,
            max_memory_bytes: grant.max_memory_bytes,
            peer: asked.host,
            purpose: asked.purpose,
            ssh: None,
            proxy: None,
        })
    }

    /// Bytes sent on all channels, headers included.
    pub fn bytes_sent(&self) -> u64 {
        self.control.bytes_sent() + self.bulk.iter().map(Channel::bytes_sent).sum::<u64>()
    }

    /// Both ends are on one running kernel.
    pub fn is_same_host(&self) -> bool {
        let here = HostFacts::here();
        !here.boot_id.is_empty() && here.boot_id == self.peer.boot_id
    }
}

/// Collects the bulk channels that show the token; others are refused and do not count.
fn take_joins(
    control: &Channel,
    count: u16,
    token: &[u8; 16],
    joins: &Receiver<Channel>,
    until: Instant,
) -> Result<Vec<Channel>> {
    let mut bulk = Vec::with_capacity(count.into());
    while bulk.len() < count.into() {
        if control.patience().abort.is_triggered() {
            return Err(TransportError::Aborted { during: "waiting for bulk connections" });
        }
        // Short, so that an abort is seen.
        let next = joins.recv_deadline(until.min(Instant::now() + Duration::from_millis(100)));
        let mut channel = match next {
            Ok(channel) => channel,
            Err(RecvTimeoutError::Timeout) if Instant::now() < until => continue,
            Err(_) => {
                return Err(TransportError::Deadline {
                    peer: control.peer().into(),
                    during: "joining the bulk connections",
                });
            }
        };
        channel.during("joining the session");
        match channel.expect(FrameKind::JOIN, "a join") {
            Ok(shown) if equal_in_constant_time(shown, token) => {}
            Ok(_) => {
                channel.refuse("wrong token");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection did not join");
                continue;
            }
        }
        channel.send(FrameKind::JOIN, &[])?;
        channel.deadline(None);
        channel.stream().tune_for_bulk(channel.patience().silence);
        bulk.push(channel);
    }
    Ok(bulk)
}

fn equal_in_constant_time(a: &[u8], b: &[u8; 16]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
