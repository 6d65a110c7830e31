use super::*;
use crate::image::MmId;
use crate::migration::pages::unpack;
use crate::transport::wait::Abort;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const SPACE: Space = Space::Mm(MmId(1));

fn page(fill: u16) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    page[..2].copy_from_slice(&fill.to_le_bytes());
    page
}

fn patience(silence: Duration) -> Patience {
    Patience { abort: Abort::new().unwrap(), silence, deadline: None }
}

fn named(pages: &[Vec<u8>]) -> (Run, Vec<u8>) {
    let digests: Vec<Digest> = pages.iter().map(|page| digest(page)).collect();
    (Run::new(SPACE, PageRange::new(7, pages.len() as u64), What::Named), digests.as_flattened().to_vec())
}

fn fetch(shelf: &Shelf, pages: &[Vec<u8>], patience: &Patience) -> Result<Vec<u8>, MoveError> {
    let (run, digests) = named(pages);
    let mut came = Vec::new();
    shelf.fetch(run, &digests, &mut Fetching::of(patience), &mut |piece, content| {
        assert_eq!((piece.what, piece.range.bytes() as usize), (What::Data, content.len()));
        came.extend_from_slice(content);
        Ok(())
    })?;
    Ok(came)
}

/// Both sides, with frames that are on their way.
struct Pair {
    catalogue: Catalogue,
    shelf: Shelf,
    bases: Option<(Bases, Bases)>,
    memory: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Pair {
    fn new(max: usize, channels: usize, deltas: bool) -> Self {
        Self {
            catalogue: Catalogue::new(max, channels),
            shelf: Shelf { max, ..Shelf::of(0) },
            bases: deltas.then(Default::default),
            memory: Mutex::default(),
        }
    }

    fn pack(&self, channel: usize, packer: &mut Packer, first: u64, content: &[u8], first_round: bool) {
        let bases = self.bases.as_ref().map(|(ours, _)| ours);
        let turn = if first_round { Turn::First } else { Turn::Later };
        let aside = self.catalogue.pack(channel, packer, (SPACE, first), &mut content.to_vec(), bases, turn);
        assert!(aside.is_empty(), "nobody else sends anything");
    }

    /// Takes a frame as a store does. What each page was said to be.
    fn arrive(&self, frame: &[u8], patience: &Patience) -> Vec<What> {
        let (mut kinds, none) = (Vec::new(), Bases::default());
        let bases = self.bases.as_ref().map_or(&none, |(_, theirs)| theirs);
        let mut place = |run: Run, content: &[u8]| {
            let (run, content) = bases.take(run, content)?;
            if run.shelve {
                self.shelf.keep(&content)?;
            }
            for n in 0..run.range.count as usize {
                let zero = run.what == What::Zero;
                let page = if zero { page(0) } else { content[n * PAGE_BYTES..][..PAGE_BYTES].to_vec() };
                self.memory.lock().unwrap().insert(run.range.first + n as u64, page);
            }
            Ok(())
        };
        unpack(frame, &mut Vec::new(), &mut |run, content| {
            kinds.extend((0..run.range.count).map(|_| run.what));
            match run.what {
                What::Named => self.shelf.fetch(run, content, &mut Fetching::of(patience), &mut place).unwrap(),
                _ => place(run, content).unwrap(),
            }
        })
        .unwrap();
        kinds
    }
}

#[test]
fn what_was_sent_is_named_wherever_it_occurs() {
    let pair = Pair::new(100, 1, false);
    let _open = pair.shelf.open(1);
    let patience = patience(Duration::from_secs(5));
    let mut packer = Packer::new(None);
    pair.pack(0, &mut packer, 10, &[page(1), page(2), page(1), page(0), page(2)].concat(), true);
    assert_eq!(packer.unsent(), crate::migration::pages::Unsent { zero: 1, named: 2 });
    let kinds = pair.arrive(packer.take(), &patience);
    assert_eq!(kinds, [What::Data, What::Data, What::Named, What::Zero, What::Named]);
    pair.catalogue.frame_sent(0);
    // What lay there is overwritten; the content is named all the same.
    pair.pack(0, &mut packer, 10, &[page(2), page(1)].concat(), false);
    pair.pack(0, &mut packer, 90, &page(1), false);
    assert_eq!(pair.arrive(packer.take(), &patience), [What::Named; 3]);
    let wanted = [(10, 2), (11, 1), (12, 1), (13, 0), (14, 2), (90, 1)].map(|(n, fill)| (n, page(fill)));
    assert_eq!(*pair.memory.lock().unwrap(), wanted.into());
}

#[test]
fn a_full_shelf_is_for_what_comes_again() {
    let pair = Pair::new(4, 1, false);
    let mut packer = Packer::new(None);
    let mut kinds = |fills: &[u16], first_round: bool| {
        let content: Vec<u8> = fills.iter().flat_map(|fill| page(*fill)).collect();
        pair.pack(0, &mut packer, 0, &content, first_round);
        let mut found = Vec::new();
        unpack(packer.take(), &mut Vec::new(), &mut |run, _| {
            found.extend((0..run.range.count).map(|_| (run.what, run.shelve)));
        })
        .unwrap();
        found
    };
    let (kept, sent, named) = ((What::Data, true), (What::Data, false), (What::Named, false));
    assert_eq!(kinds(&[1, 2, 3], true), [kept, kept, sent], "half of it is taken");
    assert_eq!(kinds(&[3, 3, 4], false), [kept, named, sent]);
    assert_eq!(kinds(&[4, 4, 5, 5, 5], false), [kept, named, sent, sent, sent], "and now all of it");
    let (nothing, mut packer) = (Pair::new(0, 1, false), Packer::new(None));
    nothing.pack(0, &mut packer, 0, &[page(1), page(1), page(1)].concat(), true);
    assert_eq!(packer.unsent().named, 0, "a destination that keeps nothing is told no digests");
}

#[test]
fn what_another_channel_has_not_sent_is_not_named() {
    let pair = Pair::new(100, 2, false);
    let (mut a, mut b) = (Packer::new(None), Packer::new(None));
    pair.pack(0, &mut a, 0, &page(1), true);
    pair.pack(1, &mut b, 1, &page(1), true);
    assert_eq!(b.unsent().named, 0);
    a.take();
    pair.catalogue.frame_sent(0);
    pair.pack(1, &mut b, 2, &page(1), true);
    assert_eq!(b.unsent().named, 1);
}

#[test]
fn content_of_another_channel_is_waited_for() {
    let shelf = Arc::new(Shelf::of(1 << 20));
    let mut open = shelf.open(2);
    let _mine = open.pop();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| fetch(&shelf, &[page(3), page(4)], &patience(Duration::from_secs(60))));
        while shelf.lock().wanted.is_empty() {
            std::thread::yield_now();
        }
        shelf.keep(&page(4)).unwrap();
        shelf.keep(&page(3)).unwrap();
        assert!(waits.join().unwrap().unwrap() == [page(3), page(4)].concat());
    });
    assert!(shelf.lock().wanted.is_empty());
}

