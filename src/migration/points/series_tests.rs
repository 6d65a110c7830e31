use super::*;
use crate::image::MmId;
use crate::image::mm::PAGE;
use crate::memory::{PageRange, Space};
use crate::migration::pages::Packer;
use crate::migration::points::{Place, encode};
use std::collections::BTreeMap;

const SPACE: Space = Space::Mm(MmId(0));

/// A point with these pages (number, what each of its bytes is).
fn point(series: &mut Series, whole: bool, taken: u64, pages: &[(u64, u8)]) {
    let mut writing = series.begin(SystemTime::UNIX_EPOCH + Duration::from_millis(taken)).unwrap();
    let mut packer = Packer::new(None);
    for (page, byte) in pages {
        packer.add(SPACE, *page, &[*byte; PAGE as usize]);
        writing.pages(packer.take()).unwrap();
    }
    let model = codec::encode(&crate::image::tests::sample()).unwrap();
    let row = Row { space: SPACE, range: PageRange::new(1, 9), place: Place::Points(SPACE) };
    writing.end(&model, &encode(&[row])).unwrap();
    series.put(writing, whole).unwrap();
}

/// What the newest point has.
fn contents(dir: &Path) -> BTreeMap<u64, u8> {
    let newest = Newest::open(dir).unwrap().unwrap();
    let mut found = BTreeMap::new();
    let each = &mut |run: Run, content: &[u8]| {
        for n in 0..run.range.count {
            let byte = content.get((n * PAGE) as usize).copied().unwrap_or(0);
            found.entry(run.range.first + n).or_insert(byte);
        }
        Ok(())
    };
    newest.contents(each).unwrap();
    found
}

fn original() -> Original {
    Original { owners: vec![(42, 7)], pages: vec![(0, 100, 10)] }
}

#[test]
fn pages_are_the_original_s_only_if_they_were_not_sent_before() {
    let row = |mm, from, count| Row {
        space: SPACE,
        range: PageRange::new(500, count),
        place: Place::Original(MmId(mm), from),
    };
    assert!(original().has(&[row(0, 100, 10), row(0, 105, 1)]));
    for bad in [row(0, 99, 2), row(0, 105, 6), row(0, 300, 1), row(1, 100, 1)] {
        assert!(!original().has(&[bad]), "{bad:?}");
    }
}

fn series() -> (tempfile::TempDir, PathBuf, Series) {
    let place = tempfile::tempdir().unwrap();
    let dir = directory(place.path(), AttemptId([7; 16]));
    let series = Series::make(&dir, original()).unwrap();
    (place, dir, series)
}

#[test]
fn the_newest_content_of_each_page_counts_and_a_whole_point_needs_none_before_it() {
    let (_place, dir, mut series) = series();
    assert!(newest(&dir).is_none() && Newest::open(&dir).unwrap().is_none());
    point(&mut series, true, 1000, &[(1, 10), (2, 20), (3, 0)]);
    point(&mut series, false, 2000, &[(2, 21), (4, 40)]);
    point(&mut series, false, 3000, &[(4, 0)]);
    assert_eq!(contents(&dir), [(1, 10), (2, 21), (3, 0), (4, 0)].into());
    assert_eq!(newest(&dir), Some(SystemTime::UNIX_EPOCH + Duration::from_millis(3000)));
    assert_eq!(Newest::open(&dir).unwrap().unwrap().original, original());
    point(&mut series, true, 4000, &[(1, 11)]);
    assert_eq!(contents(&dir), [(1, 11)].into());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "the original and one point");
}

#[test]
fn a_point_that_was_not_completed_is_none_and_what_is_damaged_is_refused() {
    let (_place, dir, mut series) = series();
    point(&mut series, true, 1000, &[(1, 10)]);
    let mut torn = series.begin(SystemTime::now()).unwrap();
    torn.pages(&[0; 100]).unwrap();
    assert!(series.put(torn, false).is_err());
    assert_eq!(contents(&dir), [(1, 10)].into());
    let path = names(&dir)[0].path(&dir);
    let sound = fs::read(&path).unwrap();
    for at in [0, 20, sound.len() / 2, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(Newest::open(&dir).is_err(), "byte {at}");
    }
    for length in [0, 10, DIGEST + 5, sound.len() - 1] {
        fs::write(&path, &sound[..length]).unwrap();
        assert!(Newest::open(&dir).is_err(), "{length} bytes");
    }
}

#[test]
fn a_long_chain_asks_for_a_whole_point() {
    let (_place, _dir, mut series) = series();
    point(&mut series, true, 1000, &[(1, 10)]);
    assert!(!series.is_long());
    series.bytes.1 = 2 * series.bytes.0 + LONG + 1;
    assert!(series.is_long());
    point(&mut series, true, 2000, &[(1, 10)]);
    assert!(!series.is_long());
}

#[test]
fn whoever_goes_on_after_a_death_keeps_what_is_there_until_something_newer_is_complete() {
    let (_place, dir, mut first) = series();
    point(&mut first, true, 1000, &[(1, 1), (2, 2)]);
    point(&mut first, false, 2000, &[(2, 3)]);
    drop(first);
    let mut second = Series::again(&dir).unwrap();
    assert_eq!(second.original(), &original());
    assert_eq!(contents(&dir), BTreeMap::from([(1, 1), (2, 3)]));
    point(&mut second, true, 3000, &[(1, 7)]);
    assert_eq!(contents(&dir), BTreeMap::from([(1, 7)]));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "the point and who the original is");
}
