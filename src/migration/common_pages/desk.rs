//! Where movers, each a process of its own, learn what is on the shelves that they share.

use super::ledger::{Ledger, Mover};
use super::{CommonId, Shared};
use crate::companion::parcel;
use crate::migration::earlier::Hint;
use crate::migration::shelf::{Say, Turn};
use crate::transport::{Abort, stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An answer comes within this time, or nothing is shared any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a mover says. The first of all is [`Call::Open`].
#[derive(Debug, Serialize, Deserialize)]
enum Call {
    Open { host: String, shared: Shared },
    Ask { hints: Vec<Hint>, turn: Turn },
    Sent(Vec<Hint>),
    Stored,
}

fn socket_path(run: &Path, id: CommonId) -> PathBuf {
    run.join(format!("common-{id}.sock"))
}

/// The shelves that are known, and at which hosts. One host may have several names, and no more than one shelf.
#[derive(Debug, Default)]
struct Ledgers {
    shelves: HashMap<[u8; 16], Arc<Mutex<Ledger>>>,
    hosts: HashSet<String>,
    movers: Mover,
}

impl Ledgers {
    /// A mover comes. A shelf that was not known has nothing on it.
    fn open(&mut self, host: String, shared: Shared) -> (Mover, Arc<Mutex<Ledger>>) {
        let room = shared.room_pages as usize;
        self.hosts.insert(host);
        let ledger = self.shelves.entry(shared.instance).or_insert_with(|| Arc::new(Mutex::new(Ledger::new(room))));
        ledger.lock().unwrap_or_else(PoisonError::into_inner).narrow(room);
        self.movers += 1;
        (self.movers, Arc::clone(ledger))
    }
}

/// Answers movers, until it is dropped.
#[derive(Debug)]
pub struct Desk {
    id: CommonId,
    path: PathBuf,
    ledgers: Arc<Mutex<Ledgers>>,
    over: Abort,
}

impl Desk {
    /// Begins, with a socket in the directory of sockets.
    ///
    /// # Errors
    /// The socket's.
    pub fn open(run: &Path, id: CommonId) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(run)?;
        let (path, over) = (socket_path(run, id), Abort::new()?);
        let listener = UnixListener::bind(&path)?;
        let desk = Self { id, path, ledgers: Arc::default(), over };
        let (ledgers, over) = (Arc::clone(&desk.ledgers), desk.over.clone());
        std::thread::Builder::new().name("desk".into()).spawn(move || listen(&listener, &ledgers, &over))?;
        Ok(desk)
    }

    /// What movers are told, to find it.
    pub fn id(&self) -> CommonId {
        self.id
    }

    /// Hosts that have a shelf, as movers have named them.
    pub fn hosts(&self) -> Vec<String> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner).hosts.iter().cloned().collect()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.over.trigger();
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(listener: &UnixListener, ledgers: &Arc<Mutex<Ledgers>>, over: &Abort) {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(over.fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err_and(|errno| errno != nix::errno::Errno::EINTR)
            || over.is_triggered()
        {
            return;
        }
        let Ok((socket, _)) = listener.accept() else { continue };
        let ledgers = Arc::clone(ledgers);
        let serves = std::thread::Builder::new().name("mover's account".into());
        if let Err(error) = serves.spawn(move || serve(socket, &ledgers)) {
            tracing::debug!(%error, "a mover shares nothing");
        }
    }
}

/// One mover, until it is gone.
fn serve(mut socket: UnixStream, ledgers: &Mutex<Ledgers>) {
    let is_ours = stream::peer_uid(&socket).and_then(stream::check_peer_uid);
    let (Ok(()), Ok((Call::Open { host, shared }, _))) = (is_ours, parcel::receive(&mut socket, |_| 0)) else { return };
    let (who, ledger) = ledgers.lock().unwrap_or_else(PoisonError::into_inner).open(host, shared);
    let there = ledger.lock().unwrap_or_else(PoisonError::into_inner).there();
    let mut answered = parcel::send(&mut socket, &there, &[]);
    while answered.is_ok() {
        let Ok((call, _)) = parcel::receive(&mut socket, |_| 0) else { break };
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let said = match call {
            Call::Ask { hints, turn } => ledger.ask(who, &hints, turn),
            Call::Sent(hints) => {
                ledger.sent(who, &hints);
                continue;
            }
            Call::Stored => {
                ledger.stored(who);
                continue;
            }
            Call::Open { .. } => break,
        };
        drop(ledger);
        answered = parcel::send(&mut socket, &said, &[]);
    }
    ledger.lock().unwrap_or_else(PoisonError::into_inner).leave(who);
}

/// A mover's way to the desk, for one attempt.
#[derive(Debug)]
pub struct Account {
    id: CommonId,
    host: String,
    /// `None`: the desk has not answered, and nothing is shared any more.
    socket: Mutex<Option<UnixStream>>,
}

