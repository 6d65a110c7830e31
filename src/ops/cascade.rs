//! `--then`: a target goes on from its destination. The source's choices for the stages to come, what a host looks at before it
//! promises to move a target on, and the process that does it.
//!
//! ```text
//! session process ── charge ──> mover: a process of its own, in nobody's session or cgroup, with a log of its own
//!   │  ▲ news                     │
//!   ▼  │                          └── a move like any other: `migrate status` shows it
//! source                             (it goes on by itself when the session or the source is gone)
//! ```

use super::attempts::{self, Further};
use super::options::{MemoryOptions, ModeOptions, MoveOptions, PeerOptions, StateOptions};
use super::outcome::{Outcome, State, Where};
use super::paths::Disjoint;
use super::warm::Front;
use super::words::{Dest, SessionId, Target, WordError};
use super::{Event, Events};
use super::{many, reach};
use crate::blocker::{Blocker, codes};
use crate::companion::{self, parcel};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::fault::{self, Point};
use crate::image::Pid;
use crate::migration::MoveError;
use crate::migration::cascade::{self, Fate, Moved, News, Observer, Onward, Passed, STAGES_MAX, Stage};
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource, WireFailure};
use crate::migration::source::Quorum;
use crate::proc::ProcDir;
use crate::transport::{Abort, TransportError};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

mod keep_warm;

/// The hidden first word of a mover.
const ENTRY: &str = "cascade-process";

/// Where a target goes on to from its destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cascade {
    /// `--then`, each use: the destinations of a stage.
    #[serde(with = "super::options::word::lists")]
    pub stages: Vec<Vec<Dest>>,
    /// Stages before this move.
    pub done: u32,
    /// `--retries` of each stage.
    pub retries: Option<u32>,
    /// `--retry-timeout` of each stage.
    pub within: Option<Duration>,
    /// `--disjoint-paths` of each stage.
    pub disjoint: Option<Disjoint>,
    /// `--keep-warm`: the destinations that have not got the target stay up to date.
    #[serde(default)]
    pub keep_warm: bool,
}

impl Cascade {
    /// This move is one of several stages.
    pub fn is_used(&self) -> bool {
        self.done > 0 || !self.stages.is_empty()
    }

    /// Every destination of the stages to come.
    pub fn dests(&self) -> impl Iterator<Item = &Dest> {
        self.stages.iter().flatten()
    }

    fn number(&self) -> u32 {
        self.done + 1
    }
}

/// The choices that hold for each stage.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Choices {
    mode: ModeOptions,
    memory: MemoryOptions,
    state: StateOptions,
    with: Vec<PathBuf>,
    peer: PeerOptions,
    lease: Option<Duration>,
    quorum: Quorum,
    retries: Option<u32>,
    within: Option<Duration>,
    disjoint: Option<Disjoint>,
}

impl Choices {
    fn of(options: &MoveOptions) -> Self {
        let MoveOptions { mode, memory, state, with, peer, lease, quorum, then, .. } = options.clone();
        let mut choices = Self {
            mode,
            memory,
            state,
            with,
            peer,
            lease: Some(lease),
            quorum,
            retries: then.retries,
            within: then.within,
            disjoint: then.disjoint,
        };
        choices.peer.routes.retain(|pinned| then.dests().any(|dest| *dest == pinned.dest));
        for address in &mut choices.state.move_addresses {
            if let Some(there) = &address.dest_interface {
                address.interface.clone_from(there);
            }
        }
        choices.without_commands()
    }

    /// What reaches a host or switches it off is a matter of the host that does it.
    fn without_commands(mut self) -> Self {
        self.peer.rsh = PeerOptions::default().rsh;
        self.mode.fence = None;
        self
    }

    fn read(onward: &Onward) -> Result<Self> {
        let read = serde_json::from_value::<Self>(onward.choices.clone());
        read.map(Self::without_commands).map_err(|e| Failure::of("the choices of the source cannot be read", &e))
    }
}

/// What does not go together in the stages to come, yet or at all.
///
/// # Errors
/// Usage.
pub(super) fn refuse(options: &MoveOptions) -> Result<()> {
    if options.then.stages.len() > STAGES_MAX {
        let what = format!("--then is for {STAGES_MAX} further stages at most");
        return Err(Failure::new(what).kind(FailureKind::Usage));
    }
    if options.then.keep_warm {
        refuse_keep_warm(options)?;
    }
    for (n, dests) in (2..).zip(&options.then.stages) {
        let stage = MoveOptions { dests: dests.clone(), then: Cascade::default(), ..options.clone() };
        many::refuse(&stage).map_err(|failure| Failure { what: format!("stage {n}: {}", failure.what), ..failure })?;
    }
    Ok(())
}

