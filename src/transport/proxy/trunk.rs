//! The source's end: lanes to destinations, over one link to a proxy.
//!
//! ```text
//! whoever speaks with a destination ─ channel ─ socket pair ─ thread of the lane ──────────────────────────┐
//!                                                    ^                                                     ├─ link to the proxy
//!                                                    └──── thread of the lane <─ queue <─ thread that listens <──┘
//! ```

use super::super::connect::{self, ConnectOptions};
use super::super::hello::Purpose;
use super::super::link::{Link, Request};
use super::super::preamble::SessionNumber;
use super::super::ssh::SshChild;
use super::super::stream::Stream;
use super::super::wait::{Abort, Patience};
use super::recent::{Frame, Recent};
use super::{
    Branch, Channel, FrameKind, FromProxy, Manner, NEVER, PeerAddress, Pulse, Result, ToProxy, TransportError,
    WINDOW_BYTES,
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks whether somebody wants a wait to end.
const LOOK: Duration = Duration::from_millis(20);

/// What a proxy may take longer than the destination before it says that there is no connection.
const ANSWER: Duration = Duration::from_secs(1);

/// How long whoever gives a lane up waits for its last words to be written to the destination.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A way through one or several proxies. Dropped, it ends with its last lane.
#[derive(Debug)]
pub struct Trunk(Arc<Shared>);

/// Keeps the last words of a link from being lost: dropped after the link's channels, it waits until they are with the destination.
#[derive(Debug)]
pub struct Lasting {
    shared: Arc<Shared>,
    lane: u32,
}

/// What the threads share. Field order is drop order: ssh ends after its pipes are closed.
#[derive(Debug)]
struct Shared {
    peer: String,
    /// It sends no more than is read.
    heeds_read: bool,
    out: Mutex<Outgoing>,
    turns: Turns,
    state: Mutex<State>,
    /// Something about the state is new.
    changed: Condvar,
    /// Ends every wait of the threads.
    abort: Abort,
    _ssh: Option<SshChild>,
}

/// Lanes send in the order in which they have come. By the lock alone the one that has just sent would be the next, and the others would
/// fall behind it, until what they send is too old to be named.
#[derive(Debug, Default)]
struct Turns {
    /// Turns that were taken, and those that are over.
    counts: Mutex<(u64, u64)>,
    over: Condvar,
}

/// Over when it is dropped.
struct Turn<'t>(&'t Turns);

impl Turns {
    /// Waits for those who have come before.
    fn take(&self) -> Turn<'_> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let number = counts.0;
        counts.0 += 1;
        while counts.1 < number {
            counts = self.over.wait(counts).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
        self.0.over.notify_all();
    }
}

/// The link to the proxy, to send by.
#[derive(Debug)]
struct Outgoing {
    channel: Channel,
    recent: Recent,
}

#[derive(Debug, Default)]
struct State {
    lanes: BTreeMap<u32, Lane>,
    /// Lanes that there have been.
    count: u32,
    /// More lanes may be wanted.
    is_held: bool,
    /// Why the proxy is lost.
    lost: Option<String>,
}

/// One connection to a destination.
#[derive(Debug)]
struct Lane {
    /// Bytes that are under way.
    under_way: u64,
    is_open: bool,
    /// It has ended over there, for this reason.
    ended: Option<String>,
    /// What comes back goes here; nothing more comes once it is over there.
    back: Option<Sender<Vec<u8>>>,
    /// Bytes of that which nobody has read yet.
    unread: u64,
    /// Where whoever speaks on it is heard.
    socket: UnixStream,
}

