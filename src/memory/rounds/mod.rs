//! Rounds over the memory of a live tree: each takes the pages that were written since the one before.
//!
//! A [`Tree`] watches every address space of a process and its descendants; processes that appear between two rounds are
//! found and watched from the next one on. A [`Round`] owns the pages it took: dropped without [`Round::commit`] it gives
//! them back. The last look is at the stopped tree ([`Tree::last`]), against the model that was collected from it.
//!
//! Until the model exists, nobody knows which [`MmId`] an address space will have. Rounds write under provisional ids, and
//! [`Residual::names`] tells the writer what they are to be called.

mod direct;
mod reading;
mod watched;

pub use reading::{Copied, Live, Named};
use watched::Look;
pub use watched::{Kinship, Watched, inherit_at_once};

use super::shared::{LastShared, Objects};
use super::track::{Backend, TrackError, Tracking, areas_of_mm, hash, soft_dirty, uffd};
use super::{PageRange, RangeSet, Space};
use crate::image::mm::PAGE;
use crate::image::{MmId, Model, Pid};
use crate::kernel::Probe;
use crate::proc::ProcDir;
use crate::proc::smaps::Flagged;
use crate::sys::fd::{Kcmp, kcmp};
use crate::trace::freeze::{Frozen, FrozenProcess};
use crate::trace::pages::Sharing;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first provisional id: no model has as many address spaces.
const PROVISIONAL: u32 = 1 << 24;

/// A live tree whose memory is watched.
#[derive(Debug)]
pub struct Tree {
    root: Pid,
    backend: Backend,
    watched: Vec<Watched>,
    /// Processes that have been looked at: id and start time.
    known: HashSet<(Pid, u64)>,
    /// Provisional ids given out.
    ids: u32,
    /// Provisional spaces whose address space is gone.
    dead: Vec<Space>,
    /// Shared memory objects, where rounds take them.
    shared: Option<Objects>,
    /// The longest and the sum of all stops so far.
    pub stops: (Duration, Duration),
}

/// Pages taken, to be copied.
#[derive(Debug)]
pub struct Round<'t> {
    tree: &'t mut Tree,
    plan: Vec<(Space, PageRange)>,
    inherited: Vec<(Space, PageRange)>,
    unread: Mutex<Vec<(Space, PageRange)>>,
    committed: bool,
}

/// What is left to do for the stopped tree.
#[derive(Debug, Default)]
pub struct Residual {
    /// Pages to be copied; spaces that rounds have named keep that name.
    pub plan: Vec<(Space, PageRange)>,
    /// Pages that the image has and the target no longer.
    pub gone: Vec<(Space, PageRange)>,
    /// Pages that are as in the address space it was forked from.
    pub inherited: Vec<(Space, PageRange)>,
    /// Address spaces of the model that share pages, each with the one it was forked from.
    pub kin: Vec<(MmId, MmId)>,
    /// Provisional spaces with their final names; `None` = the address space is no part of the tree any more.
    pub names: Vec<(Space, Option<Space>)>,
}

/// Is it faster, for the target, to be watched than to be stopped for one copy of everything? Costs in microseconds,
/// measured: a stop of a tree with arming 300, 100 for each process and 40 for each of its further threads, once more for the
/// last look; a copy in the pause 1 for 4 KiB (0.9 GiB/s into a file system). With rounds the pause keeps a tenth of the pages
/// of a busy program.
pub fn worth_watching(resident_bytes: u64, processes: u64, threads: u64) -> bool {
    let pages = resident_bytes / PAGE;
    let one_pass = pages;
    let rounds = 2 * (300 + 100 * processes + 40 * threads.saturating_sub(processes)) + pages / 10;
    rounds + 2_500 < one_pass
}

impl Tree {
    /// Begins to watch a process and all its descendants: one stop of well below a millisecond for a small tree.
    ///
    /// # Errors
    /// The tree cannot be stopped. That single address spaces cannot be watched is no error.
    pub fn watch(root: Pid, backend: Backend) -> Result<Self, TrackError> {
        let mut tree = Self {
            root,
            backend,
            watched: Vec::new(),
            known: HashSet::new(),
            ids: 0,
            dead: Vec::new(),
            shared: None,
            stops: Default::default(),
        };
        tree.look_for_new()?;
        Ok(tree)
    }

