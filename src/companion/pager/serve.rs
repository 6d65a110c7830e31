//! The pager process itself, with pages from anywhere.

use super::guard::{self, Guard};
use super::lacks::{self, Lacks, Written};
use super::{END, GUARD_ENTRY, Kept, KeptSpace, News, Origin, Ready, count, parcel, standstill};
use crate::companion::detach;
use crate::fault::{self, Point};
use crate::image::{MmId, Pid, ShmemId};
use crate::memory::lazy::touches::{self, Touches};
use crate::memory::lazy::{Area, Missing, Object, Objects, Order, Piece, Server, Source, Step, StoreSource, View};
use crate::memory::store::{ImageDir, PageReader};
use crate::memory::{PageRange, Space};
use crate::sys::fd;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two words to whoever waits.
const NEWS_EVERY: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is given up.
const CLIENT: Duration = Duration::from_millis(200);
/// Most clients at a time.
const CLIENTS: usize = 16;
/// Between two looks when nothing comes.
const IDLE: Duration = Duration::from_millis(20);
/// Steps between two looks at the socket.
const STEPS: u32 = 16;

/// Runs a pager that reads an image; the exit code.
pub(super) fn main() -> u8 {
    run(|origin: Origin| opened(&origin), |kept, image| from_image(kept, image?), note_touches)
}

/// Runs a pager process with pages from this source; the exit code. Standard input is the socket that everything comes
/// through: first what is `announced`, of which that makes something that the source is made of later. `ended` is told which pages
/// were waited for.
pub fn run<A: DeserializeOwned, B, S: Source>(
    announced: impl FnOnce(A) -> B,
    source: impl FnOnce(&Kept, B) -> io::Result<S>,
    ended: impl FnOnce(&Kept, &Touches),
) -> u8 {
    begin(|mut input, guard| {
        // It is not needed.
        let Ok((what, _)) = parcel::receive(&mut input, |_: &A| 0) else { return 0 };
        let ready = announced(what);
        conduct(input, guard, |kept| source(kept, ready), ended)
    })
}

fn begin(work: impl FnOnce(UnixStream, Ready) -> u8) -> u8 {
    if fd::close_from(3).is_err() {
        return 1;
    }
    detach::leave_the_caller();
    guard::ignore_signals();
    // Whoever needs memory is the target.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let Ok(guard) = Ready::pager_as(GUARD_ENTRY) else { return 1 };
    work(UnixStream::from(input), guard)
}

fn conduct<S: Source>(
    mut input: UnixStream,
    guard: Ready,
    source: impl FnOnce(&Kept) -> io::Result<S>,
    ended: impl FnOnce(&Kept, &Touches),
) -> u8 {
    // However long it takes: the end of whoever has started this ends it, as not needed.
    let Ok((kept, descriptors)) = parcel::receive(&mut input, count) else { return 0 };
    match source(&kept).and_then(|source| serve(&kept, descriptors, input, guard, source, ended)) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Where the pages of an image are, and its id.
fn opened(origin: &Origin) -> io::Result<(PageReader, String)> {
    let Origin::Image { dir, id } = origin else { return Err(io::ErrorKind::InvalidInput.into()) };
    let image = ImageDir::open(dir).map_err(io::Error::other)?;
    if image.id() != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "another image is there now"));
    }
    Ok((PageReader::of(&image).map_err(io::Error::other)?, id.clone()))
}

/// Pages of an image, in a good order.
fn from_image(kept: &Kept, (pages, image): (PageReader, String)) -> io::Result<StoreSource> {
    let Origin::Image { dir, id } = &kept.origin else { return Err(io::ErrorKind::InvalidInput.into()) };
    if image != *id {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "another image was announced"));
    }
    let mut source = StoreSource::new(pages, Order::new(kept.owed()));
    source.touched_before = touches::path(dir).map(|path| (path, image));
    source.only_wanted = fault::at(Point::PagerBehind).is_err();
    Ok(source)
}

