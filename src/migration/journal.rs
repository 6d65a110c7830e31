//! What survives the program: one file for each attempt, a line for each step, synced before the message that depends
//! on it.
//!
//! ```text
//! {"attempt":"...","role":"source","step":"committing","boot_id":"...","peer":"...","target":4242,"unix_ms":...}
//! ```
//! Steps that decide who owns the target are on the disk before they are acted upon: `owner` before the first
//! instruction at the destination, `aborted` before anything is discarded after a PREPARED. `committing` must survive the
//! death of the program; a crash of the host ends the source's copy anyway.

use super::handover::source::Record;
use super::handover::{Candidate, destination, source};
use super::protocol::AttemptId;
use super::standby;
use crate::companion::held::Held;
use crate::sys::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Longest journal that is read, bytes: a few dozen lines are the most there can be.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Which side wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Where the target was.
    Source,
    /// Where it was to go.
    Destination,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// A step that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Both: the attempt has begun.
    Begun,
    /// Destination: it stands before its first instruction.
    Prepared,
    /// Destination: what was prepared is in an image on the disk.
    Parked,
    /// Source: COMMIT may have been sent.
    Committing,
    /// Destination: it runs here, or is about to.
    Owner,
    /// Source: it goes on here. Destination: it was discarded.
    Aborted,
    /// Source: it goes on here, and clones of it run elsewhere.
    #[serde(rename = "copied")]
    Cloned,
    /// Source: the original has ended. Destination: the source knows.
    Done,
}

impl Step {
    /// Whether nothing is left to be decided after it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Aborted | Self::Cloned | Self::Done)
    }

    /// Whether nobody counts on anything after it, at a destination: it has not said PREPARED.
    fn promises_nothing(self) -> bool {
        matches!(self, Self::Begun | Self::Aborted)
    }
}

