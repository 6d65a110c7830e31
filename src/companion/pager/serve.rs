//! The pager process itself.

use super::guard::{self, Guard};
use super::{Kept, News, count, parcel, standstill};
use crate::companion::detach;
use crate::fault::{self, Point};
use crate::image::MmId;
use crate::memory::Space;
use crate::memory::lazy::touches::{self, Touches};
use crate::memory::lazy::{Missing, Order, Piece, Server, Step, StoreSource};
use crate::memory::store::{ImageDir, PageReader};
use crate::sys::fd;
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
/// Steps between two looks at the socket.
const STEPS: u32 = 16;

/// Runs a pager process; the exit code. Standard input is the socket that everything comes through.
pub(super) fn main() -> u8 {
    if fd::close_from(3).is_err() {
        return 1;
    }
    detach::leave_the_caller();
    guard::ignore_signals();
    // Whoever needs memory is the target.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let Ok(input) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut input = UnixStream::from(input);
    let begun = input.set_read_timeout(Some(super::PATIENCE)).and_then(|()| parcel::receive(&mut input, count));
    let Ok((kept, descriptors)) = begun else { return 1 };
    match serve(&kept, descriptors, input) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Where pages come from, in a good order.
fn source(kept: &Kept) -> io::Result<StoreSource> {
    let image = ImageDir::open(&kept.image).map_err(io::Error::other)?;
    if image.id() != kept.image_id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "another image is there now"));
    }
    let pages = PageReader::of(&image).map_err(io::Error::other)?;
    let owed = kept.spaces.iter().map(|space| (Space::Mm(MmId(space.mm)), space.pages()));
    let mut order = Order::new(owed);
    if let Some(path) = touches::path(&kept.image) {
        let early: Vec<_> = Touches::read(&path, &kept.image_id).iter().collect();
        order.first(early);
    }
    let mut source = StoreSource::new(pages, order);
    source.only_wanted = fault::at(Point::PagerBehind).is_err();
    Ok(source)
}

fn serve(kept: &Kept, descriptors: Vec<OwnedFd>, mut starter: UnixStream) -> io::Result<()> {
    let source = source(kept)?;
    let listener = UnixListener::bind(&kept.socket)?;
    listener.set_nonblocking(true)?;
    let name = Name(&kept.socket);
    let guard = Guard::start(kept, &descriptors)?;
    let members = kept.spaces.iter().zip(descriptors).map(|(space, uffd)| {
        let mut missing = Missing::default();
        let own = Space::Mm(MmId(space.mm));
        space.pages().iter().for_each(|at| missing.insert(Piece { at, space: own, from: at.first }));
        (uffd, missing)
    });
    let mut server = Server::new(source, members.collect(), Box::new(|uffd| guard.pass(uffd)));
    starter.write_all(b"A")?;
    drop(starter);
    // Standard input still refers to that socket.
    fd::replace_stdin(std::fs::File::open("/dev/null")?.as_fd()).map_err(io::Error::from)?;
    fault::strike(Point::PagerServes);
    let mut clients = Clients { listener, clients: Vec::new(), told: Instant::now() };
    let ended = loop {
        match step(&mut server) {
            Ok(false) => {
                clients.look(server.missing());
                server.source().only_wanted &= clients.clients.is_empty();
            }
            Ok(true) => break News::Complete,
            Err(why) => break lost(kept, &mut server, &why),
        }
    };
    note_touches(kept, server.touches());
    drop(name);
    if ended != News::Complete {
        clients.tell(&ended);
        // Where the kernel cannot mark them, who needs one waits: for as long as we are here.
        while !server.can_poison() && kept.tree.is_there() {
            std::thread::sleep(NEWS_EVERY);
        }
    }
    // Only with the last descriptor its mappings are like any others.
    drop(server);
    guard.end();
    clients.tell(&ended);
    Ok(())
}

/// Several steps; whether all is done. The error is why pages are lost.
fn step(server: &mut Server<'_, StoreSource>) -> Result<bool, String> {
    for _ in 0..STEPS {
        match server.step() {
            Ok(Step::Worked) => {}
            Ok(Step::Done) => return Ok(true),
            Ok(Step::Idle) if server.source().only_wanted => {
                server.wait(&[], NEWS_EVERY / 100);
                server.look_around();
                return Ok(false);
            }
            Ok(Step::Idle) => return Err("the image has no more of them".to_owned()),
            Err(lost) => {
                let cause = std::error::Error::source(&lost).map(|cause| format!(": {cause}")).unwrap_or_default();
                return Err(format!("{lost}{cause}"));
            }
        }
    }
    Ok(false)
}

/// Pages are lost: nobody of the tree goes on.
fn lost(kept: &Kept, server: &mut Server<'_, StoreSource>, why: &str) -> News {
    standstill::stop(kept);
    server.poison();
    let of = |n: usize| kept.spaces.get(n).map_or(0, |space| space.pid);
    let missing: Vec<_> =
        server.missing_places().map(|(n, piece)| (of(n), piece.at.start_byte(), piece.at.end_byte())).collect();
    let message = standstill::message(kept, why, &missing, server.can_poison());
    let _ = std::fs::write(&kept.report, format!("{message}\n"));
    News::Lost(message)
}

/// The next restore of this image begins with what was needed first this time.
fn note_touches(kept: &Kept, touched: &Touches) {
    let Some(path) = touches::path(&kept.image) else { return };
    let mut all = Touches::read(&path, &kept.image_id);
    let known = all.clone();
    let pages = touched.iter().flat_map(|(space, range)| (range.first..range.end()).map(move |page| (space, page)));
    pages.for_each(|(space, page)| all.note(space, page));
    if all != known {
        // An image on a file system that is read-only has no such list.
        let _ = all.write(&path, &kept.image_id);
    }
}

/// Whoever waits for the end.
struct Clients {
    listener: UnixListener,
    clients: Vec<UnixStream>,
    told: Instant,
}

impl Clients {
    fn look(&mut self, missing: u64) {
        while let Ok((client, _)) = self.listener.accept() {
            let ready = client.set_nonblocking(false).and_then(|()| client.set_write_timeout(Some(CLIENT)));
            let asked = ready.and_then(|()| client.set_read_timeout(Some(CLIENT)));
            if asked.and_then(|()| (&client).read_exact(&mut [0])).is_ok() && self.clients.len() < CLIENTS {
                self.clients.push(client);
            }
        }
        if self.told.elapsed() >= NEWS_EVERY {
            self.told = Instant::now();
            self.tell(&News::Missing(missing));
        }
    }

    fn tell(&mut self, news: &News) {
        let Ok(mut line) = serde_json::to_vec(news) else { return };
        line.push(b'\n');
        self.clients.retain_mut(|client| client.write_all(&line).is_ok());
    }
}

/// Takes the socket's name away.
struct Name<'a>(&'a Path);

impl Drop for Name<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}
