//! Every destination starts a clone.
//!
//! ```text
//! source                                             each destination
//! rounds  ------------------------------------------> makes a tree ahead of time
//! freeze; the last pages and the model to all ------> rebuilds it
//! the original goes on, unless it is to end (where files go along, once all have them)
//!                    <------------------------------- PREPARED
//! COMMIT             -------------------------------> journal: owner; runs the clone
//!                    <------------------------------- RUNNING
//! the original ends, if it is to, once somebody has said so
//! ```
//! There is no handover: a clone is another process, and the original is nobody's but the source's. It is held by ptrace alone, so
//! that it goes on if this program dies, and is ended only when a clone runs, which its destination says after that is on its disk.
//! One that fails takes nothing from the others; it deletes what it has as soon as it hears nothing more.

use super::super::peer::Peer;
use super::super::{Again, Attempt, MoveError, Original, Target};
use super::rounds::STRAGGLERS_MAX;
use super::{Fan, LOOK, Member, Stage};
use crate::fault::{self, Point};
use crate::migration::handover::{Candidate, Reply, Sync};
use crate::migration::journal::Step;
use crate::migration::protocol::{self, FromDestination, FromSource};
use crate::migration::report::Pause;
use crate::transport::TransportError;
use crossbeam_channel::unbounded;
use std::time::{Duration, Instant};

/// How long one is asked anew whose link was lost when it was told to run its clone.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(50);

impl Attempt<'_> {
    /// The pause, and what follows it.
    pub(super) fn clone_to_all(&mut self, target: &mut dyn Target, original: Original) -> Result<(), MoveError> {
        let (mut pause, last) = self.stop(target)?;
        self.send_last_to_each(target, &last)?;
        pause.part("residual");
        fault::strike(Point::SourceReady);
        let mut pause = Some(pause);
        if original == Original::RunsOn {
            self.await_files(target)?;
            self.goes_on(target)?;
            self.stood(&mut pause, "release");
        }
        self.start_each(target, &mut pause);
        let Some((first, pid)) = self.fan().started.first().copied() else { return Err(self.all_out()) };
        if original == Original::Ends {
            self.end_original(target);
        }
        self.report.runs_as(pid);
        self.note_cloned(first, original);
        Ok(())
    }

    /// The pause of a target that goes to one of the destinations as in a move; the others are told to run their clones once it does.
    /// If it stays here, no clone is started either.
    pub(super) fn move_beside_clones(&mut self, target: &mut dyn Target, to: Candidate) -> Result<(), MoveError> {
        target.guard(self.id);
        let (mut pause, last) = self.stop(target)?;
        target.make_way()?;
        self.send_last_to_each(target, &last)?;
        pause.part("residual");
        let during = "the destination rebuilds the target";
        self.wait_until(target, during, |fan| fan.ready.contains(&to) || !fan.members[usize::from(to.0)].is_left())?;
        if !self.fan().ready.contains(&to) {
            let reason = format!("{} does not take it", self.fan().member(to).name);
            return Err(MoveError::Stays { reason });
        }
        pause.part("rebuild");
        self.peers.speak_to(to);
        let interrupted = self.fan().interrupted.clone();
        self.fan().check_interrupted("handing the target over")?;
        self.commit(target, pause, &interrupted)?;
        self.fan().ready.retain(|who| *who != to);
        self.start_each(target, &mut None);
        Ok(())
    }

    /// Files are read on the way out, and must not change before. Once one destination is ready the others have a moment more.
    fn await_files(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        let is_sending = |member: &Member| member.ships && matches!(member.stage, Stage::Sent);
        let (during, is_done) = ("sending files", move |fan: &Fan<'_>| fan.count(is_sending) == 0);
        self.wait_until(target, during, |fan| is_done(fan) || !fan.ready.is_empty())?;
        let until = Instant::now() + STRAGGLERS_MAX;
        self.wait_until(target, during, |fan| is_done(fan) || Instant::now() >= until)?;
        let behind = self.fan().members.iter().filter(|member| is_sending(member));
        for who in behind.map(|member| member.candidate).collect::<Vec<_>>() {
            self.leave_behind(target, who);
        }
        Ok(())
    }

    fn goes_on(&mut self, target: &mut dyn Target) -> Result<(), MoveError> {
        target.resume().map_err(|failure| {
            let reason = "it was to go on before its copies are started".to_owned();
            MoveError::NotResumed { failure, source: Box::new(MoveError::Stays { reason }) }
        })
    }

    fn stood(&mut self, pause: &mut Option<Pause>, part: &'static str) {
        if let Some(mut pause) = pause.take() {
            pause.part(part);
            self.report.stood(pause);
        }
    }

    /// Whoever is ready starts its clone at once; whoever fails is left out.
    fn start_each(&mut self, target: &mut dyn Target, pause: &mut Option<Pause>) {
        let again = self.wishes.again;
        let (tell, told) = unbounded();
        std::thread::scope(|scope| {
            let mut under_way = 0;
            loop {
                for who in std::mem::take(&mut self.fan().ready) {
                    let Some(mut peer) = self.peers.take(who) else { continue };
                    let (tell, again) = (tell.clone(), again.map(|again| again.to(who)));
                    under_way += 1;
                    // The one who wants to know waits for it.
                    scope.spawn(move || {
                        let started = start(&mut peer, again);
                        drop(tell.send((who, peer, started)));
                    });
                }
                if under_way == 0 && self.fan().count(|member| matches!(member.stage, Stage::Sent)) == 0 {
                    break;
                }
                if let Some(news) = self.fan().next(LOOK) {
                    self.hear(target, news);
                }
                for (who, mut peer, started) in told.try_iter() {
                    under_way -= 1;
                    match started {
                        Ok(pid) => {
                            self.fan().started.push((who, pid));
                            self.stood(pause, "handover");
                            self.tell_stage(who, "running");
                        }
                        Err(error) => {
                            // Whatever it has by now it is told to delete over a new link.
                            peer.lost = true;
                            self.peers.put(who, peer);
                            self.drop_out(target, who, error);
                        }
                    }
                }
                self.heed_interrupt(target);
            }
        });
    }

    /// Who has not been told to run its clone is not told any more.
    fn heed_interrupt(&mut self, target: &mut dyn Target) {
        let during = "the destinations rebuild the target";
        if self.fan().check_interrupted(during).is_ok() {
            return;
        }
        let waiting = self.fan().members.iter().filter(|member| matches!(member.stage, Stage::Sent));
        for who in waiting.map(|member| member.candidate).collect::<Vec<_>>() {
            self.drop_out(target, who, TransportError::Aborted { during }.into());
        }
    }

    fn note_cloned(&mut self, first: Candidate, original: Original) {
        let (step, name) = match original {
            Original::RunsOn => (Step::Cloned, None),
            Original::Ends | Original::Moves(_) => (Step::Done, Some(self.fan().member(first).name.clone())),
        };
        name.into_iter().for_each(|name| self.journal.set_peer(&name));
        let sent = self.fan().bytes_sent();
        self.journal.set_cost(self.report.downtime, sent);
        // Whether or not it can be written, the clones run; that it could not is a warning.
        if let Err(error) = self.note(step, Sync::Later) {
            tracing::warn!(%error, "the journal of the session");
        }
    }
}

