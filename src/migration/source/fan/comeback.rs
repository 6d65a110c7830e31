//! A destination that a warm-up has lost: it is looked for again while the others go on, and sent everything.

use super::super::peer::Peer;
use super::super::{Attempt, MoveError, Wishes};
use super::lane::{Lane, News, Order, Room};
use super::{Fan, Member, Stage};
use crate::migration::handover::Candidate;
use crate::migration::protocol::AttemptId;
use crate::migration::warm::Warm;
use crate::ops::{Event, Events};
use crate::transport::Abort;
use crate::transport::backoff::Backoff;
use crossbeam_channel::{Sender, unbounded};
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

/// Before one is looked for again: at first, and at most.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// When one that is lost is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    due: Instant,
    backoff: Backoff,
    is_under_way: bool,
}

impl Search {
    /// It was lost just now.
    pub fn begin() -> Self {
        let mut backoff = Backoff::new(AGAIN_AFTER);
        Self { due: Instant::now() + backoff.pause(), backoff, is_under_way: false }
    }

    fn failed(&mut self) {
        (self.due, self.is_under_way) = (Instant::now() + self.backoff.pause(), false);
    }
}

/// Dropped, nobody is looked for any more.
#[derive(Debug)]
pub(super) struct Searcher {
    ask: Sender<Candidate>,
    abort: Abort,
}

impl Drop for Searcher {
    fn drop(&mut self) {
        self.abort.trigger();
    }
}

/// Starts the thread that looks for those it is asked for, one after the other. What it finds is in the news.
pub(super) fn begin<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    id: AttemptId,
    (wishes, events): (&'a Wishes<'a>, &'a dyn Events),
    (news, room): (Sender<News<'a>>, Arc<Room>),
) -> Result<Searcher, MoveError> {
    let abort = Abort::new().map_err(|source| MoveError::Journal { source })?;
    let ends = abort.clone();
    let (ask, asked) = unbounded::<Candidate>();
    scope.spawn(move || {
        for who in asked {
            let found = match wishes.again.map(|again| again.to(who).link_until(&ends)) {
                Some(Ok(link)) => {
                    let peer = Peer::new(id, (who, link), wishes, events);
                    Lane::begin(scope, who, peer, (news.clone(), room.clone())).ok()
                }
                _ => None,
            };
            // The one who wanted it may be gone.
            let _ = news.send(News::LookedFor(who, found));
        }
    });
    Ok(Searcher { ask, abort })
}

impl Attempt<'_> {
    /// Between two rounds: those that were found take part from the next one on, those that are due are looked for.
    pub(super) fn look_for_the_lost(&mut self, warm: &Warm) {
        let chosen = warm.ordered().map(|order| order.chosen);
        let events = self.events;
        let found = std::mem::take(&mut self.fan().found);
        // What came back of the lost link is of no more use.
        found.iter().for_each(|(who, _)| drop(self.peers.take(*who)));
        let fan = self.fan();
        for (who, lane) in found {
            let is_aside = chosen.as_ref().is_some_and(|chosen| !chosen.contains(&who));
            if let Some(name) = fan.takes_back(who, lane, is_aside) {
                events.event(Event::Warning(format!("{name} is there again, and is sent everything anew")));
            }
        }
        let (now, ask) = (Instant::now(), fan.searcher.as_ref().map(|searcher| searcher.ask.clone()));
        for member in &mut fan.members {
            let Some(search) = member.search.as_mut().filter(|search| !search.is_under_way && search.due <= now) else {
                continue;
            };
            search.is_under_way = ask.as_ref().is_some_and(|ask| ask.send(member.candidate).is_ok());
        }
    }
}

impl Fan<'_> {
    /// It was looked for.
    pub(super) fn looked_for(&mut self, who: Candidate, found: Option<Lane>) {
        match found {
            Some(lane) => self.found.push((who, lane)),
            None => self.member(who).search.iter_mut().for_each(Search::failed),
        }
    }

    /// It begins anew; its name.
    fn takes_back(&mut self, who: Candidate, lane: Lane, is_aside: bool) -> Option<String> {
        let (survey, surveyed) = self.survey.clone()?;
        let (owed, is_patchy) = (self.whole.clone(), !self.kin.is_empty());
        let member = self.member(who);
        // What it has been sent before stays in the report.
        (member.earlier_bytes, member.link_bytes) = (member.bytes_sent(), 0);
        member.lane = lane;
        (member.stage, member.search) = (Stage::Asked, None);
        (member.owed, member.is_patchy, member.is_aside) = (owed, is_patchy, is_aside);
        (member.number, member.stored) = (0, 0);
        // It may have the newest state still.
        (member.newest.trouble, member.newest.is_under_way) = (None, false);
        member.room_bytes = u64::MAX;
        member.lane.order(Order::Offer(survey, surveyed));
        Some(member.name.clone())
    }
}

impl Member {
    /// It may come back: what has happened to it is not what it has said about the target.
    pub(super) fn may_come_back(&self) -> bool {
        matches!(&self.stage, Stage::Out(MoveError::Transport(_) | MoveError::Destination(_)))
    }
}
