//! `PROCMAP_QUERY`, the ioctl of `/proc/PID/maps` (Linux 6.11).

use super::abi::ProcmapQuery;
use super::{Errno, Result, check};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The mapping that starts at this address: the first address past its end, and the one up to which it may grow, where the next
/// mapping begins. `None`: none starts there.
///
/// # Errors
/// `ENOTTY` before Linux 6.11, `ESRCH` where the process is gone.
pub fn with_room(maps: BorrowedFd<'_>, start: u64) -> Result<Option<(u64, u64)>> {
    /// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`.
    const OR_NEXT: u64 = 0x10;
    let Some((_, end)) = query(maps, start, 0)?.filter(|found| found.0 == start) else { return Ok(None) };
    Ok(Some((end, query(maps, end, OR_NEXT)?.map_or(end, |(next, _)| next))))
}

/// Up to where a mapping that starts at this address may grow; its end as it is known where the kernel cannot be asked. `None`: none
/// starts there any more.
pub fn room_of(maps: BorrowedFd<'_>, start: u64, end: u64) -> Option<u64> {
    with_room(maps, start).map_or(Some(end), |found| found.map(|(_, next)| next))
}

/// The mapping that holds an address, or one that `flags` say: its first address, and the first past its end.
fn query(maps: BorrowedFd<'_>, address: u64, flags: u64) -> Result<Option<(u64, u64)>> {
    const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: flags,
        query_addr: address,
        ..ProcmapQuery::default()
    };
    // SAFETY: `query` has the layout and size of struct procmap_query, and names no other memory.
    match check(unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) }.into()) {
        Ok(_) => Ok(Some((query.vma_start, query.vma_end))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_mapping_is_found_by_any_address_in_it() {
        let maps = std::fs::File::open("/proc/self/maps").unwrap();
        let here = std::ptr::from_ref(&maps) as u64;
        match query(maps.as_fd(), here, 0) {
            Ok(found) => {
                let (start, end) = found.unwrap();
                assert!((start..end).contains(&here), "{here:#x} in {start:#x}-{end:#x}");
                let text = std::fs::read_to_string("/proc/self/maps").unwrap();
                assert!(text.lines().any(|line| line.starts_with(&format!("{start:08x}-{end:08x} "))), "{text}");
            }
            // A kernel before 6.11.
            Err(errno) => assert_eq!(errno, Errno::ENOTTY),
        }
        assert!(matches!(query(maps.as_fd(), 0, 0), Ok(None) | Err(Errno::ENOTTY)));
        assert!(matches!(with_room(maps.as_fd(), here), Ok(None) | Err(Errno::ENOTTY)), "none starts there");
        let Ok(Some((start, end))) = query(maps.as_fd(), here, 0) else { return };
        let (same, next) = with_room(maps.as_fd(), start).unwrap().expect("it starts there");
        assert!(same == end && next >= end, "{same:#x} {next:#x}");
    }
}
