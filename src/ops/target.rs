//! From a word on the command line to processes.

use super::places::Places;
use super::words::Target;
use crate::{
    companion::lock_guard::will,
    failure::{Failure, FailureKind},
    image::Pid,
    proc::{
        self, ProcDir,
        cgroupfs::{self, Freezer, is_within},
        table::{Row, Table},
    },
};
use std::{
    collections::{BTreeSet, HashSet},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The processes a target names.
#[derive(Debug)]
pub struct Resolved {
    /// Roots of its trees: processes whose parent is not in the target; ascending, one as a rule.
    pub roots: Vec<Pid>,
    /// All processes, zombies included, parents before children.
    pub processes: Vec<Pid>,
    /// A cgroup that holds exactly these processes and can stop them all at once, if there is one.
    pub freezer: Option<Freezer>,
    /// Directory of the first root, opened before this answer was given: it tells whether the root is still the same.
    pub dir: ProcDir,
    /// Processes of this host at that moment; those outside the target in brief, perhaps.
    pub table: Table,
}

/// A target that names nothing, or too much.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(Pid),
    /// It is a thread.
    #[error("{tid} is a thread of process {pid}")]
    Thread {
        /// The thread.
        tid: Pid,
        /// Its process.
        pid: Pid,
    },
    /// The file of a process id cannot be used.
    #[error("cannot take a process id from {path}: {why}")]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// No process is in the unit or cgroup.
    #[error("no process is in {0}")]
    Empty(Target),
    /// Several units of that name, of different users.
    #[error("{name} names several units: {}", .paths.join(", "))]
    SeveralUnits {
        /// The name.
        name: String,
        /// Their cgroups.
        paths: Vec<String>,
    },
    /// Several trees where an operation takes one.
    #[error("{target} holds {} separate trees: processes {}", .roots.len(), list(.roots))]
    SeveralTrees {
        /// The target.
        target: Target,
        /// Their roots.
        roots: Vec<Pid>,
    },
    /// `/proc` cannot be read.
    #[error(transparent)]
    Proc(#[from] proc::Error),
}

fn list(pids: &[Pid]) -> String {
    pids.iter().map(Pid::to_string).collect::<Vec<_>>().join(", ")
}

impl TargetError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoProcess(_) | Self::Empty(_) => "`migrate list` shows what there is".into(),
            Self::Thread { pid, .. } => format!("name its process: {pid}"),
            Self::PidFile { .. } => "name the process id itself".into(),
            Self::SeveralUnits { paths, .. } => format!("name one as cgroup:{}", paths.first()?),
            Self::SeveralTrees { roots, .. } => format!("name one, for example {}", roots.first()?),
            Self::Proc(_) => return None,
        })
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        let failure = Failure::of("Cannot find the target", &error).kind(FailureKind::Failed);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl Resolved {
    /// The one root, for operations that take one tree.
    ///
    /// # Errors
    /// [`TargetError::SeveralTrees`].
    pub fn root(&self, target: &Target) -> Result<Pid, TargetError> {
        match self.roots.as_slice() {
            [root] => Ok(*root),
            roots => Err(TargetError::SeveralTrees { target: target.clone(), roots: roots.to_vec() }),
        }
    }
}

/// Finds the processes that a target names, at this moment.
///
/// # Errors
/// See [`TargetError`].
pub fn resolve(target: &Target) -> Result<Resolved, TargetError> {
    // Whoever had one before may have been killed with its guard: it must not be found stopped and deaf.
    will::execute(&Places::here().run, None);
    let table = match target {
        Target::Pid(pid) => Table::around(*pid)?,
        Target::PidFile(path) => Table::around(pid_file(path)?)?,
        Target::Unit(_) | Target::Cgroup(_) | Target::Image(_) => Table::read()?,
    };
    let found = match target {
        Target::Pid(pid) => one(&table, *pid)?,
        Target::PidFile(path) => vec![fresh(&table, path, pid_file(path)?)?],
        Target::Unit(name) => within(&table, &unit_path(&table, name, target)?, Some("unit")),
        Target::Cgroup(path) => within(&table, &cgroup_path(path), None),
        // Nobody runs there.
        Target::Image(_) => Vec::new(),
    };
    let mut roots = roots(&table, &found);
    roots.sort_unstable();
    let Some(&first) = roots.first() else { return Err(TargetError::Empty(target.clone())) };
    let dir = ProcDir::open(first)?;
    // A descendant that has left the cgroup still belongs to its tree.
    let mut processes: Vec<Pid> = Vec::new();
    let mut seen = HashSet::new();
    for root in &roots {
        processes.extend(table.tree(*root).into_iter().filter(|pid| seen.insert(*pid)));
    }
    let freezer = cgroupfs::freezer_of(&table, &processes, &cgroupfs::hierarchies()?);
    Ok(Resolved { roots, processes, freezer, dir, table })
}

