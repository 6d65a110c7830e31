//! The trees and hosts of an evacuation: who is where, what was refused, what is under way.

use super::common_pages::Common;
use super::hosts::Hosts;
use super::mover::{Charge, Moved, Movers, News};
use super::select::Tree;
use super::{Fate, Notice, Shows, TreeReport, plan};
use crate::blocker::{Blocker, codes};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::resolve::Owner;
use crate::migration::switchover::forecast::Forecast;
use crate::ops::attempts::{Further, in_short};
use crate::ops::check::peers;
use crate::ops::options::{EvacuateOptions, Mode, MoveOptions, StateOptions, StatusOptions};
use crate::ops::words::SessionId;
use crate::ops::{interrupt, status};
use crate::transport::Abort;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the guardian of a move whose process was killed may take to settle it before that is said to be open.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// One tree.
#[derive(Debug)]
struct Item {
    tree: Tree,
    /// Hosts that do not take it, and why.
    refusals: BTreeMap<usize, Failure>,
    /// What its move to a host would cost.
    forecasts: BTreeMap<usize, Option<Forecast>>,
    /// Where it is to go, or has gone.
    host: Option<usize>,
    /// Its last move.
    moving: Option<Moving>,
    fate: Option<Fate>,
}

/// A move that has begun.
#[derive(Debug, Clone, Copy)]
struct Moving {
    session: SessionId,
    /// Since the beginning of all.
    began: Duration,
    took: Option<Duration>,
    /// Which of all moves it is.
    number: usize,
    /// What it has of `--bandwidth`, bytes a second.
    share: Option<u64>,
}

impl Item {
    fn is_waiting(&self) -> bool {
        self.fate.is_none() && !self.is_moving()
    }

    fn is_moving(&self) -> bool {
        self.moving.is_some_and(|moving| moving.took.is_none())
    }

    fn forecast(&self) -> Option<Forecast> {
        self.forecasts.get(&self.host?).copied().flatten()
    }
}

/// All of it.
pub(super) struct Board<'a> {
    options: &'a EvacuateOptions,
    items: Vec<Item>,
    hosts: Hosts,
    movers: Movers,
    begun: Instant,
    /// Moves that have begun.
    moves: usize,
    /// A tree stays that was to move.
    has_failed: bool,
    /// What trees share that go to one host.
    common: Option<Common>,
}

type Tell<'a> = dyn FnMut(Notice<'_>) + 'a;

impl<'a> Board<'a> {
    /// Nothing is placed yet.
    pub(super) fn new(options: &'a EvacuateOptions, trees: Vec<Tree>, hosts: Hosts, begun: Instant) -> Self {
        let item = |tree| Item {
            tree,
            refusals: BTreeMap::new(),
            forecasts: BTreeMap::new(),
            host: None,
            moving: None,
            fate: None,
        };
        let items = trees.into_iter().map(item).collect();
        Self { options, items, hosts, movers: Movers::new(), begun, moves: 0, has_failed: false, common: None }
    }

    fn jobs(&self) -> usize {
        if self.options.serial { 1 } else { self.options.jobs.max(1) }
    }

    fn waiting(&self) -> Vec<usize> {
        (0..self.items.len()).filter(|n| self.items[*n].is_waiting()).collect()
    }

    /// Places all trees that wait; at alternates those that nobody else takes.
    fn place(&mut self) {
        let (mut waiting, mut hosts) = (self.waiting(), self.hosts.clone());
        for alternates in [false, true] {
            let mut problem = hosts.problem(waiting.iter().map(|n| self.items[*n].tree.bytes).collect(), alternates);
            for (tree, n) in waiting.iter().enumerate() {
                problem.refused.extend(self.items[*n].refusals.keys().map(|host| (tree, *host)));
            }
            for (n, host) in waiting.iter().zip(plan::place(&problem, self.options.place)) {
                self.items[*n].host = host;
                host.into_iter().for_each(|host| hosts.take(host, self.items[*n].tree.bytes));
            }
            waiting.retain(|n| self.items[*n].host.is_none());
        }
    }

