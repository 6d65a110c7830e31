//! A consistent state of a target that runs here and still lacks memory: `--recoverable`, at the destination
//! ([`crate::migration::points`]).
//!
//! The target is stopped, and its pager says what is missing: those pages are the original's. Of what is there, pages that the
//! pager has brought and nobody has written to are the original's as well; all others are read, and given if their digest is not
//! that of the point before. Pages come in meanwhile, but nobody writes.
//!
//! What was written to is protected again then, so that the next point reads only what was written to since this one. The pager
//! keeps which pages those are ([`lacks::Written`]): the kernel does not know it any more, and they are not the original's. Where pages
//! were moved to by mremap(2) they are read each time.

use super::surety::Surety;
use super::{move_, standstill};
use crate::collect::{Collection, Policy, ShmemSource};
use crate::companion::pager::{self, lacks};
use crate::failure::{Failure, Result};
use crate::fault::{self, Point};
use crate::image::{MmId, Model, Pid, ShmemId, codec, mm::PAGE};
use crate::memory::pipeline::ReadPages;
use crate::memory::shared::Objects;
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::points::{CHANGED_MAX, Place, Row, Taken};
use crate::migration::postcopy;
use crate::migration::protocol::AttemptId;
use crate::ops::options::Tcp;
use crate::proc::ProcDir;
use crate::sys::pagemap::{self, Query, WP_MATCHING, category};
use crate::trace::pages::TargetPages;
use nix::fcntl::OFlag;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// Pages that are read at a time.
const PIECE_PAGES: u64 = 256;

/// What tells a space of the target from others, from one point to the next. That another one takes its place costs bytes: what a
/// point has of it is known by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// Process id, and when it began.
    Mm(i32, u64),
    /// Device and inode.
    Shmem(u64, u64),
}

/// What was given by points so far.
#[derive(Debug, Default)]
pub struct Given {
    /// Spaces by the names of points.
    names: HashMap<Key, Space>,
    /// Digests of pages.
    pages: HashMap<(Space, u64), u128>,
    /// These pages, by the names of their spaces.
    known: HashMap<Space, RangeSet>,
    /// What was written to was protected again by the last point, and that was the so-many-th time. A page that the kernel says
    /// nobody has written to is as that point has it, if nobody has done so since.
    protected: Option<u64>,
}

impl Given {
    /// Takes a point; `None`: the target has all of its memory.
    ///
    /// # Errors
    /// It cannot be stopped or read as it is. It runs on, and nothing was given.
    pub fn point(&mut self, run: &Path, attempt: AttemptId, whole: bool) -> Result<Option<Taken>> {
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("no state of the target can be taken", e);
        fault::at(Point::DestinationPoint).map_err(|e| failed(&e))?;
        let socket = pager::socket_path(run, &postcopy::name(attempt));
        let Some(lacks) = lacks::ask(&socket).map_err(|e| failed(&e))? else { return Ok(None) };
        let root = lacks.tree.root().ok_or_else(|| Failure::new("nobody knows who the target is"))?;
        // What is not known of mappings is read in the pause.
        let known = move_::mappings(Pid(root));
        let policy = Policy { tcp: Tcp::Keep, allow_external_stdio: true, lacks_memory: true, ..Policy::default() };
        let mut surety = Surety::default();
        let (frozen, collection) = standstill::reach((Pid(root), &[]), &policy, &known, |_| Ok(()), &mut surety)?;
        let Collection { model, sources, locks, .. } = collection;
        let since = frozen.since;
        let read = match lacks::ask(&socket) {
            Ok(Some(lacks)) => Reading::begin(&model, &sources.mms, &lacks).and_then(|mut reading| {
                let files = sources.shmems.iter().map(|ShmemSource::File(file)| file.as_fd());
                let shared = Objects::default().last(&model, files).map_err(|e| failed(&e))?;
                let private = move_::everything(&model, &sources).map_err(|e| failed(&e))?;
                let keys = keys(&sources.mms, &sources.shmems)?;
                let shmems = sources.shmems.into_iter().map(|ShmemSource::File(file)| file).collect();
                let pages = TargetPages::new(sources.mms, shmems);
                let plan = private.plan.into_iter().chain(shared.plan);
                reading.read(self, whole, keys, plan, &pages)?;
                reading.protect(&socket, &pages);
                Ok(Some(reading))
            }),
            Ok(None) => Ok(None),
            Err(error) => Err(failed(&error)),
        };
        drop(locks);
        surety.given_back();
        frozen.thaw().map_err(|e| Failure::of("the target could not be released", &e))?;
        let pause = since.elapsed();
        let Some(reading) = read? else { return Ok(None) };
        let model = codec::encode(&model).map_err(|e| failed(&e))?;
        Ok(Some(Taken { model, pause, ..reading.give(self, whole) }))
    }
}

