//! The pager of a target that has moved: pages come from the host that it has left.

use super::names::{Found, Names, Unknown};
use super::relay::{BULK, URGENT};
use super::{send_missing, send_soon, send_wanted, socket_path, waits};
use crate::companion::pager::{Kept, Origin, Ready, serve};
use crate::fault::{self, Point};
use crate::image::MmId;
use crate::image::mm::PAGE;
use crate::memory::lazy::source::Lost;
use crate::memory::lazy::{Arrival, Fault, Source, Waits};
use crate::memory::{PageBuffer, PageRange, RangeSet, Space};
use crate::migration::pages::{What, unpack};
use crate::migration::send_pages::ALIVE_EVERY;
use crate::transport::stream::Stream;
use crate::transport::wait::Patience;
use crate::transport::{Abort, Channel, FrameKind, Result, TransportError};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// First argument of such a pager; not a verb of the command line.
const ENTRY: &str = "pages-process";
/// Without a source for so long its pages are lost.
const LOST_AFTER: Duration = Duration::from_secs(600);
/// So long a source is looked for that does not know yet that it may end the original.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// So long the rest is waited for of what links bring that others take the place of.
const RESIDUE: Duration = Duration::from_millis(200);
/// A frame that has begun is here within this time.
const FRAME: Duration = Duration::from_secs(10);

/// Starts one, to be told later what it is for. What the image in `base` has may be named instead of sent.
///
/// # Errors
/// It cannot be started.
pub fn ready(base: Option<&Path>) -> io::Result<Ready> {
    let mut ready = Ready::pager_as(ENTRY)?;
    // What it is not told of it does not find, and what is named in vain is asked for anew.
    ready.announce(&base.filter(|dir| dir.to_str().is_some()))?;
    Ok(ready)
}

/// The main function of a process of ours with this first argument.
pub fn entry(argument: &std::ffi::OsStr) -> Option<fn() -> u8> {
    (argument == ENTRY).then_some(main)
}

fn main() -> u8 {
    serve::run(Names::of, Receiver::begin, |_, _| ())
}

