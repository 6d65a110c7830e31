//! What the network sees of a move: nothing but a pause. The two ends of it, as the operations of a move use them.
//!
//! ```text
//! source                                             destination
//! open packet sockets                                open packet sockets, announcers
//! -- no new connections for a moment: queues of listening sockets run empty --
//! keep what comes for the target's ports
//! -- freeze: sockets are locked and read; addresses leave --
//!                                                    addresses come; keep what comes for the ports
//!                                                    sockets are made, mute and deaf
//!                    <------------------- PREPARED
//!                                                    announce: from here on peers send to the new place
//! what has come, before COMMIT  -------------------> waits
//!                                                    sockets speak; what came there, then what came here; sockets hear
//! what still comes, for 100 ms  -------------------> injected
//! ```
//! Peers turn to the new place while nobody answers: what they have sent before is all at the source by then, so that
//! nothing overtakes it. On a roll-back the addresses come back, are announced, and the source injects what it has kept. A
//! source that dies is stood in for by a guard, which cannot inject, but gives sockets and addresses back.

use super::standstill::Connections;
use super::surety::Surety;
use crate::blocker::{Blocker, codes};
use crate::failure::Failure;
use crate::image::{Model, Pid};
use crate::net::address::Place;
use crate::net::announce::Announcer;
use crate::net::capture::Capture;
use crate::net::flows::{Flows, Reach};
use crate::net::gate::{self, Gate};
use crate::net::lock::{self, NetLock, Terms};
use crate::net::nft::{self, Lifetime, PacketLock};
use crate::net::segment::Injector;
use crate::net::{self, packet, quiet};
use crate::proc::cpu_limit::Before;
use crate::proc::table::Table;
use crate::trace::freeze::Frozen;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long what comes to the old place is forwarded: neighbours have heard of the new one by then.
const FORWARD_FOR: Duration = Duration::from_millis(100);
/// How long it is before anything else is done: ending the original takes longer than senders wait.
const FORWARD_FIRST: Duration = Duration::from_millis(5);
/// Bytes of packets in one message.
const MESSAGE_BYTES: usize = 128 << 10;
/// The most bytes of packets that are sent ahead of COMMIT, where they prolong the pause; the rest follows it.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// The most bytes of packets that are kept for the moment when the target runs; what is beyond is dropped, and repeated by
/// its sender.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// How long connections that were begun are waited for while new ones must wait: the first repetition of a request comes
/// after a second.
const DRAIN_MAX: Duration = Duration::from_millis(250);

/// The end that the target leaves.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Absent where packet sockets are not allowed.
    keeper: Option<Keeper>,
    gate: Option<Gate>,
    flows: Flows,
    /// The target's TCP sockets, mute and deaf since they were read.
    locks: Vec<NetLock>,
    /// What came for them since, for a roll-back.
    kept: Vec<Vec<u8>>,
    /// How many of these were sent ahead.
    sent: usize,
    /// The original stays as it is whatever becomes of this program: the target may run elsewhere.
    held: bool,
    /// Keeps segments for them away from sockets that are gone.
    packets: Vec<PacketLock>,
    /// Addresses that move with the target.
    addresses: Vec<Place>,
    /// Those that were taken off their interfaces.
    removed: Vec<Place>,
    /// Those that have come back to them.
    came_back: Vec<Place>,
    announcers: Vec<(Place, Announcer)>,
    /// Gives everything back if this program dies.
    surety: Surety,
}

/// Sockets that keep packets and give them to the stack.
#[derive(Debug)]
struct Keeper {
    capture: Capture,
    injector: Injector,
}

impl Keeper {
    /// `None`, and logged, without the right to packet sockets: what is sent in the pause is repeated by its sender.
    fn open() -> Option<Self> {
        let open = || -> net::Result<Self> { Ok(Self { capture: Capture::open()?, injector: Injector::open(None)? }) };
        open().inspect_err(|error| tracing::warn!(%error, "what peers send in the pause is not kept")).ok()
    }