fn keys(mms: &[Pid], shmems: &[ShmemSource]) -> Result<BTreeMap<Space, Key>> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("a process of the target has gone", e);
    let mut keys = BTreeMap::new();
    for (n, pid) in mms.iter().enumerate() {
        let start = ProcDir::open(*pid).and_then(|dir| dir.stat(&mut Vec::new())).map_err(|e| failed(&e))?.starttime;
        keys.insert(Space::Mm(MmId::from(n)), Key::Mm(pid.0, start));
    }
    for (n, ShmemSource::File(file)) in shmems.iter().enumerate() {
        let stat = nix::sys::stat::fstat(file.as_fd()).map_err(|e| failed(&e))?;
        keys.insert(Space::Shmem(ShmemId::from(n)), Key::Shmem(stat.st_dev, stat.st_ino));
    }
    Ok(keys)
}

/// An address space of which it is known what was written to.
#[derive(Debug)]
struct Watched {
    /// Its position among those of the pager.
    at: usize,
    /// What it is at the original.
    original: MmId,
    /// Where other pages lie by now.
    moved: RangeSet,
    /// What was written to before it was protected again.
    written: RangeSet,
}

/// Pages that are there and that the original does not have.
struct Own {
    all: RangeSet,
    /// Those that may not be as the point before has them, if that has protected them.
    fresh: RangeSet,
}

/// A point in the making, of a target that stands still.
#[derive(Debug, Default)]
struct Reading {
    /// Pages that the original has, and which they are there.
    missing: BTreeMap<Space, Vec<(PageRange, MmId, u64)>>,
    watched: BTreeMap<Space, Watched>,
    /// How often pages were protected before.
    protected: u64,
    /// What has been written to since.
    written: Vec<(Space, RangeSet)>,
    /// It was protected again.
    again: Option<u64>,
    pages_read: u64,
    names: HashMap<Key, Space>,
    index: Vec<Row>,
    changed: Vec<(Space, PageRange)>,
    digests: Vec<((Space, u64), u128)>,
    content: Vec<u8>,
}

impl Reading {
    /// Of a target that lacks these pages; `mms`: a process for each address space of the model.
    fn begin(model: &Model, mms: &[Pid], lacks: &lacks::Lacks) -> Result<Self> {
        if lacks.others > 0 {
            return Err(Failure::new("a process that was forked while memory was missing still lacks some of it"));
        }
        let mut reading = Self { protected: lacks.protected, ..Self::default() };
        let mut homes = Vec::new();
        for &(_, pid) in &lacks.spaces {
            let at = mms.iter().position(|owner| owner.0 == pid).filter(|at| *at < model.mms.len());
            let start = ProcDir::open(Pid(pid)).and_then(|dir| dir.stat(&mut Vec::new())).map(|stat| stat.starttime);
            let is_original = start.is_ok_and(|start| lacks.is_original(pid, start));
            homes.push(at.filter(|_| is_original).map(|at| Space::Mm(MmId::from(at))));
        }
        let home = |n: usize| homes.get(n).copied().flatten();
        for &(n, first, count, mm, from) in &lacks.missing {
            let Some(space) = home(n) else {
                return Err(Failure::new("memory that is missing is another process's by now"));
            };
            reading.missing.entry(space).or_default().push((PageRange::new(first, count), MmId(mm), from));
        }
        for (n, space) in lacks.watched.iter().filter_map(|n| Some((*n, home(*n)?))) {
            let of = |all: &[(usize, u64, u64)]| -> RangeSet {
                let own = all.iter().filter(|(of, ..)| *of == n);
                own.map(|&(_, first, count)| PageRange::new(first, count)).collect()
            };
            let (moved, written) = (of(&lacks.moved), of(&lacks.written));
            let watched = Watched { at: n, original: MmId(lacks.spaces[n].0), moved, written };
            reading.watched.insert(space, watched);
        }
        for (space, pieces) in &reading.missing {
            let row = |&(range, mm, from): &_| Row { space: *space, range, place: Place::Original(mm, from) };
            reading.index.extend(pieces.iter().map(row));
        }
        Ok(reading)
    }

