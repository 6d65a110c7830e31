//! What ends outside the tree: who has the other end, and what the restoring side is asked for instead.

use super::set::Description;
use super::{State, tty_preflight};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::{External, FdTable, FileKind};
use crate::image::{FileId, Pid, PipeId};
use crate::proc::{ProcDir, task::processes};
use nix::sys::stat::FileStat;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Processes named in one message.
pub const NAMED_MAX: usize = 3;

/// The end of a pipe that nobody in the tree has.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    /// Device and inode of the pipe.
    pub inode: (u64, u64),
    /// It is the reading end.
    pub reader: bool,
    /// It is open for certain.
    pub certain: bool,
}

/// Calls `see` with every descriptor of all processes but those of the tree and ourselves.
pub fn each_outside(tree: &HashSet<Pid>, mut see: impl FnMut(&ProcDir, u32, &FileStat)) -> Result<()> {
    let own = Pid(std::process::id() as i32);
    for pid in processes()?.into_iter().filter(|pid| *pid != own && !tree.contains(pid)) {
        // Processes of others may be closed to us, and everybody outside goes on: what has vanished holds nothing.
        let Ok(dir) = ProcDir::open(pid) else { continue };
        for fd in dir.fds().unwrap_or_default() {
            if let Ok(stat) = dir.stat_of(&format!("fd/{fd}")) {
                see(&dir, fd, &stat);
            }
        }
    }
    Ok(())
}

/// Who outside the tree has an end of a pipe.
#[derive(Debug, Default)]
pub struct Outsiders(HashMap<(u64, u64), Vec<Outsider>>);

#[derive(Debug)]
struct Outsider {
    pid: Pid,
    name: String,
    reads: bool,
    writes: bool,
}

impl Outsiders {
    /// Looks through the descriptors outside the tree, once for all pipes.
    pub fn find<'m>(cx: &mut Cx<'_>, missing: impl Iterator<Item = &'m Missing>) -> Result<Self> {
        let tree: HashSet<Pid> = cx.frozen.processes.iter().map(|p| p.pid).collect();
        Self::search(&tree, &missing.map(|m| m.inode).collect(), &mut cx.buf)
    }

    /// As [`Self::find`], for objects by device and inode, outside of `tree`.
    pub fn search(tree: &HashSet<Pid>, wanted: &HashSet<(u64, u64)>, buf: &mut Vec<u8>) -> Result<Self> {
        let mut found = Self::default();
        each_outside(tree, |dir, fd, stat| {
            let inode = (stat.st_dev, stat.st_ino);
            if stat.st_mode & libc::S_IFMT == libc::S_IFIFO && wanted.contains(&inode) {
                found.add(dir, fd, inode, buf);
            }
        })?;
        Ok(found)
    }

    fn add(&mut self, dir: &ProcDir, fd: u32, inode: (u64, u64), buf: &mut Vec<u8>) {
        let Ok(info) = dir.fdinfo(fd, buf) else { return };
        let mode = info.flags as i32 & libc::O_ACCMODE;
        let name = dir.read_into("comm", buf).map(|c| String::from_utf8_lossy(c).trim().to_owned()).unwrap_or_default();
        let (reads, writes) = (mode != libc::O_WRONLY, mode != libc::O_RDONLY);
        self.0.entry(inode).or_default().push(Outsider { pid: dir.pid(), name, reads, writes });
    }

    fn of(&self, missing: &Missing) -> impl Iterator<Item = &Outsider> {
        let all = self.0.get(&missing.inode).map_or(&[][..], Vec::as_slice);
        let reader = missing.reader;
        all.iter().filter(move |o| if reader { o.reads } else { o.writes })
    }

    /// Somebody has the missing end.
    pub fn holds(&self, missing: &Missing) -> bool {
        self.of(missing).next().is_some()
    }

    /// The target that would take the other end along.
    pub fn taken_along(&self, root: Pid, missing: &Missing) -> Option<(Pid, String)> {
        self.of(missing).find_map(|other| taken_along(root, other.pid))
    }

    /// Why the pipe is in the way.
    pub fn reason(&self, missing: &Missing) -> String {
        let end = if missing.reader { "reading" } else { "writing" };
        let mut names: Vec<String> = self.of(missing).map(|o| format!("{} (pid {})", o.name, o.pid)).collect();
        names.dedup();
        match names.len() {
            0 => format!("its {end} end is open in a process that cannot be seen from here"),
            n if n > NAMED_MAX => {
                let rest = n - NAMED_MAX;
                format!("its {end} end is held by {} and {rest} more", names[..NAMED_MAX].join(", "))
            }
            _ => format!("its {end} end is held by {}", names.join(", ")),
        }
    }
}

/// What can be done about a pipe that ends outside. `stdio`: it is a standard input, output or error.
pub fn pipe_remedy(stdio: bool, along: Option<(Pid, String)>) -> String {
    match (stdio, along) {
        (true, along) => tty_preflight::remedy(along),
        (false, Some((pid, name))) => format!("take all of it along: target {pid} ({name})"),
        (false, None) => "let the program close it, then try again".to_owned(),
    }
}