/// What does not go together with destinations that stay warm.
fn refuse_keep_warm(options: &MoveOptions) -> Result<()> {
    let (what, hint) = if options.clones.is_some() {
        ("--keep-warm: no destination of a clone is left over", "migrate warm keeps further ones up to date")
    } else if !options.then.stages.is_empty() {
        ("--keep-warm and --then: a target that moves on keeps nobody warm", "--keep-warm is for the last stage alone")
    } else if options.dests.contains(&Dest::Local) {
        ("--keep-warm: local is another host wherever the target may be", "name this host as the others reach it")
    } else {
        return Ok(());
    };
    Err(Failure::new(what).hint(hint).kind(FailureKind::Usage))
}

/// What the destinations are told of the stages to come, or of each other where they stay warm; nothing where there are none.
///
/// # Errors
/// The choices cannot be written.
pub(super) fn onward(options: &MoveOptions) -> Result<Option<Onward>> {
    let words = |dests: &Vec<Dest>| dests.iter().map(ToString::to_string).collect();
    let stages = match options.then.keep_warm {
        true => keep_warm::others(options),
        false => Some(options.then.stages.iter().map(words).collect()),
    };
    let Some(stages) = stages.filter(|stages: &Vec<Vec<String>>| !stages.is_empty()) else { return Ok(None) };
    let choices = serde_json::to_value(Choices::of(options));
    Ok(Some(Onward {
        number: options.then.number() + 1,
        stages,
        choices: choices.map_err(|e| Failure::of("the choices cannot be written", &e))?,
        keep_warm: options.then.keep_warm,
    }))
}

/// The next stage, as a move of the target with this id.
fn next(onward: &Onward, pid: i32) -> Result<(MoveOptions, Further)> {
    onward.check().map_err(Failure::new)?;
    let choices = Choices::read(onward)?;
    let parse = |words: &Vec<String>| -> Result<Vec<Dest>> {
        let parse = |word: &String| word.parse().map_err(|e: WordError| Failure::of("a further stage", &e));
        words.iter().map(parse).collect()
    };
    let mut stages = onward.stages.iter().map(parse).collect::<Result<Vec<_>>>()?.into_iter();
    let dests = stages.next().ok_or_else(|| Failure::new("there is no further stage"))?;
    let Choices { mode, memory, state, with, peer, lease, quorum, retries, within, disjoint } = choices;
    let done = onward.number.saturating_sub(1);
    let then = Cascade { stages: stages.collect(), done, retries, within, disjoint, keep_warm: false };
    let further = Further { alternates: Vec::new(), retries, within, disjoint };
    let lease = lease.unwrap_or(crate::migration::destination::LEASE);
    let options = MoveOptions {
        clones: None,
        common: None,
        session: SessionId::random(),
        target: Target::Pid(Pid(pid)),
        dests,
        mode,
        memory,
        state,
        with,
        base: None,
        peer,
        lease,
        quorum,
        dry_run: false,
        then,
    };
    many::refuse(&options)?;
    refuse(&options)?;
    Ok((options, further))
}

/// Whether a target that were here could go on like this: what stands in the way, and what a person should know. `rule`: what
/// forbids it here, if something does.
pub(super) fn look(onward: &Onward, rule: Option<&str>) -> (Vec<Blocker>, Vec<String>) {
    let found = obstacles(onward, rule);
    if onward.keep_warm { keep_warm::warnings(found) } else { found }
}