    /// Reads what is there.
    fn read(
        &mut self,
        given: &Given,
        whole: bool,
        keys: BTreeMap<Space, Key>,
        plan: impl Iterator<Item = (Space, PageRange)>,
        pages: &TargetPages,
    ) -> Result<()> {
        // A whole point begins with names of its own; else those that are taken stay so, whatever they were of.
        let none = HashMap::new();
        let known = if whole { &none } else { &given.names };
        let mut next = known.len() as u32;
        for (space, key) in &keys {
            let name = known.get(key).copied().unwrap_or_else(|| {
                next += 1;
                match space {
                    Space::Mm(_) => Space::Mm(MmId(next - 1)),
                    Space::Shmem(_) => Space::Shmem(ShmemId(next - 1)),
                }
            });
            self.names.insert(*key, name);
        }
        let mut there: BTreeMap<Space, RangeSet> = BTreeMap::new();
        plan.for_each(|(space, range)| there.entry(space).or_default().insert(range));
        let mut buffer = Vec::new();
        for (space, there) in there {
            let name = keys.get(&space).and_then(|key| self.names.get(key)).copied();
            let name = name.ok_or_else(|| Failure::new(format!("{space} has no name")))?;
            // They may have come by now: as they are at the original.
            let missing = self.missing.get(&space).into_iter().flatten().map(|(range, ..)| *range).collect();
            let own = self.own(space, there.difference(&missing), pages)?;
            let mut wanted = own.all.clone();
            if !whole && given.protected == Some(self.protected) {
                let known = given.known.get(&name).cloned().unwrap_or_default();
                wanted = own.fresh.union(&own.all.difference(&known));
            }
            for piece in wanted.iter().flat_map(|range| range.pieces(PIECE_PAGES)) {
                buffer.resize(piece.bytes() as usize, 0);
                pages
                    .read(space, &[piece], &mut buffer)
                    .map_err(|e| Failure::of("the target's memory cannot be read", &e))?;
                self.note(given, whole, name, piece, &buffer)?;
            }
            self.pages_read += wanted.pages();
            self.index.extend(own.all.iter().map(|range| Row { space, range, place: Place::Points(name) }));
        }
        Ok(())
    }

    /// Of pages that are there those that the original does not have: the others go into the index.
    fn own(&mut self, space: Space, here: RangeSet, pages: &TargetPages) -> Result<Own> {
        let (Space::Mm(mm), Some(watched)) = (space, self.watched.get(&space)) else {
            return Ok(Own { fresh: here.clone(), all: here });
        };
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("what was written to cannot be told", e);
        let dir = ProcDir::open(pages.mms[mm.at()]).map_err(|e| failed(&e))?;
        let pagemap = File::from(dir.open_file("pagemap", OFlag::O_RDONLY).map_err(|e| failed(&e))?);
        let there = category::PRESENT | category::SWAPPED;
        // Write-protected since it came: what is not registered for that counts as written to.
        let query =
            Query { all_of: category::WRITTEN, inverted: category::WRITTEN, any_of: there, report: there, flags: 0 };
        let mut unwritten = RangeSet::new();
        for range in here.iter() {
            pagemap::scan(pagemap.as_fd(), range.start_byte(), range.end_byte(), query, &mut Vec::new(), |region| {
                unwritten.insert(PageRange::of_bytes(region.start, region.end));
            })
            .map_err(|e| failed(&e))?;
        }
        let written = here.difference(&unwritten);
        let fresh = written.union(&here.intersection(&watched.moved));
        let all = fresh.union(&here.intersection(&watched.written));
        let row = |range: PageRange| Row { space, range, place: Place::Original(watched.original, range.first) };
        self.index.extend(here.difference(&all).iter().map(row));
        self.written.push((space, written));
        Ok(Own { all, fresh })
    }

