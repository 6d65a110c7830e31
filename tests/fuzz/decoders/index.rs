//! `index.bin`: decoding is total, also behind a right checksum, and what decodes is sound.

use migrate_engine::memory::store::index::{Index, RunKind};
use xxhash_rust::xxh3::xxh3_64;

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let _ = Index::decode(bytes);
    let mut sealed = b"MIGRPIDX\x01\x00\x00\x00".to_vec();
    sealed.extend_from_slice(bytes);
    sealed.extend_from_slice(&xxh3_64(&sealed).to_le_bytes());
    let Ok(index) = Index::decode(&sealed) else { return };
    for run in index.spaces.iter().flat_map(|s| &s.runs) {
        if let RunKind::Data { frame, page } = run.kind {
            let frame = &index.frames[frame as usize];
            assert!(u64::from(page) + run.range.count <= u64::from(frame.pages));
            assert!(frame.end() <= index.files[usize::from(frame.file)]);
        }
    }
    assert_eq!(Index::decode(&index.encode()).expect("what was decoded can be encoded"), index);
}

/// What of a file is behind the magic and before the checksum.
pub fn seed(file: &[u8]) -> Vec<u8> {
    file[12..file.len() - 8].to_vec()
}
