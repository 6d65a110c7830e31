//! `/proc/PID/task/`, `/proc/PID/task/TID/children`, and the processes in `/proc`.

use super::{Error, ProcDir, Result, Syntax, scan};
use crate::image::Pid;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

/// Reads `children`: process ids separated by blanks.
///
/// # Errors
/// A word that is not a positive number.
pub fn parse_children(text: &[u8]) -> std::result::Result<Vec<Pid>, Syntax> {
    scan::words(scan::trim(text))
        .map(|word| {
            let pid = scan::int32(word).filter(|&pid| pid > 0);
            pid.map(Pid).ok_or_else(|| Syntax::new(1, "expected process ids", text))
        })
        .collect()
}

fn pid_of(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().map(Pid)
}

/// All processes that the mounted `/proc` shows, ascending. They may have ended by the time one is opened.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes() -> Result<Vec<Pid>> {
    let failed = |source| Error::Io { operation: "list", file: "/proc".into(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(pid) = scan::dec32(entry.file_name().as_bytes()).and_then(pid_of) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// How many processes there are, in all PID namespaces: the kernel counts a link of `/proc` for each (and a few more).
fn processes_of_this_kernel() -> u64 {
    nix::sys::stat::stat("/proc").map_or(u64::MAX, |stat| stat.st_nlink)
}

/// About how many threads a process has, 0 if there is none: the kernel counts a link of `task` for each (and a few more).
pub fn about_how_many(process: Pid) -> u64 {
    let links = ProcDir::open(process).and_then(|dir| dir.stat_of("task"));
    links.map_or(0, |stat| stat.st_nlink)
}

/// Threads of the kernel, ascending, as far as one read tells them: the children of kthreadd, which are half of the processes of an
/// idle host.
pub(super) fn kernel_threads(buf: &mut Vec<u8>) -> Vec<Pid> {
    const KTHREADD: Pid = Pid(2);
    // In a PID namespace of its own that number is anybody's.
    let is_there = ProcDir::stat_of_process(KTHREADD, buf).is_ok_and(|stat| stat.is_of_kernel() && stat.ppid == 0);
    let mut children = || ProcDir::open(KTHREADD)?.thread(KTHREADD)?.children(buf);
    let mut found = if is_there { children().unwrap_or_default() } else { Vec::new() };
    found.sort_unstable();
    found
}

/// Is `/proc` mounted without `hidepid` (proc(5), "Mount options")?
fn shows_everybody() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let mounts = ProcDir::of_self().and_then(|own| own.mountinfo(&mut Vec::new()));
        let hides = |options: &[u8]| options.windows(7).any(|word| word == b"hidepid");
        mounts.is_ok_and(|all| !all.iter().any(|m| m.fs_type.0 == b"proc" && hides(&m.super_options.0)))
    })
}

impl ProcDir {
    /// Threads of the process, ascending by id (the leader, whose id is the process id, is not always the first:
    /// numbers wrap around). May miss or repeat threads of a process that is not stopped.
    ///
    /// # Errors
    /// See [`ProcDir::numbers`].
    pub fn tasks(&self) -> Result<Vec<Pid>> {
        Ok(self.numbers("task")?.into_iter().filter_map(pid_of).collect())
    }

    /// The same, and whether nobody is missing: where a thread ends while the list is read, the list ends there, too
    /// (`next_tid()`, fs/proc/base.c). How many there are the directory's link count says.
    ///
    /// # Errors
    /// As [`Self::tasks`].
    pub fn all_tasks(&self) -> Result<(Vec<Pid>, bool)> {
        let tids = self.tasks()?;
        let whole = self.count_tasks()? == tids.len() as u64;
        Ok((tids, whole))
    }

    /// How many threads the process has, with those that have ended and whose end nobody has taken yet.
    ///
    /// # Errors
    /// See [`ProcDir::stat_of`].
    pub fn count_tasks(&self) -> Result<u64> {
        Ok(self.stat_of("task")?.st_nlink.saturating_sub(2))
    }

