//! The messages of a move, in their order.
//!
//! ```text
//! source                                              destination
//! Offer, model of the running target  ---------------> preflight with that model
//!                                     <--------------- Asks (about files; any number of times)
//! Answers                             --------------->
//!                                     <--------------- Verdict: all blockers, room, which files to send
//! Files; FILE frames; FilesEnd        ---------------> files that come along
//!                                     <--------------- FilesDone         (again before each round)
//! Build (before or after the first round) -----------> makes the tree of that model ahead of time
//!                                     <--------------- Built
//! Round n; pages on the bulk channels, a MARK on each;
//! RoundEnd n                          ---------------> pages land in that tree, or are stored
//!                                     <--------------- RoundDone n      (n = 1.. while the target runs)
//! Keep, model                         ---------------> on the disk      (after the round of a state, see [`super::standby`])
//!                                     <--------------- Kept
//! -- freeze --
//! Files; FILE frames; FilesEnd;       ---------------> what has changed of them
//! Prepare, final model;
//! Round n; pages; marks; RoundEnd n   ---------------> makes of the tree what the target is now, stops short of running
//!                                     <--------------- Prepared
//! hold beyond our own death; journal: committing
//! packets that have come meanwhile    ---------------> kept
//! Commit                              ---------------> journal: owner; runs the target
//!                                     <--------------- Running
//! journal: done; ends the original
//! packets that still come             ---------------> given to the target
//! Done                                ---------------> forgets the attempt
//!                                     <--------------- Stage            (any number, where it is to go on from there)
//!
//! Forget, on a link of its own        ---------------> removes what trees have shared ([`super::common_pages`])
//!                                     <--------------- Forgotten
//! ```
//! At any time before Commit either side may say Abort (source) or Failed (destination): the target goes on at the
//! source, the destination discards what it holds. After Commit only the destination knows; [`super::handover`].
//!
//! Messages are JSON in MESG frames, so that a newer program may add fields. Each names the attempt; a message of another
//! attempt is refused. The model is sent in MODL frames, in pieces; how many bytes there will be is in the message before.

use super::cascade::{News, Onward};
use super::common_pages::{CommonId, Shared};
use super::conventions::Conventions;
use super::handover::Reply;
use super::standby::Standby;
use crate::blocker::{Blocker, Code};
use crate::files::{Answer, Order, Question, Wish};
use crate::image::{Bytes, MmId, ShmemId};
use crate::memory::Space;
use crate::transport::{Channel, FrameKind, Result, TransportError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest model that is taken, bytes.
pub const MODEL_BYTES_MAX: u64 = crate::image::limits::MODEL_BYTES;

/// One attempt to move one target: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttemptId(pub [u8; 16]);

impl AttemptId {
    /// A new one.
    pub fn random() -> Result<Self> {
        crate::transport::link::random_bits().map(Self)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What moves, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSummary {
    /// Process id of the root at the source.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// Processes and threads.
    pub tasks: u32,
    /// Memory it can come to take, bytes: pages that relatives share copy-on-write count for each.
    pub memory_bytes: u64,
    /// Memory it takes as it is, bytes: each page counts once. 0 = unknown.
    #[serde(default)]
    pub once_bytes: u64,
}

/// A blocker on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireBlocker {
    code: u16,
    object: String,
    reason: String,
    remedy: String,
}

impl From<&Blocker> for WireBlocker {
    fn from(blocker: &Blocker) -> Self {
        let Blocker { code, object, reason, remedy } = blocker.clone();
        Self { code: code.0, object, reason, remedy }
    }
}

impl From<WireBlocker> for Blocker {
    fn from(wire: WireBlocker) -> Self {
        Self { code: Code(wire.code), object: wire.object, reason: wire.reason, remedy: wire.remedy }
    }
}

/// A space on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WireSpace {
    /// An address space.
    Mm(u32),
    /// A shared memory object.
    Shmem(u32),
}

impl From<Space> for WireSpace {
    fn from(space: Space) -> Self {
        match space {
            Space::Mm(MmId(id)) => Self::Mm(id),
            Space::Shmem(ShmemId(id)) => Self::Shmem(id),
        }
    }
}

impl From<WireSpace> for Space {
    fn from(wire: WireSpace) -> Self {
        match wire {
            WireSpace::Mm(id) => Self::Mm(MmId(id)),
            WireSpace::Shmem(id) => Self::Shmem(ShmemId(id)),
        }
    }
}

/// How a space that pages are sent for is called in the model (the offered one, or the final one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceName {
    /// In frames of pages.
    pub sent_as: WireSpace,
    /// In the final model; `None` = it is gone, its pages with it.
    pub model: Option<WireSpace>,
    /// The address space (of that model) it shares pages with since it was forked from it.
    pub cow_parent: Option<u32>,
}

