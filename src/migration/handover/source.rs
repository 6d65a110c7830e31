//! The source's half. Mirror of [`super::destination`].

use super::{Candidate, Choice, Reply, Request, Rule, Rules, Sync};
use crate::migration::protocol::AttemptId;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The source owns the target. It runs, or is stopped for the pause.
    Open,
    /// It is being held, and `committing` recorded.
    Sealing(Candidate),
    /// COMMIT may have been sent.
    Committed(Candidate),
    /// COMMIT may have been sent, and nobody answers. The original is held.
    InDoubt(Candidate),
    /// That it stays is being recorded; COMMIT had been sent, last to this one.
    Unsealing(Candidate),
    /// It goes on here.
    Stays,
    /// It runs there; the original has ended.
    Moved(Candidate),
}

/// A line of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Record {
    /// The attempt has begun.
    Begun,
    /// COMMIT may have been sent to this one.
    Committing(Candidate),
    /// It goes on here.
    Aborted,
    /// The original has ended.
    Done(Candidate),
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// From a candidate, about the attempt it names.
    Said(Candidate, AttemptId, Reply),
    /// The link to it is lost, or it has been silent for too long.
    Silent(Candidate),
    /// There is a link to it again.
    Connected(Candidate),
    /// The command that switches its host off has succeeded.
    Fenced(Candidate),
    /// A person wants the command to stop, or something has failed on this side.
    Failed,
    /// The actions of the last list are done.
    Recorded,
    /// They could not be done.
    NotRecorded,
    /// A person has decided.
    Resolved(Choice),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// See to it that the original stays stopped when every program of ours dies.
    Hold,
    /// Write a line.
    Record(Record, Sync),
    /// Tell a candidate, if it listens.
    Send(Candidate, Request),
    /// Let the original go on.
    Release,
    /// End the original.
    End,
    /// Look for a link to it, for as long as it takes.
    Connect(Candidate),
}

/// What is known of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Known {
    /// It has not answered.
    Nothing,
    /// It stands ready.
    Ready,
    /// It will never run the target.
    Aborted,
    /// It fell silent before anything was committed to it.
    Lost,
}

/// The source's state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    attempt: AttemptId,
    phase: Phase,
    known: Vec<Known>,
    /// The last that a COMMIT may have been sent to.
    sealed: Option<Candidate>,
    rules: Rules,
}

impl Source {
    /// An attempt with this many candidates; [`Record::Begun`] is written.
    pub fn new(attempt: AttemptId, candidates: u8, rules: Rules) -> Self {
        Self { attempt, phase: Phase::Open, known: vec![Known::Nothing; candidates.into()], sealed: None, rules }
    }

