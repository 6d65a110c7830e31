//! One move in a process of its own: a tracer that is killed, or finds a bug of ours, is one move's.
//!
//! ```text
//! migrate evacuate ── charge ──> mover: the move
//!                  <── what is to be shown, how far it is, how it has ended
//!                  ── end of what is written ──> rolls back, until COMMIT
//! ```
//! The end of the command itself is the end of what it writes, too.

use crate::companion::{self, Started, detach, parcel, spawn};
use crate::failure::{Failure, FailureKind, Result};
use crate::migration::switchover::forecast::Forecast;
use crate::ops::attempts::{self, Further};
use crate::ops::options::MoveOptions;
use crate::ops::outcome::{Outcome, Where};
use crate::ops::warm::{Front, Say, Shown};
use crate::ops::{Event, Events, interrupt};
use crate::sys::fd;
use crate::transport::Abort;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The hidden first word of its command line.
const ENTRY: &str = "evacuate-move-process";

/// Between two words of how far the memory is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Words of movers that may wait to be heard.
const BACKLOG: usize = 1024;

/// Between two looks whether somebody wants this to end.
const LOOK: Duration = Duration::from_millis(100);

/// What a mover is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Charge {
    pub(super) moves: MoveOptions,
    /// `--retries`, `--retry-timeout`.
    pub(super) further: Further,
    /// How the command shows things; `None`: this is not shown.
    pub(super) shows: Option<Shows>,
}

/// How things are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shows {
    /// As a [`Front`] of the command has written it.
    pub settings: String,
    /// The end of each move, too, as that of a move by itself.
    pub ends: bool,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Far {
    /// Bytes of memory or files done in this round, of how many; 0 = unknown.
    Sent {
        /// Done, bytes.
        done: u64,
        /// In all, bytes.
        total: u64,
    },
    /// So many rounds have ended.
    Round {
        /// Number of the last one.
        number: u32,
        /// How long the pause would be now.
        expected_pause: Option<Duration>,
    },
    /// The target stands still.
    Frozen,
    /// It runs over there; memory may follow.
    Switched {
        /// How long it stood still.
        downtime: Duration,
    },
}

/// What has become of a target that has moved, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Its root where it is now, as that host sees it.
    pub pid: Option<i32>,
    /// How it moved.
    pub mode: Option<String>,
    /// How long it stood still.
    pub downtime: Option<Duration>,
    /// Bytes sent.
    pub bytes: Option<u64>,
    /// Pages that were named by their digest, for the destination has had their content before, from this tree or another one.
    pub named_pages: Option<u64>,
    /// What a move would cost that was only asked about.
    pub forecast: Option<Forecast>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl Moved {
    fn of(outcome: &Outcome) -> Self {
        Self {
            pid: outcome.pid,
            mode: outcome.mode.map(str::to_owned),
            downtime: outcome.downtime.filter(|_| matches!(outcome.place, Where::Dest(_))),
            bytes: outcome.bytes,
            named_pages: outcome.named_pages,
            forecast: outcome.forecast,
            notes: outcome.notes.clone(),
        }
    }
}

/// What a mover says.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Said { out: bool, text: String },
    Far(Far),
    Ended(std::result::Result<Moved, Failure>),
}

/// What is heard of a mover.
#[derive(Debug)]
pub(super) enum News {
    /// Something to be shown, on standard output (`true`) or standard error.
    Said(bool, String),
    /// It is further than before.
    Far(Far),
    /// It has come to its end.
    Ended(Result<Moved>),
    /// Its process has ended without a word: the journal knows more.
    Lost,
}

/// Moves that are under way, each under a number of the caller's.
#[derive(Debug)]
pub(super) struct Movers {
    running: BTreeMap<usize, UnixStream>,
    tells: SyncSender<(usize, News)>,
    news: Receiver<(usize, News)>,
    is_stopped: bool,
}

impl Movers {
    /// None yet.
    pub(super) fn new() -> Self {
        let (tells, news) = mpsc::sync_channel(BACKLOG);
        Self { running: BTreeMap::new(), tells, news, is_stopped: false }
    }

    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// Starts one.
    ///
    /// # Errors
    /// No process can be made.
    pub(super) fn start(&mut self, number: usize, charge: &Charge) -> io::Result<()> {
        let (child, mut socket) = spawn(ENTRY)?;
        let hears = socket.try_clone()?;
        parcel::send(&mut socket, charge, &[])?;
        let tells = self.tells.clone();
        std::thread::Builder::new().name("mover".to_owned()).spawn(move || hear(hears, child, number, &tells))?;
        self.running.insert(number, socket);
        Ok(())
    }

