//! Several destinations at once: the state goes to all of them, and the first that is ready gets it.
//!
//! ```text
//!                     one thread reads the target's rounds, two read and pack its pages, each page once
//!                       |                    |                    |
//!   queue (bounded)   [lane 0]             [lane 1]             [lane 2]: full, passed over: its own dirty state grows
//!   threads           driver, bulk ...     driver, bulk ...     driver, bulk ...
//! ```
//! [`rounds`] are sent by [`spread`], [`warm`] is when they go on without end.
//! One that a warm-up has lost is taken back ([`comeback`]); what destinations keep for our death is read between two rounds ([`standby`]); where each destination starts a clone, [`clones`] tells all of them.
//!
//! In a round take part those that have stored their last one; the others go on with theirs, and what this round has they get in
//! their next. The policy of [`super::super::switchover`] looks at as many as the quorum says. In the pause one goes ahead for a moment,
//! then all get what they lack; the first PREPARED gets COMMIT, the others are told that the target is not theirs once it runs ([`others`]).
//!
//! Where memory follows, nobody gets in the pause what can be sent later. What one lacks then is its own ([`owed`]): what all lack, and
//! what it has missed of the rounds. Whoever is told to run the target is served, and nobody else; if it gives the target up, the
//! next one is, from the beginning: the original has everything until it ends.
//!
//! Where each is to start a clone ([`clones`]), all get everything in the pause, and nobody is chosen.

mod clones;
mod comeback;
mod lane;
mod others;
mod owed;
mod rounds;
mod spread;
mod standby;
mod warm;

use super::peer::{Peer, Peers};
use super::{Attempt, Final, MoveError, Original, Survey, Target, Wishes};
use crate::blocker::Blocker;
use crate::migration::earlier::Hint;
use crate::migration::handover::source::{Event as Happened, Phase};
use crate::migration::handover::{Candidate, Sync};
use crate::migration::journal::Step;
use crate::migration::postcopy::Later;
use crate::migration::protocol::AttemptId;
use crate::migration::report::{Became, Pause, Report};
use crate::migration::shelf::Catalogue;
use crate::ops::Event;
use crate::ops::Events;
use crate::transport::{Abort, Link, TransportError};
use crossbeam_channel::{Receiver, unbounded};
use lane::{Lane, News, Order, Room, Verdict};
use owed::{Kin, Owed};
use std::collections::HashSet;
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

/// The most destinations one target goes to at once.
pub const CANDIDATES_MAX: usize = 16;

/// Threads that read and pack pages.
const READERS: usize = 2;

/// Between two looks whether somebody wants this to end.
const LOOK: Duration = Duration::from_millis(5);

/// How far one destination is.
#[derive(Debug)]
enum Stage {
    /// It was offered the target.
    Asked,
    /// It has stored all that it was sent.
    Idle,
    /// A round is under way to it.
    InRound,
    /// It has been sent everything.
    Sent,
    /// The target stands ready there.
    Prepared,
    /// It will not get the target.
    Out(MoveError),
    /// It was told to stop.
    Stopped,
}

/// One destination, from the side of whoever reads the pages.
struct Member {
    candidate: Candidate,
    /// What it knows the attempt by: clones are attempts of their own, as two of them may be at one host.
    id: AttemptId,
    name: String,
    /// Which kernel it runs on.
    boot_id: String,
    lane: Lane,
    stage: Stage,
    owed: Owed,
    /// Pages that it lacks when the target runs there.
    later: Arc<Later>,
    /// Rounds begun.
    number: u32,
    /// Rounds that it has stored.
    stored: u32,
    /// When it had stored its last one.
    stored_at: Instant,
    room_bytes: u64,
    /// Files go to it.
    ships: bool,
    /// What it has in an image.
    earlier: Arc<HashSet<Hint>>,
    /// Another one is to have the target: it takes part in no round, and goes on waiting.
    is_aside: bool,
    /// Parts of what its tree would be made of may be out of date.
    is_patchy: bool,
    /// When it was ready, since the target was stopped.
    ready_after: Option<Duration>,
    /// Bytes that had been sent over its link when that came back.
    link_bytes: u64,
    /// Bytes that had been sent to it before it was lost and came back.
    earlier_bytes: u64,
    /// It is lost, and looked for.
    search: Option<comeback::Search>,
    /// What it keeps for our death.
    newest: standby::Newest,
}

impl Member {
    fn is_in(&self) -> bool {
        !self.is_aside && self.is_left()
    }

    /// The same, wherever the target is to go.
    fn is_left(&self) -> bool {
        !matches!(self.stage, Stage::Out(_) | Stage::Stopped)
    }

