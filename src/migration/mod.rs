//! Moving a live process tree from one host to another.
//!
//! *Source*: where it runs. *Destination*: where it is to run. *Round*: one pass over dirty pages. *Switch-over*: the
//! pause, from the last instruction on the source to the first on the destination. *Residual*: what is still to send
//! when the pause begins.
//!
//! [`source`] and [`destination`] are mirror images: one function for each step of [`protocol`], with the same name on
//! both sides. What a target is made of is the engine's: behind [`source::Target`] and [`destination::Builder`].
//!
//! ```text
//! who owns the target   handover (decides), journal (what survives the program), keeper and heir (act for a destination, a source),
//!                       resolve (a person decides)
//! when to pause         switchover (decides), effort (what is done for a target that writes too fast), pace, report
//! how pages travel      pages (frames), send_pages; less of them: bases (deltas), shelf (named by digest), common_pages (of trees of one evacuation),
//!                       earlier (--base)
//! where pages arrive    intake, then landing (the tree in the making) or store (an image in the making)
//! before and after      conventions (what two hosts call things), warm (a warm-up), cascade (--then), postcopy, points (--recoverable)
//! what is kept there    parked (a prepared copy, with its inventory), standby (for the death of the source),
//!                       leftover (of a loser that is to be kept warm)
//! ```

pub mod bases;
pub mod cascade;
pub mod common_pages;
pub mod conventions;
pub mod destination;
pub mod earlier;
pub mod effort;
pub mod handover;
pub mod heir;
mod intake;
pub mod inventory;
pub mod journal;
pub mod keeper;
pub mod landing;
pub mod leftover;
mod pace;
pub mod pages;
pub mod parked;
pub mod points;
pub mod postcopy;
pub mod protocol;
pub mod report;
pub mod resolve;
pub mod send_pages;
pub mod shelf;
pub mod source;
pub mod standby;
pub mod store;
pub mod switchover;
pub mod warm;

use crate::blocker::{Blocker, codes};
use crate::failure::Failure;
use crate::image::{Model, verify};
use crate::memory::Space;
use crate::memory::pipeline::PageError;
use crate::memory::store::StoreError;
use crate::transport::{Channel, FrameKind, TransportError};
use crossbeam_channel::{RecvTimeoutError, bounded};
use protocol::{AttemptId, WireFailure};
use std::io;
use std::path::PathBuf;

#[cfg(test)]
mod tests;