    /// Places all trees where the destination would take them: each is asked of the host that it is placed at, and placed anew if
    /// that refuses.
    ///
    /// # Errors
    /// Somebody wants this to end.
    pub(super) fn plan(&mut self, tell: &mut Tell<'_>, abort: &Abort) -> Result<()> {
        for host in self.hosts.each.iter().filter_map(|host| host.out.as_ref()) {
            tell(Notice::Warning(format!("{} and is left out", in_short(host))));
        }
        loop {
            self.place();
            let is_unasked = |n: &usize| {
                let item = &self.items[*n];
                item.host.is_some_and(|host| !item.forecasts.contains_key(&host))
            };
            let unasked: Vec<usize> = self.waiting().into_iter().filter(is_unasked).collect();
            if unasked.is_empty() {
                return interrupt::check();
            }
            self.ask(unasked, tell, abort);
            interrupt::check()?;
        }
    }

    /// Asks of each of these trees the host that it is placed at.
    fn ask(&mut self, mut unasked: Vec<usize>, tell: &mut Tell<'_>, abort: &Abort) {
        unasked.reverse();
        loop {
            while !abort.is_triggered() && self.movers.count() < self.jobs() {
                let Some(n) = unasked.pop() else { break };
                let charge = Charge { moves: self.question(n), further: Further::default(), shows: None };
                if let Err(error) = self.movers.start(n, &charge) {
                    self.items[n].fate = Some(Fate::Stayed(cannot_start(&error)));
                }
            }
            let Some((n, news)) = self.movers.next(abort) else { return };
            let Some(host) = self.items[n].host else { continue };
            match news {
                News::Ended(Ok(moved)) => drop(self.items[n].forecasts.insert(host, moved.forecast)),
                News::Ended(Err(failure)) => self.refused(n, host, failure, tell, abort),
                News::Lost => {
                    let failure = Failure::new("the process that has looked at it was killed");
                    self.items[n].fate = Some(Fate::Stayed(failure.target(TargetState::Running)));
                }
                News::Said(..) | News::Far(_) => {}
            }
        }
    }

    /// A tree does not go to this host, or to none.
    fn refused(&mut self, n: usize, host: usize, failure: Failure, tell: &mut Tell<'_>, abort: &Abort) {
        match failure.kind {
            FailureKind::Blocked if is_unharmed(&failure) => {}
            FailureKind::Peer if is_unharmed(&failure) => self.look_for(host, &failure, tell, abort),
            _ => {
                self.items[n].fate = Some(Fate::Stayed(failure));
                return;
            }
        }
        self.items[n].refusals.insert(host, failure);
    }

    /// A link was lost. Whoever does not answer any more takes nothing else.
    fn look_for(&mut self, host: usize, failure: &Failure, tell: &mut Tell<'_>, abort: &Abort) {
        let dest = &self.hosts.each[host].dest;
        if self.hosts.each[host].out.is_some() || peers::reach(dest, &self.options.peer, abort).program.is_some() {
            return;
        }
        tell(Notice::Warning(format!("{dest} is lost, and nothing else goes there: {}", in_short(failure))));
        self.hosts.lose(host, failure.clone());
    }

    /// A move that only asks: nobody's command runs for it, and nobody is shown anything.
    fn question(&self, n: usize) -> MoveOptions {
        let moves = self.moves(n, SessionId::random());
        MoveOptions { dry_run: true, common: None, state: StateOptions { hooks: Vec::new(), ..moves.state }, ..moves }
    }

