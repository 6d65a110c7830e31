//! The guardian of a move at the source: a process of its own that outlives `migrate move`. If that dies in the handover, or gives
//! up asking, the guardian asks the destination for as long as it takes, and lets the original go on or ends it. In post-copy it
//! serves the memory first that the destination still lacks.
//!
//! ```text
//! migrate move ── socket ──> guardian: waits              the end of the socket is the end of the move's program
//!                 charge     who is to be asked, and how
//!                 held       what was taken from the target besides its running; a hand on the guard of its network
//!                 pages      where memory of the original is read that follows
//!                 tell       the target goes on here, and the destination could not be told
//!                 over       everything is settled: it ends
//! ```
//! The same state machine decides here and there ([`crate::migration::heir`]); what is known between the two is in the journal.

use super::fence;
use super::options::{Compress, MoveOptions, PeerOptions};
use super::places::Places;
use super::recover::Recovery;
use super::systemd::Manager;
use super::words::Dest;
use crate::collect::sysv;
use crate::companion::held::Held;
use crate::companion::lock_guard::Hand;
use crate::companion::{self, Started, parcel, spawn};
use crate::image::Pid;
use crate::migration::handover::Candidate;
use crate::migration::heir::{self, Original, Rest};
use crate::migration::journal::{self, Line, Step};
use crate::migration::points::series;
use crate::migration::protocol::AttemptId;
use crate::migration::source::{Again, Fence};
use crate::trace::pages::TargetPages;
use crate::transport::Abort;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The hidden first word of its command line.
const ENTRY: &str = "move-guardian-process";
/// A guardian that does not read is no reason for a longer pause.
const TELLING: Duration = Duration::from_millis(100);

/// What a guardian is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    attempt: AttemptId,
    /// As the user knows it.
    session: String,
    journals: PathBuf,
    /// Destinations, as they are written on the command line.
    dests: Vec<String>,
    peer: PeerOptions,
    fence: Option<String>,
    /// zstd level of memory that follows.
    level: Option<i32>,
    /// So often a state of the target comes back meanwhile.
    recoverable: Option<Duration>,
}

impl Charge {
    /// For an attempt of this move.
    pub fn of(attempt: AttemptId, options: &MoveOptions) -> Self {
        let journals = Places::here().state.join("moves");
        let (dests, session) = (options.dests.iter().map(ToString::to_string).collect(), options.session.to_string());
        let (peer, fence) = (options.peer.clone(), options.mode.fence.clone());
        let level = match options.memory.compress {
            Compress::Level(level) => Some(level.into()),
            Compress::Auto | Compress::Off => None,
        };
        let recoverable = options.mode.recoverable;
        Self { attempt, journals, session, dests, peer, fence, level, recoverable }
    }
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Charge(Box<Charge>),
    /// The target is held. `network`: a hand on the guard of its sockets and addresses comes along.
    Held {
        segments: Vec<i32>,
        network: bool,
    },
    /// Memory follows: of the address spaces that these processes have, and of so many objects whose descriptors come along.
    Pages {
        processes: Vec<i32>,
        objects: usize,
    },
    /// The target is not a destination's own, which is to be told.
    Tell,
    /// Everything is settled.
    Over,
}

/// A guardian, from the side of the move. Dropped, it takes over.
#[derive(Debug)]
pub struct Guardian {
    socket: UnixStream,
    child: Started,
}

