//! `migrate status`: who owns what was moved, from this host's journals, and from the other host if it can be reached.

use super::options::{PeerOptions, StatusOptions};
use super::places::Places;
use super::warm::{self, wire::Account};
use super::words::Dest;
use crate::failure::{Failure, Result};
use crate::migration::handover::{Reply, Request};
use crate::migration::journal::{self, Line, Role, Step};
use crate::migration::keeper::Answer;
use crate::migration::parked::{self, Parked};
use crate::migration::points::series;
use crate::migration::protocol::AttemptId;
use crate::migration::resolve::{self, Owner};
use crate::migration::standby::{self, Newest};
use crate::transport::Abort;
use crate::transport::hello::Purpose;
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long the other host is looked for.
const PEER_TIME: Duration = Duration::from_secs(3);

/// How long a move that is over is shown.
const SHOWN_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Whoever only looks whether there is something to be decided, as a guardian does again and again, is done within this time.
const LOOKING: Duration = Duration::from_secs(1);
/// Between two looks of [`watch`], milliseconds.
const LOOK_EVERY_MS: u16 = 500;

/// One move, as this host knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last line of its journal.
    pub line: Line,
    /// Who owns the target.
    pub owner: Owner,
    /// A program of ours decides about it now.
    pub busy: bool,
    /// When the newest state of the target was taken that can be resumed here instead of the original.
    pub recoverable: Option<SystemTime>,
    /// The image of a state that somebody has begun to resume here, and has not come to the end.
    pub left: Option<PathBuf>,
    /// Where the copy here waits as an image.
    pub parked: Option<Parked>,
    /// What the destination says, where this host is in doubt and it answers.
    pub said: Option<Reply>,
    /// The newest state that is kept here for the death of the source.
    pub standby: Option<Newest>,
    /// Its destinations are kept warm: how far that is; or, of one that has ended and was asked for, how it was.
    pub warm: Option<Account>,
}

impl Entry {
    /// Whether nothing is left to be decided or awaited.
    pub fn is_over(&self) -> bool {
        self.line.is_over()
            && self.standby.is_none()
            && self.warm.as_ref().is_none_or(|account| account.phase == "ended")
    }
}

/// Looks again and again, and tells `show` whenever something has changed, at first in any case; until `abort` is triggered, or the one
/// session that was asked for is over. The last look.
///
/// # Errors
/// As [`run`].
pub fn watch(options: &StatusOptions, abort: &Abort, show: &mut dyn FnMut(&[Entry])) -> Result<Vec<Entry>> {
    let mut shown: Option<Vec<Entry>> = None;
    loop {
        let entries = run(options)?;
        if shown.as_ref() != Some(&entries) {
            show(&entries);
        }
        let over = options.session.is_some() && entries.iter().all(Entry::is_over);
        let mut fds = [PollFd::new(abort.fd(), PollFlags::POLLIN)];
        if over || abort.is_triggered() || poll(&mut fds, LOOK_EVERY_MS).is_ok_and(|woken| woken > 0) {
            return Ok(entries);
        }
        shown = Some(entries);
    }
}