/// Has a destination run its clone; process id of its root there.
fn start(peer: &mut Peer<'_>, again: Option<Again<'_>>) -> Result<i32, MoveError> {
    let attempt = peer.id;
    peer.link.control.during("starting the copy");
    peer.link.control.deadline(Some(ANSWERED_WITHIN));
    let told = protocol::send(&mut peer.link.control, &FromSource::Commit { attempt });
    fault::strike(Point::SourceCommitted);
    match told.map_err(MoveError::from).and_then(|()| peer.receive()) {
        Ok(FromDestination::Running { pid, .. }) => {
            // Unheard it is of no consequence: nobody counts on its knowing.
            let _ = protocol::send(&mut peer.link.control, &FromSource::Done { attempt });
            Ok(pid)
        }
        Ok(FromDestination::Says { reply: Some(Reply::Aborted), .. }) => {
            Err(MoveError::Stays { reason: "it has deleted its copy".to_owned() })
        }
        Ok(other) => Err(peer.unexpected(&other, "the word that the copy runs")),
        Err(error) => start_anew(peer, again, &error),
    }
}

/// The same over new links: what was said may have been heard.
fn start_anew(peer: &Peer<'_>, again: Option<Again<'_>>, error: &MoveError) -> Result<i32, MoveError> {
    let (attempt, until) = (peer.id, Instant::now() + ANSWERED_WITHIN);
    let unanswered = MoveError::CloneUnanswered { peer: peer.link.control.peer().to_owned() };
    tracing::warn!(%error, "no answer to the order to run a copy");
    let Some(again) = again else { return Err(unanswered) };
    while Instant::now() < until {
        let said = again.link().and_then(|mut link| {
            link.control.deadline(Some(ANSWERED_WITHIN));
            protocol::send(&mut link.control, &FromSource::Commit { attempt })?;
            let said = protocol::receive(&mut link.control)?;
            if let FromDestination::Says { reply: Some(Reply::Running), .. } = said {
                protocol::send(&mut link.control, &FromSource::Done { attempt })?;
            }
            Ok(said)
        });
        match said {
            Ok(FromDestination::Says { reply: Some(Reply::Running), pid: Some(pid), .. }) => return Ok(pid),
            Ok(FromDestination::Says { reply: Some(Reply::Aborted | Reply::Unknown), .. }) => {
                return Err(MoveError::Stays { reason: "it has no copy any more".to_owned() });
            }
            // Whoever decides there is busy with just that.
            Ok(_) => {}
            Err(unheard) => tracing::debug!(%unheard, "a destination does not say whether its copy runs"),
        }
        std::thread::sleep(ASK_AGAIN);
    }
    Err(unanswered)
}