impl Account {
    /// Finds the desk. `host`: as it is named there.
    ///
    /// # Errors
    /// There is none.
    pub fn at(run: &Path, id: CommonId, host: String) -> io::Result<Self> {
        let socket = UnixStream::connect(socket_path(run, id))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { id, host, socket: Mutex::new(Some(socket)) })
    }

    /// What destinations are told, to find the shelf.
    pub fn id(&self) -> CommonId {
        self.id
    }

    /// Begins, with what the destination says of its shelf: what is there.
    pub fn open(&self, shared: Shared) -> Vec<Hint> {
        self.call(&Call::Open { host: self.host.clone(), shared }, |socket| parcel::receive(socket, |_| 0))
            .map_or_else(Vec::new, |(there, _)| there)
    }

    /// What is to be said of these contents.
    pub(super) fn ask(&self, hints: Vec<Hint>, turn: Turn) -> Vec<Say> {
        let count = hints.len();
        let said = self.call(&Call::Ask { hints, turn }, |socket| parcel::receive(socket, |_| 0));
        said.map_or_else(|| vec![Say::Send; count], |(said, _)| said)
    }

    /// These contents, which it had claimed, are in frames that were sent completely.
    pub(super) fn sent(&self, hints: Vec<Hint>) {
        self.call(&Call::Sent(hints), |_| Ok(()));
    }

    /// All that was sent has come.
    pub(super) fn stored(&self) {
        self.call(&Call::Stored, |_| Ok(()));
    }

    /// Claims these contents, and says that they were sent.
    #[cfg(test)]
    pub fn claim(&self, hints: Vec<Hint>) {
        self.ask(hints.clone(), Turn::Patient);
        self.sent(hints);
        // An answer: what was said before has been heard.
        self.ask(Vec::new(), Turn::Patient);
    }

    fn call<T>(&self, call: &Call, answer: impl FnOnce(&mut UnixStream) -> io::Result<T>) -> Option<T> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let answered =
            parcel::send(socket.as_mut()?, call, &[]).and_then(|()| answer(socket.as_mut().expect("it was")));
        if let Err(error) = &answered {
            tracing::info!(%error, "nothing is shared with other trees any more");
            *socket = None;
        }
        answered.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(n: u8) -> Hint {
        [n; 16]
    }

    fn shared(instance: u8) -> Shared {
        Shared { instance: [instance; 16], room_pages: 10 }
    }

    fn id() -> CommonId {
        CommonId::random().unwrap()
    }

    #[test]
    fn movers_of_one_host_share_and_others_do_not() {
        let run = tempfile::tempdir().unwrap();
        let desk = Desk::open(run.path(), id()).unwrap();
        let account = |host: &str, instance| {
            let account = Account::at(run.path(), desk.id(), host.into()).unwrap();
            let there = account.open(shared(instance));
            (account, there)
        };
        let (first, there) = account("b", 1);
        assert!(there.is_empty());
        assert_eq!(first.ask(vec![hint(1)], Turn::Patient), [Say::Shelve]);
        first.sent(vec![hint(1)]);
        first.stored();
        // An answer: what was said before has been heard.
        assert_eq!(first.ask(vec![hint(1)], Turn::Later), [Say::Name]);
        let (second, there) = account("b", 1);
        assert_eq!((there, second.ask(vec![hint(1)], Turn::Later)), (vec![hint(1)], vec![Say::Name]));
        assert!(account("c", 3).1.is_empty(), "another host");
        assert_eq!(account("b.example", 1).1, [hint(1)], "the same by another name");
        assert!(account("b", 2).1.is_empty(), "its shelf was made anew");
        let mut hosts = desk.hosts();
        hosts.sort_unstable();
        assert_eq!(hosts, ["b", "b.example", "c"]);
    }

    #[test]
    fn what_a_mover_has_claimed_is_free_when_it_is_gone_and_without_a_desk_all_is_sent() {
        let run = tempfile::tempdir().unwrap();
        let desk = Desk::open(run.path(), id()).unwrap();
        let of = |run: &Path| Account::at(run, desk.id(), "b".into());
        let (gone, stays) = (of(run.path()).unwrap(), of(run.path()).unwrap());
        gone.open(shared(1));
        stays.open(shared(1));
        assert_eq!(gone.ask(vec![hint(1)], Turn::Patient), [Say::Shelve]);
        assert_eq!(stays.ask(vec![hint(1)], Turn::Patient), [Say::Wait]);
        drop(gone);
        while stays.ask(vec![hint(1)], Turn::Patient) != [Say::Shelve] {
            std::thread::sleep(Duration::from_millis(1));
        }
        let path = socket_path(run.path(), desk.id());
        drop(desk);
        assert!(!path.exists());
        assert!(Account::at(run.path(), id(), "b".into()).is_err());
        let deaf = Account { id: id(), host: "b".into(), socket: Mutex::new(None) };
        assert_eq!((deaf.open(shared(1)), deaf.ask(vec![hint(1)], Turn::Patient)), (vec![], vec![Say::Send]));
    }
}
