//! Pages named by digest: content that the destination has had already does not travel again, wherever it occurs.
//!
//! The destination keeps contents that the source has marked for it ([`Run::shelve`]) on its [`Shelf`]: by their digest
//! (BLAKE3), which it computes itself, and apart from the memory of the target, so that nothing later rounds do to the pages
//! they came with changes them. The source knows by its [`Catalogue`] what lies there; from then on a page with such content
//! travels as its digest ([`What::Named`]). What is placed is digested once more.
//!
//! Over several channels nothing says which frame is read first. The source therefore names only content that it has handed
//! to the same channel before, or to another one in a frame that was sent completely; the destination waits for that frame.
//! Such waits end: of the frames that were sent and not read yet, the oldest can wait for none. Where all channels wait, the
//! source does not keep to the rules.
//!
//! The shelf is limited, and nothing is taken off it: half of it is for whatever comes first, the other half for what was
//! seen twice.
//!
//! Trees of one evacuation share a shelf that outlives the session of each ([`super::common_pages`]); it takes the place of this one, and
//! the source's [`Claims`] that of what its catalogue knows.

use super::MoveError;
use super::bases::Bases;
use super::common_pages::Claims;
use super::common_pages::shelf::CommonShelf;
use super::earlier::{self, Earlier, Hint};
use super::pages::{DIGEST_BYTES, Packer, Run, What};
use crate::image::mm::PAGE;
use crate::memory::store::{Scratch, StoreError};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space, zero};
use crate::transport::TransportError;
use crate::transport::wait::Patience;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages on a shelf, at most: 256 MiB.
pub const SHELF_MAX: usize = 64 << 10;

/// Contents of which the source remembers that they were sent, at most: 16 MiB, for 4 GiB of pages.
const SEEN_MAX: usize = 1 << 20;

const PAGE_BYTES: usize = PAGE as usize;

/// Pages taken off the shelf in one go.
const BATCH_PAGES: usize = 128;

/// How often a channel that waits for content looks whether it still should.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The same where another process may bring it.
const LOOK_AROUND_EVERY: Duration = Duration::from_millis(5);

/// So long that is waited for: less than the silence for which the source takes a link that carries nothing for dead.
const BROUGHT_WITHIN: Duration = Duration::from_secs(20);

type Digest = [u8; DIGEST_BYTES];

/// Takes pages with their content.
pub type Each<'a> = dyn FnMut(Run, &[u8]) -> Result<(), MoveError> + 'a;

fn digest(page: &[u8]) -> Digest {
    blake3::hash(page).into()
}

/// In which frame, counted from 1, content went to the shelf.
#[derive(Debug, Clone, Copy)]
struct Sent {
    channel: usize,
    frame: u64,
}

#[derive(Debug, Default)]
struct Known {
    shelved: HashMap<Digest, Sent>,
    /// Beginnings of digests of contents that were sent and not kept: only a hint.
    seen: HashSet<u64>,
    /// What the destination has from before: in an image, or on a shelf that trees share.
    earlier: Arc<HashSet<Hint>>,
}

/// What is said of a page with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Say {
    /// Its digest.
    Name,
    /// The content, which is kept.
    Shelve,
    /// The content.
    Send,
    /// Nothing yet: another mover is about to send it.
    Wait,
}

/// When pages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// In the first round: whatever comes may be shelved. Later that would be what the target writes again and again.
    First,
    /// In the first round, and what another mover is about to send can wait for that.
    Patient,
    /// In the first round, which is the only one: nothing comes again.
    Pause,
    /// Later.
    Later,
}

/// Source: what lies on the shelf of the destination.
#[derive(Debug)]
pub struct Catalogue {
    known: Mutex<Known>,
    /// Frames sent completely, of each channel.
    sent: Vec<AtomicU64>,
    max: usize,
    /// The shelf is that of several trees.
    claims: Option<Claims>,
}

impl Catalogue {
    /// Of a shelf that takes `max` pages, which come over so many channels.
    pub fn new(max: usize, channels: usize) -> Self {
        let sent = (0..channels).map(|_| AtomicU64::new(0)).collect();
        Self { known: Mutex::default(), sent, max: max.min(SHELF_MAX), claims: None }
    }

    /// Of one that trees share.
    pub fn shared(claims: Claims, channels: usize) -> Self {
        Self { claims: Some(claims), ..Self::new(0, channels) }
    }

    /// It is one that trees share.
    pub fn is_shared(&self) -> bool {
        self.claims.is_some()
    }

    /// Nothing can ever be named.
    pub fn is_none(&self) -> bool {
        self.max == 0 && !self.has_earlier() && !self.is_shared()
    }

