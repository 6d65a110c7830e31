use super::*;
use crate::image::{MmId, ShmemId, codec, tests::sample};
use crate::memory::store::{ImageDir, PageReader, Scratch, Source};
use crate::memory::{PageRange, Space};
use crate::migration::protocol::SpaceName;
use crate::migration::standby::{self, Standby};
use std::collections::BTreeMap;
use std::time::Duration;

const PROVISIONAL: Space = Space::Mm(MmId(1 << 24));
const FINAL: Space = Space::Mm(MmId(0));

fn terms() -> Terms {
    let standby = Standby { every_ms: 10_000, host: "a".into(), others: vec!["c".into()] };
    Terms { session: "abcdefgh".into(), peer: "a".into(), standby, state: serde_json::json!({}) }
}

fn data(keeping: &Keeping, first: u64, fills: &[u8]) {
    let content: Vec<u8> = fills.iter().flat_map(|fill| vec![*fill; PAGE as usize]).collect();
    keeping.take(Run::new(PROVISIONAL, PageRange::new(first, fills.len() as u64), What::Data), &content);
}

fn note(keeping: &Keeping, first: u64, count: u64, what: What) {
    keeping.take(Run::new(PROVISIONAL, PageRange::new(first, count), what), &[]);
}

fn keep(keeping: &Keeping) {
    let model = codec::encode(&sample()).unwrap();
    let name = SpaceName { sent_as: PROVISIONAL.into(), model: Some(FINAL.into()), cow_parent: None };
    let gone = SpaceName { sent_as: Space::Shmem(ShmemId(7)).into(), model: None, cow_parent: None };
    keeping.keep(&Described { model: &model, names: &[name, gone], age: Duration::from_secs(3) }).unwrap();
}

/// The first byte of each page of the newest state, as a restore finds it.
fn newest(dir: &Path) -> BTreeMap<u64, u8> {
    let at = tempfile::tempdir().unwrap();
    let kept = standby::state::Complete::open(dir).unwrap();
    assert_eq!(kept.model, sample());
    kept.write_image(&at.path().join("image")).unwrap();
    let image = ImageDir::open(&at.path().join("image")).unwrap();
    let reader = PageReader::of(&image).unwrap();
    let mut found = BTreeMap::new();
    for run in reader.runs(FINAL).unwrap().iter().flat_map(|run| run.by_frame(&reader)) {
        let mut content = vec![0; run.range.bytes() as usize];
        if matches!(run.source, Source::Data { .. }) {
            reader.read_into(&run, &mut content, &mut Scratch::default()).unwrap();
        }
        found.extend((run.range.first..).zip(content.chunks(PAGE as usize).map(|page| page[0])));
    }
    found
}

#[test]
fn a_state_is_what_rounds_have_brought_and_its_own_pages_on_top() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("x.standby");
    let keeping = Keeping::begin(&dir, terms()).unwrap();
    keeping.begins(false);
    data(&keeping, 10, &[1, 2, 3, 4]);
    assert!(standby::newest(&dir).is_none(), "nothing is complete");
    keeping.begins(true);
    data(&keeping, 11, &[20]);
    note(&keeping, 13, 1, What::Hole);
    note(&keeping, 14, 1, What::Zero);
    keep(&keeping);
    let first: BTreeMap<u64, u8> = [(10, 1), (11, 20), (12, 3), (14, 0)].into();
    assert_eq!(newest(&dir), first);
    let told = standby::newest(&dir).unwrap();
    assert_eq!(told.terms, terms());
    assert!(told.taken.elapsed().unwrap() >= Duration::from_secs(3) && told.bytes > 5 * PAGE);
    // What comes after it leaves it alone, whatever it is, until the next one is complete.
    keeping.begins(false);
    data(&keeping, 10, &[5, 6, 7]);
    assert_eq!(newest(&dir), first);
    keeping.begins(true);
    data(&keeping, 10, &[50]);
    assert_eq!(newest(&dir), first);
    // That one is given up: its pages are of no use, those of rounds stay, and so does what the first state alone said.
    keeping.begins(false);
    keeping.begins(true);
    keep(&keeping);
    assert_eq!(newest(&dir), [(10, 5), (11, 6), (12, 7), (13, 4)].into());
}

#[test]
fn room_is_used_again_once_no_state_needs_it() {
    let at = tempfile::tempdir().unwrap();
    let keeping = Keeping::begin(at.path(), terms()).unwrap();
    for n in 0..50u8 {
        keeping.begins(false);
        data(&keeping, 100, &[n; 16]);
        data(&keeping, 104, &[n; 4]);
        keeping.begins(true);
        data(&keeping, 108, &[n + 1; 8]);
        keep(&keeping);
        let expected: BTreeMap<u64, u8> = (100..116).map(|page| (page, if page < 108 { n } else { n + 1 })).collect();
        assert_eq!(newest(at.path()), expected);
    }
    let size = fs::metadata(at.path().join(&keeping.name)).unwrap().len();
    assert!(size <= 3 * 28 * PAGE, "{size} bytes for 16 pages");
}

#[test]
fn a_session_that_begins_anew_leaves_the_state_before_it_until_it_has_one() {
    let at = tempfile::tempdir().unwrap();
    let keeping = Keeping::begin(at.path(), terms()).unwrap();
    data(&keeping, 1, &[1]);
    keep(&keeping);
    drop(keeping);
    let keeping = Keeping::begin(at.path(), terms()).unwrap();
    data(&keeping, 1, &[2]);
    assert_eq!(newest(at.path()), [(1, 1)].into());
    keep(&keeping);
    assert_eq!(newest(at.path()), [(1, 2)].into());
    assert_eq!(fs::read_dir(at.path()).unwrap().count(), 2, "one file of pages, one state");
}

#[test]
fn what_is_damaged_is_never_started() {
    let at = tempfile::tempdir().unwrap();
    let keeping = Keeping::begin(at.path(), terms()).unwrap();
    data(&keeping, 1, &[1, 2]);
    keep(&keeping);
    let (state, pages) = (at.path().join(STATE), at.path().join(&keeping.name));
    let whole = fs::read(&state).unwrap();
    for byte in (0..whole.len()).step_by(37) {
        let mut other = whole.clone();
        other[byte] ^= 1;
        fs::write(&state, other).unwrap();
        assert!(standby::state::Complete::open(at.path()).is_err(), "byte {byte}");
    }
    fs::write(&state, &whole[..whole.len() - 1]).unwrap();
    assert!(standby::state::Complete::open(at.path()).is_err());
    fs::write(&state, &whole).unwrap();
    let mut content = fs::read(&pages).unwrap();
    content[PAGE as usize + 7] ^= 1;
    fs::write(&pages, content).unwrap();
    let kept = standby::state::Complete::open(at.path()).unwrap();
    assert!(kept.write_image(&at.path().join("image")).is_err());
    assert!(!at.path().join("image").exists());
}

#[test]
fn where_pages_are_missing_there_are_no_further_states() {
    let at = tempfile::tempdir().unwrap();
    let keeping = Keeping::begin(at.path(), terms()).unwrap();
    data(&keeping, 1, &[1]);
    keep(&keeping);
    keeping.take(Run::new(PROVISIONAL, PageRange::new(1, 1), What::Delta), &[0; PAGE as usize]);
    data(&keeping, 1, &[2]);
    assert!(keeping.keep(&Described { model: &[], names: &[], age: Duration::ZERO }).is_err());
    assert_eq!(newest(at.path()), [(1, 1)].into());
}
