//! Events as JSON Lines (cli.md, `--json`; migrate-events(5)).
//!
//! Fields are added, never renamed, within version 1. What is not known is absent, never 0.

use super::clock::rfc3339;
use crate::blocker::Blocker;
use crate::failure::{Failure, TargetState};
use crate::memory::lazy::Waits;
use crate::memory::lazy::stalls::class_limit;
use crate::migration::cascade::Stage;
use crate::migration::points::taking::Cost;
use crate::migration::report::{Became, CandidateReport};
use crate::migration::switchover::forecast::Forecast;
use crate::ops::evacuate::{Evacuation, Fate, LeftOut, TreeReport};
use crate::ops::hooks::{HookEnd, HookPoint, How};
use crate::ops::outcome::{Attempt, Outcome, Round, State, Where};
use crate::ops::warm::wire::{Account, Candidate, States};
use crate::ops::words::SessionId;
use serde::ser::{Serialize, Serializer};
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime};

/// A JSON object whose fields keep their order.
#[derive(Debug, Default, Clone)]
pub struct Object(Vec<(&'static str, Member)>);

#[derive(Debug, Clone)]
enum Member {
    Value(Value),
    Object(Object),
    List(Vec<Object>),
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, member)| (key, member)))
    }
}

impl Serialize for Member {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Object(object) => object.serialize(serializer),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

impl Object {
    /// Adds a field.
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.0.push((key, Member::Value(value.into())));
        self
    }

