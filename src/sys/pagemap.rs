//! `/proc/PID/pagemap` and its ioctl `PAGEMAP_SCAN` (Linux 6.7).

use super::abi::{PageRegion, PmScanArg};
use super::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// Categories of pages.
pub mod category {
    /// May be write-protected asynchronously here.
    pub const WP_ALLOWED: u64 = 1 << 0;
    /// Written since it was protected (or never protected).
    pub const WRITTEN: u64 = 1 << 1;
    /// Belongs to a file or shared memory. Expensive: makes the kernel look at each struct page.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The zero page.
    pub const PFN_ZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// Soft-dirty.
    pub const SOFT_DIRTY: u64 = 1 << 7;
    /// `MADV_GUARD_INSTALL` (Linux 6.15).
    pub const GUARD: u64 = 1 << 8;
}

/// [`category::GUARD`] where the kernel knows it, else 0. Guard pages look like pages that are swapped out, but cannot be read.
pub fn guard_category() -> u64 {
    static KNOWN: OnceLock<u64> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let query = Query { all_of: category::GUARD, report: category::GUARD, ..Query::default() };
        let Ok(file) = std::fs::File::open("/proc/self/pagemap") else { return 0 };
        let known = scan(file.as_fd(), 0, 4096, query, &mut Vec::new(), |_| {});
        if known.is_ok() { category::GUARD } else { 0 }
    })
}

/// Protect matching pages while scanning.
pub const WP_MATCHING: u64 = 1;
/// Fail with `EPERM` over a mapping that is not protected asynchronously.
pub const CHECK_WPASYNC: u64 = 2;

/// What to look for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// [`WP_MATCHING`], [`CHECK_WPASYNC`].
    pub flags: u64,
    /// All of these categories.
    pub all_of: u64,
    /// At least one of these (0 = no condition).
    pub any_of: u64,
    /// Categories to be inverted before they are compared.
    pub inverted: u64,
    /// Categories to report.
    pub report: u64,
}

/// Calls `found` for every region of `[start, end)` that matches. Loops until the kernel has walked the whole range.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: Query,
    buf: &mut Vec<PageRegion>,
    mut found: impl FnMut(PageRegion),
) -> Result<()> {
    const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
    buf.resize(2048, PageRegion::default());
    let mut at = start;
    while at < end {
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: query.flags,
            start: at,
            end,
            vec: buf.as_mut_ptr() as u64,
            vec_len: buf.len() as u64,
            category_inverted: query.inverted,
            category_mask: query.all_of,
            category_anyof_mask: query.any_of,
            return_mask: query.report,
            ..PmScanArg::default()
        };
        // SAFETY: `arg` is a valid pm_scan_arg whose vector describes `buf`.
        let n = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut arg) };
        if n < 0 {
            match Errno::last() {
                Errno::EINTR => continue,
                e => return Err(e),
            }
        }
        buf[..n as usize].iter().for_each(|r| found(*r));
        if arg.walk_end <= at {
            return Err(Errno::EIO);
        }
        at = arg.walk_end;
    }
    Ok(())
}
