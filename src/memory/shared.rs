//! Shared memory objects of a live tree: read while it runs, compared by digest when it is stopped.
//!
//! Page tables do not tell who has written to a shared object: another process may have, which has ended since, or write(2)
//! on a descriptor. So the first round reads all of an object and notes the digest of each page; the round after that, and
//! the last look at the stopped tree, read it again and take the pages whose digest differs, instead of a copy of
//! everything.

use super::pipeline::PageError;
use super::scan::shared_pages;
use super::track::TrackError;
use super::{PageBuffer, PageRange, RangeSet, Space};
use crate::image::mm::{PAGE, ShmemKind};
use crate::image::{Model, Pid, ShmemId};
use crate::proc::ProcDir;
use crate::proc::maps::Mapping;
use crate::sys::Errno;
use crate::sys::mapping::FileMapping;
use crate::trace::pages::read_padded;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

/// The first provisional id: no model has as many objects.
const PROVISIONAL: u32 = 1 << 24;
/// Pages read in one go: fits the second-level cache.
const BATCH_PAGES: u64 = 64;
/// Below this many pages threads cost more than they bring.
const INLINE_PAGES: u64 = 2048;

/// Device and inode; inode numbers of System V segments are ids, which count by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    system_v: bool,
    device: u64,
    inode: u64,
}

impl Key {
    fn of(system_v: bool, file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { system_v, device: meta.dev(), inode: meta.ino() })
    }
}

/// One object.
#[derive(Debug)]
struct Object {
    key: Key,
    file: File,
    space: Space,
    /// Of each page that the image has, as it has it.
    digests: Mutex<Digests>,
    /// Has been read a second time.
    compared: bool,
    /// Its pages in our own page tables, made before the pause: read(2) takes three times as long.
    mapping: Option<FileMapping>,
}

/// Digests of pages, 0 = not known; in blocks, as an object can have large holes.
#[derive(Debug, Default, Clone)]
struct Digests(HashMap<u64, Vec<u128>>);

impl Digests {
    const BLOCK: u64 = 512;

    fn get(&self, page: u64) -> u128 {
        self.0.get(&(page / Self::BLOCK)).map_or(0, |block| block[(page % Self::BLOCK) as usize])
    }

    fn set(&mut self, page: u64, digest: u128) {
        let block = self.0.entry(page / Self::BLOCK).or_insert_with(|| vec![0; Self::BLOCK as usize]);
        block[(page % Self::BLOCK) as usize] = digest;
    }

    /// Pages that are known.
    fn pages(&self) -> RangeSet {
        let mut blocks: Vec<u64> = self.0.keys().copied().collect();
        blocks.sort_unstable();
        let pages = blocks.into_iter().flat_map(|block| block * Self::BLOCK..(block + 1) * Self::BLOCK);
        pages.filter(|page| self.get(*page) != 0).map(|page| PageRange::new(page, 1)).collect()
    }
}

/// The objects of a tree.
#[derive(Debug, Default)]
pub struct Objects(Vec<Object>);

/// What the stopped tree's objects still owe the image.
#[derive(Debug, Default)]
pub struct LastShared {
    /// Pages to be copied.
    pub plan: Vec<(Space, PageRange)>,
    /// Pages that the image has and the object no longer.
    pub gone: Vec<(Space, PageRange)>,
    /// What rounds called objects, and what the model calls them.
    pub names: Vec<(Space, Option<Space>)>,
}

fn digest(page: &[u8]) -> u128 {
    // 0 stands for a page that is not known.
    xxhash_rust::xxh3::xxh3_128(page).max(1)
}

/// Does nobody but its mappings and descriptors lead to this object?
fn is_nameless(mapping: &Mapping) -> bool {
    let name = mapping.name.0.as_slice();
    let kind = name == b"/dev/zero (deleted)" || name.starts_with(b"/memfd:") || name.starts_with(b"/SYSV");
    mapping.shared && mapping.inode != 0 && kind
}

