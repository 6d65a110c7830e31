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
//! queues on the way to the destination stay short ([`crate::transport::under_way`]). Each page is sent once; after a lost link both
//! are made anew, and what is missing is sent, which the pager knows. While there is no link, who needs a page waits. The
//! pager outlives the session; links reach it through a session of their own, which passes bytes on ([`relay`]).
//!
//! From COMMIT on the original must not run. It stays frozen until everything is in, and longer if that never happens: then
//! the journal says `committing`, and a person decides. A pager that hears nothing for a long time gives the source up: the
//! target is stopped, what is missing poisoned ([`crate::companion::pager`]).

pub mod receiver;
pub mod relay;
pub mod serving;
mod waits;

use super::protocol::AttemptId;
use crate::image::{MmId, limits};
use crate::memory::lazy::Fault;
use crate::memory::{PageRange, RangeSet, Space};
use crate::transport::{Channel, FrameKind, Result, TransportError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Pages that come later, by the names of the final model.
pub type Later = Vec<(MmId, RangeSet)>;

/// Where the pager of an attempt takes links.
pub fn socket_path(run: &Path, attempt: &str) -> PathBuf {
    run.join(format!("pages-{attempt}.sock"))
}

/// Entries of one frame, at most.
const ENTRIES_MAX: usize = 4096;

/// Pages of an address space; with a thread, one that waits for the first of them.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    first: U64,
    pages: U64,
    mm: U32,
    thread: U32,
}

impl Entry {
    fn range(&self) -> Option<(Space, PageRange)> {
        let range = PageRange::new(self.first.get(), self.pages.get());
        let sound = range.first < limits::PAGE_NUMBERS && range.count <= limits::PAGE_NUMBERS - range.first;
        (sound && !range.is_empty()).then_some((Space::Mm(MmId(self.mm.get())), range))
    }
}

fn entry(space: Space, range: PageRange, thread: u32) -> Option<Entry> {
    let Space::Mm(mm) = space else { return None };
    Some(Entry { first: range.first.into(), pages: range.count.into(), mm: mm.0.into(), thread: thread.into() })
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
        let page = |fault: &Fault| entry(fault.space, PageRange::new(fault.page, 1), fault.thread);
        let part: Vec<Entry> = part.iter().filter_map(page).collect();
        channel.send(FrameKind::WANTED, part.as_bytes())
    })
}

/// The faults of a WANT frame.
fn read_wanted(body: &[u8], peer: &str) -> Result<Vec<Fault>> {
    let fault = |entry: &Entry| {
        let (space, range) = entry.range()?;
        Some(Fault { space, page: range.first, thread: entry.thread.get() })
    };
    Ok(entries(body, peer)?.iter().filter_map(fault).collect())
}

/// Says what is missing.
fn send_missing(channel: &mut Channel, missing: &BTreeMap<Space, RangeSet>) -> Result<()> {
    let all = missing.iter().flat_map(|(space, pages)| pages.iter().map(|range| (*space, range)));
    let all: Vec<Entry> = all.filter_map(|(space, range)| entry(space, range, 0)).collect();
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

/// As it stands in a message: (address space, first page, pages).
pub fn encode(later: &Later) -> Vec<u8> {
    let rows = later.iter().flat_map(|(mm, pages)| pages.iter().map(|range| entry(Space::Mm(*mm), range, 0)));
    rows.flatten().flat_map(|entry| entry.as_bytes().to_vec()).collect()
}

/// The other way.
///
/// # Errors
/// Bytes that are no such list.
pub fn decode(bytes: &[u8], peer: &str) -> Result<Later> {
    let mut later: BTreeMap<MmId, RangeSet> = BTreeMap::new();
    for part in bytes.chunks(ENTRIES_MAX * size_of::<Entry>()) {
        for (space, range) in entries(part, peer)?.iter().filter_map(Entry::range) {
            if let Space::Mm(mm) = space {
                later.entry(mm).or_default().insert(range);
            }
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