/// Nobody listens there any more.
fn is_deaf(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Pages from the source.
struct Receiver {
    path: PathBuf,
    listener: UnixListener,
    urgent: Option<Channel>,
    bulk: Option<Channel>,
    peer: String,
    /// What has not come.
    owed: BTreeMap<Space, RangeSet>,
    /// Somebody waits for these, and the source was asked if there is one.
    wanted: HashMap<(Space, u64), (u64, u32)>,
    /// Somebody waits for all of these.
    soon: BTreeMap<Space, RangeSet>,
    /// What has come and was not given.
    came: VecDeque<Found>,
    /// What was named and was not given.
    names: Names,
    unpacked: Vec<u8>,
    /// When the source was last heard.
    heard: Instant,
    alive: Instant,
    patience: Duration,
    abort: Abort,
}

impl Receiver {
    fn begin(kept: &Kept, names: Names) -> io::Result<Self> {
        let run = kept.socket.parent().unwrap_or(Path::new("/"));
        let path = socket_path(run, &kept.session);
        let listener = match UnixListener::bind(&path) {
            // Left behind by one whose tree was ended before it served, or with it.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_deaf(&path) => {
                std::fs::remove_file(&path)?;
                UnixListener::bind(&path)?
            }
            bound => bound?,
        };
        listener.set_nonblocking(true)?;
        let peer = match &kept.origin {
            Origin::Source { peer } => peer.clone(),
            Origin::Image { .. } => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let owed = kept.owed().collect();
        let impatient = fault::at(Point::PagerImpatient).is_err();
        Ok(Self {
            path,
            listener,
            urgent: None,
            bulk: None,
            peer,
            owed,
            wanted: HashMap::new(),
            soon: BTreeMap::new(),
            came: VecDeque::new(),
            names,
            unpacked: Vec::new(),
            heard: Instant::now(),
            alive: Instant::now(),
            patience: if impatient { Duration::from_secs(1) } else { LOST_AFTER },
            abort: Abort::new()?,
        })
    }

    /// Takes links that have come.
    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if let Err(error) = self.take(socket) {
                tracing::debug!(%error, "a link for pages did not come up");
            }
        }
    }

    fn take(&mut self, mut socket: UnixStream) -> Result<()> {
        let failed = |source| TransportError::Io { operation: "take a link from", peer: "a session".into(), source };
        socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(FRAME))).map_err(failed)?;
        let mut role = [0];
        socket.read_exact(&mut role).map_err(failed)?;
        let patience = Patience { abort: self.abort.clone(), silence: FRAME, deadline: None };
        let mut channel = Channel::new(Stream::unix(socket).map_err(failed)?, self.peer.clone(), patience);
        channel.during("bringing pages");
        match role[0] {
            URGENT => {
                // A source that comes again has lost both, or is another program.
                self.drain();
                // What is here and not given yet is not sent again.
                let mut missing = self.owed.clone();
                let here = self.came.iter().map(|(space, range, _)| (*space, *range)).chain(self.names.waiting());
                here.for_each(|(space, range)| missing.entry(space).or_default().remove(range));
                send_missing(&mut channel, &missing)?;
                let faults: Vec<Fault> = self.wanted.iter().map(|(place, wait)| fault_of(*place, *wait)).collect();
                send_wanted(&mut channel, &faults)?;
                self.soon.iter().try_for_each(|(space, pages)| send_soon(&mut channel, *space, pages))?;
                self.urgent = Some(channel);
            }
            BULK => self.bulk = Some(channel),
            _ => return Ok(()),
        }
        self.heard = Instant::now();
        Ok(())
    }

    /// What has come over links that others take the place of is not sent again.
    fn drain(&mut self) {
        let until = Instant::now() + RESIDUE;
        for mut channel in [self.urgent.take(), self.bulk.take()].into_iter().flatten() {
            channel.deadline(Some(RESIDUE));
            while Instant::now() < until && self.hear(&mut channel).is_ok_and(|heard| heard) {}
        }
    }

    /// One frame of a link that has one.
    fn hear(&mut self, channel: &mut Channel) -> Result<bool> {
        if !channel.is_readable()? {
            return Ok(false);
        }
        let peer = channel.peer().to_owned();
        let frame = channel.receive_one()?;
        self.heard = Instant::now();
        // Not to be waited for: what is on the other link may be waited for by somebody.
        let Some(frame) = frame else { return Ok(true) };
        if frame.kind != FrameKind::PAGES {
            return Err(TransportError::UnexpectedKind { peer, expected: "pages", got: frame.kind });
        }
        let (came, names) = (&mut self.came, &mut self.names);
        unpack(frame.body, &mut self.unpacked, &mut |run, content| match run.what {
            What::Data => came.push_back((run.space, run.range, content.to_vec())),
            What::Zero => came.push_back((run.space, run.range, Vec::new())),
            What::Named => names.add(run, content),
            What::Hole | What::Inherit | What::Keep | What::Delta => {}
        })
        .map_err(|error| TransportError::Malformed {
            peer,
            what: "frame of pages",
            reason: error.to_string(),
        })?;
        Ok(true)
    }

    /// Whatever is here from either link, the urgent one first.
    fn hear_any(&mut self) {
        for urgent in [true, false] {
            let link = if urgent { self.urgent.take() } else { self.bulk.take() };
            let Some(mut channel) = link else { continue };
            match self.hear(&mut channel) {
                Ok(heard) => {
                    *(if urgent { &mut self.urgent } else { &mut self.bulk }) = Some(channel);
                    if heard {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, urgent, "a link for pages is lost"),
            }
        }
    }

    /// Pages that have come, or that were named and are here.
    fn next_found(&mut self) -> Option<Found> {
        if let Some(found) = self.came.pop_front() {
            return Some(found);
        }
        let faults = self.wanted.iter().map(|((space, page), (count, _))| (*space, PageRange::new(*page, *count)));
        let soon = self.soon.iter().flat_map(|(space, pages)| pages.iter().map(|range| (*space, range)));
        self.names.next(faults.chain(soon)).unwrap_or_else(|Unknown| {
            // Over new links the source is told that they are missing.
            (self.urgent, self.bulk) = (None, None);
            None
        })
    }

    /// Tells the source that we are here; it would take us for dead.
    fn say_alive(&mut self) {
        if self.alive.elapsed() >= ALIVE_EVERY {
            self.alive = Instant::now();
            let said = self.urgent.as_mut().map(|channel| channel.send(FrameKind::ALIVE, &[]));
            self.urgent = self.urgent.take().filter(|_| !matches!(said, Some(Err(_))));
        }
    }

    fn lost(&self) -> Lost {
        let first = self.owed.iter().find_map(|(space, pages)| Some((*space, *pages.ranges().first()?)));
        let (space, range) = first.unwrap_or((Space::Mm(MmId(0)), PageRange::new(0, 0)));
        let reason = format!("{} has not been heard for {} s", self.peer, self.patience.as_secs());
        Lost { space, range, reason: reason.into() }
    }
}

fn fault_of((space, page): (Space, u64), (count, thread): (u64, u32)) -> Fault {
    Fault { space, page, count, thread }
}

impl Source for Receiver {
    fn want(&mut self, fault: Fault) {
        if self.wanted.insert((fault.space, fault.page), (fault.count, fault.thread)).is_some() {
            return;
        }
        let asked = self.urgent.as_mut().map(|channel| send_wanted(channel, &[fault]));
        if matches!(asked, Some(Err(_))) {
            self.urgent = None;
        }
    }

