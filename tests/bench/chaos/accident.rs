//! What happens to a move, and when: drawn from a seed.

use crate::link::Outage;
use migrate_engine::fault::Point;
use std::time::Duration;

/// A small generator with a seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        random.below(2);
        random
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % n
    }
}

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// When.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// The program that comes there stands still there first.
    Step(Point),
    /// So long after the target was frozen.
    After(Duration),
}

impl Moment {
    /// On which side the step is.
    pub fn side(self) -> Option<Side> {
        let Self::Step(point) = self else { return None };
        Some(if point.name().starts_with("source") { Side::Source } else { Side::Destination })
    }
}

/// Which of several destinations it happens to, where it happens to destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Struck {
    /// The one that has come to the step; the first otherwise.
    One,
    /// All but that one.
    Others,
    /// All at once.
    All,
    /// All, one after the other.
    OneByOne,
    /// None: the proxy that they are behind.
    Proxy,
    /// That, and the one that has come to the step.
    ProxyAndOne,
}

impl Struck {
    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one destination struck",
            Self::Others => "all but one struck",
            Self::All => "all struck at once",
            Self::OneByOne => "all struck one by one",
            Self::Proxy => "the proxy struck",
            Self::ProxyAndOne => "the proxy and one destination struck",
        }
    }

    /// All of them.
    pub const ALL: [Self; 6] = [Self::One, Self::Others, Self::All, Self::OneByOne, Self::Proxy, Self::ProxyAndOne];

    /// Drawn from a seed; where there is a proxy it is struck in half of all runs.
    pub fn draw(seed: u64, has_proxy: bool) -> Self {
        let mut random = Random::new(seed.rotate_left(32) ^ 0x5EED);
        let n = match has_proxy {
            true => [0, 1, 2, 3, 4, 4, 4, 5][random.below(8) as usize],
            false => random.below(4) as usize,
        };
        Self::ALL[n]
    }

    /// Of so many, where this one has come to the step; the number of the proxy is that behind the last.
    pub fn victims(self, of: usize, one: usize) -> Vec<usize> {
        match self {
            Self::One => vec![one],
            Self::Others => (0..of).filter(|n| *n != one).collect(),
            Self::All | Self::OneByOne => (one..of).chain(0..one).collect(),
            Self::Proxy => vec![of],
            Self::ProxyAndOne => vec![of, one],
        }
    }
}

/// How memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Before COMMIT.
    Auto,
    /// What is left after rounds when the target runs over there.
    Hybrid,
    /// When the target runs over there.
    PostCopy,
}

impl Mode {
    /// As an option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Hybrid => "hybrid",
            Self::PostCopy => "post-copy",
        }
    }

    /// Memory follows.
    pub fn is_late(self) -> bool {
        self != Self::Auto
    }
}

/// Programs of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    pub mover: bool,
    pub session: bool,
    /// Companions of the mover that outlive it.
    pub guardian: bool,
}

/// What.
#[derive(Debug, Clone, Copy)]
pub enum What {
    Killed(Who),
    /// For longer than every time-out.
    Stopped(Who),
    /// And healed when each side has decided.
    Link(Outage),
    /// Everything on the host ends, and what was not synced is gone; it comes up again.
    Power(Side),
    /// Not a byte is free where the journals are.
    DiskFull(Side),
    /// So many bytes are, from the beginning.
    DiskNearlyFull(Side, u32),
    /// The program gets no more memory.
    OutOfMemory(Side),
    /// A process of the copy that waits is killed, as the kernel does that is out of memory.
    CopyKilled,
}

impl What {
    /// It takes something away that may not be asked for again: whether it was felt has to be seen.
    pub fn may_miss(self) -> bool {
        matches!(self, Self::DiskFull(_) | Self::DiskNearlyFull(..) | Self::OutOfMemory(_))
    }

    /// It can take the only complete state along once memory follows: that of whoever brings it.
    pub fn takes_pages(self) -> bool {
        matches!(
            self,
            Self::Killed(Who { mover: true, guardian: true, .. })
                | Self::Power(Side::Source)
                | Self::OutOfMemory(Side::Source)
        )
    }

