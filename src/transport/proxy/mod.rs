//! A proxy passes on what a source has to say to several destinations, so that what is the same for all of them leaves the source once.
//!
//! ```text
//! source                                    proxy                                      agents of the destinations
//! link, its purpose is `relay`
//! Through { on: further proxies }  -------> a link to the next of them, by which everything goes; or, behind the last:
//!           <------------------------------ Ready
//! Open { lane, address, .. }       -------> one more connection  --------------------> preamble, TLS
//!           <------------------------------ Opened { lane }
//! CARY lane, frame                 -------> the frame, as it is  -------------------->
//! Same { lane, number, checksum }  -------> a frame that has come lately, for this one too ->
//!           <------------------------------ Written { lane, bytes }
//!           <------------------------------ CARY lane, frame     <--------------------
//! Read { lane, bytes }             -------> as much may follow
//! HangUp { lane }                  -------> what has come before is written, then the connection ends
//!           <------------------------------ HungUp { lane, reason }  <---------------- the end of the connection
//! ```
//! A *lane* is a connection between source and destination, whose ends know nothing of the proxy: their first exchange, tokens, and
//! the checksums of frames go from end to end ([`trunk`] is the source's end of it, [`serve`] the proxy's). The proxy itself is known to
//! the destination by its own key, and sees what it passes on.
//!
//! Both ends keep the frames that have been carried lately ([`recent`]): a frame that goes to a second lane is named by its number. What
//! is under way on a lane is bounded ([`WINDOW_BYTES`]) in both directions: a destination that is slow, or whom nobody reads, holds its own
//! lane up, and nothing else. A proxy keeps nothing but what is under way, in memory; when either end is gone, or the proxy is killed, every lane ends as a cut link does.
//!
//! Lanes may part behind a proxy ([`Branch`]): it is then the source of the next one, with a [`Trunk`] of its own, so that what is the same
//! for all who are behind that leaves this host once, too. And a proxy may be a destination itself: its lane leads to a session process of
//! its own host, by pipes, so that what the proxy has for others does not come a second time for itself.

mod recent;
mod serve;
mod trunk;

pub use serve::{Own, serve};
pub use trunk::{Lasting, Trunk};

use super::channel::Channel;
use super::connect::ConnectOptions;
use super::error::{Result, TransportError};
use super::frame::FrameKind;
use super::{PeerAddress, hello};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Bytes of frames that may be under way on a lane before another one follows.
const WINDOW_BYTES: u64 = 4 << 20;

/// Lanes that a proxy has at a time, at most: a connection for messages and two for pages to as many destinations as there can be.
const LANES_MAX: usize = 64;

/// The longest frame that is carried, its header included, bytes.
const FRAME_BYTES_MAX: u64 = 6 << 20;

/// Proxies in a row, at most: as many as there can be destinations.
const PROXIES_MAX: usize = 16;

/// How long a proxy waits for others, whatever the source says.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

/// The longest time between two signs of life.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// For waits that somebody else ends: who speaks over a lane knows what silence means there.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How the way to a destination goes on from the end of a trunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Branch {
    /// Further proxies, the nearest first.
    pub by: Vec<PeerAddress>,
    /// The last of them (the end of the trunk where there is none) is the destination.
    pub ends_there: bool,
}

/// How a proxy is to reach the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    connect_timeout_ms: u64,
    peer_timeout_ms: u64,
    allow_plain: bool,
    remote: String,
    bootstrap: bool,
}

impl Manner {
    /// As this host would.
    fn of(options: &ConnectOptions) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            connect_timeout_ms: ms(options.connect_timeout),
            peer_timeout_ms: ms(options.peer_timeout),
            allow_plain: options.allow_plain,
            remote: options.remote.clone(),
            bootstrap: options.bootstrap,
        }
    }

    /// By the keys and the ssh of this host.
    fn options(&self, own: &ConnectOptions) -> ConnectOptions {
        let time = |ms: u64| Duration::from_millis(ms).clamp(PATIENCE.0, PATIENCE.1);
        ConnectOptions {
            connect_timeout: time(self.connect_timeout_ms),
            peer_timeout: time(self.peer_timeout_ms),
            allow_plain: self.allow_plain,
            remote: self.remote.clone(),
            bootstrap: self.bootstrap,
            ..own.clone()
        }
    }
}

