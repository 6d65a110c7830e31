//! The world that the machines are checked in: hosts, journals with and without sync, a network that loses, delays,
//! doubles and reorders, ptrace that lets go when its tracer dies.
//!
//! A message that was sent may arrive at any later time, any number of times, in any order, or never: the network is the set
//! of what was ever sent.

use super::destination::{self, Destination};
use super::source::{self, Source};
use super::{Candidate, Choice, Reply, Request, Rule, Rules, Sync};
use crate::migration::protocol::AttemptId;
use std::collections::{BTreeSet, VecDeque};

/// The attempt under way; an earlier one was aborted, and its words are still in the network.
pub const ATTEMPT: AttemptId = AttemptId([2; 16]);
const EARLIER: AttemptId = AttemptId([1; 16]);

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Harm {
    /// Two have run past the same instant.
    Doubled,
    /// A complete copy was deleted when it was the only one.
    Lost,
    /// It was started from what was not complete.
    Incomplete,
    /// Nothing fails any more, and still nobody runs, for no reason that the rules allow.
    Stuck,
}

/// Who drives a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Driver {
    /// The command or the session; it traces the tasks.
    Program,
    /// The guardian, or a session that answers from the journal.
    Heir,
    /// All are dead.
    Nobody,
}

/// Lines, the first `synced` of which survive a power loss.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Journal<R> {
    lines: Vec<(R, u8)>,
    synced: usize,
}

impl<R: Copy + PartialEq> Journal<R> {
    fn begun(record: R) -> Self {
        Self { lines: vec![(record, 0)], synced: 1 }
    }

    fn write(&mut self, record: R, sync: Sync, boot: u8) {
        if self.lines.last() != Some(&(record, boot)) {
            self.lines.push((record, boot));
        }
        if sync == Sync::Now {
            self.synced = self.lines.len();
        }
    }

    fn last(&self) -> Option<(R, u8)> {
        self.lines.last().copied()
    }
}

/// The source's host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceHost {
    pub machine: Source,
    pub driver: Driver,
    pub guardian: bool,
    pub journal: Journal<source::Record>,
    pub boot: u8,
    /// The original exists.
    pub alive: bool,
    /// Stopped by ptrace: as long as the program lives.
    pub traced: bool,
    /// Stopped by something that outlives us.
    pub held: bool,
    /// It has executed something since the state was read.
    pub ran: bool,
}

/// What a destination has of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Made {
    /// It is being rebuilt, and ends with the program.
    Building,
    /// Complete, in a frozen cgroup.
    Armed,
    /// It runs.
    Runs,
    /// Nothing.
    Gone,
}

/// A destination's host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DestinationHost {
    pub machine: Destination,
    pub driver: Driver,
    pub guardian: bool,
    pub journal: Journal<destination::Record>,
    pub boot: u8,
    /// Switched off for good.
    pub off: bool,
    pub made: Made,
    /// A complete image of it is on the disk: it survives a power loss.
    pub image: bool,
    /// The image is deleted, but the deletion is not on the disk yet.
    pub undeletable: bool,
    pub ran: bool,
    pub requests: BTreeSet<Request>,
    pub replies: BTreeSet<(bool, Reply)>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub source: SourceHost,
    pub dests: Vec<DestinationHost>,
    pub faults: u8,
    pub rules: Rules,
    pub harm: Option<Harm>,
}

/// What goes wrong while a list of actions is performed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    None,
    /// The program dies after so many actions.
    Dies {
        after: u32,
        with_guardian: bool,
    },
    /// The journal cannot be written.
    DiskFull,
}

impl DestinationHost {
    /// A complete copy is here that does not run.
    pub fn waits(&self) -> bool {
        self.made == Made::Armed || self.image
    }
}

