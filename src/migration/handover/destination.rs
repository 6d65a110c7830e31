//! The destination's half. Mirror of [`super::source`].

use super::{Choice, Reply, Request, Rule, Rules, Sync};
use crate::migration::protocol::AttemptId;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Pages come, the target is rebuilt. No PREPARED was sent.
    Receiving,
    /// Complete and frozen; `prepared` is being recorded.
    Preparing,
    /// PREPARED was sent. It waits for as long as it takes.
    Prepared,
    /// COMMIT came; `owner` is being recorded.
    Owning,
    /// It runs here, or did.
    Owner,
    /// So it does, and the source knows.
    Closed,
    /// ABORTED is being recorded; PREPARED had been sent.
    Aborting,
    /// Nothing is here, and nothing will run.
    Aborted,
    /// It ran here on an earlier boot.
    EndedWithHost,
    /// No journal names this attempt.
    Unknown,
}

/// A line of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Record {
    /// The attempt has begun; on the disk, with its name, before the offer is answered.
    Begun,
    /// PREPARED may have been sent.
    Prepared,
    /// It runs here, or is about to.
    Owner,
    /// It never will.
    Aborted,
    /// It runs here, and the source knows.
    Done,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The target is complete and detached into a frozen cgroup: nothing is left that can fail.
    Armed,
    /// It cannot be rebuilt here.
    Failed,
    /// From the source, about the attempt it names.
    Asked(AttemptId, Request),
    /// The link is lost, the source silent, or the lease is over.
    Silent,
    /// A task of the frozen copy has died (out of memory, a person).
    CopyDied,
    /// The line of the last list is written.
    Recorded,
    /// It could not be written.
    NotRecorded,
    /// A person has decided.
    Resolved(Choice),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write a line.
    Record(Record, Sync),
    /// Answer the source, if it listens.
    Reply(Reply),
    /// Thaw the copy; no harm if it runs.
    Run,
    /// Delete whatever is here of it.
    Discard,
}

/// The destination's state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    attempt: AttemptId,
    phase: Phase,
    rules: Rules,
}

impl Destination {
    /// An offer has been taken, and [`Record::Begun`] is on the disk.
    pub fn new(attempt: AttemptId, rules: Rules) -> Self {
        Self { attempt, phase: Phase::Receiving, rules }
    }

