//! Deltas: a page that is sent again travels as what has changed in it since it was sent before.
//!
//! Both sides keep the same bases: the content that was last sent of a page. The source decides which ([`What::Keep`]), and
//! from then on a delta ([`What::Delta`]) is the page's new content XORed with its base, which packs well where little has
//! changed; the new content becomes the base. Whatever else is said of a page (zero, gone, inherited, plain data) ends its base
//! on both sides. That they agree rests on two rules of a move: a page is sent at most once in a round, and a round begins
//! when the one before has arrived.

use super::MoveError;
use super::pages::{Packer, Run, What};
use crate::image::mm::PAGE;
use crate::memory::{PageRange, Space, zero};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages that have a base, at most: 256 MiB on each side.
pub const BASES_MAX: usize = 64 << 10;

const PAGE_BYTES: usize = PAGE as usize;

/// Of a page with more changed bytes than this, the whole content is sent: it may pack better than the difference.
const CHANGED_MAX: usize = PAGE_BYTES / 4 * 3;

type Pages = BTreeMap<(Space, u64), Box<[u8]>>;

/// Contents that were last sent, or have last come.
#[derive(Debug)]
pub struct Bases {
    pages: Mutex<Pages>,
    max: usize,
}

impl Default for Bases {
    fn default() -> Self {
        Self { pages: Mutex::default(), max: BASES_MAX }
    }
}

/// Changes are counted in these, bytes.
const WORD: usize = 8;

/// XORs `with` into `content`. The number of bytes in words that were not equal.
fn xor(content: &mut [u8], with: &[u8]) -> usize {
    let mut changed = 0;
    for (word, other) in content.chunks_exact_mut(WORD).zip(with.chunks_exact(WORD)) {
        let whole = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("a word"));
        let difference = whole(word) ^ whole(other);
        word.copy_from_slice(&difference.to_ne_bytes());
        changed += usize::from(difference != 0);
    }
    changed * WORD
}

fn forget(pages: &mut Pages, space: Space, range: PageRange) {
    let of_range: Vec<_> = pages.range((space, range.first)..(space, range.end())).map(|(key, _)| *key).collect();
    of_range.iter().for_each(|key| drop(pages.remove(key)));
}

impl Bases {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Source: something was said of pages without their content.
    pub fn noted(&self, run: Run) {
        forget(&mut self.lock(), run.space, run.range);
    }

    /// Source: adds the content of consecutive pages to a frame, as deltas where that is possible.
    /// `shelve`: it is kept there besides ([`super::shelf`]).
    pub fn pack(&self, packer: &mut Packer, space: Space, first: u64, content: &mut [u8], shelve: bool) {
        let runs: Vec<_> = zero::runs(content).collect();
        for (is_zero, places) in runs {
            let range = PageRange::new(first + places.start as u64, places.len() as u64);
            if is_zero {
                forget(&mut self.lock(), space, range);
                packer.note(Run::new(space, range, What::Zero));
                continue;
            }
            let content = &mut content[places.start * PAGE_BYTES..places.end * PAGE_BYTES];
            let kinds = self.encode(space, range.first, content);
            let mut at = 0;
            for same in kinds.chunk_by(|a, b| a == b) {
                let range = PageRange::new(range.first + at as u64, same.len() as u64);
                let part = &content[at * PAGE_BYTES..][..same.len() * PAGE_BYTES];
                packer.content(Run { shelve, ..Run::new(space, range, same[0]) }, part);
                at += same.len();
            }
        }
    }

    /// Makes deltas of those pages that have a base, in place; says what became of each.
    fn encode(&self, space: Space, first: u64, content: &mut [u8]) -> Vec<What> {
        let mut pages = self.lock();
        let mut kinds = Vec::with_capacity(content.len() / PAGE_BYTES);
        for (page, content) in (first..).zip(content.chunks_exact_mut(PAGE_BYTES)) {
            let room = pages.len() < self.max;
            let kind = match pages.get_mut(&(space, page)) {
                Some(base) => {
                    let changed = xor(content, base);
                    // The base becomes the new content: old ^ (old ^ new).
                    xor(base, content);
                    if changed <= CHANGED_MAX {
                        What::Delta
                    } else {
                        content.copy_from_slice(base);
                        What::Keep
                    }
                }
                None if room => {
                    pages.insert((space, page), (&*content).into());
                    What::Keep
                }
                None => What::Data,
            };
            kinds.push(kind);
        }
        kinds
    }