impl Objects {
    /// Pages to be read in this round: all of an object that is new, of others once more those that have changed.
    ///
    /// # Errors
    /// An object cannot be read. A process that has ended is none.
    pub fn take<'d>(&mut self, dirs: impl Iterator<Item = &'d ProcDir>) -> Result<Vec<(Space, PageRange)>, TrackError> {
        let known = self.0.len();
        let mut seen = Vec::new();
        for dir in dirs {
            match self.look(dir, &mut seen) {
                Err(e) if e.is_gone() => {}
                looked => looked?,
            }
        }
        let mut plan = Vec::new();
        for (n, object) in self.0.iter_mut().enumerate() {
            let pages = match (n >= known, object.compared) {
                (true, _) => object.held()?,
                (false, false) => {
                    object.compared = true;
                    let changed = object.changed()?.0;
                    object.map();
                    changed
                }
                (false, true) => continue,
            };
            plan.extend(pages.iter().map(|range| (object.space, range)));
        }
        Ok(plan)
    }

    /// Opens the objects of one process that are not known yet. `seen`: device and inode numbers as `maps` has them.
    fn look(&mut self, dir: &ProcDir, seen: &mut Vec<(bool, u64, u64)>) -> Result<(), TrackError> {
        for mapping in dir.maps(&mut Vec::new())?.iter().filter(|mapping| is_nameless(mapping)) {
            let system_v = mapping.name.0.starts_with(b"/SYSV");
            let place = (system_v, mapping.device, mapping.inode);
            if seen.contains(&place) {
                continue;
            }
            seen.push(place);
            // It may have been unmapped since.
            let Ok(file) = dir.open_file(&mapping.map_file(), nix::fcntl::OFlag::O_RDONLY) else { continue };
            let file = File::from(file);
            let Ok(key) = Key::of(system_v, &file) else { continue };
            if self.0.iter().all(|object| object.key != key) {
                let space = Space::Shmem(ShmemId(PROVISIONAL + self.0.len() as u32));
                let digests = Mutex::default();
                self.0.push(Object { key, file, space, digests, compared: false, mapping: None });
            }
        }
        Ok(())
    }

    /// What rounds call an object.
    pub fn space_of(&self, kind: &ShmemKind, file: &File) -> Option<Space> {
        let key = Key::of(matches!(kind, ShmemKind::SysV { .. }), file).ok()?;
        self.0.iter().find(|object| object.key == key).map(|object| object.space)
    }

    /// Reads pages of an object and notes what was read. `None`: this space is none of ours.
    pub fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Option<Result<(), PageError>> {
        let object = self.0.iter().find(|object| object.space == space)?;
        Some(object.read_and_note(ranges, buf))
    }

    /// These pages were read but did not make it into the image.
    pub fn forget(&self, plan: &[(Space, PageRange)]) {
        for (space, range) in plan {
            if let Some(object) = self.0.iter().find(|object| object.space == *space) {
                let mut digests = object.digests.lock().unwrap_or_else(PoisonError::into_inner);
                (range.first..range.end()).for_each(|page| digests.set(page, 0));
            }
        }
    }

    /// Compares the objects of a stopped tree, which its descriptors `files` lead to, with what rounds have read.
    ///
    /// # Errors
    /// An object cannot be read.
    pub fn last<'f>(
        &self,
        model: &Model,
        files: impl Iterator<Item = BorrowedFd<'f>>,
    ) -> Result<LastShared, TrackError> {
        let mut last = LastShared::default();
        let mut left: Vec<Space> = self.0.iter().map(|object| object.space).collect();
        for (n, (shmem, file)) in model.shmems.iter().zip(files).enumerate() {
            let id = ShmemId::from(n);
            let system_v = matches!(shmem.kind, ShmemKind::SysV { .. });
            let own = file.try_clone_to_owned().map_err(io)?;
            let key = Key::of(system_v, &own.into()).map_err(io)?;
            let Some(object) = self.0.iter().find(|object| object.key == key) else {
                last.plan.extend(shared_pages(id, shmem.size, file).map_err(failed)?);
                continue;
            };
            let (changed, gone) = object.changed()?;
            left.retain(|space| *space != object.space);
            last.plan.extend(changed.iter().map(|range| (object.space, range)));
            last.gone.extend(gone.iter().map(|range| (object.space, range)));
            last.names.push((object.space, Some(Space::Shmem(id))));
        }
        last.names.extend(left.into_iter().map(|space| (space, None)));
        Ok(last)
    }
}

impl Object {
    fn held(&self) -> Result<RangeSet, TrackError> {
        let size = self.file.metadata().map_err(io)?.len();
        let pages = shared_pages(ShmemId(0), size, self.file.as_fd()).map_err(failed)?;
        Ok(pages.into_iter().map(|(_, range)| range).collect())
    }

    /// Maps what there is. Where that is not possible, and what is added later, is read by read(2).
    fn map(&mut self) {
        let length = self.file.metadata().map_or(0, |meta| meta.len());
        let Ok(held) = self.held() else { return };
        self.mapping = usize::try_from(length).ok().and_then(|length| FileMapping::new(&self.file, length).ok());
        if let Some(mapping) = &self.mapping {
            held.iter().for_each(|range| mapping.populate(range.start_byte(), range.bytes()));
        }
    }

