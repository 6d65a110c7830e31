//! The process of a warm-up.
//!
//! ```text
//! main thread     the move, which does not end its rounds: again from nothing where all destinations are lost
//! socket thread   one request after the other, at most for some seconds each
//!   switch thread looks whether the command that has asked is still there, and whether its time is over
//! ```

use super::wire::{self, Account, Candidate, Reply, Request, States};
use super::{Charge, ENTRY, Front, PATIENCE, Say, Shown, socket_path};
use crate::companion;
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::image::Pid;
use crate::migration::warm::{self, Far, Rest, Standing, Told, Warm};
use crate::ops::options::{Mode, MoveOptions, WarmOptions};
use crate::ops::outcome::{Outcome, State, Where};
use crate::ops::places::Places;
use crate::ops::words::SessionId;
use crate::ops::{Event, Events, move_, paths, target};
use crate::proc::ProcDir;
use crate::transport::Abort;
use crate::transport::backoff::Backoff;
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Where all destinations are lost they are looked for again after this time, then after longer ones.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Between two looks whether somebody who waits is still there.
const LOOK_MS: u16 = 100;

/// Notes that are kept.
const NOTES: usize = 16;

/// How long the last words of a session are kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Is this the first argument of a session process?
pub fn is_entry(argument: &OsStr) -> bool {
    argument == ENTRY
}

/// Where a session says how it has ended.
pub(super) fn end_path(state: &Path, session: &str) -> PathBuf {
    state.join("warm").join(format!("{session}.json"))
}

/// Runs a session process; the exit code. Standard input is the socket of the command that has started it.
pub fn main(front: &'static dyn Front) -> u8 {
    let Some(mut starter) = companion::leave() else { return 1 };
    let Some(abort) = front.watch() else { return 1 };
    let Ok(Charge { options, settings }) = companion::charge(&mut starter) else { return 1 };
    front.log(options.moves.session);
    let relay = Arc::new(Relay::default());
    let session = Arc::new(Session::new(options, relay, abort));
    session.attach(front, "warm", &settings, starter);
    let listener = match session.listen() {
        Ok(listener) => listener,
        Err(error) => {
            let failure = Failure::of("the session cannot be spoken to", &error);
            session.relay.finish(Err(failure.target(TargetState::Running)));
            return 1;
        }
    };
    let served = session.clone();
    let serving = std::thread::Builder::new().name("requests".to_owned());
    if serving.spawn(move || served.serve(&listener, front)).is_ok() {
        session.keep_warm();
    }
    session.end();
    0
}

/// Whoever is shown what happens now.
#[derive(Default)]
struct Relay {
    shown: Mutex<Option<(Box<dyn Shown>, UnixStream)>>,
    notes: Mutex<VecDeque<String>>,
}

impl Relay {
    fn shown(&self) -> MutexGuard<'_, Option<(Box<dyn Shown>, UnixStream)>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody is shown anything any more: it has ended like this.
    fn finish(&self, result: Result<Outcome>) {
        if let Err(failure) = &result {
            self.note(failure.to_string());
        }
        let shown = self.shown().take();
        if let Some((shown, mut socket)) = shown {
            let exit = shown.finish(result);
            if let Err(error) = wire::send(&mut socket, &Reply::Ended { exit }) {
                tracing::debug!(%error, "whoever has asked is not there any more");
            }
        }
    }

    fn note(&self, text: String) {
        tracing::warn!("{text}");
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        // A note that comes again and again, as of a destination that is not there, is kept once.
        notes.retain(|known| *known != text);
        notes.push_back(text);
        if notes.len() > NOTES {
            notes.pop_front();
        }
    }
}

impl Events for Relay {
    fn event(&self, event: Event) {
        if let Event::Warning(text) = &event {
            self.note(text.clone());
        }
        if let Some((shown, _)) = &*self.shown() {
            shown.event(event);
        }
    }
}

/// What the threads of a session share.
struct Session {
    options: WarmOptions,
    warm: Warm,
    relay: Arc<Relay>,
    abort: Abort,
    begun: Instant,
    /// Destinations have been willing once.
    has_begun: Arc<AtomicBool>,
    is_lost: AtomicBool,
    has_ended: AtomicBool,
    /// Destinations that were lost, and of when the state is that they keep.
    left: Mutex<BTreeMap<String, Instant>>,
    /// Those who want to hear that it is over.
    cancellers: Mutex<Vec<UnixStream>>,
}

