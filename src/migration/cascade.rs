//! Cascade (`--then`): whoever gets the target moves it on to further destinations, stage by stage.
//!
//! ```text
//! source                          destination                          destinations of the next stage
//! Offer, with the stages  ------> can they be reached from here?  ---> Reach: and those of the stage after that?
//!                         <------ Verdict                         <--- Reaches
//! ...
//! Done                    ------> a process of its own moves it on --> Offer, with the stages that are left
//!                         <------ Stage: how far that is               ...
//! Abort                   ------> it is rolled back, where it still can be
//! ```
//! The target is an ordinary tree of the destination's by then: neither the source nor the link has a part in what becomes of it, and
//! a link that is lost ends only what the source hears.

use super::protocol::{self, AttemptId, FromDestination, FromSource, WireFailure};
use super::send_pages::ALIVE_EVERY;
use super::source::fan::CANDIDATES_MAX;
use super::{MoveError, destination};
use crate::companion::parcel;
use crate::failure::Failure;
use crate::transport::{Abort, Channel, FrameKind, Link, TransportError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Most stages beyond the one under way.
pub const STAGES_MAX: usize = 8;

/// Most ways through all stages.
const WAYS_MAX: usize = 256;

/// Most news of the stages that follow.
const NEWS_COUNT_MAX: usize = 1024;

/// Longest destination, bytes.
const WORD_MAX: usize = 1024;

/// Largest news, bytes: as large as a message that carries them may be, about.
const NEWS_MAX: u32 = 512 << 10;

/// Between two looks of a source whether somebody wants this to end.
const LOOK: Duration = Duration::from_millis(100);

/// What the source does meanwhile.
const DURING: &str = "hearing how the target is moved on";

/// How long a process that says something takes for it, at most.
const SAYING: Duration = Duration::from_secs(10);

/// The stages that are left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onward {
    /// Of the next one; the stage of the first move is 1.
    pub number: u32,
    /// Destinations of each, as they are written on the command line.
    pub stages: Vec<Vec<String>>,
    /// The choices of the source's user, as the options' JSON.
    pub choices: serde_json::Value,
    /// The target stays where it has come to, and the destinations of the only stage are kept up to date from there.
    #[serde(default)]
    pub keep_warm: bool,
}

impl Onward {
    /// Whether it keeps the limits.
    ///
    /// # Errors
    /// Which one it does not.
    pub fn check(&self) -> Result<(), String> {
        // The first move is stage 1.
        if self.number < 2 || self.number as usize + self.stages.len() > STAGES_MAX + 2 {
            let (n, number) = (self.stages.len(), self.number);
            return Err(format!("{n} stages from stage {number} on, where {STAGES_MAX} can follow the first move"));
        }
        // Each is asked of the next ones, so that questions multiply.
        let ways = self.stages.iter().try_fold(1_usize, |ways, dests| ways.checked_mul(dests.len()));
        if ways.is_none_or(|ways| ways > WAYS_MAX) {
            return Err(format!("more than {WAYS_MAX} ways through the stages"));
        }
        if let Some(dests) = self.stages.iter().find(|dests| dests.is_empty() || dests.len() > CANDIDATES_MAX) {
            return Err(format!("a stage with {} destinations, where 1 to {CANDIDATES_MAX} are possible", dests.len()));
        }
        match self.stages.iter().flatten().find(|dest| dest.len() > WORD_MAX) {
            Some(dest) => Err(format!("a destination of {} bytes", dest.len())),
            None => Ok(()),
        }
    }

    /// What is left after the next one.
    pub fn rest(&self) -> Self {
        let stages = self.stages.iter().skip(1).cloned().collect();
        Self { number: self.number.saturating_add(1), stages, ..self.clone() }
    }

    /// For one of the destinations of this move: where the others stay warm, without itself.
    pub fn told_to(&self, place: usize) -> Self {
        let mut told = self.clone();
        if let Some(dests) = told.stages.first_mut().filter(|dests| self.keep_warm && place < dests.len()) {
            dests.remove(place);
        }
        told
    }
}

