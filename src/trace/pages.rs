//! Memory contents of targets, for the page pipeline: any thread may call these, none of them needs ptrace.

use super::fill::Fill;
use crate::image::mm::PAGE;
use crate::image::{MmId, Pid};
use crate::memory::pipeline::{PageError, ReadPages, WritePages};
use crate::memory::{PageRange, Space};
use crate::proc::ProcDir;
use crate::proc::maps::Mapping;
use crate::proc::pagemap::{self, Entry, offset_of};
use crate::sys::{Errno, mapping, mem};
use nix::fcntl::OFlag;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// The address spaces and shared memory objects of a tree.
#[derive(Debug, Default)]
pub struct TargetPages {
    /// For each address space of the model a process that has it.
    pub mms: Vec<Pid>,
    /// For each shared memory object of the model a descriptor, open for what is to be done.
    pub shmems: Vec<std::fs::File>,
    /// Address spaces with fresh mappings that are filled page by page.
    pub fills: HashMap<MmId, Fill>,
    /// For each address space how it is to be read.
    pub sharing: Vec<Sharing>,
}

/// Whether others may have pages of an address space, copy-on-write. process_vm_readv(2) pins what it reads, and the kernel then
/// makes a page that is shared a private copy first (`FAULT_FLAG_UNSHARE`, Linux 5.19): a tree that is saved and goes on would
/// need the memory once more for each process. `/proc/PID/mem` leaves them alone, at two thirds of the speed.
#[derive(Debug, Default, Clone)]
pub struct Sharing(OnceLock<bool>);

impl Sharing {
    /// Less than this is always read the slow way: to look for relatives takes as long. Bytes.
    const SMALL: u64 = 16 << 20;

    /// Found out at the first question, in about 2 microseconds for each process of the host.
    pub fn of(&self, pid: Pid) -> bool {
        // What cannot be examined may.
        *self.0.get_or_init(|| Self::look(pid).unwrap_or(true))
    }

    fn look(pid: Pid) -> Option<bool> {
        let dir = ProcDir::open(pid).ok()?;
        if dir.stat(&mut Vec::new()).ok()?.rss.cast_unsigned() * PAGE <= Self::SMALL {
            return Some(true);
        }
        // Pages that were merged by content (KSM, Linux 5.19) are shared with anybody.
        let merged = dir.read_into("ksm_merging_pages", &mut Vec::new()).is_ok_and(|text| text != b"0\n");
        Some(merged || has_relatives(&dir)?)
    }
}

/// Who has not executed another program since it was forked runs the same.
fn has_relatives(dir: &ProcDir) -> Option<bool> {
    let program = |dir: &ProcDir| dir.stat_of("exe").map(|stat| (stat.st_dev, stat.st_ino)).ok();
    let own = program(dir)?;
    let others = crate::proc::task::processes().ok()?.into_iter().filter(|pid| *pid != dir.pid());
    Some(others.filter_map(|pid| ProcDir::open(pid).ok()).any(|other| program(&other) == Some(own)))
}

impl TargetPages {
    /// From processes and descriptors.
    pub fn new(mms: Vec<Pid>, shmems: Vec<OwnedFd>) -> Self {
        let sharing = vec![Sharing::default(); mms.len()];
        Self { mms, shmems: shmems.into_iter().map(Into::into).collect(), fills: HashMap::new(), sharing }
    }

    /// What is known already of a process's sharing need not be looked for.
    #[must_use]
    pub fn sharing(mut self, known: impl Fn(Pid) -> Option<Sharing>) -> Self {
        for (pid, sharing) in self.mms.iter().zip(&mut self.sharing) {
            *sharing = known(*pid).unwrap_or_default();
        }
        self
    }
}

fn at(page: u64) -> impl Fn(Errno) -> PageError {
    move |errno| PageError { page, source: io::Error::from_raw_os_error(errno as i32) }
}