    fn is_idle(&self) -> bool {
        !self.is_aside && matches!(self.stage, Stage::Idle)
    }

    fn bytes_sent(&self) -> u64 {
        self.lane.bytes_sent() + self.link_bytes + self.earlier_bytes
    }
}

/// The destinations, and the threads that send to them.
pub(super) struct Fan<'a> {
    members: Vec<Member>,
    news: Receiver<News<'a>>,
    room: Arc<Room>,
    kin: Kin,
    catalogue: Catalogue,
    interrupted: Abort,
    /// When the target was stopped.
    paused_at: Option<Instant>,
    /// Those that stand ready, the first that said so first.
    ready: Vec<Candidate>,
    /// What the target is, once it is stopped.
    last: Option<Arc<Final>>,
    /// Those that have been sent nothing in the pause: another one goes ahead.
    held_back: Vec<usize>,
    /// Those that have not been sent everything in the pause, and what they lack.
    unserved: Vec<(usize, owed::Pages)>,
    /// Those that could not be told that the target is not theirs, once all have been tried.
    untold: Option<Vec<Candidate>>,
    /// Of a warm-up.
    pace: warm::Pace,
    /// Those that destinations keep for our death.
    states: standby::Pending,
    /// What the target was when it was offered.
    survey: Option<(Arc<Survey>, Instant)>,
    /// All that one lacks who has nothing; in a warm-up, where one that was lost may come back.
    whole: Owed,
    /// Those that were found again.
    found: Vec<(Candidate, Lane)>,
    /// Looks for those that are lost, in a warm-up.
    searcher: Option<comeback::Searcher>,
    /// Those that have started a copy, the first first, with the process id of its root there.
    started: Vec<(Candidate, i32)>,
}

/// Moves the target to the first of several destinations that is ready. What [`super::run`] says of one holds here.
///
/// # Errors
/// See [`super::run`]; [`MoveError::Blocked`] where something stands in the way at each of them.
pub fn run(
    links: Vec<Link>,
    target: &mut dyn Target,
    wishes: &Wishes<'_>,
    events: &dyn Events,
    interrupted: &Abort,
) -> Result<Report, MoveError> {
    let id = AttemptId::random()?;
    let names: Vec<&str> = links.iter().map(|link| link.control.peer()).collect();
    let journal = match wishes.clones {
        // Nobody else can go on with that: no destination is asked for what became of the target.
        Some(Original::RunsOn | Original::Ends) => super::journal(id, wishes, &[&names.join(",")])?,
        Some(Original::Moves(_)) | None => super::journal(id, wishes, &names)?,
    };
    let peers = Peers::of(links.iter().map(|_| None).collect());
    let mut attempt = Attempt::new(id, peers, wishes, events, journal);
    std::thread::scope(|scope| {
        attempt.fan = Some(Fan::begin(scope, id, links, (wishes, events), interrupted)?);
        let result = attempt.whole_of_all(target);
        let result = match result {
            Err(error @ MoveError::InDoubt { .. }) => Err(error),
            Err(error) => Err(attempt.all_failed(target, error)),
            Ok(()) => Ok(()),
        };
        // In doubt the others stay as they are: only the owner's word says what becomes of them.
        if !matches!(result, Err(MoveError::InDoubt { .. })) {
            let keepers = attempt.keepers();
            attempt.tell_others(target, &keepers);
            attempt.report_candidates();
        }
        attempt.report.observer = attempt.part();
        attempt.end_fan();
        result
    })?;
    Ok(attempt.report)
}

