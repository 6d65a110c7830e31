//! Mappings of processes with their flags, which cost the kernel a walk of page tables: read before the tree is stopped or while it is
//! being stopped where that saves time in the pause, else in it.

use super::{Cx, Result};
use crate::image::Pid;
use crate::memory::pipeline::default_workers;
use crate::proc::ProcDir;
use crate::proc::smaps::Flagged;
use crate::proc::task::about_how_many;
use crate::trace::sleepers;
use std::collections::HashMap;
use std::thread::JoinHandle;

/// Mappings as they are before we add ours.
pub type Mappings = Vec<Flagged>;

/// Fewer processes than this are read one after the other: to make a thread costs as much.
const FEW: usize = 8;

/// Mappings as they were before the pause. They are used where `maps` still says the same.
///
/// Advice that a program gives for a whole mapping in that moment shows nowhere else and is missed.
#[derive(Default)]
pub struct Known {
    read: HashMap<Pid, Mappings>,
    /// By threads of ours, since before the tree is stopped.
    being_read: HashMap<Pid, JoinHandle<Option<Mappings>>>,
}

impl Known {
    /// Those that were `read`; others of these processes are read while the tree is being stopped, where there are few processes
    /// of many threads, as each thread has mappings: its stack, and the guard of that.
    pub fn beside(read: HashMap<Pid, Mappings>, processes: &[Pid]) -> Self {
        let has_many = |pid: &&Pid| !read.contains_key(pid) && about_how_many(**pid) >= sleepers::FEW as u64;
        let begin = |pid: &Pid| {
            let pid = *pid;
            let work = move || ProcDir::open(pid).and_then(|dir| dir.smaps_flags(&mut Vec::new())).ok();
            // Who is not to be had reads nothing: it is read in the pause.
            Some((pid, std::thread::Builder::new().name("mappings".to_owned()).spawn(work).ok()?))
        };
        let few = if processes.len() < FEW { processes } else { &[] };
        let being_read = few.iter().filter(has_many).filter_map(begin).collect();
        Self { read, being_read }
    }

    fn has(&self, pid: Pid) -> bool {
        self.read.contains_key(&pid) || self.being_read.contains_key(&pid)
    }

    fn take(&mut self, pid: Pid) -> Option<Mappings> {
        let read = |helper: JoinHandle<Option<Mappings>>| helper.join().ok().flatten();
        self.being_read.remove(&pid).and_then(read).or_else(|| self.read.remove(&pid))
    }
}

/// The mappings of many processes, read by several threads. `None` where that does not work; whoever needs them will learn why.
/// Nothing at all for a few processes.
fn read_many(dirs: &[&ProcDir]) -> Vec<Option<Mappings>> {
    if dirs.len() < FEW {
        return dirs.iter().map(|_| None).collect();
    }
    let part = dirs.len().div_ceil(default_workers());
    let read = |dirs: &[&ProcDir]| -> Vec<Option<Mappings>> {
        let mut buf = Vec::new();
        dirs.iter().map(|dir| dir.smaps_flags(&mut buf).ok()).collect()
    };
    std::thread::scope(|scope| {
        let begin = |part| std::thread::Builder::new().spawn_scoped(scope, move || read(part)).ok();
        let parts: Vec<_> = dirs.chunks(part).map(|part| (part.len(), begin(part))).collect();
        let all = parts.into_iter().map(|(length, thread)| {
            let read = thread.and_then(|thread| thread.join().ok());
            read.unwrap_or_else(|| vec![None; length])
        });
        all.flatten().collect()
    })
}

/// Reads the mappings of the processes of a stopped tree that are not known yet.
pub fn read_rest(cx: &mut Cx<'_>) {
    let stopped = cx.frozen.processes.iter().filter(|p| !p.zombie && !cx.known_mappings.has(p.pid));
    let (pids, dirs): (Vec<Pid>, Vec<&ProcDir>) = stopped.map(|p| (p.pid, &p.dir)).unzip();
    let read = pids.into_iter().zip(read_many(&dirs));
    cx.stopped_mappings = read.filter_map(|(pid, mappings)| Some((pid, mappings?))).collect();
}

/// The mappings of a process, before a scratch area exists in it.
pub fn of_process(cx: &mut Cx<'_>, at: usize) -> Result<Mappings> {
    if let Some(mappings) = cx.stopped_mappings.remove(&cx.frozen.processes[at].pid) {
        return Ok(mappings);
    }
    if let Some(known) = cx.known_mappings.take(cx.frozen.processes[at].pid) {
        let now = cx.frozen.processes[at].dir.maps(&mut cx.buf)?;
        if known.iter().map(|k| &k.mapping).eq(&now) {
            return Ok(known);
        }
    }
    Ok(cx.frozen.processes[at].dir.smaps_flags(&mut cx.buf)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_many_threads_are_read_beside() {
        let own = ProcDir::of_self().unwrap().pid();
        let mut few = Known::beside(HashMap::new(), &[Pid(i32::MAX)]);
        assert!(!few.has(Pid(i32::MAX)) && few.take(Pid(i32::MAX)).is_none(), "nobody is there");
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        let begin = |_| {
            let ended = std::sync::Arc::clone(&ended);
            std::thread::spawn(move || drop(ended.lock().map(|ended| ended.recv())))
        };
        let threads: Vec<_> = (0..sleepers::FEW).map(begin).collect();
        let mut known = Known::beside(HashMap::new(), &[own]);
        assert!(known.has(own));
        assert!(known.take(own).is_some_and(|mappings| mappings.len() > sleepers::FEW));
        assert!(!known.has(own), "it is taken once");
        let mut read = Known::beside(HashMap::from([(own, Mappings::new())]), &[own]);
        assert_eq!(read.take(own), Some(Mappings::new()), "what is known is not read again");
        drop(end);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
