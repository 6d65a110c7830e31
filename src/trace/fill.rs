//! Filling fresh memory of a task in the making: pages are made with their content (`UFFDIO_COPY`), which saves the kernel
//! to clear each of them first and to fault for each of them.

use super::remote::{Remote, Scratch};
use super::{Error, Result};
use crate::image::Pid;
use crate::image::mm::PAGE;
use crate::memory::PageRange;
use crate::sys::userfaultfd::{self as sys, mode};
use crate::sys::{Errno, fd};
use std::os::fd::{AsFd, OwnedFd};

/// Makes a userfaultfd in a task and takes it out: the task keeps nothing of it. The inner error is the kernel's refusal.
///
/// # Errors
/// The task cannot be worked with.
pub fn userfaultfd(remote: &mut Remote, scratch: &Scratch, flags: i32) -> Result<std::result::Result<OwnedFd, Errno>> {
    let (pid, flags) = (remote.pid(), flags | libc::O_CLOEXEC | libc::O_NONBLOCK);
    let number = match remote.call(scratch, libc::SYS_userfaultfd, &[flags as u64])? {
        Ok(number) => number,
        Err(errno) => return Ok(Err(errno)),
    };
    let taken = fd::pidfd_open(pid).and_then(|pidfd| fd::pidfd_getfd(pidfd.as_fd(), number as u32));
    let failed = |errno| Error::Call { pid, call: "close (userfaultfd)".to_owned(), errno };
    remote.call(scratch, libc::SYS_close, &[number])?.map_err(failed)?;
    Ok(taken)
}

/// An address space whose fresh anonymous mappings are filled. Until it is dropped nothing else may touch what it covers.
#[derive(Debug)]
pub struct Fill {
    uffd: OwnedFd,
    /// Mappings, ascending; neighbours stay apart, as one call must not go beyond a mapping.
    covered: Vec<PageRange>,
}

impl Fill {
    /// Begins with these mappings (start, end), which hold no pages yet. `None` where the kernel does not want to.
    ///
    /// # Errors
    /// The task cannot be worked with.
    pub fn begin(remote: &mut Remote, scratch: &Scratch, areas: &[(u64, u64)]) -> Result<Option<Self>> {
        let pid = remote.pid();
        let Ok(uffd) = userfaultfd(remote, scratch, sys::UFFD_USER_MODE_ONLY)? else { return Ok(None) };
        if sys::handshake(uffd.as_fd(), 0).is_err() {
            return Ok(None);
        }
        let mut covered = Vec::new();
        for (start, end) in areas {
            match sys::register(uffd.as_fd(), *start, end - start, mode::MISSING) {
                Ok(()) => covered.push(PageRange::of_bytes(*start, *end)),
                Err(errno) => tracing::debug!("process {pid}: {start:#x}-{end:#x} is filled by writing: {errno}"),
            }
        }
        covered.sort_unstable();
        Ok(Some(Self { uffd, covered }))
    }

    /// The range in pieces, each with whether it is covered; none crosses the end of a mapping that is.
    pub fn pieces(&self, range: PageRange) -> Vec<(PageRange, bool)> {
        let mut pieces = Vec::new();
        let mut at = range.first;
        let first = self.covered.partition_point(|r| r.end() <= at);
        for area in &self.covered[first..] {
            if at >= range.end() || area.first >= range.end() {
                break;
            }
            if area.first > at {
                pieces.push((PageRange::new(at, area.first - at), false));
                at = area.first;
            }
            let end = area.end().min(range.end());
            pieces.push((PageRange::new(at, end - at), true));
            at = end;
        }
        if at < range.end() {
            pieces.push((PageRange::new(at, range.end() - at), false));
        }
        pieces
    }

    /// Makes the pages of a covered range with this content.
    ///
    /// # Errors
    /// The page that could not be made, and why.
    pub fn copy(&self, pid: Pid, range: PageRange, data: &[u8]) -> std::result::Result<(), (u64, Errno)> {
        let mut done = 0;
        while done < data.len() {
            let at = range.start_byte() + done as u64;
            let (copied, result) = sys::copy(self.uffd.as_fd(), at, &data[done..]);
            done += copied;
            match result {
                Ok(()) | Err(Errno::EAGAIN) => {}
                // It is there already: an ordinary write.
                Err(Errno::EEXIST) => {
                    let page = &data[done..done + PAGE as usize];
                    crate::sys::mem::write(pid, at + copied as u64, page).map_err(|errno| (at / PAGE, errno))?;
                    done += page.len();
                }
                Err(errno) => return Err((range.first + done as u64 / PAGE, errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_mappings() {
        let uffd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let range = PageRange::new;
        let fill = Fill { uffd, covered: vec![range(10, 5), range(15, 5), range(30, 10)] };
        assert_eq!(fill.pieces(range(12, 2)), [(range(12, 2), true)]);
        assert_eq!(fill.pieces(range(0, 5)), [(range(0, 5), false)]);
        let across = [
            (range(8, 2), false),
            (range(10, 5), true),
            (range(15, 5), true),
            (range(20, 10), false),
            (range(30, 1), true),
        ];
        assert_eq!(fill.pieces(range(8, 23)), across);
        assert_eq!(fill.pieces(range(38, 4)), [(range(38, 2), true), (range(40, 2), false)]);
    }
}
