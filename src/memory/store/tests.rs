//! Page stores as a whole: written, read back, chained, damaged.

use super::*;
use crate::image::{
    MmId, ShmemId,
    manifest::{HostSummary, Kind, pages_file},
    mm::PAGE,
};
use crate::memory::PageBuffer;
use crate::memory::pipeline::{
    Against, PageError, ReadPages, WritePages, dump_changed_pages, dump_pages, load_pages, verify_pages,
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

const A: Space = Space::Mm(MmId(0));
const B: Space = Space::Mm(MmId(1));
const S: Space = Space::Shmem(ShmemId(0));

fn draft() -> Draft {
    Draft { kind: Kind::Memory, host: HostSummary::default(), tree: vec![], restore: Default::default() }
}

/// A page with content that tells it from every other.
fn page(seed: u64) -> Vec<u8> {
    (0..PAGE / 8)
        .flat_map(|n| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(seed | 1)).to_le_bytes())
        .collect()
}

/// Memory as the tests see it.
#[derive(Default, Debug)]
struct Memory(Mutex<BTreeMap<(Space, u64), Vec<u8>>>);

impl Memory {
    fn set(&self, space: Space, number: u64, content: Vec<u8>) {
        self.0.lock().unwrap().insert((space, number), content);
    }

    fn plan(&self) -> Vec<(Space, PageRange)> {
        self.0.lock().unwrap().keys().map(|(s, n)| (*s, PageRange::new(*n, 1))).collect()
    }

    fn pages(&self) -> BTreeMap<(Space, u64), Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

impl ReadPages for Memory {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        let pages = self.0.lock().unwrap();
        let numbers = ranges.iter().flat_map(|r| r.first..r.end());
        for (number, into) in numbers.zip(buf.chunks_exact_mut(PAGE as usize)) {
            let missing = PageError { page: number, source: std::io::Error::from_raw_os_error(14) };
            into.copy_from_slice(pages.get(&(space, number)).ok_or(missing)?);
        }
        Ok(())
    }
}

impl WritePages for Memory {
    fn write(&self, space: Space, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError> {
        let numbers = ranges.iter().flat_map(|r| r.first..r.end());
        for (number, content) in numbers.zip(data.chunks_exact(PAGE as usize)) {
            self.set(space, number, content.to_vec());
        }
        Ok(())
    }

    fn zero(&self, space: Space, range: PageRange) -> Result<(), PageError> {
        for number in range.first..range.end() {
            self.set(space, number, vec![0; PAGE as usize]);
        }
        Ok(())
    }
}

fn loaded(dir: &Path) -> BTreeMap<(Space, u64), Vec<u8>> {
    let reader = PageReader::open(dir).unwrap();
    let memory = Memory::default();
    for space in reader.spaces().collect::<Vec<_>>() {
        let runs = reader.contents_in(space, PageRange::new(0, 1 << 40)).unwrap();
        load_pages(&reader, &runs, &memory, 3, &|_| ()).unwrap();
    }
    memory.pages()
}

fn dumped(dir: &Path, memory: &Memory, compression: Compression) {
    let image = ImageWriter::create(dir, false).unwrap();
    let pages = image.pages(PageOptions { compression, parent: None });
    dump_pages(memory, &memory.plan(), &pages, 3, &|_| ()).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();
}

fn sample() -> Memory {
    let memory = Memory::default();
    for n in 0..3000 {
        memory.set(A, 100 + n, if n % 50 == 7 { vec![0; PAGE as usize] } else { page(n) });
    }
    for n in (0..600).step_by(2) {
        memory.set(B, 7 + n, page(10_000 + n));
        memory.set(S, n, b"abcdefgh".repeat(512));
    }
    memory
}

#[test]
fn what_goes_in_comes_out() {
    let at = tempfile::tempdir().unwrap();
    let memory = sample();
    for (name, compression) in [("raw", Compression::Off), ("auto", Compression::Auto), ("zstd", Compression::Zstd(1))]
    {
        let dir = at.path().join(name);
        dumped(&dir, &memory, compression);
        assert_eq!(loaded(&dir), memory.pages(), "{name}");
        let summary = ImageDir::open(&dir).unwrap().manifest().pages;
        assert_eq!((summary.data, summary.zero), (2940 + 600, 60), "{name}");
    }
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 3, "no temporary directories are left");
    // Memory has secrets in it.
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&at.path().join("raw")), 0o700);
    for file in std::fs::read_dir(at.path().join("raw")).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

