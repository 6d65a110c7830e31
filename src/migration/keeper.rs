//! The destination's end of the handover: performs what [`super::handover::destination`] decides, with the journal and the
//! copy of the target.
//!
//! From PREPARED on the session's process is the guardian of the copy: it belongs to no service and no login, and waits for as
//! long as it takes, on its link and on a socket in the run-time directory. A source that has found a new link asks there through
//! a session of its own ([`answer`]), also while the old link is merely silent. If the guardian has been killed, that session takes the journal over, and
//! with it the frozen copy.

use super::destination::Builder;
use super::handover::destination::{Action, Destination, Event, Left, Phase, Record};
use super::handover::{Choice, Reply, Request, Rules, Sync};
use super::inventory;
use super::journal::{self, Journal, Line, Role, Step};
use super::parked;
use super::postcopy;
use super::protocol::AttemptId;
use super::standby;
use crate::companion::held::Held;
use crate::failure::Failure;
use crate::fault::{self, Point};
use crate::files::record::{self, Fate};
use crate::net::address::Place;
use crate::net::announce::tell_neighbours;
use crate::net::quiet;
use crate::restore::fd::bequest::Bequest;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a guardian looks whether its copy is still whole, milliseconds.
const LOOK_EVERY_MS: u16 = 1000;
/// An order that has not come for so long does not come at once, milliseconds: then what the copy is can be written down.
const SOON_MS: u16 = 20;
/// Between two attempts to park a copy, at most, where its lease is not longer.
const TRY_AGAIN_MAX: Duration = Duration::from_secs(600);
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

    /// Writes it as an image into this directory ([`parked`]): complete, synced and renamed. It stands as before.
    fn park(&mut self, dir: &Path) -> Result<(), Failure>;

    /// Writes into this file what it is ([`inventory`]), with this lease; nothing is to be done where that is known.
    ///
    /// # Errors
    /// A full disk: whoever comes after us keeps it in memory.
    fn describe(&self, path: &Path, lease: Duration) -> Result<(), Failure>;

    /// Ends it, silently, and waits until memory and process ids are free: its image is on the disk.
    fn free(&mut self);

    /// Makes it of its image; it stands still.
    fn unpark(&mut self, dir: &Path, journal: &mut Journal) -> Result<(), Failure>;
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
    /// Without a word from the source for so long a prepared copy is parked.
    lease: Duration,
    /// The same, and longer after it could not be parked.
    pause: Duration,
    /// When the source was heard last, or it was last tried to park.
    heard: Instant,
    /// It was tried to write down what the copy is.
    described: bool,
    /// What could not be done.
    trouble: Option<Failure>,
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
    pub fn new(journal: Journal, lease: Duration) -> Self {
        let line = journal.line();
        Self::of(Destination::new(line.attempt, Rules::in_force()).beside_others(line.is_clone), journal, lease)
    }

    fn of(machine: Destination, journal: Journal, lease: Duration) -> Self {
        let attempt = journal.line().attempt;
        Self {
            machine,
            journal,
            attempt,
            pid: None,
            door: None,
            lease,
            pause: lease,
            heard: Instant::now(),
            described: false,
            trouble: None,
        }
    }

    /// For an attempt whose programs are dead.
    fn recover<'b>(
        journals: &Path,
        attempt: AttemptId,
        builder: &'b mut dyn Builder,
    ) -> io::Result<(Self, Heirloom<'b>)> {
        let (journal, last) = Journal::take_over(journals, Role::Destination, attempt)?;
        let same_boot = last.is_of_this_boot();
        let mut heirloom = Heirloom {
            held: last.held.clone().filter(|_| same_boot).unwrap_or_default(),
            addresses: if same_boot { last.addresses.clone() } else { Vec::new() },
            pid: last.target_pid,
            files: (journals.to_owned(), attempt.to_string()),
            session: last.session.clone(),
            bequest: None,
            inventory: journal.inventory(),
            copy: parked::copy(&parked::directory(journals, attempt)),
            builder,
            ran: same_boot && last.ran,
            risen: false,
        };
        let dir = parked::directory(journals, attempt);
        let image = parked::is_there(&dir)?;
        if !image && let Err(error) = parked::remove(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "half an image was left behind");
        }
        let record = Some(last.of_destination());
        let left = Left { tree: heirloom.held.is_whole(), image };
        let (machine, actions) = Destination::recover(attempt, record, same_boot, left, Rules::in_force());
        heirloom.bequest = journal.inherit().unwrap_or_else(|error| {
            tracing::warn!(%error, "what the sockets of the copy need cannot be read");
            None
        });
        let machine = machine.beside_others(last.is_clone);
        let lease = inventory::read(&heirloom.inventory).map(|found| Duration::from_millis(found.lease_ms));
        let mut keeper = Self::of(machine, journal, lease.unwrap_or(super::destination::LEASE));
        keeper.described = true;
        // What the last line says of the copy holds until it is ended.
        keeper.journal.set_not_parked(last.not_parked);
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
        // A copy is prepared because the source was heard just now, however long ago all this began.
        if matches!(event, Event::Armed) {
            self.heard = Instant::now();
        }
        if let Event::Asked(_, request) = event {
            self.heard = Instant::now();
            if request == Request::Commit {
                fault::strike(Point::DestinationOrdered);
            }
        }
        let held = self.journal.line().held.as_ref();
        let mut replies = Vec::new();
        if self.phase() == Phase::Prepared && held.is_some_and(|held| !held.is_whole()) {
            let actions = self.machine.on(Event::CopyDied);
            replies.extend(self.perform(copy, actions));
        }
        if matches!(event, Event::Asked(of, Request::Abort) if of == self.attempt)
            || event == Event::Resolved(Choice::Discard)
        {
            self.forget_state();
        }
        let actions = self.machine.on(event);
        replies.extend(self.perform(copy, actions));
        // Not in the pause.
        if matches!(event, Event::Asked(of, Request::Done) if of == self.attempt)
            || event == Event::Resolved(Choice::Run)
        {
            self.forget_state();
        }
        replies
    }

    /// Nobody is to start an earlier state of a target of which it is known where it is.
    fn forget_state(&self) {
        standby::forget(&standby::directory(self.journals(), self.attempt));
    }

    fn perform(&mut self, copy: &mut dyn Copy, mut actions: Vec<Action>) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !actions.is_empty() {
            let decides = actions.last().is_some_and(|action| action.decides());
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
                    Action::Discard => {
                        copy.discard();
                        self.forget_image();
                        self.discarded();
                    }
                    Action::Park => written = self.park(copy),
                    Action::Unpark => written = self.unpark(copy),
                    Action::Free => self.free(copy),
                    Action::Forget => self.forget_image(),
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
                let line = self.journal.line();
                if line.step == Step::Owner && !line.ran {
                    self.journal.set_ran();
                    if let Err(error) = self.journal.write(Step::Owner) {
                        tracing::warn!(%error, "the journal does not say that it was let go");
                    }
                }
            }
            Err(failure) => tracing::error!("the target is this host's, and is held: {failure}"),
        }
    }

    fn park(&mut self, copy: &mut dyn Copy) -> bool {
        let dir = self.parked_in();
        tracing::warn!(attempt = %self.attempt, dir = %dir.display(), "the lease is over: parks the prepared copy");
        let written = copy.park(&dir);
        if let Err(failure) = &written {
            tracing::error!("the prepared copy stays in memory, as it is: {failure}");
            self.forget_image();
            self.pause = (self.pause * 2).min(TRY_AGAIN_MAX.max(self.lease));
            // For whoever looks at it; it decides nothing. Once: a journal has little room.
            if self.journal.line().not_parked.is_none() {
                self.journal.set_not_parked(Some(failure.to_string()));
                let _ = self.journal.write(Step::Prepared);
            }
        } else {
            self.journal.set_not_parked(None);
        }
        written.is_ok()
    }

    fn unpark(&mut self, copy: &mut dyn Copy) -> bool {
        let dir = self.parked_in();
        let made = copy.unpark(&dir, &mut self.journal);
        self.trouble = made.err();
        if let Some(failure) = &self.trouble {
            tracing::error!("the copy stays parked: {failure}");
            self.gone();
        }
        self.trouble.is_none()
    }

    fn free(&mut self, copy: &mut dyn Copy) {
        copy.free();
        self.gone();
    }

    /// Nothing stands here: an address or a process id that the journal names may be somebody else's later.
    fn gone(&mut self) {
        let line = self.journal.line();
        if line.held.is_none() && line.addresses.is_empty() {
            return;
        }
        self.journal.forget_copy();
        self.journal.forget_bequest();
        if let Err(error) = self.journal.write(Step::Parked) {
            tracing::warn!(%error, "the journal still names what has ended");
        }
    }

    /// What was discarded is discarded once: a later attempt may have brought the same address.
    fn discarded(&mut self) {
        let line = self.journal.line();
        if line.held.is_none() && line.addresses.is_empty() {
            return;
        }
        let is_recorded = line.step == Step::Aborted;
        self.journal.forget_copy();
        if is_recorded && let Err(error) = self.journal.write(Step::Aborted) {
            tracing::warn!(%error, "the journal still names what was discarded");
        }
    }

    fn forget_image(&self) {
        let dir = self.parked_in();
        if let Err(error) = parked::remove(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "an image that nobody needs was left behind");
        }
    }

    fn journals(&self) -> &Path {
        self.journal.path().parent().unwrap_or(Path::new("/"))
    }

    fn parked_in(&self) -> PathBuf {
        parked::directory(self.journals(), self.attempt)
    }

    /// Where the copy is parked, once it is.
    pub fn image(&self) -> PathBuf {
        parked::image(&self.parked_in())
    }

    /// How long the source may be silent.
    pub fn lease(&self) -> Duration {
        self.lease
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
            // It is said again only to have it on the disk.
            Sync::Now if step == Step::Prepared && self.journal.line().step == step => self.journal.sync(),
            Sync::Now => self.journal.write_synced(step),
            Sync::Later => self.journal.write(step),
        };
        if matches!(record, Record::Aborted | Record::Done) {
            self.journal.forget_bequest();
        }
        match record {
            Record::Prepared => fault::strike(Point::DestinationRecorded),
            Record::Parked => fault::strike(Point::DestinationParked),
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
            if self.heard.elapsed() >= self.pause {
                self.heard = Instant::now();
                self.on(copy, Event::LeaseOver);
                continue;
            }
            let Some(door) = &self.door else { return Err(io::ErrorKind::NotConnected.into()) };
            let ears = std::iter::once(door.listener.as_fd()).chain(link);
            let mut fds: Vec<PollFd<'_>> = ears.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let patience = if self.described { LOOK_EVERY_MS } else { SOON_MS };
            let came = poll(&mut fds, PollTimeout::from(patience));
            let heard = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
            if heard(1) {
                self.heard = Instant::now();
                return Ok(());
            }
            if !matches!(came, Ok(1..)) {
                self.describe(copy);
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

    /// Once: whoever attends the copy after our death can park it then.
    fn describe(&mut self, copy: &dyn Copy) {
        if std::mem::replace(&mut self.described, true) || self.phase() != Phase::Prepared {
            return;
        }
        if let Err(failure) = copy.describe(&self.journal.inventory(), self.lease) {
            tracing::warn!("only this process can park the copy: {failure}");
        }
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
        Answer {
            reply: replies.last().copied(),
            pid: self.pid,
            lacks_pages: false,
            trouble: self.trouble.take().map(|failure| failure.to_string()),
        }
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `None`: nobody answers, or nothing is to be said.
    pub reply: Option<Reply>,
    /// Process id of the root, where it runs here.
    pub pid: Option<i32>,
    /// Its memory is not all there, and may never be.
    #[serde(default)]
    pub lacks_pages: bool,
    /// Why what was asked for was not done.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// Attends a copy whose session is dead: what was not prepared is ended, what is this host's runs, and what is prepared waits for a word
/// of the source, or of a person, and is parked when nothing was heard for the whole lease, which begins anew. Nothing to do where
/// somebody decides already. What it has come to; `builder` as for [`answer`].
///
/// # Errors
/// The journal cannot be read; nobody could ask.
pub fn attend(journals: &Path, run: &Path, attempt: AttemptId, builder: &mut dyn Builder) -> io::Result<Phase> {
    let (mut keeper, mut copy) = Keeper::recover(journals, attempt, builder)?;
    if keeper.phase() == Phase::Prepared {
        keeper.listen(run)?;
        keeper.wait(&mut copy, None)?;
    }
    Ok(keeper.phase())
}

/// Answers for an attempt whose session is over, or waits: through its guardian, else from the journal. `builder` makes a tree of
/// what is parked, and that is its last: what it has made runs.
pub fn answer(
    journals: &Path,
    run: &Path,
    attempt: AttemptId,
    question: Question,
    builder: &mut dyn Builder,
) -> Answer {
    // Looked at first: what was complete stays so. And then: what was parked may have become a tree, which lacks what it lacked.
    let lacked_pages = !postcopy::is_complete(run, attempt);
    let answer = decided(journals, run, attempt, question, builder);
    if answer.reply == Some(Reply::Aborted) {
        // Those of a state that was deleted with that go, too.
        super::destination::sweep_files(journals);
    }
    let lacks_pages = lacked_pages || !postcopy::is_complete(run, attempt);
    Answer { lacks_pages, ..answer }
}

fn decided(journals: &Path, run: &Path, attempt: AttemptId, question: Question, builder: &mut dyn Builder) -> Answer {
    let nobody = Answer { reply: None, pid: None, lacks_pages: false, trouble: None };
    if let Ok(mut guardian) = UnixStream::connect(socket(run, attempt)) {
        return say(&mut guardian, &question).and_then(|()| hear(&mut guardian)).unwrap_or(nobody);
    }
    match Keeper::recover(journals, attempt, builder) {
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
struct Heirloom<'b> {
    held: Held,
    addresses: Vec<(IpAddr, u8, String)>,
    pid: Option<i32>,
    /// Where the record of its files is, and the name of the attempt.
    files: (PathBuf, String),
    /// Its session, of which a state may be kept.
    session: String,
    /// What its sockets need.
    bequest: Option<Bequest>,
    /// Where it stands what it is.
    inventory: PathBuf,
    /// The same, once it is parked and some of its memory is still at the source.
    copy: PathBuf,
    /// Makes a tree of what is parked, and an image of what stands here.
    builder: &'b mut dyn Builder,
    /// It was let go.
    ran: bool,
    /// The builder has made one.
    risen: bool,
}

/// How long processes that were killed may take to end.
const ENDING: Duration = Duration::from_secs(10);

impl Heirloom<'_> {
    /// Before the copy ends: with nobody left its pager would look for the source, to say that everything is in.
    fn end_pager(&self) {
        let found = inventory::read(&self.inventory).or_else(|_| inventory::read(&self.copy));
        if let Some(late) = found.ok().and_then(|found| found.terms.late) {
            late.end_pager();
        }
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        self.addresses.iter().map(|(ip, prefix, interface)| Place {
            ip: *ip,
            prefix: *prefix,
            interface: interface.clone(),
        })
    }

    fn remove_addresses(&mut self) {
        for place in self.places() {
            if let Err(error) = place.remove() {
                tracing::warn!(%error, "an address was left behind");
            }
        }
        self.end_quiet();
        self.addresses.clear();
    }

    /// Neighbours are answered who ask for its addresses, if they were not as others stood ready as well; says whether it was so.
    fn end_quiet(&self) -> bool {
        let all: Vec<IpAddr> = self.addresses.iter().map(|(ip, ..)| *ip).collect();
        let ended = if all.is_empty() { Ok(false) } else { quiet::end(&all, &self.files.1) };
        ended.unwrap_or_else(|error| {
            tracing::error!(%error, "neighbours who ask for a moved address are not answered");
            true
        })
    }

    /// Its addresses are here to stay. Where others stood ready as well, nobody has heard of them.
    fn announce(&self) {
        if !self.end_quiet() {
            return;
        }
        self.places().for_each(|place| tell_neighbours(&place));
    }
}

impl Copy for Heirloom<'_> {
    fn run(&mut self) -> Result<i32, Failure> {
        if self.risen {
            let pid = self.builder.run()?;
            record::conclude(&self.files.0, &self.files.1, Fate::Keep);
            return Ok(pid);
        }
        let unknown = || Failure::new("the journal does not say who it is");
        if self.ran {
            return self.held.root().or(self.pid).ok_or_else(unknown);
        }
        self.bequest.take().into_iter().for_each(Bequest::wake);
        self.held.release().map_err(|e| Failure::of("the held copy cannot be let go", &e))?;
        self.announce();
        record::conclude(&self.files.0, &self.files.1, Fate::Keep);
        self.held.root().or(self.pid).ok_or_else(unknown)
    }

    fn discard(&mut self) {
        // First: what is sent to an address that is here and to a socket that is not is answered with a reset.
        self.remove_addresses();
        if !self.ran {
            self.end_pager();
        }
        self.held.kill();
        // They belong to a state of the session that is kept, if there is one; that is taken to be so where it cannot be seen.
        let is_kept = |lines: Vec<Line>| standby::is_kept(&self.files.0, &lines, &self.session);
        let fate = if journal::all(&self.files.0).map_or(true, is_kept) { Fate::Leave } else { Fate::Undo };
        record::conclude(&self.files.0, &self.files.1, fate);
    }

    fn park(&mut self, dir: &Path) -> Result<(), Failure> {
        let whole = inventory::read_whole(&self.inventory);
        let (inventory, model) =
            whole.map_err(|e| Failure::of("its session was killed before it had written down what the copy is", &e))?;
        self.builder.park_left(&inventory, &model, dir)
    }

    fn describe(&self, _: &Path, _: Duration) -> Result<(), Failure> {
        Ok(())
    }

    fn free(&mut self) {
        if std::mem::take(&mut self.risen) {
            return self.builder.free();
        }
        self.remove_addresses();
        self.end_pager();
        self.held.kill();
        self.held.wait_until_gone(ENDING);
    }

    fn unpark(&mut self, dir: &Path, journal: &mut Journal) -> Result<(), Failure> {
        parked::unpark(dir, self.builder, journal)?;
        self.risen = true;
        Ok(())
    }
}
