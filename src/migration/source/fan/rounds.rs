//! Rounds to several destinations, and the last one.

use super::super::{Attempt, Decision, ExitCondition, Final, MoveError, Plan, Still, Taken, Target};
use super::owed::{self, Mask, Pages};
use super::spread::{Spread, Tally};
use super::warm::rested;
use super::{Fan, Member, Order, READERS, Stage};
use crate::memory::pipeline::ReadPages;
use crate::memory::throttle::Throttle;
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::effort::Sparing;
use crate::migration::handover::Candidate;
use crate::migration::pages::What;
use crate::migration::send_pages::{Packing, mark, note_frames, read_round};
use crate::migration::switchover::{self, RoundStats};
use crate::migration::warm::Warm;
use crate::ops::Event;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Below this a second thread costs more than it brings.
const ALONE_BYTES: u64 = 4 << 20;

/// Pages of the pause, at most, with which one destination goes ahead: read once more if the others have to follow.
const AHEAD_BYTES: u64 = 16 << 20;

/// Where each is to have a copy: how long the target stands still, once one has everything, for those that have not.
pub(super) const STRAGGLERS_MAX: Duration = Duration::from_secs(10);

/// How long it is alone: twice what was expected of the pause, but not less nor more than this.
const HEAD_START: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));

/// What a round has shown, of the destination that the policy looks at.
#[derive(Debug, Clone, Copy)]
struct Shown {
    member: usize,
    pages: u64,
    sent_bytes: u64,
    content_bytes: u64,
    took: Duration,
}

/// Pages, and who takes them.
type Part = (Mask, Vec<(Space, PageRange)>);

/// Pages on their way to all that take part in a round.
struct Pass {
    /// Who, and what each lacks still.
    due: Vec<(usize, Pages)>,
    begun: Instant,
    /// Bytes sent to each before.
    before: Vec<u64>,
    tallies: Vec<Tally>,
    /// What was not sent to whom.
    missed: Mutex<BTreeMap<usize, Pages>>,
    pages: u64,
    /// How many have all that they get.
    served: usize,
    /// Of the pages of this pass.
    begun_bytes: u64,
    total_bytes: u64,
}

/// When pages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// While the target runs.
    InRound,
    /// The same, of what was read while it stood still.
    OfStill,
    /// While it is stopped.
    InPause,
    /// The same, and not for longer than this.
    Until(Instant),
}

impl<'a> Attempt<'a> {
    /// Rounds while the target runs, until the policy says that it is enough for as many as the quorum asks for.
    pub(super) fn rounds_to_all(&mut self, target: &mut dyn Target) -> Result<ExitCondition, MoveError> {
        if self.wishes.stop_and_copy {
            self.report.expected_downtime = self.expected_pause(0).filter(|_| self.wishes.follows);
            return Ok(ExitCondition::StopAndCopy);
        }
        let mut shown: Option<Shown> = None;
        let mut taken_at = Instant::now();
        let mut step = Decision::Continue;
        loop {
            match std::mem::replace(&mut step, Decision::Continue) {
                Decision::Continue => {}
                Decision::Try(help) => self.help(target, help),
                Decision::SwitchOver(exit) => return Ok(exit),
                Decision::Follow(exit) => {
                    self.put_off(target);
                    return Ok(exit);
                }
                Decision::Abort(exit) => {
                    return Err(MoveError::TooLong { goal: self.wishes.goals.downtime_max, exit });
                }
            }
            if let Some(warm) = self.wishes.warm {
                self.rest(target, warm, shown.is_some())?;
                self.stand_by(target, warm)?;
            }
            let quorum = self.wishes.quorum;
            self.wait_until(target, "sending pages", |fan| fan.count(Member::is_idle) >= fan.at_least(quorum))?;
            // The files that are mapped are only looked for where there is somebody to send files to.
            if shown.is_some() && self.fan().count(|member| member.is_in() && member.ships) > 0 {
                let mapped = target.mapped_files();
                let idle = self.fan().members.iter().filter(|member| member.is_idle());
                idle.for_each(|member| member.lane.order(Order::Ship(mapped.clone())));
            }
            let mut passed: Option<Pass> = None;
            target.round(&mut |plan, pages| {
                let since = taken_at.elapsed();
                taken_at = Instant::now();
                if let Some(last) = shown.take() {
                    step = self.decide_for(&last, since, plan.bytes());
                    if step != Decision::Continue {
                        return Ok(Taken::GivenBack);
                    }
                }
                let is_first = self.fan().is_first_round();
                let (mut now, deferred) = self.effort.part(plan, is_first);
                now.spaces.clone_from(&plan.spaces);
                passed = Some(self.round_to_all(&now, pages)?);
                Ok(Taken::Stored { deferred })
            })?;
            if let Some(pass) = passed {
                shown = self.await_round(target, &pass)?;
            }
        }
    }