/// A failure of the destination, for the source's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFailure {
    /// What failed.
    pub what: String,
    /// Why, outermost cause first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Everything in the way, if that was it.
    #[serde(default)]
    pub blockers: Vec<WireBlocker>,
}

/// From the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromSource {
    /// May this come? The model of the target as it runs now follows, in `model_bytes` bytes.
    Offer {
        /// Names everything that follows.
        attempt: AttemptId,
        /// The session's id, as the source's user sees it.
        session: String,
        /// What moves.
        target: TargetSummary,
        /// The choices of the STATE group, as the options' JSON.
        state: serde_json::Value,
        /// Only look, nothing will be sent.
        dry_run: bool,
        /// Length of the model.
        model_bytes: u64,
        /// Pages follow when it runs.
        #[serde(default)]
        follows: bool,
        /// They do if rounds do not help.
        #[serde(default)]
        may_follow: bool,
        /// States of the target are to come back until then; see [`super::points`].
        #[serde(default)]
        recoverable: bool,
        /// What is to be done about files; `None` = they are compared by name, size and time.
        #[serde(default)]
        files: Option<Wish>,
        /// Directory of an image at the destination whose pages need not travel.
        #[serde(default)]
        base: Option<Bytes>,
        /// After so many milliseconds without a word from the source the destination deletes what it has, or parks what is
        /// prepared; `None` = the usual time.
        #[serde(default)]
        lease_ms: Option<u64>,
        /// It is offered to others as well: one of them will have it.
        #[serde(default)]
        to_several: bool,
        /// What both hosts should mean by the same numbers.
        #[serde(default)]
        conventions: Box<Conventions>,
        /// A clone is to run there, by the identity in `state`. Nobody counts on one that is prepared: when nothing is heard it is
        /// deleted, not parked.
        #[serde(rename = "copy", default)]
        is_clone: bool,
        /// Where it is to go on from there, once it is there; see [`super::cascade`].
        #[serde(default)]
        onward: Option<Box<Onward>>,
        /// The same where it is to stay there, and others are kept up to date from there: apart from that, so that a program which does
        /// not know it moves nothing on.
        #[serde(default)]
        keep_warm: Option<Box<Onward>>,
        /// The newest state is to be kept for the death of the source; see [`super::standby`].
        #[serde(default)]
        standby: Option<Box<Standby>>,
        /// Other trees that go there share pages with it; see [`super::common_pages`].
        #[serde(default)]
        common: Option<CommonId>,
    },
    /// On a link of its own: no other tree of this evacuation comes.
    Forget {
        /// Of this message.
        attempt: AttemptId,
        /// What they have shared.
        common: CommonId,
    },
    /// On a link of its own, in somebody else's preflight: could a target that were there go on like this?
    Reach {
        /// Of this question.
        attempt: AttemptId,
        /// Where to.
        onward: Box<Onward>,
    },
    /// To what was asked about files.
    Answers {
        /// The attempt.
        attempt: AttemptId,
        /// In the order of the question.
        answer: Answer,
    },
    /// Files follow in FILE frames; see [`crate::files::op`].
    Files {
        /// The attempt.
        attempt: AttemptId,
        /// The target is stopped: nothing changes any more, and this pass is not answered.
        last: bool,
    },
    /// All of this pass was sent.
    FilesEnd {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Nothing stands in the way, and pages are to come: make the tree of the offered model ahead of time.
    Build {
        /// The attempt.
        attempt: AttemptId,
        /// How long ago that model was read, microseconds, rounded up: how much later its clocks are by now.
        age_us: u64,
        /// What spaces of pages are called in the offered model.
        spaces: Vec<SpaceName>,
    },
    /// Pages of this round follow on the bulk channels.
    Round {
        /// The attempt.
        attempt: AttemptId,
        /// 1 for the first.
        number: u32,
        /// They are of a target that stood still, and go into a state alone; see [`super::standby`].
        #[serde(default)]
        state: bool,
    },
    /// All pages of this round were sent; each bulk channel has got its MARK.
    RoundEnd {
        /// The attempt.
        attempt: AttemptId,
        /// As announced.
        number: u32,
    },
    /// The round of a state is complete. The model of that moment follows in `model_bytes` bytes: this is the newest state.
    Keep {
        /// The attempt.
        attempt: AttemptId,
        /// How long ago the target stood still for it, microseconds.
        age_us: u64,
        /// What spaces are called.
        spaces: Vec<SpaceName>,
        /// Length of the model.
        model_bytes: u64,
    },
    /// The target is stopped. The final model follows in `model_bytes` bytes, then the last round, which is not answered:
    /// rebuild it, and stop short of running.
    Prepare {
        /// The attempt.
        attempt: AttemptId,
        /// What spaces are called.
        spaces: Vec<SpaceName>,
        /// Length of the model.
        model_bytes: u64,
        /// Length of the list of pages that come when it runs, behind the model; see [`super::postcopy`].
        #[serde(default)]
        late_bytes: u64,
    },
    /// On a link of its own: pages of a target that was prepared without them; see [`super::postcopy`].
    Pages {
        /// The attempt.
        attempt: AttemptId,
        /// Those that somebody waits for, not the rest.
        urgent: bool,
    },
    /// On a link of its own: states of a target that was prepared without its pages are asked for; see [`super::points`].
    Points {
        /// The attempt.
        attempt: AttemptId,
        /// zstd level of their pages.
        level: Option<i32>,
    },
    /// One is to be taken now.
    Point {
        /// The attempt.
        attempt: AttemptId,
        /// With everything that the original does not have.
        whole: bool,
    },
    /// Run it. From here on the destination owns it.
    Commit {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The original has ended.
    Done {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Who owns the target? On a new link, after the old one was lost.
    Ask {
        /// The attempt.
        attempt: AttemptId,
    },
    /// The target goes on at the source.
    Abort {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        reason: String,
        /// It has gone elsewhere, from where this destination is to be kept up to date: pages of a copy that stands ready are kept
        /// ([`super::leftover`]).
        #[serde(default)]
        keep: bool,
    },
}

/// From the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromDestination {
    /// What stands in the way there.
    Verdict {
        /// The attempt.
        attempt: AttemptId,
        /// Everything; empty = it may come.
        blockers: Vec<WireBlocker>,
        /// Bytes of pages that can be stored there.
        room_bytes: u64,
        /// What is to be done about files.
        #[serde(default)]
        order: Order,
        /// Pages that are kept there to be named by digest ([`super::shelf`]), at most.
        #[serde(default)]
        shelf_pages: u32,
        /// Length of the list of pages that it has in an image ([`super::earlier`]), which follows.
        #[serde(default)]
        earlier_bytes: u64,
        /// What a person should know, though it is not in the way.
        #[serde(default)]
        warnings: Vec<String>,
        /// Pages that follow when the target runs can be named by what is on that list, too.
        #[serde(default)]
        names_late: bool,
        /// That a clone was asked for is understood.
        #[serde(rename = "copy", default)]
        is_clone: bool,
        /// It has looked where the target is to go on to, and can see to that.
        #[serde(default)]
        passes_on: bool,
        /// A target that comes from an image is known as one (`from_image` of the choices).
        #[serde(default)]
        images: bool,
        /// It keeps the newest state.
        #[serde(default)]
        stands_by: bool,
        /// What trees share there; `None`: there is no room for that.
        #[serde(default)]
        shared: Option<Shared>,
    },
    /// To [`FromSource::Forget`].
    Forgotten {
        /// Of the message.
        attempt: AttemptId,
    },
    /// To [`FromSource::Reach`].
    Reaches {
        /// Of the question.
        attempt: AttemptId,
        /// What stands in the way of that there.
        blockers: Vec<WireBlocker>,
    },
    /// Something about files, before the verdict.
    Asks {
        /// The attempt.
        attempt: AttemptId,
        /// About the files of the offered model.
        question: Question,
    },
    /// The files of a pass are there.
    FilesDone {
        /// The attempt.
        attempt: AttemptId,
    },
    /// What can be made ahead of time is made.
    Built {
        /// The attempt.
        attempt: AttemptId,
    },
    /// A round is stored.
    RoundDone {
        /// The attempt.
        attempt: AttemptId,
        /// Which.
        number: u32,
        /// Bytes of pages that can still be stored.
        room_bytes: u64,
        /// Pages that were named in vain ([`super::common_pages`]): they are to come again.
        #[serde(default)]
        lacking: Vec<(WireSpace, u64, u64)>,
    },
    /// To [`FromSource::Keep`].
    Kept {
        /// The attempt.
        attempt: AttemptId,
        /// Why it is not, and no later one will be until everything is sent anew; the state before it still is.
        trouble: Option<String>,
    },
    /// The target is rebuilt and stands before its first instruction.
    Prepared {
        /// The attempt.
        attempt: AttemptId,
        /// Time it took to rebuild it, microseconds.
        took_us: u64,
    },
    /// The target runs here.
    Running {
        /// The attempt.
        attempt: AttemptId,
        /// Process id of its root, as the destination sees it.
        pid: i32,
    },
    /// What the destination knows of an attempt, on a new link.
    Says {
        /// The attempt.
        attempt: AttemptId,
        /// What it knows; `None` = whoever decides there does not answer.
        reply: Option<Reply>,
        /// Process id of its root there, where it runs.
        pid: Option<i32>,
        /// Its copy runs, or will, before all of its memory is there.
        #[serde(default)]
        lacks_pages: bool,
    },
    /// A state of the target: its pages have gone before, its model and its index follow.
    Point {
        /// The attempt.
        attempt: AttemptId,
        /// It has everything that the original does not have.
        whole: bool,
        /// How long the target stood still for it, microseconds.
        pause_us: u64,
        /// Pages that were read for it while the target stood still.
        #[serde(default)]
        pages_read: u64,
        /// Length of the model.
        model_bytes: u64,
        /// Length of the index.
        index_bytes: u64,
    },
    /// How it goes on from there.
    Stage {
        /// The attempt.
        attempt: AttemptId,
        /// How far it is.
        news: Box<News>,
    },
    /// It will not run here; everything was discarded.
    Failed {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        failure: WireFailure,
    },
}

/// Sends a message.
pub fn send<T: Serialize>(channel: &mut Channel, message: &T) -> Result<()> {
    let bytes = serde_json::to_vec(message).expect("messages have string keys only");
    channel.send(FrameKind::MESSAGE, &bytes)
}

/// Receives a message.
pub fn receive<T: for<'a> Deserialize<'a>>(channel: &mut Channel) -> Result<T> {
    let peer = channel.peer().to_owned();
    let bytes = channel.expect(FrameKind::MESSAGE, "a message")?;
    decode(bytes, &peer)
}

/// A message from the body of a MESG frame.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], peer: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| TransportError::Malformed {
        peer: peer.into(),
        what: "message",
        reason: error.to_string(),
    })
}

