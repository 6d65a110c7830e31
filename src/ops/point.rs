//! A consistent state of a target that runs here and still lacks memory: `--recoverable`, at the destination
//! ([`crate::migration::points`]).
//!
//! The target is stopped, and its pager says what is missing: those pages are the original's. Of what is there, pages that the
//! pager has brought and nobody has written to are the original's as well; all others are read, and given if their digest is not
//! that of the point before. Pages come in meanwhile, but nobody writes.

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
use crate::trace::pages::TargetPages;
use std::collections::{BTreeMap, HashMap};
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

/// A point in the making, of a target that stands still.
#[derive(Debug, Default)]
struct Reading {
    /// Pages that the original has, and which they are there.
    missing: BTreeMap<Space, Vec<(PageRange, MmId, u64)>>,
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
        let mut reading = Self::default();
        for &(owner, first, count, mm, from) in &lacks.missing {
            let pid = lacks.spaces.get(owner).map_or(0, |(_, pid)| *pid);
            let at = mms.iter().position(|owner| owner.0 == pid).filter(|at| *at < model.mms.len());
            let start = ProcDir::open(Pid(pid)).and_then(|dir| dir.stat(&mut Vec::new())).map(|stat| stat.starttime);
            let (Some(at), true) = (at, start.is_ok_and(|start| lacks.is_original(pid, start))) else {
                return Err(Failure::new(format!("the memory of process {pid} is another process's by now")));
            };
            let piece = (PageRange::new(first, count), MmId(mm), from);
            reading.missing.entry(Space::Mm(MmId::from(at))).or_default().push(piece);
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
        let mut buffer = Vec::new();
        for (space, range) in plan {
            let name = keys.get(&space).and_then(|key| self.names.get(key)).copied();
            let name = name.ok_or_else(|| Failure::new(format!("{space} has no name")))?;
            let not_here = self.missing.get(&space).into_iter().flatten().map(|(missing, ..)| missing.intersect(range));
            let all: RangeSet = [range].into_iter().collect();
            let here = all.difference(&not_here.filter(|range| !range.is_empty()).collect());
            for piece in here.iter().flat_map(|range| range.pieces(PIECE_PAGES)) {
                buffer.resize(piece.bytes() as usize, 0);
                pages
                    .read(space, &[piece], &mut buffer)
                    .map_err(|e| Failure::of("the target's memory cannot be read", &e))?;
                self.note(given, whole, name, piece, &buffer)?;
                self.index.push(Row { space, range: piece, place: Place::Points(name) });
            }
        }
        Ok(())
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
        given.names.extend(self.names);
        given.pages.extend(self.digests);
        let Self { index, changed, content, .. } = self;
        Taken { index, changed, content, whole, ..Taken::default() }
    }
}