    /// Reads pages that the object holds, of a stopped tree if it is mapped.
    fn read(&self, range: PageRange, buf: &mut [u8]) -> std::io::Result<()> {
        match &self.mapping {
            Some(mapping) if mapping.read(range.start_byte(), buf) => Ok(()),
            _ => read_padded(&self.file, range.start_byte(), buf),
        }
    }

    fn read_and_note(&self, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let mut rest = buf;
        for range in ranges {
            let (part, later) = rest.split_at_mut(range.bytes() as usize);
            read_padded(&self.file, range.start_byte(), part)
                .map_err(|source| PageError { page: range.first, source })?;
            let new: Vec<u128> = part.chunks_exact(PAGE as usize).map(digest).collect();
            let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
            (range.first..).zip(new).for_each(|(page, digest)| digests.set(page, digest));
            drop(digests);
            rest = later;
        }
        Ok(())
    }

    /// Pages that are not as the image has them, and those that it has and the object no longer.
    fn changed(&self) -> Result<(RangeSet, RangeSet), TrackError> {
        let held = self.held()?;
        let known = self.digests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shipped = known.pages();
        let pieces: Vec<PageRange> = held.iter().flat_map(|range| range.pieces(BATCH_PAGES)).collect();
        let pages: u64 = held.pages();
        let workers = if pages < INLINE_PAGES { 1 } else { super::pipeline::default_workers() };
        let share = pieces.len().div_ceil(workers).max(1);
        let compare = |part: &[PageRange]| -> std::io::Result<RangeSet> {
            let mut buf = PageBuffer::of((BATCH_PAGES * PAGE) as usize);
            let mut changed = RangeSet::new();
            for piece in part {
                let buf = &mut buf[..piece.bytes() as usize];
                self.read(*piece, buf)?;
                for (page, content) in (piece.first..).zip(buf.chunks_exact(PAGE as usize)) {
                    if known.get(page) != digest(content) {
                        changed.insert(PageRange::new(page, 1));
                    }
                }
            }
            Ok(changed)
        };
        let parts: std::io::Result<Vec<RangeSet>> = match workers {
            1 => compare(&pieces).map(|changed| vec![changed]),
            _ => std::thread::scope(|scope| {
                let threads: Vec<_> = pieces.chunks(share).map(|part| scope.spawn(|| compare(part))).collect();
                let died = || std::io::Error::other("a page worker has died");
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(died()))).collect()
            }),
        };
        let changed = parts.map_err(io)?.iter().flat_map(RangeSet::iter).collect();
        Ok((changed, shipped.difference(&held)))
    }
}

fn io(e: std::io::Error) -> TrackError {
    failed(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

fn failed(errno: Errno) -> TrackError {
    TrackError::System { operation: "read of shared memory", pid: Pid(std::process::id().cast_signed()), errno }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn changes_are_found_by_content() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 3 * 4096], 0).unwrap();
        file.write_all_at(&[2; 100], 10 * 4096).unwrap();
        let key = Key::of(false, &file).unwrap();
        let space = Space::Shmem(ShmemId(PROVISIONAL));
        let copy = file.try_clone().unwrap();
        let object = Object { key, file: copy, space, digests: Mutex::default(), compared: false, mapping: None };
        let mut objects = Objects(vec![object]);
        let all: Vec<_> = objects.0[0].held().unwrap().iter().collect();
        let of = |pages: &[u64]| -> RangeSet { pages.iter().map(|page| PageRange::new(*page, 1)).collect() };
        assert_eq!(objects.0[0].changed().unwrap().0, all.iter().copied().collect(), "nothing was read yet");
        for range in &all {
            let mut buf = vec![0; range.bytes() as usize];
            objects.read(space, &[*range], &mut buf).unwrap().unwrap();
        }
        assert_eq!(objects.0[0].changed().unwrap(), (RangeSet::new(), RangeSet::new()));
        file.write_all_at(&[3], 4096 + 5).unwrap();
        assert_eq!(objects.0[0].changed().unwrap().0, of(&[1]));
        objects.forget(&[(space, PageRange::new(2, 1))]);
        assert_eq!(objects.0[0].changed().unwrap().0, of(&[1, 2]));
        objects.0[0].map();
        assert_eq!(objects.0[0].changed().unwrap().0, of(&[1, 2]), "through a mapping");
        file.write_all_at(&[4; 4096], 20 * 4096).unwrap();
        assert_eq!(objects.0[0].changed().unwrap().0, of(&[1, 2, 20]), "past the end of the mapping");
        file.set_len(4096).unwrap();
        assert_eq!(objects.0[0].changed().unwrap(), (RangeSet::new(), of(&[1, 10])));
    }
}
