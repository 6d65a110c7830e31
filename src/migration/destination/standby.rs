//! A source that wants the newest state of its target to be here when it dies ([`crate::migration::standby`]).

use super::{Attempt, FromDestination, MoveError, SpaceName, homes, while_alive};
use crate::blocker::{Blocker, codes};
use crate::failure::Failure;
use crate::fault::{self, Point};
use crate::image::codec;
use crate::migration::handover::destination::Phase;
use crate::migration::journal::{self, Line, Step};
use crate::migration::protocol::AttemptId;
use crate::migration::standby::keeping::Keeping;
use crate::migration::standby::{self, Became, Described, Earlier, Standby, Terms};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What pages of a round are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The tree that is made ahead of time, and every state from here on.
    Round,
    /// A state alone.
    State,
    /// The target itself: it is about to run here.
    Pause,
}

/// What is kept for the death of the source.
#[derive(Debug)]
pub(super) struct StandsBy {
    dir: PathBuf,
    /// Or why nothing can be.
    keeping: Result<Keeping, String>,
    /// What this session has left here before, until there is a state of this attempt.
    earlier: Earlier,
}

impl StandsBy {
    /// A round begins: where pages of it go.
    pub fn begins(&self, of: Of) -> Option<&Keeping> {
        let keeping = self.keeping.as_ref().ok().filter(|_| of != Of::Pause)?;
        keeping.begins(of == Of::State);
        Some(keeping)
    }

    /// Attempts of this session that have left a state here.
    pub fn earlier(&self) -> impl Iterator<Item = AttemptId> {
        self.earlier.attempts()
    }
}

/// A person has started the target of this session here.
pub(super) fn promoted(journals: &Path, session: &str) -> Option<MoveError> {
    let lines = journal::all(journals).ok()?;
    let mut ours = standby::of_session(&lines, session);
    ours.find(|line| line.standby == Some(Became::Promoted)).map(started)
}

/// That is what this line says.
fn started(line: &Line) -> MoveError {
    let pid = line.target_pid.map(|pid| format!(" as process {pid}")).unwrap_or_default();
    let blocker = Blocker::new(codes::PROMOTED, format!("session {}", line.session));
    let blocker = blocker.because(format!("a state of its target was started there{pid} (migrate promote)"));
    MoveError::Target(Failure::blocked("the target was started here when its source was not heard", vec![blocker]))
}

impl Attempt<'_> {
    /// The target may come: pages are kept from here on.
    ///
    /// # Errors
    /// A person has just started it here.
    pub(super) fn stand_by(&mut self, mut wanted: Standby) -> Result<(), MoveError> {
        // A person will read it.
        wanted.host.retain(|letter| letter.is_ascii_graphic());
        let dir = standby::directory(self.around.journals, self.id);
        let line = self.keeper.journal().line();
        let (session, peer) = (line.session.clone(), line.peer.clone());
        // One that has lost its source before has the newest state still.
        self.note_state(standby::is_complete(&dir).then_some(Became::Kept));
        // After the first line of the journal: whoever wants to start one of them from here on sees by that that the source is heard.
        let earlier = Earlier::find(self.around.journals, &session, self.id);
        let terms = Terms { session, peer, standby: wanted, state: self.state.clone() };
        let keeping = Keeping::begin(&dir, terms).map_err(|error| error.to_string());
        self.standby = Some(StandsBy { dir, keeping, earlier });
        self.is_not_promoted()
    }

    /// All of a state is here.
    pub(super) fn keep_state(&mut self, age: Duration, names: &[SpaceName], model_bytes: u64) -> Result<(), MoveError> {
        let mut model = self.model(model_bytes)?;
        self.is_not_promoted()?;
        homes(&model, names)?;
        self.luggage.adapt(&mut model);
        fault::strike(Point::DestinationKeeps);
        let encoded = codec::encode(&model).map_err(|error| MoveError::Model { reason: error.to_string() })?;
        let kept = match self.standby.as_ref().map(|standby| &standby.keeping) {
            Some(Ok(keeping)) => {
                let described = Described { model: &encoded, names, age };
                while_alive(&mut self.control, || keeping.keep(&described)).map_err(|error| error.to_string())
            }
            Some(Err(trouble)) => Err(trouble.clone()),
            None => Err("nobody stands by here".to_owned()),
        };
        if kept.is_ok() {
            self.note_state(Some(Became::Kept));
            self.standby.iter_mut().for_each(|standby| standby.earlier.forget());
        }
        self.send(&FromDestination::Kept { attempt: self.id, trouble: kept.err() })
    }

    /// Nobody was about to start an earlier state when this attempt began, and has done so since. Where there is a state of this one
    /// there are no others, and nothing is read.
    ///
    /// # Errors
    /// Somebody has.
    pub(super) fn is_not_promoted(&self) -> Result<(), MoveError> {
        let promoted = self.standby.as_ref().and_then(|standby| standby.earlier.promoted());
        promoted.map_or(Ok(()), |line| Err(started(&line)))
    }

    /// The journal says whether there is a state, from the first one on.
    fn note_state(&mut self, became: Option<Became>) {
        let journal = self.keeper.journal();
        if journal.line().standby == became {
            return;
        }
        journal.set_standby(became);
        if let Err(error) = journal.write(Step::Begun) {
            tracing::warn!(%error, "the journal does not say whether a state is kept");
        }
    }

    /// The attempt has come to its end like this, and nothing of it has been removed yet: a state that is complete is for a person,
    /// unless the source has said what became of the target.
    pub(super) fn leave_state(&mut self, result: &Result<(), MoveError>) {
        let Some(mut standby) = self.standby.take() else { return };
        let is_told = matches!(result, Err(MoveError::Stays { .. }));
        match self.keeper.phase() {
            // Until it is settled who has the target.
            Phase::Prepared | Phase::Parked if !is_told => {}
            Phase::Receiving | Phase::Preparing if !is_told && standby::is_complete(&standby.dir) => {
                tracing::warn!(dir = %standby.dir.display(), "the source is not heard: the newest state of the target is kept");
                self.luggage.leave();
            }
            // The copy has died before anybody decided: an order to delete it would have deleted the state, too.
            Phase::Aborted if standby::is_complete(&standby.dir) => self.luggage.leave(),
            phase => {
                self.keeper.journal().set_standby(None);
                standby::forget(&standby.dir);
                if is_told || matches!(phase, Phase::Owner | Phase::Closed) {
                    standby.earlier.forget();
                } else if standby.earlier.is_kept() {
                    // Files are its own, too.
                    self.luggage.leave();
                }
            }
        }
    }
}