impl<'a> Fan<'a> {
    fn begin<'scope>(
        scope: &'scope Scope<'scope, '_>,
        id: AttemptId,
        links: Vec<Link>,
        (wishes, events): (&'a Wishes<'a>, &'a dyn Events),
        interrupted: &Abort,
    ) -> Result<Self, MoveError>
    where
        'a: 'scope,
    {
        let (news, heard) = unbounded();
        let room = Arc::new(Room::default());
        let mut members = Vec::with_capacity(links.len());
        for (n, link) in (0..).zip(links) {
            let candidate = Candidate(n);
            let (name, boot_id) = (link.control.peer().to_owned(), link.peer.boot_id.clone());
            let id = if wishes.is_clone(candidate) { AttemptId::random()? } else { id };
            let peer = Peer::new(id, (candidate, link), wishes, events);
            let lane = Lane::begin(scope, candidate, peer, (news.clone(), room.clone()))?;
            members.push(Member {
                candidate,
                id,
                name,
                boot_id,
                lane,
                stage: Stage::Idle,
                owed: Owed::default(),
                later: Arc::default(),
                number: 0,
                stored: 0,
                stored_at: Instant::now(),
                room_bytes: u64::MAX,
                ships: false,
                earlier: Arc::default(),
                is_aside: false,
                is_patchy: false,
                ready_after: None,
                link_bytes: 0,
                earlier_bytes: 0,
                search: None,
                newest: standby::Newest::default(),
            });
        }
        let search = |_| comeback::begin(scope, id, (wishes, events), (news.clone(), room.clone()));
        let searcher = wishes.warm.map(search).transpose()?;
        Ok(Self {
            members,
            news: heard,
            room,
            kin: Kin::default(),
            catalogue: Catalogue::new(0, READERS),
            interrupted: interrupted.clone(),
            paused_at: None,
            ready: Vec::new(),
            last: None,
            held_back: Vec::new(),
            unserved: Vec::new(),
            untold: None,
            pace: warm::Pace::default(),
            states: standby::Pending::default(),
            survey: None,
            whole: Owed::default(),
            found: Vec::new(),
            searcher,
            started: Vec::new(),
        })
    }

    /// Bytes sent to all.
    pub fn bytes_sent(&self) -> u64 {
        self.members.iter().map(Member::bytes_sent).sum()
    }

    /// Pages that this one lacks when the target runs there.
    pub fn later_of(&self, candidate: Candidate) -> Arc<Later> {
        self.members[usize::from(candidate.0)].later.clone()
    }

    /// A frame goes to many: what it names all of them have to have.
    fn note_earlier(&self) {
        let mut members = self.members.iter().filter(|member| member.is_in()).map(|member| &member.earlier);
        let Some(first) = members.next() else { return };
        let others: Vec<_> = members.collect();
        let common = first.iter().filter(|hint| others.iter().all(|other| other.contains(*hint)));
        self.catalogue.note_earlier(common.copied());
    }

    fn count(&self, is: impl Fn(&Member) -> bool) -> usize {
        self.members.iter().filter(|member| is(member)).count()
    }

    fn member(&mut self, candidate: Candidate) -> &mut Member {
        &mut self.members[usize::from(candidate.0)]
    }

    /// The next news, or none within a moment.
    fn next(&self, moment: Duration) -> Option<News<'a>> {
        self.news.recv_timeout(moment).ok()
    }

    fn check_interrupted(&self, during: &'static str) -> Result<(), MoveError> {
        match self.interrupted.is_triggered() {
            true => Err(TransportError::Aborted { during }.into()),
            false => Ok(()),
        }
    }
}

