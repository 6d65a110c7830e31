//! The fault server: one thread that reads what userfaultfds tell, and makes pages. See [`super`] for why this is right.

use super::forks::Owner;
use super::missing::{Missing, Piece};
use super::objects::{Answer, Objects};
use super::order::Fault;
use super::source::{Lost, Source};
use super::stalls::Stalls;
use super::touches::Touches;
use crate::image::mm::PAGE;
use crate::image::{Pid, ShmemId};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use crate::proc::fdinfo::faults_pending;
use crate::sys::Errno;
use crate::sys::userfaultfd::{self as sys, Message};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a page may wait for memory of this host before it is given up.
pub(super) const NO_MEMORY: (u32, Duration) = (600, Duration::from_millis(50));
/// Between two looks at shared memory whose descriptor cannot be waited for.
const LOOK: Duration = Duration::from_millis(1);
/// Views of shared memory are numbered from here on, beside address spaces.
pub const VIEWS: usize = 1 << 32;
/// Looks for what a target has done that stands still: each of its threads has done one thing at most.
const SETTLING: u32 = 1 << 16;
/// Between two looks whether an operation of the target has got as far as its event.
const CHANGING: u16 = 5;
/// Events of an address space that are applied before others are looked at.
const EVENTS: usize = 32;

/// One address space.
#[derive(Debug)]
struct Member {
    uffd: OwnedFd,
    owner: Owner,
    missing: Missing,
    /// Pages come write-protected: which of them were written to since can be told.
    watched: bool,
    /// Where pages came to lie by mremap(2), as far as they are watched.
    moved: RangeSet,
    /// Which were written to, before they were protected anew.
    written: RangeSet,
    /// The address space is gone: its last process has ended, or executes another program.
    gone: bool,
}

impl Member {
    fn new(uffd: OwnedFd, missing: Missing) -> Self {
        let (owner, watched, gone) = (Owner::default(), false, false);
        Self { uffd, owner, missing, watched, moved: RangeSet::new(), written: RangeSet::new(), gone }
    }

    /// What it has to tell: faults, or else one event, and what a child does not get if that is a fork.
    fn hear(&mut self) -> (Vec<Message>, RangeSet) {
        let uffd = self.uffd.as_fd();
        let mut wanted = [PollFd::new(uffd, PollFlags::POLLIN)];
        if !poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return (Vec::new(), RangeSet::new());
        }
        let faults = faults_pending(uffd).unwrap_or(0);
        // Nothing owed is nothing to keep from anybody.
        let looks = faults == 0 && !self.missing.is_empty();
        let withheld = if looks { self.owner.withheld(&self.missing) } else { RangeSet::new() };
        (sys::first_messages(uffd, faults.max(1)).unwrap_or_default(), withheld)
    }

    fn copy(&self, to: u64, content: &[u8]) -> (usize, Result<(), Errno>) {
        if self.watched {
            sys::copy_protected(self.uffd.as_fd(), to, content)
        } else {
            sys::copy(self.uffd.as_fd(), to, content)
        }
    }
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faults of pages that were missing.
    pub faults: u64,
    /// Faults of pages that never had a content.
    pub holes: u64,
    /// Pages that came from the source.
    pub pages: u64,
    /// Address spaces that came into being by fork.
    pub forks: u64,
}

/// What one step has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done.
    Worked,
    /// Nothing was to be done: time to wait.
    Idle,
    /// Everything is in.
    Done,
}

/// Called with the descriptor of an address space that a fork has made.
pub type OnFork<'a> = dyn FnMut(BorrowedFd<'_>) + 'a;

/// Serves address spaces from one source.
pub struct Server<'a, S> {
    source: S,
    members: Vec<Member>,
    objects: Objects,
    on_fork: Box<OnFork<'a>>,
    /// Faults to be looked at again: member, address, thread.
    again: Vec<(usize, u64, u32)>,
    /// The same in views of shared memory, by page.
    again_shared: Vec<(usize, u64, u32)>,
    data: PageBuffer,
    counts: Counts,
    touches: Touches,
    stalls: Stalls,
}

impl<'a, S: Source> Server<'a, S> {
    /// Serves these address spaces.
    pub fn new(source: S, members: Vec<(OwnedFd, Missing)>, on_fork: Box<OnFork<'a>>) -> Self {
        let members = members.into_iter().map(|(uffd, missing)| Member::new(uffd, missing)).collect();
        let (again, data, counts, touches) = (Vec::new(), PageBuffer::default(), Counts::default(), Touches::default());
        let (objects, stalls) = (Objects::default(), Stalls::default());
        Self { source, members, objects, on_fork, again, again_shared: Vec::new(), data, counts, touches, stalls }
    }

