//! The proxy's end: connections to destinations, and what the source has for them.
//!
//! ```text
//! link to the source ─ this thread ─ queue (bounded by the source's window) ─ thread of the lane ──> destination, or a trunk to the next
//!          ^                                                                                             │
//!          └──────────────────────────────── thread that listens to the lane <───────────────────────────┘
//! ```

use super::super::connect::{self, ConnectOptions};
use super::super::hello::Purpose;
use super::super::link::{Link, Request};
use super::super::preamble::SessionNumber;
use super::super::pump::pump;
use super::super::ssh::{self, SshChild};
use super::super::wait::Abort;
use super::recent::{Frame, Recent};
use super::{
    Channel, FRAME_BYTES_MAX, FrameKind, FromProxy, LANES_MAX, Lasting, NEVER, PROXIES_MAX, PeerAddress, Pulse, Result,
    ToProxy, TransportError, Trunk, WINDOW_BYTES,
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// Before a proxy is looked for again that could not be reached: until then those who want it are told the same.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Between two looks whether a wait for a source that reads nothing is to end.
const LOOK: Duration = Duration::from_millis(20);

/// What a proxy is where it is.
#[derive(Debug)]
pub struct Own {
    /// How this host reaches others.
    pub connects: ConnectOptions,
    /// Arguments for `migrate agent --stdio`, as which the source has a session on this host, too; or what forbids that.
    pub session: std::result::Result<Vec<OsString>, String>,
}

/// Passes on what comes over the link, until either end has closed it.
///
/// # Errors
/// A proxy behind this one cannot be reached; the source is lost, or breaks a rule.
pub fn serve(link: Link, own: &Own) -> Result<()> {
    let Link { mut control, .. } = link;
    control.during("waiting for what is to be passed on");
    let (on, manner, tells_read) = match super::receive(&mut control)? {
        ToProxy::Through { on, manner, tells_read } => (on, manner, tells_read),
        other => return Err(super::malformed(control.peer(), format!("{other:?} instead of Through"))),
    };
    if on.len() >= PROXIES_MAX {
        let reason = format!("{} proxies behind this one, where {PROXIES_MAX} in a row are possible", on.len());
        let error = super::malformed(control.peer(), reason.clone());
        control.refuse(&reason);
        return Err(error);
    }
    let options = manner.options(&own.connects);
    if let Some((next, further)) = on.split_first() {
        let through = ToProxy::Through { on: further.to_vec(), manner, tells_read };
        return pass_everything_on(control, next, &through, &options);
    }
    super::send(&mut control, &FromProxy::Ready { heeds_read: tells_read })?;
    control.silence(options.peer_timeout);
    control.stream().tune_for_bulk(options.peer_timeout);
    let peer = control.peer().to_owned();
    let (mut input, output) = control.split()?;
    let (out, living) = (Mutex::new(output), AtomicUsize::new(0));
    let (next, has_session) = (Mutex::default(), AtomicBool::new(false));
    let proxy = Proxy { peer, tells_read, options, own, out, living, next, has_session };
    std::thread::scope(|scope| proxy.run(scope, &mut input))
}

/// Another proxy is the last one: this one does not look at what is said.
fn pass_everything_on(control: Channel, next: &PeerAddress, through: &ToProxy, options: &ConnectOptions) -> Result<()> {
    let request = Request { purpose: Purpose::Relay, streams: 0 };
    let linked = new_abort(control.peer()).and_then(|abort| connect::connect(next, options, request, &abort));
    let told = linked.and_then(|mut link| {
        super::send(&mut link.control, through)?;
        Ok(link)
    });
    let Link { control: further, ssh: _ssh, .. } = match told {
        Ok(link) => link,
        Err(error) => {
            control.refuse(&format!("the proxy {next} cannot be reached from here: {}", super::in_words(&error)));
            return Err(error);
        }
    };
    let peer = control.peer().to_owned();
    further.stream().tune_for_bulk(options.peer_timeout);
    pump(&mut control.into_stream(), &mut further.into_stream(), &peer)
}

fn new_abort(peer: &str) -> Result<Abort> {
    Abort::new().map_err(|source| TransportError::Io { operation: "serve", peer: peer.into(), source })
}

/// What its threads share.
struct Proxy<'o> {
    /// The source.
    peer: String,
    /// It says what was read of each lane.
    tells_read: bool,
    options: ConnectOptions,
    own: &'o Own,
    /// The link to the source, to send by.
    out: Mutex<Channel>,
    /// Connections whose threads have not ended, those too that the source has hung up.
    living: AtomicUsize,
    /// Ways to proxies behind this one, by their addresses.
    next: Mutex<HashMap<String, Arc<Mutex<Next>>>>,
    /// The source has a session on this host: one at a time, with one connection, as this host is one destination.
    has_session: AtomicBool,
}