fn serve<S: Source>(
    kept: &Kept,
    descriptors: Vec<OwnedFd>,
    mut starter: UnixStream,
    guard: Ready,
    source: S,
    ended: impl FnOnce(&Kept, &Touches),
) -> io::Result<()> {
    let listener = UnixListener::bind(&kept.socket)?;
    listener.set_nonblocking(true)?;
    let name = Name(&kept.socket);
    let guard = Guard::begin(guard, kept, &descriptors)?;
    let mut descriptors = descriptors.into_iter();
    let members = kept.spaces.iter().map(missing_of).zip(&mut descriptors).map(|(missing, uffd)| (uffd, missing));
    let members: Vec<_> = members.collect();
    let objects = objects(kept, &mut descriptors)?;
    let owners = kept.spaces.iter().map(|space| Pid(space.pid));
    let watched = (0..kept.spaces.len()).filter(|n| kept.spaces[*n].watched);
    let server = Server::new(source, members, Box::new(|uffd| guard.pass(uffd))).with_objects(objects);
    let mut server = server.of_processes(owners).watching(watched);
    starter.write_all(b"A")?;
    drop(starter);
    // Standard input still refers to that socket.
    fd::replace_stdin(std::fs::File::open("/dev/null")?.as_fd()).map_err(io::Error::from)?;
    fault::strike(Point::PagerServes);
    let mut protected = 0;
    let mut clients = Clients { listener, clients: Vec::new(), told: Instant::now() };
    let news = loop {
        match step(&mut server, &clients.listener) {
            Ok(false) => {
                let ends = clients.answer(&mut server, kept, &mut protected);
                if !ends.is_empty() {
                    // Nothing is said of it to anybody; whoever asked for it sees their link end with us.
                    drop((server, name));
                    guard.end();
                    return Ok(());
                }
                if !clients.clients.is_empty() {
                    server.source().hurry();
                }
            }
            Ok(true) => {
                let waits = server.stalls().told(|n| kept.process(n));
                server.source().finish(&waits);
                break News::Complete;
            }
            Err(why) => break lost(kept, &mut server, &why),
        }
    };
    ended(kept, server.touches());
    drop(name);
    // Whoever has found it before is told as well; whoever asks what is missing finds out by the end.
    drop(clients.accept());
    if news != News::Complete {
        clients.tell(&news);
        // Where the kernel cannot mark them, who needs one waits: for as long as we are here. Children do not inherit marks of
        // shared memory.
        while (server.lacks_shared() || !server.can_poison()) && kept.tree.is_there() {
            std::thread::sleep(NEWS_EVERY);
        }
    }
    // Only with the last descriptor its mappings are like any others.
    drop(server);
    guard.end();
    clients.tell(&news);
    Ok(())
}

/// What an address space lacks in the beginning.
fn missing_of(space: &KeptSpace) -> Missing {
    let (mut missing, own) = (Missing::default(), Space::Mm(MmId(space.mm)));
    space.pages().iter().for_each(|at| missing.insert(Piece { at, space: own, from: at.first }));
    missing
}

/// Shared memory: the descriptors of views, then those of objects.
fn objects(kept: &Kept, descriptors: &mut impl Iterator<Item = OwnedFd>) -> io::Result<Objects> {
    let views = kept.views.iter().zip(&mut *descriptors).map(|(view, uffd)| {
        let area = |&(first, count, object, from): &(u64, u64, u32, u64)| Area {
            at: PageRange::new(first, count),
            object: ShmemId(object),
            from,
        };
        View::new(uffd, view.areas.iter().map(area).collect())
    });
    let views = views.collect();
    let objects = kept.objects.iter().zip(descriptors).map(|(object, file)| {
        Object::new(ShmemId(object.shmem), file.as_fd(), object.unit, object.size, object.pages())
    });
    Ok(Objects::new(objects.collect::<Result<_, _>>()?, views))
}