impl World {
    pub fn new(candidates: u8, rules: Rules) -> Self {
        let source = SourceHost {
            machine: Source::new(ATTEMPT, candidates, rules),
            driver: Driver::Program,
            guardian: true,
            journal: Journal::begun(source::Record::Begun),
            boot: 0,
            alive: true,
            traced: true,
            held: false,
            ran: false,
        };
        let dest = DestinationHost {
            machine: Destination::new(ATTEMPT, rules),
            driver: Driver::Program,
            guardian: true,
            journal: Journal::begun(destination::Record::Begun),
            boot: 0,
            off: false,
            made: Made::Building,
            image: false,
            undeletable: false,
            ran: false,
            requests: BTreeSet::new(),
            replies: [(false, Reply::Aborted)].into(),
        };
        Self { source, dests: vec![dest; candidates.into()], faults: 0, rules, harm: None }
    }

    pub fn source_runs(&self) -> bool {
        let s = &self.source;
        s.alive && !s.traced && !s.held
    }

    pub fn runners(&self) -> usize {
        usize::from(self.source_runs()) + self.dests.iter().filter(|d| d.made == Made::Runs).count()
    }

    fn harmed(&mut self, harm: Harm) {
        self.harm.get_or_insert(harm);
    }

    fn note_source(&mut self) {
        if self.source_runs() {
            self.source.ran = true;
            // With a host that was switched off on purpose, what it had done is given up.
            if self.dests.iter().any(|d| d.ran && !d.off) {
                self.harmed(Harm::Doubled);
            }
        }
    }

    // --- source ---

    /// Whether all actions were performed.
    pub fn source_event(&mut self, event: source::Event, mishap: Mishap) -> bool {
        let actions = self.source.machine.on(event);
        self.source_actions(actions, mishap)
    }

    pub fn source_actions(&mut self, actions: Vec<source::Action>, mishap: Mishap) -> bool {
        let (mut queue, mut done) = (VecDeque::from(actions), 0);
        while let Some(action) = queue.pop_front() {
            if let Mishap::Dies { after, with_guardian } = mishap
                && after == done
            {
                self.source_dies(with_guardian);
                return false;
            }
            let decides = queue.is_empty() && matches!(action, source::Action::Record(..));
            let written = self.source_action(action, mishap != Mishap::DiskFull);
            done += 1;
            if decides {
                let event = if written { source::Event::Recorded } else { source::Event::NotRecorded };
                queue.extend(self.source.machine.on(event));
            }
        }
        true
    }

    fn source_action(&mut self, action: source::Action, may_write: bool) -> bool {
        use source::Action::*;
        let boot = self.source.boot;
        match action {
            Hold => self.source.held = true,
            Record(record, sync) if may_write => self.source.journal.write(record, sync, boot),
            Record(..) => return false,
            Send(to, request) => {
                self.dests[usize::from(to.0)].requests.insert(request);
            }
            Release => {
                (self.source.held, self.source.traced) = (false, false);
                self.note_source();
            }
            End => {
                if self.source.alive && !self.dests.iter().any(|d| d.ran) {
                    self.harmed(Harm::Lost);
                }
                self.source.alive = false;
            }
            Connect(_) => {}
        }
        true
    }

    /// Ptrace holds nothing when its tracer dies.
    pub fn source_dies(&mut self, with_guardian: bool) {
        let s = &mut self.source;
        if s.driver == Driver::Heir || with_guardian {
            s.guardian = false;
        }
        s.driver = Driver::Nobody;
        s.traced = false;
        self.note_source();
    }

    pub fn source_recovers(&mut self) {
        let last = self.source.journal.last().map(|(record, _)| record);
        let candidates = u8::try_from(self.dests.len()).unwrap();
        let (machine, actions) = Source::recover(ATTEMPT, last, candidates, self.rules);
        self.source.machine = machine;
        self.source.driver = Driver::Heir;
        self.source_actions(actions, Mishap::None);
    }

    /// Lines that were not synced may be on the disk or not.
    pub fn source_loses_power(&self) -> Vec<Self> {
        let journal = &self.source.journal;
        let cuts = journal.synced..=journal.lines.len();
        let cut = |lines| {
            let mut world = self.clone();
            let s = &mut world.source;
            s.journal.lines.truncate(lines);
            s.journal.synced = lines;
            s.boot += 1;
            (s.driver, s.guardian, s.alive, s.traced, s.held) = (Driver::Nobody, false, false, false, false);
            world
        };
        cuts.map(cut).collect()
    }