/// The way to a proxy behind this one.
#[derive(Default)]
enum Next {
    #[default]
    Untried,
    There(Arc<Trunk>),
    /// It could not be reached, for this reason.
    Failed(Instant, String),
}

/// Where a lane leads to.
struct Wanted {
    address: PeerAddress,
    session: Option<[u8; 16]>,
    by: Vec<PeerAddress>,
}

/// What a connection rests on: dropped after it.
#[derive(Default)]
struct Rest {
    _child: Option<SshChild>,
    _proxy: Option<Lasting>,
}

/// What goes to a destination; `None`: nothing more.
type Queued = Option<Frame>;

/// A lane, from the side of whoever hears the source.
struct Lane {
    queue: Sender<Queued>,
    counts: Arc<Counts>,
    /// Ends every wait of its threads.
    abort: Abort,
}

/// Of one lane.
#[derive(Debug, Default)]
struct Counts {
    /// Bytes that wait.
    queued: AtomicU64,
    /// Bytes that have gone back, and that nobody has read yet.
    unread: Mutex<u64>,
    /// Some were.
    read: Condvar,
    /// The connection is there.
    is_open: AtomicBool,
}

impl Counts {
    fn was_read(&self, bytes: u64) {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        *unread = unread.saturating_sub(bytes);
        self.read.notify_all();
    }

    /// Waits until so many bytes may go back; `false`: it is over.
    fn may_go_back(&self, bytes: u64, abort: &Abort) -> bool {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        while *unread >= WINDOW_BYTES {
            if abort.is_triggered() {
                return false;
            }
            unread = self.read.wait_timeout(unread, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        *unread += bytes;
        true
    }
}

impl Wanted {
    fn is_here(&self) -> bool {
        self.by.is_empty() && self.address == PeerAddress::Local
    }
}

impl Lane {
    /// What waits is still written, then it ends.
    fn end(&self) {
        // Its thread may have ended already.
        let _ = self.queue.send(None);
        if !self.counts.is_open.load(Ordering::Relaxed) {
            self.abort.trigger();
        }
    }
}

impl Proxy<'_> {
    fn run<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, input: &mut Channel) -> Result<()> {
        let (mut lanes, mut recent) = (HashMap::new(), Recent::default());
        let done = self.hear_all(scope, input, (&mut lanes, &mut recent));
        lanes.values().for_each(Lane::end);
        done
    }