impl ReadPages for TargetPages {
    fn read(&self, space: Space, ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
        match space {
            Space::Mm(mm) => read_private((self.mms[mm.at()], &self.sharing[mm.at()]), ranges, buf),
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

/// Reads pages of an address space, as they are.
///
/// # Errors
/// One of them is not there.
pub fn read_private(from: (Pid, &Sharing), ranges: &[PageRange], buf: &mut [u8]) -> Result<(), PageError> {
    read_each_way(from, ranges, buf, &mut Err)
}

/// Reads pages of an address space of a process that runs: what is not there any more is zero in `buf`, and named.
///
/// # Errors
/// None of them can be read: the process has ended.
pub fn read_living(
    from: (Pid, &Sharing),
    ranges: &[PageRange],
    buf: &mut [u8],
    gone: &mut dyn FnMut(u64),
) -> Result<(), PageError> {
    read_each_way(from, ranges, buf, &mut |error| {
        gone(error.page);
        Ok(())
    })
}

/// Told of a page that is not there; its error is that of the whole.
type Missing<'a> = &'a mut dyn FnMut(PageError) -> Result<(), PageError>;

fn read_each_way(
    (pid, sharing): (Pid, &Sharing),
    ranges: &[PageRange],
    buf: &mut [u8],
    missing: Missing<'_>,
) -> Result<(), PageError> {
    if !sharing.of(pid) {
        return read_pieces(pid, ranges, buf, missing);
    }
    let mut rest = buf;
    for (pieces, shared) in by_sharing(pid, ranges)? {
        let bytes = pieces.iter().map(|r| r.bytes() as usize).sum();
        let (part, later) = rest.split_at_mut(bytes);
        let read = if shared { read_slowly } else { read_pieces };
        read(pid, &pieces, part, missing)?;
        rest = later;
    }
    Ok(())
}

/// These ranges in their order, in groups that are read in one way: whether others have their pages, too.
fn by_sharing(pid: Pid, ranges: &[PageRange]) -> Result<Vec<(Vec<PageRange>, bool)>, PageError> {
    let failed = |page: u64| move |source| PageError { page, source };
    let pagemap = pagemap_of(pid).map_err(failed(ranges[0].first))?;
    let mut groups: Vec<(Vec<PageRange>, bool)> = Vec::new();
    let mut entries = Vec::new();
    for range in ranges {
        entries.resize(range.count as usize * Entry::SIZE, 0);
        pagemap.read_exact_at(&mut entries, offset_of(range.start_byte())).map_err(failed(range.first))?;
        let shared = |entry: Entry| entry.is_present() && !entry.is_file() && !entry.is_exclusive();
        for (page, entry) in (range.first..).zip(pagemap::entries(&entries)) {
            let shared = shared(entry);
            match groups.last_mut() {
                Some((pieces, of)) if *of == shared => match pieces.last_mut() {
                    Some(last) if last.end() == page => last.count += 1,
                    _ => pieces.push(PageRange::new(page, 1)),
                },
                _ => groups.push((vec![PageRange::new(page, 1)], shared)),
            }
        }
    }
    Ok(groups)
}

fn pagemap_of(pid: Pid) -> io::Result<std::fs::File> {
    let opened = ProcDir::open(pid).and_then(|dir| dir.open_file("pagemap", OFlag::O_RDONLY));
    opened.map(Into::into).map_err(io::Error::other)
}

/// Reads what nobody else has.
fn read_pieces(pid: Pid, ranges: &[PageRange], buf: &mut [u8], missing: Missing<'_>) -> Result<(), PageError> {
    let pieces: Vec<(u64, usize)> = ranges.iter().map(|r| (r.first * PAGE, r.bytes() as usize)).collect();
    if pieces.len() <= mem::PIECES_MAX && mem::read_pieces(pid, &pieces, buf) == Ok(buf.len()) {
        return Ok(());
    }
    // Somewhere in there is a page its owner may not read (PROT_NONE with contents): a tracer may.
    read_slowly(pid, ranges, buf, missing)
}

/// Reads what others may have as well, and what its owner may not read.
fn read_slowly(pid: Pid, ranges: &[PageRange], buf: &mut [u8], missing: Missing<'_>) -> Result<(), PageError> {
    let failed = |source| PageError { page: ranges[0].first, source };
    let (memory, pagemap) = (crate::proc::open_mem(pid).map_err(failed)?, pagemap_of(pid).map_err(failed)?);
    let ends = FileEnds::of(pid);
    let mut rest = buf;
    for range in ranges {
        let (part, later) = rest.split_at_mut(range.bytes() as usize);
        let whole = is_there(&pagemap, *range) && memory.read_exact_at(part, range.start_byte()).is_ok();
        if !whole {
            for (page, content) in (range.first..range.end()).zip(part.chunks_exact_mut(PAGE as usize)) {
                let read = read_page(pid, (&memory, &pagemap), page, content);
                if read.is_err() {
                    content.fill(0);
                }
                match read {
                    Err(_) if ends.are_before(page) => {}
                    read => read.or_else(|source| missing(PageError { page, source }))?,
                }
            }
        }
        rest = later;
    }
    Ok(())
}

fn read_page(
    pid: Pid,
    (memory, pagemap): (&std::fs::File, &std::fs::File),
    page: u64,
    content: &mut [u8],
) -> io::Result<()> {
    if is_there(pagemap, PageRange::new(page, 1)) {
        memory.read_exact_at(content, page * PAGE)
    } else if mem::read(pid, page * PAGE, content) == Ok(content.len()) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

/// Whether all of these pages have contents at this moment. `/proc/PID/mem` is not asked for what is not: below a stack the kernel
/// would take it for a touch of the stack, and extend it (`__access_remote_vm`, mm/memory.c, Linux 6.5).
fn is_there(pagemap: &std::fs::File, range: PageRange) -> bool {
    let mut entries = vec![0; range.count as usize * Entry::SIZE];
    let read = pagemap.read_exact_at(&mut entries, offset_of(range.start_byte()));
    read.is_ok() && pagemap::entries(&entries).all(Entry::has_content)
}

/// Where the files end that a process has mapped, by its mappings at the first question: a process may have many of them, and a running
/// one many pages that are gone.
struct FileEnds {
    pid: Pid,
    mappings: OnceCell<Option<(ProcDir, Vec<Mapping>)>>,
}

impl FileEnds {
    fn of(pid: Pid) -> Self {
        Self { pid, mappings: OnceCell::new() }
    }

    /// Is this a page of a mapping that lies behind the end of the mapped file? It has no content: whoever touches it gets
    /// SIGBUS (mmap(2)). Where a file was cut short under a watched mapping its pages still look as if they held something.
    fn are_before(&self, page: u64) -> bool {
        let read = || {
            let dir = ProcDir::open(self.pid).ok()?;
            let maps = dir.maps(&mut Vec::new()).ok()?;
            Some((dir, maps))
        };
        let Some((dir, maps)) = self.mappings.get_or_init(read) else { return false };
        let at = page * PAGE;
        let look = || -> Option<bool> {
            let mapping = maps.get(maps.partition_point(|m| m.end <= at))?;
            if mapping.start > at || !mapping.has_file() {
                return None;
            }
            let file = dir.open_file(&mapping.map_file(), OFlag::O_PATH).ok()?;
            let stat = nix::sys::stat::fstat(&file).ok()?;
            let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
            let end = (stat.st_size as u64).next_multiple_of(PAGE);
            Some(is_regular && mapping.offset + (at - mapping.start) >= end)
        };
        look().unwrap_or(false)
    }
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
    let ends = FileEnds::of(pid);
    let mut rest = data;
    for range in ranges {
        let (part, later) = rest.split_at(range.bytes() as usize);
        if mem.write_all_at(part, range.first * PAGE).is_err() {
            for (page, content) in (range.first..range.end()).zip(part.chunks_exact(PAGE as usize)) {
                match mem.write_all_at(content, page * PAGE) {
                    Err(_) if ends.are_before(page) => {}
                    written => written.map_err(|source| PageError { page, source })?,
                }
            }
        }
        rest = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::Special;
    use std::process::Command;

    #[test]
    fn what_is_not_there_is_an_error_and_no_touch_of_the_stack() {
        let mut sleeps = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid(sleeps.id().cast_signed());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let stack = || {
            let maps = ProcDir::open(pid).unwrap().maps(&mut Vec::new()).unwrap();
            let stack = maps.iter().find(|m| m.special() == Some(Special::Stack)).unwrap();
            (stack.start, stack.end)
        };
        let (start, end) = stack();
        let mut page = [0; PAGE as usize];
        for below in [1, 16, 256] {
            let range = PageRange::new(start / PAGE - below, 1);
            assert!(read_private((pid, &Sharing::default()), &[range], &mut page).is_err());
        }
        assert_eq!(stack(), (start, end));
        read_private((pid, &Sharing::default()), &[PageRange::new(end / PAGE - 1, 1)], &mut page).unwrap();
        assert!(page.iter().any(|byte| *byte != 0), "its name is there");
        sleeps.kill().unwrap();
        sleeps.wait().unwrap();
    }
}