    /// Gives packets to the local stack.
    fn inject(&self, packets: &[Vec<u8>]) {
        for packet in packets {
            if let Err(error) = self.injector.packet(packet) {
                tracing::debug!(%error, "a packet was not given to the local stack");
            }
        }
    }

    /// Everything that has come.
    fn take(&mut self, flows: &Flows, reach: Reach) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut bytes = 0;
        while bytes < KEPT_BYTES_MAX {
            match self.capture.take(flows, reach) {
                Ok(packets) if packets.is_empty() => break,
                Ok(packets) => {
                    bytes += packets.iter().map(Vec::len).sum::<usize>();
                    all.extend(packets);
                }
                Err(error) => {
                    tracing::warn!(%error, "captured packets cannot be read");
                    break;
                }
            }
        }
        all
    }

    fn rest(&mut self) {
        match self.capture.rest() {
            Ok(0) => {}
            Ok(lost) => tracing::warn!(lost, "packets found no room in the pause; their senders repeat them"),
            Err(error) => tracing::warn!(%error, "packets are still captured"),
        }
    }
}

impl Leaving {
    /// Makes ready; nothing is captured yet. These addresses move with the target.
    pub fn begin(addresses: Vec<Place>) -> Self {
        let mut leaving = Self::default();
        leaving.keeper = Keeper::open();
        leaving.announcers = announcers(&addresses);
        leaving.addresses = addresses;
        leaving
    }

    /// The target is about to get less processor time than this; it gets it back if this program dies.
    pub fn slows(&mut self, before: &Before) {
        self.surety.slows(before);
    }

    /// Right before the tree is stopped. Packets for its ports are kept; connections that were begun are let through to it
    /// while new ones wait.
    pub fn before_freeze(&mut self, root: Pid) {
        let seen = Table::around(root).map(|table| gate::look(&table.tree(root))).unwrap_or_default();
        self.flows = seen.flows.clone();
        if !(self.flows.is_empty() && self.addresses.is_empty()) {
            self.surety.start();
        }
        let Some(keeper) = &mut self.keeper else { return };
        if let Err(error) = keeper.capture.arm(&seen.flows.ports()) {
            tracing::warn!(%error, "what peers send in the pause is not kept");
            return;
        }
        self.surety.gates(&seen.listeners);
        let gate = Gate::close(&seen);
        gate.wait_until_drained(DRAIN_MAX);
        self.gate = Some(gate);
    }

    /// The tree was read, and these are its sockets. Nobody else has them now.
    pub fn locked(&mut self, locks: Vec<NetLock>, model: &Model) {
        // The locks have taken the gates' place.
        self.gate = None;
        self.flows = Flows::of(model);
        self.locks = locks;
    }

    /// The addresses leave this host.
    ///
    /// # Errors
    /// One cannot be taken off its interface.
    pub fn give_up_addresses(&mut self) -> Result<(), Failure> {
        for place in std::mem::take(&mut self.addresses) {
            // Told before: the guard puts back only what is not there.
            self.surety.removes(&place);
            place.remove().map_err(|e| Failure::of("an address cannot be moved", &e))?;
            self.removed.push(place);
        }
        Ok(())
    }

    /// Segments for the target's connections are dropped from here on, until this command has ended: for the time when their
    /// sockets are gone (in a move within one network they are not: the new tree has taken them over, and nothing is forwarded
    /// either). It waits for a grace period, which has no place in a pause.
    ///
    /// # Errors
    /// The kernel has packet filters, and would not take ours.
    pub fn hold_off(&mut self) -> net::Result<()> {
        if !self.locks.iter().all(NetLock::is_as_left) {
            self.flows = Flows::default();
            return Ok(());
        }
        self.packets = nft::hold_off(&self.locks, Lifetime::WithUs)?;
        Ok(())
    }