#[test]
fn raw_neighbours_come_as_one_run() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("image");
    let image = ImageWriter::create(&dir, false).unwrap();
    let pages = image.pages(PageOptions::default());
    let content: Vec<u8> = (0..500).flat_map(page).collect();
    pages.write_run(A, 1000, &content).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();
    let reader = PageReader::open(&dir).unwrap();
    let runs = reader.runs(A).unwrap();
    assert_eq!(runs.len(), 1);
    let mut scratch = Scratch::default();
    let mut all = vec![0; content.len()];
    reader.read_into(&runs[0], &mut all, &mut scratch).unwrap();
    assert!(all == content);
    for (first, count) in [(0u64, 1u64), (63, 2), (64, 64), (130, 301), (499, 1)] {
        let part = runs[0].cut(PageRange::new(1000 + first, count), &reader);
        let mut buf = vec![0; part.range.bytes() as usize];
        reader.read_into(&part, &mut buf, &mut scratch).unwrap();
        assert!(buf == content[(first * PAGE) as usize..][..buf.len()], "{first} {count}");
        assert_eq!(reader.runs_in(A, part.range).unwrap(), [part]);
    }
}

#[test]
fn a_part_of_a_damaged_frame_is_refused() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = at.path().join("image");
    let memory = sample();
    dumped(&dir, &memory, Compression::Off);
    assert_eq!(loaded(&dir), memory.pages());
    // A run that begins within a frame has that frame checked as a whole.
    let path = dir.join(pages_file(0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let reader = PageReader::open(&dir).unwrap();
    let first = |run: &ResolvedRun| matches!(run.source, Source::Data { frame: 0, page: 1.., .. });
    let runs: Vec<_> = [A, B, S].into_iter().flat_map(|space| reader.runs(space).unwrap()).collect();
    let behind = runs.iter().find(|run| first(run)).expect("the first frame holds more than one run");
    let behind = behind.cut(PageRange::new(behind.range.first, 1), &reader);
    let mut buf = vec![0; PAGE as usize];
    assert!(reader.read_into(&behind, &mut buf, &mut Scratch::default()).is_err());
}

#[test]
fn a_frame_is_given_as_a_whole_and_every_page_once() {
    use crate::memory::lazy::{Fault, Order, Source, StoreSource};
    for compression in [Compression::Off, Compression::Zstd(1)] {
        let dir = tempfile::tempdir().unwrap();
        let (image, memory) = (dir.path().join("image"), sample());
        dumped(&image, &memory, compression);
        let reader = PageReader::open(&image).unwrap();
        let mut owed: BTreeMap<Space, crate::memory::RangeSet> = BTreeMap::new();
        let content: BTreeMap<_, _> =
            memory.pages().into_iter().filter(|(_, page)| page.iter().any(|b| *b != 0)).collect();
        content.keys().for_each(|(space, n)| owed.entry(*space).or_default().insert(PageRange::new(*n, 1)));
        let ranges: usize = owed.values().map(|set| set.ranges().len()).sum();
        let frames = reader.frames().count();
        let mut source = StoreSource::new(reader, Order::new(owed));
        let (mut came, mut data, mut arrivals, mut waits) = (BTreeMap::new(), PageBuffer::default(), 0, 0);
        while came.len() < content.len() {
            // Somebody waits in the middle of what has not come, now and then.
            let wanted = (arrivals % 7 == 0).then(|| content.keys().nth(arrivals * 131 % content.len())).flatten();
            let wanted = wanted.filter(|place| !came.contains_key(*place) && place.0 == A);
            if let Some(&(space, page)) = wanted {
                source.want(Fault { space, page, count: 1, thread: 1 });
                waits += 1;
            }
            let (space, range) = source.next(&mut data).unwrap().unwrap();
            assert_eq!(data.len() as u64, range.bytes());
            for (n, page) in (range.first..range.end()).zip(data.chunks_exact(PAGE as usize)) {
                assert!(came.insert((space, n), page.to_vec()).is_none(), "{space} {n} twice");
            }
            arrivals += 1;
        }
        assert_eq!(came, content);
        assert!(
            waits > 0 && arrivals <= ranges + frames + 3 * waits,
            "{arrivals} of {ranges} and {frames}, {waits} waits"
        );
    }
}

#[test]
fn later_rounds_win() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("image");
    let image = ImageWriter::create(&dir, false).unwrap();
    let pages = image.pages(PageOptions::default());
    let round: Vec<u8> = (0..200).flat_map(page).collect();
    pages.write_run(A, 0, &round).unwrap();
    pages.write_run(A, 17, &page(9000)).unwrap();
    pages.write_run(A, 64, &vec![0; 2 * PAGE as usize]).unwrap();
    pages.mark(A, PageRange::new(190, 50), Mark::Hole);
    pages.write_run(A, 195, &page(9001)).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();
    let mut want: BTreeMap<_, _> = (0..190).map(|n| ((A, n), page(n))).collect();
    want.insert((A, 17), page(9000));
    want.insert((A, 64), vec![0; PAGE as usize]);
    want.insert((A, 65), vec![0; PAGE as usize]);
    want.insert((A, 195), page(9001));
    assert_eq!(loaded(&dir), want);
}