    // --- destinations ---

    pub fn dest_event(&mut self, n: usize, event: destination::Event, mishap: Mishap) -> bool {
        if self.dests[n].driver == Driver::Nobody {
            self.dest_recovers(n);
        }
        // Whoever drives looks before it owns what may have died.
        let dest = &self.dests[n];
        let in_memory = dest.machine.phase() == destination::Phase::Prepared;
        if in_memory && dest.made == Made::Gone && event == destination::Event::Asked(ATTEMPT, Request::Commit) {
            let actions = self.dests[n].machine.on(destination::Event::CopyDied);
            self.dest_actions(n, actions, Mishap::None);
        }
        let actions = self.dests[n].machine.on(event);
        self.dest_actions(n, actions, mishap)
    }

    pub fn dest_actions(&mut self, n: usize, actions: Vec<destination::Action>, mishap: Mishap) -> bool {
        let (mut queue, mut done) = (VecDeque::from(actions), 0);
        while let Some(action) = queue.pop_front() {
            if let Mishap::Dies { after, with_guardian } = mishap
                && after == done
            {
                self.dest_dies(n, with_guardian);
                return false;
            }
            let decides = queue.is_empty() && action.decides();
            let written = self.dest_action(n, action, mishap != Mishap::DiskFull);
            done += 1;
            if decides {
                let event = if written { destination::Event::Recorded } else { destination::Event::NotRecorded };
                queue.extend(self.dests[n].machine.on(event));
            }
        }
        true
    }

    fn dest_action(&mut self, n: usize, action: destination::Action, may_write: bool) -> bool {
        use destination::Action::*;
        match action {
            Record(record, sync) if may_write => {
                let dest = &mut self.dests[n];
                dest.journal.write(record, sync, dest.boot);
                if sync == Sync::Now {
                    dest.undeletable = false;
                }
            }
            Record(..) => return false,
            Reply(reply) => {
                self.dests[n].replies.insert((true, reply));
            }
            Run => self.run(n),
            Discard => self.discard(n),
            Park if may_write && self.dests[n].made == Made::Armed => self.dests[n].image = true,
            Unpark if may_write => self.dests[n].made = Made::Armed,
            Park | Unpark => return false,
            Free => self.free(n),
            Forget => {
                let dest = &mut self.dests[n];
                dest.undeletable |= dest.image;
                dest.image = false;
            }
        }
        true
    }

    fn run(&mut self, n: usize) {
        match self.dests[n].made {
            Made::Runs => return,
            // Not armed: the start fails half way.
            Made::Building => {
                self.harmed(Harm::Incomplete);
                return;
            }
            // An image is nothing that can run.
            Made::Gone if self.dests[n].image && !self.dests[n].ran => {
                self.harmed(Harm::Incomplete);
                return;
            }
            // Killed between `owner` and here, by the kernel or a person: as if a moment later.
            Made::Gone => {
                self.dests[n].ran = true;
                return;
            }
            Made::Armed => {}
        }
        self.dests[n].made = Made::Runs;
        if self.source.ran || self.dests.iter().any(|d| d.ran && !d.off) {
            self.harmed(Harm::Doubled);
        }
        self.dests[n].ran = true;
    }

    fn discard(&mut self, n: usize) {
        // Before PREPARED nobody counts on it.
        let prepared = self.dests[n].journal.lines.iter().any(|(record, _)| *record == destination::Record::Prepared);
        if self.dests[n].waits() && prepared && !self.another_copy(n) {
            self.harmed(Harm::Lost);
        }
        let dest = &mut self.dests[n];
        dest.undeletable = dest.image && dest.journal.synced < dest.journal.lines.len();
        (dest.made, dest.image) = (Made::Gone, false);
    }