    /// Goes on with what a tracker process has kept.
    pub fn resume(root: Pid, backend: Backend, kept: Vec<Watched>) -> Self {
        let known = kept.iter().map(|w| (w.dir.pid(), w.start_time)).collect();
        let (watched, dead) = (Vec::new(), Vec::new());
        let mut tree = Self { root, backend, watched, known, ids: 0, dead, shared: None, stops: Default::default() };
        for watched in kept {
            let space = tree.new_space();
            tree.watched.push(Watched { space, ..watched });
        }
        tree
    }

    /// Rounds take shared memory objects, too. Who asks for this has to ask [`Tree::last_shared`] in the end.
    pub fn with_shared(mut self) -> Self {
        self.shared = Some(Objects::default());
        self
    }

    /// What the shared memory objects of the stopped tree owe the image; `files` lead to those of the model.
    ///
    /// # Errors
    /// An object cannot be read.
    pub fn last_shared<'f>(
        &self,
        model: &Model,
        files: impl Iterator<Item = BorrowedFd<'f>>,
    ) -> Result<LastShared, TrackError> {
        match &self.shared {
            Some(objects) => objects.last(model, files),
            None => Objects::default().last(model, files),
        }
    }

    /// How pages are found.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// What rounds called address spaces that are gone.
    pub fn dead(&self) -> &[Space] {
        &self.dead
    }

    /// The address spaces.
    pub fn watched(&mut self) -> &mut Vec<Watched> {
        &mut self.watched
    }

    fn new_space(&mut self) -> Space {
        self.ids += 1;
        Space::Mm(MmId(PROVISIONAL + self.ids - 1))
    }

    /// Processes of the tree that have not been looked at yet.
    fn strangers(&self) -> Result<bool, TrackError> {
        let mut buf = Vec::new();
        let mut rest = vec![self.root];
        while let Some(pid) = rest.pop() {
            let look = |buf: &mut Vec<u8>| -> crate::proc::Result<_> {
                let dir = ProcDir::open(pid)?;
                let stat = dir.stat(buf)?;
                let children = if stat.is_zombie() { Vec::new() } else { dir.children_of_all_threads(buf)? };
                Ok((stat.starttime, stat.is_zombie(), children))
            };
            match look(&mut buf) {
                Ok((start, zombie, children)) => {
                    if !zombie && !self.known.contains(&(pid, start)) {
                        return Ok(true);
                    }
                    rest.extend(children);
                }
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(false)
    }

    /// Stops the tree for a moment if it has new processes, and begins to watch those.
    fn look_for_new(&mut self) -> Result<(), TrackError> {
        if !self.strangers()? {
            return Ok(());
        }
        let mut frozen = Frozen::tree(self.root)?;
        let since = frozen.since;
        let result = self.add_all(&mut frozen.processes);
        frozen.thaw()?;
        self.stopped_since(since);
        result
    }

    fn stopped_since(&mut self, since: Instant) {
        let took = since.elapsed();
        self.stops = (self.stops.0.max(took), self.stops.1 + took);
    }

    fn add_all(&mut self, processes: &mut [FrozenProcess]) -> Result<(), TrackError> {
        for process in processes.iter_mut().filter(|p| !p.zombie) {
            let start_time = process.dir.stat(&mut Vec::new())?.starttime;
            if !self.known.insert((process.pid, start_time)) {
                continue;
            }
            let same = |w: &Watched| kcmp(w.dir.pid(), process.pid, Kcmp::Vm, 0, 0) == Ok(Ordering::Equal);
            if self.watched.iter().any(same) {
                continue;
            }
            let tracking = self.begin(process);
            let space = self.new_space();
            self.watched.push(Watched {
                dir: ProcDir::open(process.pid)?,
                start_time,
                space,
                tracking,
                shipped: RangeSet::new(),
                owed: RangeSet::new(),
                sharing: Sharing::default(),
                kinship: None,
            });
        }
        Ok(())
    }

    fn begin(&self, process: &mut FrozenProcess) -> Option<Box<dyn Tracking>> {
        match self.backend {
            Backend::SoftDirty => Some(Box::new(soft_dirty::SoftDirty::new(Probe::PagemapScan.works()))),
            Backend::SoftDirtyPagemap => Some(Box::new(soft_dirty::SoftDirty::new(false))),
            Backend::Hash => Some(Box::new(hash::Everything)),
            Backend::WriteProtect => match uffd::Uffd::arm(process) {
                Ok(uffd) => Some(Box::new(uffd)),
                Err(e) => {
                    tracing::warn!("process {} cannot be watched, its memory is copied in the pause: {e}", process.pid);
                    None
                }
            },
        }
    }

    /// Takes the pages that have been written since the last round.
    ///
    /// # Errors
    /// The tree cannot be examined; nothing is lost then.
    pub fn round(&mut self) -> Result<Round<'_>, TrackError> {
        self.look_for_new()?;
        let direct = self.devices_may_write();
        let stops = direct || self.watched.iter().any(|w| w.tracking.as_ref().is_some_and(|t| t.stops()));
        let frozen = if stops { Some(Frozen::tree(self.root)?) } else { None };
        let mut taken = HashMap::new();
        let mut failed = Ok(());
        for n in (0..self.watched.len()).rev() {
            match self.watched[n].take() {
                Ok(pages) => drop(taken.insert(self.watched[n].space, pages)),
                Err(e) if e.is_gone() => self.forget(n),
                Err(e) => failed = failed.and(Err(e)),
            }
        }
        if let Some(frozen) = frozen {
            let since = frozen.since;
            frozen.thaw()?;
            self.stopped_since(since);
        }
        if !direct && self.devices_may_write() {
            // It has opened such a file since, and may have been reading from it just then: all the same once more.
            for watched in &mut self.watched {
                if let Some(pages) = taken.get(&watched.space) {
                    watched.owed = watched.owed.union(pages);
                }
            }
        }
        self.part(&mut taken);
        let inherited = self.look_for_kin(&mut taken);
        let flat = |sets: &HashMap<Space, RangeSet>| -> Vec<(Space, PageRange)> {
            let mut all: Vec<_> = sets.iter().flat_map(|(space, set)| set.iter().map(|r| (*space, r))).collect();
            all.sort_unstable();
            all
        };
        // Pages that were taken are given back by the drop of the round.
        let mut plan = flat(&taken);
        match self.shared.as_mut().map(|objects| objects.take(self.watched.iter().map(|w| &w.dir))) {
            Some(Ok(pages)) => plan.extend(pages),
            Some(Err(e)) => failed = failed.and(Err(e)),
            None => {}
        }
        let round = Round { tree: self, plan, inherited: flat(&inherited), unread: Mutex::default(), committed: false };
        failed.map(|()| round)
    }

    /// Whether some process may just be reading past the page cache. What cannot be examined may.
    fn devices_may_write(&self) -> bool {
        let mut buf = Vec::new();
        let mut may = |w: &Watched| match direct::is_possible(&w.dir, &mut buf) {
            Ok(found) => found,
            Err(e) => !e.is_gone(),
        };
        self.watched.iter().any(&mut may)
    }

    /// Pages that one of two relatives has written are no longer shared: the child has kept the old content, or has its own.
    fn part(&mut self, taken: &mut HashMap<Space, RangeSet>) {
        let before = taken.clone();
        let nothing = RangeSet::new();
        for watched in &mut self.watched {
            let Some(kinship) = &mut watched.kinship else { continue };
            let Some(parent) = kinship.parent else { continue };
            let own = before.get(&watched.space).unwrap_or(&nothing);
            let broken = match before.get(&parent) {
                Some(theirs) => kinship.shared.intersection(theirs),
                // The parent is gone.
                None => std::mem::take(&mut kinship.shared),
            };
            kinship.shared = kinship.shared.difference(own).difference(&broken);
            if !broken.is_empty() {
                let all = taken.entry(watched.space).or_default();
                *all = all.union(&broken);
            }
        }
    }

    /// Looks once for pages that an address space shares with its parent's; they are taken out of what is to be copied.
    fn look_for_kin(&mut self, taken: &mut HashMap<Space, RangeSet>) -> HashMap<Space, RangeSet> {
        let mut inherited = HashMap::new();
        let mut buf = Vec::new();
        for n in 0..self.watched.len() {
            if self.watched[n].kinship.is_some() {
                continue;
            }
            let kinship = self.kinship_of(n, taken, &mut buf).unwrap_or_default();
            if let Some(pages) = taken.get_mut(&self.watched[n].space) {
                *pages = pages.difference(&kinship.shared);
            }
            if !kinship.shared.is_empty() {
                inherited.insert(self.watched[n].space, kinship.shared.clone());
            }
            self.watched[n].kinship = Some(kinship);
        }
        inherited
    }

    fn kinship_of(&self, n: usize, taken: &HashMap<Space, RangeSet>, buf: &mut Vec<u8>) -> Option<Kinship> {
        let child = &self.watched[n];
        // What cannot be watched may change unseen.
        let tracks = |w: &Watched| w.tracking.is_some() && self.backend != Backend::Hash;
        let ppid = Pid(child.dir.stat(buf).ok()?.ppid);
        let parent = self.watched.iter().find(|w| w.dir.pid() == ppid && w.space != child.space)?;
        if !tracks(child) || !tracks(parent) {
            return None;
        }
        // Only what this round takes, or what the image has already: all of it was armed before the look.
        let in_image = |w: &Watched| match taken.get(&w.space) {
            Some(now) => w.shipped.union(now),
            None => w.shipped.clone(),
        };
        let both = in_image(child).intersection(&in_image(parent));
        let shared = super::cow::shared(&child.dir, &parent.dir, &both).ok()?;
        Some(Kinship { parent: Some(parent.space), shared })
    }

    /// The process has ended or runs another program: if it is there still, it is looked at anew.
    fn forget(&mut self, n: usize) {
        let watched = self.watched.swap_remove(n);
        self.dead.push(watched.space);
        self.known.remove(&(watched.dir.pid(), watched.start_time));
    }

    /// What the stopped tree still owes the image. `processes` has for each address space of the model a process with it.
    ///
    /// # Errors
    /// A scan failed; the dump fails then.
    pub fn last(&mut self, model: &Model, processes: &[Pid]) -> Result<Residual, TrackError> {
        let mut residual = Residual::default();
        residual.names.extend(self.dead.iter().map(|space| (*space, None)));
        let mut unmatched: HashSet<Space> = self.watched.iter().map(|w| w.space).collect();
        let mut looks: HashMap<Space, Look> = HashMap::new();
        for (n, (mm, pid)) in model.mms.iter().zip(processes).enumerate() {
            let id = MmId::from(n);
            let areas = areas_of_mm(mm);
            let dir = ProcDir::open(*pid)?;
            let start_time = dir.stat(&mut Vec::new())?.starttime;
            let found = self.watched.iter_mut().find(|w| w.dir.pid() == *pid && w.start_time == start_time);
            match found {
                Some(watched) => {
                    unmatched.remove(&watched.space);
                    residual.names.push((watched.space, Some(Space::Mm(id))));
                    looks.insert(watched.space, watched.last(id, &areas)?);
                }
                None => {
                    let last = Tracking::last(&mut hash::Everything, &dir, &areas)?;
                    residual.plan.extend(last.changed.iter().map(|r| (Space::Mm(id), r)));
                }
            }
        }
        residual.names.extend(unmatched.into_iter().map(|space| (space, None)));
        for watched in &self.watched {
            if let Some(look) = looks.get(&watched.space) {
                watched.settle(look, &looks, &mut residual);
            }
        }
        Ok(residual)
    }

    /// What the rounds have found of how a process is to be read.
    pub fn sharing(&self, pid: Pid) -> Option<Sharing> {
        self.watched.iter().find(|w| w.dir.pid() == pid).map(|w| w.sharing.clone())
    }

    /// Ends the watching, in small steps, so that a target that runs on is not held up.
    pub fn end(&mut self) {
        for watched in self.watched.drain(..) {
            if let Some(tracking) = watched.tracking {
                tracking.end(&watched.dir);
            }
        }
    }

    /// Mappings of all processes with their flags, read while they run: walking the page tables for it takes 20 ms for
    /// each GiB, which the pause can do without.
    pub fn mappings(&self) -> HashMap<Pid, Vec<Flagged>> {
        let mut buf = Vec::new();
        self.watched.iter().filter_map(|w| Some((w.dir.pid(), w.dir.smaps_flags(&mut buf).ok()?))).collect()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.end();
    }
}