#[test]
fn parents_are_found_through_a_chain() {
    let at = tempfile::tempdir().unwrap();
    let [first, second, third] = ["1", "2", "3"].map(|n| at.path().join(n));
    let image = ImageWriter::create(&first, false).unwrap();
    let pages = image.pages(PageOptions::default());
    let content: Vec<u8> = (0..100).flat_map(page).collect();
    pages.space(B, SpaceInfo { identity: [5, 6], ..SpaceInfo::default() });
    pages.write_run(B, 0, &content).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();

    // The address space has another number in the next image: it is found by its identity.
    let parent = Arc::new(PageReader::open(&first).unwrap());
    let known = parent.by_identity([5, 6]);
    assert_eq!((known, parent.by_identity([0, 0])), (Some(B), None));
    let mut image = ImageWriter::create(&second, false).unwrap();
    image.set_parent(&ImageDir::open(&first).unwrap()).unwrap();
    let pages = image.pages(PageOptions { parent: Some(parent), ..PageOptions::default() });
    pages.space(A, SpaceInfo { identity: [5, 6], parent: known, cow_parent: None });
    pages.mark(A, PageRange::new(0, 100), Mark::Parent);
    pages.write_run(A, 50, &page(777)).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();

    let mut image = ImageWriter::create(&third, false).unwrap();
    image.set_parent(&ImageDir::open(&second).unwrap()).unwrap();
    let parent = Some(Arc::new(PageReader::open(&second).unwrap()));
    let pages = image.pages(PageOptions { parent, ..PageOptions::default() });
    pages.space(A, SpaceInfo { parent: Some(A), ..SpaceInfo::default() });
    pages.space(B, SpaceInfo { cow_parent: Some(MmId(0)), ..SpaceInfo::default() });
    pages.mark(A, PageRange::new(10, 90), Mark::Parent);
    pages.write_run(A, 11, &vec![0; PAGE as usize]).unwrap();
    pages.mark(B, PageRange::new(49, 2), Mark::Inherit);
    pages.write_run(B, 60, &page(778)).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();

    let mut want: BTreeMap<_, _> = (10..100).map(|n| ((A, n), page(n))).collect();
    want.insert((A, 50), page(777));
    want.insert((A, 11), vec![0; PAGE as usize]);
    want.insert((B, 49), page(49));
    want.insert((B, 50), page(777));
    want.insert((B, 60), page(778));
    assert_eq!(loaded(&third), want);
    let reader = PageReader::open(&third).unwrap();
    assert_eq!(reader.chain(), 3);
    assert_eq!(reader.runs(B).unwrap()[0].source, Source::Inherit);

    // Another image at the parent's place is not taken for it, and neither is none.
    std::fs::remove_dir_all(&first).unwrap();
    assert!(matches!(PageReader::open(&third), Err(StoreError::NoParent { .. })));
    dumped(&first, &sample(), Compression::Off);
    assert!(matches!(PageReader::open(&third), Err(StoreError::WrongParent { .. })));
}

#[test]
fn a_page_the_parent_lacks_is_refused_when_written() {
    let at = tempfile::tempdir().unwrap();
    let first = at.path().join("1");
    dumped(&first, &sample(), Compression::Off);
    let write = |mark, info: SpaceInfo, range| {
        let mut image = ImageWriter::create(&at.path().join("2"), false).unwrap();
        image.set_parent(&ImageDir::open(&first).unwrap()).unwrap();
        let parent = Some(Arc::new(PageReader::open(&first).unwrap()));
        let pages = image.pages(PageOptions { parent, ..PageOptions::default() });
        pages.space(A, info);
        pages.mark(A, range, mark);
        pages.finish()
    };
    let info = SpaceInfo { parent: Some(A), ..SpaceInfo::default() };
    assert!(write(Mark::Parent, info, PageRange::new(100, 3000)).is_ok());
    let lacking = write(Mark::Parent, info, PageRange::new(100, 3001));
    assert!(matches!(lacking, Err(StoreError::NotInParent { page: 3100, .. })), "{lacking:?}");
    assert!(write(Mark::Parent, SpaceInfo::default(), PageRange::new(100, 1)).is_err());
    let info = SpaceInfo { cow_parent: Some(MmId(1)), ..SpaceInfo::default() };
    assert!(write(Mark::Inherit, info, PageRange::new(100, 1)).is_err());
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 1, "dropped images leave nothing");
}

