//! `model.bin`: decoding is total, what decodes can be checked, and encodes to something equal.

use migrate_engine::image::{codec, verify};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Makes the checksum of every section right, as far as sections can be found.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"MIGRMODL\x01\x00\x00\x00\0\0\0\0".to_vec();
    let mut rest = bytes;
    let mut count = 0u16;
    while let Some((header, more)) = rest.split_first_chunk::<24>() {
        let stored = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        let length = usize::try_from(stored).unwrap_or(usize::MAX).min(more.len());
        let (payload, more) = more.split_at(length);
        let mut header = *header;
        header[16..24].copy_from_slice(&(length as u64).to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&xxh3_64_with_seed(payload, xxh3_64(&header)).to_le_bytes());
        out.extend_from_slice(payload);
        rest = more;
        count = count.saturating_add(1);
    }
    out[10..12].copy_from_slice(&count.to_le_bytes());
    out
}

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let _ = codec::decode(bytes);
    if let Ok(model) = codec::decode(&sealed(bytes)) {
        let _ = verify::model(&model);
        let again = codec::encode(&model).expect("what was decoded can be encoded");
        assert_eq!(codec::decode(&again).expect("and decoded again"), model);
    }
}

/// The sections of a file without their checksums.
pub fn seed(file: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), &file[16..]);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[16..24].try_into().expect("eight bytes")) as usize;
        out.extend_from_slice(&rest[..24]);
        out.extend_from_slice(&rest[32..32 + length]);
        rest = &rest[32 + length..];
    }
    out
}
