//! Files that come along with the target: which are here, which are to come, and what becomes of them. Mirror of
//! `migration/source/luggage.rs`.

use super::super::journal::{self, Line, Role, Step};
use super::super::standby;
use super::standby::StandsBy;
use super::{Attempt, FromDestination, FromSource, MoveError, protocol, while_alive};
use crate::blocker::Blocker;
use crate::companion::held::Held;
use crate::fault::{self, Point};
use crate::files::install::{self, Installer};
use crate::files::judge::{Judge, Judged};
use crate::files::op::Op;
use crate::files::record::{self, Fate};
use crate::files::{self, Order, Wish};
use crate::image::{Bytes, Model};
use crate::transport::{FrameKind, TransportError};
use std::collections::HashSet;
use std::path::Path;

/// What is wanted, what was found, what has come.
#[derive(Debug, Default)]
pub(super) struct Luggage {
    /// `None`: the source knows nothing of this.
    wish: Option<Wish>,
    judged: Judged,
    installer: Option<Installer>,
}

impl Luggage {
    pub fn of(wish: Option<Wish>) -> Self {
        Self { wish, ..Self::default() }
    }

    /// Paths that need no further look.
    pub fn paths(&self) -> &HashSet<Bytes> {
        &self.judged.paths
    }

    /// What the source is to do.
    pub fn order(&self) -> Order {
        self.judged.order.clone()
    }

    /// Says what files that were compared or have come are here.
    pub fn adapt(&self, model: &mut Model) {
        let came = |path: &[u8]| self.installer.as_ref().is_some_and(|installer| installer.came(path));
        self.judged.adapt(model, &came);
    }

    pub fn decide(&mut self, fate: Fate) {
        if let Some(installer) = &mut self.installer {
            installer.decide(fate);
        }
    }

    /// What has come stays as it is, for whoever starts the target from a state that is kept here.
    pub fn leave(&mut self) {
        self.decide(Fate::Leave);
        self.installer = None;
    }

    pub fn undo(&mut self) {
        if let Some(mut installer) = self.installer.take() {
            installer.undo();
        }
    }
}

impl Attempt<'_> {
    /// Compares the files of the offer; what is in the way.
    pub(super) fn judge(&mut self, model: &Model) -> Result<Vec<Blocker>, MoveError> {
        let Some(wish) = self.luggage.wish.take() else { return Ok(Vec::new()) };
        let same_kernel = crate::proc::sys::boot_id().is_ok_and(|here| here == model.host.boot_id);
        let named = files::named(files::wanted(model), &wish);
        let mut judge = while_alive(&mut self.control, || Judge::begin(named, wish, same_kernel))?;
        while let Some(question) = judge.question() {
            self.send(&FromDestination::Asks { attempt: self.id, question: question.clone() })?;
            let answer = match protocol::receive(&mut self.control)? {
                FromSource::Answers { attempt, answer } if attempt == self.id => answer,
                other => return Err(self.out_of_turn(&other, "answers about files")),
            };
            while_alive(&mut self.control, || judge.answered(&question, &answer))?;
        }
        self.luggage.judged = judge.judged()?;
        Ok(std::mem::take(&mut self.luggage.judged.blockers))
    }

    /// Takes what comes of files, until the end of the pass.
    pub(super) fn pass(&mut self, last: bool) -> Result<(), MoveError> {
        self.control.during("receiving files");
        let mut installer = match self.luggage.installer.take() {
            Some(installer) => installer,
            None => self.installer()?,
        };
        installer.begin_pass(last);
        let taken = self.take_all(&mut installer);
        let ended = taken.and_then(|()| Ok(while_alive(&mut self.control, || installer.end_pass())?));
        // Also when it has failed: what has come is undone with the rest.
        self.luggage.installer = Some(installer);
        ended?;
        fault::strike(Point::DestinationFiles);
        if last { Ok(()) } else { self.send(&FromDestination::FilesDone { attempt: self.id }) }
    }

    /// What this session has brought before, with an earlier link or an earlier attempt, goes the way of what it brings now.
    fn installer(&self) -> Result<Installer, MoveError> {
        let earlier = self.standby.iter().flat_map(StandsBy::earlier);
        let earlier: Vec<String> = earlier.map(|attempt| attempt.to_string()).collect();
        let wish = self.luggage.judged.wish().clone();
        Ok(Installer::begin(self.around.journals, &self.id.to_string(), &earlier, wish)?)
    }

    fn take_all(&mut self, installer: &mut Installer) -> Result<(), MoveError> {
        let peer = self.control.peer().to_owned();
        loop {
            let frame = self.control.receive()?;
            let op = match frame.kind {
                FrameKind::FILE => {
                    let (op, content) = Op::decode(frame.body).map_err(install::unreadable)?;
                    if !matches!(op, Op::Digest { .. }) {
                        let ends = matches!(op, Op::End { .. });
                        installer.take(op, content)?;
                        if ends {
                            fault::strike(Point::DestinationFile);
                        }
                        continue;
                    }
                    op
                }
                FrameKind::MESSAGE => match protocol::decode(frame.body, &peer)? {
                    FromSource::FilesEnd { attempt } if attempt == self.id => return Ok(()),
                    other => return Err(self.out_of_turn(&other, "the end of the files")),
                },
                got => return Err(TransportError::UnexpectedKind { peer, expected: "files or a message", got }.into()),
            };
            if let Op::Digest { file, len, digest } = op {
                let judged = &self.luggage.judged;
                let found = while_alive(&mut self.control, || judged.later(file, len, digest.as_deref()))?;
                if let Some(blocker) = found {
                    return Err(MoveError::Blocked(vec![blocker]));
                }
            }
        }
    }
}

/// Brings files to an end that came for attempts whose programs are dead.
pub fn sweep(journals: &Path) {
    // Of each record when it is locked: whoever had it has written its last line by then.
    record::sweep(journals, &|attempt| {
        journal::all(journals).map_or(Fate::Leave, |lines| fate(journals, &lines, attempt))
    });
}

/// Files belong to the session: what one of its attempts has brought is found by those after it, and does not come again. They stay where
/// the target runs here, and until it is known whether it will, or a state that is kept here needs them; then they go. `lines`: of all
/// journals.
fn fate(journals: &Path, lines: &[Line], attempt: &str) -> Fate {
    let is_this = |line: &&Line| line.role == Role::Destination && line.attempt.to_string() == attempt;
    let Some(this) = lines.iter().find(is_this) else { return Fate::Leave };
    // A copy that is armed and stands still may have them open, whatever the last line says.
    let stands = |line: &Line| line.is_of_this_boot() && line.held.as_ref().is_some_and(Held::is_whole);
    let is_open = |line: &Line| {
        let is_settled = matches!(line.step, Step::Begun | Step::Aborted);
        !is_settled || stands(line) || line.attempt != this.attempt && journal::is_decided(journals, line)
    };
    let session: Vec<&Line> = match this.session.as_str() {
        // Of an older program, which says nothing of it.
        "" => vec![this],
        session => standby::of_session(lines, session).collect(),
    };
    if session.iter().any(|line| matches!(line.step, Step::Owner | Step::Done)) {
        Fate::Keep
    } else if standby::is_kept(journals, lines, &this.session) || session.into_iter().any(is_open) {
        Fate::Leave
    } else {
        Fate::Undo
    }
}