fn obstacles(onward: &Onward, rule: Option<&str>) -> (Vec<Blocker>, Vec<String>) {
    if onward.stages.is_empty() {
        return Default::default();
    }
    if let Some(rule) = rule {
        let option = if onward.keep_warm { "--keep-warm" } else { "--then" };
        let reason = format!("{rule} forbids it to whoever sends the target to move it on from here");
        return (vec![Blocker::new(codes::PEER_REFUSES, option).because(reason)], Vec::new());
    }
    let options = match next(onward, 0) {
        Ok((options, _)) => options,
        Err(failure) => {
            return (vec![Blocker::new(codes::PEER_REFUSES, "--then").because(failure.to_string())], Vec::new());
        }
    };
    let (peer, rest) = (&options.peer, &onward.rest());
    let tried: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> = options.dests.iter().map(|dest| scope.spawn(move || reach(dest, peer, rest))).collect();
        let lost = |_| vec![Blocker::new(codes::PEER_UNREACHABLE, "--then").because("a destination was not tried")];
        tries.into_iter().map(|tried| tried.join().unwrap_or_else(lost)).collect()
    });
    if tried.iter().all(|blockers| !blockers.is_empty()) {
        return (tried.into_iter().flatten().collect(), Vec::new());
    }
    let left_out = |blocker: &Blocker| {
        let of = if onward.keep_warm { String::new() } else { format!("of stage {}, ", onward.number) };
        format!("{of}{} may be left out: {}", blocker.object, blocker.reason)
    };
    (Vec::new(), tried.iter().flatten().map(left_out).collect())
}

/// What stands in the way of moving a target to this destination, and on from there.
fn reach(dest: &Dest, peer: &PeerOptions, rest: &Onward) -> Vec<Blocker> {
    let of_stage = |code| match rest.keep_warm {
        true => Blocker::new(code, dest.to_string()),
        false => Blocker::new(code, format!("{dest} (stage {})", rest.number - 1)),
    };
    let unreached = |error: &TransportError| {
        let failure = reach::failure(&dest.to_string(), error);
        vec![of_stage(failure.code.unwrap_or(codes::PEER_UNREACHABLE)).because(failure.causes.join(": "))]
    };
    let mut link = match reach::to_ask(dest, peer) {
        Ok(link) => link,
        Err(error) => return unreached(&error),
    };
    if rest.stages.is_empty() {
        return Vec::new();
    }
    let said = AttemptId::random().and_then(|attempt| {
        protocol::send(&mut link.control, &FromSource::Reach { attempt, onward: Box::new(rest.clone()) })?;
        protocol::receive(&mut link.control)
    });
    match said {
        Ok(FromDestination::Reaches { blockers, .. }) => {
            let named = |blocker: Blocker| Blocker { object: format!("{} at {dest}", blocker.object), ..blocker };
            blockers.into_iter().map(|blocker| named(blocker.into())).collect()
        }
        Ok(_) => vec![of_stage(codes::PEER_VERSION).because("it does not move a target on (--then)")],
        // An older program does not understand the question.
        Err(error) => unreached(&error),
    }
}

/// Waits, where the target that has moved is to go on, until it is at its last stage.
///
/// # Errors
/// It is not, and the failure says where it is.
pub(super) fn follow(
    options: &MoveOptions,
    observer: Option<Observer>,
    mut outcome: Outcome,
    events: &dyn Events,
    abort: &Abort,
) -> Result<Outcome> {
    if options.then.keep_warm && !options.dry_run {
        return Ok(keep_warm::follow(options, observer, outcome, events, abort));
    }
    if options.dry_run || !options.then.is_used() {
        return Ok(outcome);
    }
    events.event(Event::Stage(done(options, &outcome)));
    if options.then.stages.is_empty() {
        return Ok(outcome);
    }
    let mut seen = Seen::of(&outcome);
    let Some(observer) = observer else {
        let why = vec!["the link was lost in the moment of handing over, and nothing more was asked of it".to_owned()];
        let failure = seen.stays(FailureKind::Partly, TargetState::RunningOn(seen.at.clone()), why);
        let next = options.then.stages.first().map(|dests| many::names(dests)).unwrap_or_default();
        let pid = outcome.pid.map(|pid| pid.to_string()).unwrap_or_default();
        return Err(failure.hint(format!("on {}, migrate move {pid} {next}", seen.at)));
    };
    let mut passed = |news| {
        if let News::Stage(stage) = news {
            outcome.stages.push(stage);
        }
    };
    let ended = seen.follow(observer, &mut passed, events, abort);
    let (fate, failure) = ended.map_err(|error| seen.lost(&error))?;
    match (fate, failure) {
        (Fate::RunsAt { dest, pid }, None) => (outcome.place, outcome.pid) = (Where::Dest(dest), pid),
        (Fate::HeldAt { dest, pid }, None) => {
            (outcome.place, outcome.pid, outcome.state) = (Where::Dest(dest), pid, State::Held);
        }
        (fate, failure) => return Err(seen.ends(fate, failure)),
    }
    Ok(outcome)
}