impl<'a> Attempt<'a> {
    fn fan(&mut self) -> &mut Fan<'a> {
        self.fan.as_mut().expect("there are several destinations")
    }

    fn whole_of_all(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        self.offer_to_all(target)?;
        if self.wishes.dry_run {
            self.happened(target, Happened::Failed);
            return match self.not_resumed.take() {
                Some(failure) => Err(failure.into()),
                None => Ok(()),
            };
        }
        if let Some(warm) = self.wishes.warm {
            // Whoever looks at the journal from here on finds the session and its target.
            self.note(Step::Begun, Sync::Later)?;
            warm.has_begun();
        }
        let exit = self.rounds_to_all(target)?;
        self.report.exit = Some(exit);
        match self.wishes.clones {
            Some(Original::Moves(to)) => self.move_beside_clones(target, to),
            Some(original) => self.clone_to_all(target, original),
            None => self.switch_over_to_first(target),
        }
    }

    /// Whatever is heard; news of a destination that is out go to the machine, too.
    fn hear(&mut self, target: &mut dyn Target, news: News<'a>) {
        match news {
            News::Verdict(who, Verdict { blockers, earlier, .. })
                if blockers.is_empty() && !self.fan().catalogue.earlier().is_subset(&earlier) =>
            {
                // One that came back: frames name pages that the others have.
                let reason = "pages that it had in an image, and that are named, are gone there".to_owned();
                self.drop_out(target, who, MoveError::Stays { reason });
            }
            News::Verdict(who, Verdict { blockers, ships, earlier }) if blockers.is_empty() => {
                let member = self.fan().member(who);
                (member.stage, member.ships, member.earlier) = (Stage::Idle, ships, earlier);
                self.tell_stage(who, "willing");
            }
            News::Verdict(who, Verdict { blockers, .. }) => self.drop_out(target, who, MoveError::Blocked(blockers)),
            News::RoundDone(who, at, room_bytes) => {
                let member = self.fan().member(who);
                (member.stored_at, member.room_bytes) = (at, room_bytes);
                member.stored += 1;
                // One that was behind may have been sent the last round meanwhile.
                if matches!(member.stage, Stage::InRound) && !member.newest.is_under_way {
                    member.stage = Stage::Idle;
                }
                self.tell_stage(who, "stored");
            }
            // What it was sent last may have been read when the target went on: it is told to delete that.
            News::Prepared(who, mut peer, _) if !self.fan().member(who).is_left() => {
                peer.lost = true;
                self.fan().member(who).link_bytes = peer.link.bytes_sent();
                self.peers.put(who, *peer);
            }
            News::Kept(who, taken, trouble) => self.heard_of_state(who, taken, trouble),
            News::Prepared(who, peer, took) => {
                let fan = self.fan();
                fan.ready.push(who);
                let since = fan.paused_at;
                let member = fan.member(who);
                member.stage = Stage::Prepared;
                member.ready_after = since.map(|at| at.elapsed());
                member.link_bytes = peer.link.bytes_sent();
                self.report.rebuild.get_or_insert(took);
                self.peers.put(who, *peer);
                self.tell_stage(who, "prepared");
                let is_next = self.wishes.clones.is_none();
                if is_next && matches!(self.machine.phase(), Phase::Committed(_) | Phase::InDoubt(_)) {
                    let said = Happened::Said(who, self.id, crate::migration::handover::Reply::Prepared);
                    self.happened(target, said);
                }
            }
            News::Lost(who, peer, error) => {
                self.fan().member(who).link_bytes = peer.link.bytes_sent();
                self.peers.put(who, *peer);
                if self.fan().member(who).is_left() {
                    self.drop_out(target, who, error);
                }
            }
            News::LookedFor(who, found) => self.fan().looked_for(who, found),
            News::Back(who, peer) => {
                self.fan().member(who).link_bytes = peer.link.bytes_sent();
                self.peers.put(who, *peer);
            }
        }
    }

    /// One will not get the target; the others go on.
    fn drop_out(&mut self, target: &mut dyn Target, who: Candidate, error: MoveError) {
        let name = self.fan().member(who).name.clone();
        self.events.event(Event::Warning(format!("{name} is left out: {}", in_short(&error))));
        let member = self.fan().member(who);
        member.stage = Stage::Out(error);
        member.lane.cut();
        member.owed = Owed::default();
        member.is_aside = false;
        member.search = member.may_come_back().then(comeback::Search::begin);
        self.tell_stage(who, "out");
        self.happened(target, Happened::Silent(who));
        self.wishes.warm.iter().for_each(|warm| self.heed(warm));
    }

    fn tell_stage(&mut self, who: Candidate, stage: &'static str) {
        let member = self.fan().member(who);
        let (dest, rounds, bytes) = (member.name.clone(), member.number, member.bytes_sent());
        self.events.event(Event::Candidate { dest, stage, rounds, bytes });
    }

    /// Hears until that holds.
    fn wait_until(
        &mut self,
        target: &mut dyn Target,
        during: &'static str,
        holds: impl Fn(&Fan<'a>) -> bool,
    ) -> Result<(), MoveError> {
        while !holds(self.fan()) {
            self.fan().check_interrupted(during)?;
            if self.fan().count(Member::is_in) == 0 {
                return Err(self.all_out());
            }
            if let Some(news) = self.fan().next(LOOK) {
                self.hear(target, news);
            }
        }
        Ok(())
    }

    /// What kept the last one from having the target; where each was blocked, everything that was in the way.
    fn all_out(&mut self) -> MoveError {
        if let Some(warm) = self.wishes.warm {
            // The last look may have been before that.
            self.look_around(warm, None);
        }
        let (mut blockers, mut other) = (Vec::new(), None);
        for member in &mut self.fan().members {
            match std::mem::replace(&mut member.stage, Stage::Stopped) {
                Stage::Out(MoveError::Blocked(found)) => {
                    blockers.extend(found.iter().map(|one| named(&member.name, one)));
                    member.stage = Stage::Out(MoveError::Blocked(found));
                }
                Stage::Out(error) => {
                    let said = MoveError::Stays { reason: in_short(&error) };
                    member.stage = Stage::Out(said);
                    // Whether nothing has happened is not known where one does not answer: nobody tries again then.
                    if !matches!(other, Some(MoveError::CloneUnanswered { .. })) {
                        other = Some(error);
                    }
                }
                stage => member.stage = stage,
            }
        }
        other.unwrap_or(MoveError::Blocked(blockers))
    }

    /// The preflights of both sides.
    fn offer_to_all(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        let surveyed = Instant::now();
        let survey = target.survey()?;
        self.look = survey.look;
        self.surveyed(&survey, &survey.blockers);
        if !survey.blockers.is_empty() {
            return Err(MoveError::Blocked(survey.blockers));
        }
        let survey: Arc<Survey> = Arc::new(survey);
        self.fan().survey = Some((survey.clone(), surveyed));
        for member in &mut self.fan().members {
            member.stage = Stage::Asked;
            member.lane.order(Order::Offer(survey.clone(), surveyed));
        }
        self.wait_until(target, "the preflight", |fan| fan.count(|member| matches!(member.stage, Stage::Asked)) == 0)?;
        if self.fan().count(Member::is_in) == 0 {
            return Err(self.all_out());
        }
        self.one_a_kernel(target);
        if self.wishes.dry_run {
            return Ok(());
        }
        self.fan().note_earlier();
        let mapped = target.mapped_files();
        let ahead = self.wishes.stop_and_copy && survey.is_single;
        for member in self.fan().members.iter_mut().filter(|member| member.is_in()) {
            member.lane.order(Order::Ship(mapped.clone()));
            if ahead {
                member.lane.order(Order::Build(Arc::default()));
            }
        }
        Ok(())
    }

    /// Files that go to two destinations on one kernel would take each other's place.
    fn one_a_kernel(&mut self, target: &mut dyn Target) {
        let fan = self.fan();
        let mut seen = Vec::new();
        let mut twice = Vec::new();
        for member in fan.members.iter().filter(|member| member.is_in() && member.ships && !member.boot_id.is_empty()) {
            match seen.contains(&member.boot_id) {
                true => twice.push(member.candidate),
                false => seen.push(member.boot_id.clone()),
            }
        }
        for who in twice {
            let reason = "files go along, and another destination is on the same host".to_owned();
            self.drop_out(target, who, MoveError::Stays { reason });
        }
    }

    /// The target stands still from here on.
    fn stop(&mut self, target: &mut dyn Target) -> Result<(Pause, Arc<Final>), MoveError> {
        let mut pause = Pause::begin();
        let last = Arc::new(target.freeze()?);
        pause.frozen(target.frozen_since());
        self.fan().paused_at = target.frozen_since().or_else(|| Some(Instant::now()));
        self.events.event(Event::Frozen);
        Ok((pause, last))
    }

    /// The pause.
    fn switch_over_to_first(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        target.guard(self.id);
        let (mut pause, last) = self.stop(target)?;
        target.make_way()?;
        self.send_last(target, &last)?;
        pause.part("residual");
        if self.fan().members.iter().all(|member| member.later.is_empty()) {
            return self.hand_over_to_first(target, pause);
        }
        let (pages, owners) = (target.later_pages()?, target.owners());
        self.with_pages(pages, owners, |attempt| attempt.hand_over_to_first(target, pause))
    }

    /// The first that is ready gets the target.
    fn hand_over_to_first(&mut self, target: &mut dyn Target, mut pause: Pause) -> Result<(), MoveError> {
        self.wait_until(target, "the destinations rebuild the target", |fan| !fan.ready.is_empty())?;
        pause.part("rebuild");
        let first = self.fan().ready[0];
        self.peers.speak_to(first);
        let interrupted = self.fan().interrupted.clone();
        self.fan().check_interrupted("handing the target over")?;
        self.commit(target, pause, &interrupted)
    }
}

/// An error in one line.
fn in_short(error: &MoveError) -> String {
    match error {
        MoveError::Blocked(blockers) => {
            let first = blockers.first().map(|one| format!("{} {}: {}", one.code, one.object, one.reason));
            format!("{} in the way: {}", blockers.len(), first.unwrap_or_default())
        }
        MoveError::Destination(failure) => {
            std::iter::once(&failure.what).chain(&failure.causes).cloned().collect::<Vec<_>>().join(": ")
        }
        MoveError::Stays { reason } => reason.clone(),
        error => {
            let causes = std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        }
    }
}

/// A blocker with the destination it was found at.
fn named(name: &str, blocker: &Blocker) -> Blocker {
    Blocker { object: format!("{} at {name}", blocker.object), ..blocker.clone() }
}

impl Became {
    /// What a destination was in the end.
    fn of(stage: &Stage) -> Self {
        match stage {
            Stage::Out(MoveError::Blocked(blockers)) => Self::Out(in_short(&MoveError::Blocked(blockers.clone()))),
            Stage::Out(error) => Self::Out(in_short(error)),
            _ => Self::Stopped,
        }
    }
}
