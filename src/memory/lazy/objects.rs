//! Shared memory objects whose pages arrive late, for several address spaces at once.
//!
//! A page belongs to the object, so it is made once, through a mapping of ours (a [`Window`]) with a userfaultfd of its own;
//! address spaces that have the object mapped ([`View`]) only tell who waits, and are woken. What a page is called is fixed by
//! where it lies in the object, whatever processes do with their mappings. Properties of the kernel relied on:
//! - A missing page of shared memory is reported to the address space that touches it; a page that is there, made through
//!   whichever mapping, is not (mode `MISSING` alone).
//! - The event of madvise(2) does not say whether contents were dropped (`MADV_REMOVE`: zeros from now on) or only this
//!   mapping's knowledge of them (`MADV_DONTNEED`: they stay). So no event of such an address space is read while pages of
//!   its objects are missing: whoever forks, moves, unmaps or drops shared memory waits until all of it is in, which is
//!   asked for at once. Private memory has a descriptor of its own, with events of its own.
//! - Hence mappings stay what they are until then, but for one that mremap(2) makes longer in place, which tells nobody: it
//!   shows what follows in the object.
//! - Pages that somebody makes by another way (a file of `/proc/PID/map_files`, remap_file_pages(2)) are not noticed before
//!   their content comes; then the target is stopped.

use super::order::Fault;
use super::server::NO_MEMORY;
use super::source::Lost;
use crate::image::ShmemId;
use crate::image::mm::PAGE;
use crate::memory::{PageRange, RangeSet, Space};
use crate::proc::fdinfo::faults_pending;
use crate::sys::Errno;
use crate::sys::mapping::Window;
use crate::sys::userfaultfd::{self as sys, Message, mode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Part of an object in an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Addresses.
    pub at: PageRange,
    /// Of which object.
    pub object: ShmemId,
    /// Its first page there.
    pub from: u64,
}

/// One object.
#[derive(Debug)]
pub struct Object {
    id: ShmemId,
    /// Pages that come into being in one piece: 1, or those of a huge page.
    unit: u64,
    window: Window,
    uffd: OwnedFd,
    missing: RangeSet,
    /// Huge pages of which a part is here, by their first page.
    parts: HashMap<u64, Vec<u8>>,
}

impl Object {
    /// An object of `size` bytes in pages of `unit` bytes, of which these are missing.
    ///
    /// # Errors
    /// It cannot be mapped, or not be served.
    pub fn new(id: ShmemId, file: BorrowedFd<'_>, unit: u64, size: u64, missing: RangeSet) -> Result<Self, Errno> {
        let window = Window::new(file, usize::try_from(size.next_multiple_of(unit)).map_err(|_| Errno::ENOMEM)?)?;
        let uffd = sys::open(true)?;
        sys::handshake(uffd.as_fd(), 0)?;
        sys::register(uffd.as_fd(), window.start(), window.length(), mode::MISSING)?;
        Ok(Self { id, unit: unit / PAGE, window, uffd, missing, parts: HashMap::new() })
    }

    /// The pages that come into being together with this one.
    fn whole(&self, page: u64) -> PageRange {
        PageRange::new(page - page % self.unit, self.unit)
    }

    fn is_missing(&self, page: u64) -> bool {
        !self.missing.within(self.whole(page)).is_empty()
    }

    /// Makes pages that are not there.
    fn make(&self, first: u64, content: &[u8]) -> Result<(), Errno> {
        let (mut done, mut waits) = (0, 0);
        loop {
            let at = self.window.start() + first * PAGE + done as u64;
            let (bytes, result) = sys::copy(self.uffd.as_fd(), at, &content[done..]);
            done += bytes;
            match result {
                Err(Errno::EAGAIN) => {}
                Err(Errno::ENOMEM) if waits < NO_MEMORY.0 => {
                    waits += 1;
                    std::thread::sleep(NO_MEMORY.1);
                }
                result => return result,
            }
        }
    }

