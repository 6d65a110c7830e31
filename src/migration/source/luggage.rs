//! Files that go along with the target: the destination asks and orders, this side sends. Mirror of
//! `migration/destination/luggage.rs`.

use super::{MoveError, Peer};
use crate::blocker::Blocker;
use crate::fault::{self, Point};
use crate::files::nonce::Nonces;
use crate::files::op::Op;
use crate::files::send::{Sender, Sent};
use crate::files::{self, Answer, Order, Question, Use, Wanted, blocks};
use crate::image::Bytes;
use crate::memory::throttle::Throttle;
use crate::migration::common_pages::{Claims, Shared};
use crate::migration::earlier;
use crate::migration::protocol::{self, FromDestination, FromSource};
use crate::migration::send_pages::ALIVE_EVERY;
use crate::migration::shelf::Catalogue;
use crate::ops::Event;
use crate::ops::options::Files;
use crate::transport::{FrameKind, TransportError};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is sent, and what of it is there.
#[derive(Debug, Default)]
pub(super) struct Luggage {
    /// The files of the offer.
    named: Vec<Wanted>,
    order: Order,
    sender: Sender,
    /// Digests that were left for later have been sent.
    compared: bool,
    /// How long the last pass took: the target wrote to its memory meanwhile, but nothing of that was sent.
    pub took: Duration,
}

impl Luggage {
    /// Whether anything goes along.
    pub fn is_needed(&self) -> bool {
        !self.sender.is_empty()
    }
}