    /// Another round? `last`, which was begun so long ago, has left so many bytes, and what its destination has not got of others'.
    fn decide_for(&mut self, last: &Shown, since: Duration, plan_bytes: u64) -> Decision {
        let member = &self.fan().members[last.member];
        let (room_bytes, owed_bytes) = (member.room_bytes, member.owed.bytes());
        let residual_bytes = plan_bytes + owed_bytes;
        let mut stats = RoundStats {
            took: since,
            sent_bytes: last.sent_bytes,
            content_bytes: last.content_bytes,
            residual_bytes,
            dirty_bytes: self.effort.dirty_bytes(plan_bytes),
            lacking_room_bytes: residual_bytes.saturating_mul(2).saturating_sub(room_bytes),
        };
        let mut number = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX).saturating_add(1);
        if self.wishes.warm.is_some() {
            number = self.fan().members[last.member].number;
            stats = rested(stats, last.took);
        }
        self.rounds.push(stats);
        self.report.expected_downtime = self.expected_pause(if self.wishes.follows { 0 } else { residual_bytes });
        self.note_round_of(number, last.pages, &stats, self.report.expected_downtime);
        match self.wishes.warm {
            Some(warm) => self.decide_warm(warm, plan_bytes),
            None => switchover::decide(&self.rounds, &self.wishes.goals, &self.effort.tried),
        }
    }

    /// Sends a round to all that have stored their last one; the others will get it with their next.
    fn round_to_all(&mut self, plan: &Plan, source: &dyn ReadPages) -> Result<Pass, MoveError> {
        let shares = plan.notes.iter().any(|note| note.what == What::Inherit);
        let spaces = Arc::new(plan.spaces.clone());
        let is_first = self.fan().is_first_round();
        let keeps_whole = self.wishes.warm.is_some();
        let fan = self.fan.as_mut().expect("there are several destinations");
        fan.kin.note(plan);
        if keeps_whole {
            fan.whole.misses(plan, &fan.kin);
        }
        let mut due = Vec::new();
        for (n, member) in fan.members.iter_mut().enumerate().filter(|(_, member)| member.is_left()) {
            if !member.is_idle() {
                member.owed.misses(plan, &fan.kin);
                continue;
            }
            // Relatives that share pages can only be made with those pages: after the first round.
            if member.number == 0 && fan.kin.is_empty() {
                member.lane.order(Order::Build(spaces.clone()));
            }
            member.begin_round(false);
            let (pages, notes) = member.owed.due(plan, false);
            note_frames(&notes).into_iter().for_each(|frame| member.lane.push(&frame.into()));
            due.push((n, pages));
        }
        let mut pass = Pass::begin(due, &fan.members);
        let builds = is_first && shares && plan.is_of_the_survey();
        let mut parts = pass.parts();
        for n in pass.least_first() {
            self.send_to(n, &mut parts, &mut pass, source, Served::InRound)?;
            let fan = self.fan();
            let member = &mut fan.members[n];
            if let Some(pages) = pass.missed_by(n) {
                member.owed.missed(&pages, &fan.kin);
                // A tree of relatives that lacks pages of theirs is none.
                member.is_patchy |= !fan.kin.is_empty();
            }
            member.end_round(false);
            if builds && !member.is_patchy {
                member.lane.order(Order::Build(spaces.clone()));
            }
        }
        Ok(pass)
    }

    /// Sends what was read of a target that stood still to these, who have all that rounds have brought. Who is too slow with it does
    /// not get this state.
    pub(super) fn send_still(&mut self, still: &Still, who: &[usize]) -> Result<(), MoveError> {
        let (pages, notes) = owed::Owed::default().due(&still.last.plan, true);
        let frames: Vec<Arc<[u8]>> = note_frames(&notes).into_iter().map(Into::into).collect();
        let mut due = Vec::new();
        for n in who {
            let member = &mut self.fan().members[*n];
            member.begin_round(true);
            frames.iter().for_each(|frame| member.lane.push(frame));
            due.push((*n, pages.clone()));
        }
        let mut pass = Pass::begin(due, &self.fan().members);
        let mut parts = pass.parts();
        for n in pass.least_first() {
            self.send_to(n, &mut parts, &mut pass, &*still.pages, Served::OfStill)?;
            let member = &mut self.fan().members[n];
            member.end_round(false);
            if pass.missed_by(n).is_none() {
                member.newest.is_under_way = true;
                member.lane.order(Order::Keep(still.last.clone(), still.taken));
            }
        }
        Ok(())
    }

    /// Waits until the round is stored where the policy looks: at as many as the quorum says. Those who are nearly there get a
    /// moment more.
    fn await_round(&mut self, target: &mut dyn Target, pass: &Pass) -> Result<Option<Shown>, MoveError> {
        let quorum = self.wishes.quorum;
        let took_part = |n: usize| pass.due.iter().any(|(member, _)| *member == n);
        let stored = move |fan: &Fan<'_>| {
            let theirs = fan.members.iter().enumerate().filter(|(n, _)| took_part(*n)).map(|(_, member)| member);
            let (done, under_way) = theirs.fold((0, 0), |(done, under_way), member| {
                (done + usize::from(member.is_idle()), under_way + usize::from(matches!(member.stage, Stage::InRound)))
            });
            (done, under_way)
        };
        self.wait_until(target, "sending pages", |fan| {
            let (done, under_way) = stored(fan);
            done >= fan.at_least(quorum).min(done + under_way)
        })?;
        let elapsed = pass.begun.elapsed();
        let moment = elapsed / 4 + Duration::from_millis(10);
        let until = Instant::now() + moment;
        let under_way = |fan: &Fan<'_>, n: usize| matches!(fan.members[n].stage, Stage::InRound);
        let fan = self.fan();
        let is_near = |n: &usize| {
            let member = &fan.members[*n];
            let sent = member.bytes_sent() - pass.before[*n];
            under_way(fan, *n) && time_left(member.lane.queued(), sent, elapsed) <= moment
        };
        let near: Vec<usize> = pass.due.iter().map(|(n, _)| *n).filter(is_near).collect();
        self.wait_until(target, "sending pages", |fan| {
            !near.iter().any(|n| under_way(fan, *n)) || Instant::now() >= until
        })?;
        let fan = self.fan();
        let mut done: Vec<(Instant, usize)> = Vec::new();
        for (n, _) in &pass.due {
            let member = &fan.members[*n];
            if member.is_idle() {
                done.push((member.stored_at, *n));
            }
        }
        done.sort_unstable();
        let looked_at = fan.at_least(quorum).min(done.len()).checked_sub(1).and_then(|n| done.get(n));
        // Where everybody who took part is lost or behind there is nothing to go by.
        Ok(looked_at.map(|&(at, n)| Shown {
            member: n,
            pages: pass.pages,
            sent_bytes: fan.members[n].bytes_sent() - pass.before[n],
            content_bytes: pass.tallies[n].content_bytes.load(std::sync::atomic::Ordering::Relaxed),
            took: at - pass.begun,
        }))
    }

    /// The target is stopped, and is this.
    fn note_last(&mut self, target: &dyn Target, last: &Arc<Final>) {
        let fan = self.fan();
        for member in fan.members.iter_mut().filter(|member| member.is_in()) {
            member.owed.forget_dead(&last.spaces);
            let follows = member.owed.put_off(&last.plan, &|space, pages| target.can_follow(space, pages));
            member.later = Arc::new(owed::later(last, &follows));
        }
        fan.last = Some(last.clone());
    }

    /// The target is stopped: all get what they lack of it. Who takes much longer than the first is left out.
    pub(super) fn send_last_to_each(&mut self, target: &mut dyn Target, last: &Arc<Final>) -> Result<(), MoveError> {
        self.note_last(target, last);
        let fan = self.fan();
        let all: Vec<usize> = (0..fan.members.len()).filter(|n| fan.members[*n].is_in()).collect();
        let mut pass = Pass::begin(fan.enter(&all), &fan.members);
        self.serve_all(target, &mut pass, None)?;
        for (n, _) in std::mem::take(&mut pass.due) {
            let who = self.fan().members[n].candidate;
            self.leave_behind(target, who);
        }
        self.note_last_round(&pass);
        Ok(())
    }

    /// The target does not stand still for this one any longer.
    pub(super) fn leave_behind(&mut self, target: &mut dyn Target, who: Candidate) {
        let reason = "it was too slow with what was left when the target stood still".to_owned();
        self.drop_out(target, who, MoveError::Stays { reason });
    }

    /// The target is stopped: they get what they lack of it, until the first is ready. One of them goes ahead where that costs no more
    /// than a moment: the way out of this host is its alone, and it is ready sooner than if all were made ready at once.
    pub(super) fn send_last(&mut self, target: &mut dyn Target, last: &Arc<Final>) -> Result<(), MoveError> {
        let expected = self.report.expected_downtime.unwrap_or_default();
        self.note_last(target, last);
        let fan = self.fan();
        let (first, rest) = fan.ahead(last.plan.bytes());
        let mut pass = Pass::begin(fan.enter(&first), &fan.members);
        fan.held_back = rest;
        self.serve_all(target, &mut pass, None)?;
        if !self.fan().held_back.is_empty() {
            let until = pass.begun + (expected * 2).clamp(HEAD_START.0, HEAD_START.1);
            self.wait_until(target, "the first destination rebuilds the target", |fan| {
                let is_lost = !first.iter().any(|n| fan.members[*n].is_in());
                is_lost || !fan.ready.is_empty() || Instant::now() >= until
            })?;
            if self.fan().ready.is_empty() {
                self.fan().let_go(&mut pass);
                self.serve_all(target, &mut pass, None)?;
            }
        }
        self.note_last_round(&pass);
        self.fan().unserved = pass.due;
        Ok(())
    }

    fn note_last_round(&mut self, pass: &Pass) {
        let stats = RoundStats {
            took: pass.begun.elapsed(),
            sent_bytes: 0,
            content_bytes: 0,
            residual_bytes: 0,
            dirty_bytes: 0,
            lacking_room_bytes: 0,
        };
        let most =
            self.fan().members.iter().zip(&pass.before).map(|(member, before)| member.bytes_sent() - before).max();
        let number = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.note_round_of(number, pass.pages, &RoundStats { sent_bytes: most.unwrap_or(0), ..stats }, None);
    }

    /// The one that was to have the target does not: the others get what they lack still, until one of them is ready or it is then.
    pub(super) fn serve_rest(&mut self, target: &mut dyn Target, until: Instant) -> Result<(), MoveError> {
        let fan = self.fan();
        let due: Vec<_> =
            std::mem::take(&mut fan.unserved).into_iter().filter(|(n, _)| fan.members[*n].is_in()).collect();
        let mut pass = Pass::begin(due, &fan.members);
        fan.let_go(&mut pass);
        let served = self.serve_all(target, &mut pass, Some(until));
        self.fan().unserved = pass.due;
        served
    }

    /// In the pause: all who take part get what they lack, the one that lacks the least first, until somebody is ready, unless each
    /// is to have a copy. What others lack then is left in the pass.
    fn serve_all(&mut self, target: &mut dyn Target, pass: &mut Pass, until: Option<Instant>) -> Result<(), MoveError> {
        let (for_all, mut until) = (self.wishes.clones.is_some(), until);
        // Who is so far behind that another one is ready before is not waited for.
        while !pass.due.is_empty()
            && (for_all || self.fan().ready.is_empty())
            && until.is_none_or(|until| Instant::now() < until)
        {
            let (source, mut parts, mut left) = (target.frozen_pages(), pass.parts(), Vec::new());
            for n in pass.least_first() {
                self.send_to(n, &mut parts, pass, &*source, until.map_or(Served::InPause, Served::Until))?;
                let member = &mut self.fan().members[n];
                match pass.missed_by(n).filter(|_| member.is_in()) {
                    Some(pages) => left.push((n, pages)),
                    None if member.is_in() => member.end_round(true),
                    None => {}
                }
            }
            drop(source);
            while let Some(news) = self.fan().next(Duration::ZERO) {
                self.hear(target, news);
            }
            pass.due = left;
            let has_all = |member: &Member| matches!(member.stage, Stage::Sent | Stage::Prepared);
            // For an image nothing stands still meanwhile.
            let waits = for_all && !self.wishes.from_image;
            if waits && until.is_none() && self.fan().count(has_all) > 0 {
                until = Some(Instant::now() + STRAGGLERS_MAX);
            }
        }
        Ok(())
    }

    /// Reads what is due to this one, and gives it to everybody who lacks it. It has then all that it gets in this pass: whoever
    /// lacks little goes on at once, whatever others lack. What was not sent to whom is noted.
    fn send_to(
        &mut self,
        n: usize,
        parts: &mut Vec<Part>,
        pass: &mut Pass,
        source: &dyn ReadPages,
        served: Served,
    ) -> Result<(), MoveError> {
        let in_pause = matches!(served, Served::InPause | Served::Until(_));
        let (theirs, rest): (Vec<_>, Vec<_>) =
            std::mem::take(parts).into_iter().partition(|(mask, _)| Spread::takes(*mask, n));
        *parts = rest;
        let bandwidth = self.wishes.bandwidth.filter(|_| !in_pause);
        let warm = self.wishes.warm.filter(|_| !in_pause);
        let budget = warm.map(|warm| warm.budget().clone());
        let (throttle, unlimited) = (Throttle::new(bandwidth).within(budget), Throttle::new(None));
        let packing = self.packing(bandwidth);
        let fan = self.fan.as_ref().expect("there are several destinations");
        // Who lacks more than others is not waited for once one of them has said something: in a round that it has stored it, in
        // the pause that it is ready.
        let others_are_done = in_pause || pass.served > 0;
        let is_over = || {
            let has_news = others_are_done && !fan.news.is_empty();
            let is_late = matches!(served, Served::Until(then) if Instant::now() >= then);
            has_news || is_late || fan.interrupted.is_triggered() || warm.is_some_and(Warm::is_urgent)
        };
        let mut sent = Vec::new();
        for (mask, pages) in theirs {
            let to = fan.members.iter().enumerate().filter(|(n, _)| Spread::takes(mask, *n));
            let to: Vec<_> = to.map(|(n, member)| (n, &member.lane)).collect();
            let (room, missed, tallies) = (&*fan.room, &pass.missed, &pass.tallies[..]);
            let (throttle, is_over, given) = (&throttle, &is_over, Mutex::default());
            let uplink_copies = self.wishes.uplink_copies;
            let spread = Spread { to, room, in_pause, uplink_copies, throttle, is_over, missed, given, tallies };
            let plan = Plan { pages, ..Plan::default() };
            let (begun, total) = (pass.begun_bytes, pass.total_bytes);
            let progress = |done| self.events.event(Event::Progress { phase: "memory", done: begun + done, total });
            let mut outlets = vec![&spread; if plan.bytes() > ALONE_BYTES { READERS } else { 1 }];
            match read_round(source, &plan, served != Served::InRound, packing, &unlimited, &progress, &mut outlets) {
                Ok(part) => sent.push(part),
                Err(error) if fan.interrupted.is_triggered() || !error.is_abort() => return Err(error),
                // Nobody of these takes any more, or somebody is ready: what is left of this part was not sent.
                Err(_) => spread.pass_rest_over(&plan.pages),
            }
            pass.begun_bytes += plan.bytes();
        }
        pass.served += 1;
        pass.pages += sent.iter().map(|part| part.pages).sum::<u64>();
        for part in &sent {
            self.report.unsent.zero += part.unsent.zero;
            self.report.unsent.named += part.unsent.named;
        }
        Ok(())
    }

    /// How pages are packed for the way.
    fn packing(&self, bandwidth: Option<u64>) -> Packing<'_> {
        let compression = self.wishes.compression;
        let level = self.effort.level(compression, &self.rounds);
        let fan = self.fan.as_ref().expect("there are several destinations");
        let sparing = match self.effort.sparing(compression, &self.rounds, bandwidth) {
            // Who has named an image knows that they have most of the pages.
            Sparing::Never | Sparing::WhenSlow if fan.catalogue.has_earlier() => (Sparing::Always, level),
            Sparing::Never => (Sparing::Never, None),
            sparing => (sparing, self.effort.sparing_level(compression, &self.rounds)),
        };
        Packing { level, bases: None, catalogue: &fan.catalogue, sparing }
    }
}