/// This move, as a stage that is done.
fn done(options: &MoveOptions, outcome: &Outcome) -> Stage {
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let to = match &outcome.place {
        Where::Dest(dest) => dest.clone(),
        _ => many::names(&options.dests),
    };
    let (downtime_us, total_us) = (outcome.downtime.map(us), outcome.total.map(us));
    let moved = Moved { to, pid: outcome.pid, downtime_us, total_us };
    Stage { moved: Some(moved), ..begun(options) }
}

fn begun(options: &MoveOptions) -> Stage {
    Stage {
        number: options.then.number(),
        session: options.session.to_string(),
        from: None,
        dests: options.dests.iter().map(ToString::to_string).collect(),
        moved: None,
    }
}

/// What was heard so far.
struct Seen {
    /// Who has the target.
    at: String,
    pid: Option<i32>,
    /// Of the stage under way, where it has begun.
    session: Option<String>,
}

impl Seen {
    /// Of a target that has just come to where it is.
    fn of(outcome: &Outcome) -> Self {
        let at = match &outcome.place {
            Where::Dest(dest) => dest.clone(),
            _ => String::new(),
        };
        Self { at, pid: outcome.pid, session: None }
    }

    /// Hears how it goes on, and how that ends: stages that are done, and sessions that have begun, are for `each`.
    fn follow(
        &mut self,
        observer: Observer,
        each: &mut dyn FnMut(News),
        events: &dyn Events,
        abort: &Abort,
    ) -> std::result::Result<(Fate, Option<WireFailure>), MoveError> {
        observer.follow(abort, &mut |news| match news {
            News::Warm { .. } => each(news),
            news => self.hears(news, events).into_iter().for_each(|stage| each(News::Stage(stage))),
        })
    }

    /// A stage that is done.
    fn hears(&mut self, news: News, events: &dyn Events) -> Option<Stage> {
        match news {
            News::Stage(mut stage) => {
                stage.from.get_or_insert_with(|| self.at.clone());
                match &stage.moved {
                    Some(moved) => (self.at, self.pid, self.session) = (moved.to.clone(), moved.pid, None),
                    None => self.session = Some(stage.session.clone()),
                }
                events.event(Event::Stage(stage.clone()));
                Some(stage).filter(|stage| stage.moved.is_some())
            }
            News::Warning { text } => {
                // A host in between may have said already where that was.
                let is_named = text.starts_with(&self.at);
                events.event(Event::Warning(if is_named { text } else { format!("{}: {text}", self.at) }));
                None
            }
            // Nobody of a cascade says the one, and the other is the end.
            News::Warm { .. } | News::Ended { .. } => None,
        }
    }

    /// It is not at its last stage.
    fn stays(&self, kind: FailureKind, target: TargetState, causes: Vec<String>) -> Failure {
        let pid = self.pid.map(|pid| format!(" as process {pid}")).unwrap_or_default();
        let what = match target {
            TargetState::RunningOn(_) => format!("the target has come to {}{pid}, and not to its last stage", self.at),
            _ => format!("the target has come to {}{pid}, and what became of it there is not certain", self.at),
        };
        Failure { causes, ..Failure::new(what).kind(kind).target(target) }
    }

    /// Nobody is heard any more.
    fn lost(&self, error: &MoveError) -> Failure {
        let failure = self.stays(FailureKind::NeedsPerson, TargetState::InDoubt, Failure::of("", error).causes);
        let session = self.session.as_ref().map(|session| format!(" {session}")).unwrap_or_default();
        failure.hint(format!("migrate status{session} on {} says who has it: it may be moved on yet", self.at))
    }