impl Peer<'_> {
    /// What the destination finds, once it has asked all it wants to know about files.
    pub(super) fn verdict(&mut self, wanted: Vec<Wanted>) -> Result<Vec<Blocker>, MoveError> {
        self.luggage.named = files::named(wanted, &self.wishes.files);
        // Until the verdict they can be seen.
        let mut nonces = Nonces::default();
        loop {
            match self.receive()? {
                FromDestination::Asks { question, .. } => {
                    let answer = self.answer(&question, &mut nonces)?;
                    protocol::send(&mut self.link.control, &FromSource::Answers { attempt: self.id, answer })?;
                }
                FromDestination::Verdict {
                    blockers,
                    room_bytes,
                    order,
                    shelf_pages,
                    earlier_bytes,
                    warnings,
                    names_late,
                    is_clone,
                    passes_on,
                    images,
                    stands_by,
                    shared,
                    ..
                } => {
                    let unknown = match (self.is_clone() && !is_clone, self.wishes.from_image && !images) {
                        (true, _) => Some("clones"),
                        (_, true) => Some("images that come from another host"),
                        _ => None,
                    };
                    if let Some(unknown) = unknown {
                        let reason = format!("it has a version of this program that knows nothing of {unknown}");
                        return Err(MoveError::Stays { reason });
                    }
                    warnings.into_iter().for_each(|text| self.events.event(Event::Warning(text)));
                    self.room_bytes = room_bytes;
                    self.catalogue = self.catalogue_of(shelf_pages, shared);
                    self.ordered(order);
                    self.earlier(earlier_bytes)?;
                    self.names_late = names_late;
                    let mut blockers: Vec<Blocker> = blockers.into_iter().map(Blocker::from).collect();
                    if self.wishes.onward.is_some() && !passes_on {
                        blockers.push(self.passes_nothing_on());
                    }
                    if self.wishes.standby.is_some() && !stands_by {
                        blockers.push(self.stands_by_nothing());
                    }
                    return Ok(blockers);
                }
                other => return Err(self.unexpected(&other, "the verdict")),
            }
        }
    }

    /// Of a shelf that takes so many pages, or of the one that trees share there.
    fn catalogue_of(&self, shelf_pages: u32, shared: Option<Shared>) -> Catalogue {
        let channels = self.link.bulk.len().max(1);
        let (Some(account), Some(shared)) = (&self.wishes.common, shared) else {
            return Catalogue::new(usize::try_from(shelf_pages).unwrap_or(usize::MAX), channels);
        };
        let there = account.open(shared);
        let catalogue = Catalogue::shared(Claims::new(Arc::clone(account), channels), channels);
        catalogue.note_earlier(there.into_iter());
        catalogue
    }

    /// What the destination has in an image.
    fn earlier(&mut self, bytes: u64) -> Result<(), MoveError> {
        let peer = self.link.control.peer().to_owned();
        let malformed = |reason| TransportError::Malformed { peer, what: "list of pages", reason };
        if bytes > earlier::LIST_BYTES_MAX {
            return Err(malformed(format!("{bytes} bytes")).into());
        }
        let list = protocol::receive_model(&mut self.link.control, bytes)?;
        self.catalogue.note_earlier(earlier::read_hints(&list).map_err(malformed)?);
        Ok(())
    }

    fn answer(&mut self, question: &Question, nonces: &mut Nonces) -> Result<Answer, MoveError> {
        let named = std::mem::take(&mut self.luggage.named);
        let mut digests = Vec::with_capacity(question.digests.len());
        let mut said = Instant::now();
        for (file, len) in &question.digests {
            digests.push(named.get(*file as usize).and_then(|wanted| digest(wanted, *len)));
            if said.elapsed() >= ALIVE_EVERY {
                said = Instant::now();
                self.link.control.send(FrameKind::ALIVE, &[])?;
            }
        }
        let beside = question.nonces.iter().map(|file| nonces.beside(named.get(*file as usize)?));
        let answer = Answer { digests, nonces: beside.collect() };
        self.luggage.named = named;
        Ok(answer)
    }

    fn ordered(&mut self, order: Order) {
        let trees = self.luggage.named.len() - self.wishes.files.with.len();
        let path = |n: &u32| self.luggage.named.get(*n as usize).map(|wanted| wanted.file.path.clone());
        let (files, dirs): (Vec<u32>, Vec<u32>) = order.send.iter().partition(|n| (**n as usize) < trees);
        let (files, dirs) = (files.iter().filter_map(path).collect(), dirs.iter().filter_map(path).collect());
        self.luggage.sender = Sender::new(files, dirs);
        self.luggage.order = order;
        self.propose();
    }

    /// Bytes of the files that the destination has ordered, as they lie here.
    pub(super) fn luggage_bytes(&self) -> u64 {
        let (named, files) = (&self.luggage.named, &self.wishes.files);
        let trees = named.len() - files.with.len();
        let (single, whole): (Vec<u32>, Vec<u32>) =
            self.luggage.order.send.iter().partition(|n| (**n as usize) < trees);
        let single: u64 = single.iter().filter_map(|n| named.get(*n as usize)).map(|wanted| wanted.file.size).sum();
        single + if whole.is_empty() { 0 } else { files.with_bytes }
    }

    /// Only what is open travels by itself: of a database that is not all.
    fn propose(&self) {
        let named = &self.luggage.named;
        let sent = self.luggage.order.send.iter().filter_map(|n| named.get(*n as usize));
        let single: Vec<&Wanted> = sent.filter(|wanted| wanted.is_comparable()).collect();
        let Some(dir) = files::data_directory(&single) else { return };
        let is_own = std::fs::metadata(Path::new(std::ffi::OsStr::from_bytes(&dir.0))).is_ok_and(|meta| {
            let owners = single.iter().filter_map(|wanted| {
                std::fs::metadata(Path::new(std::ffi::OsStr::from_bytes(&wanted.file.path.0))).ok()
            });
            meta.mode() & 0o002 == 0 && owners.map(|file| file.uid()).any(|uid| uid == meta.uid())
        });
        if is_own {
            self.events.event(Event::Warning(format!(
                "the target writes to several files below {dir}, and only those that it has open go along: --with {dir} takes all of it"
            )));
        }
    }

    /// Sends what has changed of the files that go along, while the target runs. `mapped` is asked for where there are any: the answer
    /// takes a look at every process of the host.
    pub(super) fn ship(&mut self, mapped: impl FnOnce() -> HashSet<Bytes>) -> Result<(), MoveError> {
        let begun = Instant::now();
        self.luggage.took = Duration::ZERO;
        let owed = !self.luggage.compared && !self.luggage.order.later.is_empty();
        if self.luggage.sender.is_empty() && !owed {
            return Ok(());
        }
        self.link.control.during("sending files");
        self.pass(&mapped(), false)?;
        match self.receive()? {
            FromDestination::FilesDone { .. } => {}
            other => return Err(self.unexpected(&other, "the end of the files")),
        }
        fault::strike(Point::SourceFiles);
        self.luggage.took = begun.elapsed();
        Ok(())
    }

    /// What is left of them, in the pause; whether there was anything to look at.
    pub(super) fn ship_last(&mut self, wanted: &[Wanted]) -> Result<bool, MoveError> {
        let known: HashSet<&Bytes> = self.luggage.named.iter().map(|wanted| &wanted.file.path).collect();
        let copies = matches!(self.wishes.files.mode, Files::Auto | Files::Copy);
        let is_new = |wanted: &&Wanted| {
            let shared = self.luggage.order.shared.contains(&wanted.file.device);
            copies
                && wanted.usage == Use::Write
                && !shared
                && wanted.is_comparable()
                && !known.contains(&wanted.file.path)
        };
        // Opened since the survey.
        let new: Vec<Bytes> = wanted.iter().filter(is_new).map(|wanted| wanted.file.path.clone()).collect();
        new.iter().for_each(|path| self.luggage.sender.add(path));
        if self.luggage.sender.is_empty() {
            return Ok(false);
        }
        self.link.control.during("sending files");
        let written = wanted.iter().filter(|wanted| wanted.mapped && wanted.usage == Use::Write);
        let mapped = written.map(|wanted| wanted.file.path.clone()).collect();
        self.pass(&mapped, true)?;
        Ok(true)
    }

    fn pass(&mut self, mapped: &HashSet<Bytes>, last: bool) -> Result<(), MoveError> {
        let attempt = self.id;
        protocol::send(&mut self.link.control, &FromSource::Files { attempt, last })?;
        let sent = self.contents(mapped, last).map_err(|error| self.explain(error))?;
        if !last && !std::mem::replace(&mut self.luggage.compared, true) {
            self.digests_left()?;
        }
        protocol::send(&mut self.link.control, &FromSource::FilesEnd { attempt })?;
        tracing::debug!(sent.files, sent.bytes, last, "files were sent");
        Ok(())
    }

    fn contents(&mut self, mapped: &HashSet<Bytes>, last: bool) -> Result<Sent, MoveError> {
        // The pause is never throttled.
        let throttle = Throttle::new(self.wishes.bandwidth.filter(|_| !last));
        let (control, events) = (&mut self.link.control, self.events);
        let (mut said, mut done) = (Instant::now(), 0);
        self.luggage.sender.pass(mapped, &mut |op: Option<&Op>, content: &[u8]| -> Result<(), MoveError> {
            match op {
                Some(op) => {
                    control.send_parts(FrameKind::FILE, &[&op.encode(), content])?;
                    throttle.sent(content.len() as u64);
                    done += content.len() as u64;
                    events.event(Event::Progress { phase: "files", done, total: done });
                    said = Instant::now();
                }
                None if said.elapsed() >= ALIVE_EVERY => {
                    control.send(FrameKind::ALIVE, &[])?;
                    said = Instant::now();
                }
                None => {}
            }
            Ok(())
        })
    }

    /// Files that are only compared, and are too long for the preflight.
    fn digests_left(&mut self) -> Result<(), MoveError> {
        for (file, len) in self.luggage.order.later.clone() {
            let Some(wanted) = self.luggage.named.get(file as usize).cloned() else { continue };
            let digest = super::super::while_alive(&mut self.link.control, || digest(&wanted, len));
            self.link.control.send(FrameKind::FILE, &Op::Digest { file, len, digest }.encode())?;
        }
        Ok(())
    }
}

/// `None`: it cannot be read, or is shorter; the destination then finds a difference.
fn digest(wanted: &Wanted, len: u64) -> Option<String> {
    let path = Path::new(std::ffi::OsStr::from_bytes(&wanted.file.path.0));
    let file: File =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    blocks::whole(&file, &wanted.file.path, len).ok().flatten()
}