#[test]
fn without_a_tracker_content_is_compared() {
    let at = tempfile::tempdir().unwrap();
    let [first, second] = ["1", "2"].map(|n| at.path().join(n));
    let memory = sample();
    dumped(&first, &memory, Compression::Zstd(1));
    for n in [100, 163, 164, 2000, 3099] {
        memory.set(A, n, page(70_000 + n));
    }
    memory.set(A, 300, vec![0; PAGE as usize]);
    memory.set(A, 107, page(80_000));
    memory.set(B, 6, page(90_000));
    let parent = Arc::new(PageReader::open(&first).unwrap());
    let mut image = ImageWriter::create(&second, false).unwrap();
    image.set_parent(&ImageDir::open(&first).unwrap()).unwrap();
    let pages = image.pages(PageOptions { parent: Some(parent.clone()), ..PageOptions::default() });
    let theirs = |space| (space != S).then_some(space);
    for space in [A, B, S] {
        pages.space(space, SpaceInfo { parent: theirs(space), ..SpaceInfo::default() });
    }
    let against = Against { parent: &parent, space: &theirs };
    dump_changed_pages(&memory, &memory.plan(), &pages, against, 3, &|_| ()).unwrap();
    let image = image.commit(draft(), pages.finish().unwrap()).unwrap();
    assert_eq!(loaded(&second), memory.pages());
    let summary = image.manifest().pages;
    assert_eq!((summary.data, summary.zero), (5 + 2 + 300, 60));
    assert_eq!(summary.parent, 2940 - 5 - 1 + 300);
}

#[test]
fn every_flipped_bit_in_content_is_found() {
    let at = tempfile::tempdir().unwrap();
    for (name, compression) in [("raw", Compression::Off), ("zstd", Compression::Zstd(1))] {
        let dir = at.path().join(name);
        let memory = Memory::default();
        for n in 0..20 {
            memory.set(A, n, b"some page ".repeat(410)[..PAGE as usize].to_vec());
        }
        dumped(&dir, &memory, compression);
        let path = dir.join(pages_file(0));
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 50 + 1) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            let found = verify_pages(&PageReader::open(&dir).unwrap(), 2, &|_| ());
            assert!(matches!(found[..], [StoreError::Damaged { .. }]), "{name} byte {at}: {found:?}");
            let reader = PageReader::open(&dir).unwrap();
            let runs = reader.runs(A).unwrap();
            assert!(load_pages(&reader, &runs, &Memory::default(), 1, &|_| ()).is_err(), "{name} byte {at}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(matches!(PageReader::open(&dir), Err(StoreError::Damaged { .. })));
        std::fs::write(&path, &good).unwrap();
        assert!(verify_pages(&PageReader::open(&dir).unwrap(), 2, &|_| ()).is_empty());
    }
}

#[test]
fn unreadable_memory_names_the_page() {
    let at = tempfile::tempdir().unwrap();
    let image = ImageWriter::create(&at.path().join("image"), false).unwrap();
    let pages = image.pages(PageOptions::default());
    let memory = sample();
    let failed = dump_pages(&memory, &[(A, PageRange::new(100, 3001))], &pages, 4, &|_| ()).unwrap_err();
    let crate::memory::pipeline::PipelineError::Read { space: A, source } = failed else { panic!("{failed}") };
    assert_eq!(source.page, 3100);
}

#[test]
fn images_are_not_overwritten_by_accident() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("image");
    std::fs::create_dir(&dir).unwrap();
    dumped(&dir, &sample(), Compression::Off);
    assert!(matches!(ImageWriter::create(&dir, false), Err(StoreError::Exists { .. })));
    let other = at.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("precious"), "x").unwrap();
    assert!(matches!(ImageWriter::create(&other, true), Err(StoreError::NotEmpty { .. })));

    let before = ImageDir::open(&dir).unwrap();
    drop(ImageWriter::create(&dir, true).unwrap());
    assert_eq!(ImageDir::open(&dir).unwrap().id(), before.id(), "an image given up leaves the old one");
    let image = ImageWriter::create(&dir, true).unwrap();
    let pages = image.pages(PageOptions::default());
    image.commit(draft(), pages.finish().unwrap()).unwrap();
    assert_ne!(ImageDir::open(&dir).unwrap().id(), before.id());
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 2);
}