    /// What whoever has moved it last says of it.
    fn ends(&self, fate: Fate, failure: Option<WireFailure>) -> Failure {
        let said = failure.unwrap_or(WireFailure {
            what: "the target was not moved on".into(),
            causes: Vec::new(),
            hint: None,
            blockers: Vec::new(),
        });
        let is_said_there = !matches!(fate, Fate::RunsAt { .. } | Fate::HeldAt { .. });
        let (kind, target) = match fate {
            Fate::RunsHere => (FailureKind::Partly, TargetState::RunningOn(self.at.clone())),
            Fate::RunsAt { dest, .. } => (FailureKind::Partly, TargetState::RunningOn(dest)),
            Fate::HeldHere => (FailureKind::NeedsPerson, TargetState::HeldOn(self.at.clone())),
            Fate::HeldAt { dest, .. } => (FailureKind::NeedsPerson, TargetState::HeldOn(dest)),
            Fate::InDoubt => (FailureKind::NeedsPerson, TargetState::InDoubt),
            Fate::Ended { reason } => (FailureKind::Partly, TargetState::Ended(reason)),
        };
        let blockers = said.blockers.into_iter().map(Blocker::from).collect();
        if !is_said_there {
            // In these words, by a host in between.
            let WireFailure { what, causes, hint, .. } = said;
            return Failure { causes, hint, blockers, ..Failure::new(what).kind(kind).target(target) };
        }
        let causes = std::iter::once(format!("{}: {}", self.at, said.what)).chain(said.causes).collect();
        let session =
            self.session.as_ref().map(|session| format!("on {}, migrate status {session} says more", self.at));
        let hint = said.hint.map(|hint| format!("on {}: {hint}", self.at)).or(session);
        Failure { blockers, hint, ..self.stays(kind, target, causes) }
    }
}

/// What a mover is for.
#[derive(Debug, Serialize, Deserialize)]
struct Charge {
    onward: Onward,
    pid: i32,
    /// When that process started, clock ticks since boot.
    started: u64,
    /// The attempt that has brought it.
    attempt: AttemptId,
}

/// A target that has come here goes on, or others are kept up to date from here: a process of its own does it, and the source hears how
/// that goes. `rule`: what forbids it here, if something does.
pub(super) fn pass_on(passed: Passed, rule: Option<&str>) {
    if let Some(rule) = rule {
        passed.refuse(Failure::new(format!("{rule} forbids it")));
        return;
    }
    tracing::info!(pid = passed.pid, stages = ?passed.onward.stages, "the target is to go on");
    fault::strike(Point::DestinationPasses);
    match mover(&passed) {
        Ok(socket) => {
            // The tree is our child: its processes end when it has moved, and their ids have to be free.
            let reaped =
                std::thread::Builder::new().name("reaper".into()).spawn(|| while nix::sys::wait::wait().is_ok() {});
            if let Err(error) = reaped {
                tracing::warn!(%error, "processes of the target stay zombies until it is known how it goes on");
            }
            passed.relay(socket);
        }
        Err(error) => {
            passed.refuse(Failure::of("no process can be started that moves the target on", &error));
        }
    }
}

fn mover(passed: &Passed) -> io::Result<UnixStream> {
    let started = started(passed.pid).ok_or(io::ErrorKind::NotFound)?;
    let (_child, mut socket) = companion::spawn(ENTRY)?;
    let charge = Charge { onward: passed.onward.clone(), pid: passed.pid, started, attempt: passed.attempt };
    parcel::send(&mut socket, &charge, &[])?;
    Ok(socket)
}

/// When a process started, that has not ended.
fn started(pid: i32) -> Option<u64> {
    let stat = ProcDir::open(Pid(pid)).ok()?.stat(&mut Vec::new()).ok()?;
    (!stat.is_zombie()).then_some(stat.starttime)
}

/// Is this the first argument of a mover?
pub fn is_entry(argument: &OsStr) -> bool {
    argument == ENTRY
}

/// Runs a mover; the exit code. Standard input is the socket of the session that has brought the target.
pub fn main(front: &'static dyn Front) -> u8 {
    let Some(mut socket) = companion::leave() else { return 1 };
    let Some(abort) = front.watch() else { return 1 };
    // Those of the agent, or of ssh.
    let quiet = std::fs::File::open("/dev/null").map(|null| {
        nix::unistd::dup2_stdout(&null).and_then(|()| nix::unistd::dup2_stderr(&null)).map_err(io::Error::from)
    });
    if let Err(error) = quiet.and_then(|done| done) {
        tracing::warn!(%error, "keeps standard output and standard error");
    }
    let Ok(charge) = companion::charge::<Charge>(&mut socket) else { return 1 };
    let (Ok(mut orders), Ok(())) = (socket.try_clone(), socket.set_read_timeout(None)) else { return 1 };
    let (stop, courier) = (abort.clone(), Courier(Mutex::new(Some(socket))));
    let listening = std::thread::Builder::new().name("orders".into()).spawn(move || {
        if cascade::is_to_stop(&mut orders) {
            stop.trigger();
        }
    });
    if let Err(error) = listening {
        tracing::warn!(%error, "the source cannot end this");
    }
    if charge.onward.keep_warm {
        courier.say(&keep_warm::ended(keep_warm::start(&charge, &|news| courier.say(&news))));
        return 0;
    }
    let Charge { onward, pid, started, .. } = charge;
    let result = next(&onward, pid).and_then(|(options, further)| {
        front.log(options.session);
        tracing::info!(pid, session = %options.session, "moves on to {}", many::names(&options.dests));
        courier.say(&News::Stage(begun(&options)));
        if self::started(pid) != Some(started) {
            let ended = TargetState::Ended("by itself, before it was moved on".into());
            return Err(Failure::new(format!("process {pid} has ended")).target(ended));
        }
        attempts::run(&options, &further, &courier, &abort)
    });
    courier.say(&ended(result));
    0
}