    /// Its row in the table.
    pub fn row(self) -> &'static str {
        match self {
            Self::Killed(Who { mover: true, session: true, .. }) => "both programs killed, guardian too",
            Self::Killed(Who { mover: true, guardian: true, .. }) => "source and guardian killed",
            Self::Killed(Who { mover: true, .. }) => "source killed",
            Self::Killed(Who { session: true, .. }) => "destination killed",
            Self::Killed(_) => "guardian killed",
            Self::Stopped(_) => "stopped longer than time-outs",
            Self::Link(Outage { broken: true, .. }) => "link broken",
            Self::Link(Outage { to_destination: true, to_source: true, .. }) => "link silent both ways",
            Self::Link(_) => "link silent one way",
            Self::Power(Side::Source) => "power lost at the source",
            Self::Power(Side::Destination) => "power lost at the destination",
            Self::DiskFull(Side::Source) => "disk full at the source",
            Self::DiskFull(Side::Destination) => "disk full at the destination",
            Self::DiskNearlyFull(Side::Source, _) => "disk nearly full at the source",
            Self::DiskNearlyFull(Side::Destination, _) => "disk nearly full at the destination",
            Self::OutOfMemory(Side::Source) => "out of memory at the source",
            Self::OutOfMemory(Side::Destination) => "out of memory at the destination",
            Self::CopyKilled => "copy killed",
        }
    }
}

/// Steps of the handover; those of the source first.
const POINTS: [Point; 12] = [
    Point::SourceReady,
    Point::SourceHeld,
    Point::SourceCommitting,
    Point::SourceCommitted,
    Point::SourceMoved,
    Point::SourceEnded,
    Point::DestinationArmed,
    Point::DestinationRecorded,
    Point::DestinationPrepared,
    Point::DestinationOrdered,
    Point::DestinationOwner,
    Point::DestinationRunning,
];

/// Those at which the copy waits and is not the target yet.
const COPY_WAITS: [Point; 4] =
    [Point::DestinationArmed, Point::DestinationRecorded, Point::DestinationPrepared, Point::DestinationOrdered];

/// How long memory follows at least, at the rate of the link.
const FOLLOWS: Duration = Duration::from_millis(400);

/// Half at a named step, half at a time drawn uniformly from the handover, which usually takes so long; longer where memory follows.
pub fn draw(seed: u64, usual: Duration) -> (Mode, Moment, What) {
    let mode = match Random::new(!seed).below(4) {
        0 => Mode::Hybrid,
        1 => Mode::PostCopy,
        _ => Mode::Auto,
    };
    let (moment, what) = accident(seed, usual + if mode.is_late() { FOLLOWS } else { Duration::ZERO });
    (mode, moment, what)
}

fn accident(seed: u64, handover: Duration) -> (Moment, What) {
    let mut random = Random::new(seed);
    let step = seed.is_multiple_of(2);
    let moment = if step {
        Moment::Step(POINTS[random.below(12) as usize])
    } else {
        Moment::After(Duration::from_micros(random.below(handover.as_micros() as u64)))
    };
    let side = if random.below(2) == 0 { Side::Source } else { Side::Destination };
    let what = match random.below(if step { 21 } else { 20 }) {
        0..7 => What::Killed(who(&mut random)),
        7..10 => What::Stopped(who(&mut random)),
        10..14 => What::Link(outage(&mut random)),
        14..16 => What::Power(side),
        16 => What::DiskFull(side),
        17 => What::DiskNearlyFull(side, random.below(16 << 10) as u32),
        18 | 19 => What::OutOfMemory(moment.side().unwrap_or(side)),
        _ => return (Moment::Step(COPY_WAITS[random.below(4) as usize]), What::CopyKilled),
    };
    (moment, what)
}

fn who(random: &mut Random) -> Who {
    let of = |mover, session, guardian| Who { mover, session, guardian };
    match random.below(6) {
        0 | 1 => of(true, false, false),
        2 | 3 => of(false, true, false),
        4 => of(true, false, true),
        _ => of(true, true, true),
    }
}

fn outage(random: &mut Random) -> Outage {
    let of = |to_destination, to_source, broken| Outage { to_destination, to_source, broken };
    match random.below(4) {
        0 => of(true, false, false),
        1 => of(false, true, false),
        2 => of(true, true, false),
        _ => of(false, false, true),
    }
}