    /// What has come since the freeze, packed; it is kept for a roll-back as well.
    pub fn ahead(&mut self) -> Vec<Vec<u8>> {
        let Some(keeper) = &mut self.keeper else { return Vec::new() };
        let mut packets = keeper.take(&self.flows, Reach::Known);
        self.kept.append(&mut packets);
        let mut bytes = 0;
        let fits = |packet: &&Vec<u8>| {
            bytes += packet.len();
            bytes <= AHEAD_BYTES_MAX
        };
        self.sent = self.kept.iter().take_while(fits).count();
        packet::pack(&self.kept[..self.sent], MESSAGE_BYTES)
    }

    /// The original stays as it is from here on, even if this program ends: only [`Leaving::resume`] frees it.
    pub fn hold(&mut self) {
        self.held = true;
        self.surety.hold();
    }

    /// A hand on the guard of sockets and addresses, for whoever decides when this program is dead; before [`Leaving::hold`].
    pub fn lend_guard(&mut self) -> Option<OwnedFd> {
        self.surety.lend()
    }

    /// The sockets go on here, with everything they have missed.
    pub fn resume(&mut self) {
        self.held = false;
        for place in self.removed.drain(..) {
            if let Err(error) = place.add() {
                tracing::warn!(%error, "an address did not come back to its interface");
            }
            announce(&self.announcers, &place);
            self.came_back.push(place);
        }
        self.gate = None;
        self.unlock();
        if let Some(keeper) = &mut self.keeper {
            keeper.rest();
        }
    }

    /// Gives the sockets back with everything they have missed.
    fn unlock(&mut self) {
        let locks = std::mem::take(&mut self.locks);
        let mut kept = std::mem::take(&mut self.kept);
        let outcome = lock::unlock_all(locks, || {
            let Some(keeper) = &mut self.keeper else { return };
            kept.extend(keeper.take(&self.flows, Reach::Same));
            keeper.inject(&kept);
            kept.clear();
        });
        if let Err(error) = outcome {
            tracing::error!("a TCP socket stays locked: {error}");
        }
        self.surety.given_back();
    }

    /// The target runs elsewhere and its original has ended: nothing is to be given back any more.
    pub fn end(&mut self) {
        self.surety.forget();
        self.leave();
    }

    /// What was taken stays so: the last close of its sockets must be silent.
    pub fn leave(&mut self) {
        self.locks.drain(..).for_each(NetLock::keep);
        self.removed.clear();
    }

    /// Sends on what has come and still comes here: for a moment as soon as the target runs, since a sender repeats after some
    /// milliseconds what is not acknowledged, and (`to_the_end`) until neighbours know the new place.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn forward<E>(&mut self, to_the_end: bool, send: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let Some(keeper) = self.keeper.as_mut().filter(|_| !self.flows.is_empty()) else { return Ok(()) };
        let mut packets = self.kept.split_off(std::mem::take(&mut self.sent));
        self.kept.clear();
        let until = Instant::now() + if to_the_end { FORWARD_FOR } else { FORWARD_FIRST };
        loop {
            packets.extend(keeper.take(&self.flows, Reach::Open));
            for body in packet::pack(&packets, MESSAGE_BYTES) {
                send(&body)?;
            }
            packets.clear();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            wait(keeper.capture.fds(), left);
        }
        if to_the_end {
            keeper.rest();
        }
        Ok(())
    }
}

impl Connections for Leaving {
    fn locks(&mut self, frozen: &mut Frozen, sockets: &[(BorrowedFd<'_>, Terms)]) {
        self.surety.locks(frozen, sockets);
    }

    fn let_go(&mut self, locks: Vec<NetLock>, model: &Model) {
        self.flows = Flows::of(model);
        self.locks = locks;
        self.unlock();
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // The destination may have announced itself before it learned that nobody comes.
        self.came_back.iter().for_each(|place| announce(&self.announcers, place));
        if self.held {
            self.leave();
        } else if !self.locks.is_empty() || !self.removed.is_empty() {
            self.resume();
        }
    }
}

/// Until one of them is readable, at most so long.
fn wait<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>, limit: Duration) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let limit = PollTimeout::from(limit.as_millis().min(1000) as u16 + 1);
    // Interrupted or not: the caller looks.
    let _ = poll(&mut fds, limit);
}