impl Session {
    fn new(options: WarmOptions, relay: Arc<Relay>, abort: Abort) -> Self {
        let (id, has_begun) = (options.moves.session, Arc::new(AtomicBool::new(false)));
        let (told, begun) = (relay.clone(), has_begun.clone());
        let tell = move |what| match what {
            Told::Begun if begun.swap(true, Ordering::Relaxed) => {}
            Told::Begun => told.finish(Ok(Outcome::new(id, State::Running, Where::Source))),
            Told::Refused(why) => told.finish(Err(Failure::new(format!("the target was not moved: {why}"))
                .hint(format!("the warm-up goes on: migrate status {id}"))
                .target(TargetState::Running))),
        };
        let warm = Warm::new(options.cpu_share, options.standby, Box::new(tell));
        Self {
            options,
            warm,
            relay,
            abort,
            begun: Instant::now(),
            has_begun,
            is_lost: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            left: Mutex::default(),
            cancellers: Mutex::default(),
        }
    }

    fn id(&self) -> SessionId {
        self.options.moves.session
    }

    /// From here on this command is shown what happens; `false`: another one is.
    fn attach(&self, front: &dyn Front, verb: &str, settings: &str, socket: UnixStream) -> bool {
        let mut shown = self.relay.shown();
        let Ok(says) = socket.try_clone() else { return false };
        if shown.is_some() {
            return false;
        }
        let says = Mutex::new(says);
        let say: Say = Box::new(move |out, text| {
            let mut says = says.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever is not there any more is missed by the thread that looks.
            let _ = wire::send(&mut says, &Reply::Said { out, text: text.to_owned() });
        });
        let target = self.options.moves.target.to_string();
        *shown = Some((front.begin(settings, verb, self.id(), &target, say), socket));
        true
    }