    /// Children whose creator is the thread this directory belongs to (for a process: call it on [`ProcDir::thread`] of
    /// each thread, or use [`Self::children_of_all_threads`]). Exact only while thread and children are stopped.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; absent in kernels without CONFIG_PROC_CHILDREN.
    pub fn children(&self, buf: &mut Vec<u8>) -> Result<Vec<Pid>> {
        self.parsed("children", buf, parse_children)
    }

    /// Children of every thread of the process, ascending, each once. Threads that end meanwhile are passed over.
    ///
    /// # Errors
    /// As [`Self::tasks`] and [`Self::children`].
    pub fn children_of_all_threads(&self, buf: &mut Vec<u8>) -> Result<Vec<Pid>> {
        self.children_of(&self.tasks()?, buf)
    }

    /// The same, given the threads.
    ///
    /// # Errors
    /// As [`Self::children`].
    pub fn children_of(&self, tids: &[Pid], buf: &mut Vec<u8>) -> Result<Vec<Pid>> {
        if tids.len() as u64 > processes_of_this_kernel()
            && let Some(children) = self.children_by_parent(buf)
        {
            return Ok(children);
        }
        self.children_by_thread(tids, buf)
    }

    /// Asks all processes for their parent: less to read where the process has more threads than there are processes.
    /// `None` where `/proc` does not show everybody, or something cannot be read.
    fn children_by_parent(&self, buf: &mut Vec<u8>) -> Option<Vec<Pid>> {
        if !shows_everybody() {
            return None;
        }
        let mut found = Vec::new();
        let all = processes().ok()?;
        let kernel = kernel_threads(buf);
        for pid in all.into_iter().filter(|pid| kernel.binary_search(pid).is_err()) {
            match Self::stat_of_process(pid, buf) {
                Ok(stat) if stat.ppid == self.pid().0 => found.push(pid),
                Ok(_) => {}
                Err(e) if e.is_gone() => {}
                Err(_) => return None,
            }
        }
        Some(found)
    }

    fn children_by_thread(&self, tids: &[Pid], buf: &mut Vec<u8>) -> Result<Vec<Pid>> {
        let mut found = Vec::new();
        for tid in tids {
            match self.parsed(&format!("task/{tid}/children"), buf, parse_children) {
                Ok(children) => found.extend(children),
                Err(e) if e.is_gone() || e.is_absent() && !self.has_thread(*tid) => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn has_thread(&self, tid: Pid) -> bool {
        self.stat_of(&format!("task/{tid}")).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::process::Command;

    pub(in crate::proc) const SAMPLE: &[u8] = b"12 345 6 ";

    #[test]
    fn many_threads_are_told_from_few() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let few = about_how_many(Pid(child.id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        let barrier = std::sync::Barrier::new(31);
        let many = std::thread::scope(|scope| {
            (0..30).for_each(|_| drop(scope.spawn(|| barrier.wait())));
            let many = about_how_many(ProcDir::of_self().unwrap().pid());
            barrier.wait();
            many
        });
        assert!((1..8).contains(&few) && many >= 30, "{few} {many}");
        assert_eq!(about_how_many(Pid(i32::MAX)), 0);
    }

    #[test]
    fn children_are_numbers() {
        assert_eq!(parse_children(SAMPLE).unwrap(), [Pid(12), Pid(345), Pid(6)]);
        assert_eq!(parse_children(b"").unwrap(), []);
        assert!(parse_children(b"12 x").is_err());
        assert!(parse_children(b"0").is_err());
    }

    #[test]
    fn a_child_of_another_thread_is_found() {
        let mut child = std::thread::spawn(|| Command::new("sleep").arg("100").spawn()).join().unwrap().unwrap();
        let pid = Pid(child.id() as i32);
        let dir = ProcDir::of_self().unwrap();
        let children = dir.children_of_all_threads(&mut Vec::new()).unwrap();
        let by_parent = dir.children_by_parent(&mut Vec::new());
        let all = processes().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(children.contains(&pid) && all.contains(&pid));
        assert!(by_parent.map_or(!shows_everybody(), |children| children.contains(&pid)));
        assert!(processes_of_this_kernel() >= all.len() as u64);
        assert!(dir.tasks().unwrap().contains(&Pid(std::process::id() as i32)));
    }
}