impl From<&Record> for Step {
    fn from(record: &Record) -> Self {
        match record {
            Record::Begun => Self::Begun,
            Record::Committing(_) => Self::Committing,
            Record::Aborted => Self::Aborted,
            Record::Done(_) => Self::Done,
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The attempt.
    pub attempt: AttemptId,
    /// Who wrote it.
    pub role: Role,
    /// What was done.
    pub step: Step,
    /// On which boot of which host.
    pub boot_id: String,
    /// The other side, as a person would name it; of several destinations the one that COMMIT was sent to last.
    pub peer: String,
    /// At the source: all destinations, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// At the source: which of them `peer` is.
    #[serde(default)]
    pub candidate: u8,
    /// Process id of the root on this host, once known.
    pub target_pid: Option<i32>,
    /// The session, as a person knows it.
    #[serde(default)]
    pub session: String,
    /// At the source: the target, as a person has named it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub asked_for: String,
    /// At the source: the target comes from an image, so that nothing of it stands here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_image: bool,
    /// The copy on this host while it stands still, so that a later program can let it go or end it.
    #[serde(default)]
    pub held: Option<Held>,
    /// Addresses that came with the target: taken away again with a copy that is discarded.
    #[serde(default)]
    pub addresses: Vec<(IpAddr, u8, String)>,
    /// At the source, in post-copy: the copy there still lacks memory that only this one has.
    #[serde(default)]
    pub pages_owed: bool,
    /// At the source, once it runs over there: the pause, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_us: Option<u64>,
    /// At the source, once it runs over there: bytes sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// At the destination: why the prepared copy could not be parked, and is still in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_parked: Option<String>,
    /// At the destination, once it is this host's: it was let go. Whoever comes later lets nobody go a second time, who may be held
    /// by somebody else by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ran: bool,
    /// At the destination: it runs, or was to run, beside others.
    #[serde(rename = "copy", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_clone: bool,
    /// At the destination: what became of the newest state that it keeps for the death of the source ([`super::standby`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<standby::Became>,
    /// When, milliseconds since the epoch.
    pub unix_ms: u64,
}

impl Line {
    /// As the source's machine knows it.
    pub fn of_source(&self) -> source::Record {
        match self.step {
            Step::Committing | Step::Owner => source::Record::Committing(Candidate(self.candidate)),
            Step::Done => source::Record::Done(Candidate(self.candidate)),
            Step::Aborted | Step::Cloned => source::Record::Aborted,
            Step::Begun | Step::Prepared | Step::Parked => source::Record::Begun,
        }
    }

    /// How many destinations there are, for the source's machine.
    pub fn candidates(&self) -> u8 {
        u8::try_from(self.candidates.len()).unwrap_or(u8::MAX).max(1)
    }

    /// As the destination's machine knows it.
    pub fn of_destination(&self) -> destination::Record {
        match self.step {
            Step::Begun => destination::Record::Begun,
            Step::Prepared => destination::Record::Prepared,
            Step::Parked => destination::Record::Parked,
            Step::Owner | Step::Committing => destination::Record::Owner,
            Step::Aborted | Step::Cloned => destination::Record::Aborted,
            Step::Done => destination::Record::Done,
        }
    }

    /// Whether nothing is left to be decided or heard: whoever runs beside others is nobody's concern once it runs.
    pub fn is_over(&self) -> bool {
        self.step.is_final() || self.is_clone && self.step == Step::Owner && self.ran
    }

    /// Written since this host was started.
    pub fn is_of_this_boot(&self) -> bool {
        crate::proc::sys::boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
    }
}

/// The journal of one attempt on one side. Whoever has it is the only one who decides on this side: the file is locked
/// (flock(2)) as long as this lives.
#[derive(Debug)]
pub struct Journal {
    file: Flock<File>,
    path: PathBuf,
    line: Line,
}

/// Room for all lines of a journal, bytes: reserved at the beginning, so that a disk that fills up decides nothing.
const RESERVED_BYTES: i64 = 16 << 10;

/// How long somebody who decides may take to come to an end before they are said to be busy.
const LOCK_WAIT: Duration = Duration::from_secs(1);

impl Journal {
    /// Begins a journal of an attempt of this session in `dir`, which is made (0700) if it is not there. The file and its name are on
    /// the disk when this returns. One of the same attempt goes on where nothing was ever promised in it: its destination was lost, and
    /// is sent everything anew.
    ///
    /// # Errors
    /// There is one in which something was promised ([`io::ErrorKind::AlreadyExists`]), or that somebody else still writes
    /// ([`io::ErrorKind::WouldBlock`]).
    pub fn begin(dir: &Path, role: Role, attempt: AttemptId, peer: &str, session: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = path_of(dir, role, attempt);
        let open = |new: bool| OpenOptions::new().append(true).create_new(new).mode(0o600).open(&path);
        let (file, is_new) = match open(true) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && role == Role::Destination => {
                (open(false)?, false)
            }
            file => (file?, true),
        };
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        let earlier = if is_new { Vec::new() } else { read(&path)? };
        // What a crash has cut off is no line, and would run into the next one.
        if !has_whole_lines(&path)? || earlier.iter().any(|line| !line.step.promises_nothing()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let reserve = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(&*file, reserve, 0, RESERVED_BYTES) {
            // Not every file system can.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        let line = Line {
            attempt,
            role,
            step: Step::Begun,
            boot_id: crate::proc::sys::boot_id().unwrap_or_default(),
            peer: peer.into(),
            candidates: Vec::new(),
            candidate: 0,
            target_pid: None,
            session: session.into(),
            asked_for: String::new(),
            from_image: false,
            held: None,
            addresses: Vec::new(),
            pages_owed: false,
            downtime_us: None,
            bytes_sent: None,
            not_parked: None,
            ran: false,
            is_clone: false,
            standby: earlier.last().and_then(|line| line.standby),
            unix_ms: 0,
        };
        let mut journal = Self { file, path, line };
        journal.write_synced(Step::Begun)?;
        File::open(dir)?.sync_all()?;
        Ok(journal)
    }

    /// Takes over the journal of an attempt whose programs are dead; with its last line, as it was written.
    ///
    /// # Errors
    /// There is none ([`io::ErrorKind::NotFound`]), or somebody else still decides ([`io::ErrorKind::WouldBlock`]).
    pub fn take_over(dir: &Path, role: Role, attempt: AttemptId) -> io::Result<(Self, Line)> {
        let path = path_of(dir, role, attempt);
        let mut file = OpenOptions::new().append(true).read(true).open(&path)?;
        let until = Instant::now() + LOCK_WAIT;
        let file = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => break locked,
                Err((_, errno)) if errno != Errno::EWOULDBLOCK || Instant::now() > until => return Err(errno.into()),
                Err((back, _)) => file = back,
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let last = read(&path)?.pop().ok_or(io::ErrorKind::InvalidData)?;
        // What a crash has cut off must not run into the next line.
        let whole = fs::read(&path)?.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        file.set_len(whole)?;
        let line = Line { boot_id: crate::proc::sys::boot_id().unwrap_or_default(), ..last.clone() };
        Ok((Self { file, path, line }, last))
    }

    /// Notes what a person has named the target, for later lines.
    pub fn set_asked_for(&mut self, target: &str) {
        self.line.asked_for = target.into();
    }

    /// Notes that the target comes from an image, for later lines.
    pub fn set_from_image(&mut self) {
        self.line.from_image = true;
    }

    /// Notes the destinations, where there are several, for later lines.
    pub fn set_candidates(&mut self, peers: &[&str]) {
        self.line.candidates = peers.iter().map(|peer| (*peer).to_owned()).collect();
    }

    /// Notes the other side by another name, for later lines.
    pub fn set_peer(&mut self, peer: &str) {
        self.line.peer = peer.to_owned();
    }

    /// Notes which destination COMMIT goes to, for later lines.
    pub fn set_candidate(&mut self, to: Candidate) {
        self.line.candidate = to.0;
        if let Some(peer) = self.line.candidates.get(usize::from(to.0)) {
            self.line.peer.clone_from(peer);
        }
    }

    /// Notes the copy that stands still here, for later lines.
    pub fn set_held(&mut self, held: Held) {
        self.line.target_pid = held.root().or(self.line.target_pid);
        self.line.held = Some(held);
    }

    /// Nothing of the copy stands here any more: neither it nor its addresses, for later lines.
    pub fn forget_copy(&mut self) {
        self.line.target_pid = None;
        self.line.held = None;
        self.line.addresses.clear();
    }

    /// Notes why the copy could not be parked, for later lines; `None`: it is.
    pub fn set_not_parked(&mut self, reason: Option<String>) {
        self.line.not_parked = reason;
    }

    /// Notes that the copy was let go, for later lines.
    pub fn set_ran(&mut self) {
        self.line.ran = true;
    }

    /// Notes that it runs beside others, for later lines.
    pub fn set_clone(&mut self) {
        self.line.is_clone = true;
    }

    /// Notes what became of the state that is kept here, for later lines.
    pub fn set_standby(&mut self, became: Option<standby::Became>) {
        self.line.standby = became;
    }

    /// Notes addresses that are here for the copy.
    pub fn set_addresses(&mut self, addresses: Vec<(IpAddr, u8, String)>) {
        self.line.addresses = addresses;
    }

    /// Notes whether the other copy lacks memory that only this one has, for later lines.
    pub fn set_pages_owed(&mut self, owed: bool) {
        self.line.pages_owed = owed;
    }

    /// Notes what the move has cost, for later lines.
    pub fn set_cost(&mut self, downtime: Option<Duration>, bytes_sent: u64) {
        // While an image is sent nothing stands still.
        let downtime = downtime.filter(|_| !self.line.from_image);
        self.line.downtime_us = downtime.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        self.line.bytes_sent = Some(bytes_sent);
    }

    /// What the next line will say.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Notes the target's process id for later lines.
    pub fn set_target(&mut self, pid: i32) {
        self.line.target_pid = Some(pid);
    }

    /// Writes a step; it survives the death of this program when this returns.
    pub fn write(&mut self, step: Step) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.line.step = step;
        self.line.unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut text = serde_json::to_vec(&self.line).map_err(io::Error::other)?;
        text.push(b'\n');
        let before = self.file.metadata()?.len();
        let mut file: &File = &self.file;
        file.write_all(&text).inspect_err(|_| {
            // Half a line would swallow the next one.
            let _ = self.file.set_len(before);
        })
    }

    /// Writes a step; it survives the death of this host when this returns.
    pub fn write_synced(&mut self, step: Step) -> io::Result<()> {
        self.write(step)?;
        self.file.sync_data()
    }

    /// What was written survives the death of this host when this returns.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Keeps what the copy's sockets need of whoever lets it run if this program is dead by then. Survives this program.
    pub fn bequeath(&self, bequest: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(bequest).map_err(io::Error::other)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.beside())?;
        (&file).write_all(&bytes)
    }

