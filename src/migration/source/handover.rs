//! The handover, as the attempt drives it: what is heard becomes an event of the machine, and what the machine decides is done.

use super::fan::Fan;
use super::{Attempt, MoveError, Silence, Target};
use crate::fault::{self, Point};
use crate::migration::handover::source::{Action, Event as Happened, Phase, Record};
use crate::migration::handover::{Candidate, Reply, Request, Sync};
use crate::migration::journal::Step;
use crate::migration::protocol::{self, FromDestination, FromSource};
use crate::migration::report::Pause;
use crate::ops::Event;
use crate::transport::backoff::Backoff;
use crate::transport::{Abort, FrameKind};
use std::time::Duration;

/// Between two looks for a lost destination: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

impl Attempt<'_> {
    /// From the moment COMMIT may have left this host, only the destination knows who owns the target. The one that is spoken
    /// to is the first that is prepared.
    pub(super) fn commit(
        &mut self,
        target: &mut dyn Target,
        pause: Pause,
        interrupted: &Abort,
    ) -> Result<(), MoveError> {
        fault::strike(Point::SourceReady);
        self.peers.link.control.during("handing the target over");
        let mut trouble = self.happened(target, Happened::Said(self.peers.spoken(), self.id, Reply::Prepared));
        let mut pause = Some(pause);
        loop {
            match self.machine.phase() {
                Phase::Committed(to) => {
                    let event = self.answer(target, to, (&mut pause, &mut trouble), interrupted)?;
                    if matches!(event, Happened::Said(_, _, Reply::Aborted)) {
                        self.find_another(target, interrupted);
                    }
                    let failed = self.happened(target, event);
                    trouble = trouble.or(failed);
                }
                Phase::InDoubt(_) => {
                    let pid = self.ask_until_known(target, interrupted)?;
                    self.switched(pid.unwrap_or_default(), pause.take_if(|_| pid.is_some()));
                    if let Phase::InDoubt(_) = self.machine.phase() {
                        break;
                    }
                }
                _ => break,
            }
        }
        match self.machine.phase() {
            // It runs there: what fails from here on is a warning, not a failure of the move.
            Phase::Moved(_) => Ok(()),
            Phase::InDoubt(_) => Err(self.in_doubt(trouble.unwrap_or(MoveError::Worker))),
            _ => Err(trouble.unwrap_or(MoveError::Stays { reason: "the destination has given it up".into() })),
        }
    }

    /// What the destination that was told to run it says.
    fn answer(
        &mut self,
        target: &mut dyn Target,
        to: Candidate,
        (pause, trouble): (&mut Option<Pause>, &mut Option<MoveError>),
        interrupted: &Abort,
    ) -> Result<Happened, MoveError> {
        Ok(match self.peers.receive() {
            Ok(FromDestination::Running { pid: theirs, .. }) => {
                fault::strike(Point::SourceMoved);
                self.switched(theirs, pause.take());
                self.runs_there(target, to, interrupted)?;
                Happened::Said(to, self.id, Reply::Running)
            }
            Ok(FromDestination::Says { reply: Some(reply), .. }) => Happened::Said(to, self.id, reply),
            // Said after COMMIT was read: it durably does not run there.
            Err(error @ (MoveError::Destination(_) | MoveError::Blocked(_))) => {
                *trouble = Some(error);
                Happened::Said(to, self.id, Reply::Aborted)
            }
            Ok(other) => {
                *trouble = Some(self.peers.unexpected(&other, "the word that the target runs"));
                Happened::Silent(to)
            }
            Err(error) => {
                tracing::warn!(%error, "no answer to the order to run");
                *trouble = Some(error);
                Happened::Silent(to)
            }
        })
    }

    /// It runs at this one, for good: while the rest of its memory follows, the others need not wait to be told; and one of them may be
    /// where it goes on to.
    fn runs_there(&mut self, target: &mut dyn Target, to: Candidate, interrupted: &Abort) -> Result<(), MoveError> {
        if self.serving.is_some() {
            self.takes_states();
        }
        if self.serving.is_some() || self.wishes.onward.is_some() {
            // They may take their time.
            self.forward_first(target);
            self.tell_others(target, &[to]);
        }
        self.drained(interrupted).map_err(|error| self.in_doubt(error))
    }

    /// The pause is over.
    fn switched(&mut self, pid: i32, pause: Option<Pause>) {
        let Some(mut pause) = pause else { return };
        pause.part("handover");
        self.report.switched(pid, pause);
        let downtime = self.report.downtime.unwrap_or_default();
        self.events.event(Event::Switched { downtime });
    }

    /// Looks for a link, and asks who owns the target: until that is known, or somebody wants this to end.
    fn ask_until_known(&mut self, target: &mut dyn Target, interrupted: &Abort) -> Result<Option<i32>, MoveError> {
        let Some(again) = self.wishes.again else { return Ok(None) };
        let (mut backoff, mut pid) = (Backoff::new(LOOK_AGAIN), None);
        let held = if self.wishes.from_image { "" } else { "the target is held here while " };
        self.events.event(Event::Warning(format!(
            "in doubt: {held}{} is asked whether it runs there",
            self.peers.link.control.peer()
        )));
        let mut silence = Silence::begin(self.wishes.fence, self.peers.spoken());
        while let Phase::InDoubt(to) = self.machine.phase() {
            if interrupted.is_triggered() {
                break;
            }
            if silence.ends_by_fence() {
                self.events.event(Event::Warning(format!(
                    "the fencing command has switched {} off: it does not run there",
                    self.peers.link.control.peer()
                )));
                self.find_another(target, interrupted);
                self.happened(target, Happened::Fenced(to));
                break;
            }
            if let Ok(link) = again.to(to).link() {
                self.peers.link = link;
                self.peers.link.control.during("asking who owns the target");
                self.happened(target, Happened::Connected(to));
                // Until nothing new is said: an answer may be followed by another COMMIT.
                while let Ok(FromDestination::Says { attempt, reply, pid: theirs, .. }) =
                    protocol::receive(&mut self.peers.link.control)
                {
                    silence.is_broken();
                    let Some(reply) = reply else { break };
                    pid = theirs.or(pid);
                    match reply {
                        Reply::Running => self.runs_there(target, to, interrupted)?,
                        Reply::Aborted => self.find_another(target, interrupted),
                        _ => {}
                    }
                    self.happened(target, Happened::Said(to, attempt, reply));
                    if self.machine.phase() != Phase::Committed(to) {
                        break;
                    }
                }
                if self.machine.phase() == Phase::Committed(to) {
                    self.happened(target, Happened::Silent(to));
                }
            }
            std::thread::sleep(backoff.pause());
        }
        Ok(pid)
    }

    /// Performs what the machine decides; what kept it from being done.
    pub(super) fn happened(&mut self, target: &mut dyn Target, event: Happened) -> Option<MoveError> {
        let mut trouble = None;
        let mut actions = self.machine.on(event);
        while !actions.is_empty() {
            let decides = matches!(actions.last(), Some(Action::Record(..)));
            let mut done = true;
            for action in std::mem::take(&mut actions) {
                if let Err(error) = self.perform(target, action) {
                    trouble.get_or_insert(error);
                    done = false;
                    if decides {
                        break;
                    }
                }
            }
            if decides {
                actions = self.machine.on(if done { Happened::Recorded } else { Happened::NotRecorded });
            }
        }
        trouble
    }

    fn perform(&mut self, target: &mut dyn Target, action: Action) -> Result<(), MoveError> {
        match action {
            Action::Hold if self.is_held => {}
            Action::Hold => {
                self.journal.set_held(target.held()?);
                self.note(Step::Begun, Sync::Later)?;
                target.hold()?;
                self.is_held = true;
                fault::strike(Point::SourceHeld);
            }
            Action::Record(record, sync) => {
                let step = Step::from(&record);
                if let Record::Committing(to) | Record::Done(to) = record {
                    self.journal.set_candidate(to);
                }
                if let Record::Committing(to) = record {
                    let later = self.fan.as_ref().map(|fan| fan.later_of(to)).unwrap_or_default();
                    self.serve(to, &later)?;
                }
                if step == Step::Done {
                    let sent = self.peers.link.bytes_sent() + self.fan.as_ref().map_or(0, Fan::bytes_sent);
                    self.journal.set_cost(self.report.downtime, sent);
                }
                self.note(step, sync)?;
                if step == Step::Committing {
                    fault::strike(Point::SourceCommitting);
                }
            }
            Action::Send(to, request) => self.tell(target, to, request),
            Action::Release => {
                if let Err(failure) = target.resume() {
                    self.not_resumed = Some(failure);
                }
            }
            Action::End => {
                self.forward_first(target);
                self.end_original(target);
                fault::strike(Point::SourceEnded);
            }
            Action::Connect(_) => self.peers.lost = true,
        }
        Ok(())
    }

    /// Tells a destination, if it listens. One that is not spoken to is told that the target is not its own when that is all
    /// there is left to do.
    fn tell(&mut self, target: &mut dyn Target, to: Candidate, request: Request) {
        let attempt = self.id;
        let is_here = self.peers.get(to).is_some();
        if request == Request::Commit && is_here {
            self.peers.speak_to(to);
        }
        if to != self.peers.spoken() || !is_here {
            // The others are told when it is known who has the target.
            return;
        }
        let message = match request {
            Request::Commit => FromSource::Commit { attempt },
            Request::Ask => FromSource::Ask { attempt },
            Request::Done => FromSource::Done { attempt },
            Request::Abort => {
                self.peers.link.control.deadline(Some(Duration::from_secs(1)));
                FromSource::Abort { attempt, reason: "the target stays".into(), keep: false }
            }
        };
        // Unheard it is silence, which has an event of its own.
        let sent = self.send_segments(target, request);
        if let Err(error) = sent.and_then(|()| Ok(protocol::send(&mut self.peers.link.control, &message)?)) {
            tracing::debug!(%error, ?request, "the destination was not told");
        }
        if request == Request::Commit {
            fault::strike(Point::SourceCommitted);
        }
    }

    /// What the network has brought for the target goes before these words, on the link that the target went over.
    fn send_segments(&mut self, target: &mut dyn Target, request: Request) -> Result<(), MoveError> {
        if self.peers.lost {
            return Ok(());
        }
        let control = &mut self.peers.link.control;
        match request {
            Request::Commit => {
                // The next destination gets what the one before has not taken.
                let ahead = self.ahead.get_or_insert_with(|| target.segments_ahead());
                ahead.iter().try_for_each(|body| Ok(control.send(FrameKind::SEGMENTS, body)?))
            }
            Request::Done => target.forward_segments(true, &mut |body| Ok(control.send(FrameKind::SEGMENTS, body)?)),
            Request::Ask | Request::Abort => Ok(()),
        }
    }

    /// The target runs: what has come here since COMMIT is forwarded before its original is ended.
    fn forward_first(&mut self, target: &mut dyn Target) {
        if self.peers.lost {
            return;
        }
        let control = &mut self.peers.link.control;
        if let Err(error) =
            target.forward_segments(false, &mut |body: &[u8]| Ok(control.send(FrameKind::SEGMENTS, body)?))
        {
            tracing::debug!(%error, "packets were not forwarded");
        }
    }

    pub(super) fn note(&mut self, step: Step, sync: Sync) -> Result<(), MoveError> {
        let written = match sync {
            Sync::Now => self.journal.write_synced(step),
            Sync::Later => self.journal.write(step),
        };
        if let (Err(error), Step::Done | Step::Aborted) = (&written, step) {
            let path = self.journal.path().display();
            self.report.warnings.push(format!("the journal {path} could not be written: {error}"));
        }
        written.map_err(|source| MoveError::Journal { source })
    }

    pub(super) fn end_original(&mut self, target: &mut dyn Target) {
        if let Err(failure) = target.end() {
            self.report.warnings.push(format!("the frozen original could not be ended: {failure}"));
        }
    }
}