/// Sends the bytes of a model.
pub fn send_model(channel: &mut Channel, model: &[u8]) -> Result<()> {
    let piece = crate::transport::frame::limit(FrameKind::MODEL).expect("a kind of ours") as usize;
    model.chunks(piece).try_for_each(|piece| channel.send(FrameKind::MODEL, piece))
}

/// Receives the bytes of a model, as many as were announced.
pub fn receive_model(channel: &mut Channel, bytes: u64) -> Result<Vec<u8>> {
    let peer = channel.peer().to_owned();
    let malformed = |reason: String| TransportError::Malformed { peer: peer.clone(), what: "model", reason };
    if bytes > MODEL_BYTES_MAX {
        return Err(malformed(format!("{bytes} bytes are more than the {MODEL_BYTES_MAX} allowed")));
    }
    // Grows with what comes, not with what was announced.
    let mut model = Vec::new();
    while (model.len() as u64) < bytes {
        let piece = channel.expect(FrameKind::MODEL, "a piece of the model")?;
        if piece.is_empty() || (model.len() + piece.len()) as u64 > bytes {
            return Err(malformed("its pieces do not add up".into()));
        }
        model.extend_from_slice(piece);
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::stream::Stream;
    use crate::transport::wait::{Abort, Patience};
    use proptest::prelude::*;
    use std::time::Duration;

    fn pair() -> (Channel, Channel) {
        let (a, b) = Stream::pair().unwrap();
        let patience = Patience { abort: Abort::new().unwrap(), silence: Duration::from_secs(5), deadline: None };
        (Channel::new(a, "b", patience.clone()), Channel::new(b, "a", patience))
    }

    #[test]
    fn messages_arrive_as_sent() {
        let (mut a, mut b) = pair();
        let attempt = AttemptId::random().unwrap();
        let spaces = vec![SpaceName { sent_as: WireSpace::Mm(2), model: Some(WireSpace::Mm(0)), cow_parent: Some(1) }];
        let message = FromSource::Prepare { attempt, spaces, model_bytes: 7, late_bytes: 0 };
        send(&mut a, &message).unwrap();
        assert_eq!(receive::<FromSource>(&mut b).unwrap(), message);
        let failure = WireFailure { what: "x".into(), causes: vec!["y".into()], hint: None, blockers: Vec::new() };
        let message = FromDestination::Failed { attempt, failure };
        send(&mut b, &message).unwrap();
        assert_eq!(receive::<FromDestination>(&mut a).unwrap(), message);
    }

    #[test]
    fn a_newer_programs_message_is_read() {
        let attempt = AttemptId([1; 16]);
        let mut json = serde_json::to_value(FromSource::Commit { attempt }).unwrap();
        json["new"] = serde_json::json!({ "field": 1 });
        let bytes = serde_json::to_vec(&json).unwrap();
        assert_eq!(decode::<FromSource>(&bytes, "x").unwrap(), FromSource::Commit { attempt });
        let unknown = decode::<FromSource>(br#"{"message":"teleport"}"#, "x").unwrap_err().to_string();
        assert!(unknown.contains("teleport"), "{unknown}");
    }

    #[test]
    fn an_older_programs_verdict_passes_nothing_on() {
        let verdict = FromDestination::Verdict {
            attempt: AttemptId([1; 16]),
            blockers: Vec::new(),
            room_bytes: 1,
            order: Order::default(),
            shelf_pages: 0,
            earlier_bytes: 0,
            warnings: Vec::new(),
            names_late: false,
            is_clone: false,
            passes_on: true,
            images: true,
            stands_by: true,
            shared: None,
        };
        let mut json = serde_json::to_value(&verdict).unwrap();
        json.as_object_mut().unwrap().remove("passes_on");
        let read = decode::<FromDestination>(&serde_json::to_vec(&json).unwrap(), "x").unwrap();
        assert!(matches!(read, FromDestination::Verdict { passes_on: false, .. }));
    }

    #[test]
    fn a_model_travels_in_pieces() {
        let (mut a, mut b) = pair();
        let model: Vec<u8> = (0..9 << 20).map(|n: u32| (n >> 10) as u8).collect();
        let sent = model.clone();
        let sender = std::thread::spawn(move || send_model(&mut a, &sent));
        assert!(receive_model(&mut b, model.len() as u64).unwrap() == model);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn a_model_that_does_not_add_up_is_refused() {
        let (mut a, mut b) = pair();
        a.send(FrameKind::MODEL, &[0; 100]).unwrap();
        assert!(matches!(receive_model(&mut b, 99), Err(TransportError::Malformed { .. })));
        a.send(FrameKind::MODEL, &[]).unwrap();
        assert!(matches!(receive_model(&mut b, 1), Err(TransportError::Malformed { .. })));
        assert!(matches!(receive_model(&mut b, u64::MAX), Err(TransportError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<FromSource>(&bytes, "x");
            let _ = decode::<FromDestination>(&bytes, "x");
        }
    }
}