    /// After the death of whoever drove it: from the journal (`last`: its last line), whether that was written on this boot of the
    /// host, and whether a complete copy is still here. Gives what is to be done first.
    pub fn recover(
        attempt: AttemptId,
        last: Option<Record>,
        same_boot: bool,
        copy: bool,
        rules: Rules,
    ) -> (Self, Vec<Action>) {
        let abort = |sync| vec![Action::Record(Record::Aborted, sync), Action::Discard];
        let (phase, actions) = match last {
            None => (Phase::Unknown, Vec::new()),
            // Recorded, perhaps not run: nothing else may be done with it.
            Some(Record::Owner) if same_boot => (Phase::Owner, vec![Action::Run]),
            Some(Record::Done) if same_boot => (Phase::Closed, Vec::new()),
            Some(Record::Owner | Record::Done) => (Phase::EndedWithHost, Vec::new()),
            Some(Record::Prepared) if copy => (Phase::Prepared, Vec::new()),
            // Without `owner` on the disk not one instruction has run, and there is nothing left that could.
            Some(Record::Prepared) => (Phase::Aborted, abort(Sync::Now)),
            // No PREPARED was sent on this boot; what was on an earlier one has ended with it.
            Some(Record::Begun) => (Phase::Aborted, abort(Sync::Now)),
            Some(Record::Aborted) => (Phase::Aborted, vec![Action::Discard]),
        };
        (Self { attempt, phase, rules }, actions)
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What is to be done now.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Armed if self.phase == Phase::Receiving => {
                self.to(Phase::Preparing, [Action::Record(Record::Prepared, Sync::Later)])
            }
            Event::Failed => self.before_prepared(),
            Event::Silent if self.phase == Phase::Prepared && !self.rules.keep(Rule::KeepAfterPrepared) => self.abort(),
            Event::Silent => self.before_prepared(),
            Event::CopyDied if self.phase == Phase::Prepared => self.abort(),
            Event::CopyDied => self.before_prepared(),
            Event::Asked(attempt, _) if attempt != self.attempt && self.rules.keep(Rule::OwnAttemptOnly) => Vec::new(),
            Event::Asked(_, request) => self.asked(request),
            Event::Recorded => self.recorded(),
            Event::NotRecorded => self.not_recorded(),
            Event::Resolved(choice) if self.phase == Phase::Prepared => match choice {
                Choice::Run => self.own(),
                Choice::Discard => self.abort(),
            },
            Event::Armed | Event::Resolved(_) => Vec::new(),
        }
    }

    fn asked(&mut self, request: Request) -> Vec<Action> {
        match (self.phase, request) {
            (Phase::Prepared, Request::Commit) => self.own(),
            (Phase::Prepared, Request::Abort) => self.abort(),
            (Phase::Prepared, Request::Ask) => vec![Action::Reply(Reply::Prepared)],
            // A COMMIT for what is not prepared: the source takes us for somebody else.
            (Phase::Receiving, Request::Commit | Request::Abort) => self.before_prepared(),
            (Phase::Owner, Request::Done) => self.to(Phase::Closed, [Action::Record(Record::Done, Sync::Later)]),
            (Phase::Owner | Phase::Closed, _) => vec![Action::Reply(Reply::Running)],
            (Phase::Aborted, Request::Commit) if !self.rules.keep(Rule::AbortedIsFinal) => self.own(),
            (Phase::Aborted, _) => vec![Action::Reply(Reply::Aborted)],
            (Phase::EndedWithHost, _) => vec![Action::Reply(Reply::EndedWithHost)],
            (Phase::Unknown, _) => vec![Action::Reply(Reply::Unknown)],
            // Asked while the answer is being recorded, or before there is one.
            _ => Vec::new(),
        }
    }

    fn recorded(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Preparing => self.to(Phase::Prepared, [Action::Reply(Reply::Prepared)]),
            Phase::Owning => self.to(Phase::Owner, [Action::Run, Action::Reply(Reply::Running)]),
            Phase::Aborting => self.to(Phase::Aborted, [Action::Discard, Action::Reply(Reply::Aborted)]),
            _ => Vec::new(),
        }
    }

    /// Where nothing is recorded nothing is decided.
    fn not_recorded(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Preparing => self.before_prepared(),
            Phase::Owning | Phase::Aborting => self.to(Phase::Prepared, []),
            _ => Vec::new(),
        }
    }

    fn own(&mut self) -> Vec<Action> {
        let sync = if self.rules.keep(Rule::SyncOwner) { Sync::Now } else { Sync::Later };
        self.to(Phase::Owning, [Action::Record(Record::Owner, sync)])
    }

    /// PREPARED was sent: it must be known for ever that a COMMIT comes too late.
    fn abort(&mut self) -> Vec<Action> {
        let sync = if self.rules.keep(Rule::SyncAborted) { Sync::Now } else { Sync::Later };
        self.to(Phase::Aborting, [Action::Record(Record::Aborted, sync)])
    }

    /// No PREPARED was sent: the source owns it, whatever happens here.
    fn before_prepared(&mut self) -> Vec<Action> {
        if !matches!(self.phase, Phase::Receiving | Phase::Preparing) {
            return Vec::new();
        }
        let record = Action::Record(Record::Aborted, Sync::Later);
        self.to(Phase::Aborted, [Action::Discard, Action::Reply(Reply::Aborted), record])
    }

    fn to<const N: usize>(&mut self, phase: Phase, actions: [Action; N]) -> Vec<Action> {
        self.phase = phase;
        actions.into()
    }
}