/// Opens one for each address. Opening and closing them takes longer than a pause.
fn announcers(addresses: &[Place]) -> Vec<(Place, Announcer)> {
    let open = |place: &Place| match Announcer::open(None, &place.interface) {
        Ok(announcer) => Some((place.clone(), announcer)),
        Err(error) => {
            tracing::warn!(%error, "neighbours cannot be told of a moved address");
            None
        }
    };
    addresses.iter().filter_map(open).collect()
}

fn announce(announcers: &[(Place, Announcer)], place: &Place) {
    for (_, announcer) in announcers.iter().filter(|(at, _)| at == place) {
        if let Err(error) = announcer.announce(place.ip) {
            tracing::warn!(%error, "neighbours were not told of a moved address");
        }
    }
}

/// The end that the target comes to.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    keeper: Option<Keeper>,
    announcers: Vec<(Place, Announcer)>,
    same_network: bool,
    flows: Flows,
    /// Addresses that were put on interfaces of this host.
    added: Vec<Place>,
    /// Addresses that neighbours who ask for them are not told of, as others may get the target.
    quiet: Vec<IpAddr>,
    /// For which attempt.
    attempt: String,
    /// Ends that.
    ending: Option<JoinHandle<()>>,
    /// Packets from the source that wait until the target runs.
    kept: Vec<Vec<u8>>,
    kept_bytes: usize,
    /// Peers have been told.
    announced: bool,
    /// Its sockets answer.
    answers: bool,
    runs: bool,
}

impl Arriving {
    /// Makes ready, before the pause; nothing is captured yet. These addresses come with the target. `same_network`: the
    /// source is in this very network, and captures what comes.
    pub fn begin(addresses: &[Place], model: &Model, same_network: bool) -> Self {
        let needed = !Flows::of(model).is_empty() || !addresses.is_empty();
        let ips: Vec<IpAddr> = addresses.iter().map(|place| place.ip).collect();
        if !ips.is_empty()
            && let Err(error) = quiet::sweep(&ips)
        {
            tracing::warn!(%error, "what a killed session has left may keep neighbours from an address");
        }
        let keeper = if needed { Keeper::open() } else { None };
        let announcers = announcers(addresses);
        let mut arriving = Self::default();
        (arriving.keeper, arriving.announcers, arriving.same_network) = (keeper, announcers, same_network);
        arriving
    }

    /// Nobody hears of these addresses before the target is ours: others have been offered it, too. Where they are the original's, on
    /// this host, it goes on to be answered for.
    pub fn keep_quiet(&mut self, addresses: &[Place], attempt: &str) -> Option<Blocker> {
        if addresses.is_empty() || addresses.iter().any(Place::is_here) {
            return None;
        }
        (self.quiet, self.attempt) = (addresses.iter().map(|place| place.ip).collect(), attempt.to_owned());
        let object = || addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let refused = quiet::begin(&self.quiet, attempt).err()?;
        Some(Blocker::new(codes::ADDRESS_OF_SEVERAL, object()).because(refused.to_string()))
    }

    /// The addresses come to this host, and what peers send here is kept.
    ///
    /// # Errors
    /// One cannot be put on its interface.
    pub fn take_addresses(&mut self, addresses: Vec<Place>, model: &Model) -> net::Result<()> {
        self.flows = Flows::of(model);
        if let Some(keeper) = self.keeper.as_mut().filter(|_| !self.flows.is_empty() && !self.same_network)
            && let Err(error) = keeper.capture.arm(&self.flows.ports())
        {
            tracing::warn!(%error, "what peers send in the pause is not kept");
        }
        for place in addresses {
            place.add()?;
            self.added.push(place);
        }
        Ok(())
    }