/// The sample as a stream, written by several threads.
fn streamed(memory: &Memory, level: Option<i32>) -> Vec<u8> {
    let head = Head { kind: Kind::Memory, host: HostSummary::default(), tree: vec![], restore: Default::default() };
    let stream = StreamWriter::new(Vec::new(), level, &head).unwrap();
    let info = SpaceInfo { identity: [3, 4], parent: None, cow_parent: Some(MmId(1)) };
    PageSink::space(&stream, A, info).unwrap();
    dump_pages(memory, &memory.plan(), &stream, 3, &|_| ()).unwrap();
    stream.finish().unwrap()
}

#[test]
fn an_image_survives_a_stream() {
    let at = tempfile::tempdir().unwrap();
    let memory = sample();
    for (n, level) in [None, Some(1)].into_iter().enumerate() {
        let bytes = streamed(&memory, level);
        let dir = at.path().join(format!("first-{n}"));
        let image = receive(&bytes[..], ImageWriter::create(&dir, false).unwrap(), PageOptions::default()).unwrap();
        assert_eq!(loaded(&dir), memory.pages());
        assert_eq!(PageReader::open(&dir).unwrap().by_identity([3, 4]), Some(A));

        // From the directory into a stream and back.
        let bytes = send(&image, Vec::new(), level).unwrap();
        let dir = at.path().join(format!("second-{n}"));
        let options = PageOptions { compression: Compression::Zstd(3), parent: None };
        receive(&bytes[..], ImageWriter::create(&dir, false).unwrap(), options).unwrap();
        assert_eq!(loaded(&dir), memory.pages());
    }
}

#[test]
fn a_model_goes_with_the_stream() {
    let at = tempfile::tempdir().unwrap();
    let model = crate::image::tests::sample();
    let head = Head { kind: Kind::Full, host: HostSummary::of(&model), tree: vec![], restore: Default::default() };
    let stream = StreamWriter::new(Vec::new(), None, &head).unwrap();
    let mut lane = stream.lane().unwrap();
    lane.write_run(A, 8, &page(1)).unwrap();
    lane.flush().unwrap();
    drop(lane);
    stream.model(&model).unwrap();
    let bytes = stream.finish().unwrap();
    let dir = at.path().join("image");
    let image = receive(&bytes[..], ImageWriter::create(&dir, false).unwrap(), PageOptions::default()).unwrap();
    assert_eq!(image.model().unwrap(), model);
    assert_eq!(image.manifest().tree.len(), 3);
}

#[test]
fn a_damaged_stream_leaves_no_image() {
    let at = tempfile::tempdir().unwrap();
    let memory = Memory::default();
    memory.set(A, 1, vec![7; PAGE as usize]);
    memory.set(A, 2, vec![0; PAGE as usize]);
    let good = streamed(&memory, Some(1));
    let received = |bytes: &[u8]| {
        let image = ImageWriter::create(&at.path().join("image"), false).unwrap();
        receive(bytes, image, PageOptions::default())
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(received(&bad).is_err(), "byte {at}");
        assert!(received(&good[..at]).is_err(), "cut to {at}");
    }
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0);
    // What follows the end is another's: the reader stops there.
    received(&[&good[..], b"more"].concat()).unwrap();
}

#[test]
fn an_image_can_be_made_at_a_mount_point() {
    // Which this test, as an ordinary user, can only pretend: the way of moving files is the same.
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("image");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("dump.log"), "of somebody else").unwrap();
    let image = ImageWriter::create_in_place(&dir).unwrap();
    let pages = image.pages(PageOptions::default());
    pages.write_run(A, 0, &page(1)).unwrap();
    image.commit(draft(), pages.finish().unwrap()).unwrap();
    assert_eq!(loaded(&dir).len(), 1);
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dump.log", "index.bin", "manifest.json", "pages-0.bin"]);
    assert!(matches!(ImageWriter::create_in_place(&dir), Err(StoreError::Exists { .. })));
}

#[test]
fn both_ways_to_hash_agree() {
    // Images that were written with one are read with the other.
    let bytes: Vec<u8> = (0..300_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    for length in [0, 1, 3, 16, 128, 129, 240, 241, 1024, 4096, 262_144, 300_000] {
        assert_eq!(super::frame_check(&bytes[..length]), xxhash_rust::xxh3::xxh3_64(&bytes[..length]));
    }
}
