//! The destination's end of the handover: performs what [`super::handover::destination`] decides, with the journal and the
//! copy of the target.
//!
//! From PREPARED on the session's process is the guardian of the copy: it belongs to no service and no login, and waits for as
//! long as it takes, on its link and on a socket in the run-time directory. A source that has found a new link asks there through
//! a session of its own ([`answer`]), also while the old link is merely silent. If the guardian has been killed, that session takes the journal over, and
//! with it the frozen copy.

use super::handover::destination::{Action, Destination, Event, Left, Phase, Record};
use super::handover::{Choice, Reply, Request, Rules, Sync};
use super::journal::{Journal, Role, Step};
use super::postcopy;
use super::protocol::AttemptId;
use crate::companion::held::Held;
use crate::failure::Failure;
use crate::fault::{self, Point};
use crate::files::record::{self, Fate};
use crate::net::address::Place;
use crate::restore::fd::bequest::Bequest;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a guardian looks whether its copy is still whole, milliseconds.
const LOOK_EVERY_MS: u16 = 1000;
/// How long either end of the guardian's socket waits for the other.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Longest question or answer, bytes.
const WORDS_MAX: u64 = 4096;

/// A copy of the target that stands still.
pub trait Copy {
    /// Lets it run; process id of its root as this host sees it. No harm if it runs.
    fn run(&mut self) -> Result<i32, Failure>;

    /// Deletes it, and what was made for it.
    fn discard(&mut self);
}

/// Who decides on this side.
#[derive(Debug)]
pub struct Keeper {
    machine: Destination,
    journal: Journal,
    attempt: AttemptId,
    /// Its root, once it runs.
    pid: Option<i32>,
    /// Where those ask who have another link.
    door: Option<Door>,
}