    /// Adds a field if it is known.
    pub fn known(self, key: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Adds an object.
    pub fn object(mut self, key: &'static str, value: Object) -> Self {
        self.0.push((key, Member::Object(value)));
        self
    }

    /// Adds a list of objects.
    pub fn list(mut self, key: &'static str, values: Vec<Object>) -> Self {
        self.0.push((key, Member::List(values)));
        self
    }

    /// Adds the fields of another object.
    pub fn and(mut self, other: Object) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// Microseconds, as all times are written.
pub fn us(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What all events of a session have in common.
#[derive(Debug)]
pub struct Stamp {
    begun: Instant,
    session: SessionId,
    trace_parent: Option<String>,
}

impl Stamp {
    /// A session that begins now.
    pub fn begin(session: SessionId) -> Self {
        // W3C trace context: repeated as it is, so that a caller finds its events again.
        let trace_parent = std::env::var("TRACEPARENT").ok().filter(|value| !value.is_empty());
        Self { begun: Instant::now(), session, trace_parent }
    }

    /// For events of another session on the same line of time.
    pub fn of(&self, session: SessionId) -> Self {
        Self { begun: self.begun, session, trace_parent: self.trace_parent.clone() }
    }

    /// Time since the session began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// One line: an event of this kind with these fields.
    pub fn line(&self, kind: &str, fields: Object) -> String {
        let event = Object::default()
            .with("v", 1)
            .with("ts", rfc3339(SystemTime::now()))
            .with("t_us", us(self.elapsed()))
            .with("event", kind)
            .with("session", self.session.as_str())
            .known("traceparent", self.trace_parent.as_deref())
            .and(fields);
        let mut line = serde_json::to_string(&event).expect("keys are text, and values came from text and numbers");
        line.push('\n');
        line
    }
}

/// A hook that begins, or has ended.
pub fn hook(point: HookPoint, name: &str, ended: Option<HookEnd>) -> Object {
    let hook = Object::default().with("point", point.name()).with("name", name);
    let Some(HookEnd { took, how }) = ended else { return hook.with("state", "begun") };
    let hook = hook.with("state", "ended").with("took_us", us(took));
    match how {
        How::Exit(code) => hook.with("exit_code", code),
        How::Signal(signal) => hook.with("signal", signal),
        How::TimedOut => hook.with("timed_out", true),
        How::NotRun => hook.with("not_run", true),
    }
}

/// A blocker.
pub fn blocker(blocker: &Blocker) -> Object {
    Object::default()
        .with("code", blocker.code.to_string())
        .with("object", blocker.object.as_str())
        .with("reason", blocker.reason.as_str())
        .with("remedy", blocker.remedy.as_str())
}

fn round(round: &Round) -> Object {
    Object::default()
        .with("number", round.number)
        .with("pages", round.pages)
        .with("bytes", round.bytes)
        .with("took_us", us(round.took))
}

/// An attempt that has failed.
fn attempt(attempt: &Attempt) -> Object {
    Object::default()
        .with("dests", attempt.dests.clone())
        .with("failure", attempt.failure.as_str())
        .with("took_us", us(attempt.took))
}

/// One of several destinations, at the end of a move.
fn candidate(candidate: &CandidateReport) -> Object {
    let (reason, pid) = match &candidate.became {
        Became::Out(reason) => (Some(reason.as_str()), None),
        Became::Runs(pid) => (None, Some(*pid)),
        _ => (None, None),
    };
    let via = Some(candidate.via.clone()).filter(|via| !via.is_empty());
    Object::default()
        .with("dest", candidate.name.as_str())
        .with("became", candidate.became.name())
        .known("clone_id", candidate.clone_id.as_deref())
        .known("pid", pid)
        .known("reason", reason)
        .with("rounds", candidate.rounds)
        .with("bytes_sent", candidate.bytes_sent)
        .known("ready_us", candidate.ready_after.map(us))
        .known("via", via)
}

/// A stage of a cascade.
pub fn stage(stage: &Stage) -> Object {
    let moved = stage.moved.as_ref();
    Object::default()
        .with("number", stage.number)
        .with("state", if moved.is_some() { "done" } else { "begun" })
        .with("session_there", stage.session.as_str())
        .known("from", stage.from.as_deref())
        .with("dests", stage.dests.clone())
        .known("to", moved.map(|moved| moved.to.as_str()))
        .known("pid", moved.and_then(|moved| moved.pid))
        .known("downtime_us", moved.and_then(|moved| moved.downtime_us))
        .known("total_us", moved.and_then(|moved| moved.total_us))
}

/// The waits of one thread; classes without any are left out, the last one has no limit.
fn stall(waits: &Waits) -> Object {
    let counts = waits.histogram.classes.iter().enumerate().filter(|(_, count)| **count > 0);
    let class =
        |(n, count): (usize, &u64)| Object::default().known("below_us", class_limit(n).map(us)).with("count", *count);
    Object::default()
        .known("process", waits.process)
        .with("thread", waits.thread)
        .with("count", waits.histogram.count)
        .with("total_us", waits.histogram.total_us)
        .with("longest_us", waits.histogram.longest_us)
        .list("classes", counts.map(class).collect())
}

/// What a move would cost.
pub fn forecast(forecast: &Forecast) -> Object {
    Object::default()
        .with("bytes", forecast.bytes)
        .with("total_us", us(forecast.total))
        .known("downtime_us", forecast.downtime.map(us))
}

/// States of a target that came back while it lacked memory.
fn points(cost: &Cost) -> Object {
    Object::default()
        .with("count", cost.points)
        .with("paused_us", us(cost.paused))
        .with("longest_us", us(cost.longest))
        .with("bytes", cost.bytes)
        .with("pages_read", cost.pages_read)
        .with("failed", cost.failed.0)
        .known("failure", cost.failed.1.as_deref())
}

/// How far a warm-up is.
pub fn warm(account: &Account) -> Object {
    let candidate = |one: &Candidate| {
        Object::default()
            .with("dest", one.dest.as_str())
            .with("state", one.state.as_str())
            .known("reason", one.reason.as_deref())
            .with("rounds", one.rounds)
            .with("bytes_sent", one.bytes_sent)
            .known("left_bytes", one.left_bytes)
            .known("stored_age_ms", one.stored_age_ms)
            .known("expected_downtime_us", one.expected_downtime_us)
            .known("state_age_ms", one.state_age_ms)
            .known("states", Some(one.states).filter(|states| *states > 0))
            .known("states_end", one.states_end.as_deref())
    };
    let states = |states: &States| {
        Object::default()
            .with("taken", states.taken)
            .with("pause_us", states.pause_us)
            .with("longest_pause_us", states.longest_pause_us)
            .with("paused_us", states.paused_us)
            .with("bytes", states.bytes)
            .with("total_bytes", states.total_bytes)
            .with("failed", states.failed)
            .known("reason", states.reason.as_deref())
    };
    let kept =
        account.states.as_ref().map_or_else(Object::default, |one| Object::default().object("states", states(one)));
    Object::default()
        .with("phase", account.phase.as_str())
        .with("target", account.target.as_str())
        .with("age_ms", account.age_ms)
        .known("dirty_bytes_per_s", account.dirty_bytes_per_s)
        .list("candidates", account.candidates.iter().map(candidate).collect())
        .and(kept)
        .with("notes", account.notes.clone())
}

/// The fields of `result` for something achieved.
pub fn outcome(outcome: &Outcome) -> Object {
    let target = Object::default().known("pid", outcome.target_pid).known("comm", outcome.target_comm.as_deref());
    let host = match &outcome.place {
        Where::Dest(name) => Some(name.as_str()),
        _ => None,
    };
    let parts = outcome.downtime_parts.iter().fold(Object::default(), |o, (name, took)| o.with(name, us(*took)));
    let mut fields = Object::default();
    if !target.0.is_empty() {
        fields = fields.object("target", target);
    }
    fields = fields
        .with("state", state(outcome.state))
        .with("where", place(&outcome.place))
        .known("host", host)
        .known("pid", outcome.pid)
        .known("mode", outcome.mode)
        .known("exit_condition", outcome.exit_condition)
        .known("downtime_us", outcome.downtime.map(us))
        .known("expected_downtime_us", outcome.expected_downtime.map(us));
    if let Some(forecast) = &outcome.forecast {
        fields = fields.object("forecast", self::forecast(forecast));
    }
    if !outcome.downtime_parts.is_empty() {
        fields = fields.object("downtime_parts", parts);
    }
    if outcome.faults.is_some() {
        fields = fields.list("stalls", outcome.stalls.iter().map(stall).collect());
    }
    if let Some(cost) = &outcome.points {
        fields = fields.object("points", points(cost));
    }
    if !outcome.attempts.is_empty() {
        fields = fields.list("attempts", outcome.attempts.iter().map(attempt).collect());
    }
    if !outcome.via.is_empty() {
        fields = fields.with("via", outcome.via.clone());
    }
    if !outcome.candidates.is_empty() {
        fields = fields.list("candidates", outcome.candidates.iter().map(candidate).collect());
    }
    if !outcome.stages.is_empty() {
        fields = fields.list("stages", outcome.stages.iter().map(stage).collect());
    }
    if let Some(kept) = &outcome.kept_warm {
        let (session, host) = (kept.session.as_str(), kept.host.as_str());
        let kept = Object::default().with("session", session).with("host", host).with("dests", kept.dests.clone());
        fields = fields.object("keep_warm", kept);
    }
    if !outcome.notes.is_empty() {
        fields = fields.with("notes", outcome.notes.clone());
    }
    fields
        .known("total_us", outcome.total.map(us))
        .list("rounds", outcome.rounds.iter().map(round).collect())
        .known("bytes_sent", outcome.bytes)
        .known("pages_sent", outcome.pages)
        .known("zero_pages", outcome.zero_pages)
        .known("named_pages", outcome.named_pages)
        .known("faults", outcome.faults)
        .known("processes", outcome.processes)
        .known("threads", outcome.threads)
}

/// The fields of `result` for an evacuation.
pub fn evacuation(evacuation: &Evacuation) -> Object {
    let left_out = |left: &LeftOut| {
        Object::default()
            .with("target", left.target.to_string())
            .with("name", left.name.as_str())
            .with("reason", left.why)
    };
    let fields = Object::default()
        .list("trees", evacuation.trees.iter().map(tree).collect())
        .with("total_us", us(evacuation.total))
        .known("expected_us", evacuation.expected.map(us))
        .with("bytes_sent", evacuation.bytes())
        .with("named_pages", evacuation.named_pages());
    match evacuation.left_out.is_empty() {
        true => fields,
        false => fields.list("left_out", evacuation.left_out.iter().map(left_out).collect()),
    }
}

/// One tree of an evacuation.
fn tree(tree: &TreeReport) -> Object {
    let fields = Object::default()
        .with("target", tree.target.to_string())
        .known("name", Some(tree.name.as_str()).filter(|name| !name.is_empty()))
        .known("memory_bytes", tree.memory_bytes)
        .known("session", tree.session.map(|session| session.to_string()))
        .known("began_us", tree.began.map(us))
        .known("took_us", tree.took.map(us));
    match &tree.fate {
        Fate::Planned { dest, forecast } => {
            let fields = fields.with("became", "planned").with("dest", dest.to_string());
            forecast.iter().fold(fields, |fields, cost| fields.object("forecast", self::forecast(cost)))
        }
        Fate::Moved { dest, moved } => fields
            .with("became", "moved")
            .with("dest", dest.to_string())
            .known("pid", moved.pid)
            .known("mode", moved.mode.as_deref())
            .known("downtime_us", moved.downtime.map(us))
            .known("bytes_sent", moved.bytes)
            .known("named_pages", moved.named_pages)
            .known("notes", Some(moved.notes.clone()).filter(|notes| !notes.is_empty())),
        Fate::Gone(Some(dest)) => fields.with("became", "gone").with("dest", dest.as_str()),
        Fate::Gone(None) => fields.with("became", "ended"),
        Fate::Stayed(failure) => fields.with("became", "stayed").and(self::failure(failure)),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Stopped => "stopped",
        State::Ended => "ended",
        State::Held => "held",
        State::InDoubt => "in-doubt",
    }
}

fn place(place: &Where) -> &str {
    match place {
        Where::Source => "source",
        Where::Dest(name) => name,
        Where::Both => "both",
        Where::Nowhere => "nowhere",
    }
}

/// The fields of `result` for a failure.
pub fn failure(failure: &Failure) -> Object {
    let (state, place) = match &failure.target {
        TargetState::Untouched => (None, Some("source")),
        TargetState::Running => (Some("running"), Some("source")),
        TargetState::Stopped => (Some("stopped"), Some("source")),
        TargetState::Held => (Some("held"), Some("source")),
        TargetState::RunningOn(host) => (Some("running"), Some(host.as_str())),
        TargetState::HeldOn(host) => (Some("held"), Some(host.as_str())),
        TargetState::InDoubt => (Some("in-doubt"), None),
        TargetState::Ended(_) | TargetState::NotStarted => (Some("ended"), Some("nowhere")),
    };
    Object::default()
        .known("state", state)
        .known("where", place)
        .list("blockers", failure.blockers.iter().map(blocker).collect())
        .object("failure", cause(failure))
}

/// What failed, and why.
pub fn cause(failure: &Failure) -> Object {
    let code = failure.explained().map(|code| code.to_string());
    Object::default()
        .with("what", failure.what.as_str())
        .with("causes", failure.causes.clone())
        .known("hint", failure.hint.as_deref())
        .known("code", code)
}