    /// What was kept for whoever lets the copy run, if anything was.
    pub fn inherit<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        match File::open(self.beside()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => serde_json::from_reader(io::BufReader::new(file?)).map(Some).map_err(io::Error::other),
        }
    }

    /// Nobody needs it any more, nor an inventory of the copy.
    pub fn forget_bequest(&self) {
        // Most copies have none.
        let _ = fs::remove_file(self.beside());
        let _ = fs::remove_file(self.inventory());
    }

    /// Where it stands what the copy is, once that is written down ([`super::inventory`]).
    pub fn inventory(&self) -> PathBuf {
        self.path.with_extension("inventory")
    }

    fn beside(&self) -> PathBuf {
        self.path.with_extension("sockets")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn path_of(dir: &Path, role: Role, attempt: AttemptId) -> PathBuf {
    dir.join(format!("{attempt}.{}.journal", role.name()))
}

/// Reads a journal; a last line that was cut off by a crash is not counted.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let mut text = String::new();
    open(path)?.take(FILE_LIMIT_BYTES).read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).map_err(io::Error::other)).collect()
}

/// What the journal that this line is from says by now.
pub fn newest(dir: &Path, line: &Line) -> Option<Line> {
    read(&path_of(dir, line.role, line.attempt)).ok()?.pop()
}