/// The guardian's socket; gone with this value.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Keeper {
    /// For an attempt whose journal has been begun.
    pub fn new(journal: Journal) -> Self {
        let attempt = journal.line().attempt;
        Self { machine: Destination::new(attempt, Rules::in_force()), journal, attempt, pid: None, door: None }
    }

    /// For an attempt whose programs are dead.
    fn recover(journals: &Path, attempt: AttemptId) -> io::Result<(Self, Heirloom)> {
        let (journal, last) = Journal::take_over(journals, Role::Destination, attempt)?;
        let same_boot = last.is_of_this_boot();
        let mut heirloom = Heirloom {
            held: last.held.clone().filter(|_| same_boot).unwrap_or_default(),
            addresses: last.addresses.clone(),
            pid: last.target_pid,
            files: (journals.to_owned(), attempt.to_string()),
            bequest: None,
        };
        let record = Some(last.of_destination());
        let left = Left { tree: heirloom.held.is_whole(), image: false };
        let (machine, actions) = Destination::recover(attempt, record, same_boot, left, Rules::in_force());
        heirloom.bequest = journal.inherit().unwrap_or_else(|error| {
            tracing::warn!(%error, "what the sockets of the copy need cannot be read");
            None
        });
        let mut keeper = Self { machine, journal, attempt, pid: None, door: None };
        keeper.perform(&mut heirloom, actions);
        Ok((keeper, heirloom))
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.machine.phase()
    }

    /// Process id of the root, where it runs here.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The journal, to be told more of the copy.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// What happened is done something about; what the source is to be told.
    pub fn on(&mut self, copy: &mut dyn Copy, event: Event) -> Vec<Reply> {
        if let Event::Asked(_, Request::Commit) = event {
            fault::strike(Point::DestinationOrdered);
        }
        let held = self.journal.line().held.as_ref();
        let mut replies = Vec::new();
        if self.phase() == Phase::Prepared && held.is_some_and(|held| !held.is_whole()) {
            let actions = self.machine.on(Event::CopyDied);
            replies.extend(self.perform(copy, actions));
        }
        let actions = self.machine.on(event);
        replies.extend(self.perform(copy, actions));
        replies
    }

    fn perform(&mut self, copy: &mut dyn Copy, mut actions: Vec<Action>) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !actions.is_empty() {
            let decides = matches!(actions.last(), Some(Action::Record(..)));
            let mut written = true;
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Record(record, sync) => written = self.record(record, sync),
                    Action::Run => self.run(copy),
                    // Nobody is told that it runs before it does.
                    Action::Reply(Reply::Running) if self.pid.is_none() => {
                        self.run(copy);
                        replies.extend(self.pid.map(|_| Reply::Running));
                    }
                    Action::Reply(reply) => replies.push(reply),
                    Action::Discard => copy.discard(),
                    Action::Park | Action::Unpark | Action::Free | Action::Forget => {}
                }
            }
            if decides {
                actions = self.machine.on(if written { Event::Recorded } else { Event::NotRecorded });
            }
        }
        replies
    }

    fn run(&mut self, copy: &mut dyn Copy) {
        match copy.run() {
            Ok(pid) => {
                self.pid = Some(pid);
                fault::strike(Point::DestinationRunning);
            }
            Err(failure) => tracing::error!("the target is this host's, and is held: {failure}"),
        }
    }

    fn record(&mut self, record: Record, sync: Sync) -> bool {
        let step = match record {
            Record::Begun => Step::Begun,
            Record::Prepared => Step::Prepared,
            Record::Parked => Step::Parked,
            Record::Owner => Step::Owner,
            Record::Aborted => Step::Aborted,
            Record::Done => Step::Done,
        };
        let written = match sync {
            Sync::Now => self.journal.write_synced(step),
            Sync::Later => self.journal.write(step),
        };
        if matches!(record, Record::Aborted | Record::Done) {
            self.journal.forget_bequest();
        }
        match record {
            Record::Prepared => fault::strike(Point::DestinationRecorded),
            Record::Owner => fault::strike(Point::DestinationOwner),
            _ => {}
        }
        written.inspect_err(|error| tracing::error!(%error, "the journal cannot be written")).is_ok()
    }

    /// Whether the guardian's socket can be asked.
    pub fn listens(&self) -> bool {
        self.door.is_some()
    }

    /// From here on the guardian's socket can be asked, too.
    ///
    /// # Errors
    /// It cannot be made; the copy stands still nevertheless.
    pub fn listen(&mut self, run: &Path) -> io::Result<()> {
        std::fs::create_dir_all(run)?;
        let path = socket(run, self.attempt);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        self.door = Some(Door { listener, path });
        Ok(())
    }

    /// Waits, as the guardian of a prepared copy, until it is known what becomes of it. With a link: until something comes over
    /// that, whatever it is.
    ///
    /// # Errors
    /// Nobody can ask the guardian.
    pub fn wait(&mut self, copy: &mut dyn Copy, link: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if link.is_none() {
            tracing::warn!(attempt = %self.attempt, "the link is lost; the prepared copy waits for the source, or for a person");
        }
        while self.phase() == Phase::Prepared {
            let Some(door) = &self.door else { return Err(io::ErrorKind::NotConnected.into()) };
            let ears = std::iter::once(door.listener.as_fd()).chain(link);
            let mut fds: Vec<PollFd<'_>> = ears.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let came = poll(&mut fds, PollTimeout::from(LOOK_EVERY_MS));
            let heard = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
            if heard(1) {
                return Ok(());
            }
            if !matches!(came, Ok(1..)) {
                self.on(copy, Event::Silent);
                continue;
            }
            let client = door.listener.accept();
            if let Err(error) = client.and_then(|(client, _)| self.serve(copy, client)) {
                tracing::info!(%error, "a question to the guardian");
            }
        }
        self.door = None;
        Ok(())
    }

    fn serve(&mut self, copy: &mut dyn Copy, mut client: UnixStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let question: Question = hear(&mut client)?;
        say(&mut client, &self.ask(copy, question))
    }

    fn ask(&mut self, copy: &mut dyn Copy, question: Question) -> Answer {
        let replies = match question {
            Question::Source(request) => self.on(copy, Event::Asked(self.attempt, request)),
            Question::Person(choice) => self.on(copy, Event::Resolved(choice)),
        };
        Answer { reply: replies.last().copied(), pid: self.pid, lacks_pages: false }
    }
}