/// One stage: it begins, or the target has moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// 1 for the first move.
    pub number: u32,
    /// Its session, at the host that moves the target.
    pub session: String,
    /// That host; `None` = whoever says this.
    pub from: Option<String>,
    /// Where to.
    pub dests: Vec<String>,
    /// What has come of it; `None` = it begins.
    pub moved: Option<Moved>,
}

/// The target has moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Who has it, as the host that moved it calls that.
    pub to: String,
    /// Process id of its root there.
    pub pid: Option<i32>,
    /// From the last instruction here to the first there, microseconds.
    pub downtime_us: Option<u64>,
    /// The whole move, microseconds.
    pub total_us: Option<u64>,
}

/// Where the target is when nobody moves it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Fate {
    /// It runs at whoever says this.
    RunsHere,
    /// It runs at another host.
    RunsAt {
        /// Which.
        dest: String,
        /// Process id of its root there.
        pid: Option<i32>,
    },
    /// It is held frozen at whoever says this.
    HeldHere,
    /// It is held frozen at another host.
    HeldAt {
        /// Which.
        dest: String,
        /// Process id of its root there.
        pid: Option<i32>,
    },
    /// Not known who owns it.
    InDoubt,
    /// It is nowhere.
    Ended {
        /// Why.
        reason: String,
    },
}

/// What is heard of the stages to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "kebab-case")]
pub enum News {
    /// One begins, or is done.
    Stage(Stage),
    /// Others are kept up to date from there.
    Warm {
        /// The session.
        session: String,
        /// Who, as the host that does it calls them.
        dests: Vec<String>,
    },
    /// Something a person should know.
    Warning {
        /// In words.
        text: String,
    },
    /// That was all.
    Ended {
        /// Where it is.
        fate: Fate,
        /// Why it is not at its last stage.
        failure: Option<WireFailure>,
    },
}

/// To whoever moves the target on: that is to be rolled back, if it can be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stop;

/// A target that is this host's, and is to be moved on; the source has ended its original and knows that it runs here.
#[derive(Debug)]
pub struct Passed {
    /// Process id of its root.
    pub pid: i32,
    /// Where to.
    pub onward: Onward,
    /// The attempt that has brought it.
    pub attempt: AttemptId,
    /// The source waits here to hear how that goes.
    pub control: Channel,
}

impl Passed {
    /// Tells the source what the process at the other end of the socket says, until that has said everything. What the source says
    /// is told that process. Without a source nothing is told any more: the process goes on by itself.
    pub fn relay(mut self, mut socket: UnixStream) {
        if let Err(error) = self.relay_to(&mut socket) {
            tracing::info!(%error, "the source does not hear how the target is moved on");
        }
    }