    /// The destination has these from before.
    pub fn note_earlier(&self, hints: impl Iterator<Item = Hint>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut known.earlier).extend(hints);
    }

    /// What the destination has from before.
    pub fn earlier(&self) -> Arc<HashSet<Hint>> {
        Arc::clone(&self.known.lock().unwrap_or_else(PoisonError::into_inner).earlier)
    }

    /// The destination has something from before.
    pub fn has_earlier(&self) -> bool {
        !self.known.lock().unwrap_or_else(PoisonError::into_inner).earlier.is_empty()
    }

    /// A frame was sent completely on this channel.
    pub fn frame_sent(&self, channel: usize) {
        self.sent[channel].fetch_add(1, Ordering::Release);
        self.claims.iter().for_each(|claims| claims.frame_sent(channel));
    }

    /// The destination has said that everything has come.
    pub fn stored(&self) {
        self.claims.iter().for_each(Claims::stored);
    }

    /// Adds the content of consecutive pages to the next frame of a channel, named where that is possible. Those that are not in it,
    /// as another mover is about to send the same.
    #[must_use]
    pub fn pack(
        &self,
        channel: usize,
        packer: &mut Packer,
        (space, first): (Space, u64),
        content: &mut [u8],
        bases: Option<&Bases>,
        turn: Turn,
    ) -> Vec<PageRange> {
        let mut aside = Vec::new();
        let note = |packer: &mut Packer, run: Run, content: &[u8]| {
            bases.iter().for_each(|bases| bases.noted(run));
            packer.content(run, content);
        };
        let runs: Vec<_> = zero::runs(content).collect();
        for (is_zero, places) in runs {
            let first = first + places.start as u64;
            if is_zero {
                note(packer, Run::new(space, PageRange::new(first, places.len() as u64), What::Zero), &[]);
                continue;
            }
            let content = &mut content[places.start * PAGE_BYTES..places.end * PAGE_BYTES];
            let digests: Vec<Digest> = content.chunks_exact(PAGE_BYTES).map(digest).collect();
            let said = self.say(channel, &digests, turn);
            let mut at = 0;
            for same in said.chunk_by(|a, b| a == b) {
                let here = at..at + same.len();
                let range = PageRange::new(first + at as u64, same.len() as u64);
                at = here.end;
                let part = &mut content[here.start * PAGE_BYTES..here.end * PAGE_BYTES];
                let shelve = same[0] == Say::Shelve;
                match (same[0], bases) {
                    (Say::Wait, _) => aside.push(range),
                    (Say::Name, _) => {
                        note(packer, Run::new(space, range, What::Named), digests[here].as_flattened());
                    }
                    (_, Some(bases)) => bases.pack(packer, space, range.first, part, shelve),
                    (_, None) => packer.content(Run { shelve, ..Run::new(space, range, What::Data) }, part),
                }
            }
        }
        aside
    }

    fn say(&self, channel: usize, digests: &[Digest], turn: Turn) -> Vec<Say> {
        if let Some(claims) = &self.claims {
            return claims.say(channel, digests, &self.earlier(), turn);
        }
        let frame = self.sent[channel].load(Ordering::Relaxed) + 1;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        let mut say = |digest: &Digest| {
            if known.earlier.contains(&earlier::hint(digest)) {
                return Say::Name;
            }
            if let Some(sent) = known.shelved.get(digest) {
                let has_left = sent.channel == channel || self.sent[sent.channel].load(Ordering::Acquire) >= sent.frame;
                return if has_left { Say::Name } else { Say::Send };
            }
            let hint = u64::from_le_bytes(*digest.first_chunk().expect("a digest is longer"));
            let again = known.seen.contains(&hint);
            let room = if again { self.max } else { self.max / 2 };
            if (again || turn != Turn::Later) && known.shelved.len() < room {
                known.shelved.insert(*digest, Sent { channel, frame });
                return Say::Shelve;
            }
            if known.seen.len() < SEEN_MAX {
                known.seen.insert(hint);
            }
            Say::Send
        };
        digests.iter().map(&mut say).collect()
    }
}

#[derive(Debug, Default)]
struct Kept {
    pages: HashMap<Digest, Box<[u8]>>,
    /// Channels that can still bring something.
    open: usize,
    /// What those of them wait for that wait for another one.
    wanted: Vec<Digest>,
}

impl Kept {
    /// Every channel waits, and for nothing that is there.
    fn is_stuck(&self) -> bool {
        self.wanted.len() >= self.open && !self.wanted.iter().any(|digest| self.pages.contains_key(digest))
    }
}

