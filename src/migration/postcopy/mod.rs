//! Post-copy: the target runs at the destination before its memory is there.
//!
//! ```text
//! source                                         destination
//! frozen original; Serving                       session process          pager process (holds the userfaultfds)
//! new link, Pages {urgent} ------------------->  relay  ----------------> takes it
//!                        <-------------------------------------------------- what is missing (MISS, the last one empty)
//! new link, Pages {not urgent} --------------->  relay  ----------------> takes it
//!                        <-------------------------------------------------- WANT: somebody waits for these
//! PAGE on the urgent link: those ---------------------------------------->
//! PAGE on the other link: what lies around them, then the rest ---------->
//!                        <-------------------------------------------------- WAIT: who has waited how long; MARK: everything is in
//! MARK: the original ends ----------------------------------------------->
//! ```
//! No fault waits behind bulk data: the two links have buffers of their own, and of bulk data only so much is under way that
//! queues on the way to the destination stay short ([`crate::transport::under_way`]); what an image has that is there (`--base`)
//! goes as its digest ([`names`]). Each page is sent once; after a lost link both
//! are made anew, and what is missing is sent, which the pager knows. While there is no link, who needs a page waits. The
//! pager outlives the session; links reach it through a session of their own, which passes bytes on ([`relay`]).
//!
//! From COMMIT on the original must not run. It stays frozen until everything is in, and longer if that never happens: then
//! the journal says `committing`, and a person decides. A pager that hears nothing for a long time gives the source up: the
//! target is stopped, what is missing poisoned ([`crate::companion::pager`]).

mod names;
pub mod receiver;
pub mod relay;
pub mod serving;
mod waits;

use super::protocol::AttemptId;
use crate::image::{MmId, ShmemId, limits};
use crate::memory::lazy::Fault;
use crate::memory::{PageRange, RangeSet, Space};
use crate::transport::{Channel, FrameKind, Result, TransportError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Pages that come later, by the names of the final model.
pub type Later = Vec<(Space, RangeSet)>;

/// Where the pager of an attempt takes links.
pub fn socket_path(run: &Path, attempt: &str) -> PathBuf {
    run.join(format!("pages-{attempt}.sock"))
}

/// Whether a copy of this attempt has all of its memory: its pager takes no links, and has not given up either.
pub fn is_complete(run: &Path, attempt: AttemptId) -> bool {
    !socket_path(run, &name(attempt)).exists()
}

/// Pages that come into being in one piece, at most: those of a huge page of 2 MiB.
const PIECE_MAX: u64 = 512;
/// Entries of one frame, at most.
const ENTRIES_MAX: usize = 3072;
const _: () = assert!(ENTRIES_MAX * size_of::<Entry>() <= 96 << 10, "the limit of the frame");

/// Pages of an address space or of a shared memory object; with a thread, pages that it waits for.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    first: U64,
    pages: U64,
    /// Number of the space.
    id: U32,
    thread: U32,
    /// 0: of an address space, 1: of a shared memory object.
    kind: U32,
    /// In a list of wanted pages, 1: somebody waits until all of these are there.
    soon: U32,
}

impl Entry {
    fn range(&self) -> Option<(Space, PageRange)> {
        let range = PageRange::new(self.first.get(), self.pages.get());
        let sound = range.first < limits::PAGE_NUMBERS && range.count <= limits::PAGE_NUMBERS - range.first;
        let id = self.id.get();
        let space = match self.kind.get() {
            0 => Space::Mm(MmId(id)),
            1 => Space::Shmem(ShmemId(id)),
            _ => return None,
        };
        (sound && !range.is_empty()).then_some((space, range))
    }
}

fn entry(space: Space, range: PageRange, thread: u32) -> Entry {
    let (kind, id) = match space {
        Space::Mm(id) => (0, id.0),
        Space::Shmem(id) => (1, id.0),
    };
    let (first, pages) = (range.first.into(), range.count.into());
    Entry { first, pages, id: id.into(), thread: thread.into(), kind: U32::new(kind), soon: U32::new(0) }
}