fn ended(result: Result<Outcome>) -> News {
    match result {
        Ok(Outcome { state, place: Where::Dest(dest), pid, .. }) => {
            let fate = if state == State::Held { Fate::HeldAt { dest, pid } } else { Fate::RunsAt { dest, pid } };
            News::Ended { fate, failure: None }
        }
        Ok(_) => News::Ended { fate: Fate::RunsHere, failure: None },
        Err(failure) => {
            tracing::warn!("{failure}; the target is {}", failure.target);
            let fate = match failure.target.clone() {
                TargetState::RunningOn(dest) => Fate::RunsAt { dest, pid: None },
                TargetState::HeldOn(dest) => Fate::HeldAt { dest, pid: None },
                TargetState::Held | TargetState::Stopped => Fate::HeldHere,
                TargetState::InDoubt => Fate::InDoubt,
                TargetState::Ended(reason) => Fate::Ended { reason },
                TargetState::Running | TargetState::Untouched | TargetState::NotStarted => Fate::RunsHere,
            };
            News::Ended { fate, failure: Some(MoveError::Target(failure).to_wire()) }
        }
    }
}

/// Carries what happens to whoever relays it, as long as somebody does.
struct Courier(Mutex<Option<UnixStream>>);

impl Courier {
    fn say(&self, news: &News) {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = socket.as_mut().map(|socket| cascade::say(socket, news)) {
            tracing::info!(%error, "nobody hears how the target moves on");
            *socket = None;
        }
    }
}

