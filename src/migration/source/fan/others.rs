//! Those that do not get the target: another one that stands in for the chosen, and how the rest are told to stop and to delete what
//! they hold.

use super::super::peer::Peer;
use super::super::{Again, Attempt, MoveError, Target};
use super::{Became, LOOK, Member, Order, Stage};
use crate::migration::handover::source::{Event as Happened, Phase};
use crate::migration::handover::{Candidate, Reply};
use crate::migration::protocol::{self, AttemptId, FromDestination, FromSource};
use crate::migration::report::CandidateReport;
use crate::ops::Event;
use crate::transport::{Abort, TransportError};
use std::time::{Duration, Instant};

/// How long threads may take to come to an end once they are told to.
const RECALLED_AFTER: Duration = Duration::from_secs(10);

/// How long the target stands still for another destination once the chosen one has given it up: what comes after that is to go on
/// at the source.
const ANOTHER_WITHIN: Duration = Duration::from_secs(10);

/// How long one that is not chosen may take to say that it has deleted what it held.
const CONFIRMED_AFTER: Duration = Duration::from_secs(5);

/// The same where it writes the pages first that it keeps.
const KEPT_AFTER: Duration = Duration::from_secs(60);

/// How long those that are to keep their pages may take to stand ready, while the target runs elsewhere already.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Between two questions whether it has.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How one of them is told.
enum Way<'a> {
    /// Nothing is there of the target.
    None,
    /// Over the link it has had; whether it stands ready.
    Link(Box<Peer<'a>>, bool),
    /// Over a new one.
    Anew,
}

impl<'a> Attempt<'a> {
    /// The one that was told to run the target never will: before it is decided what follows from that, the others get a time in
    /// which to be ready, those too that have not been sent everything yet.
    pub(in crate::migration::source) fn find_another(&mut self, target: &mut dyn Target, interrupted: &Abort) {
        // Whoever has a copy has not what the target has.
        if self.fan.is_none() || self.wishes.clones.is_some() {
            return;
        }
        let failed = self.peers.spoken();
        self.fan().ready.retain(|who| *who != failed);
        let until = Instant::now() + ANOTHER_WITHIN;
        let about_to = |member: &Member| matches!(member.stage, Stage::Sent);
        while self.fan().ready.is_empty() && Instant::now() < until && !interrupted.is_triggered() {
            if let Err(error) = self.serve_rest(target, until) {
                tracing::warn!(%error, "the other destinations do not get what they lack");
                break;
            }
            let fan = self.fan();
            if fan.count(about_to) == 0 && fan.unserved.is_empty() && fan.held_back.is_empty() {
                break;
            }
            if let Some(news) = self.fan().next(LOOK) {
                self.hear(target, news);
            }
        }
        for who in self.fan().ready.clone() {
            self.happened(target, Happened::Said(who, self.id, Reply::Prepared));
        }
    }

    /// Nobody has it: the target goes on here.
    pub(super) fn all_failed(&mut self, target: &mut dyn Target, error: MoveError) -> MoveError {
        self.happened(target, Happened::Failed);
        match self.not_resumed.take() {
            None => error,
            Some(failure) => MoveError::NotResumed { failure, source: Box::new(error) },
        }
    }

    /// Everybody but these is told that the target is not its own, and says that it has deleted what it held.
    /// Once; nothing where there is one destination.
    pub(in crate::migration::source) fn tell_others(&mut self, target: &mut dyn Target, keepers: &[Candidate]) {
        if self.fan.as_ref().is_none_or(|fan| fan.untold.is_some()) {
            return;
        }
        // Where memory follows they have little of it.
        let keep = self.wishes.onward.as_ref().is_some_and(|onward| onward.keep_warm)
            && self.serving.is_none()
            && !keepers.is_empty();
        if keep {
            self.let_them_be_ready(target);
        }
        let ways = self.recall(target, keepers);
        let again = self.wishes.again;
        let told: Vec<(Candidate, bool)> = std::thread::scope(|scope| {
            let told = ways.into_iter().map(|(who, way)| {
                let (again, id) = (again.map(|again| again.to(who)), self.fan().member(who).id);
                (who, scope.spawn(move || has_deleted(way, again, (id, keep))))
            });
            let told: Vec<_> = told.collect();
            told.into_iter().map(|(who, told)| (who, told.join().unwrap_or(false))).collect()
        });
        let untold: Vec<Candidate> = told.iter().filter(|(_, told)| !told).map(|(who, _)| *who).collect();
        if !untold.is_empty() {
            let is_told_later = target.leave_untold();
            untold.iter().for_each(|who| self.warn_of_untold(*who, is_told_later));
        }
        self.fan().untold = Some(untold);
    }

