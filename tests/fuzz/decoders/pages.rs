//! Frames of pages: what is handed out is within bounds, with as much content as its runs say.

use migrate_engine::image::limits::PAGE_NUMBERS;
use migrate_engine::image::{MmId, ShmemId, mm::PAGE};
use migrate_engine::memory::{PageRange, Space};
use migrate_engine::migration::pages::{DIGEST_BYTES, Packer, Run, What, unpack};

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let mut buffer = Vec::new();
    let _ = unpack(bytes, &mut buffer, &mut |run, content| {
        assert!(run.range.count > 0 && run.range.first < PAGE_NUMBERS);
        assert!(run.range.count <= PAGE_NUMBERS - run.range.first);
        let length = match run.what {
            What::Named => run.range.count * DIGEST_BYTES as u64,
            what if what.has_content() => run.range.count * PAGE,
            _ => 0,
        };
        assert_eq!(content.len() as u64, length);
        assert!(!run.shelve || run.what.has_content());
    });
}

/// A frame with runs of every kind.
pub fn seed(content: &[u8], level: Option<i32>) -> Vec<u8> {
    let mut packer = Packer::new(level);
    let mut page = content.to_vec();
    page.resize(PAGE as usize * 2, 7);
    packer.add(Space::Mm(MmId(0)), 16, &page);
    for (n, what) in [What::Zero, What::Hole, What::Inherit].into_iter().enumerate() {
        packer.note(Run::new(Space::Shmem(ShmemId(1)), PageRange::new(32 * n as u64, 3), what));
    }
    let run = |first, count, what| Run::new(Space::Mm(MmId(0)), PageRange::new(first, count), what);
    packer.content(Run { shelve: true, ..run(64, 2, What::Data) }, &page);
    packer.content(run(80, 2, What::Named), &[5; 2 * DIGEST_BYTES]);
    packer.take().to_vec()
}