#[test]
fn nobody_waits_for_what_cannot_come() {
    let long = patience(Duration::from_secs(600));
    let unknown = |result: Result<Vec<u8>, MoveError>| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("page 7 of") && error.contains("nothing is known"), "{error}");
    };
    let shelf = Shelf::of(1 << 20);
    let alone = shelf.open(1);
    unknown(fetch(&shelf, &[page(1)], &long));
    drop(alone);
    // Two that wait for each other: one finds out, and ends the wait of the other.
    let _open = shelf.open(2);
    let ask = |fill| {
        let result = fetch(&shelf, &[page(fill)], &long);
        long.abort.trigger();
        result.unwrap_err().to_string()
    };
    let said = std::thread::scope(|scope| {
        let other = scope.spawn(|| ask(1));
        [ask(2), other.join().unwrap()]
    });
    assert!(said.iter().any(|error| error.contains("nothing is known")), "{said:?}");
    // Somebody may still bring it, but does not.
    unknown(fetch(&shelf, &[page(1)], &patience(Duration::from_millis(120))));
}

#[test]
fn an_aborted_wait_ends() {
    let shelf = Shelf::of(1 << 20);
    let _open = shelf.open(2);
    let patience = patience(Duration::from_secs(600));
    patience.abort.trigger();
    let error = fetch(&shelf, &[page(1)], &patience).unwrap_err();
    assert!(matches!(error, MoveError::Transport(TransportError::Aborted { .. })), "{error}");
}

#[test]
fn no_more_is_kept_than_was_agreed() {
    let shelf = Shelf::of(2 * PAGE);
    assert_eq!(shelf.max(), 2);
    shelf.keep(&[page(1), page(2), page(1)].concat()).unwrap();
    let error = shelf.keep(&page(3)).unwrap_err().to_string();
    assert!(error.contains("more than 2 pages"), "{error}");
    assert_eq!(Shelf::of(u64::MAX).max(), SHELF_MAX);
}