impl Guardian {
    /// Starts one. It takes some milliseconds.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start(charge: &Charge) -> io::Result<Self> {
        let (child, socket) = spawn(ENTRY)?;
        socket.set_write_timeout(Some(TELLING))?;
        let mut guardian = Self { socket, child };
        parcel::send(&mut guardian.socket, &Word::Charge(Box::new(charge.clone())), &[])?;
        Ok(guardian)
    }

    /// The target is held from here on; what else was taken from it.
    pub fn holds(&mut self, segments: &[i32], network: Option<OwnedFd>) {
        let word = Word::Held { segments: segments.to_vec(), network: network.is_some() };
        let descriptors: Vec<OwnedFd> = network.into_iter().collect();
        if let Err(error) = parcel::send(&mut self.socket, &word, &descriptors) {
            tracing::warn!(%error, "the guardian was not told what it guards");
        }
    }

    /// Memory of the held target follows when it runs over there; where it is read.
    pub fn serves(&mut self, pages: &TargetPages) {
        let objects: io::Result<Vec<OwnedFd>> =
            pages.shmems.iter().map(|file| file.try_clone().map(OwnedFd::from)).collect();
        let told = objects.and_then(|objects| {
            let word = Word::Pages { processes: pages.mms.iter().map(|pid| pid.0).collect(), objects: objects.len() };
            parcel::send(&mut self.socket, &word, &objects)
        });
        if let Err(error) = told {
            tracing::warn!(%error, "if this program dies nobody serves the memory that follows");
        }
    }

    /// The target goes on here or elsewhere: a destination that does not know that is told as soon as it can be reached.
    pub fn tells(mut self) {
        if let Err(error) = parcel::send(&mut self.socket, &Word::Tell, &[]) {
            tracing::warn!(%error, "the guardian cannot tell the destination");
        }
    }

    /// Everything is settled: it ends.
    pub fn over(mut self) {
        match parcel::send(&mut self.socket, &Word::Over, &[]) {
            Ok(()) => self.child.wait(),
            // It has ended before; or it stands still, and finds everything settled when it goes on.
            Err(error) => tracing::debug!(%error, "the guardian was not told that it is over"),
        }
    }
}

/// Is this the first argument of a guardian?
pub fn is_entry(argument: &OsStr) -> bool {
    argument == ENTRY
}

/// Runs a guardian; the exit code. Standard input is its socket; `log` begins a log in a file.
pub fn main(log: &dyn Fn(&Path)) -> u8 {
    let Some(mut socket) = companion::leave() else { return 1 };
    let descriptors = |word: &Word| match word {
        Word::Held { network, .. } => usize::from(*network),
        Word::Pages { objects, .. } => *objects,
        Word::Charge(_) | Word::Tell | Word::Over => 0,
    };
    let (mut charge, mut taken, mut only_tells) = (None, Taken::default(), false);
    // Until it ends, with a last word or without.
    while let Ok((word, descriptors)) = parcel::receive(&mut socket, descriptors) {
        match word {
            Word::Charge(what) => charge = Some(what),
            Word::Held { segments, .. } => {
                taken.segments = segments;
                taken.network = descriptors.into_iter().next().map(Hand::of);
            }
            Word::Pages { processes, .. } => {
                let mms = processes.into_iter().map(Pid).collect();
                taken.pages = Some(TargetPages::new(mms, descriptors));
            }
            Word::Tell => only_tells = true,
            Word::Over => return 0,
        }
    }
    let Some(charge) = charge else { return 0 };
    log(&charge.journals.join(format!("{}.guardian.log", charge.attempt)));
    settle(&charge, &taken, only_tells)
}

/// What was taken from the target besides its running.
#[derive(Debug, Default)]
struct Taken {
    segments: Vec<i32>,
    network: Option<Hand>,
    /// Its memory, where some of that follows.
    pages: Option<TargetPages>,
}