/// Several steps; whether all is done. The error is why pages are lost.
fn step<S: Source>(server: &mut Server<'_, S>, ear: &UnixListener) -> Result<bool, String> {
    for _ in 0..STEPS {
        match server.step() {
            Ok(Step::Worked) => {}
            Ok(Step::Done) => return Ok(true),
            Ok(Step::Idle) => {
                server.wait(&[ear.as_fd()], IDLE);
                server.look_around();
                return Ok(false);
            }
            Err(lost) => {
                let cause = std::error::Error::source(&lost).map(|cause| format!(": {cause}")).unwrap_or_default();
                return Err(format!("{lost}{cause}"));
            }
        }
    }
    Ok(false)
}

/// Pages are lost: nobody of the tree goes on.
fn lost<S: Source>(kept: &Kept, server: &mut Server<'_, S>, why: &str) -> News {
    standstill::stop(kept);
    server.poison();
    let of = |n: usize| kept.process(n).unwrap_or(0);
    let missing: Vec<_> = server.missing_places().map(|(n, at)| (of(n), at.start_byte(), at.end_byte())).collect();
    let message = standstill::message(kept, why, &missing, server.can_poison());
    let _ = std::fs::write(&kept.report, format!("{message}\n"));
    News::Lost(message)
}

/// The next restore of this image begins with what was needed first this time.
fn note_touches(kept: &Kept, touched: &Touches) {
    let Origin::Image { dir, id } = &kept.origin else { return };
    let Some(path) = touches::path(dir) else { return };
    let mut all = Touches::read(&path, id);
    let known = all.clone();
    let pages = touched.iter().flat_map(|(space, range)| (range.first..range.end()).map(move |page| (space, page)));
    pages.for_each(|(space, page)| all.note(space, page));
    if all != known {
        // An image on a file system that is read-only has no such list.
        let _ = all.write(&path, id);
    }
}

/// Whoever waits for the end.
struct Clients {
    listener: UnixListener,
    clients: Vec<UnixStream>,
    told: Instant,
}

impl Clients {
    /// Whoever wants to know something, or knows it.
    fn look(&mut self, missing: u64) -> Vec<Asking> {
        let asking = self.accept();
        if self.told.elapsed() >= NEWS_EVERY {
            self.told = Instant::now();
            self.tell(&News::Missing(missing));
        }
        asking
    }

    /// Answers whoever asks; those who want the end.
    fn answer<S: Source>(&mut self, server: &mut Server<'_, S>, kept: &Kept, protected: &mut u64) -> Vec<Asking> {
        let asking = self.look(server.missing());
        let (ends, asking): (Vec<_>, Vec<_>) = asking.into_iter().partition(|client| client.what == END);
        for client in asking {
            // Whoever asks has stopped the target for it, and asks again where there is no answer.
            let _ = client.answer(server, kept, protected);
        }
        ends
    }

    fn accept(&mut self) -> Vec<Asking> {
        let mut asking = Vec::new();
        while let Ok((client, _)) = self.listener.accept() {
            let ready = client.set_nonblocking(false).and_then(|()| client.set_write_timeout(Some(CLIENT)));
            let asked = ready.and_then(|()| client.set_read_timeout(Some(CLIENT)));
            let mut what = [0];
            if asked.and_then(|()| (&client).read_exact(&mut what)).is_err() {
                continue;
            }
            match what {
                [what @ (lacks::QUESTION | lacks::NOTE | END)] => asking.push(Asking { client, what }),
                _ if self.clients.len() < CLIENTS => self.clients.push(client),
                _ => {}
            }
        }
        asking
    }

    fn tell(&mut self, news: &News) {
        let Ok(mut line) = serde_json::to_vec(news) else { return };
        line.push(b'\n');
        self.clients.retain_mut(|client| client.write_all(&line).is_ok());
    }
}

/// A client that stands still for its answer.
struct Asking {
    client: UnixStream,
    what: u8,
}

impl Asking {
    fn answer<S: Source>(mut self, server: &mut Server<'_, S>, kept: &Kept, protected: &mut u64) -> io::Result<()> {
        match self.what {
            lacks::NOTE => Written::take(server, &mut self.client, protected),
            _ => Lacks::of(server, &kept.tree, &kept.spaces, *protected).tell(&mut self.client),
        }
    }
}

/// Takes the socket's name away.
struct Name<'a>(&'a Path);

impl Drop for Name<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}