fn one(table: &Table, pid: Pid) -> Result<Vec<Pid>, TargetError> {
    if table.get(pid).is_some() {
        return Ok(vec![pid]);
    }
    // /proc answers for threads by name, but does not list them.
    match ProcDir::open(pid).and_then(|dir| dir.status(&mut Vec::new())) {
        Ok(status) if status.tgid != pid.0 => Err(TargetError::Thread { tid: pid, pid: Pid(status.tgid) }),
        _ => Err(TargetError::NoProcess(pid)),
    }
}

/// Longest file that is taken for one with a process id, bytes.
const PID_FILE_MAX: u64 = 64;

/// A daemon writes its file after its start. What was started later than that, and by more than clocks may be off, has
/// got the number of a process that ended.
const CLOCK_ERROR: Duration = Duration::from_secs(10);

fn pid_file(path: &Path) -> Result<Pid, TargetError> {
    let wrong = |why: String| TargetError::PidFile { path: path.to_owned(), why };
    let metadata = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
    if !metadata.is_file() || metadata.len() > PID_FILE_MAX {
        return Err(wrong("it is not a short file".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let word = text.split_whitespace().next().unwrap_or_default();
    let pid = word.parse().ok().filter(|pid| *pid > 0).map(Pid);
    pid.ok_or_else(|| wrong("its first word is not a process id".into()))
}

/// The process whose id stands in a file, unless it is younger than the file.
fn fresh(table: &Table, path: &Path, pid: Pid) -> Result<Pid, TargetError> {
    let wrong = |why: String| TargetError::PidFile { path: path.to_owned(), why };
    let row = table.get(pid).ok_or_else(|| wrong(format!("process {pid} has ended")))?;
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    if let (Ok(written), Some(started)) = (written, started(row))
        && started > written + CLOCK_ERROR
    {
        let comm = &row.stat.comm;
        return Err(wrong(format!("it is older than process {pid} ({comm}): the one it means has ended")));
    }
    Ok(pid)
}

/// When a process was started, by today's clock.
fn started(row: &Row) -> Option<SystemTime> {
    let ticks_per_s = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let since_boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    let after_boot = Duration::from_millis(row.stat.starttime.checked_mul(1000)? / ticks_per_s.unsigned_abs().max(1));
    SystemTime::now().checked_sub(Duration::from(since_boot))?.checked_add(after_boot)
}

/// `unit:redis` means `redis.service`.
fn unit_path(table: &Table, name: &str, target: &Target) -> Result<Vec<u8>, TargetError> {
    let full = if name.contains('.') { name.to_owned() } else { format!("{name}.service") };
    let paths: BTreeSet<Vec<u8>> = table
        .rows()
        .iter()
        .filter_map(Row::systemd_path)
        .filter_map(|path| {
            let mut end = 0;
            path.split(|&b| b == b'/').find_map(|step| {
                end += step.len() + 1;
                (step == full.as_bytes()).then(|| path[..end - 1].to_vec())
            })
        })
        .collect();
    let mut paths = paths.into_iter();
    match (paths.next(), paths.next()) {
        (None, _) => Err(TargetError::Empty(target.clone())),
        (Some(path), None) => Ok(path),
        (Some(a), Some(b)) => {
            let paths = [a, b].into_iter().chain(paths).map(|p| String::from_utf8_lossy(&p).into_owned()).collect();
            Err(TargetError::SeveralUnits { name: full, paths })
        }
    }
}

/// A path below the mount, also where the mount itself was written in front of it.
fn cgroup_path(path: &Path) -> Vec<u8> {
    for hierarchy in cgroupfs::hierarchies().unwrap_or_default() {
        if let Ok(below) = path.strip_prefix(&hierarchy.mount) {
            return hierarchy.root.join(below).as_os_str().as_bytes().to_vec();
        }
    }
    path.as_os_str().as_bytes().to_vec()
}

/// Processes in a cgroup or below it: in systemd's hierarchy, or in any.
fn within(table: &Table, path: &[u8], unit: Option<&str>) -> Vec<Pid> {
    let is_in = |row: &&Row| match unit {
        Some(_) => row.systemd_path().is_some_and(|p| is_within(p, path)),
        None => row.cgroups.iter().any(|l| is_within(&l.path.0, path)),
    };
    table.rows().iter().filter(|row| !row.is_kernel()).filter(is_in).map(|row| row.pid).collect()
}

/// Those whose parent is not among them.
fn roots(table: &Table, found: &[Pid]) -> Vec<Pid> {
    let set: HashSet<Pid> = found.iter().copied().collect();
    let is_root = |pid: &&Pid| !table.ancestors(**pid).iter().any(|ancestor| set.contains(ancestor));
    found.iter().filter(is_root).copied().collect()
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