/// Whether a program of ours has this journal, and decides.
pub fn is_decided(dir: &Path, line: &Line) -> bool {
    let path = path_of(dir, line.role, line.attempt);
    let free = |file| Flock::lock(file, FlockArg::LockSharedNonblock).is_ok();
    !open(&path).is_ok_and(free)
}

/// No line of it was cut off by a crash.
fn has_whole_lines(path: &Path) -> io::Result<bool> {
    Ok(fs::read(path)?.last().is_none_or(|byte| *byte == b'\n'))
}

/// For reading. Also in a directory of a user, by whoever has more rights: nothing there makes the opening wait, or leads elsewhere.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// The last line of every journal in `dir` that is not decided yet.
pub fn undecided(dir: &Path) -> io::Result<Vec<Line>> {
    Ok(all(dir)?.into_iter().filter(|line| !line.step.is_final()).collect())
}

/// The same of one side, at little cost where it is asked again and again: `over` is the caller's to keep, and has the journals that
/// need not be read any more.
pub fn undecided_of(dir: &Path, role: Role, over: &mut HashMap<PathBuf, u64>) -> io::Result<Vec<Line>> {
    let end = format!(".{}.journal", role.name());
    // One that begins anew is longer than it was.
    over.retain(|path, len| path.parent() != Some(dir) || fs::metadata(path).is_ok_and(|meta| meta.len() == *len));
    let mut paths = paths(dir)?;
    paths.retain(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(end.as_bytes())));
    paths.retain(|path| !over.contains_key(path));
    let mut found = Vec::new();
    for path in paths {
        let len = fs::metadata(&path).map_or(0, |meta| meta.len());
        match read(&path).ok().and_then(|lines| lines.into_iter().next_back()) {
            Some(last) if last.step.is_final() => drop(over.insert(path, len)),
            last => found.extend(last),
        }
    }
    Ok(found)
}

