//! Which trees of this host are to leave, what keeps one here, and which have left already.

use crate::collect::preflight::{reach::Own, size::Size};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::image::Pid;
use crate::migration::journal::{Line, Role, Step};
use crate::migration::resolve::{self, Owner};
use crate::ops::list::{self, Kind};
use crate::ops::options::{ListOptions, StateOptions, StatusOptions};
use crate::ops::places::Places;
use crate::ops::status::{self, Entry};
use crate::ops::target::{self, Resolved};
use crate::ops::words::Target;
use crate::ops::{move_, preflight};
use crate::proc::ProcDir;
use crate::transport::Abort;
use std::collections::{HashMap, HashSet};

/// Units that serve the host they run on: `--all` leaves them there. A word that ends with `*` is a beginning.
const OF_THE_HOST: [&str; 18] = [
    "systemd-*",
    "dbus*",
    "getty@*",
    "serial-getty@*",
    "console-getty*",
    "ssh.service",
    "sshd.service",
    "cron.service",
    "crond.service",
    "rsyslog.service",
    "auditd.service",
    "polkit.service",
    "udisks2.service",
    "chrony*",
    "ntp*",
    "NetworkManager*",
    "wpa_supplicant*",
    "multipathd*",
];

/// A tree that is to leave.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) target: Target,
    /// Command name of its root.
    pub(super) name: String,
    /// Its root, and when that was started (clock ticks since boot): a process id is given to others later.
    root: (Pid, u64),
    processes: Vec<Pid>,
    /// Memory that it can come to take, bytes.
    pub(super) bytes: u64,
}

impl Tree {
    /// Its root has not ended since it was looked at.
    pub(super) fn lives(&self) -> bool {
        let (root, start) = self.root;
        let stat = ProcDir::open(root).and_then(|dir| dir.stat(&mut Vec::new()));
        stat.is_ok_and(|stat| stat.starttime == start && !stat.is_zombie())
    }
}

/// What was found of a target.
#[derive(Debug)]
pub(super) enum Found {
    /// It can leave, as far as this host goes.
    Here(Tree),
    /// It has left: to this destination. `None`: it has ended by itself.
    Gone(Option<String>),
    /// It stays.
    Stays(Failure),
}

/// Something that `--all` does not mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// How other verbs name it.
    pub target: Target,
    /// Name of the unit or the root process.
    pub name: String,
    /// Why it is none of what is to leave.
    pub why: &'static str,
}

/// What `--all` means: each unit, container, session and other tree of `migrate list` that is not part of a larger one, but for what
/// belongs to this host and to `migrate` itself. Kernel threads and process 1 are in no list.
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn all(abort: &Abort) -> Result<(Vec<Target>, Vec<LeftOut>)> {
    let (own, program) = (Own::now(), ProcDir::of_self().and_then(|dir| dir.stat_of("exe")).ok());
    let is_ours = |pid: &Pid| {
        let Ok(dir) = ProcDir::open(*pid) else { return false };
        // One that was replaced by an upgrade still has its name.
        let same =
            dir.stat_of("exe").ok().zip(program).is_some_and(|(a, b)| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino));
        same || dir.comm(&mut Vec::new()).is_ok_and(|comm| comm.to_string() == "migrate")
    };
    let (mut chosen, mut left_out, mut taken) = (Vec::new(), Vec::new(), HashSet::new());
    for entry in list::run(&ListOptions::default(), abort)?.entries {
        // Jobs are listed beside the session that they are part of. What cannot be found has ended meanwhile.
        let Some(Resolved { processes, .. }) =
            target::resolve(&entry.target).ok().filter(|_| !taken.contains(&entry.root))
        else {
            continue;
        };
        let is_own = |pid: &Pid| *pid == own.pid || own.ancestors.contains(pid);
        let why = if processes.iter().any(is_own) {
            "this command runs in it"
        } else if processes.iter().any(is_ours) {
            "a program of migrate's runs in it"
        } else if entry.kind == Kind::Unit && is_of_the_host(&entry.name) {
            "it serves this host"
        } else {
            taken.extend(processes);
            chosen.push(entry.target);
            continue;
        };
        left_out.push(LeftOut { target: entry.target, name: entry.name, why });
    }
    Ok((chosen, left_out))
}

fn is_of_the_host(unit: &str) -> bool {
    OF_THE_HOST.iter().any(|word| match word.strip_suffix('*') {
        Some(beginning) => unit.starts_with(beginning),
        None => unit == *word,
    })
}

/// What this host's journals say of moves.
#[derive(Debug)]
pub(super) struct Journals {
    lines: Vec<Line>,
    /// Those that are not over.
    open: Vec<Entry>,
}