fn settle(charge: &Charge, taken: &Taken, only_tells: bool) -> u8 {
    let dests: Result<Vec<Dest>, _> = charge.dests.iter().map(|dest| dest.parse()).collect();
    let (Ok(dests), Ok(abort)) = (dests, Abort::new()) else { return 1 };
    let again = |to: Candidate, ends: Option<&Abort>| {
        super::reach::again(&dests, to, (&charge.peer, None), ends.unwrap_or(&abort))
    };
    if only_tells {
        tracing::info!(attempt = %charge.attempt, "a destination does not know that the target is not its own");
        heir::tell_the_others(&charge.journals, charge.attempt, Again::new(&again));
        return 0;
    }
    tracing::warn!(attempt = %charge.attempt, "the program of this move has ended before its time");
    // What is resumed instead of the original: known before it is decided that the target is this host's.
    let newest = Mutex::new(None);
    let mut found = |line: &Line| -> Box<dyn Original + '_> {
        let held = line.held.clone().filter(|_| line.is_of_this_boot());
        Box::new(Whole { held, taken, points: series::directory(&charge.journals, line.attempt), newest: &newest })
    };
    let command = charge.fence.as_ref().map(|command| {
        |who: Candidate| {
            let dest = charge.dests.get(usize::from(who.0)).map_or("", String::as_str);
            fence::switch_off(command, dest, &charge.session) && can_go_on(charge, &newest)
        }
    });
    let fence = command.as_ref().map(|command| Fence { command, after: charge.peer.peer_timeout });
    let states = charge.recoverable.map(|every| (series::directory(&charge.journals, charge.attempt), every));
    let rest = taken.pages.as_ref().map(|pages| Rest { pages, level: charge.level, states });
    match heir::settle(&charge.journals, charge.attempt, Again::new(&again), fence, rest, &mut found) {
        Ok(settled) => tracing::warn!(?settled, "the guardian ends"),
        Err(error) => tracing::error!(%error, "the guardian cannot settle it"),
    }
    // What kept a service manager from starting the target again.
    if let (Some(manager), Ok(session)) = (Manager::here(), charge.session.parse()) {
        manager.settle(session).iter().for_each(|warning| tracing::warn!("{warning}"));
    }
    0
}

/// Whether the target can go on here when the other host is off: from the newest state that has come back, if any did.
fn can_go_on(charge: &Charge, newest: &Mutex<Option<Recovery>>) -> bool {
    let lines = journal::all(&charge.journals).unwrap_or_default();
    let line = lines.into_iter().find(|line| line.attempt == charge.attempt && line.step == Step::Committing);
    let Some(line) = line else { return true };
    match Recovery::prepare(&charge.journals, &line) {
        Ok(recovery) => {
            recovery.iter().for_each(|recovery| tracing::warn!("{}", recovery.warning()));
            *newest.lock().unwrap_or_else(PoisonError::into_inner) = recovery;
            true
        }
        Err(failure) => {
            tracing::error!("a person has to decide: {failure}");
            false
        }
    }
}

/// The original, and what was taken from it.
struct Whole<'a> {
    held: Option<Held>,
    taken: &'a Taken,
    /// Where states are that have come back.
    points: PathBuf,
    newest: &'a Mutex<Option<Recovery>>,
}

impl Original for Whole<'_> {
    fn release(&mut self) -> io::Result<()> {
        if let Some(newest) = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.taken.network.iter().for_each(|network| drop(network.forget()));
            let pid = newest.resume(self.held.as_ref(), &Places::here().run).map_err(io::Error::other)?;
            tracing::warn!(pid, "the target goes on from its newest state");
            return Ok(());
        }
        if series::newest(&self.points).is_none() {
            series::remove(&self.points);
        }
        if let Some(Err(error)) = self.taken.network.as_ref().map(Hand::give_back) {
            tracing::error!(%error, "the target goes on without its connections or addresses");
        }
        self.held.as_ref().map_or(Ok(()), Held::release)
    }

    fn end(&mut self) {
        if let Some(Err(error)) = self.taken.network.as_ref().map(Hand::forget) {
            tracing::debug!(%error, "the guard of the network has ended before");
        }
        self.held.iter().for_each(Held::kill);
        series::remove(&self.points);
        sysv::remove_left(&self.taken.segments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_reaches_the_guardian_as_it_was() {
        let peer = PeerOptions { rsh: vec!["ssh".into(), "a b".into()], ..PeerOptions::default() };
        let charge = Charge {
            attempt: AttemptId([3; 16]),
            journals: "/j".into(),
            session: "abc".into(),
            dests: vec!["user@host:22".into()],
            peer,
            fence: Some("true".into()),
            level: Some(3),
            recoverable: Some(Duration::from_secs(1)),
        };
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        parcel::send(&mut ours, &Word::Charge(Box::new(charge.clone())), &[]).unwrap();
        let (word, _) = parcel::receive::<Word>(&mut theirs, |_| 0).unwrap();
        assert!(matches!(word, Word::Charge(found) if *found == charge));
        assert!(charge.dests[0].parse::<Dest>().is_ok());
    }
}