    fn soon(&mut self, space: Space, pages: &RangeSet) {
        let asked = self.urgent.as_mut().map(|channel| send_soon(channel, space, pages));
        if matches!(asked, Some(Err(_))) {
            self.urgent = None;
        }
        self.soon.insert(space, pages.clone());
    }

    fn next(&mut self, data: &mut PageBuffer) -> std::result::Result<Option<Arrival>, Lost> {
        self.accept();
        if self.came.is_empty() {
            self.hear_any();
        }
        self.say_alive();
        let Some((space, range, content)) = self.next_found() else {
            let silent = self.urgent.is_none() && self.heard.elapsed() > self.patience;
            return if silent { Err(self.lost()) } else { Ok(None) };
        };
        if let Some(owed) = self.owed.get_mut(&space) {
            owed.remove(range);
        }
        // A huge page comes in parts.
        let owed = &self.owed;
        let lacks = |space: &Space, pages| owed.get(space).is_some_and(|owed| !owed.within(pages).is_empty());
        self.wanted.retain(|(of, page), (count, _)| lacks(of, PageRange::new(*page, *count)));
        data.resize((range.count * PAGE) as usize);
        // Zeros are named, not sent.
        let (sent, zeros) = data.split_at_mut(content.len());
        sent.copy_from_slice(&content);
        zeros.fill(0);
        Ok(Some((space, range)))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let links = [&self.urgent, &self.bulk].into_iter().flatten();
        let links = links.map(|channel| channel.stream().read_interest().0);
        links.chain([self.listener.as_fd()]).collect()
    }

    /// The source may end the original now. It is told for as long as it may take to find a link.
    fn finish(&mut self, waited: &[Waits]) {
        let deadline = Instant::now() + self.patience.min(TOLD_WITHIN);
        self.owed.clear();
        self.wanted.clear();
        while Instant::now() < deadline {
            self.accept();
            if let Some(channel) = &mut self.urgent {
                channel.deadline(Some(FRAME));
                let told = waits::send(channel, waited).and_then(|()| channel.send(FrameKind::MARK, &[]));
                if told.and_then(|()| channel.expect(FrameKind::MARK, "the end of the original").map(drop)).is_ok() {
                    return;
                }
                self.urgent = None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // What is lost stays so: see [`super::is_complete`].
        if self.owed.values().all(RangeSet::is_empty) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::companion::held::Held;
    use crate::companion::pager::KeptSpace;
    use crate::migration::pages::Packer;
    use crate::migration::postcopy::receive_missing;
    use std::io::Write;

    const SPACE: Space = Space::Mm(MmId(0));

    fn receiver(dir: &Path) -> Receiver {
        let space = KeptSpace { mm: 0, pid: 1, missing: vec![(100, 50)], watched: false };
        let kept = Kept {
            session: "a".into(),
            origin: Origin::Source { peer: "b".into() },
            tree: Held::default(),
            spaces: vec![space],
            views: Vec::new(),
            objects: Vec::new(),
            socket: dir.join("pager-a.sock"),
            report: dir.join("lost"),
        };
        Receiver::begin(&kept, Names::of(None)).unwrap()
    }

    /// A link of this kind, as a session brings it.
    fn link(receiver: &mut Receiver, role: u8) -> Channel {
        let mut socket = UnixStream::connect(&receiver.path).unwrap();
        socket.write_all(&[role]).unwrap();
        receiver.accept();
        let patience = Patience { abort: Abort::new().unwrap(), silence: FRAME, deadline: None };
        Channel::new(Stream::unix(socket).unwrap(), "pager", patience)
    }

    fn send(channel: &mut Channel, pages: std::ops::Range<u64>) {
        let mut packer = Packer::new(None);
        pages.for_each(|page| packer.add(SPACE, page, &[page as u8; PAGE as usize]));
        channel.send(FrameKind::PAGES, packer.take()).unwrap();
    }

    #[test]
    fn what_is_under_way_when_a_source_dies_is_not_owed_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = receiver(dir.path());
        let mut urgent = link(&mut receiver, URGENT);
        assert_eq!(receive_missing(&mut urgent).unwrap()[&SPACE].pages(), 50);
        let mut bulk = link(&mut receiver, BULK);
        send(&mut bulk, 100..120);
        send(&mut bulk, 120..130);
        send(&mut urgent, 149..150);
        drop((urgent, bulk));
        let mut urgent = link(&mut receiver, URGENT);
        let missing = receive_missing(&mut urgent).unwrap();
        let expected: RangeSet = [PageRange::new(130, 19)].into_iter().collect();
        assert_eq!(missing[&SPACE], expected);
        let (mut came, mut data) = (0, PageBuffer::default());
        while let Some((_, range)) = receiver.next(&mut data).unwrap() {
            assert!(data.chunks(PAGE as usize).zip(range.first..).all(|(page, n)| page.iter().all(|b| *b == n as u8)));
            came += range.count;
        }
        assert_eq!(came, 31);
    }
}