/// From the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
enum ToProxy {
    /// The first message.
    Through {
        /// Proxies behind this one, the nearest first.
        on: Vec<PeerAddress>,
        /// How they, and destinations, are reached.
        manner: Manner,
        /// It says what was read of each lane; an older one does not.
        #[serde(default)]
        tells_read: bool,
    },
    /// One more connection is wanted.
    Open {
        /// Its number, chosen by the source, never twice.
        lane: u32,
        /// Where to; [`PeerAddress::Local`] = to the host of the proxy that reads this.
        address: PeerAddress,
        /// The session there that it joins; `None` = it begins one.
        session: Option<[u8; 16]>,
        /// Proxies behind this one that it goes through, the nearest first.
        #[serde(default)]
        by: Vec<PeerAddress>,
    },
    /// The frame of this number, which both ends still have, goes on this lane as well.
    Same {
        /// The lane.
        lane: u32,
        /// As both have counted.
        number: u64,
        /// Of the frame: that both have counted alike.
        checksum: u64,
    },
    /// So many bytes of frames were read by whoever speaks on the lane.
    Read {
        /// The lane.
        lane: u32,
        /// Since the last time.
        bytes: u64,
    },
    /// Nothing more comes on this lane, and nothing that comes back is read.
    HangUp {
        /// The lane.
        lane: u32,
    },
}

/// From the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
enum FromProxy {
    /// All proxies are there.
    Ready {
        /// The last of them sends no more than is read; an older one does, and does not know [`ToProxy::Read`].
        #[serde(default)]
        heeds_read: bool,
    },
    /// The connection is there.
    Opened {
        /// The lane.
        lane: u32,
    },
    /// So many bytes of frames were written to the destination.
    Written {
        /// The lane.
        lane: u32,
        /// Since the last time.
        bytes: u64,
    },
    /// The connection has ended, or there was none.
    HungUp {
        /// The lane.
        lane: u32,
        /// Why, for a person.
        reason: String,
    },
}

fn send<T: Serialize>(channel: &mut Channel, message: &T) -> Result<()> {
    channel.send(FrameKind::MESSAGE, &hello::encode(message))
}

fn receive<T: for<'a> Deserialize<'a>>(channel: &mut Channel) -> Result<T> {
    let peer = channel.peer().to_owned();
    decode(channel.expect(FrameKind::MESSAGE, "a message")?, &peer)
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], peer: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| malformed(peer, error.to_string()))
}

fn malformed(peer: &str, reason: String) -> TransportError {
    TransportError::Malformed { peer: peer.into(), what: "message about what is passed on", reason }
}

/// A frame that is carried: its lane, and the frame.
fn carried<'b>(body: &'b [u8], peer: &str) -> Result<(u32, &'b [u8])> {
    let (lane, frame) = body.split_first_chunk().ok_or_else(|| malformed(peer, "a frame without a lane".into()))?;
    Ok((u32::from_le_bytes(*lane), frame))
}

fn send_carried(channel: &mut Channel, lane: u32, frame: &[u8]) -> Result<()> {
    channel.send_parts(FrameKind::CARRY, &[&lane.to_le_bytes(), frame])
}

/// An error with its causes, in one line.
fn in_words(error: &TransportError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Signs of life between source and proxy, in both directions.
#[derive(Debug)]
struct Pulse {
    every: Duration,
    silence: Duration,
    said: Instant,
    heard: Instant,
}

impl Pulse {
    /// For a link whose other end is lost when it was silent for so long.
    fn new(silence: Duration) -> Self {
        let (every, now) = ((silence / 4).min(ALIVE_EVERY), Instant::now());
        Self { every, silence, said: now, heard: now }
    }

    /// Waits until something can be read, and says in time that this end is alive.
    ///
    /// # Errors
    /// Nothing was heard for too long, and what can go wrong with the connection.
    fn wait(&mut self, input: &mut Channel, alive: &dyn Fn() -> Result<()>) -> Result<()> {
        loop {
            if self.said.elapsed() >= self.every {
                alive()?;
                self.said = Instant::now();
            }
            if input.wait_readable(self.every)? {
                self.heard = Instant::now();
                return Ok(());
            }
            if self.heard.elapsed() >= self.silence {
                let (peer, during) = (input.peer().to_owned(), "passing things on");
                return Err(TransportError::Silent { peer, during, after: self.silence });
            }
        }
    }
}

#[cfg(test)]
mod tests;
