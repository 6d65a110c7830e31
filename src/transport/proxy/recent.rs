//! Frames that were carried lately. Source and proxy count the same frames in the same order, and forget them by the same rule: what the
//! one names by its number the other has.

use super::super::frame::{HEADER_BYTES, Header};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use zerocopy::FromBytes;

/// Bytes that are kept. A destination that is further behind than this gets frames of its own.
const KEPT_BYTES: usize = 32 << 20;

/// Shorter frames are not worth a name, bytes.
const LEAST_BYTES: usize = 512;

/// A frame, header included.
pub(super) type Frame = Arc<Vec<u8>>;

/// The checksum in a frame's header; `None`: it is too short for one.
pub(super) fn checksum(frame: &[u8]) -> Option<u64> {
    Header::read_from_bytes(frame.get(..HEADER_BYTES)?).ok().map(|header| header.checksum())
}

/// The newest frames, numbered from 0.
#[derive(Debug, Default)]
pub(super) struct Recent {
    frames: VecDeque<Frame>,
    /// Number of the oldest one that is kept.
    first: u64,
    bytes: usize,
    /// By checksum, the newest frame that has it.
    numbers: HashMap<u64, u64>,
}

impl Recent {
    /// It is carried now.
    pub fn note(&mut self, frame: &Frame) {
        let Some(checksum) = checksum(frame).filter(|_| frame.len() >= LEAST_BYTES) else { return };
        self.numbers.insert(checksum, self.first + self.frames.len() as u64);
        self.bytes += frame.len();
        self.frames.push_back(Arc::clone(frame));
        while self.bytes > KEPT_BYTES {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.len();
            if let Some(checksum) = self::checksum(&oldest)
                && self.numbers.get(&checksum) == Some(&self.first)
            {
                self.numbers.remove(&checksum);
            }
            self.first += 1;
        }
    }

    /// The number of the same frame, byte for byte, and its checksum.
    pub fn find(&self, frame: &[u8]) -> Option<(u64, u64)> {
        let checksum = checksum(frame)?;
        let number = *self.numbers.get(&checksum)?;
        (self.at(number)?.as_slice() == frame).then_some((number, checksum))
    }

    /// The frame of this number and checksum.
    pub fn get(&self, number: u64, checksum: u64) -> Option<Frame> {
        self.at(number).filter(|frame| self::checksum(frame) == Some(checksum)).cloned()
    }

    fn at(&self, number: u64) -> Option<&Frame> {
        self.frames.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::frame::FrameKind;
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn frame(filler: u8, bytes: usize) -> Frame {
        let body = vec![filler; bytes];
        let header = Header::of(FrameKind::PAGES, &[&body]).unwrap();
        Arc::new([header.as_bytes(), &body].concat())
    }

    #[test]
    fn what_was_carried_is_named_until_it_is_forgotten() {
        let mut recent = Recent::default();
        let (first, short) = (frame(1, 4096), frame(2, 100));
        recent.note(&first);
        recent.note(&short);
        let (number, sum) = recent.find(&frame(1, 4096)).unwrap();
        assert_eq!((number, recent.get(number, sum)), (0, Some(first.clone())));
        assert_eq!(recent.find(&short), None, "it is not worth a name");
        assert_eq!(recent.get(number, sum ^ 1), None, "the other end has counted otherwise");
        for filler in 0..12 {
            recent.note(&frame(filler, 4 << 20));
        }
        assert_eq!((recent.find(&first), recent.get(number, sum)), (None, None));
        assert!(recent.bytes <= KEPT_BYTES && recent.numbers.len() == recent.frames.len());
    }

    #[test]
    fn a_checksum_alone_names_nothing() {
        let (one, mut other) = (frame(1, 4096), frame(1, 4096).to_vec());
        let mut recent = Recent::default();
        recent.note(&one);
        other[HEADER_BYTES + 7] ^= 1;
        assert_eq!(recent.find(&other), None);
    }

    proptest! {
        #[test]
        fn both_ends_have_the_same(frames in prop::collection::vec((0u8..6, 0usize..5 << 20), 0..30)) {
            let (mut source, mut proxy) = (Recent::default(), Recent::default());
            for (filler, bytes) in frames {
                let one = frame(filler, bytes);
                match source.find(&one) {
                    Some((number, sum)) => prop_assert_eq!(proxy.get(number, sum), Some(one)),
                    None => {
                        source.note(&one);
                        proxy.note(&one);
                    }
                }
            }
        }
    }
}