/// What a guardian, or the journal, is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// By the source.
    Source(Request),
    /// By a person on this host.
    Person(Choice),
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `None`: nobody answers, or nothing is to be said.
    pub reply: Option<Reply>,
    /// Process id of the root, where it runs here.
    pub pid: Option<i32>,
    /// Its memory is not all there, and may never be.
    #[serde(default)]
    pub lacks_pages: bool,
}

/// Answers for an attempt whose session is over, or waits: through its guardian, else from the journal.
pub fn answer(journals: &Path, run: &Path, attempt: AttemptId, question: Question) -> Answer {
    // Looked at first: what was complete stays so.
    let lacks_pages = !postcopy::is_complete(run, attempt);
    Answer { lacks_pages, ..decided(journals, run, attempt, question) }
}

fn decided(journals: &Path, run: &Path, attempt: AttemptId, question: Question) -> Answer {
    let nobody = Answer { reply: None, pid: None, lacks_pages: false };
    if let Ok(mut guardian) = UnixStream::connect(socket(run, attempt)) {
        return say(&mut guardian, &question).and_then(|()| hear(&mut guardian)).unwrap_or(nobody);
    }
    match Keeper::recover(journals, attempt) {
        Ok((mut keeper, mut copy)) => keeper.ask(&mut copy, question),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Answer { reply: Some(Reply::Unknown), ..nobody },
        Err(error) => {
            tracing::warn!(%error, %attempt, "nobody decides about it now");
            nobody
        }
    }
}

fn socket(run: &Path, attempt: AttemptId) -> PathBuf {
    run.join(format!("handover-{attempt}.sock"))
}

fn say<T: Serialize>(to: &mut UnixStream, words: &T) -> io::Result<()> {
    to.set_write_timeout(Some(ANSWER_TIME))?;
    to.write_all(&serde_json::to_vec(words).map_err(io::Error::other)?)?;
    to.shutdown(std::net::Shutdown::Write)
}

fn hear<T: for<'de> Deserialize<'de>>(from: &mut UnixStream) -> io::Result<T> {
    from.set_read_timeout(Some(ANSWER_TIME))?;
    let mut words = Vec::new();
    from.take(WORDS_MAX).read_to_end(&mut words)?;
    serde_json::from_slice(&words).map_err(io::Error::other)
}

/// A copy as the journal describes it.
#[derive(Debug)]
struct Heirloom {
    held: Held,
    addresses: Vec<(std::net::IpAddr, u8, String)>,
    pid: Option<i32>,
    /// Where the record of its files is, and the name of the attempt.
    files: (PathBuf, String),
    /// What its sockets need.
    bequest: Option<Bequest>,
}

impl Copy for Heirloom {
    fn run(&mut self) -> Result<i32, Failure> {
        self.bequest.take().into_iter().for_each(Bequest::wake);
        self.held.release().map_err(|e| Failure::of("the held copy cannot be let go", &e))?;
        record::conclude(&self.files.0, &self.files.1, Fate::Keep);
        self.held.root().or(self.pid).ok_or_else(|| Failure::new("the journal does not say who it is"))
    }

    fn discard(&mut self) {
        // First: what is sent to an address that is here and to a socket that is not is answered with a reset.
        for (ip, prefix, interface) in self.addresses.drain(..) {
            let place = Place { ip, prefix, interface };
            if let Err(error) = place.remove() {
                tracing::warn!(%error, "an address was left behind");
            }
        }
        self.held.kill();
        record::conclude(&self.files.0, &self.files.1, Fate::Undo);
    }
}