    fn listen(&self) -> io::Result<UnixListener> {
        let places = Places::here();
        let path = socket_path(&places.run, self.id().as_str());
        for dir in [&places.run, &places.state.join("warm")] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        remove_old(&places.state.join("warm"));
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Rounds, until the target has moved or somebody wants this to end.
    fn keep_warm(&self) {
        let moves = match self.on_paths_of_their_own() {
            Ok(moves) => moves,
            Err(failure) => return self.relay.finish(Err(failure)),
        };
        let root = self.root();
        let mut backoff = Backoff::new(AGAIN_AFTER);
        loop {
            let begun = Instant::now();
            let result = move_::run_when(&moves, Some(&self.warm), &*self.relay, &self.abort);
            let goes_on = result.as_ref().is_err_and(|failure| self.may_go_on(failure, root));
            self.note_left();
            if !goes_on {
                self.tell_left();
            }
            self.relay.finish(result);
            if !goes_on {
                return;
            }
            // What worked for long is a new beginning.
            if begun.elapsed() > AGAIN_AFTER.1 {
                backoff.reset();
            }
            self.is_lost.store(true, Ordering::Relaxed);
            let mut fds = [PollFd::new(self.abort.fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, u16::try_from(backoff.pause().as_millis()).unwrap_or(u16::MAX));
            if self.abort.is_triggered() {
                return self.tell_left();
            }
            self.is_lost.store(false, Ordering::Relaxed);
        }
    }

    /// Who keeps a state now and does not hear of the end. One that was reached since is told, or begins to keep another.
    fn note_left(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        for Standing { name, far, state_taken_at, .. } in self.warm.seen().standings {
            match (far, state_taken_at) {
                (Far::Out, Some(taken)) => drop(left.insert(name, taken)),
                (Far::Out | Far::Asked, _) => {}
                _ => drop(left.remove(&name)),
            }
        }
    }

    /// The session is over: says where a state of the target stays until somebody deletes it there.
    fn tell_left(&self) {
        let id = self.id();
        for (dest, taken) in &*self.left.lock().unwrap_or_else(PoisonError::into_inner) {
            let age = taken.elapsed().as_secs();
            self.relay.event(Event::Warning(format!(
                "{dest} was lost, and keeps a state of the target that was {age} s old at the end: migrate cancel {id} there deletes it"
            )));
        }
    }

    /// What is to be kept warm, once it is clear which destinations have paths that share nothing.
    fn on_paths_of_their_own(&self) -> Result<MoveOptions> {
        let WarmOptions { moves, disjoint, .. } = &self.options;
        let all: Vec<_> = moves.dests.iter().chain(moves.then.dests()).cloned().collect();
        paths::refuse(&moves.peer, &all)?;
        let Some(disjoint) = *disjoint else { return Ok(moves.clone()) };
        let (dests, _) = paths::choose(disjoint, (&moves.dests, &[]), &moves.peer, &*self.relay, &self.abort)?;
        Ok(MoveOptions { dests, ..moves.clone() })
    }

    /// The process that the target is named by, and when it started; none once it has ended.
    fn root(&self) -> Option<(Pid, u64)> {
        let pid = target::resolve(&self.options.moves.target).ok()?.root(&self.options.moves.target).ok()?;
        let stat = ProcDir::open(pid).ok()?.stat(&mut Vec::new()).ok()?;
        (!stat.is_zombie()).then_some((pid, stat.starttime))
    }

    /// All destinations are lost, or have given it up as for want of room; the target is as it was, and nobody wants this to end: they
    /// are looked for again.
    fn may_go_on(&self, failure: &Failure, root: Option<(Pid, u64)>) -> bool {
        let is_unharmed = matches!(failure.target, TargetState::Untouched | TargetState::Running);
        self.has_begun.load(Ordering::Relaxed)
            && matches!(failure.kind, FailureKind::Peer | FailureKind::Failed)
            && is_unharmed
            && !self.abort.is_triggered()
            && !self.warm.seen().is_taken
            && root.is_some()
            && self.root() == root
    }

    fn account(&self) -> Account {
        let seen = self.warm.seen();
        let phase = match () {
            () if self.has_ended.load(Ordering::Relaxed) => "ended",
            () if seen.is_taken => "in-pause",
            () if self.is_lost.load(Ordering::Relaxed) => "reconnecting",
            () if seen.is_ordered => "switching",
            () if self.has_begun.load(Ordering::Relaxed) => "warm",
            () => "beginning",
        };
        let notes = self.relay.notes.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        Account {
            session: self.id().to_string(),
            target: self.options.moves.target.to_string(),
            phase: phase.to_owned(),
            age_ms: millis(self.begun.elapsed()),
            dirty_bytes_per_s: seen.dirty_bytes_per_s,
            candidates: seen.standings.iter().map(candidate).collect(),
            states: seen.states.as_ref().map(states),
            notes,
        }
    }

    fn serve(self: &Arc<Self>, listener: &UnixListener, front: &'static dyn Front) {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { continue };
            let limited =
                socket.set_read_timeout(Some(PATIENCE)).and_then(|()| socket.set_write_timeout(Some(PATIENCE)));
            let request = limited.and_then(|()| wire::receive(&mut socket));
            let answered = match request {
                Ok(Request::Status) => wire::send(&mut socket, &Reply::Account(Box::new(self.account()))),
                Ok(Request::Cancel) => self.cancel(socket),
                Ok(Request::Switch { dests, now, timeout, mode, settings }) => {
                    self.switch(socket, front, &settings, (&dests, now, timeout, mode))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "a request");
            }
        }
    }

    fn cancel(&self, mut socket: UnixStream) -> io::Result<()> {
        if self.warm.seen().is_taken {
            return wire::send(&mut socket, &Reply::Refused("the target is moving already".into()));
        }
        self.cancellers.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        self.abort.trigger();
        self.warm.wake();
        Ok(())
    }

    /// Begins a switch; somebody else sees to the one who has asked for it.
    fn switch(
        self: &Arc<Self>,
        mut socket: UnixStream,
        front: &dyn Front,
        settings: &str,
        (dests, now, timeout, mode): (&[String], bool, Option<Duration>, Mode),
    ) -> io::Result<()> {
        let looks = socket.try_clone()?;
        if !self.has_begun.load(Ordering::Relaxed) || self.is_lost.load(Ordering::Relaxed) {
            let why = "no destination is warm now: migrate status says more";
            return wire::send(&mut socket, &Reply::Refused(why.into()));
        }
        if !self.attach(front, "switch", settings, socket.try_clone()?) {
            return wire::send(&mut socket, &Reply::Refused("a switch of this session is under way".into()));
        }
        let order = || {
            let rest = self.rest(mode)?;
            self.warm.order(dests, now || mode == Mode::PostCopy, rest)
        };
        if let Err(why) = order() {
            self.relay.finish(Err(Failure::new(why).target(TargetState::Running)));
            return Ok(());
        }
        let session = self.clone();
        std::thread::Builder::new().name("switch".to_owned()).spawn(move || session.look_after(&looks, timeout))?;
        Ok(())
    }

    /// What becomes of memory that is left when the pause begins.
    ///
    /// # Errors
    /// The warm-up was begun so that none follows, which its destinations have been told.
    fn rest(&self, mode: Mode) -> std::result::Result<Rest, String> {
        match mode {
            Mode::PostCopy | Mode::Hybrid if !move_::may_follow(&self.options.moves.mode) => {
                let begun = "it was begun with --mode pre-copy, or without post-copy in --converge";
                Err(format!("no memory follows in this warm-up: {begun}"))
            }
            Mode::PostCopy | Mode::Hybrid => Ok(Rest::Follows),
            Mode::PreCopy | Mode::StopAndCopy => Ok(Rest::InPause),
            Mode::Auto => Ok(Rest::AsPolicySays),
        }
    }

    /// Until the pause begins: whoever has asked may go away, and its time may come to an end.
    fn look_after(&self, socket: &UnixStream, timeout: Option<Duration>) {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        while self.warm.seen().is_ordered && !self.warm.seen().is_taken {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            // Nothing is to come: it is readable when it has ended.
            let has_left = poll(&mut fds, LOOK_MS).is_ok_and(|woken| woken > 0);
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            if (has_left || is_late) && self.warm.withdraw() {
                let id = self.id();
                let what = match has_left {
                    true => "nobody waits for the switch any more".to_owned(),
                    false => "the exit condition has not held in the time that was given".to_owned(),
                };
                let hint = format!("the warm-up goes on: migrate status {id}; migrate switch {id} --now does not wait");
                self.relay.finish(Err(Failure::new(what).hint(hint).target(TargetState::Running)));
                return;
            }
        }
    }

    /// Leaves word of the end, and tells those who wait for it.
    fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        let places = Places::here();
        let words = serde_json::to_vec(&self.account()).unwrap_or_default();
        if let Err(error) = std::fs::write(end_path(&places.state, self.id().as_str()), words) {
            tracing::warn!(%error, "the end of the session is not written down");
        }
        let _ = std::fs::remove_file(socket_path(&places.run, self.id().as_str()));
        for mut socket in self.cancellers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = wire::send(&mut socket, &Reply::Cancelled);
        }
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn states(states: &warm::States) -> States {
    States {
        taken: states.taken,
        pause_us: us(states.pauses.0),
        longest_pause_us: us(states.pauses.1),
        paused_us: us(states.paused),
        bytes: states.bytes.0,
        total_bytes: states.bytes.1,
        failed: states.failed.0,
        reason: states.failed.1.clone(),
    }
}

fn candidate(standing: &Standing) -> Candidate {
    Candidate {
        dest: standing.name.clone(),
        state: standing.far.name().to_owned(),
        reason: standing.reason.clone(),
        rounds: standing.rounds,
        bytes_sent: standing.bytes_sent,
        left_bytes: standing.left_bytes,
        stored_age_ms: standing.stored_at.map(|at| millis(at.elapsed())),
        expected_downtime_us: standing.expected_pause.map(us),
        state_age_ms: standing.state_taken_at.map(|at| millis(at.elapsed())),
        states: standing.states,
        states_end: standing.states_end.clone(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Last words whose time is over.
fn remove_old(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).map(|at| SystemTime::now().duration_since(at));
        if age.is_ok_and(|age| age.is_ok_and(|age| age > KEPT)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
