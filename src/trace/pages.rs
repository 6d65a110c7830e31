//! Memory contents of targets, for the page pipeline: any thread may call these, none of them needs ptrace.

use super::fill::Fill;
use crate::image::mm::PAGE;
use crate::image::{MmId, Pid};
use crate::memory::pipeline::{PageError, ReadPages, WritePages};
use crate::memory::{PageRange, Space};
use crate::proc::ProcDir;
use crate::sys::{Errno, mapping, mem};
use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The address spaces and shared memory objects of a tree.
#[derive(Debug, Default)]
pub struct TargetPages {
    /// For each address space of the model a process that has it.
    pub mms: Vec<Pid>,
    /// For each shared memory object of the model a descriptor, open for what is to be done.
    pub shmems: Vec<std::fs::File>,
    /// Address spaces with fresh mappings that are filled page by page.
    pub fills: HashMap<MmId, Fill>,
}

impl TargetPages {
    /// From processes and descriptors.
    pub fn new(mms: Vec<Pid>, shmems: Vec<OwnedFd>) -> Self {
        Self { mms, shmems: shmems.into_iter().map(Into::into).collect(), fills: HashMap::new() }
    }
}

fn at(page: u64) -> impl Fn(Errno) -> PageError {
    move |errno| PageError { page, source: io::Error::from_raw_os_error(errno as i32) }
}

impl ReadPages for TargetPages {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        match space {
            Space::Mm(mm) => read_mm(self.mms[mm.at()], ranges, buf),
            Space::Shmem(shmem) => {
                let mut rest = buf;
                for range in ranges {
                    let (part, later) = rest.split_at_mut(range.bytes() as usize);
                    read_padded(&self.shmems[shmem.at()], range.start_byte(), part)
                        .map_err(|source| PageError { page: range.first, source })?;
                    rest = later;
                }
                Ok(())
            }
        }
    }
}

/// Reads a part of a memory object; what lies behind its end is zero. The end need not be the end of a page, and the object
/// may have been cut short meanwhile.
///
/// # Errors
/// The file cannot be read.
pub fn read_padded(file: &std::fs::File, mut offset: u64, mut part: &mut [u8]) -> std::io::Result<()> {
    while !part.is_empty() {
        match file.read_at(part, offset)? {
            0 => {
                part.fill(0);
                return Ok(());
            }
            n => {
                part = &mut part[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

fn read_mm(pid: Pid, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
    let pieces: Vec<(u64, usize)> = ranges.iter().map(|r| (r.first * PAGE, r.bytes() as usize)).collect();
    if pieces.len() <= mem::PIECES_MAX && mem::read_pieces(pid, &pieces, buf) == Ok(buf.len()) {
        return Ok(());
    }
    // Somewhere in there is a page its owner may not read (PROT_NONE with contents): a tracer may.
    let mem = crate::proc::open_mem(pid).map_err(|source| PageError { page: ranges[0].first, source })?;
    let mut rest = buf;
    for range in ranges {
        let (part, later) = rest.split_at_mut(range.bytes() as usize);
        if mem.read_exact_at(part, range.first * PAGE).is_err() {
            for (page, content) in (range.first..range.end()).zip(part.chunks_exact_mut(PAGE as usize)) {
                match mem.read_exact_at(content, page * PAGE) {
                    Err(_) if is_behind_file(pid, page) => content.fill(0),
                    read => read.map_err(|source| PageError { page, source })?,
                }
            }
        }
        rest = later;
    }
    Ok(())
}

/// Is this a page of a mapping that lies behind the end of the mapped file? It has no content: whoever touches it gets
/// SIGBUS (mmap(2)). Where a file was cut short under a watched mapping its pages still look as if they held something.
fn is_behind_file(pid: Pid, page: u64) -> bool {
    let look = || -> Option<bool> {
        let dir = ProcDir::open(pid).ok()?;
        let maps = dir.maps(&mut Vec::new()).ok()?;
        let at = page * PAGE;
        let mapping = maps.iter().find(|m| m.start <= at && at < m.end && m.has_file())?;
        let file = dir.open_file(&mapping.map_file(), OFlag::O_PATH).ok()?;
        let stat = nix::sys::stat::fstat(&file).ok()?;
        let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let end = (stat.st_size as u64).next_multiple_of(PAGE);
        Some(is_regular && mapping.offset + (at - mapping.start) >= end)
    };
    look().unwrap_or(false)
}

impl WritePages for TargetPages {
    fn write(&self, space: Space, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError> {
        match space {
            Space::Mm(mm) => match self.fills.get(&mm) {
                None => write_mm(self.mms[mm.at()], ranges, data),
                Some(fill) => fill_mm(self.mms[mm.at()], fill, ranges, data),
            },
            Space::Shmem(shmem) => {
                let mut rest = data;
                for range in ranges {
                    let (part, later) = rest.split_at(range.bytes() as usize);
                    write_file(&self.shmems[shmem.at()], range.first, part)?;
                    rest = later;
                }
                Ok(())
            }
        }
    }

    fn zero(&self, space: Space, range: PageRange) -> Result<(), PageError> {
        let zeros = vec![0; range.bytes() as usize];
        self.write(space, &[range], &zeros)
    }
}

/// Writes what lies within the object: its last page may be cut short.
fn write_file(file: &std::fs::File, page: u64, part: &[u8]) -> Result<(), PageError> {
    let failed = |source| PageError { page, source };
    let size = file.metadata().map_err(failed)?.len();
    let len = size.saturating_sub(page * PAGE).min(part.len() as u64) as usize;
    match file.write_all_at(&part[..len], page * PAGE) {
        // hugetlbfs has no write(2): such a file is filled through a mapping.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            mapping::write_at(file, page * PAGE, &part[..len]).map_err(|errno| at(page)(errno))
        }
        written => written.map_err(failed),
    }
}

fn fill_mm(pid: Pid, fill: &Fill, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError> {
    let mut rest = data;
    for (piece, covered) in ranges.iter().flat_map(|r| fill.pieces(*r)) {
        let (part, later) = rest.split_at(piece.bytes() as usize);
        if covered {
            fill.copy(pid, piece, part).map_err(|(page, errno)| at(page)(errno))?;
        } else {
            write_mm(pid, &[piece], part)?;
        }
        rest = later;
    }
    Ok(())
}

fn write_mm(pid: Pid, ranges: &[PageRange], data: &[u8]) -> Result<(), PageError> {
    let pieces: Vec<(u64, usize)> = ranges.iter().map(|r| (r.first * PAGE, r.bytes() as usize)).collect();
    if pieces.len() <= mem::PIECES_MAX {
        match mem::write_pieces(pid, &pieces, data) {
            Ok(n) if n == data.len() => return Ok(()),
            Ok(_) | Err(Errno::EFAULT) => {}
            Err(e) => return Err(at(ranges[0].first)(e)),
        }
    }
    // Read-only to their owner: written as a debugger would.
    let mem = crate::proc::open_mem(pid).map_err(|source| PageError { page: ranges[0].first, source })?;
    let mut rest = data;
    for range in ranges {
        let (part, later) = rest.split_at(range.bytes() as usize);
        if mem.write_all_at(part, range.first * PAGE).is_err() {
            for (page, content) in (range.first..range.end()).zip(part.chunks_exact(PAGE as usize)) {
                match mem.write_all_at(content, page * PAGE) {
                    Err(_) if is_behind_file(pid, page) => {}
                    written => written.map_err(|source| PageError { page, source })?,
                }
            }
        }
        rest = later;
    }
    Ok(())
}