impl Journals {
    /// Reads them. A destination of a move in doubt is asked.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn read() -> Result<Self> {
        let lines = resolve::lines(&Places::here().state.join("moves"), None)
            .map_err(|e| Failure::of("the journals of moves cannot be read", &e))?;
        let open = status::run(&StatusOptions { session: None, all: false })?;
        Ok(Self { lines, open })
    }

    /// Where a target that is not here any more has gone.
    fn gone(&self, target: &Target) -> Option<String> {
        let word = target.to_string();
        let is_it = |line: &&Line| {
            let by_id = matches!(target, Target::Pid(pid) if line.target_pid == Some(pid.0));
            let has_left = line.role == Role::Source && line.step == Step::Done && line.is_of_this_boot();
            has_left && (by_id || line.asked_for == word)
        };
        self.lines.iter().filter(is_it).max_by_key(|line| line.unix_ms).map(|line| line.peer.clone())
    }

    /// Why processes are left alone: a move of them is under way, or only a person may decide what becomes of them.
    fn open_move(&self, processes: &[Pid]) -> Option<Failure> {
        let is_about = |entry: &&Entry| {
            let held = entry.line.role == Role::Destination && entry.owner == Owner::There;
            let is_open = entry.busy || entry.owner == Owner::InDoubt || held;
            let pid = entry.line.target_pid.filter(|_| entry.line.is_of_this_boot());
            is_open && pid.is_some_and(|pid| processes.contains(&Pid(pid)))
        };
        let entry = self.open.iter().find(is_about)?;
        let session = &entry.line.session;
        Some(match (entry.owner, &entry.warm) {
            (Owner::InDoubt, _) => Failure::new(format!("its move {session} is in doubt, and it is left alone"))
                .hint(format!("migrate status {session} says who has it; migrate resolve {session} decides"))
                .kind(FailureKind::NeedsPerson)
                .target(TargetState::InDoubt),
            (_, Some(_)) => Failure::new(format!("it is kept warm elsewhere, by session {session}"))
                .hint(format!("migrate switch {session} moves it; migrate cancel {session} ends that"))
                .target(TargetState::Running),
            _ => Failure::new(format!("its move {session} is under way"))
                .hint(format!("migrate status {session}"))
                .target(TargetState::Running),
        })
    }
}

/// Looks at a target while it runs.
pub(super) fn examine(target: &Target, state: &StateOptions, journals: &Journals) -> Found {
    let (resolved, findings) = match preflight::look_again(target, &move_::policy(state), Some(state.supervisor)) {
        Ok(looked) => looked,
        Err(failure) => {
            return journals.gone(target).map_or(Found::Stays(failure), |dest| Found::Gone(Some(dest)));
        }
    };
    // What nobody has waited for still has its id.
    let is_over = |pid: &Pid| resolved.table.get(*pid).is_none_or(|row| row.stat.is_zombie());
    if resolved.processes.iter().all(is_over) {
        return Found::Gone(journals.gone(target));
    }
    if let Some(failure) = journals.open_move(&resolved.processes) {
        return Found::Stays(failure);
    }
    if !findings.blockers.is_empty() {
        let failure = Failure::blocked(format!("{target} cannot be moved"), findings.blockers);
        return Found::Stays(failure.target(TargetState::Running));
    }
    let size = Size::of(&resolved.processes);
    let bytes = if size.once > 0 { size.unshared } else { findings.memory_bytes };
    match tree(target, resolved, bytes) {
        Ok(tree) => Found::Here(tree),
        Err(failure) => Found::Stays(failure.target(TargetState::Running)),
    }
}

fn tree(target: &Target, resolved: Resolved, bytes: u64) -> Result<Tree> {
    let root = resolved.root(target)?;
    let mut buf = Vec::new();
    let failed = |e: &crate::proc::Error| Failure::of(format!("Cannot look at {target}"), e);
    let start = resolved.dir.stat(&mut buf).map_err(|e| failed(&e))?.starttime;
    let name = resolved.dir.comm(&mut buf).map_err(|e| failed(&e))?.to_string();
    Ok(Tree { target: target.clone(), name, root: (root, start), processes: resolved.processes, bytes })
}

/// Two targets that have processes in common, if any do.
pub(super) fn overlap<'t>(trees: impl IntoIterator<Item = &'t Tree>) -> Option<(&'t Target, &'t Target)> {
    let mut of: HashMap<Pid, &Target> = HashMap::new();
    for tree in trees {
        for pid in &tree.processes {
            if let Some(other) = of.insert(*pid, &tree.target) {
                return Some((other, &tree.target));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_that_serve_the_host_are_known_by_their_names() {
        for unit in ["systemd-journald.service", "dbus.service", "getty@tty1.service", "ssh.service", "chronyd.service"]
        {
            assert!(is_of_the_host(unit), "{unit}");
        }
        for unit in ["redis-server.service", "sshx.service", "my-systemd-thing.service", "postgresql@15-main.service"] {
            assert!(!is_of_the_host(unit), "{unit}");
        }
    }

    #[test]
    fn this_command_is_in_nothing_that_all_means() {
        let (chosen, left_out) = all(&Abort::new().unwrap()).unwrap();
        let own = Pid(std::process::id() as i32);
        let holds = |target: &Target| target::resolve(target).is_ok_and(|found| found.processes.contains(&own));
        assert!(!chosen.iter().any(holds), "{chosen:?}");
        assert!(left_out.iter().any(|left| left.why == "this command runs in it"), "{left_out:?}");
    }

    #[test]
    fn targets_with_common_processes_are_found() {
        let tree = |target: i32, processes: &[i32]| Tree {
            target: Target::Pid(Pid(target)),
            name: String::new(),
            root: (Pid(target), 0),
            processes: processes.iter().map(|pid| Pid(*pid)).collect(),
            bytes: 0,
        };
        assert_eq!(overlap(&[tree(1, &[1, 2]), tree(3, &[3])]), None);
        let (a, b) = (Target::Pid(Pid(1)), Target::Pid(Pid(2)));
        assert_eq!(overlap(&[tree(1, &[1, 2]), tree(2, &[2])]), Some((&a, &b)));
    }
}