/// How long so many bytes will take where so many have taken this long.
fn time_left(queued: u64, sent: u64, took: Duration) -> Duration {
    Duration::try_from_secs_f64(queued as f64 / sent.max(1) as f64 * took.as_secs_f64()).unwrap_or(Duration::MAX)
}

impl Fan<'_> {
    /// Nobody has been sent anything yet.
    fn is_first_round(&self) -> bool {
        self.members.iter().all(|member| member.number == 0)
    }

    /// Who goes ahead in the pause, which has so many bytes for all, and who is held back: of those who have everything the one that
    /// lacks the least, and that was the first to have its last round. Where it takes longer than a moment they go side by side.
    fn ahead(&self, bytes: u64) -> (Vec<usize>, Vec<usize>) {
        let all = || (0..self.members.len()).filter(|n| self.members[*n].is_in());
        let lacks = |n: &usize| (self.members[*n].owed.bytes(), self.members[*n].stored_at, *n);
        match all().filter(|n| self.members[*n].is_idle()).min_by_key(lacks) {
            Some(first) if bytes + self.members[first].owed.bytes() <= AHEAD_BYTES => {
                (vec![first], all().filter(|n| *n != first).collect())
            }
            _ => (all().collect(), Vec::new()),
        }
    }

    /// They are told that the target is stopped, and what it is; the pages that each is due.
    fn enter(&mut self, who: &[usize]) -> Vec<(usize, Pages)> {
        let Some(last) = self.last.clone() else { return Vec::new() };
        let enter = |n: &usize| {
            let member = &mut self.members[*n];
            member.lane.order(Order::Prepare(last.clone(), member.later.clone()));
            member.begin_round(false);
            let (pages, notes) = member.owed.due(&last.plan, true);
            note_frames(&notes).into_iter().for_each(|frame| member.lane.push(&frame.into()));
            (*n, pages)
        };
        who.iter().map(enter).collect()
    }

    /// Those that were held back take part from now on.
    fn let_go(&mut self, pass: &mut Pass) {
        let who: Vec<usize> =
            std::mem::take(&mut self.held_back).into_iter().filter(|n| self.members[*n].is_in()).collect();
        pass.due.extend(self.enter(&who));
    }

    /// The quorum, as far as there are so many left.
    fn at_least(&self, quorum: super::super::Quorum) -> usize {
        let left = self.count(Member::is_in);
        quorum.of(self.count(|member| !member.is_aside)).clamp(1, left.max(1))
    }
}