    fn moves(&self, n: usize, session: SessionId) -> MoveOptions {
        let (item, options) = (&self.items[n], self.options);
        let mut mode = options.mode.clone();
        if options.serial && self.moves == 0 {
            // All of its memory is there when it runs: nothing ever comes back.
            (mode.mode, mode.recoverable) = (Mode::PreCopy, None);
        } else if options.serial {
            mode.mode = Mode::PostCopy;
        }
        MoveOptions {
            session,
            dests: item.host.iter().map(|host| self.hosts.each[*host].dest.clone()).collect(),
            mode,
            memory: options.memory.clone(),
            state: options.state.clone(),
            peer: options.peer.clone(),
            lease: options.lease,
            common: self.common.as_ref().map(Common::id),
            ..MoveOptions::new(item.tree.target.clone(), crate::ops::words::Dest::Local)
        }
    }

    /// Trees that wait and have a place, in the order in which they begin.
    fn queue(&self) -> Vec<usize> {
        let placed: Vec<usize> = self.waiting().into_iter().filter(|n| self.items[*n].host.is_some()).collect();
        let times: Vec<Duration> = placed.iter().map(|n| self.time(*n)).collect();
        plan::order(&times).into_iter().map(|at| placed[at]).collect()
    }

    /// How long a move takes with its share of the bandwidth.
    fn time(&self, n: usize) -> Duration {
        let forecast = self.items[n].forecast().unwrap_or_default();
        let limited = |rate: u64| {
            let share = rate as f64 / self.jobs() as f64;
            Duration::try_from_secs_f64(forecast.bytes as f64 / share.max(1.0)).unwrap_or(Duration::MAX)
        };
        forecast.total.max(self.options.memory.bandwidth.map(limited).unwrap_or_default())
    }

    /// How long all moves take that have not begun.
    pub(super) fn expected(&self) -> Duration {
        plan::makespan(self.queue().into_iter().map(|n| self.time(n)), self.jobs())
    }

    /// Moves what is placed, until nothing is left to be begun.
    pub(super) fn execute(&mut self, shows: &Shows, tell: &mut Tell<'_>, abort: &Abort) {
        self.common = Common::begin(self.options);
        self.begin_all(shows, tell, abort);
        let dests = self.hosts.each.iter().filter(|host| host.out.is_none()).map(|host| &host.dest);
        if let Some(common) = self.common.take() {
            common.end(dests, &self.options.peer);
        }
    }

    fn begin_all(&mut self, shows: &Shows, tell: &mut Tell<'_>, abort: &Abort) {
        loop {
            while !abort.is_triggered() && (self.options.keep_going || !self.has_failed) && self.begin(shows, tell) {}
            let Some((n, news)) = self.movers.next(abort) else { return };
            match news {
                News::Said(out, text) => tell(Notice::Said(&self.items[n].tree.target, out, text)),
                News::Far(far) => tell(Notice::Far(&self.items[n].tree.target, far)),
                News::Ended(result) => self.ended(n, result, tell, abort),
                News::Lost => {
                    let result =
                        self.items[n].moving.map_or_else(|| Err(Failure::new("no move")), |m| settled(m.session));
                    self.ended(n, result, tell, abort);
                }
            }
        }
    }

    /// Begins the next move, if one can begin now; whether there may be another one.
    fn begin(&mut self, shows: &Shows, tell: &mut Tell<'_>) -> bool {
        let queue = self.queue();
        let (Some(&n), true) = (queue.first(), self.movers.count() < self.jobs()) else { return false };
        let share = match self.options.memory.bandwidth {
            Some(rate) => match plan::share(rate, self.given(), self.jobs() - self.movers.count(), queue.len()) {
                Some(share) => Some(share),
                None => return false,
            },
            None => None,
        };
        if !self.items[n].tree.lives() {
            self.settle(n, Fate::Gone(None), tell);
            return true;
        }
        let session = SessionId::random();
        let mut moves = self.moves(n, session);
        moves.memory.bandwidth = share;
        // Which alternate it goes to is for us to say, who know what else goes there.
        let further = Further { alternates: Vec::new(), ..self.options.further.clone() };
        let charge = Charge { moves, further, shows: Some(shows.clone()) };
        let Some(host) = self.items[n].host else { return false };
        if let Err(error) = self.movers.start(n, &charge) {
            self.has_failed = true;
            self.settle(n, Fate::Stayed(cannot_start(&error)), tell);
            return true;
        }
        let (began, number) = (self.begun.elapsed(), self.moves);
        self.moves += 1;
        self.hosts.take(host, self.items[n].tree.bytes);
        self.items[n].moving = Some(Moving { session, began, took: None, number, share });
        let tree = &self.items[n].tree;
        tell(Notice::Begins { target: &tree.target, name: &tree.name, dest: &self.hosts.each[host].dest });
        true
    }