impl Trunk {
    /// Connects to the first of these proxies, which connects to the next.
    ///
    /// # Errors
    /// One of them cannot be reached or refuses.
    pub fn begin(via: &[PeerAddress], options: &ConnectOptions, abort: &Abort) -> Result<Self> {
        let Some((first, on)) = via.split_first() else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "no proxy is named");
            return Err(TransportError::Connect { address: String::new(), source });
        };
        let request = Request { purpose: Purpose::Relay, streams: 0 };
        let Link { mut control, ssh, .. } = connect::connect(first, options, request, abort)?;
        control.during("asking a proxy to pass things on");
        // Each of them waits for the next.
        let limit = options.connect_timeout.saturating_mul(u32::try_from(via.len()).unwrap_or(u32::MAX)) + ANSWER;
        control.deadline(Some(limit));
        super::send(
            &mut control,
            &ToProxy::Through { on: on.to_vec(), manner: Manner::of(options), tells_read: true },
        )?;
        let heeds_read = match super::receive(&mut control)? {
            FromProxy::Ready { heeds_read } => heeds_read,
            other => return Err(super::malformed(control.peer(), format!("{other:?} instead of Ready"))),
        };
        control.deadline(None);
        control.stream().tune_for_bulk(options.peer_timeout);
        let peer = control.peer().to_owned();
        let failed = |source| TransportError::Io { operation: "serve", peer: peer.clone(), source };
        let abort = Abort::new().map_err(failed)?;
        control.abort_with(abort.clone());
        let (mut input, channel) = control.split()?;
        let out = Mutex::new(Outgoing { channel, recent: Recent::default() });
        let state = Mutex::new(State { is_held: true, ..State::default() });
        let (turns, changed) = (Turns::default(), Condvar::new());
        let shared = Arc::new(Shared { peer: peer.clone(), heeds_read, out, turns, state, changed, abort, _ssh: ssh });
        let (threads, silence) = (Arc::clone(&shared), options.peer_timeout);
        let listening = std::thread::Builder::new().name("proxy".into()).spawn(move || {
            let end = threads.listen(&mut input, silence);
            threads.end(&end);
        });
        listening.map_err(failed)?;
        Ok(Self(shared))
    }

    /// A link to an agent, as [`connect::connect`] makes one; `branch`: the way there from the end of this trunk.
    ///
    /// # Errors
    /// A proxy cannot reach it, or is lost; those of [`Link::open`].
    pub fn connect(
        &self,
        (address, branch): (&PeerAddress, &Branch),
        options: &ConnectOptions,
        request: Request,
        abort: &Abort,
    ) -> Result<Link> {
        let name = address.to_string();
        let address = if branch.ends_there { &PeerAddress::Local } else { address };
        let patience = || patient(options, branch.by.len(), abort);
        let one = |session| self.lane(&name, (address, session, &branch.by), patience());
        let (control, lane) = one(None)?;
        let mut link = Link::open(control, request, None, &mut |session| Ok(one(Some(session))?.0))?;
        link.proxy = Some(Lasting { shared: Arc::clone(&self.0), lane });
        Ok(link)
    }

    /// One connection, for somebody else to speak on; `by`: proxies behind the end of this trunk.
    ///
    /// # Errors
    /// A proxy cannot reach it, or is lost.
    pub(super) fn connection(
        &self,
        address: &PeerAddress,
        (session, by): (Option<SessionNumber>, &[PeerAddress]),
        options: &ConnectOptions,
        abort: &Abort,
    ) -> Result<(Channel, Lasting)> {
        let patience = patient(options, by.len(), abort);
        let (channel, lane) = self.lane(&address.to_string(), (address, session, by), patience)?;
        Ok((channel, Lasting { shared: Arc::clone(&self.0), lane }))
    }

    /// Bytes sent to the proxy, headers included, TLS not.
    pub fn bytes_sent(&self) -> u64 {
        self.0.out().channel.bytes_sent()
    }

    /// Nobody can be reached by it any more.
    pub(super) fn is_lost(&self) -> bool {
        self.0.state().lost.is_some()
    }

    /// One connection to whoever is called `name`; what is said on it is said to the destination.
    fn lane(
        &self,
        name: &str,
        (address, session, by): (&PeerAddress, Option<SessionNumber>, &[PeerAddress]),
        patience: Patience,
    ) -> Result<(Channel, u32)> {
        let shared = &self.0;
        let failed = |source| TransportError::Connect { address: name.to_owned(), source };
        let (near, far) = UnixStream::pair().map_err(failed)?;
        let socket = far.try_clone().map_err(failed)?;
        let ours = Patience { abort: shared.abort.clone(), silence: NEVER, deadline: None };
        let (mut input, mut output) = Channel::new(Stream::unix(far).map_err(failed)?, name, ours).split()?;
        // What has come is given to whoever speaks on it, also when the link is over.
        output.abort_with(Abort::new().map_err(failed)?);
        let (back, frames) = unbounded();
        let lane = Lane { under_way: 0, is_open: false, ended: None, back: Some(back), unread: 0, socket };
        let number = shared.add(lane, name)?;
        let (address, session) = (address.clone(), session.map(|session| session.0));
        let opened = shared
            .say(&ToProxy::Open { lane: number, address, session, by: by.to_vec() })
            .and_then(|()| shared.wait_open(number, name, &patience));
        if let Err(error) = opened {
            shared.hang_up(number);
            return Err(error);
        }
        let (carries, gives) = (Arc::clone(shared), Arc::clone(shared));
        let there = move || {
            while let Ok(frame) = input.receive_raw() {
                if !carries.carry(number, &Arc::new(frame)) {
                    break;
                }
            }
            carries.wait_written(number);
            carries.hang_up(number);
        };
        let thread = || std::thread::Builder::new().name("lane".into());
        let spawned =
            thread().spawn(move || gives.give_back(number, &frames, output)).and_then(|_| thread().spawn(there));
        spawned.map_err(|source| {
            shared.hang_up(number);
            failed(source)
        })?;
        Ok((Channel::new(Stream::unix(near).map_err(failed)?, name, patience), number))
    }
}

