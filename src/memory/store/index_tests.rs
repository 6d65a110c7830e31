//! The page index: round trips, damage, contradictions.

use super::*;
use proptest::prelude::*;

/// A small index with everything in it.
fn sample() -> Index {
    let frame = |file, offset, packing, stored, pages| Frame { file, packing, offset, stored, pages, check: 7 };
    let run = |first, count, kind| Run { range: PageRange::new(first, count), kind };
    let entry = |id, cow_parent: Option<u32>, runs| SpaceEntry {
        space: Space::Mm(MmId(id)),
        identity: [1, u64::from(id)],
        parent: (id == 1).then_some(Space::Shmem(ShmemId(4))),
        cow_parent: cow_parent.map(MmId),
        runs,
    };
    Index {
        files: vec![9 * 4096, 5000],
        frames: vec![
            frame(0, 0, Packing::Raw, 3 * 4096, 3),
            frame(0, 8 * 4096, Packing::Raw, 4096, 1),
            frame(1, 17, Packing::Zstd, 4983, 32),
        ],
        spaces: vec![
            entry(0, None, vec![run(5, 2, RunKind::Data { frame: 0, page: 1 }), run(9, 1 << 40, RunKind::Zero)]),
            entry(1, Some(0), vec![run(1, 3, RunKind::Parent), run(4, 1, RunKind::Inherit)]),
            entry(7, Some(1), vec![run(1, 30, RunKind::Data { frame: 2, page: 2 })]),
        ],
    }
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let content = bytes.len() - 8;
    let check = xxh3_64(&bytes[..content]).to_le_bytes();
    bytes[content..].copy_from_slice(&check);
    bytes
}

#[test]
fn comes_back_as_it_went() {
    assert_eq!(Index::decode(&sample().encode()).unwrap(), sample());
    assert_eq!(Index::decode(&Index::default().encode()).unwrap(), Index::default());
}

#[test]
fn damage_is_found_and_lies_do_no_harm() {
    let good = sample().encode();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Index::decode(&bad).is_err(), "bit {bit}");
        // With a checksum made right it may pass, but then every reference in it still holds.
        if let Ok(index) = Index::decode(&sealed(bad)) {
            assert_eq!(Index::decode(&index.encode()).unwrap(), index);
        }
    }
    for len in 0..good.len() {
        assert!(Index::decode(&good[..len]).is_err());
    }
}

#[test]
fn contradictions_are_refused() {
    type Case = (&'static str, fn(&mut Index));
    let cases: &[Case] = &[
        ("frame past its file", |i| i.files[0] -= 1),
        ("frame of no pages", |i| i.frames[0].pages = 0),
        ("raw frame off its page", |i| i.frames[1].offset -= 1),
        ("frames overlap", |i| i.frames[1].offset = 4096),
        ("frames out of order", |i| i.frames.swap(0, 2)),
        ("no such file", |i| i.frames[2].file = 2),
        ("run past its frame", |i| i.spaces[0].runs[0].range.count = 3),
        ("no such frame", |i| i.spaces[0].runs[0].kind = RunKind::Data { frame: 3, page: 0 }),
        ("runs overlap", |i| i.spaces[0].runs[1].range.first = 6),
        ("pages past all memory", |i| i.spaces[0].runs[1].range.count = 1 << 51),
        ("parent not named", |i| i.spaces[1].parent = None),
        ("not forked", |i| i.spaces[1].cow_parent = None),
        ("forked from nobody", |i| i.spaces[2].cow_parent = Some(MmId(3))),
        ("forked from itself", |i| i.spaces[2].cow_parent = Some(MmId(7))),
        ("forked in a circle", |i| i.spaces[0].cow_parent = Some(MmId(7))),
        ("spaces twice", |i| i.spaces[2].space = i.spaces[1].space),
    ];
    for (name, spoil) in cases {
        let mut index = sample();
        spoil(&mut index);
        assert!(matches!(Index::decode(&index.encode()), Err(StoreError::Index { .. })), "{name}");
    }
}

#[test]
fn long_chains_of_forks_are_walked_once() {
    let entry = |id: u32| SpaceEntry {
        space: Space::Mm(MmId(id)),
        identity: [0; 2],
        parent: None,
        cow_parent: (id > 0).then(|| MmId(id - 1)),
        runs: vec![],
    };
    let chain = |length: u32| Index { spaces: (0..length).map(entry).collect(), ..Index::default() };
    let limit = limits::COW_CHAIN as u32;
    assert!(Index::decode(&chain(limit).encode()).is_ok());
    assert!(Index::decode(&chain(limit + 1).encode()).is_err());
}

proptest! {
    #[test]
    fn noise_is_no_index(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Index::decode(&noise).is_err());
        let mut framed = MAGIC.to_vec();
        framed.extend_from_slice(&[1, 0, 0, 0]);
        framed.extend(noise);
        framed.extend_from_slice(&[0; 8]);
        let _ = Index::decode(&sealed(framed));
    }
}