    /// Protects again what was written to, so that the next point sees what was written to after this one. Where that is not
    /// possible, it will read it all.
    fn protect(&mut self, socket: &Path, pages: &TargetPages) {
        let of = |(space, ranges): &(Space, RangeSet)| {
            let at = self.watched.get(space).map_or(usize::MAX, |watched| watched.at);
            ranges.iter().map(move |range| (at, range.first, range.count)).collect::<Vec<_>>()
        };
        let all = lacks::Written(self.written.iter().flat_map(of).collect());
        if all.0.is_empty() {
            self.again = Some(self.protected);
            return;
        }
        match all.note(socket) {
            // Else somebody else has done so meanwhile.
            Ok(count) => self.again = Some(count).filter(|count| *count == self.protected + 1),
            Err(error) => {
                tracing::debug!(%error, "what was written to is not protected again");
                return;
            }
        }
        for (space, ranges) in &self.written {
            let Space::Mm(mm) = space else { continue };
            // What is not protected counts as written to, as before.
            if let Err(error) = protect(pages.mms[mm.at()], ranges) {
                tracing::debug!(%error, %space, "not everything that was written to is protected again");
            }
        }
    }

    /// Takes of these pages what was not given yet.
    fn note(&mut self, given: &Given, whole: bool, name: Space, piece: PageRange, content: &[u8]) -> Result<()> {
        for (page, content) in (piece.first..).zip(content.chunks_exact(PAGE as usize)) {
            let digest = xxh3_128(content);
            if !whole && given.pages.get(&(name, page)) == Some(&digest) {
                continue;
            }
            if self.content.len() as u64 >= CHANGED_MAX {
                let what = format!("more than {} MiB have changed since the last state was taken", CHANGED_MAX >> 20);
                return Err(Failure::new(what));
            }
            self.digests.push(((name, page), digest));
            self.content.extend_from_slice(content);
            match self.changed.last_mut() {
                Some((space, range)) if *space == name && range.end() == page => range.count += 1,
                _ => self.changed.push((name, PageRange::new(page, 1))),
            }
        }
        Ok(())
    }

    /// It is complete.
    fn give(self, given: &mut Given, whole: bool) -> Taken {
        if whole {
            *given = Given::default();
        }
        given.protected = self.again;
        given.names.extend(self.names);
        for (space, range) in &self.changed {
            given.known.entry(*space).or_default().insert(*range);
        }
        given.pages.extend(self.digests);
        let Self { index, changed, content, pages_read, .. } = self;
        Taken { index, changed, content, whole, pages_read, ..Taken::default() }
    }
}

/// Protects pages where they are registered for that; others are passed over (`pagemap_scan_test_walk()`, fs/proc/task_mmu.c).
fn protect(pid: Pid, ranges: &RangeSet) -> std::io::Result<()> {
    let dir = ProcDir::open(pid).map_err(std::io::Error::other)?;
    let pagemap = File::from(dir.open_file("pagemap", OFlag::O_RDONLY).map_err(std::io::Error::other)?);
    let there = category::PRESENT | category::SWAPPED;
    let query =
        Query { flags: WP_MATCHING, all_of: category::WRITTEN, any_of: there, report: there, ..Query::default() };
    for range in ranges.iter() {
        pagemap::scan(pagemap.as_fd(), range.start_byte(), range.end_byte(), query, &mut Vec::new(), |_| {})?;
    }
    Ok(())
}
