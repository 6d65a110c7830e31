use super::*;
use crate::image::ShmemId;
use crate::memory::pipeline::{PageError, ReadPages};
use crate::migration::source::Again;
use crate::transport::stream::Stream;
use crate::transport::wait::{Abort, Patience};
use proptest::prelude::*;
use std::time::Duration;

const OWN: Space = Space::Mm(MmId(0));

pub(super) fn pair() -> (Channel, Channel) {
    let (a, b) = Stream::pair().unwrap();
    let patience = Patience { abort: Abort::new().unwrap(), silence: Duration::from_secs(5), deadline: None };
    (Channel::new(a, "b", patience.clone()), Channel::new(b, "a", patience))
}

fn some_pages() -> impl Strategy<Value = Later> {
    let set = prop::collection::vec((0u64..1 << 36, 1u64..50), 1..20);
    prop::collection::btree_map((any::<bool>(), 0u32..50), set, 0..6).prop_map(|all| {
        let set = |ranges: Vec<(u64, u64)>| ranges.into_iter().map(|(f, c)| PageRange::new(f, c)).collect();
        let space = |(shared, id)| if shared { Space::Shmem(ShmemId(id)) } else { Space::Mm(MmId(id)) };
        let mut later: Later = all.into_iter().map(|(of, ranges)| (space(of), set(ranges))).collect();
        later.sort_by_key(|(space, _)| *space);
        later
    })
}

proptest! {
    #[test]
    fn lists_are_read_as_written(later in some_pages()) {
        prop_assert_eq!(decode(&encode(&later), "x").unwrap(), later.clone());
        let missing: BTreeMap<Space, RangeSet> = later.into_iter().collect();
        let (mut a, mut b) = pair();
        send_missing(&mut a, &missing).unwrap();
        prop_assert_eq!(receive_missing(&mut b).unwrap(), missing);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, "x");
        let _ = read_wanted(&bytes, "x");
    }
}

#[test]
fn pages_that_do_not_exist_are_refused() {
    let beyond = vec![(OWN, [PageRange::new(limits::PAGE_NUMBERS - 1, 2)].into_iter().collect())];
    assert!(decode(&encode(&beyond), "x").is_err());
    assert!(decode(&encode(&vec![(OWN, [PageRange::new(7, 1)].into_iter().collect())])[1..], "x").is_err());
    let unknown = Entry { kind: U32::new(2), ..entry(OWN, PageRange::new(0, 1), 0) };
    assert!(decode(unknown.as_bytes(), "x").is_err());
}

#[test]
fn faults_are_read_as_written() {
    let (mut a, mut b) = pair();
    let space = Space::Shmem(ShmemId(3));
    let fault = |page, thread| Fault { space, page, count: 1 + page % PIECE_MAX, thread };
    let faults: Vec<Fault> = (0..5000).map(|n| fault(n, n as u32 + 1)).collect();
    send_wanted(&mut a, &faults).unwrap();
    let mut read = Vec::new();
    while read.len() < faults.len() {
        let body = b.expect(FrameKind::WANTED, "faults").unwrap();
        read.extend(read_wanted(body, "a").unwrap().faults);
    }
    assert_eq!(read, faults);
    let soon: RangeSet = [PageRange::new(5, 1000), PageRange::new(2000, 3)].into_iter().collect();
    send_soon(&mut a, space, &soon).unwrap();
    let read = read_wanted(b.expect(FrameKind::WANTED, "pages").unwrap(), "a").unwrap();
    assert_eq!(read, Wanted { faults: Vec::new(), soon: soon.iter().map(|range| (space, range)).collect() });
}

/// Every page has its number in it.
struct Numbered;

impl ReadPages for Numbered {
    fn read(&self, _: Space, ranges: &[PageRange], buf: &mut [u8]) -> std::result::Result<(), PageError> {
        let pages = ranges.iter().flat_map(|range| range.first..range.end());
        for (page, content) in pages.zip(buf.chunks_exact_mut(4096)) {
            content[..8].copy_from_slice(&(page + 1).to_le_bytes());
        }
        Ok(())
    }
}

/// Reads frames of pages until there are as many as wanted.
fn take(channel: &mut Channel, got: &mut Vec<u64>, until: impl Fn(&[u64]) -> bool) {
    while !until(got) {
        let frame = channel.receive().unwrap();
        assert_eq!(frame.kind, FrameKind::PAGES);
        let mut buffer = Vec::new();
        crate::migration::pages::unpack(frame.body, &mut buffer, &mut |run, content| {
            let pages = (run.range.first..run.range.end()).zip(content.chunks_exact(4096));
            for (page, content) in pages {
                assert_eq!(content[..8], (page + 1).to_le_bytes());
                got.push(page);
            }
        })
        .unwrap();
    }
}

#[test]
fn what_is_missing_is_served_once_also_over_a_second_pair_of_links() {
    use crossbeam_channel::unbounded;
    let (give, links) = unbounded();
    let again = |_: crate::migration::handover::Candidate, _: Option<&crate::transport::Abort>| {
        Ok(links.recv_timeout(Duration::from_secs(5)).expect("there is a link in time"))
    };
    let link = || {
        let (ours, theirs) = crate::migration::tests::links(0, None);
        give.send(ours).unwrap();
        theirs.control
    };
    let attempt = AttemptId([7; 16]);
    let serving = serving::Serving::new(attempt, None).unwrap();
    let owed = |range| [(Space::Mm(MmId(0)), [range].into_iter().collect::<RangeSet>())].into_iter().collect();
    std::thread::scope(|scope| {
        scope.spawn(|| serving.run(Again::new(&again), &Numbered));
        let mut urgent = link();
        let hello: crate::migration::protocol::FromSource = crate::migration::protocol::receive(&mut urgent).unwrap();
        assert_eq!(hello, crate::migration::protocol::FromSource::Pages { attempt, urgent: true });
        send_missing(&mut urgent, &owed(PageRange::new(100, 400))).unwrap();
        let mut bulk = link();
        bulk.expect(FrameKind::MESSAGE, "what it is for").unwrap();
        let mut got = Vec::new();
        take(&mut bulk, &mut got, |got| got.len() > 100);
        // Both are lost; of what is missing by then all comes, once.
        drop((urgent, bulk));
        let mut urgent = link();
        urgent.expect(FrameKind::MESSAGE, "what it is for").unwrap();
        send_missing(&mut urgent, &owed(PageRange::new(300, 200))).unwrap();
        let mut bulk = link();
        bulk.expect(FrameKind::MESSAGE, "what it is for").unwrap();
        let mut got = Vec::new();
        take(&mut bulk, &mut got, |got| got.len() == 200);
        got.sort_unstable();
        assert_eq!(got, (300..500).collect::<Vec<_>>());
        urgent.send(FrameKind::MARK, &[]).unwrap();
        urgent.expect(FrameKind::MARK, "the last word").unwrap();
        assert!(serving.wait(&|| true, &|_| ()).is_ok());
        serving.stop();
    });
}