    /// Makes a page that never had a content.
    fn make_zero(&self, page: u64) -> Result<(), Errno> {
        let whole = self.whole(page);
        let at = self.window.start() + whole.first * PAGE;
        match self.unit {
            1 => sys::zero(self.uffd.as_fd(), at, PAGE),
            // Of huge pages the kernel makes none of zeros.
            _ => sys::copy(self.uffd.as_fd(), at, &vec![0; whole.bytes() as usize]).1,
        }
    }

    /// Takes what has come; `made` is told which pages are there now.
    fn take(&mut self, range: PageRange, data: &[u8], made: &mut dyn FnMut(PageRange)) -> Result<(), Errno> {
        let pieces = self.missing.within(range);
        let content =
            |piece: PageRange| &data[((piece.first - range.first) * PAGE) as usize..][..piece.bytes() as usize];
        for piece in pieces.iter() {
            if self.unit == 1 {
                self.make(piece.first, content(piece))?;
                self.missing.remove(piece);
                made(piece);
                continue;
            }
            let mut rest = piece;
            while !rest.is_empty() {
                let whole = self.whole(rest.first);
                let now = rest.intersect(whole);
                let part = self.parts.entry(whole.first).or_insert_with(|| vec![0; whole.bytes() as usize]);
                let at = ((now.first - whole.first) * PAGE) as usize;
                part[at..at + now.bytes() as usize].copy_from_slice(content(now));
                self.missing.remove(now);
                if !self.is_missing(whole.first) {
                    let part = self.parts.remove(&whole.first).unwrap_or_default();
                    self.make(whole.first, &part)?;
                    made(whole);
                }
                rest = PageRange::new(now.end(), rest.end() - now.end());
            }
        }
        Ok(())
    }
}

/// An address space that has objects mapped.
#[derive(Debug)]
pub struct View {
    uffd: OwnedFd,
    areas: Vec<Area>,
    gone: bool,
    /// Somebody there waits for an event to be read.
    waits: bool,
}

impl View {
    /// `areas` are registered with `uffd`, and nothing else is.
    pub fn new(uffd: OwnedFd, mut areas: Vec<Area>) -> Self {
        areas.sort_by_key(|area| area.at.first);
        Self { uffd, areas, gone: false, waits: false }
    }

    /// What is shown at an address.
    fn shown(&self, page: u64) -> Option<(ShmemId, u64)> {
        let at = self.areas.partition_point(|area| area.at.first <= page);
        let area = self.areas.get(at.checked_sub(1)?)?;
        Some((area.object, area.from + (page - area.at.first)))
    }

    fn wake(&self, pages: PageRange) {
        // Nobody to be woken is no harm.
        let _ = sys::wake(self.uffd.as_fd(), pages.start_byte(), pages.bytes());
    }

    fn is_readable(&self) -> bool {
        let mut wanted = [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// Somebody who waits in a view for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    /// Number of the view.
    pub view: usize,
    /// Where it has touched it.
    pub page: u64,
    of: (ShmemId, u64),
}

/// What a fault has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// These are to be brought.
    Missing(Fault),
    /// It never had a content, and is there now.
    Hole,
    /// It is there.
    There,
    /// No memory just now: once more.
    Again,
}

/// What was heard from views.
#[derive(Debug, Default)]
pub struct Heard {
    /// View, address and thread of faults.
    pub faults: Vec<(usize, u64, u32)>,
    /// Somebody waits until all of these are in.
    pub soon: Vec<(Space, RangeSet)>,
}

/// All objects of a tree, and who has them mapped.
#[derive(Debug, Default)]
pub struct Objects {
    objects: Vec<Object>,
    views: Vec<View>,
    waiting: Vec<Waiter>,
}

impl Objects {
    /// Of these.
    pub fn new(objects: Vec<Object>, views: Vec<View>) -> Self {
        Self { objects, views, waiting: Vec::new() }
    }