fn entries<'a>(body: &'a [u8], peer: &str) -> Result<&'a [Entry]> {
    let malformed = || TransportError::Malformed {
        peer: peer.into(),
        what: "list of pages",
        reason: "it has a length that no list has, or pages that do not exist".into(),
    };
    let entries = <[Entry]>::ref_from_bytes(body).map_err(|_| malformed())?;
    if entries.len() > ENTRIES_MAX || entries.iter().any(|entry| entry.range().is_none()) {
        return Err(malformed());
    }
    Ok(entries)
}

/// Asks for the pages that somebody waits for.
fn send_wanted(channel: &mut Channel, faults: &[Fault]) -> Result<()> {
    faults.chunks(ENTRIES_MAX).try_for_each(|part| {
        let page = |fault: &Fault| entry(fault.space, PageRange::new(fault.page, fault.count), fault.thread);
        let part: Vec<Entry> = part.iter().map(page).collect();
        channel.send(FrameKind::WANTED, part.as_bytes())
    })
}

/// Asks for pages that somebody waits for as a whole.
fn send_soon(channel: &mut Channel, space: Space, pages: &RangeSet) -> Result<()> {
    let all: Vec<Entry> = pages.iter().map(|range| Entry { soon: U32::new(1), ..entry(space, range, 0) }).collect();
    all.chunks(ENTRIES_MAX).try_for_each(|part| channel.send(FrameKind::WANTED, part.as_bytes()))
}

/// What a WANT frame asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    faults: Vec<Fault>,
    soon: Vec<(Space, PageRange)>,
}

/// Reads a WANT frame.
fn read_wanted(body: &[u8], peer: &str) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    for entry in entries(body, peer)? {
        let Some((space, range)) = entry.range() else { continue };
        if entry.soon.get() != 0 {
            wanted.soon.push((space, range));
            continue;
        }
        // The largest page that is brought late has so many.
        let count = range.count.min(PIECE_MAX);
        wanted.faults.push(Fault { space, page: range.first, count, thread: entry.thread.get() });
    }
    Ok(wanted)
}

/// Says what is missing.
pub(super) fn send_missing(channel: &mut Channel, missing: &BTreeMap<Space, RangeSet>) -> Result<()> {
    let all = missing.iter().flat_map(|(space, pages)| pages.iter().map(|range| (*space, range)));
    let all: Vec<Entry> = all.map(|(space, range)| entry(space, range, 0)).collect();
    all.chunks(ENTRIES_MAX).try_for_each(|part| channel.send(FrameKind::MISSING, part.as_bytes()))?;
    channel.send(FrameKind::MISSING, &[])
}

/// Hears what is missing.
fn receive_missing(channel: &mut Channel) -> Result<BTreeMap<Space, RangeSet>> {
    let peer = channel.peer().to_owned();
    let mut missing: BTreeMap<Space, RangeSet> = BTreeMap::new();
    loop {
        let body = channel.expect(FrameKind::MISSING, "the list of missing pages")?;
        if body.is_empty() {
            return Ok(missing);
        }
        for (space, range) in entries(body, &peer)?.iter().filter_map(Entry::range) {
            missing.entry(space).or_default().insert(range);
        }
    }
}

/// As it stands in a message.
pub fn encode(later: &Later) -> Vec<u8> {
    let rows = later.iter().flat_map(|(space, pages)| pages.iter().map(|range| entry(*space, range, 0)));
    rows.flat_map(|entry| entry.as_bytes().to_vec()).collect()
}

/// The other way.
///
/// # Errors
/// Bytes that are no such list.
pub fn decode(bytes: &[u8], peer: &str) -> Result<Later> {
    let mut later: BTreeMap<Space, RangeSet> = BTreeMap::new();
    for part in bytes.chunks(ENTRIES_MAX * size_of::<Entry>()) {
        for (space, range) in entries(part, peer)?.iter().filter_map(Entry::range) {
            later.entry(space).or_default().insert(range);
        }
    }
    Ok(later.into_iter().collect())
}

/// The name of an attempt in paths.
pub fn name(attempt: AttemptId) -> String {
    attempt.to_string()
}

#[cfg(test)]
mod tests;