impl Round<'_> {
    /// Pages to be copied.
    pub fn plan(&self) -> &[(Space, PageRange)] {
        &self.plan
    }

    /// Pages that are as in the address space of the parent process.
    pub fn inherited(&self) -> &[(Space, PageRange)] {
        &self.inherited
    }

    /// The address spaces that are watched: how rounds name them, a process (with the time of its start), and the one that
    /// they share pages with.
    pub fn address_spaces(&self) -> impl Iterator<Item = (Space, (Pid, u64), Option<Space>)> + '_ {
        self.tree.watched.iter().map(|w| {
            let parent = w.kinship.as_ref().filter(|k| !k.shared.is_empty()).and_then(|k| k.parent);
            (w.space, (w.dir.pid(), w.start_time), parent)
        })
    }

    /// The shared memory objects, where rounds take them.
    pub fn shared(&self) -> Option<&Objects> {
        self.tree.shared.as_ref()
    }

    /// How many.
    pub fn pages(&self) -> u64 {
        self.plan.iter().map(|(_, r)| r.count).sum()
    }

    /// Where they are read: what has vanished meanwhile is passed over and taken again, if it still exists then.
    pub fn source(&self) -> Live<'_> {
        let mms = self.tree.watched.iter().map(|w| (w.space, (w.dir.pid(), &w.sharing)));
        Live { mms: mms.collect(), shared: self.tree.shared.as_ref(), unread: &self.unread }
    }

    /// The pages are in the image, but for these: the next round takes those of address spaces again, those of shared objects are
    /// found when the tree is stopped, at the latest.
    pub fn commit_but(self, later: &[(Space, PageRange)]) {
        if let Some(objects) = &self.tree.shared {
            objects.forget(later);
        }
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(later);
        self.commit();
    }

    /// The pages are in the image.
    pub fn commit(mut self) {
        let unread = std::mem::take(&mut *self.unread.lock().unwrap_or_else(PoisonError::into_inner));
        for watched in &mut self.tree.watched {
            let of = |list: &[(Space, PageRange)]| -> RangeSet {
                let mut ranges: Vec<_> = list.iter().filter(|(s, _)| *s == watched.space).map(|(_, r)| *r).collect();
                ranges.sort_unstable();
                ranges.into_iter().collect()
            };
            watched.shipped = watched.shipped.union(&of(&self.plan)).union(&of(&self.inherited));
            watched.owed = watched.owed.union(&of(&unread));
        }
        self.committed = true;
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Some(objects) = &self.tree.shared {
            objects.forget(&self.plan);
        }
        for watched in &mut self.tree.watched {
            let given = |list: &[(Space, PageRange)]| -> RangeSet {
                list.iter().filter(|(s, _)| *s == watched.space).map(|(_, r)| *r).collect()
            };
            let inherited = given(&self.inherited);
            watched.owed = watched.owed.union(&given(&self.plan)).union(&inherited);
            if !inherited.is_empty() {
                watched.kinship = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_trees_are_copied_in_one_go() {
        const MIB: u64 = 1 << 20;
        assert!(!worth_watching(2 * MIB, 1, 1));
        assert!(!worth_watching(12 * MIB, 1, 1));
        assert!(worth_watching(64 * MIB, 1, 8));
        assert!(worth_watching(1024 * MIB, 9, 500));
        // Many small processes: stopping them all twice more costs more than their pages.
        assert!(!worth_watching(60 * MIB, 100, 100));
        assert!(!worth_watching(60 * MIB, 1, 500), "nor do so many threads");
    }
}