    fn relay_to(&mut self, socket: &mut UnixStream) -> Result<(), MoveError> {
        let unheard = |source| TransportError::Io { operation: "hear", peer: "a process of ours".into(), source };
        socket.set_read_timeout(Some(SAYING)).and_then(|()| socket.set_write_timeout(Some(SAYING))).map_err(unheard)?;
        loop {
            if self.control.is_readable()? {
                self.heed(socket)?;
                continue;
            }
            let mut fds = [
                PollFd::new(self.control.readable_fd(), PollFlags::POLLIN),
                PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            ];
            let patience = PollTimeout::try_from(ALIVE_EVERY).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, patience) {
                Ok(0) => self.control.send(FrameKind::ALIVE, &[])?,
                Ok(_) if fds[1].any().unwrap_or(false) => {
                    let news = parcel::read(socket, NEWS_MAX).unwrap_or_else(|error| silent(&error));
                    let ended = matches!(news, News::Ended { .. });
                    self.say(news)?;
                    if ended {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }

    /// Tells the source why the target stays here and nothing more is done.
    pub fn refuse(mut self, failure: Failure) {
        let failure = Some(MoveError::Target(failure).to_wire());
        if let Err(error) = self.say(News::Ended { fate: Fate::RunsHere, failure }) {
            tracing::warn!(%error, "the source does not know that the target stays here");
        }
    }

    /// Says something to the source.
    ///
    /// # Errors
    /// The link's.
    pub fn say(&mut self, news: News) -> Result<(), MoveError> {
        let message = FromDestination::Stage { attempt: self.attempt, news: Box::new(news) };
        Ok(protocol::send(&mut self.control, &message)?)
    }

    fn heed(&mut self, socket: &mut UnixStream) -> Result<(), MoveError> {
        let peer = self.control.peer().to_owned();
        let Some(frame) = self.control.receive_one()? else { return Ok(()) };
        match protocol::decode(frame.body, &peer)? {
            FromSource::Abort { attempt, .. } if attempt == self.attempt => {
                if let Err(error) = parcel::write(socket, &Stop, NEWS_MAX) {
                    tracing::debug!(%error, "whoever moves the target on has ended");
                }
                Ok(())
            }
            other => Err(destination::out_of_turn(&self.control, &other, "the wish to end")),
        }
    }
}

/// Whoever moved it on has ended without a last word.
fn silent(error: &io::Error) -> News {
    let failure = WireFailure {
        what: "the process that moves the target on has ended before its time".into(),
        causes: vec![error.to_string()],
        hint: None,
        blockers: Vec::new(),
    };
    News::Ended { fate: Fate::InDoubt, failure: Some(failure) }
}

/// Says news to whoever relays them.
///
/// # Errors
/// The socket's.
pub fn say(socket: &mut UnixStream, news: &News) -> io::Result<()> {
    parcel::write(socket, news, NEWS_MAX)
}

/// Waits for the word that the target is not to be moved on; `false`: nobody will say it.
pub fn is_to_stop(socket: &mut UnixStream) -> bool {
    parcel::read::<Stop>(socket, NEWS_MAX).is_ok()
}

/// From the source: the link to the host that has the target, and moves it on.
#[derive(Debug)]
pub struct Observer {
    link: Link,
    attempt: AttemptId,
}

impl Observer {
    /// Over the link of this attempt, which has succeeded.
    pub(super) fn new(link: Link, attempt: AttemptId) -> Self {
        Self { link, attempt }
    }

    /// Hears how the target is moved on until nobody moves it any more; where it is then, and what has kept it from its last stage.
    /// What is heard before is told. Whoever moves it is told to roll back once `interrupted` is triggered.
    ///
    /// # Errors
    /// The link was lost, or silent: the target is where it was last heard of, or further.
    pub fn follow(
        mut self,
        interrupted: &Abort,
        tell: &mut dyn FnMut(News),
    ) -> Result<(Fate, Option<WireFailure>), MoveError> {
        let control = &mut self.link.control;
        control.abort_with(Abort::new().map_err(|source| MoveError::Journal { source })?);
        control.deadline(None);
        control.during(DURING);
        let (peer, mut is_told, mut heard) = (control.peer().to_owned(), false, Instant::now());
        let mut left = NEWS_COUNT_MAX;
        loop {
            if interrupted.is_triggered() && !std::mem::replace(&mut is_told, true) {
                let reason = "it is not to be moved on".to_owned();
                protocol::send(control, &FromSource::Abort { attempt: self.attempt, reason, keep: false })?;
            }
            if !control.wait_readable(LOOK)? {
                // A patience that is shorter than that is not for signs of life.
                let after = control.patience().silence.max(3 * ALIVE_EVERY);
                if heard.elapsed() > after {
                    return Err(TransportError::Silent { peer, during: DURING, after }.into());
                }
                continue;
            }
            heard = Instant::now();
            let Some(frame) = control.receive_one()? else { continue };
            match protocol::decode(frame.body, &peer)? {
                FromDestination::Stage { attempt, news } if attempt == self.attempt => match *news {
                    News::Ended { fate, failure } => return Ok((fate, failure)),
                    news if left > 0 => {
                        left -= 1;
                        tell(news);
                    }
                    _ => {
                        let got = "more of them".to_owned();
                        return Err(MoveError::OutOfTurn { peer, expected: "an end of its stages", got });
                    }
                },
                other => {
                    let got = format!("{other:?}");
                    return Err(MoveError::OutOfTurn { peer, expected: "how the target is moved on", got });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn onward(stages: Vec<Vec<String>>) -> Onward {
        Onward { number: 2, stages, choices: serde_json::Value::Null, keep_warm: false }
    }

    #[test]
    fn stages_have_limits() {
        let words = |n: usize| vec!["host".to_owned(); n];
        assert!(onward(vec![words(2); STAGES_MAX]).check().is_ok());
        assert!(onward(vec![words(CANDIDATES_MAX); 2]).check().is_ok());
        for wrong in [
            vec![words(CANDIDATES_MAX); 3],
            vec![words(1); STAGES_MAX + 1],
            vec![words(1), Vec::new()],
            vec![words(CANDIDATES_MAX + 1)],
            vec![vec!["x".repeat(WORD_MAX + 1)]],
        ] {
            assert!(onward(wrong).check().is_err());
        }
        assert!(
            [0, 1, 10, u32::MAX]
                .iter()
                .all(|number| Onward { number: *number, ..onward(vec![words(1)]) }.check().is_err())
        );
        let rest = onward(vec![words(1), words(2)]).rest();
        assert_eq!((rest.number, rest.stages), (3, vec![words(2)]));
    }

    fn passed() -> (Observer, Passed) {
        let (ours, theirs) = super::super::tests::links(0, None);
        let attempt = AttemptId([5; 16]);
        let passed = Passed { pid: 7, onward: onward(vec![vec!["c".into()]]), attempt, control: theirs.control };
        (Observer::new(ours, attempt), passed)
    }

    fn stage(moved: Option<Moved>) -> News {
        News::Stage(Stage { number: 2, session: "abcdefgh".into(), from: None, dests: vec!["c".into()], moved })
    }

    #[test]
    fn the_source_hears_what_whoever_moves_it_on_says() {
        let (observer, passed) = passed();
        let (mut mover, socket) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(|| passed.relay(socket));
        let moved = Moved { to: "c".into(), pid: Some(9), downtime_us: Some(3), total_us: None };
        let said = [stage(None), News::Warning { text: "x".into() }, stage(Some(moved))];
        let end = Fate::RunsAt { dest: "c".into(), pid: Some(9) };
        said.iter().for_each(|news| say(&mut mover, news).unwrap());
        say(&mut mover, &News::Ended { fate: end.clone(), failure: None }).unwrap();
        let mut heard = Vec::new();
        let fate = observer.follow(&Abort::new().unwrap(), &mut |news| heard.push(news)).unwrap();
        assert_eq!((fate, heard), ((end, None), said.to_vec()));
        relay.join().unwrap();
    }

    #[test]
    fn a_mover_that_is_killed_leaves_it_in_doubt() {
        let (observer, passed) = passed();
        let (mover, socket) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(|| passed.relay(socket));
        drop(mover);
        let (fate, failure) = observer.follow(&Abort::new().unwrap(), &mut |_| {}).unwrap();
        assert_eq!(fate, Fate::InDoubt);
        assert!(failure.unwrap().what.contains("ended before its time"));
        relay.join().unwrap();
    }

    #[test]
    fn an_interrupt_reaches_the_mover() {
        let (observer, passed) = passed();
        let (mut mover, socket) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(|| passed.relay(socket));
        let interrupted = Abort::new().unwrap();
        interrupted.trigger();
        let source = std::thread::spawn(move || observer.follow(&interrupted, &mut |_| {}));
        assert!(is_to_stop(&mut mover));
        say(&mut mover, &News::Ended { fate: Fate::RunsHere, failure: None }).unwrap();
        assert_eq!(source.join().unwrap().unwrap().0, Fate::RunsHere);
        relay.join().unwrap();
        assert!(!is_to_stop(&mut mover), "nobody is left who could say it");
    }

    #[test]
    fn a_source_that_is_gone_does_not_end_the_mover() {
        let (observer, passed) = passed();
        let (mut mover, socket) = UnixStream::pair().unwrap();
        drop(observer);
        passed.relay(socket);
        assert!(!is_to_stop(&mut mover));
    }
}
