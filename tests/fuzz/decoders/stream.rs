//! Image streams: reading is total and ends.

use migrate_engine::memory::store::{Item, StreamReader};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Makes the checksum of every frame right, as far as frames can be found.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"MIGRSTRM\x01\x00\0\0\0\0\0\0".to_vec();
    let mut rest = bytes;
    let mut number = 0u64;
    while let Some((header, more)) = rest.split_first_chunk::<24>() {
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes")) as usize;
        let ranges = (word(12) % 64 * 16).min(more.len() / 16 * 16);
        let (ranges, more) = more.split_at(ranges);
        let (payload, more) = more.split_at(word(4).min(more.len()));
        let mut header = *header;
        header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(ranges.len() as u32 / 16).to_le_bytes());
        let mut check = Xxh3::with_seed(xxh3_64(&header) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        check.update(ranges);
        check.update(payload);
        out.extend_from_slice(&header);
        out.extend_from_slice(&check.digest().to_le_bytes());
        out.extend_from_slice(ranges);
        out.extend_from_slice(payload);
        rest = more;
        number += 1;
    }
    out
}

fn read(bytes: &[u8]) {
    let Ok(mut stream) = StreamReader::new(bytes) else { return };
    while let Ok(item) = stream.next_item() {
        match item {
            Item::Data(_, ranges, data) => {
                assert_eq!(ranges.iter().map(|r| r.bytes()).sum::<u64>(), data.len() as u64);
            }
            Item::End => return,
            _ => {}
        }
    }
}

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    read(bytes);
    read(&sealed(bytes));
}

/// The frames of a stream without their checksums.
pub fn seed(stream: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), &stream[16..]);
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes")) as usize;
        let end = 32 + word(12) * 16 + word(4);
        out.extend_from_slice(&rest[..24]);
        out.extend_from_slice(&rest[32..end]);
        rest = &rest[end..];
    }
    out
}