    /// Who stands ready can keep what it has: the others get what they lack still, for a while.
    fn let_them_be_ready(&mut self, target: &mut dyn Target) {
        let until = Instant::now() + READY_WITHIN;
        let mut ready = std::mem::take(&mut self.fan().ready);
        while Instant::now() < until {
            if let Err(error) = self.serve_rest(target, until) {
                tracing::warn!(%error, "the other destinations do not get what they lack");
                break;
            }
            if let Some(news) = self.fan().next(LOOK) {
                self.hear(target, news);
            }
            let fan = self.fan();
            ready.append(&mut fan.ready);
            let about_to = |member: &Member| matches!(member.stage, Stage::Sent);
            if fan.count(about_to) == 0 && fan.unserved.is_empty() && fan.held_back.is_empty() {
                break;
            }
        }
        ready.append(&mut self.fan().ready);
        self.fan().ready = ready;
    }

    /// Who has the target is known.
    pub(in crate::migration::source) fn owner(&self) -> Option<Candidate> {
        match self.machine.phase() {
            Phase::Moved(owner) => Some(owner),
            _ => None,
        }
    }

    /// Who is known to have the target, or a copy of it.
    pub(super) fn keepers(&self) -> Vec<Candidate> {
        let started = self.fan.iter().flat_map(|fan| &fan.started).map(|(who, _)| *who);
        self.owner().into_iter().chain(started).collect()
    }

    fn warn_of_untold(&mut self, who: Candidate, is_told_later: bool) {
        let name = self.fan().member(who).name.clone();
        let ends = match is_told_later {
            true => "it is told as soon as it can be reached".to_owned(),
            false if self.wishes.standby.is_some() => format!("migrate cancel {} ends it there", self.wishes.session),
            false => format!("migrate resolve {} --discard ends it there", self.wishes.session),
        };
        let what = match self.wishes.standby {
            Some(_) => {
                format!("{name} may keep a state of the target, which nobody must start (migrate promote): {ends}")
            }
            None => {
                format!("{name} may hold a copy of the target, which is deleted or parked when its lease ends: {ends}")
            }
        };
        self.events.event(Event::Warning(what));
    }

    /// All threads end, and their links come back. How each of the others is told.
    fn recall(&mut self, target: &mut dyn Target, keepers: &[Candidate]) -> Vec<(Candidate, Way<'a>)> {
        let tells_lost = self.tells_lost(keepers);
        let mut usable = Vec::new();
        for member in &mut self.fan().members {
            let stage = match &member.stage {
                Stage::Idle => {
                    usable.push(member.candidate);
                    member.lane.order(Order::End);
                    Stage::Stopped
                }
                Stage::Asked | Stage::InRound | Stage::Sent => {
                    member.lane.cut();
                    Stage::Stopped
                }
                _ => continue,
            };
            member.stage = stage;
        }
        let until = Instant::now() + RECALLED_AFTER;
        let all: Vec<Candidate> = self.fan().members.iter().map(|member| member.candidate).collect();
        let is_awaited = |who: &&Candidate| !keepers.contains(who);
        while all.iter().filter(is_awaited).any(|who| self.peers.get(*who).is_none()) && Instant::now() < until {
            if let Some(news) = self.fan().next(LOOK) {
                self.hear(target, news);
            }
        }
        let ready = self.fan().ready.clone();
        let others = all.into_iter().filter(|who| !keepers.contains(who));
        others
            .map(|who| {
                let peer = self.peers.take(who);
                let is_ready = ready.contains(&who);
                let way = match peer {
                    Some(peer) if !peer.lost && (is_ready || usable.contains(&who)) => {
                        Way::Link(Box::new(peer), is_ready)
                    }
                    Some(peer) if peer.lost && !peer.prepare_sent && !tells_lost => Way::None,
                    _ => Way::Anew,
                };
                (who, way)
            })
            .collect()
    }

