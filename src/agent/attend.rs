//! Copies whose sessions are dead. A session is the guardian of the copy that it has made; when it was killed (also with an earlier
//! agent) a process of its own takes its place: it ends what was not prepared, answers a source that comes back, a person too, and
//! parks the copy when its lease is over ([`crate::migration::keeper::attend`]).
//!
//! They are found by the journals that nobody has locked: when the agent starts, when a session has ended, and now and then, for
//! sessions of an earlier agent.

use super::confined::User;
use super::session::{Carrier, SessionSpec};
use crate::migration::journal::{self, Line, Role, Step};
use crate::migration::leftover;
use crate::migration::protocol::AttemptId;
use crate::migration::store;
use crate::transport::Abort;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Between two looks when no session of this agent ends.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How soon the end of the agent is noticed.
const TICK: Duration = Duration::from_millis(500);
/// Most copies that are attended at a time, and of these most for which one look at the journals of a user starts a process.
const ATTENDED_MAX: usize = 256;
const OF_USER_MAX: usize = 16;

/// Has the journals looked at.
#[derive(Debug)]
pub struct Bell(Sender<()>);

impl Bell {
    /// A session has ended.
    pub fn ring(&self) {
        // Rung already, or the agent ends.
        let _ = self.0.try_send(());
    }
}

/// Looks at once, and again until the agent ends.
///
/// # Errors
/// There is no thread left.
pub fn begin(template: &SessionSpec, program: &Path, abort: &Abort) -> io::Result<Bell> {
    let (bell, rung) = bounded(1);
    let (mut attendants, abort) = (Attendants::new(template.clone(), program.into()), abort.clone());
    std::thread::Builder::new().name("attendants".into()).spawn(move || {
        let mut due = Instant::now();
        while !abort.is_triggered() {
            if Instant::now() >= due {
                attendants.look();
                due = Instant::now() + LOOK_EVERY;
            }
            match rung.recv_timeout(TICK) {
                Ok(()) => due = Instant::now(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })?;
    Ok(Bell(bell))
}

/// The processes that attend.
#[derive(Debug)]
pub struct Attendants {
    template: SessionSpec,
    program: PathBuf,
    running: HashMap<AttemptId, Child>,
    /// Journals of what is over, with their lengths.
    over: HashMap<PathBuf, u64>,
}

impl Attendants {
    /// Processes are made after `template`. Dropped, those that run go on.
    pub fn new(template: SessionSpec, program: PathBuf) -> Self {
        Self { template, program, running: HashMap::new(), over: HashMap::new() }
    }

    /// Starts a process for each copy that nobody attends, and removes what pages were stored or kept in by one that is dead.
    pub fn look(&mut self) {
        store::sweep(&store::places(&self.template.state));
        leftover::sweep(&self.template.state.join("moves"));
        self.running.retain(|_, child| matches!(child.try_wait(), Ok(None)));
        for place in self.places() {
            let journals = place.state.join("moves");
            let lines = match journal::undecided_of(&journals, Role::Destination, &mut self.over) {
                Ok(lines) => lines,
                Err(error) => {
                    tracing::warn!(%error, dir = %journals.display(), "the journals of moves cannot be read");
                    continue;
                }
            };
            let most = if place.user.is_some() { OF_USER_MAX } else { ATTENDED_MAX };
            let nobodys = |line: &&Line| needs_somebody(line) && !journal::is_decided(&journals, line);
            for line in lines.iter().filter(nobodys).take(most) {
                if self.running.len() >= ATTENDED_MAX || self.running.contains_key(&line.attempt) {
                    continue;
                }
                self.start(&place, line.attempt);
            }
        }
    }

    fn start(&mut self, place: &SessionSpec, attempt: AttemptId) {
        let spec = SessionSpec { attend: Some(attempt), ..place.clone() };
        let mut command = super::command(&spec, &self.program);
        if spec.user.is_some() {
            command.env("MIGRATE_PLACES", spec.state.parent().unwrap_or(&spec.state));
        }
        match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => {
                tracing::warn!(%attempt, pid = child.id(), "the session of a copy is dead: the copy is attended");
                self.running.insert(attempt, child);
            }
            Err(error) => tracing::error!(%error, %attempt, "nobody attends a copy whose session is dead"),
        }
    }

    /// Where journals are: ours, and those of users whom peers act for. These are a user's files: only a process of that user goes by
    /// what they say.
    fn places(&self) -> Vec<SessionSpec> {
        let own = SessionSpec { carrier: Carrier::Stdio, refusal: None, user: None, ..self.template.clone() };
        let users = fs::read_dir(own.state.join("users")).into_iter().flatten().flatten();
        let of_user = |dir: fs::DirEntry| {
            let user = User::named(dir.file_name().to_str()?, false, false).ok()?;
            let (state, run) = (dir.path().join("state"), dir.path().join("run"));
            Some(SessionSpec { state, run, user: Some(user), ..own.clone() })
        };
        let others: Vec<_> = users.filter_map(of_user).collect();
        std::iter::once(own).chain(others).collect()
    }
}

/// Whether something is to be done, or waited for, about a copy on this host.
fn needs_somebody(line: &Line) -> bool {
    let is_here = line.is_of_this_boot();
    line.role == Role::Destination
        && match line.step {
            Step::Begun | Step::Prepared => true,
            // Parked, and the tree was not ended, or there is half of a new one.
            Step::Parked => line.held.is_some(),
            // It was to be let go, and perhaps was not.
            Step::Owner => is_here && !line.ran,
            Step::Committing | Step::Aborted | Step::Cloned | Step::Done => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::companion::held::Held;
    use crate::migration::journal::Journal;

    #[test]
    fn what_is_prepared_or_half_done_needs_somebody_and_what_is_settled_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), Role::Destination, AttemptId([1; 16]), "a", "abcdefgh").unwrap();
        let needs = |step, journal: &mut Journal| {
            journal.write(step).unwrap();
            needs_somebody(journal.line())
        };
        assert!(needs(Step::Begun, &mut journal) && needs(Step::Prepared, &mut journal));
        assert!(!needs(Step::Parked, &mut journal));
        journal.set_held(Held::default());
        assert!(needs(Step::Parked, &mut journal) && needs(Step::Owner, &mut journal));
        journal.set_ran();
        assert!(!needs(Step::Owner, &mut journal));
        assert!(!needs(Step::Aborted, &mut journal) && !needs(Step::Done, &mut journal));
        let mut other_boot = Line { ran: false, boot_id: "another".into(), ..journal.line().clone() };
        other_boot.step = Step::Owner;
        assert!(!needs_somebody(&other_boot));
        let mut source = Journal::begin(dir.path(), Role::Source, AttemptId([1; 16]), "b", "abcdefgh").unwrap();
        assert!(!needs(Step::Begun, &mut source) && !needs(Step::Committing, &mut source));
    }
}
