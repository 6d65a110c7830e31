//! What an operation has achieved, in the words of the `result` event (cli.md): absent = unknown, never 0.

use super::words::SessionId;
use crate::memory::lazy::Waits;
use crate::migration::cascade::Stage;
use crate::migration::points::taking::Cost;
use crate::migration::report::CandidateReport;
use crate::migration::switchover::forecast::Forecast;
use std::time::Duration;

/// The state of a target, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Runs.
    Running,
    /// Stopped as by SIGSTOP.
    Stopped,
    /// Has ended, or was not started.
    Ended,
    /// Held frozen.
    Held,
    /// Not known which side owns it.
    InDoubt,
}

/// Where the target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// Where it was.
    Source,
    /// There (a restored tree: `local`).
    Dest(String),
    /// On both sides: a copy.
    Both,
    /// Nowhere: only in the image.
    Nowhere,
}

/// One round over dirty pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// 1 for the first.
    pub number: u32,
    /// Pages taken.
    pub pages: u64,
    /// Bytes written or sent.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// An attempt of a move that has failed; the target went on where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Where to.
    pub dests: Vec<String>,
    /// Why it failed.
    pub failure: String,
    /// How long it took.
    pub took: Duration,
}

/// Destinations that have not got the target, and stay up to date from the one that has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptWarm {
    /// The session of the warm-up.
    pub session: String,
    /// Where that is.
    pub host: String,
    /// Who.
    pub dests: Vec<String>,
}

/// The outcome of a dump, pre-dump, restore or move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Id of the session.
    pub session: SessionId,
    /// Process id of the target's root where it was, as the caller sees it.
    pub target_pid: Option<i32>,
    /// Its command name.
    pub target_comm: Option<String>,
    /// Its state now.
    pub state: State,
    /// Where it is now.
    pub place: Where,
    /// Process id of its root where it is now, as that host sees it.
    pub pid: Option<i32>,
    /// `pre-copy`, `stop-and-copy`, `post-copy`, `hybrid`, `snapshot`.
    pub mode: Option<&'static str>,
    /// Which condition ended the rounds.
    pub exit_condition: Option<&'static str>,
    /// From the last instruction before the freeze to the first after it.
    pub downtime: Option<Duration>,
    /// Named parts of the pause, in their order.
    pub downtime_parts: Vec<(&'static str, Duration)>,
    /// What that was expected to be when the rounds ended.
    pub expected_downtime: Option<Duration>,
    /// What it would cost, where that was only asked about.
    pub forecast: Option<Forecast>,
    /// The whole operation.
    pub total: Option<Duration>,
    /// Rounds over dirty pages, the one inside the pause last.
    pub rounds: Vec<Round>,
    /// Bytes written or sent.
    pub bytes: Option<u64>,
    /// Pages written or sent.
    pub pages: Option<u64>,
    /// Of those, pages that were named instead of sent, for they are zero.
    pub zero_pages: Option<u64>,
    /// And those that were named by their digest, for the destination has had their content before.
    pub named_pages: Option<u64>,
    /// Pages that the target has waited for.
    pub faults: Option<u64>,
    /// Which threads have waited for pages, and how long; who has waited most first.
    pub stalls: Vec<Waits>,
    /// What states of the target have cost that came back while it lacked memory.
    pub points: Option<Cost>,
    /// Attempts before this one.
    pub attempts: Vec<Attempt>,
    /// Proxies that it went through, the nearest first.
    pub via: Vec<String>,
    /// Of several destinations each.
    pub candidates: Vec<CandidateReport>,
    /// What was not done, where the rest was.
    pub partly: Option<String>,
    /// Stages that have followed.
    pub stages: Vec<Stage>,
    /// Who stays up to date.
    pub kept_warm: Option<KeptWarm>,
    /// Processes in the tree.
    pub processes: Option<u32>,
    /// Threads in the tree.
    pub threads: Option<u32>,
    /// What to do next, or where to find something: shown to people.
    pub notes: Vec<String>,
}

impl Outcome {
    /// An outcome that knows nothing but where the target is.
    pub fn new(session: SessionId, state: State, place: Where) -> Self {
        Self {
            session,
            target_pid: None,
            target_comm: None,
            state,
            place,
            pid: None,
            mode: None,
            exit_condition: None,
            downtime: None,
            downtime_parts: Vec::new(),
            expected_downtime: None,
            forecast: None,
            total: None,
            rounds: Vec::new(),
            bytes: None,
            pages: None,
            zero_pages: None,
            named_pages: None,
            faults: None,
            stalls: Vec::new(),
            points: None,
            attempts: Vec::new(),
            via: Vec::new(),
            candidates: Vec::new(),
            partly: None,
            stages: Vec::new(),
            kept_warm: None,
            processes: None,
            threads: None,
            notes: Vec::new(),
        }
    }
}
