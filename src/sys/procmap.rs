//! `PROCMAP_QUERY`, the ioctl of `/proc/PID/maps` (Linux 6.11).

use super::abi::ProcmapQuery;
use super::{Errno, Result, check};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The mapping that holds an address: its first address, and the first past its end. `None`: nothing is mapped there.
///
/// # Errors
/// `ENOTTY` before Linux 6.11, `ESRCH` where the process is gone.
pub fn mapping_at(maps: BorrowedFd<'_>, address: u64) -> Result<Option<(u64, u64)>> {
    query(maps, address, 0)
}

/// A mapping that starts at this address, with the room behind it in which it may grow: its first address, and that of the next
/// mapping. `None`: none starts there, or none follows.
///
/// # Errors
/// As for [`mapping_at`].
pub fn with_room(maps: BorrowedFd<'_>, start: u64) -> Result<Option<(u64, u64)>> {
    /// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`.
    const OR_NEXT: u64 = 0x10;
    let Some((_, end)) = query(maps, start, 0)?.filter(|found| found.0 == start) else { return Ok(None) };
    Ok(query(maps, end, OR_NEXT)?.map(|(next, _)| (start, next)))
}

/// The same of a mapping whose end is known; as it is known where the kernel cannot be asked.
pub fn room_of(maps: BorrowedFd<'_>, start: u64, end: u64) -> Option<(u64, u64)> {
    with_room(maps, start).unwrap_or(Some((start, end)))
}

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
        match mapping_at(maps.as_fd(), here) {
            Ok(found) => {
                let (start, end) = found.unwrap();
                assert!((start..end).contains(&here), "{here:#x} in {start:#x}-{end:#x}");
                let text = std::fs::read_to_string("/proc/self/maps").unwrap();
                assert!(text.lines().any(|line| line.starts_with(&format!("{start:08x}-{end:08x} "))), "{text}");
            }
            // A kernel before 6.11.
            Err(errno) => assert_eq!(errno, Errno::ENOTTY),
        }
        assert!(matches!(mapping_at(maps.as_fd(), 0), Ok(None) | Err(Errno::ENOTTY)));
        assert!(matches!(with_room(maps.as_fd(), here), Ok(None) | Err(Errno::ENOTTY)), "none starts there");
        let Ok(Some((start, end))) = mapping_at(maps.as_fd(), here) else { return };
        let room = with_room(maps.as_fd(), start).unwrap();
        assert!(room.is_none_or(|(first, next)| first == start && next >= end), "{room:x?}");
    }
}