/// Destination: contents that can be named.
#[derive(Debug)]
pub struct Shelf {
    kept: Mutex<Kept>,
    changed: Condvar,
    max: usize,
    earlier: Option<Earlier>,
    /// Sessions of other trees share it.
    common: Option<CommonShelf>,
    /// What was named in vain in this round; `None`: nothing may be.
    lacking: Mutex<Option<Vec<(Space, PageRange)>>>,
    /// Something was: nothing else of another session is waited for.
    is_let_down: AtomicBool,
}

/// What one thread needs to fetch pages.
#[derive(Debug)]
pub struct Fetching {
    patience: Patience,
    /// Neighbours in an image are unpacked together.
    scratch: Scratch,
}

impl Fetching {
    /// For waits that end as those on the thread's channel do.
    pub fn of(patience: &Patience) -> Self {
        Self { patience: patience.clone(), scratch: Scratch::default() }
    }
}

/// A channel that brings pages, until it is dropped.
#[derive(Debug)]
pub struct Open<'s>(&'s Shelf);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
        self.0.changed.notify_all();
    }
}

impl Shelf {
    /// For a target of so many bytes: no shelf is larger than what can come.
    pub fn of(memory_bytes: u64) -> Self {
        let max = usize::try_from(memory_bytes / PAGE).map_or(SHELF_MAX, |pages| pages.min(SHELF_MAX));
        Self {
            kept: Mutex::default(),
            changed: Condvar::new(),
            max,
            earlier: None,
            common: None,
            lacking: Mutex::default(),
            is_let_down: AtomicBool::new(false),
        }
    }

    /// From here on contents are kept where sessions of other trees find them, and theirs are found.
    pub fn shared(self, common: Option<CommonShelf>) -> Self {
        Self { common, ..self }
    }

    /// The one that is shared.
    pub fn common(&self) -> Option<&CommonShelf> {
        self.common.as_ref()
    }

    /// It is not used here any more.
    pub fn take_common(&mut self) -> Option<CommonShelf> {
        self.common.take()
    }

    /// A round begins. Where pages come again it is no error that one is named which another session has not brought after all
    /// (`comes_again`).
    pub fn begin_round(&self, comes_again: bool) {
        *self.lacking() = (comes_again && self.common.is_some()).then(Vec::new);
    }

    /// Pages that were named in vain in this round, and are where they were.
    pub fn end_round(&self) -> Vec<(Space, PageRange)> {
        self.lacking().take().unwrap_or_default()
    }

    fn lacking(&self) -> MutexGuard<'_, Option<Vec<(Space, PageRange)>>> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an image has can be named as well. The list of it, for the source.
    pub fn add_earlier(&mut self, image: Earlier) -> Vec<u8> {
        let hints = image.hints();
        self.earlier = Some(image);
        hints
    }

    /// Pages it takes.
    pub fn max(&self) -> usize {
        self.max
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Channels that bring pages in the round that begins. All at once: none may find itself alone before the others are there.
    pub fn open(&self, channels: usize) -> Vec<Open<'_>> {
        self.lock().open += channels;
        (0..channels).map(|_| Open(self)).collect()
    }

    /// Keeps the content of pages.
    ///
    /// # Errors
    /// More than there is room for: the source does not keep to the rules.
    pub fn keep(&self, content: &[u8]) -> Result<(), MoveError> {
        let pages: Vec<_> = content.chunks_exact(PAGE_BYTES).map(|page| (digest(page), page)).collect();
        let (fits, max) = match &self.common {
            Some(common) => (common.keep(&pages).map_err(|source| cannot("add to", common, source))?, SHELF_MAX),
            None => {
                let mut kept = self.lock();
                for (digest, page) in pages {
                    kept.pages.entry(digest).or_insert_with(|| page.into());
                }
                (kept.pages.len() <= self.max, self.max)
            }
        };
        self.changed.notify_all();
        if !fits {
            return Err(lie(format!("more than {max} pages are to be kept under their digests")));
        }
        Ok(())
    }