impl Events for Courier {
    fn event(&self, event: Event) {
        match event {
            Event::Stage(stage) => self.say(&News::Stage(stage)),
            Event::Warning(text) => {
                tracing::warn!("{text}");
                self.say(&News::Warning { text });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Quiet;
    use crate::ops::options::{Mode, Pinned};

    fn options(stages: &[&[&str]]) -> MoveOptions {
        let parse = |word: &&str| word.parse().unwrap();
        let stages = stages.iter().map(|dests| dests.iter().map(parse).collect()).collect();
        let then = Cascade { stages, retries: Some(2), ..Cascade::default() };
        MoveOptions { then, ..MoveOptions::new(Target::Pid(Pid(7)), "b".parse().unwrap()) }
    }

    #[test]
    fn the_next_stage_is_a_move_with_the_same_choices() {
        let mut first = options(&[&["c", "tcp://d"], &["e"]]);
        (first.mode.mode, first.mode.fence, first.quorum) = (Mode::Hybrid, Some("off".into()), Quorum::Percent(50));
        first.peer.rsh = vec!["mine".into()];
        first.peer.routes = ["b=eth0", "c=eth1"]
            .map(|word| word.split_once('=').unwrap())
            .map(|(dest, route)| Pinned { dest: dest.parse().unwrap(), route: route.parse().unwrap() })
            .to_vec();
        let onward = onward(&first).unwrap().unwrap();
        assert_eq!((onward.number, onward.stages.len()), (2, 2));
        let (second, further) = next(&onward, 9).unwrap();
        assert_eq!((second.target, many::names(&second.dests).as_str()), (Target::Pid(Pid(9)), "c,tcp://d:7413"));
        assert_eq!((second.mode.mode, second.mode.fence, second.quorum), (Mode::Hybrid, None, Quorum::Percent(50)));
        assert_eq!(second.peer.rsh, PeerOptions::default().rsh, "how a host is reached is not the first one's to say");
        assert_eq!(second.peer.routes, first.peer.routes[1..]);
        assert_eq!((second.then.number(), second.then.stages.len(), further.retries), (2, 1, Some(2)));
        let third = next(&super::onward(&MoveOptions { then: second.then, ..first }).unwrap().unwrap(), 9).unwrap().0;
        assert_eq!((third.then.number(), third.then.is_used(), many::names(&third.dests).as_str()), (3, true, "e"));
        assert!(super::onward(&third).unwrap().is_none());
    }

    #[test]
    fn an_address_moves_on_from_where_it_has_come_to() {
        let mut first = options(&[&["c"]]);
        first.state.move_addresses = vec!["192.0.2.7/24@eth0:eth1".parse().unwrap()];
        let second = next(&onward(&first).unwrap().unwrap(), 9).unwrap().0;
        assert_eq!(second.state.move_addresses[0].to_string(), "192.0.2.7/24@eth1:eth1");
    }

    #[test]
    fn stages_that_cannot_be_are_usage() {
        assert!(refuse(&options(&[&["c"], &["d"]])).is_ok());
        for wrong in [&[&["c", "c"][..]][..], &[&[][..]], &[&["c"][..]; STAGES_MAX + 1]] {
            assert_eq!(refuse(&options(wrong)).unwrap_err().kind, FailureKind::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn what_forbids_it_is_named_and_so_is_what_cannot_be_read() {
        let mut onward = onward(&options(&[&["unix:/nonexistent"]])).unwrap().unwrap();
        let reason = |onward: &Onward, rule| look(onward, rule).0.remove(0).reason;
        assert!(reason(&onward, Some("--refuse-then")).contains("--refuse-then"));
        assert_eq!(look(&onward, None).0[0].object, "unix:/nonexistent (stage 2)");
        onward.choices = serde_json::json!({ "quorum": "many", "of a later version": 7 });
        assert!(reason(&onward, None).contains("cannot be read"));
        assert!(look(&onward.rest(), Some("x")).0.is_empty(), "nothing is to be passed on");
    }

    fn seen() -> Seen {
        Seen { at: "b".into(), pid: Some(7), session: None }
    }

    #[test]
    fn a_failure_says_where_the_target_is() {
        let mut seen = seen();
        seen.hears(News::Stage(begun(&options(&[]))), &Quiet);
        let said = |what: &str| {
            let failure = Failure::of(what, &io::Error::other("why")).hint("do");
            Some(MoveError::Target(failure).to_wire())
        };
        let failure = seen.ends(Fate::RunsHere, said("it was not moved to c"));
        assert_eq!((failure.exit_code(), &failure.target), (6, &TargetState::RunningOn("b".into())));
        assert_eq!(failure.causes, ["b: it was not moved to c", "why"]);
        assert!(failure.what.contains("b as process 7") && failure.hint.as_deref() == Some("on b: do"), "{failure}");
        // Said by a host that has heard it itself.
        let failure = seen.ends(Fate::RunsAt { dest: "c".into(), pid: None }, said("the target has come to c"));
        assert_eq!(
            (failure.what.as_str(), failure.target),
            ("the target has come to c", TargetState::RunningOn("c".into()))
        );
        for (fate, exit) in [
            (Fate::InDoubt, 4),
            (Fate::HeldHere, 4),
            (Fate::HeldAt { dest: "c".into(), pid: None }, 4),
            (Fate::Ended { reason: "by itself".into() }, 6),
        ] {
            assert_eq!(seen.ends(fate.clone(), None).exit_code(), exit, "{fate:?}");
        }
        let lost = seen.lost(&MoveError::Worker);
        let session = seen.session.unwrap();
        assert!(lost.exit_code() == 4 && lost.hint.unwrap().contains(&session));
    }

    #[test]
    fn what_is_heard_is_told_from_the_side_of_the_first_host() {
        let mut seen = seen();
        let stage = |to: &str, from: Option<&str>| {
            let moved = Moved { to: to.into(), pid: Some(8), downtime_us: None, total_us: None };
            let from = from.map(str::to_owned);
            News::Stage(Stage { from, moved: Some(moved), ..begun(&options(&[])) })
        };
        let first = seen.hears(stage("c", None), &Quiet).unwrap();
        assert_eq!((first.from.as_deref(), seen.at.as_str()), (Some("b"), "c"));
        let second = seen.hears(stage("d", Some("c")), &Quiet).unwrap();
        assert_eq!((second.from.as_deref(), seen.at.as_str(), seen.pid), (Some("c"), "d", Some(8)));
    }
}