/// Makes pipes that end outside external files, or blockers.
pub fn pipes(cx: &mut Cx<'_>, state: &State, outsiders: &Outsiders, external: &[(PipeId, &Missing)]) {
    let stdio = stdio_of(&cx.model.fd_tables);
    let root = cx.frozen.processes.first().map(|p| p.pid);
    let by_pipe: HashMap<PipeId, &Missing> = external.iter().copied().collect();
    for (id, d) in state.set.iter() {
        let FileKind::Pipe(end) = cx.model.files[id.at()].kind else { continue };
        let Some(missing) = by_pipe.get(&end.pipe) else { continue };
        let key = stdio.get(&id).filter(|_| cx.policy.allow_external_stdio);
        match key {
            Some(key) => cx.model.files[id.at()].kind = FileKind::External(by_key(d, (*key).to_owned())),
            None => {
                let blocker = Blocker::new(codes::PIPE_OUTSIDE, d.object()).because(outsiders.reason(missing));
                let along = root.and_then(|root| outsiders.taken_along(root, missing));
                cx.blockers.push(blocker.remedy(pipe_remedy(stdio.contains_key(&id), along)));
            }
        }
    }
    remove_pipes(cx, |id| by_pipe.contains_key(&id));
}

/// Takes pipes that belong to others out of the model.
fn remove_pipes(cx: &mut Cx<'_>, gone: impl Fn(PipeId) -> bool) {
    let mut new_ids = HashMap::new();
    let mut kept = Vec::new();
    for (n, pipe) in std::mem::take(&mut cx.model.pipes).into_iter().enumerate() {
        if !gone(PipeId::from(n)) {
            new_ids.insert(PipeId::from(n), PipeId::from(kept.len()));
            kept.push(pipe);
        }
    }
    cx.model.pipes = kept;
    for file in &mut cx.model.files {
        if let FileKind::Pipe(end) = &mut file.kind
            && let Some(new) = new_ids.get(&end.pipe)
        {
            end.pipe = *new;
        }
    }
}

/// Terminals whose other end is outside: external files, or a blocker for each of them.
pub fn terminals(cx: &mut Cx<'_>, state: &mut State, outer: &[FileId]) -> Result<()> {
    if outer.is_empty() {
        return Ok(());
    }
    let stdio = stdio_of(&cx.model.fd_tables);
    if cx.policy.allow_external_stdio {
        for id in outer {
            let fd = state.set.duplicate(*id)?;
            let key = stdio.get(id).copied().unwrap_or("tty").to_owned();
            let file = External { terminal: super::tty::settings(&fd), ..by_key(&state.set[*id], key) };
            cx.model.files[id.at()].kind = FileKind::External(file);
        }
        return Ok(());
    }
    let tree: HashSet<Pid> = cx.frozen.processes.iter().map(|p| p.pid).collect();
    let holders = tty_preflight::holders(&tree, &mut cx.buf)?;
    let mut by_device: BTreeMap<u64, (String, u32)> = BTreeMap::new();
    for id in outer {
        let fd = state.set.duplicate(*id)?;
        let d = &state.set[*id];
        let device = crate::sys::tty::device(&fd).unwrap_or(d.stat.st_rdev);
        by_device.entry(device).or_insert_with(|| (d.object(), 0)).1 += 1;
    }
    let root = cx.frozen.processes.first().map(|p| p.pid);
    for (device, (object, count)) in by_device {
        cx.blockers.push(tty_preflight::blocker(&object, count, device, &holders, root));
    }
    Ok(())
}

/// The common ancestor that would take a tree and whoever is at the other end along, unless that is the whole system or
/// this command itself.
pub fn taken_along(root: Pid, holder: Pid) -> Option<(Pid, String)> {
    let mut buf = Vec::new();
    let mut line = |pid: Pid| {
        let mut all = vec![pid];
        while let Some(parent) =
            all.last().and_then(|pid| ProcDir::open(*pid).ok()).and_then(|dir| dir.stat(&mut buf).ok()).map(|s| s.ppid)
            && parent > 1
            && all.len() < 1000
        {
            all.push(Pid(parent));
        }
        all
    };
    let (ours, theirs, own) = (line(root), line(holder), line(Pid(std::process::id() as i32)));
    let common = ours.into_iter().find(|pid| theirs.contains(pid) && !own.contains(pid))?;
    let name = ProcDir::open(common).ok()?.stat(&mut buf).ok()?.comm.to_string();
    // A connection cannot be taken along.
    (!name.starts_with("sshd")).then_some((common, name))
}

/// A file that the restoring side is asked for.
fn by_key(d: &Description, key: String) -> External {
    External { key, link: d.link.clone(), mode: d.stat.st_mode, terminal: None }
}

/// Descriptions that some table has as standard input, output or error; the root task's table, which is the first, wins.
fn stdio_of(tables: &[FdTable]) -> HashMap<FileId, &'static str> {
    let mut names = HashMap::new();
    for entry in tables.iter().flat_map(|t| t.entries.iter().take_while(|e| e.fd < 3)) {
        names.entry(entry.file).or_insert(["stdin", "stdout", "stderr"][entry.fd as usize]);
    }
    names
}
