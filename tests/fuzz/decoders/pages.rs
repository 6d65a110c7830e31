//! Frames of pages: what is handed out is within bounds, with as much content as its runs say.

use migrate_engine::image::limits::PAGE_NUMBERS;
use migrate_engine::image::{MmId, ShmemId, mm::PAGE};
use migrate_engine::memory::{PageRange, Space};
use migrate_engine::migration::pages::{Packer, Run, What, unpack};

/// Panics where that is not so.
pub fn check(bytes: &[u8]) {
    let mut buffer = Vec::new();
    let _ = unpack(bytes, &mut buffer, &mut |run, content| {
        assert!(run.range.count > 0 && run.range.first < PAGE_NUMBERS);
        assert!(run.range.count <= PAGE_NUMBERS - run.range.first);
        let length = if run.what.has_content() { run.range.count * PAGE } else { 0 };
        assert_eq!(content.len() as u64, length);
    });
}

/// A frame with runs of every kind.
pub fn seed(content: &[u8], level: Option<i32>) -> Vec<u8> {
    let mut packer = Packer::new(level);
    let mut page = content.to_vec();
    page.resize(PAGE as usize * 2, 7);
    packer.add(Space::Mm(MmId(0)), 16, &page);
    for (n, what) in [What::Zero, What::Hole, What::Inherit].into_iter().enumerate() {
        packer.note(Run { space: Space::Shmem(ShmemId(1)), range: PageRange::new(32 * n as u64, 3), what });
    }
    packer.take().to_vec()
}