    /// What moves that are under way have of the bandwidth, bytes a second.
    fn given(&self) -> u64 {
        let moving = self.items.iter().filter(|item| item.is_moving());
        moving.filter_map(|item| item.moving?.share).sum()
    }

    fn ended(&mut self, n: usize, result: Result<Moved>, tell: &mut Tell<'_>, abort: &Abort) {
        let item = &mut self.items[n];
        let (Some(moving), Some(host)) = (&mut item.moving, item.host) else { return };
        moving.took = Some(self.begun.elapsed().saturating_sub(moving.began));
        let mut failure = match result {
            Ok(moved) => {
                let dest = self.hosts.each[host].dest.clone();
                return self.settle(n, Fate::Moved { dest, moved }, tell);
            }
            Err(failure) => failure,
        };
        if is_unharmed(&failure) {
            self.hosts.give_back(host, item.tree.bytes);
        }
        if abort.is_triggered() {
            // It was told by us, and we by somebody else.
            if failure.kind == FailureKind::Interrupted {
                failure.kind = interrupt::requested().unwrap_or(failure.kind);
            }
            return self.settle(n, Fate::Stayed(failure), tell);
        }
        self.refused(n, host, failure.clone(), tell, abort);
        if self.items[n].fate.is_none() {
            self.place();
            match self.items[n].host.map(|host| &self.hosts.each[host].dest) {
                Some(dest) => {
                    let target = &self.items[n].tree.target;
                    tell(Notice::Warning(format!("{target} goes to {dest} instead: {}", in_short(&failure))));
                    return;
                }
                None => self.items[n].fate = Some(Fate::Stayed(self.why(n))),
            }
        }
        self.has_failed = true;
        tell(Notice::Ends(&self.report(n)));
    }

    fn settle(&mut self, n: usize, fate: Fate, tell: &mut Tell<'_>) {
        self.items[n].fate = Some(fate);
        tell(Notice::Ends(&self.report(n)));
    }

    /// Why a tree has no place: what each host has said.
    fn why(&self, n: usize) -> Failure {
        let item = &self.items[n];
        let what = format!("{} has no place at any of the destinations", item.tree.target);
        if let ([(_, only)], 1) = (item.refusals.iter().collect::<Vec<_>>().as_slice(), self.hosts.each.len()) {
            return (*only).clone();
        }
        let mut failure = Failure::new(what).target(TargetState::Running);
        let mut blockers: Vec<Blocker> = Vec::new();
        for (n, host) in self.hosts.each.iter().enumerate() {
            match item.refusals.get(&n).or(host.out.as_ref()) {
                Some(refusal) if refusal.kind == FailureKind::Blocked => blockers.extend(refusal.blockers.clone()),
                Some(refusal) => failure.causes.push(in_short(refusal)),
                None => {
                    let (needed, free) = (item.tree.bytes, self.hosts.free(n).unwrap_or(0));
                    let reason = format!("{needed} bytes are needed, {free} are left beside other trees");
                    blockers
                        .push(Blocker::new(codes::MEMORY_SHORT, format!("memory of {}", host.dest)).because(reason));
                }
            }
        }
        if failure.causes.is_empty() {
            failure.kind = FailureKind::Blocked;
        }
        let mut seen = BTreeSet::new();
        blockers.retain(|blocker| seen.insert((blocker.code, blocker.object.clone(), blocker.reason.clone())));
        Failure { blockers, ..failure }
    }