/// Looks at the journals. Without `all` only at what is not over.
///
/// # Errors
/// The journals cannot be read; no session of that name.
pub fn run(options: &StatusOptions) -> Result<Vec<Entry>> {
    let journals = Places::here().state.join("moves");
    let mut lines = resolve::lines(&journals, options.session.as_deref())
        .map_err(|e| Failure::of("the journals of moves cannot be read", &e))?;
    if let Some(id) = options.session.as_ref().filter(|_| lines.is_empty()) {
        return Err(Failure::new(format!("there is no session {id} on this host")));
    }
    // What is not shown may be what tells that a source is heard.
    let all = lines.clone();
    // Of a session that has begun anew (a warm-up, a move with retries) the last attempt is what it is now, or was in the end.
    let (sessions, newest) = (warm::fitting(""), newest_of_each(&lines));
    let is_warm = |line: &Line| sessions.contains(&line.session) && newest.contains(&line.attempt);
    let is_replaced = |line: &Line| line.step.is_final() && !newest.contains(&line.attempt);
    lines.retain(|line| options.all || line.role != Role::Source || !is_replaced(line));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = |line: &Line| series::left(&journals, line.attempt).or_else(|| standby::left(&journals, line.attempt));
    let has_left = |line: &Line| left(line).is_some();
    let keeps = |line: &Line| kept_by(&journals, line).is_some();
    lines.retain(|line| {
        options.session.is_some() || is_shown(line, options.all, now) || is_warm(line) || has_left(line) || keeps(line)
    });
    let entry = |line: Line| {
        let left = left(&line);
        let patience = if left.is_some() { LOOKING } else { Duration::ZERO };
        let standby = kept_by(&journals, &line);
        let busy =
            is_busy(&journals, &line, patience) || standby.is_some() && standby::is_heard(&journals, &all, &line);
        let mut owner = resolve::owner(&line);
        let said = (owner == Owner::InDoubt && !busy).then(|| ask(&line, Request::Ask)).flatten();
        let said = said.and_then(|answer| answer.reply);
        match said {
            Some(Reply::Running) => owner = Owner::There,
            Some(Reply::Aborted) => owner = Owner::Here,
            _ => {}
        }
        let recoverable =
            (line.step == Step::Committing).then(|| series::newest(&series::directory(&journals, line.attempt)));
        let parked = (line.step == Step::Parked).then(|| parked::look(&journals, line.attempt)).flatten();
        let left = left.filter(|_| !busy);
        let warm = match is_warm(&line) {
            true => warm::look(&line.session),
            false => (line.step.is_final() && options.session.is_some() && newest.contains(&line.attempt))
                .then(|| warm::last_words(&line.session))
                .flatten(),
        };
        Entry { line, owner, busy, recoverable: recoverable.flatten(), left, parked, said, standby, warm }
    };
    Ok(lines.into_iter().map(entry).collect())
}

/// The newest state that is kept here, where it is not settled otherwise who has the target.
fn kept_by(journals: &Path, line: &Line) -> Option<Newest> {
    let is_open = line.role == Role::Destination && matches!(line.step, Step::Begun | Step::Aborted);
    is_open.then(|| standby::newest(&standby::directory(journals, line.attempt))).flatten()
}

/// The last attempt of each session at the source.
fn newest_of_each(lines: &[Line]) -> HashSet<AttemptId> {
    let mut newest: HashMap<&str, &Line> = HashMap::new();
    for line in lines.iter().filter(|line| line.role == Role::Source) {
        let found = newest.entry(&line.session).or_insert(line);
        if line.unix_ms >= found.unix_ms {
            *found = line;
        }
    }
    newest.into_values().map(|line| line.attempt).collect()
}

/// Whether a program of ours decides, and goes on to do so for this time.
fn is_busy(journals: &Path, line: &Line, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while journal::is_decided(journals, line) {
        if Instant::now() >= until {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// What is not over always is; the others with `--all`, if they have not been over for too long.
fn is_shown(line: &Line, all: bool, now: Duration) -> bool {
    !line.is_over() || all && now.saturating_sub(Duration::from_millis(line.unix_ms)) < SHOWN_FOR
}

/// What the destination of a move says now; `None` if it cannot be reached.
pub(super) fn ask(line: &Line, request: Request) -> Option<Answer> {
    let dest: Dest = line.peer.parse().ok().filter(|_| line.role == Role::Source)?;
    let peer = PeerOptions { connect_timeout: PEER_TIME, peer_timeout: PEER_TIME, ..PeerOptions::default() };
    let abort = Abort::new().ok()?;
    let mut link = super::reach::to(&dest, &peer, Purpose::Send, 0, &abort).ok()?;
    resolve::ask(&mut link.control, line, request).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::journal::Journal;

    #[test]
    fn what_has_been_over_for_a_month_is_not_shown_and_what_is_undecided_always_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), Role::Source, AttemptId([1; 16]), "b", "abcdefgh").unwrap();
        let begun = journal.line().clone();
        journal.write(Step::Done).unwrap();
        let done = journal.line();
        let (written, day) = (Duration::from_millis(done.unix_ms), Duration::from_secs(24 * 3600));
        assert!(is_shown(done, true, written + 29 * day) && !is_shown(done, true, written + 31 * day));
        assert!(!is_shown(done, false, written));
        assert!(is_shown(&begun, false, written + 400 * day));
        // A clock that was set back.
        assert!(is_shown(done, true, written - day));
    }
}