    /// Destination: what a run that has come says, with content that is whole.
    ///
    /// # Errors
    /// A delta of a page without a base, or more bases than there may be: the other side does not keep to the rules.
    pub fn take<'c>(&self, run: Run, content: &'c [u8]) -> Result<(Run, Cow<'c, [u8]>), MoveError> {
        let lie = |reason: String| MoveError::Frame { reason };
        let mut pages = self.lock();
        match run.what {
            What::Data | What::Zero | What::Hole | What::Inherit | What::Named => {
                forget(&mut pages, run.space, run.range);
                return Ok((run, Cow::Borrowed(content)));
            }
            What::Keep => {
                for (page, content) in (run.range.first..).zip(content.chunks_exact(PAGE_BYTES)) {
                    pages.insert((run.space, page), content.into());
                }
                if pages.len() > self.max {
                    return Err(lie(format!("more than {} pages are to be kept for deltas", self.max)));
                }
                return Ok((Run { what: What::Data, ..run }, Cow::Borrowed(content)));
            }
            What::Delta => {}
        }
        let mut whole = content.to_vec();
        for (page, content) in (run.range.first..).zip(whole.chunks_exact_mut(PAGE_BYTES)) {
            let Some(base) = pages.get_mut(&(run.space, page)) else {
                return Err(lie(format!("a delta of page {page} of {}, of which nothing is known", run.space)));
            };
            xor(content, base);
            base.copy_from_slice(content);
        }
        Ok((Run { what: What::Data, ..run }, Cow::Owned(whole)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MmId;
    use crate::migration::pages::unpack;
    use proptest::prelude::*;

    const SPACE: Space = Space::Mm(MmId(1));

    fn page(fill: u8, changed: usize) -> Vec<u8> {
        let mut page = vec![fill; PAGE_BYTES];
        page[..changed].iter_mut().zip(0u32..).for_each(|(byte, n)| *byte = (n * 7 + 1) as u8);
        page
    }

    /// Sends pages from one side to the other. What arrived, and of which kind it was.
    fn send(from: &Bases, to: &Bases, pages: &[(u64, Vec<u8>)]) -> Vec<(u64, Vec<u8>, What)> {
        let mut packer = Packer::new(Some(1));
        for (first, content) in pages {
            from.pack(&mut packer, SPACE, *first, &mut content.clone(), false);
        }
        let mut came = Vec::new();
        unpack(packer.take(), &mut Vec::new(), &mut |run, content| {
            let (now, whole) = to.take(run, content).unwrap();
            for n in 0..run.range.count as usize {
                let content = match now.what {
                    What::Zero => vec![0; PAGE_BYTES],
                    _ => whole[n * PAGE_BYTES..][..PAGE_BYTES].to_vec(),
                };
                came.push((run.range.first + n as u64, content, run.what));
            }
        })
        .unwrap();
        came
    }

    #[test]
    fn what_changed_little_travels_as_a_delta() {
        let (from, to) = (Bases::default(), Bases::default());
        let kinds =
            |sent: &[(u64, Vec<u8>)]| send(&from, &to, sent).into_iter().map(|(.., what)| what).collect::<Vec<_>>();
        assert_eq!(kinds(&[(5, page(1, 0))]), [What::Keep]);
        assert_eq!(kinds(&[(5, page(1, 8))]), [What::Delta]);
        assert_eq!(kinds(&[(5, page(9, 0))]), [What::Keep], "everything is different");
        assert_eq!(kinds(&[(5, vec![0; PAGE_BYTES])]), [What::Zero]);
        assert_eq!(kinds(&[(5, page(9, 0))]), [What::Keep], "a zero page is no base");
        from.noted(Run::new(SPACE, PageRange::new(0, 10), What::Hole));
        assert_eq!(kinds(&[(5, page(9, 1))]), [What::Keep], "nor is a hole");
    }

    #[test]
    fn bases_are_limited_on_both_sides() {
        let (from, to) = (Bases { max: 2, ..Bases::default() }, Bases { max: 2, ..Bases::default() });
        let sent: Vec<_> = (0..3).map(|n| (n, page(1, 0))).collect();
        let kinds: Vec<_> = send(&from, &to, &sent).into_iter().map(|(.., what)| what).collect();
        assert_eq!(kinds, [What::Keep, What::Keep, What::Data]);
        let content = [page(1, 0), page(1, 0), page(1, 0)].concat();
        let greedy = Run::new(SPACE, PageRange::new(7, 3), What::Keep);
        assert!(to.take(greedy, &content).unwrap_err().to_string().contains("more than 2 pages"));
    }

    #[test]
    fn a_delta_of_nothing_is_refused() {
        let run = Run::new(SPACE, PageRange::new(7, 1), What::Delta);
        let error = Bases::default().take(run, &page(1, 0)).unwrap_err().to_string();
        assert!(error.contains("of which nothing is known"), "{error}");
    }

    proptest! {
        /// Whatever is sent, in whatever order, arrives.
        #[test]
        fn what_is_sent_arrives(
            rounds in proptest::collection::vec(
                proptest::collection::btree_map(0u64..12, (0u8..3, 0usize..PAGE_BYTES), 0..12), 0..12),
            max in 0usize..12,
            gone in proptest::collection::vec((0u64..12, 1u64..12), 12),
        ) {
            let (from, to) = (Bases { max, ..Bases::default() }, Bases { max, ..Bases::default() });
            for (round, (first, count)) in rounds.iter().zip(gone) {
                let sent: Vec<_> = round.iter().map(|(n, (fill, changed))| (*n, page(*fill, *changed))).collect();
                let came: Vec<_> = send(&from, &to, &sent).into_iter().map(|(n, content, _)| (n, content)).collect();
                prop_assert_eq!(came, sent);
                let run = Run::new(SPACE, PageRange::new(first, count), What::Hole);
                from.noted(run);
                to.take(run, &[]).unwrap();
            }
        }
    }
}