    /// One that stands by keeps what it has when it is lost. Where all are, the warm-up is about to begin anew, and nobody but they could
    /// go on if this host died meanwhile; else nobody is to start what they keep.
    fn tells_lost(&mut self, keepers: &[Candidate]) -> bool {
        let is_over = |fan: &super::Fan<'_>| fan.interrupted.is_triggered() || fan.count(Member::is_left) > 0;
        self.wishes.standby.is_some() && (!keepers.is_empty() || is_over(self.fan()))
    }

    pub(super) fn report_candidates(&mut self) {
        let keepers = self.keepers();
        let started = self.fan().started.clone();
        let runs = |who| started.iter().find(|(started, _)| *started == who).map(|(_, pid)| Became::Runs(*pid));
        let untold = self.fan().untold.clone().unwrap_or_default();
        let members = self.fan.as_ref().map_or(&[][..], |fan| &fan.members);
        let report = |member: &Member| CandidateReport {
            name: member.name.clone(),
            became: match keepers.contains(&member.candidate) {
                true => runs(member.candidate).unwrap_or(Became::Owner),
                false if untold.contains(&member.candidate) => Became::Untold,
                false => Became::of(&member.stage),
            },
            clone_id: None,
            rounds: member.number,
            bytes_sent: member.bytes_sent(),
            ready_after: member.ready_after,
            via: Vec::new(),
        };
        self.report.candidates = members.iter().map(report).collect();
        for candidate in self.report.candidates.iter().filter(|one| !matches!(one.became, Became::Out(_))) {
            let (dest, stage) = (candidate.name.clone(), candidate.became.name());
            let (rounds, bytes) = (candidate.rounds, candidate.bytes_sent);
            self.events.event(Event::Candidate { dest, stage, rounds, bytes });
        }
        self.report.bytes_sent = members.iter().map(Member::bytes_sent).sum();
    }

    /// No thread is left.
    pub(super) fn end_fan(&mut self) {
        for member in self.fan.iter().flat_map(|fan| &fan.members) {
            member.lane.cut();
        }
        self.fan = None;
    }
}

/// Tells one that the target is not its own; whether it has deleted what it held.
fn has_deleted(way: Way<'_>, again: Option<Again<'_>>, (id, keep): (AttemptId, bool)) -> bool {
    match way {
        Way::None => true,
        Way::Link(peer, is_ready) => says_so(*peer, is_ready, keep) || is_told_anew(again, id),
        Way::Anew => is_told_anew(again, id),
    }
}

fn says_so(mut peer: Peer<'_>, is_ready: bool, keep: bool) -> bool {
    peer.link.control.deadline(Some(if keep { KEPT_AFTER } else { CONFIRMED_AFTER }));
    let abort = FromSource::Abort { attempt: peer.id, reason: "the target is not for this destination".into(), keep };
    if protocol::send(&mut peer.link.control, &abort).is_err() {
        return false;
    }
    loop {
        match peer.receive() {
            Ok(FromDestination::Says { reply: Some(Reply::Aborted), .. }) => return true,
            Ok(FromDestination::Says { .. }) => return false,
            // Still on its way when that was sent.
            Ok(_) => {}
            Err(MoveError::Destination(_) | MoveError::Blocked(_)) => return true,
            // Who was not ready says nothing, and hangs up when everything is deleted.
            Err(MoveError::Transport(TransportError::Closed { .. })) => return !is_ready,
            Err(_) => return false,
        }
    }
}

fn is_told_anew(again: Option<Again<'_>>, id: AttemptId) -> bool {
    let (Some(again), Ok(own)) = (again, Abort::new()) else { return false };
    // Who wants the session to end wants this to be done still.
    let link = || match again.link() {
        Err(TransportError::Aborted { .. }) => again.link_until(&own),
        link => link,
    };
    let until = Instant::now() + CONFIRMED_AFTER;
    while Instant::now() < until {
        let said = link().and_then(|mut link| {
            link.control.deadline(Some(CONFIRMED_AFTER));
            let reason = "the target is not for this destination".into();
            let abort = FromSource::Abort { attempt: id, reason, keep: false };
            protocol::send(&mut link.control, &abort)?;
            protocol::receive(&mut link.control)
        });
        match said {
            Ok(FromDestination::Says { reply: Some(Reply::Aborted | Reply::Unknown), .. }) => return true,
            // Whoever decides there is busy with just that.
            Ok(FromDestination::Says { reply: None, .. }) => {}
            Ok(_) => return false,
            Err(error) => tracing::debug!(%error, "a destination was not told"),
        }
        std::thread::sleep(ASK_AGAIN);
    }
    false
}
