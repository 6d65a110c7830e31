//! A target that holds the very command that is to save it: `migrate move $$ host-b`, typed in the shell that moves.
//!
//! The command starts itself anew, in a session and a cgroup that are not the target's, and ends. What it has started waits
//! for that, is nobody's child in the target from then on, and does the work; the shell goes on meanwhile.

use super::target::{self, Resolved};
use super::words::Target;
use crate::companion::detach;
use crate::failure::{Failure, Result};
use crate::image::Pid;
use crate::proc::{ProcDir, table::Table};
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Process id and time of the start of the command that has started this one.
const LEFT: &str = "MIGRATE_LEFT";
/// How long that one may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The work: this command is not in the target.
    Work,
    /// Nothing more: this process does it, outside the target.
    End(u32),
}

/// Takes this command out of the target, if it is in it. `arguments`: its own, without the program's name.
///
/// # Errors
/// It cannot be started anew; or it is still in the target.
pub fn step(target: &Target, arguments: &[OsString]) -> Result<Step> {
    let own = Pid(std::process::id() as i32);
    if let Some(left) = left() {
        detach::leave_the_session();
        wait_for_end(left)?;
        // A process that adopts orphans can be in the target itself.
        return match target::resolve(target) {
            Ok(resolved) if resolved.processes.contains(&own) => {
                let what = "this command cannot leave the target: a process in it adopts all orphans below it";
                Err(Failure::new(what).hint("start it from outside"))
            }
            _ => Ok(Step::Work),
        };
    }
    if !may_be_within(own, target) {
        return Ok(Step::Work);
    }
    // What names nothing is the work's to tell.
    match target::resolve(target) {
        // Orphans come to process 1: nobody leaves what that is a part of.
        Ok(Resolved { processes, .. }) if processes.contains(&own) && !processes.contains(&Pid(1)) => {
            start_anew(own, arguments)
        }
        _ => Ok(Step::Work),
    }
}

/// Whether all processes have to be looked at to know that this one is not in the target. The tree of a process it is in only as
/// its descendant, which a few of its ancestors tell.
fn may_be_within(own: Pid, target: &Target) -> bool {
    let Target::Pid(root) = target else { return true };
    let (mut pid, mut buf) = (own, Vec::new());
    while pid != *root {
        match ProcDir::stat_of_process(pid, &mut buf) {
            Ok(stat) if stat.ppid == 0 => return false,
            Ok(stat) => pid = Pid(stat.ppid),
            // It has ended since, and its children have another parent.
            Err(_) => return true,
        }
    }
    true
}

/// Whether this command was in the target, and has left it.
pub fn has_left() -> bool {
    left().is_some()
}

fn left() -> Option<(Pid, u64)> {
    let word = std::env::var(LEFT).ok()?;
    let (pid, start) = word.split_once(':')?;
    Some((Pid(pid.parse().ok()?), start.parse().ok()?))
}

fn start_anew(own: Pid, arguments: &[OsString]) -> Result<Step> {
    let failed =
        |e: &(dyn std::error::Error + 'static)| Failure::of("this command cannot be taken out of the target", e);
    let start = start_of(own).ok_or_else(|| Failure::new("this command cannot find itself"))?;
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut command = Command::new(program);
    command.args(arguments).env(LEFT, format!("{own}:{start}")).stdin(Stdio::null());
    let child = command.spawn().map_err(|e| failed(&e))?;
    Ok(Step::End(child.id()))
}

fn start_of(pid: Pid) -> Option<u64> {
    Some(ProcDir::open(pid).ok()?.stat(&mut Vec::new()).ok()?.starttime)
}

/// A zombie is not in the way: it is saved as one.
fn wait_for_end((pid, start): (Pid, u64)) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let table = Table::around(pid).map_err(|e| Failure::of("processes cannot be listed", &e))?;
        let lives = table.get(pid).is_some_and(|row| row.stat.starttime == start && !row.stat.is_zombie());
        if !lives {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Failure::new(format!("process {pid}, which has started this command, does not end")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