    /// After the death of whoever drove it: from the last line of the journal. Gives what is to be done first.
    pub fn recover(attempt: AttemptId, last: Option<Record>, candidates: u8, rules: Rules) -> (Self, Vec<Action>) {
        let mut source = Self::new(attempt, candidates, rules);
        let actions = match last {
            None | Some(Record::Begun) => source.stay(),
            Some(Record::Committing(to)) => source.doubt(to),
            // Recorded, perhaps not released.
            Some(Record::Aborted) => source.release(),
            Some(Record::Done(to)) => source.told(to),
        };
        (source, actions)
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Who may have been told to run it: the candidate that alone knows who owns the target.
    pub fn committed_to(&self) -> Option<Candidate> {
        match self.phase {
            Phase::Sealing(to) | Phase::Committed(to) | Phase::InDoubt(to) | Phase::Moved(to) => Some(to),
            Phase::Open | Phase::Unsealing(_) | Phase::Stays => None,
        }
    }

    /// What is to be done now.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Said(_, attempt, _) if attempt != self.attempt && self.rules.keep(Rule::OwnAttemptOnly) => {
                Vec::new()
            }
            Event::Said(from, _, reply) => self.said(from, reply),
            Event::Silent(who) => self.silent(who),
            Event::Connected(to) => self.connected(to),
            Event::Fenced(who) if self.in_doubt_of(who) => {
                self.known[usize::from(who.0)] = Known::Aborted;
                self.next_or_stay(who)
            }
            Event::Failed if self.phase == Phase::Open => self.stay(),
            Event::Recorded => self.recorded(),
            Event::NotRecorded => self.not_recorded(),
            Event::Resolved(choice) => self.resolved(choice),
            Event::Fenced(_) | Event::Failed => Vec::new(),
        }
    }

    fn said(&mut self, from: Candidate, reply: Reply) -> Vec<Action> {
        let n = usize::from(from.0);
        let theirs = self.in_doubt_of(from) || self.phase == Phase::Committed(from);
        let reply = match reply {
            Reply::Unknown if !self.rules.keep(Rule::UnknownIsDoubt) => Reply::Aborted,
            reply => reply,
        };
        match reply {
            Reply::Prepared if self.known[n] == Known::Aborted => Vec::new(),
            Reply::Prepared => {
                self.known[n] = Known::Ready;
                match self.phase {
                    Phase::Open => self.seal(from),
                    // It waits for a COMMIT that was lost.
                    Phase::InDoubt(to) if to == from => self.commit(from),
                    _ => Vec::new(),
                }
            }
            Reply::Running if theirs => {
                let mut actions = vec![Action::End, Action::Record(Record::Done(from), Sync::Now)];
                actions.extend(self.told(from));
                actions
            }
            Reply::Aborted => {
                self.known[n] = Known::Aborted;
                match self.phase {
                    Phase::Open if self.nobody_left() => self.stay(),
                    _ if theirs => self.next_or_stay(from),
                    _ => Vec::new(),
                }
            }
            // Only a person can tell what is right.
            Reply::EndedWithHost | Reply::Unknown if theirs => {
                self.phase = Phase::InDoubt(from);
                Vec::new()
            }
            Reply::Running | Reply::EndedWithHost | Reply::Unknown => Vec::new(),
        }
    }

    fn silent(&mut self, who: Candidate) -> Vec<Action> {
        let n = usize::from(who.0);
        match self.phase {
            Phase::Open => {
                if self.known[n] != Known::Aborted {
                    self.known[n] = Known::Lost;
                }
                if self.nobody_left() { self.stay() } else { Vec::new() }
            }
            Phase::Committed(to) | Phase::InDoubt(to) if to == who => {
                if !self.rules.keep(Rule::SilenceIsDoubt) {
                    return self.unseal(who);
                }
                if !self.rules.keep(Rule::NextAfterAborted) {
                    self.known[n] = Known::Lost;
                    if self.ready().is_some() {
                        return self.next_or_stay(who);
                    }
                }
                self.doubt(who)
            }
            _ => Vec::new(),
        }
    }

    /// Whoever has not been told is told what became of the target.
    fn connected(&self, to: Candidate) -> Vec<Action> {
        let request = match self.phase {
            Phase::InDoubt(who) | Phase::Committed(who) if who == to => Request::Ask,
            Phase::Moved(who) if who == to => Request::Done,
            Phase::Moved(_) | Phase::Stays => Request::Abort,
            _ => return Vec::new(),
        };
        vec![Action::Send(to, request)]
    }

    fn recorded(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Sealing(to) => self.commit(to),
            Phase::Unsealing(_) => self.release(),
            _ => Vec::new(),
        }
    }

    fn not_recorded(&mut self) -> Vec<Action> {
        match self.phase {
            // No COMMIT was sent to this one, and those before it have aborted.
            Phase::Sealing(_) => match self.sealed {
                Some(before) => self.unseal(before),
                None => self.stay(),
            },
            // Asked again, it will say again that it has aborted; by then the line can perhaps be written.
            Phase::Unsealing(to) => self.doubt(to),
            _ => Vec::new(),
        }
    }

    fn resolved(&mut self, choice: Choice) -> Vec<Action> {
        match (self.phase, choice) {
            (Phase::InDoubt(to) | Phase::Committed(to), Choice::Run) => self.unseal(to),
            (Phase::InDoubt(to) | Phase::Committed(to), Choice::Discard) => {
                self.phase = Phase::Moved(to);
                vec![Action::End, Action::Record(Record::Done(to), Sync::Now)]
            }
            _ => Vec::new(),
        }
    }

    fn in_doubt_of(&self, who: Candidate) -> bool {
        self.phase == Phase::InDoubt(who)
    }

    fn ready(&self) -> Option<Candidate> {
        let n = self.known.iter().position(|known| *known == Known::Ready)?;
        u8::try_from(n).ok().map(Candidate)
    }

    fn nobody_left(&self) -> bool {
        self.known.iter().all(|known| matches!(known, Known::Aborted | Known::Lost))
    }

    fn seal(&mut self, to: Candidate) -> Vec<Action> {
        self.phase = Phase::Sealing(to);
        let record = Action::Record(Record::Committing(to), Sync::Later);
        if self.rules.keep(Rule::HoldBeforeCommit) { vec![Action::Hold, record] } else { vec![record] }
    }

    fn commit(&mut self, to: Candidate) -> Vec<Action> {
        self.phase = Phase::Committed(to);
        self.sealed = Some(to);
        if self.rules.keep(Rule::EndAfterRunning) {
            return vec![Action::Send(to, Request::Commit)];
        }
        vec![Action::Send(to, Request::Commit), Action::End]
    }

    fn doubt(&mut self, to: Candidate) -> Vec<Action> {
        self.phase = Phase::InDoubt(to);
        vec![Action::Connect(to)]
    }

    /// The one that was told to run it never will: another that is ready takes over, or it goes on here.
    fn next_or_stay(&mut self, aborted: Candidate) -> Vec<Action> {
        match self.ready() {
            Some(next) => self.seal(next),
            None => self.unseal(aborted),
        }
    }

    /// A COMMIT was sent: that it goes on here is recorded before it does.
    fn unseal(&mut self, to: Candidate) -> Vec<Action> {
        if self.rules.keep(Rule::RecordBeforeRelease) {
            self.phase = Phase::Unsealing(to);
            return vec![Action::Record(Record::Aborted, Sync::Now)];
        }
        let mut actions = self.release();
        actions.push(Action::Record(Record::Aborted, Sync::Now));
        actions
    }

    /// No COMMIT was sent to anybody who might still follow it: it goes on at once.
    fn stay(&mut self) -> Vec<Action> {
        let mut actions = vec![Action::Release, Action::Record(Record::Aborted, Sync::Later)];
        actions.extend(self.released());
        actions
    }

    fn release(&mut self) -> Vec<Action> {
        let mut actions = vec![Action::Release];
        actions.extend(self.released());
        actions
    }

    fn released(&mut self) -> Vec<Action> {
        self.phase = Phase::Stays;
        self.candidates().map(|to| Action::Send(to, Request::Abort)).collect()
    }

    fn told(&mut self, owner: Candidate) -> Vec<Action> {
        self.phase = Phase::Moved(owner);
        let request = |to| if to == owner { Request::Done } else { Request::Abort };
        self.candidates().map(|to| Action::Send(to, request(to))).collect()
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate> + use<> {
        (0..u8::try_from(self.known.len()).unwrap_or(u8::MAX)).map(Candidate)
    }
}