impl Member {
    fn begin_round(&mut self, state: bool) {
        self.number += 1;
        self.lane.order(Order::Round { state });
    }

    fn end_round(&mut self, last: bool) {
        self.stage = if last { Stage::Sent } else { Stage::InRound };
        self.lane.end_round(mark(self.number, last), last);
    }
}

impl Pass {
    fn begin(due: Vec<(usize, Pages)>, members: &[Member]) -> Self {
        let tallies = members.iter().map(|_| Tally::default()).collect();
        let before = members.iter().map(Member::bytes_sent).collect();
        let (missed, begun) = (Mutex::default(), Instant::now());
        Self { due, begun, before, tallies, missed, pages: 0, served: 0, begun_bytes: 0, total_bytes: 0 }
    }

    /// Pages that are due, with all who lack them.
    fn parts(&mut self) -> Vec<Part> {
        let due: Vec<(Mask, Pages)> = self.due.iter().map(|(n, pages)| (1 << n, pages.clone())).collect();
        let parts = owed::parts(&due);
        (self.begun_bytes, self.served) = (0, 0);
        self.total_bytes = parts.iter().flat_map(|(_, pages)| pages).map(|(_, range)| range.bytes()).sum();
        parts
    }

    /// Who takes part, those that lack the least first.
    fn least_first(&self) -> Vec<usize> {
        let pages = |pages: &Pages| pages.values().map(RangeSet::pages).sum::<u64>();
        let mut all: Vec<(u64, usize)> = self.due.iter().map(|(n, due)| (pages(due), *n)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, n)| n).collect()
    }

    /// What was not sent to this one after all.
    fn missed_by(&mut self, n: usize) -> Option<Pages> {
        let missed = self.missed.get_mut().unwrap_or_else(PoisonError::into_inner).remove(&n);
        missed.filter(|pages| !pages.values().all(RangeSet::is_empty))
    }
}
