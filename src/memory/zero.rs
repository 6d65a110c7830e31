//! Pages that hold nothing but zeros.

use crate::image::mm::PAGE;
use std::ops::Range;

/// True when every byte is zero. Works through whole cache lines (8 words OR-ed, which the compiler vectorises) and
/// stops at the first 256 bytes that hold something, so that an ordinary page costs little more than one cache miss.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, tail) = bytes.as_chunks::<256>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        if words.iter().fold(0u64, |or, w| or | u64::from_ne_bytes(*w)) != 0 {
            return false;
        }
    }
    tail.iter().all(|b| *b == 0)
}

/// Splits whole pages into runs of equal kind: (zero or not, range of pages counted from the start of `data`).
pub fn runs(data: &[u8]) -> impl Iterator<Item = (bool, Range<usize>)> + '_ {
    let (pages, _) = data.as_chunks::<{ PAGE as usize }>();
    let mut next = 0;
    // The kind of the page a run ended at is known already: it is not looked at twice.
    let mut known = None;
    std::iter::from_fn(move || {
        let first = next;
        let kind = known.take().unwrap_or_else(|| pages.get(first).is_some_and(|p| is_zero(p)));
        if first >= pages.len() {
            return None;
        }
        next += 1;
        while next < pages.len() {
            let zero = is_zero(&pages[next]);
            if zero != kind {
                known = Some(zero);
                break;
            }
            next += 1;
        }
        Some((kind, first..next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        let mut page = vec![0u8; PAGE as usize];
        assert!(is_zero(&page));
        for at in [0, 1, 7, 8, 255, 256, 2047, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
        assert!(is_zero(&[0; 3]) && !is_zero(&[0, 0, 4]) && is_zero(&[]));
    }

    #[test]
    fn runs_alternate_and_cover_everything() {
        let page = PAGE as usize;
        let mut data = vec![0u8; 7 * page];
        for n in [0, 1, 4] {
            data[n * page + 77] = 9;
        }
        let found: Vec<_> = runs(&data).collect();
        assert_eq!(found, [(false, 0..2), (true, 2..4), (false, 4..5), (true, 5..7)]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