/// For everything up to the end of the first exchange, where each of so many proxies behind the first waits for the next.
fn patient(options: &ConnectOptions, proxies: usize, abort: &Abort) -> Patience {
    let waits = u32::try_from(proxies).unwrap_or(u32::MAX).saturating_add(1);
    let deadline = Instant::now().checked_add(options.connect_timeout.saturating_mul(waits));
    Patience { deadline, ..options.patience(abort) }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_held = false;
        self.0.end_if_over(&state);
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        let until = Instant::now() + 2 * LAST_WORDS;
        let mut state = self.shared.state();
        while state.lanes.contains_key(&self.lane) && Instant::now() < until {
            state = self.shared.wait(state);
        }
    }
}

impl Shared {
    fn out(&self) -> MutexGuard<'_, Outgoing> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until something is new, or a moment has passed.
    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    fn say(&self, message: &ToProxy) -> Result<()> {
        super::send(&mut self.out().channel, message)
    }

    fn lost(&self, name: &str, reason: &str) -> TransportError {
        TransportError::Refused { peer: format!("{} (on the way to {name})", self.peer), reason: reason.to_owned() }
    }

    /// The number of a new lane.
    fn add(&self, lane: Lane, name: &str) -> Result<u32> {
        let mut state = self.state();
        if let Some(reason) = &state.lost {
            return Err(self.lost(name, reason));
        }
        let number = state.count;
        state.count += 1;
        state.lanes.insert(number, lane);
        Ok(number)
    }

    fn wait_open(&self, number: u32, name: &str, patience: &Patience) -> Result<()> {
        let until = patience.deadline.map(|deadline| deadline + ANSWER);
        let mut state = self.state();
        loop {
            match state.lanes.get(&number) {
                Some(Lane { ended: Some(reason), .. }) => return Err(self.lost(name, reason)),
                Some(Lane { is_open: true, .. }) => return Ok(()),
                Some(_) => {}
                None => return Err(self.lost(name, "the lane is not there")),
            }
            if patience.abort.is_triggered() {
                return Err(TransportError::Aborted { during: "connecting" });
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(TransportError::Deadline { peer: name.into(), during: "connecting through a proxy" });
            }
            state = self.wait(state);
        }
    }

    /// Sends a frame on a lane once there is room for it; `false`: the lane has ended.
    fn carry(&self, number: u32, frame: &Frame) -> bool {
        let mut state = self.state();
        loop {
            match state.lanes.get_mut(&number) {
                Some(lane) if lane.ended.is_some() => return false,
                Some(lane) if lane.under_way < WINDOW_BYTES => {
                    lane.under_way += frame.len() as u64;
                    break;
                }
                Some(_) => state = self.wait(state),
                None => return false,
            }
        }
        drop(state);
        let turn = self.turns.take();
        let sent = self.out().send(number, frame);
        drop(turn);
        if let Err(error) = &sent {
            tracing::debug!(%error, peer = self.peer, "a proxy takes no more");
            self.abort.trigger();
        }
        sent.is_ok()
    }

    /// Until a destination has all that was said to it, for a moment.
    fn wait_written(&self, number: u32) {
        let until = Instant::now() + LAST_WORDS;
        let mut state = self.state();
        let is_under_way = |lane: &Lane| lane.ended.is_none() && lane.under_way > 0;
        while state.lanes.get(&number).is_some_and(is_under_way) && Instant::now() < until {
            state = self.wait(state);
        }
    }

    /// The lane is over at this end.
    fn hang_up(&self, number: u32) {
        if let Err(error) = self.say(&ToProxy::HangUp { lane: number }) {
            tracing::debug!(%error, peer = self.peer, "a proxy is not told that a lane is over");
        }
        let mut state = self.state();
        state.lanes.remove(&number);
        self.end_if_over(&state);
        drop(state);
        self.changed.notify_all();
    }

    fn end_if_over(&self, state: &State) {
        if state.lanes.is_empty() && !state.is_held {
            self.abort.trigger();
        }
    }