/// Why a target did not move.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The link, or a peer that breaks its rules.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The engine on this side.
    #[error("{0}")]
    Target(Failure),
    /// The other side could not.
    #[error("The destination failed: {}", .0.what)]
    Destination(WireFailure),
    /// Found before anything was stopped.
    #[error("{} things stand in the way", .0.len())]
    Blocked(Vec<Blocker>),
    /// The source says that the target stays where it is.
    #[error("The target stays at the source: {reason}")]
    Stays {
        /// Why.
        reason: String,
    },
    /// It was told to run its copy, one of several.
    #[error("{peer} was told to run its copy and does not answer: it may run there")]
    CloneUnanswered {
        /// Who.
        peer: String,
    },
    /// A message that makes sense, but not now.
    #[error("{peer} sent {got} where {expected} was due")]
    OutOfTurn {
        /// The other side.
        peer: String,
        /// What would have been right.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// A message of another attempt.
    #[error("A message of attempt {found} came in attempt {wanted}")]
    WrongAttempt {
        /// What it said.
        found: AttemptId,
        /// The one under way.
        wanted: AttemptId,
    },
    /// A frame of pages that is none.
    #[error("The source sent pages that cannot be read: {reason}")]
    Frame {
        /// What is wrong.
        reason: String,
    },
    /// A model that is none.
    #[error("The source sent a model that cannot be used: {reason}")]
    Model {
        /// What is wrong.
        reason: String,
    },
    /// Names of spaces that contradict each other.
    #[error("The source sent pages that fit no model: {reason}")]
    Names {
        /// What is wrong.
        reason: String,
    },
    /// Pages of the frozen target could not be read.
    #[error("Cannot read memory of {space}")]
    Pages {
        /// Whose memory.
        space: Space,
        /// Where, and why.
        source: PageError,
    },
    /// Pages could not be put into the tree in the making, or read out of it again.
    #[error("Cannot reach memory of {space} in the tree that is made")]
    Landing {
        /// Whose memory, as that tree names it.
        space: Space,
        /// Where, and why.
        source: PageError,
    },
    /// The page store at the destination.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file that is to come along, or is compared.
    #[error(transparent)]
    Files(#[from] crate::files::Error),
    /// No file system has room for the pages.
    #[error("There is no room for {wanted} bytes of pages here; {free} are free")]
    NoRoom {
        /// Needed, bytes.
        wanted: u64,
        /// The most that any place has, bytes.
        free: u64,
    },
    /// A state of the target that is none.
    #[error("The destination sent a point that cannot be used: {reason}")]
    Point {
        /// What is wrong.
        reason: String,
    },
    /// States of the target cannot be kept.
    #[error("Cannot keep a point of the target")]
    Kept {
        /// Why.
        source: io::Error,
    },
    /// The journal could not be written; what depends on it was not done.
    #[error("Cannot write the journal of the move")]
    Journal {
        /// Why.
        source: io::Error,
    },
    /// A worker panicked: a defect of this program.
    #[error("A page worker has died")]
    Worker,
    /// COMMIT may have been received: only the destination knows. The target is held here.
    #[error("The link to {peer} was lost in the moment of handing over; the journal is {}", .journal.display())]
    InDoubt {
        /// The other side.
        peer: String,
        /// What says how far it got.
        journal: PathBuf,
        /// What happened.
        source: Box<MoveError>,
    },
    /// The source was not heard for a whole lease after PREPARED.
    #[error("The source was silent for {} s: the prepared copy is parked in {}", .lease.as_secs(), .image.display())]
    Parked {
        /// How long it was waited for.
        lease: std::time::Duration,
        /// Where it waits.
        image: PathBuf,
    },
    /// The target runs here, but the source was not heard again.
    #[error("The target runs here as process {pid}, but the source was not heard again")]
    RunsHere {
        /// Process id of its root.
        pid: i32,
        /// What happened.
        source: Box<MoveError>,
    },
    /// `--converge ...,abort`.
    #[error("The pause would be longer than {} ms: the rounds ended by {}", .goal.as_millis(), .exit.name())]
    TooLong {
        /// What was to be kept.
        goal: std::time::Duration,
        /// Why there are no more rounds.
        exit: switchover::ExitCondition,
    },
    /// After a failure the target could not be resumed.
    #[error("The target could not be resumed: {failure}")]
    NotResumed {
        /// Why not.
        failure: Failure,
        /// The failure before.
        source: Box<MoveError>,
    },
}

impl From<Failure> for MoveError {
    fn from(failure: Failure) -> Self {
        if failure.blockers.is_empty() { Self::Target(failure) } else { Self::Blocked(failure.blockers) }
    }
}

impl MoveError {
    /// Whether somebody wanted it to end.
    fn is_abort(&self) -> bool {
        matches!(self, Self::Transport(TransportError::Aborted { .. }))
    }

    /// Whether the link is gone, so that the other side may have had something to say first.
    fn is_link_lost(&self) -> bool {
        matches!(self, Self::Transport(error) if error.is_link_lost())
    }
}

/// Says every few seconds that this side is alive, while `work` is done on the calling thread.
pub fn while_alive<T>(channel: &mut Channel, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, wait) = bounded::<()>(0);
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(send_pages::ALIVE_EVERY) {
                if let Err(error) = channel.send(FrameKind::ALIVE, &[]) {
                    // The next step finds the link lost.
                    tracing::debug!(%error, "no sign of life could be sent");
                    return;
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// A target that has more memory than this host takes.
fn too_large(memory_bytes: u64, max: u64) -> Blocker {
    Blocker::new(codes::PEER_REFUSES, format!("max-memory={max}"))
        .because(format!("the target has {memory_bytes} bytes"))
}

/// A model that came over the wire must make sense before anything is done with it.
fn check_model(model: &Model) -> Result<(), MoveError> {
    verify::model(model).map_err(|error| MoveError::Model { reason: error.to_string() })
}
