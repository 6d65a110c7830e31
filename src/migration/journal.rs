//! What survives the program: one file for each attempt, a line for each step, synced before the message that depends
//! on it.
//!
//! ```text
//! {"attempt":"...","role":"source","step":"committing","boot_id":"...","peer":"...","target":4242,"unix_ms":...}
//! ```
//! Steps that decide who owns the target are on the disk before they are acted upon: `owner` before the first
//! instruction at the destination, `aborted` before anything is discarded after a PREPARED. `committing` must survive the
//! death of the program; a crash of the host ends the source's copy anyway.

use super::protocol::AttemptId;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

/// A step that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Both: the attempt has begun.
    Begun,
    /// Destination: it stands before its first instruction.
    Prepared,
    /// Source: COMMIT may have been sent.
    Committing,
    /// Destination: it runs here, or is about to.
    Owner,
    /// Source: it goes on here. Destination: it was discarded.
    Aborted,
    /// Source: the original has ended. Destination: the source knows.
    Done,
}

impl Step {
    /// Whether nothing is left to be decided after it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Aborted | Self::Done)
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
    /// The other side, as a person would name it.
    pub peer: String,
    /// Process id of the root on this host, once known.
    pub target_pid: Option<i32>,
    /// When, milliseconds since the epoch.
    pub unix_ms: u64,
}

/// The journal of one attempt on one side.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    line: Line,
}

impl Journal {
    /// Begins a journal in `dir`, which is made (0700) if it is not there. The file and its name are on the disk when
    /// this returns.
    pub fn begin(dir: &Path, role: Role, attempt: AttemptId, peer: &str, target_pid: Option<i32>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let side = match role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        let path = dir.join(format!("{attempt}.{side}.journal"));
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        let boot_id = crate::proc::sys::boot_id().unwrap_or_default();
        let line = Line { attempt, role, step: Step::Begun, boot_id, peer: peer.into(), target_pid, unix_ms: 0 };
        let mut journal = Self { file, path, line };
        journal.write(Step::Begun)?;
        File::open(dir)?.sync_all()?;
        Ok(journal)
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
        self.file.write_all(&text)
    }

    /// Writes a step; it survives the death of this host when this returns.
    pub fn write_synced(&mut self, step: Step) -> io::Result<()> {
        self.write(step)?;
        self.file.sync_data()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a journal; a last line that was cut off by a crash is not counted.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LIMIT_BYTES).read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).map_err(io::Error::other)).collect()
}

/// The last line of every journal in `dir` that is not decided yet.
pub fn undecided(dir: &Path) -> io::Result<Vec<Line>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "journal")
            && let Ok(lines) = read(&path)
            && let Some(last) = lines.into_iter().next_back()
            && !last.step.is_final()
        {
            found.push(last);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let attempt = AttemptId([7; 16]);
        let mut journal = Journal::begin(&state, Role::Source, attempt, "host-b", Some(42)).unwrap();
        journal.write_synced(Step::Committing).unwrap();
        let steps: Vec<Step> = read(journal.path()).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [Step::Begun, Step::Committing]);
        let open = undecided(&state).unwrap();
        assert_eq!((open[0].attempt, open[0].target_pid, open[0].peer.as_str()), (attempt, Some(42), "host-b"));
        assert_eq!(open[0].boot_id.len(), 36);
        journal.write(Step::Done).unwrap();
        assert!(undecided(&state).unwrap().is_empty());
    }

    #[test]
    fn an_attempt_is_begun_once_a_side() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |role| Journal::begin(dir.path(), role, AttemptId([1; 16]), "x", None);
        begin(Role::Source).unwrap();
        begin(Role::Destination).unwrap();
        assert_eq!(begin(Role::Source).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), Role::Destination, AttemptId([1; 16]), "x", None).unwrap();
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