    /// Hears what the proxy says, until the link ends; why it has.
    fn listen(&self, input: &mut Channel, silence: Duration) -> TransportError {
        let mut pulse = Pulse::new(silence);
        let alive = || self.out().channel.send(FrameKind::ALIVE, &[]);
        input.during("passing things on");
        loop {
            if let Err(error) = pulse.wait(input, &alive).and_then(|()| self.hear(input)) {
                return error;
            }
        }
    }

    fn hear(&self, input: &mut Channel) -> Result<()> {
        let Some(frame) = input.receive_one()? else { return Ok(()) };
        match frame.kind {
            FrameKind::CARRY => {
                let (number, frame) = super::carried(frame.body, &self.peer)?;
                self.queue_back(number, frame)
            }
            FrameKind::MESSAGE => {
                let message = super::decode(frame.body, &self.peer)?;
                self.told(message)
            }
            got => Err(TransportError::UnexpectedKind { peer: self.peer.clone(), expected: "what is passed on", got }),
        }
    }

    /// A frame for whoever speaks on this lane. One that is over at this end is read by nobody.
    fn queue_back(&self, number: u32, frame: &[u8]) -> Result<()> {
        let bytes = frame.len() as u64;
        let mut state = self.state();
        while let Some(lane) = state.lanes.get_mut(&number) {
            if lane.unread <= WINDOW_BYTES {
                lane.unread += bytes;
                // Its thread has ended where nobody reads any more.
                let _ = lane.back.as_ref().map(|back| back.send(frame.to_vec()));
                return Ok(());
            }
            if self.heeds_read {
                return Err(super::malformed(&self.peer, format!("more than may be under way on lane {number}")));
            }
            // An older proxy goes on, so all wait for this one.
            state = self.wait(state);
        }
        Ok(())
    }

    /// Gives what comes back to whoever speaks on the lane, until there is nothing more.
    fn give_back(&self, number: u32, frames: &Receiver<Vec<u8>>, mut output: Channel) {
        let mut untold = 0;
        for frame in frames {
            if let Err(error) = output.send_raw(&frame) {
                tracing::debug!(%error, "nobody hears a destination");
                return;
            }
            let bytes = frame.len() as u64;
            if let Some(lane) = self.state().lanes.get_mut(&number) {
                lane.unread = lane.unread.saturating_sub(bytes);
            }
            self.changed.notify_all();
            untold += bytes;
            if self.heeds_read && untold >= WINDOW_BYTES / 4 {
                let told = self.say(&ToProxy::Read { lane: number, bytes: std::mem::take(&mut untold) });
                if let Err(error) = told {
                    tracing::debug!(%error, peer = self.peer, "a proxy is not told what was read");
                }
            }
        }
    }

    fn told(&self, message: FromProxy) -> Result<()> {
        let number = match &message {
            FromProxy::Opened { lane } | FromProxy::Written { lane, .. } | FromProxy::HungUp { lane, .. } => *lane,
            FromProxy::Ready { .. } => return Err(super::malformed(&self.peer, "Ready for the second time".into())),
        };
        let mut state = self.state();
        // Of one that is over at this end nobody wants to know.
        let Some(lane) = state.lanes.get_mut(&number) else { return Ok(()) };
        match message {
            FromProxy::Written { bytes, .. } => lane.under_way = lane.under_way.saturating_sub(bytes),
            FromProxy::HungUp { reason, .. } => lane.end(&reason),
            FromProxy::Opened { .. } | FromProxy::Ready { .. } => lane.is_open = true,
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The link is over, and every lane with it.
    fn end(&self, error: &TransportError) {
        let mut state = self.state();
        let reason = super::in_words(error);
        tracing::debug!(peer = self.peer, reason, "the way through a proxy ends");
        state.lanes.values_mut().for_each(|lane| lane.end(&reason));
        state.lost = Some(reason);
        drop(state);
        self.abort.trigger();
        self.changed.notify_all();
    }
}

impl Lane {
    /// Whoever speaks on it finds it closed, behind what has come before: that is still given to them.
    fn end(&mut self, reason: &str) {
        self.ended.get_or_insert_with(|| reason.to_owned());
        self.back = None;
        // Whoever has gone already needs no goodbye.
        let _ = self.socket.shutdown(Shutdown::Read);
    }
}

impl Outgoing {
    /// The frame, or the number of one that is the same.
    fn send(&mut self, lane: u32, frame: &Frame) -> Result<()> {
        if let Some((number, checksum)) = self.recent.find(frame) {
            return super::send(&mut self.channel, &ToProxy::Same { lane, number, checksum });
        }
        self.recent.note(frame);
        super::send_carried(&mut self.channel, lane, frame)
    }
}