    /// Pages that are missing.
    pub fn missing(&self) -> u64 {
        self.objects.iter().map(|object| object.missing.pages()).sum()
    }

    /// Where they are missing: number of the view, addresses.
    pub fn missing_places(&self) -> impl Iterator<Item = (usize, PageRange)> + '_ {
        let in_area = |area: &Area| -> Vec<PageRange> {
            let Some(object) = self.objects.iter().find(|object| object.id == area.object) else { return Vec::new() };
            let shown = PageRange::new(area.from, area.at.count);
            let whole: RangeSet = object
                .missing
                .within(shown)
                .iter()
                .map(|r| {
                    let (first, last) = (object.whole(r.first), object.whole(r.end() - 1));
                    PageRange::new(first.first, last.end() - first.first)
                })
                .collect();
            whole.iter().map(|r| PageRange::new(area.at.first + (r.first - area.from), r.count)).collect()
        };
        let live = self.views.iter().enumerate().filter(|(_, view)| !view.gone);
        live.flat_map(move |(n, view)| view.areas.iter().flat_map(in_area).map(move |at| (n, at)))
    }

    /// Descriptors that become readable when there is something to hear, but for those with an event that has to wait.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.views.iter().filter(|view| !view.gone && !view.waits).map(|view| view.uffd.as_fd())
    }

    /// Somebody waits for an event to be read: faults of these views are found by looking.
    pub fn has_to_look(&self) -> bool {
        self.views.iter().any(|view| view.waits && !view.gone)
    }

    fn is_complete(&self, view: &View) -> bool {
        let lacks = |id: ShmemId| self.objects.iter().any(|object| object.id == id && !object.missing.is_empty());
        !view.areas.iter().any(|area| lacks(area.object))
    }

    /// Reads what views have to tell.
    ///
    /// # Errors
    /// An event was read that should have waited: its thread was killed, and what it leaves is not known.
    pub fn listen(&mut self) -> Result<Heard, Lost> {
        let mut heard = Heard::default();
        for n in 0..self.views.len() {
            let view = &self.views[n];
            if view.gone || !view.is_readable() {
                continue;
            }
            let (complete, uffd) = (self.is_complete(view), view.uffd.as_fd());
            let count = if complete { usize::MAX } else { faults_pending(uffd).unwrap_or(0) };
            let messages = if count == 0 { Vec::new() } else { sys::first_messages(uffd, count).unwrap_or_default() };
            for message in messages {
                match message {
                    Message::Fault { address, thread } => heard.faults.push((n, address / PAGE, thread)),
                    // Everything is in: a child's descriptor is closed, and its memory is like any other.
                    _ if complete => {}
                    _ => return Err(self.unknown(n)),
                }
            }
            let waits = !complete && count == 0;
            if waits && !self.views[n].waits {
                heard.soon.extend(self.owed(n));
            }
            self.views[n].waits = waits;
        }
        Ok(heard)
    }

    /// What is missing of the objects that a view has.
    fn owed(&self, n: usize) -> Vec<(Space, RangeSet)> {
        let shown = |object: &&Object| self.views[n].areas.iter().any(|area| area.object == object.id);
        let objects = self.objects.iter().filter(shown);
        objects.map(|object| (Space::Shmem(object.id), object.missing.clone())).collect()
    }

    fn unknown(&self, n: usize) -> Lost {
        let (space, pages) = self.owed(n).into_iter().next().unwrap_or((Space::Shmem(ShmemId(0)), RangeSet::new()));
        let range = pages.ranges().first().copied().unwrap_or(PageRange::new(0, 0));
        Lost { space, range, reason: "a mapping was changed by a thread that was killed".into() }
    }

    /// A thread has touched a page that is not there.
    pub fn fault(&mut self, view: usize, page: u64, thread: u32) -> Answer {
        let shown = self.views[view].shown(page);
        let object = shown.and_then(|(id, _)| self.objects.iter().find(|object| object.id == id));
        let (Some(object), Some((id, at))) = (object, shown) else {
            self.views[view].wake(PageRange::new(page, 1));
            return Answer::There;
        };
        let whole = object.whole(at);
        if object.is_missing(at) {
            let waiter = Waiter { view, page, of: (id, whole.first) };
            if !self.waiting.contains(&waiter) {
                self.waiting.push(waiter);
            }
            return Answer::Missing(Fault { space: Space::Shmem(id), page: whole.first, count: whole.count, thread });
        }
        let made = object.make_zero(at);
        let here = PageRange::new(page - at % object.unit, whole.count);
        match made {
            Err(Errno::ENOMEM) if object.unit == 1 => return Answer::Again,
            Err(Errno::ENOMEM) => {
                // The pool of huge pages is empty, which is what the kernel answers as well.
                let _ = sys::poison(self.views[view].uffd.as_fd(), here.start_byte(), here.bytes());
            }
            _ => {}
        }
        self.views[view].wake(here);
        if made.is_ok() { Answer::Hole } else { Answer::There }
    }

    /// Makes pages that have come; those who have waited for them, and go on.
    ///
    /// # Errors
    /// A page is there already that should not be, or there is no memory for it.
    pub fn place(&mut self, id: ShmemId, range: PageRange, data: &[u8]) -> Result<Vec<Waiter>, Lost> {
        let Self { objects, views, waiting } = self;
        let Some(object) = objects.iter_mut().find(|object| object.id == id) else { return Ok(Vec::new()) };
        let (unit, mut woken) = (object.unit, Vec::new());
        let taken = object.take(range, data, &mut |made| {
            waiting.retain(|waiter| {
                let here = waiter.of.0 == id && made.first <= waiter.of.1 && waiter.of.1 < made.end();
                if here {
                    views[waiter.view].wake(PageRange::new(waiter.page - waiter.page % unit, unit));
                    woken.push(*waiter);
                }
                !here
            });
        });
        taken.map(|()| woken).map_err(|errno| {
            let reason = match errno {
                Errno::EEXIST => "somebody has made pages of it by another way than through its mappings".into(),
                errno => Box::<dyn std::error::Error + Send + Sync>::from(errno),
            };
            Lost { space: Space::Shmem(id), range, reason }
        })
    }

    /// Forgets views whose address space is gone, and objects that nobody has.
    pub fn look_around(&mut self) {
        for view in &mut self.views {
            view.gone |= sys::is_gone(view.uffd.as_fd());
        }
        let Self { objects, views, waiting } = self;
        waiting.retain(|waiter| !views[waiter.view].gone);
        let shown =
            |id: ShmemId| views.iter().any(|view| !view.gone && view.areas.iter().any(|area| area.object == id));
        for object in objects.iter_mut().filter(|object| !shown(object.id)) {
            (object.missing, object.parts) = (RangeSet::new(), HashMap::new());
        }
    }

    /// Marks what is missing in every view. An address space that is being changed is left as it is: who touches it waits.
    /// Shared memory that a child inherits is not marked there, so descriptors must stay open also after this.
    pub fn poison(&self) {
        let places: Vec<(usize, PageRange)> = self.missing_places().collect();
        for (n, place) in places {
            let unit = self.unit_at(n, place.first);
            let mut at = place.first;
            while at < place.end() {
                let (bytes, result) = sys::poison(self.views[n].uffd.as_fd(), at * PAGE, (place.end() - at) * PAGE);
                at += bytes as u64 / PAGE;
                match result {
                    Ok(()) => {}
                    Err(Errno::EEXIST) => at += unit,
                    Err(_) => break,
                }
            }
        }
    }

    fn unit_at(&self, n: usize, page: u64) -> u64 {
        let object = self.views[n].shown(page).and_then(|(id, _)| self.objects.iter().find(|object| object.id == id));
        object.map_or(1, |object| object.unit)
    }
}