    /// Pages of these address spaces (by their positions) come write-protected. They must be registered for that.
    #[must_use]
    pub fn watching(mut self, watched: impl Iterator<Item = usize>) -> Self {
        watched.for_each(|n| self.members[n].watched = true);
        self
    }

    /// These processes have the address spaces (in their order), as far as they are known.
    #[must_use]
    pub fn of_processes(mut self, processes: impl Iterator<Item = Pid>) -> Self {
        self.members.iter_mut().zip(processes).for_each(|(member, pid)| member.owner = Owner::new(Some(pid)));
        self
    }

    /// Shared memory as well.
    #[must_use]
    pub fn with_objects(self, objects: Objects) -> Self {
        Self { objects, ..self }
    }

    /// Where pages come from.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Pages in the order in which they were waited for.
    pub fn touches(&self) -> &Touches {
        &self.touches
    }

    /// Who has waited, by the number of the address space, or [`VIEWS`] and that of the view.
    pub fn stalls(&self) -> &Stalls {
        &self.stalls
    }

    /// Pages that are missing somewhere.
    pub fn missing(&self) -> u64 {
        self.members.iter().map(|member| member.missing.pages()).sum::<u64>() + self.objects.missing()
    }

    /// Where pages are missing: the number of the address space (those that were there from the beginning come first, in
    /// their order) or [`VIEWS`] and that of the view, and the addresses.
    pub fn missing_places(&self) -> impl Iterator<Item = (usize, PageRange)> + '_ {
        let members = self.members.iter().enumerate();
        let private = members.flat_map(|(n, member)| member.missing.iter().map(move |piece| (n, piece.at)));
        private.chain(self.objects.missing_places().map(|(n, at)| (VIEWS + n, at)))
    }

    /// What private memory lacks of a target that stands still, by the number of the address space: with everything applied
    /// that it has done to its mappings until then.
    pub fn settled(&mut self) -> impl Iterator<Item = (usize, Piece)> + '_ {
        for _ in 0..SETTLING {
            if !self.listen() {
                break;
            }
        }
        self.look_around();
        let members = self.members.iter().enumerate();
        members.flat_map(|(n, member)| member.missing.iter().map(move |piece| (n, piece)))
    }

    /// Where pages of watched address spaces lie that are not the pages of these addresses where they come from.
    pub fn moved(&self) -> impl Iterator<Item = (usize, PageRange)> + '_ {
        self.members.iter().enumerate().flat_map(|(n, member)| member.moved.iter().map(move |range| (n, range)))
    }

    /// Pages of watched address spaces that were [noted](Self::note_written) as written to.
    pub fn written(&self) -> impl Iterator<Item = (usize, PageRange)> + '_ {
        self.members.iter().enumerate().flat_map(|(n, member)| member.written.iter().map(move |range| (n, range)))
    }

    /// Somebody is about to protect these pages anew, which were written to: the kernel will not know that any more.
    pub fn note_written(&mut self, n: usize, range: PageRange) {
        if let Some(member) = self.members.get_mut(n).filter(|member| member.watched) {
            member.written.insert(range);
        }
    }

    /// Whether shared memory is missing, whose marks ([`Self::poison`]) children do not inherit.
    pub fn lacks_shared(&self) -> bool {
        self.objects.missing() > 0
    }

    /// Does what is to be done now: events and faults first, then one arrival.
    ///
    /// # Errors
    /// Pages that will never come. The target must be stopped, and [poisoned](Self::poison), before this is dropped.
    pub fn step(&mut self) -> Result<Step, Lost> {
        let told = self.listen() | self.listen_to_views()?;
        if self.members.iter().all(|member| member.missing.is_empty()) && self.objects.missing() == 0 {
            return Ok(Step::Done);
        }
        let mut data = std::mem::take(&mut self.data);
        let arrival = self.source.next(&mut data);
        let placed = match &arrival {
            Ok(Some((Space::Shmem(id), range))) => self.place_shared(*id, *range, &data),
            Ok(Some((space, range))) => self.place(*space, *range, &data),
            _ => Ok(()),
        };
        self.data = data;
        placed?;
        match arrival? {
            Some(_) => Ok(Step::Worked),
            None if told => Ok(Step::Worked),
            None => Ok(Step::Idle),
        }
    }

    /// Forgets address spaces that are gone, which nobody tells: for whoever does not send anything just now.
    pub fn look_around(&mut self) {
        for n in 0..self.members.len() {
            if !self.members[n].gone && sys::is_gone(self.members[n].uffd.as_fd()) {
                self.left(n);
            }
        }
        self.objects.look_around();
    }

    /// Waits until there may be something to do, or one of `others` is readable: which of them are.
    pub fn wait(&self, others: &[BorrowedFd<'_>], timeout: Duration) -> Vec<bool> {
        let ours = self.members.iter().filter(|member| !member.gone).map(|member| member.uffd.as_fd());
        let all = others.iter().copied().chain(self.source.descriptors()).chain(ours).chain(self.objects.descriptors());
        let timeout = if self.objects.has_to_look() { timeout.min(LOOK) } else { timeout };
        let mut wanted: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An error is nothing to wait for: the next look finds out.
        let _ = poll(&mut wanted, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        wanted[..others.len()].iter().map(|fd| fd.revents().is_some_and(|r| !r.is_empty())).collect()
    }

    /// Whether this kernel has `UFFDIO_POISON`.
    pub fn can_poison(&self) -> bool {
        let known = sys::open(true).and_then(|fd| sys::handshake(fd.as_fd(), 0));
        known.is_ok_and(|features| features & sys::feature::POISON != 0)
    }

    /// Marks everything that is missing, so that a touch gives SIGBUS instead of zeros, also after the descriptors were
    /// closed. Nothing happens where the kernel cannot.
    pub fn poison(&mut self) {
        if !self.can_poison() {
            return;
        }
        let mut n = 0;
        // Forks under way add members.
        while n < self.members.len() {
            self.listen();
            let pieces: Vec<Piece> = self.members[n].missing.iter().collect();
            pieces.iter().for_each(|piece| self.poison_range(n, piece.at));
            n += 1;
        }
        self.objects.poison();
    }

    fn poison_range(&mut self, n: usize, range: PageRange) {
        let mut at = range.first;
        while at < range.end() {
            let (bytes, result) = sys::poison(self.members[n].uffd.as_fd(), at * PAGE, (range.end() - at) * PAGE);
            at += bytes as u64 / PAGE;
            match result {
                Ok(()) => {}
                Err(Errno::EAGAIN) => self.let_change(n),
                Err(Errno::ESRCH) => return,
                // There, or not mapped any more; the range may reach beyond a mapping.
                Err(_) => {
                    let _ = sys::poison(self.members[n].uffd.as_fd(), at * PAGE, PAGE);
                    at += 1;
                }
            }
        }
    }

    /// Reads and applies what all descriptors have to tell; whether there was anything.
    fn listen(&mut self) -> bool {
        let mut told = false;
        let mut n = 0;
        // Forks add members on the way.
        while n < self.members.len() {
            told |= self.listen_to(n);
            n += 1;
        }
        for (n, address, thread) in std::mem::take(&mut self.again) {
            self.fault(n, address, thread);
        }
        told
    }

    /// The same for shared memory.
    fn listen_to_views(&mut self) -> Result<bool, Lost> {
        let heard = self.objects.listen()?;
        let told = !heard.faults.is_empty();
        let mut faults = std::mem::take(&mut self.again_shared);
        faults.extend(heard.faults);
        for (view, page, thread) in faults {
            match self.objects.fault(view, page, thread) {
                Answer::Missing(fault) => {
                    self.counts.faults += 1;
                    (fault.page..fault.page + fault.count).for_each(|page| self.touches.note(fault.space, page));
                    self.stalls.begin(VIEWS + view, page, thread, Instant::now());
                    self.source.want(fault);
                }
                Answer::Hole => self.counts.holes += 1,
                Answer::There => {}
                Answer::Again => self.again_shared.push((view, page, thread)),
            }
        }
        heard.soon.iter().for_each(|(space, pages)| self.source.soon(*space, pages));
        Ok(told)
    }

    fn place_shared(&mut self, id: ShmemId, range: PageRange, data: &[u8]) -> Result<(), Lost> {
        self.counts.pages += range.count;
        let now = Instant::now();
        for waiter in self.objects.place(id, range, data)? {
            self.stalls.end(VIEWS + waiter.view, waiter.page, 1, now);
        }
        Ok(())
    }

    /// The same for one of them. Faults are kept for later, see [`super`].
    fn listen_to(&mut self, n: usize) -> bool {
        for round in 0..EVENTS {
            if self.members[n].gone {
                return round > 0;
            }
            let (messages, withheld) = self.members[n].hear();
            if messages.is_empty() {
                return round > 0;
            }
            messages.into_iter().for_each(|message| self.apply(n, message, &withheld));
        }
        true
    }

    fn apply(&mut self, n: usize, message: Message, withheld: &RangeSet) {
        match message {
            Message::Fault { address, thread } => self.again.push((n, address, thread)),
            Message::Fork(uffd) => self.forked(n, uffd, withheld),
            Message::Remap { from, to, len } => {
                self.members[n].missing.remap(from / PAGE, to / PAGE, len / PAGE);
                if self.members[n].watched {
                    self.members[n].moved.insert(PageRange::new(to / PAGE, len / PAGE));
                }
                self.stalls.end(n, from / PAGE, len / PAGE, Instant::now());
                self.wake(n, from, len);
                self.wake(n, to, len);
            }
            Message::Remove { start, end } | Message::Unmap { start, end } => {
                let range = PageRange::of_bytes(start, end);
                self.members[n].missing.remove(range);
                self.stalls.end(n, range.first, range.count, Instant::now());
                self.wake(n, start, end - start);
            }
        }
    }

    fn forked(&mut self, n: usize, uffd: OwnedFd, withheld: &RangeSet) {
        self.counts.forks += 1;
        (self.on_fork)(uffd.as_fd());
        let mut missing = self.members[n].missing.clone();
        for range in withheld.iter() {
            missing.remove(range);
        }
        // Whoever watches does not know its processes.
        self.members.push(Member::new(uffd, missing));
    }

    /// Whoever waits for a page of this range looks again.
    fn wake(&self, n: usize, start: u64, len: u64) {
        // Nobody to be woken is no harm.
        let _ = sys::wake(self.members[n].uffd.as_fd(), start, len);
    }

    fn fault(&mut self, n: usize, address: u64, thread: u32) {
        let page = address / PAGE;
        if let Some((space, from)) = self.members[n].missing.get(page) {
            self.counts.faults += 1;
            self.touches.note(space, from);
            self.stalls.begin(n, page, thread, Instant::now());
            self.source.want(Fault { space, page: from, count: 1, thread });
            return;
        }
        match sys::zero(self.members[n].uffd.as_fd(), page * PAGE, PAGE) {
            Ok(()) => self.counts.holes += 1,
            // The target is changing its mappings: once more when that is known.
            Err(Errno::EAGAIN) => {
                self.let_change(n);
                self.again.push((n, address, thread));
            }
            Err(Errno::ESRCH) => self.left(n),
            // It is there by now, or no longer ours.
            Err(_) => self.wake(n, page * PAGE, PAGE),
        }
    }

    fn left(&mut self, n: usize) {
        let member = &mut self.members[n];
        (member.gone, member.missing) = (true, Missing::default());
        self.stalls.end(n, 0, u64::MAX, Instant::now());
    }

    /// An operation of the target on its mappings is under way: waits for its event, and applies that.
    fn let_change(&mut self, n: usize) {
        let mut wanted = [PollFd::new(self.members[n].uffd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wanted, PollTimeout::from(CHANGING));
        self.listen_to(n);
    }

    /// Makes pages wherever they are missing.
    fn place(&mut self, space: Space, range: PageRange, data: &[u8]) -> Result<(), Lost> {
        self.counts.pages += range.count;
        let mut n = 0;
        let mut waits = 0;
        while n < self.members.len() {
            let Some(piece) = self.members[n].missing.places(space, range).first().copied() else {
                n += 1;
                continue;
            };
            let content = &data[((piece.from - range.first) * PAGE) as usize..][..piece.at.bytes() as usize];
            let (bytes, result) = self.members[n].copy(piece.at.start_byte(), content);
            let done = PageRange::new(piece.at.first, bytes as u64 / PAGE);
            self.members[n].missing.remove(done);
            self.stalls.end(n, done.first, done.count, Instant::now());
            match result {
                Ok(()) => {}
                Err(Errno::EAGAIN) => self.let_change(n),
                Err(Errno::ESRCH) => self.left(n),
                Err(errno @ Errno::ENOMEM) if waits == NO_MEMORY.0 => {
                    return Err(Lost { space, range, reason: Box::new(errno) });
                }
                Err(Errno::ENOMEM) => {
                    waits += 1;
                    std::thread::sleep(NO_MEMORY.1);
                }
                Err(_) => self.place_one(n, done.end(), &content[bytes..]),
            }
        }
        Ok(())
    }

    /// One page where more at once could not be made: the range reaches beyond a mapping, or this page needs none any more.
    fn place_one(&mut self, n: usize, page: u64, content: &[u8]) {
        let (_, result) = self.members[n].copy(page * PAGE, &content[..PAGE as usize]);
        if !matches!(result, Err(Errno::EAGAIN | Errno::ENOMEM | Errno::ESRCH)) {
            // Made, or there, or not mapped here any more.
            self.members[n].missing.remove(PageRange::new(page, 1));
            self.stalls.end(n, page, 1, Instant::now());
            self.wake(n, page * PAGE, PAGE);
        }
    }
}

impl<S> std::fmt::Debug for Server<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("members", &self.members.len()).field("counts", &self.counts).finish()
    }
}