    /// The next thing that is heard; `None`: nobody is under way. Once `abort` is triggered all of them are told to roll back.
    pub(super) fn next(&mut self, abort: &Abort) -> Option<(usize, News)> {
        while !self.running.is_empty() {
            if abort.is_triggered() && !self.is_stopped {
                self.is_stopped = true;
                // One that has ended just now does not mind.
                self.running.values().for_each(|socket| drop(socket.shutdown(Shutdown::Write)));
            }
            match self.news.recv_timeout(LOOK) {
                Ok((number, news)) => {
                    if matches!(news, News::Ended(_) | News::Lost) {
                        self.running.remove(&number);
                    }
                    return Some((number, news));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }
}

/// Passes on what a mover says, until its process has ended.
fn hear(mut socket: UnixStream, child: Started, number: usize, tells: &SyncSender<(usize, News)>) {
    let mut ended = None;
    while let Ok((word, _)) = parcel::receive::<Word>(&mut socket, |_| 0) {
        let news = match word {
            Word::Said { out, text } => News::Said(out, text),
            Word::Far(far) => News::Far(far),
            Word::Ended(result) => {
                ended = Some(result);
                continue;
            }
        };
        // Whoever does not listen any more has ended as a whole.
        let _ = tells.send((number, news));
    }
    child.wait();
    let _ = tells.send((number, ended.map_or(News::Lost, News::Ended)));
}

/// Is this the first argument of a mover?
pub fn is_entry(argument: &OsStr) -> bool {
    argument == ENTRY
}

/// Runs a mover; the exit code. Standard input is the socket of the command that has started it.
pub fn main(front: &'static dyn Front) -> u8 {
    if fd::close_from(3).is_err() {
        return 1;
    }
    // Commands that reach other hosts may be named by where they are from here.
    detach::leave_the_session();
    let Some(abort) = front.watch() else { return 1 };
    let Ok(mut socket) = companion::starter() else { return 1 };
    let Ok(Charge { moves, further, shows }) = companion::charge(&mut socket) else { return 1 };
    // Whoever has started it may be stopped for a while, by Ctrl-Z.
    let Ok(()) = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None)) else { return 1 };
    let Ok(hears) = socket.try_clone() else { return 1 };
    if !moves.dry_run {
        front.log(moves.session);
    }
    let ends = abort.clone();
    if std::thread::Builder::new().name("command".to_owned()).spawn(move || end_with(hears, &ends)).is_err() {
        return 1;
    }
    let socket = Arc::new(Mutex::new(socket));
    let (shown, shows_end) = match shows {
        Some(Shows { settings, ends }) => {
            let says = says_over(socket.clone());
            (Some(front.begin_part(&settings, "move", moves.session, &moves.target.to_string(), says)), ends)
        }
        None => (None, false),
    };
    let relay = Relay { socket, shown, told: Mutex::new(Instant::now()) };
    let result = attempts::run(&moves, &further, &relay, &abort);
    relay.end(result, shows_end);
    0
}

/// Until the command has ended, or wants this move to end.
fn end_with(mut socket: UnixStream, abort: &Abort) {
    // Nothing more is to come.
    let _ = socket.read(&mut [0]);
    interrupt::request(FailureKind::Interrupted);
    abort.trigger();
}

fn says_over(socket: Arc<Mutex<UnixStream>>) -> Say {
    Box::new(move |out, text| tell(&socket, &Word::Said { out, text: text.to_owned() }))
}

/// A move goes on where nobody hears of it any more.
fn tell(socket: &Mutex<UnixStream>, word: &Word) {
    let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = parcel::send(&mut socket, word, &[]) {
        tracing::debug!(%error, "the command does not listen");
    }
}

/// Tells the command what happens.
struct Relay {
    socket: Arc<Mutex<UnixStream>>,
    shown: Option<Box<dyn Shown>>,
    /// When it was told last how far the memory is.
    told: Mutex<Instant>,
}

impl Relay {
    fn is_time(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told.elapsed() >= TELL_EVERY;
        if is_time {
            *told = Instant::now();
        }
        is_time
    }

    fn end(mut self, result: Result<Outcome>, shows_end: bool) {
        let ended = Word::Ended(result.as_ref().map(Moved::of).map_err(Failure::clone));
        if let Some(shown) = self.shown.take().filter(|_| shows_end) {
            shown.finish(result);
        }
        tell(&self.socket, &ended);
    }
}

impl Events for Relay {
    fn event(&self, event: Event) {
        let far = match &event {
            Event::Progress { done, total, .. } if self.is_time() => Some(Far::Sent { done: *done, total: *total }),
            Event::Round { number, expected_pause, .. } => {
                Some(Far::Round { number: *number, expected_pause: *expected_pause })
            }
            Event::Frozen => Some(Far::Frozen),
            Event::Switched { downtime } => Some(Far::Switched { downtime: *downtime }),
            _ => None,
        };
        if let Some(far) = far {
            tell(&self.socket, &Word::Far(far));
        }
        if let Some(shown) = &self.shown {
            shown.event(event);
        }
    }
}
