//! What a move has shown.

use super::cascade::Observer;
use super::pages::Unsent;
use super::points::taking::Cost;
use super::postcopy::serving::Served;
use super::protocol::TargetSummary;
use super::switchover::{ExitCondition, forecast::Forecast};
use crate::ops::outcome::Round;
use std::time::{Duration, Instant};

/// The pause as the source's clock sees it, in named parts.
#[derive(Debug)]
pub struct Pause {
    begun: Instant,
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Pause {
    /// Begins; the first part is called `freeze`.
    pub fn begin() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, parts: Vec::new() }
    }

    /// All is stopped and read; `since` is when the first task was.
    pub fn frozen(&mut self, since: Option<Instant>) {
        if let Some(since) = since {
            self.begun = since;
            self.last = since;
        }
        self.part("freeze");
    }

    /// A part has ended.
    pub fn part(&mut self, name: &'static str) {
        let now = Instant::now();
        self.parts.push((name, now - self.last));
        self.last = now;
    }
}

/// What became of one of several destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// It has the target.
    Owner,
    /// It runs a copy: process id of its root, as it sees it.
    Runs(i32),
    /// It was told to stop, and has deleted what it held.
    Stopped,
    /// It was not told: it deletes what it holds when its lease ends, or parks it.
    Untold,
    /// It was left out before, for this reason.
    Out(String),
}

impl Became {
    /// In one word, for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Runs(_) => "running",
            Self::Stopped => "stopped",
            Self::Untold => "untold",
            Self::Out(_) => "out",
        }
    }
}

/// One of several destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateReport {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub became: Became,
    /// What its copy is called, where each is to have one.
    pub clone_id: Option<String>,
    /// Rounds that it took part in, the one inside the pause included.
    pub rounds: u32,
    /// Bytes sent to it, headers included.
    pub bytes_sent: u64,
    /// When the target stood ready there, since it was stopped.
    pub ready_after: Option<Duration>,
    /// Who has passed on what it got, the nearest to the source first: filled in by whoever has made the links.
    pub via: Vec<String>,
}

/// A move.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    /// What moved.
    pub target: Option<TargetSummary>,
    /// Rounds, the one inside the pause last.
    pub rounds: Vec<Round>,
    /// Why the rounds ended.
    pub exit: Option<ExitCondition>,
    /// From the first stopped task to the word that it runs there: an upper bound of what the target feels.
    pub downtime: Option<Duration>,
    /// What that was expected to be when the rounds ended.
    pub expected_downtime: Option<Duration>,
    /// What a move would cost that was only asked about.
    pub forecast: Option<Forecast>,
    /// The same in parts.
    pub downtime_parts: Vec<(&'static str, Duration)>,
    /// How long the destination took to rebuild it.
    pub rebuild: Option<Duration>,
    /// Process id of the root over there.
    pub pid: Option<i32>,
    /// From the beginning to the word that it runs there.
    pub total: Option<Duration>,
    /// Bytes sent, headers included.
    pub bytes_sent: u64,
    /// Pages of all rounds that were named instead of sent.
    pub unsent: Unsent,
    /// What was sent when it ran already, in post-copy.
    pub late: Option<Served>,
    /// What consistent states of it have cost that came back until then.
    pub points: Option<Cost>,
    /// Of several destinations each.
    pub candidates: Vec<CandidateReport>,
    /// What went wrong without harm.
    pub warnings: Vec<String>,
    /// The link over which it is heard how the target goes on from there.
    pub observer: Option<Observer>,
}

impl Report {
    /// Begins now.
    pub fn begin() -> Self {
        Self {
            begun: Instant::now(),
            target: None,
            rounds: Vec::new(),
            exit: None,
            downtime: None,
            expected_downtime: None,
            forecast: None,
            downtime_parts: Vec::new(),
            rebuild: None,
            pid: None,
            total: None,
            bytes_sent: 0,
            unsent: Unsent::default(),
            late: None,
            points: None,
            candidates: Vec::new(),
            warnings: Vec::new(),
            observer: None,
        }
    }

    /// The target has all of its memory.
    pub fn drained(&mut self, served: Served, points: Option<Cost>) {
        self.points = points;
        self.late = Some(served);
        self.total = Some(self.begun.elapsed());
    }

    /// The target runs there.
    pub fn switched(&mut self, pid: i32, pause: Pause) {
        self.stood(pause);
        self.runs_as(pid);
    }

    /// The pause is over.
    pub fn stood(&mut self, pause: Pause) {
        self.downtime = Some(pause.last - pause.begun);
        self.downtime_parts = pause.parts;
    }

    /// It runs there, by this process id of its root.
    pub fn runs_as(&mut self, pid: i32) {
        self.pid = Some(pid);
        self.total = Some(self.begun.elapsed());
    }
}