    fn free(&mut self, n: usize) {
        if self.dests[n].made == Made::Armed && !self.dests[n].image && !self.another_copy(n) {
            self.harmed(Harm::Lost);
        }
        self.dests[n].made = Made::Gone;
    }

    /// Somebody else has, or has had, the target.
    pub fn another_copy(&self, but: usize) -> bool {
        let others = self.dests.iter().enumerate().filter(|(n, _)| *n != but);
        self.source.alive || self.source.ran || others.map(|(_, d)| d).any(|d| d.ran || d.waits())
    }

    pub fn dest_dies(&mut self, n: usize, with_guardian: bool) {
        let dest = &mut self.dests[n];
        if dest.driver == Driver::Heir || with_guardian {
            dest.guardian = false;
        }
        if dest.made == Made::Building {
            dest.made = Made::Gone;
        }
        dest.driver = Driver::Nobody;
    }

    pub fn dest_recovers(&mut self, n: usize) {
        let dest = &mut self.dests[n];
        let last = dest.journal.last();
        let same_boot = last.is_some_and(|(_, boot)| boot == dest.boot);
        let left = destination::Left { tree: dest.made == Made::Armed, image: dest.image };
        let record = last.map(|(record, _)| record);
        let (machine, actions) = Destination::recover(ATTEMPT, record, same_boot, left, self.rules);
        dest.machine = machine;
        dest.driver = Driver::Heir;
        self.dest_actions(n, actions, Mishap::None);
    }

    pub fn dest_loses_power(&self, n: usize, for_good: bool) -> Vec<Self> {
        let journal = &self.dests[n].journal;
        let cut = |lines| {
            let mut world = self.clone();
            let d = &mut world.dests[n];
            d.journal.lines.truncate(lines);
            d.journal.synced = lines;
            d.boot += 1;
            d.off = for_good;
            (d.driver, d.guardian) = (Driver::Nobody, false);
            // A parked copy is on the disk with all that was recorded before; its deletion may not be.
            d.image = (d.image || d.undeletable) && !for_good;
            d.made = Made::Gone;
            world
        };
        (journal.synced..=journal.lines.len()).map(cut).collect()
    }

    /// The directory of journals is gone with its host's disk.
    pub fn dest_forgets(&self, n: usize) -> Vec<Self> {
        let mut worlds = self.dest_loses_power(n, false);
        for world in &mut worlds {
            let d = &mut world.dests[n];
            d.journal.lines.clear();
            (d.journal.synced, d.made, d.image) = (0, Made::Gone, false);
        }
        worlds.truncate(1);
        worlds
    }

    /// Delivers one request and gives what is answered to it.
    pub fn ask(&mut self, n: usize, request: Request) -> Vec<Reply> {
        let before = std::mem::take(&mut self.dests[n].replies);
        self.dest_event(n, destination::Event::Asked(ATTEMPT, request), Mishap::None);
        let new = self.dests[n].replies.iter().map(|(_, reply)| *reply).collect();
        self.dests[n].replies.extend(before);
        new
    }

    pub fn hear(&mut self, n: usize, own: bool, reply: Reply, mishap: Mishap) -> bool {
        let attempt = if own { ATTEMPT } else { EARLIER };
        self.source_event(source::Event::Said(Candidate(n as u8), attempt, reply), mishap)
    }

    /// A person decides for the source's copy, with whatever is dead.
    pub fn resolve_source(&mut self, choice: Choice) {
        if self.source.driver == Driver::Nobody {
            self.source_recovers();
        }
        self.source_event(source::Event::Resolved(choice), Mishap::None);
    }

    /// A task of the frozen copy is killed.
    pub fn kill_copy(&mut self, n: usize) {
        let dest = &mut self.dests[n];
        dest.made = Made::Gone;
        // After `owner` it is as if it had been killed a moment later.
        dest.ran |= dest.journal.last().is_some_and(|(record, _)| record == destination::Record::Owner);
    }

    pub fn arms(&self) -> Made {
        if self.rules.keep(Rule::ArmBeforePrepared) { Made::Armed } else { Made::Building }
    }
}
