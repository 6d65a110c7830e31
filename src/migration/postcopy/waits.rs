//! Who has waited for pages at the destination, as the source is told at the end.

use crate::memory::lazy::Waits;
use crate::memory::lazy::stalls::{CLASSES, Histogram, THREADS_MAX};
use crate::transport::{Channel, FrameKind, Result, TransportError};
use zerocopy::little_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One thread.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Row {
    /// 0 = not known.
    process: I32,
    thread: U32,
    count: U64,
    total_us: U64,
    longest_us: U64,
    classes: [U64; CLASSES],
}

/// Most rows of a list, and the bytes of them.
const ROWS_MAX: usize = THREADS_MAX + 1;
const _: () = assert!(ROWS_MAX * size_of::<Row>() <= 192 << 10, "the limit of the frame");

/// Tells who has waited.
pub(super) fn send(channel: &mut Channel, waits: &[Waits]) -> Result<()> {
    let row = |waits: &Waits| Row {
        process: waits.process.unwrap_or(0).into(),
        thread: waits.thread.into(),
        count: waits.histogram.count.into(),
        total_us: waits.histogram.total_us.into(),
        longest_us: waits.histogram.longest_us.into(),
        classes: waits.histogram.classes.map(U64::from),
    };
    let rows: Vec<Row> = waits.iter().take(ROWS_MAX).map(row).collect();
    channel.send(FrameKind::WAITS, rows.as_bytes())
}

/// Reads what [`send`] has sent.
pub(super) fn read(body: &[u8], peer: &str) -> Result<Vec<Waits>> {
    let malformed =
        |reason: &str| TransportError::Malformed { peer: peer.into(), what: "list of waits", reason: reason.into() };
    let rows = <[Row]>::ref_from_bytes(body).map_err(|_| malformed("it has a length that no list has"))?;
    let read = |row: &Row| {
        let classes = row.classes.map(U64::get);
        let sum = classes.iter().try_fold(0u64, |sum, count| sum.checked_add(*count));
        let histogram = Histogram {
            count: row.count.get(),
            total_us: row.total_us.get(),
            longest_us: row.longest_us.get(),
            classes,
        };
        let sound = sum == Some(histogram.count) && histogram.longest_us <= histogram.total_us;
        let process = Some(row.process.get()).filter(|pid| *pid > 0);
        sound.then_some(Waits { process, thread: row.thread.get(), histogram })
    };
    let all: Option<Vec<Waits>> = rows.iter().map(read).collect();
    all.ok_or_else(|| malformed("its numbers contradict each other"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_are_read_as_sent_and_lies_are_refused() {
        let mut histogram = Histogram { count: 3, total_us: 700, longest_us: 500, ..Histogram::default() };
        (histogram.classes[0], histogram.classes[CLASSES - 1]) = (2, 1);
        let all = vec![
            Waits { process: Some(7), thread: 9, histogram },
            Waits { process: None, thread: 0, histogram: Histogram::default() },
        ];
        let (mut a, mut b) = super::super::tests::pair();
        send(&mut a, &all).unwrap();
        let body = b.expect(FrameKind::WAITS, "waits").unwrap().to_vec();
        assert_eq!(read(&body, "a").unwrap(), all);
        let mut lie = body.clone();
        lie[8] = 4;
        assert!(read(&lie, "a").is_err());
        assert!(read(&body[1..], "a").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes, "x");
        }
    }
}