/// The last line of every journal in `dir`, the oldest first.
pub fn all(dir: &Path) -> io::Result<Vec<Line>> {
    let last = |path: PathBuf| read(&path).ok()?.pop();
    let mut found: Vec<Line> = paths(dir)?.into_iter().filter_map(last).collect();
    found.sort_by_key(|line| line.unix_ms);
    Ok(found)
}

/// Journals in `dir`; none if that is not there.
fn paths(dir: &Path) -> io::Result<HashSet<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        entries => entries?,
    };
    let is_journal = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "journal");
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.filter(|path| path.as_ref().map_or(true, is_journal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_promised_nothing_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = AttemptId([7; 16]);
        let begin = || Journal::begin(dir.path(), Role::Destination, attempt, "a", "abcdefgh");
        let mut over = HashMap::new();
        let mut undecided = || undecided_of(dir.path(), Role::Destination, &mut over).unwrap().len();
        let mut journal = begin().unwrap();
        assert_eq!(begin().unwrap_err().kind(), io::ErrorKind::WouldBlock, "somebody writes it");
        journal.set_standby(Some(standby::Became::Kept));
        journal.write(Step::Aborted).unwrap();
        drop(journal);
        assert_eq!(undecided(), 0);
        let mut journal = begin().unwrap();
        assert_eq!(undecided(), 1, "and is looked at again");
        assert_eq!(journal.line().standby, Some(standby::Became::Kept), "its state is still there");
        journal.write(Step::Prepared).unwrap();
        journal.write(Step::Aborted).unwrap();
        drop(journal);
        assert_eq!(begin().unwrap_err().kind(), io::ErrorKind::AlreadyExists, "it was promised something");
        let source = || Journal::begin(dir.path(), Role::Source, attempt, "b", "abcdefgh");
        drop(source().unwrap());
        assert!(source().is_err(), "a source begins once");
    }

    #[test]
    fn steps_are_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let attempt = AttemptId([7; 16]);
        let mut journal = Journal::begin(&state, Role::Source, attempt, "host-b", "abcdefgh").unwrap();
        journal.set_target(42);
        journal.write_synced(Step::Committing).unwrap();
        let lines = read(journal.path()).unwrap();
        let steps: Vec<Step> = lines.iter().map(|line| line.step).collect();
        assert_eq!(steps, [Step::Begun, Step::Committing]);
        assert!(lines.iter().all(|line| line.session == "abcdefgh"), "from the first line on");
        let open = undecided(&state).unwrap();
        assert_eq!((open[0].attempt, open[0].target_pid, open[0].peer.as_str()), (attempt, Some(42), "host-b"));
        assert_eq!(open[0].boot_id.len(), 36);
        let mut over = HashMap::new();
        assert_eq!(undecided_of(&state, Role::Source, &mut over).unwrap(), open);
        assert!(over.is_empty() && undecided_of(&state, Role::Destination, &mut over).unwrap().is_empty());
        journal.write(Step::Done).unwrap();
        assert!(undecided(&state).unwrap().is_empty());
        for _ in 0..2 {
            assert!(undecided_of(&state, Role::Source, &mut over).unwrap().is_empty());
            assert_eq!(over.len(), 1);
        }
        fs::remove_file(journal.path()).unwrap();
        assert!(undecided_of(&state, Role::Source, &mut over).unwrap().is_empty() && over.is_empty());
    }

    #[test]
    fn an_attempt_is_begun_once_a_side() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |role| Journal::begin(dir.path(), role, AttemptId([1; 16]), "x", "abcdefgh");
        begin(Role::Source).unwrap();
        begin(Role::Destination).unwrap();
        assert_eq!(begin(Role::Source).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), Role::Destination, AttemptId([1; 16]), "x", "abcdefgh").unwrap();
        journal.write(Step::Prepared).unwrap();
        let path = journal.path().to_owned();
        let whole = fs::read(&path).unwrap();
        for cut in 1..80 {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(read(&path).unwrap().last().unwrap().step, Step::Begun, "{cut} bytes missing");
        }
    }

    #[test]
    fn no_directory_no_journals() {
        assert!(undecided(Path::new("/nonexistent/state")).unwrap().is_empty());
    }
}