    fn hear_all<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        input: &mut Channel,
        (lanes, recent): (&mut HashMap<u32, Lane>, &mut Recent),
    ) -> Result<()> {
        let mut pulse = Pulse::new(self.options.peer_timeout);
        let alive = || self.out().send(FrameKind::ALIVE, &[]);
        input.during("passing things on");
        loop {
            pulse.wait(input, &alive)?;
            let frame = match input.receive_one() {
                Ok(Some(frame)) => frame,
                Ok(None) => continue,
                Err(TransportError::Closed { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            match frame.kind {
                FrameKind::CARRY => {
                    let (number, frame) = super::carried(frame.body, &self.peer)?;
                    let frame = Arc::new(frame.to_vec());
                    recent.note(&frame);
                    self.queue(lanes, number, frame)?;
                }
                FrameKind::MESSAGE => match super::decode(frame.body, &self.peer)? {
                    ToProxy::Open { lane, address, session, by } => {
                        self.open(scope, lanes, lane, Wanted { address, session, by })?;
                    }
                    ToProxy::Same { lane, number, checksum } => {
                        let unknown = || super::malformed(&self.peer, format!("frame {number} is not known"));
                        self.queue(lanes, lane, recent.get(number, checksum).ok_or_else(unknown)?)?;
                    }
                    ToProxy::Read { lane, bytes } => {
                        lanes.get(&lane).iter().for_each(|lane| lane.counts.was_read(bytes))
                    }
                    ToProxy::HangUp { lane } => lanes.remove(&lane).iter().for_each(Lane::end),
                    other => return Err(super::malformed(&self.peer, format!("{other:?} for the second time"))),
                },
                got => {
                    let peer = self.peer.clone();
                    return Err(TransportError::UnexpectedKind { peer, expected: "what is to be passed on", got });
                }
            }
        }
    }

    fn out(&self) -> MutexGuard<'_, Channel> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the source. That it is lost is found by whoever hears it.
    fn say(&self, message: &FromProxy) {
        if let Err(error) = super::send(&mut self.out(), message) {
            tracing::debug!(%error, peer = self.peer, "the source was not told");
        }
    }

    /// A frame for a destination.
    fn queue(&self, lanes: &HashMap<u32, Lane>, number: u32, frame: Frame) -> Result<()> {
        // One that has just ended: the source is told, or knows.
        let Some(lane) = lanes.get(&number) else { return Ok(()) };
        let bytes = frame.len() as u64;
        let queued = lane.counts.queued.fetch_add(bytes, Ordering::Relaxed);
        if bytes > FRAME_BYTES_MAX || queued > WINDOW_BYTES + FRAME_BYTES_MAX {
            return Err(super::malformed(&self.peer, format!("more than may be under way on lane {number}")));
        }
        let _ = lane.queue.send(Some(frame));
        Ok(())
    }

    fn open<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        lanes: &mut HashMap<u32, Lane>,
        number: u32,
        wanted: Wanted,
    ) -> Result<()> {
        let refusal = if self.living.load(Ordering::Relaxed) >= LANES_MAX || lanes.contains_key(&number) {
            Some(format!("a proxy has {LANES_MAX} connections at a time, each with a number of its own"))
        } else if wanted.is_here() && self.has_session.swap(true, Ordering::Relaxed) {
            Some("a proxy has one session of the source's on its own host".to_owned())
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.say(&FromProxy::HungUp { lane: number, reason });
            return Ok(());
        }
        let (queue, items) = unbounded();
        let lane = Lane { queue, counts: Arc::default(), abort: new_abort(&self.peer)? };
        let (ends, counts, abort) = (lane.queue.clone(), Arc::clone(&lane.counts), lane.abort.clone());
        lanes.insert(number, lane);
        self.living.fetch_add(1, Ordering::Relaxed);
        scope.spawn(move || {
            let done = self.connect(&wanted, &abort).and_then(|(channel, _rest)| {
                counts.is_open.store(true, Ordering::Relaxed);
                self.serve_lane(number, channel, (&ends, &items, &counts), &abort)
            });
            if wanted.is_here() {
                self.has_session.store(false, Ordering::Relaxed);
            }
            let reason = done.err().map_or_else(|| "it was closed".to_owned(), |error| super::in_words(&error));
            tracing::debug!(lane = number, address = %wanted.address, reason, "a connection of a source has ended");
            self.living.fetch_sub(1, Ordering::Relaxed);
            self.say(&FromProxy::HungUp { lane: number, reason });
        });
        Ok(())
    }

    /// The connection of a lane.
    fn connect(&self, wanted: &Wanted, abort: &Abort) -> Result<(Channel, Rest)> {
        let session = wanted.session.map(SessionNumber);
        if let Some((next, by)) = wanted.by.split_first() {
            let trunk = self.next(next, by.len(), abort)?;
            let made = trunk.connection(&wanted.address, (session, by), &self.options, abort);
            return made.map(|(channel, lasting)| (channel, Rest { _proxy: Some(lasting), ..Rest::default() }));
        }
        let (channel, child) = match wanted.is_here() {
            true => self.own_session(abort).map(|(channel, child)| (channel, Some(child)))?,
            false => connect::connection(&wanted.address, &self.options, session, abort)?,
        };
        Ok((channel, Rest { _child: child, ..Rest::default() }))
    }

    /// The way to the next proxy, behind which there are so many: one for all lanes.
    fn next(&self, address: &PeerAddress, behind: usize, abort: &Abort) -> Result<Arc<Trunk>> {
        if behind >= PROXIES_MAX {
            return Err(super::malformed(&self.peer, format!("more than {PROXIES_MAX} proxies in a row")));
        }
        let next = {
            let mut all = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(address.to_string()).or_default())
        };
        // Who comes meanwhile waits for the same.
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        match &*next {
            Next::There(trunk) if !trunk.is_lost() => return Ok(Arc::clone(trunk)),
            Next::Failed(at, reason) if at.elapsed() < AGAIN_AFTER => {
                return Err(TransportError::Refused { peer: address.to_string(), reason: reason.clone() });
            }
            _ => {}
        }
        match Trunk::begin(std::slice::from_ref(address), &self.options, abort) {
            Ok(trunk) => {
                let trunk = Arc::new(trunk);
                *next = Next::There(Arc::clone(&trunk));
                Ok(trunk)
            }
            Err(error) => {
                // Of a lane that has been given up the others know nothing.
                if !matches!(error, TransportError::Aborted { .. }) {
                    *next = Next::Failed(Instant::now(), super::in_words(&error));
                }
                Err(error)
            }
        }
    }

    /// A session of the source's on this host.
    fn own_session(&self, abort: &Abort) -> Result<(Channel, SshChild)> {
        let refused = |reason: &str| TransportError::Refused { peer: "This host".into(), reason: reason.into() };
        let arguments = self.own.session.as_ref().map_err(|reason| refused(reason))?;
        ssh::connection_local(arguments, &self.options, abort)
    }

    /// Both directions of a connection, until either end has closed it.
    fn serve_lane(
        &self,
        number: u32,
        mut channel: Channel,
        (ends, items, counts): (&Sender<Queued>, &Receiver<Queued>, &Counts),
        abort: &Abort,
    ) -> Result<()> {
        channel.deadline(None);
        channel.during("passing things on");
        channel.stream().tune_for_bulk(self.options.peer_timeout);
        let (mut input, mut output) = channel.split()?;
        input.silence(NEVER);
        self.say(&FromProxy::Opened { lane: number });
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let end = self.listen(number, &mut input, counts, abort);
                tracing::debug!(lane = number, end = %end, "nothing more comes back");
                let _ = ends.send(None);
            });
            let written = self.write(number, &mut output, items, counts);
            abort.trigger();
            written
        })
    }

    /// Writes what comes for a destination.
    fn write(&self, number: u32, output: &mut Channel, items: &Receiver<Queued>, counts: &Counts) -> Result<()> {
        for frame in items.iter().map_while(|frame| frame) {
            output.send_raw(&frame)?;
            let bytes = frame.len() as u64;
            counts.queued.fetch_sub(bytes, Ordering::Relaxed);
            self.say(&FromProxy::Written { lane: number, bytes });
        }
        Ok(())
    }

    /// Carries what a destination says, as fast as it is read; why that has ended.
    fn listen(&self, number: u32, input: &mut Channel, counts: &Counts, abort: &Abort) -> TransportError {
        loop {
            let carried = input.receive_raw().and_then(|frame| {
                if self.tells_read && !counts.may_go_back(frame.len() as u64, abort) {
                    return Err(TransportError::Aborted { during: "passing things on" });
                }
                super::send_carried(&mut self.out(), number, &frame)
            });
            if let Err(error) = carried {
                return error;
            }
        }
    }
}