    /// Hands out the pages of a named run with their content, in pieces. Waits for what another channel is about to bring.
    ///
    /// # Errors
    /// Nothing like it has come or can come; the wait was ended; whatever `each` fails with.
    pub fn fetch(
        &self,
        run: Run,
        digests: &[u8],
        fetching: &mut Fetching,
        each: &mut Each<'_>,
    ) -> Result<(), MoveError> {
        let (digests, _) = digests.as_chunks::<DIGEST_BYTES>();
        let mut content = PageBuffer::of(digests.len().min(BATCH_PAGES) * PAGE_BYTES);
        let mut first = run.range.first;
        for digests in digests.chunks(BATCH_PAGES) {
            let content = &mut content[..digests.len() * PAGE_BYTES];
            let mut wanted: Vec<_> = (first..).zip(digests).zip(content.chunks_exact_mut(PAGE_BYTES)).collect();
            // What lies together in an image is unpacked together, wherever it is here.
            wanted.sort_by_key(|((_, digest), _)| self.earlier.as_ref().and_then(|earlier| earlier.place(digest)));
            let range = PageRange::new(first, digests.len() as u64);
            first = range.end();
            let mut found: RangeSet = [range].into_iter().collect();
            for ((page, wanted), content) in wanted {
                let name = |reason: &str| lie(format!("page {page} of {} is named by a digest {reason}", run.space));
                if !self.find(wanted, fetching, content)? {
                    self.lacks(run.space, page).map_err(|Unforgivable| name("of which nothing is known"))?;
                    found.remove(PageRange::new(page, 1));
                } else if digest(content) != *wanted {
                    // Never a wrong page, whatever has happened to it here.
                    return Err(name("that what was kept under it no longer has"));
                }
            }
            for part in found.iter() {
                let at = (part.first - range.first) as usize * PAGE_BYTES;
                each(Run::new(run.space, part, What::Data), &content[at..at + part.bytes() as usize])?;
            }
        }
        Ok(())
    }

    /// A page was named in vain.
    fn lacks(&self, space: Space, page: u64) -> Result<(), Unforgivable> {
        self.is_let_down.store(true, Ordering::Relaxed);
        let mut lacking = self.lacking();
        let pages = lacking.as_mut().ok_or(Unforgivable)?;
        match pages.last_mut() {
            Some((of, range)) if *of == space && range.end() == page => range.count += 1,
            _ => pages.push((space, PageRange::new(page, 1))),
        }
        Ok(())
    }

    /// Reads what is not of this session.
    fn look_elsewhere(&self, wanted: &Digest, content: &mut [u8], scratch: &mut Scratch) -> Result<bool, MoveError> {
        if let Some(earlier) = &self.earlier
            && earlier.read(wanted, content, scratch)?
        {
            return Ok(true);
        }
        let Some(common) = &self.common else { return Ok(false) };
        common.read(wanted, content).map_err(|source| cannot("read", common, source))
    }

    /// Reads the content with that digest; whether it has come, and before nobody can bring it any more.
    fn find(
        &self,
        wanted: &Digest,
        Fetching { patience, scratch }: &mut Fetching,
        content: &mut [u8],
    ) -> Result<bool, MoveError> {
        let here = |kept: &Kept, content: &mut [u8]| {
            let page = kept.pages.get(wanted);
            page.into_iter().for_each(|page| content.copy_from_slice(page));
            page.is_some()
        };
        if here(&self.lock(), content) || self.look_elsewhere(wanted, content, scratch)? {
            return Ok(true);
        }
        let mut kept = self.lock();
        kept.wanted.push(*wanted);
        let (time, look_every) = match &self.common {
            Some(_) => (patience.silence.min(BROUGHT_WITHIN), LOOK_AROUND_EVERY),
            None => (patience.silence, LOOK_EVERY),
        };
        let until = Instant::now() + time;
        let found = loop {
            match if here(&kept, content) { Ok(true) } else { self.look_elsewhere(wanted, content, scratch) } {
                Ok(false) => {}
                found => break found,
            }
            if patience.abort.is_triggered() {
                break Err(TransportError::Aborted { during: "waiting for pages of another channel" }.into());
            }
            if self.is_hopeless(&kept) || Instant::now() >= until {
                break Ok(false);
            }
            kept = self.changed.wait_timeout(kept, look_every).unwrap_or_else(PoisonError::into_inner).0;
        };
        let place = kept.wanted.iter().position(|digest| digest == wanted).expect("added above");
        kept.wanted.swap_remove(place);
        found
    }

    /// Nobody brings what is waited for.
    fn is_hopeless(&self, kept: &Kept) -> bool {
        match &self.common {
            // It has been waited for in vain once.
            Some(_) => self.is_let_down.load(Ordering::Relaxed),
            None => kept.is_stuck(),
        }
    }
}

/// Nothing may be named in vain.
struct Unforgivable;

fn cannot(operation: &'static str, common: &CommonShelf, source: io::Error) -> MoveError {
    StoreError::Io { operation, path: common.dir().into(), source }.into()
}

fn lie(reason: String) -> MoveError {
    MoveError::Frame { reason }
}

#[cfg(test)]
mod tests;