#[test]
fn a_page_that_rots_on_the_shelf_is_not_placed() {
    let shelf = Shelf::of(1 << 20);
    shelf.keep(&page(1)).unwrap();
    shelf.lock().pages.get_mut(&digest(&page(1))).unwrap()[100] ^= 1;
    let error = fetch(&shelf, &[page(1)], &patience(Duration::from_secs(1))).unwrap_err().to_string();
    assert!(error.contains("no longer has"), "{error}");
}

proptest! {
    /// Whatever is written where, over channels whose frames are read in any order that keeps each channel's own: it arrives.
    #[test]
    fn what_is_named_is_what_was_meant(
        rounds in proptest::collection::vec(
            proptest::collection::btree_map(0u64..40, 0u16..12, 0..30), 1..6),
        max in 0usize..12,
        deltas in any::<bool>(),
        order in proptest::collection::vec(any::<bool>(), 60),
        frames in proptest::collection::vec(1usize..6, 1..10),
    ) {
        let pair = Pair::new(max, 2, deltas);
        let patience = patience(Duration::from_secs(600));
        let (mut truth, mut order) = (BTreeMap::new(), order.into_iter().cycle());
        for (number, round) in rounds.into_iter().enumerate() {
            let mut ways = [Packer::new(None), Packer::new(Some(1))];
            let mut sent: [Vec<Vec<u8>>; 2] = Default::default();
            let (mut lengths, mut now) = (frames.iter().cycle(), 0);
            let mut left = *lengths.next().unwrap();
            for (at, fill) in round {
                pair.pack(now, &mut ways[now], at, &page(fill), number == 0);
                truth.insert(at, page(fill));
                left -= 1;
                if left == 0 {
                    sent[now].push(ways[now].take().to_vec());
                    pair.catalogue.frame_sent(now);
                    (now, left) = (usize::from(order.next().unwrap()), *lengths.next().unwrap());
                }
            }
            for n in [0, 1] {
                sent[n].push(ways[n].take().to_vec());
                pair.catalogue.frame_sent(n);
            }
            // One thread for each channel: what is waited for comes, whoever is ahead.
            std::thread::scope(|scope| {
                for (frames, open) in sent.iter().zip(pair.shelf.open(2)) {
                    let (pair, patience) = (&pair, &patience);
                    scope.spawn(move || {
                        let _open = open;
                        frames.iter().for_each(|frame| drop(pair.arrive(frame, patience)));
                    });
                }
            });
        }
        prop_assert_eq!(pair.memory.into_inner().unwrap(), truth);
    }

    #[test]
    fn any_digests_are_found_or_refused(bytes in proptest::collection::vec(any::<u8>(), 1..5), kept in 0u16..3) {
        let shelf = Shelf::of(1 << 20);
        let _open = shelf.open(1);
        (0..kept).for_each(|fill| shelf.keep(&page(fill + 1)).unwrap());
        let pages: Vec<_> = bytes.iter().map(|byte| page(u16::from(*byte) % 5 + 1)).collect();
        let is_there = pages.iter().all(|wanted| (0..kept).any(|fill| *wanted == page(fill + 1)));
        match fetch(&shelf, &pages, &patience(Duration::from_secs(600))) {
            Ok(came) => prop_assert!(is_there && came == pages.concat()),
            Err(_) => prop_assert!(!is_there),
        }
    }
}

#[test]
fn pages_of_an_image_are_asked_for_in_its_order() {
    let place = tempfile::tempdir().unwrap();
    let pages: Vec<Vec<u8>> = (1..=640).map(page).collect();
    let (_store, path) = earlier::tests::image_of(place.path(), &pages.concat());
    let mut shelf = Shelf::of(0);
    shelf.add_earlier(Earlier::open(&path).unwrap());
    // Each batch has pages of all ten frames, in turn.
    let mixed: Vec<Vec<u8>> = (0..64).flat_map(|n| pages[n..].iter().step_by(64).cloned()).collect();
    let (run, digests) = named(&mixed);
    let mut fetching = Fetching::of(&patience(Duration::from_secs(5)));
    let mut came = Vec::new();
    let each = &mut |_: Run, content: &[u8]| {
        came.extend_from_slice(content);
        Ok(())
    };
    shelf.fetch(run, &digests, &mut fetching, each).unwrap();
    assert!(came == mixed.concat(), "each content is where its digest was");
    let read = fetching.scratch.frames_read();
    assert!(read <= 5 * 10, "{read} frames were unpacked for 640 pages in five batches");
}