    /// Whether somebody keeps what is sent to sockets that do not answer yet.
    pub fn keeps(&self) -> bool {
        self.keeper.is_some()
    }

    /// The target is ours.
    pub fn chosen(&mut self) {
        let quiet = std::mem::take(&mut self.quiet);
        if !quiet.is_empty() {
            // It waits for a grace period, and the target for nobody: those who know the address already are told here.
            let attempt = self.attempt.clone();
            self.ending = Some(std::thread::spawn(move || end_quiet(&quiet, &attempt)));
        }
        // Where the order came before anything could be said, or nothing might be.
        self.announce();
    }

    /// The target is rebuilt: peers may turn to this host, although nobody answers yet. Once is enough. Where others stand ready
    /// as well nothing is said before it is ours.
    pub fn announce(&mut self) {
        if self.quiet.is_empty() && !std::mem::replace(&mut self.announced, true) {
            self.added.iter().for_each(|place| announce(&self.announcers, place));
        }
    }

    /// Packets from the source: for now or for later. Only those for sockets of the target are taken.
    ///
    /// # Errors
    /// They are not packed as packets are.
    pub fn deliver(&mut self, body: &[u8]) -> Result<(), Failure> {
        let packets = packet::unpack(body).ok_or_else(|| Failure::new("captured packets cannot be read"))?;
        let reach = if self.runs { Reach::Open } else { Reach::Known };
        let wanted = |packet: &&[u8]| {
            let header = packet::Header::parse(packet);
            header.is_some_and(|header| self.flows.want(&header, reach) && header.is_intact(packet))
        };
        let packets: Vec<Vec<u8>> = packets.into_iter().filter(wanted).map(<[u8]>::to_vec).collect();
        let Some(keeper) = &self.keeper else { return Ok(()) };
        if self.runs {
            keeper.inject(&packets);
            return Ok(());
        }
        for packet in packets {
            if self.kept_bytes + packet.len() <= KEPT_BYTES_MAX {
                self.kept_bytes += packet.len();
                self.kept.push(packet);
            }
        }
        Ok(())
    }

    /// Gives the sockets what has come for them at the source, then what has come here.
    pub fn inject(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        // Once they have been given requests listening sockets answer: what is sent to them from then on may be more.
        let reach = if std::mem::replace(&mut self.answers, true) { Reach::Open } else { Reach::Known };
        let here = keeper.take(&self.flows, reach);
        keeper.inject(&std::mem::take(&mut self.kept));
        keeper.inject(&here);
    }

    /// The target runs.
    pub fn settle(&mut self) {
        self.runs = true;
        self.added.clear();
        if let Some(keeper) = &mut self.keeper {
            keeper.rest();
        }
    }

    /// Nothing comes after all.
    pub fn discard(&mut self) {
        for place in self.added.drain(..) {
            if let Err(error) = place.remove() {
                tracing::warn!(%error, "an address was left behind");
            }
        }
        end_quiet(&std::mem::take(&mut self.quiet), &self.attempt);
        if let Some(keeper) = &mut self.keeper {
            keeper.rest();
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // Addresses that are still here are a prepared copy's: whoever decides about it ends this, too.
        if self.added.is_empty() {
            end_quiet(&self.quiet, &self.attempt);
        }
        // A panic there has been logged.
        self.ending.take().into_iter().for_each(|ending| drop(ending.join()));
    }
}

/// Neighbours are answered again.
fn end_quiet(addresses: &[IpAddr], attempt: &str) {
    if !addresses.is_empty()
        && let Err(error) = quiet::end(addresses, attempt)
    {
        tracing::error!(%error, "neighbours who ask for a moved address are not answered");
    }
}