    /// Why nothing was done about a tree that waits still.
    fn left_alone(&self, n: usize) -> Failure {
        match (interrupt::requested(), self.items[n].host) {
            (Some(kind), _) => Failure::new("its move had not begun when this was interrupted").kind(kind),
            (None, None) => return self.why(n),
            (None, Some(_)) => {
                Failure::new("no move begins after one has failed").hint("--keep-going goes on with the others")
            }
        }
        .target(TargetState::Running)
    }

    /// What has become of each: first those that have moved or would, in the order in which they begin.
    pub(super) fn reports(mut self, tell: &mut Tell<'_>) -> Vec<TreeReport> {
        let queue = self.queue();
        for n in self.waiting() {
            let planned = self.items[n].host.filter(|_| self.options.dry_run);
            match planned {
                Some(host) => {
                    let (dest, forecast) = (self.hosts.each[host].dest.clone(), self.items[n].forecast());
                    self.items[n].fate = Some(Fate::Planned { dest, forecast });
                }
                None => self.settle(n, Fate::Stayed(self.left_alone(n)), tell),
            }
        }
        let place = |n: &usize| {
            let item = &self.items[*n];
            let stays = matches!(item.fate, Some(Fate::Stayed(_)));
            let queued = queue.iter().position(|queued| queued == n);
            (stays, item.moving.map_or(usize::MAX, |moving| moving.number), queued)
        };
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        order.sort_by_key(place);
        order.into_iter().map(|n| self.report(n)).collect()
    }

    fn report(&self, n: usize) -> TreeReport {
        let item = &self.items[n];
        let fate = item.fate.clone().unwrap_or(Fate::Gone(None));
        TreeReport {
            target: item.tree.target.clone(),
            name: item.tree.name.clone(),
            memory_bytes: Some(item.tree.bytes),
            session: item.moving.map(|moving| moving.session),
            began: item.moving.map(|moving| moving.began),
            took: item.moving.and_then(|moving| moving.took),
            fate,
        }
    }
}

fn cannot_start(error: &std::io::Error) -> Failure {
    Failure::of("the process of its move cannot be started", error).target(TargetState::Running)
}

/// The tree runs here as if nothing had been.
fn is_unharmed(failure: &Failure) -> bool {
    matches!(failure.target, TargetState::Untouched | TargetState::Running)
}

/// What has become of a move whose process was killed: its guardian settles it, and the journal says how.
fn settled(session: SessionId) -> Result<Moved> {
    let killed = || Failure::new("the process of its move was killed");
    let until = Instant::now() + SETTLED_AFTER;
    loop {
        let found = status::run(&StatusOptions { session: Some(session.to_string()), all: true });
        // It had not even begun a journal.
        let Some(entry) = found.ok().and_then(|mut entries| entries.pop()) else {
            return Err(killed().target(TargetState::Running));
        };
        if entry.busy && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        let (bytes, downtime) = (entry.line.bytes_sent, entry.line.downtime_us.map(Duration::from_micros));
        return match entry.owner {
            Owner::There if !entry.busy => {
                let notes = vec!["the process of its move was killed, and its guardian has come to the end".to_owned()];
                Ok(Moved { pid: None, mode: None, downtime, bytes, named_pages: None, forecast: None, notes })
            }
            Owner::Here | Owner::EndedHere if !entry.busy => Err(killed().target(TargetState::Running)),
            _ => Err(killed()
                .kind(FailureKind::NeedsPerson)
                .hint(format!("migrate status {session} says who has it; migrate resolve {session} decides"))
                .target(TargetState::InDoubt)),
        };
    }
}
