//! `migrate evacuate`: trees of this host go to others, several at a time, by a plan.
//!
//! ```text
//! select         which trees; those that have left already, and those that a person has to decide about
//! hosts          what the destinations are
//! plan           which tree where, in which order (pure)
//! board          asks whether it can be, and does it
//! mover          one move, in a process of its own
//! common_pages   what movers to one host share: a page that several trees have goes there once
//! ```
//! A tree is a target of `migrate move`, and its move is one: everything that holds for that holds for it. What an evacuation
//! knows is in the journals of its moves alone; run again, it finds there what has left, and goes on with the rest.

mod board;
mod common_pages;
mod hosts;
pub mod mover;
pub mod plan;
mod select;

pub use mover::{Far, Moved, Shows};
pub use select::LeftOut;

use super::options::{EvacuateOptions, Mode};
use super::warm::{absolute, full};
use super::words::{Dest, SessionId, Target};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::migration::switchover::forecast::Forecast;
use crate::transport::Abort;
use board::Board;
use hosts::Hosts;
use select::{Found, Journals};
use std::time::{Duration, Instant};

/// Something that happens meanwhile.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Something a person should know.
    Warning(String),
    /// So many trees are looked at, and so many hosts asked.
    Planning(usize, usize),
    /// A move begins.
    Begins {
        /// What moves.
        target: &'a Target,
        /// Command name of its root.
        name: &'a str,
        /// Where to.
        dest: &'a Dest,
    },
    /// A move is further than before.
    Far(&'a Target, Far),
    /// Something is to be shown of a move, on standard output (`true`) or standard error.
    Said(&'a Target, bool, String),
    /// A move has ended; or it is clear that a tree stays.
    Ends(&'a TreeReport),
}

/// What has become of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It would go there (`--dry-run`).
    Planned {
        /// Where to.
        dest: Dest,
        /// What that would cost.
        forecast: Option<Forecast>,
    },
    /// It runs there.
    Moved {
        /// Where.
        dest: Dest,
        /// How that was.
        moved: Moved,
    },
    /// It had left before, to this destination; `None`: it has ended by itself.
    Gone(Option<String>),
    /// It is not there. The failure says why, and in which state it is.
    Stayed(Failure),
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeReport {
    /// As it was named, or as `migrate list` names it.
    pub target: Target,
    /// Command name of its root; empty where there was none to be seen.
    pub name: String,
    /// Memory that it can come to take, bytes.
    pub memory_bytes: Option<u64>,
    /// The session of its move, once that has begun.
    pub session: Option<SessionId>,
    /// When its last move began, since the beginning of all.
    pub began: Option<Duration>,
    /// How long that took.
    pub took: Option<Duration>,
    /// What has become of it.
    pub fate: Fate,
}

/// What an evacuation has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evacuation {
    /// Its session.
    pub session: SessionId,
    /// Every tree: first those that have moved or would, in the order in which they begin.
    pub trees: Vec<TreeReport>,
    /// What `--all` does not mean.
    pub left_out: Vec<LeftOut>,
    /// From the first look to the end of the last move.
    pub total: Duration,
    /// How long all moves together were expected to take.
    pub expected: Option<Duration>,
    /// Nothing was moved: it was only asked what would be.
    pub dry_run: bool,
    /// What ended it before its time.
    pub interrupted: Option<FailureKind>,
}

impl Evacuation {
    /// Those that stayed, and why.
    pub fn stayed(&self) -> impl Iterator<Item = (&TreeReport, &Failure)> {
        self.trees.iter().filter_map(|tree| match &tree.fate {
            Fate::Stayed(failure) => Some((tree, failure)),
            _ => None,
        })
    }

    /// 0 if nothing is left here of what was to leave; 4 if a person is needed for one of the trees; how it was interrupted; else 6.
    pub fn exit_code(&self) -> u8 {
        let needs_person = |failure: &Failure| {
            failure.kind == FailureKind::NeedsPerson
                || matches!(failure.target, TargetState::InDoubt | TargetState::Held)
        };
        match self.interrupted {
            _ if self.stayed().any(|(_, failure)| needs_person(failure)) => FailureKind::NeedsPerson as u8,
            _ if self.stayed().next().is_none() => 0,
            Some(kind) => kind as u8,
            None => FailureKind::Partly as u8,
        }
    }

    /// Bytes sent by all moves.
    pub fn bytes(&self) -> u64 {
        let of = |tree: &TreeReport| match &tree.fate {
            Fate::Moved { moved, .. } => moved.bytes.unwrap_or(0),
            _ => 0,
        };
        self.trees.iter().map(of).sum()
    }

    /// Pages that were named by their digest in all moves.
    pub fn named_pages(&self) -> u64 {
        let of = |tree: &TreeReport| match &tree.fate {
            Fate::Moved { moved, .. } => moved.named_pages.unwrap_or(0),
            _ => 0,
        };
        self.trees.iter().map(of).sum()
    }
}

/// Moves trees to other hosts.
///
/// # Errors
/// Usage; no destination can be reached; it was interrupted before anything had begun. Whatever keeps one tree here is no failure of
/// the whole.
pub fn run(
    options: &EvacuateOptions,
    shows: &Shows,
    notice: &mut dyn FnMut(Notice<'_>),
    abort: &Abort,
) -> Result<Evacuation> {
    let begun = Instant::now();
    refuse(options)?;
    let options = &in_full(options.clone())?;
    let (targets, left_out) = if options.all { select::all(abort)? } else { (options.targets.clone(), Vec::new()) };
    notice(Notice::Planning(targets.len(), options.to.len() + options.further.alternates.len()));
    let journals = Journals::read()?;
    let (mut trees, mut settled) = (Vec::new(), Vec::new());
    for target in &targets {
        match select::examine(target, &options.state, &journals) {
            Found::Here(tree) => trees.push(tree),
            Found::Gone(dest) => settled.push(without_move(target, Fate::Gone(dest))),
            Found::Stays(failure) => settled.push(without_move(target, Fate::Stayed(failure))),
        }
    }
    if let Some((one, other)) = select::overlap(&trees) {
        return Err(usage(format!("{one} and {other} have processes in common")));
    }
    settled.iter().for_each(|tree| notice(Notice::Ends(tree)));
    let mut trees = if trees.is_empty() {
        (Vec::new(), None)
    } else {
        let hosts = Hosts::reach(&options.to, &options.further.alternates, &options.peer, abort)?;
        let mut board = Board::new(options, trees, hosts, begun);
        board.plan(notice, abort)?;
        let expected = board.expected();
        if !options.dry_run {
            board.execute(shows, notice, abort);
        }
        (board.reports(notice), Some(expected))
    };
    trees.0.extend(settled);
    Ok(Evacuation {
        session: options.session,
        trees: trees.0,
        left_out,
        total: begun.elapsed(),
        expected: trees.1,
        dry_run: options.dry_run,
        interrupted: super::interrupt::requested(),
    })
}

fn without_move(target: &Target, fate: Fate) -> TreeReport {
    let (target, name) = (target.clone(), String::new());
    TreeReport { target, name, memory_bytes: None, session: None, began: None, took: None, fate }
}

fn usage(what: impl Into<String>) -> Failure {
    Failure::new(what).kind(FailureKind::Usage)
}

/// What does not go together.
fn refuse(options: &EvacuateOptions) -> Result<()> {
    let dests = [&options.to[..], &options.further.alternates].concat();
    for (n, dest) in dests.iter().enumerate() {
        if dests[..n].contains(dest) {
            return Err(usage(format!("{dest} is named twice")));
        }
    }
    let what = if options.to.is_empty() {
        "the group of destinations is empty"
    } else if dests.contains(&Dest::Local) {
        "what goes to local stays on this host"
    } else if options.serial && options.mode.mode != Mode::Auto {
        "--serial says by which mode each tree moves: not with --mode"
    } else if !options.state.move_addresses.is_empty() && (options.all || options.targets.len() > 1) {
        "--move-address is for one tree: each of several would take the address along"
    } else {
        return Ok(());
    };
    Err(usage(what))
}

/// The options for other processes, and for journals that are read elsewhere.
fn in_full(mut options: EvacuateOptions) -> Result<EvacuateOptions> {
    for target in &mut options.targets {
        if let Target::PidFile(path) = target {
            *path = full(path)?;
        }
    }
    for dest in options.to.iter_mut().chain(&mut options.further.alternates) {
        *dest = absolute(dest.clone())?;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Pid;

    fn stayed(kind: FailureKind, target: TargetState) -> TreeReport {
        without_move(&Target::Pid(Pid(7)), Fate::Stayed(Failure::new("x").kind(kind).target(target)))
    }

    #[test]
    fn the_exit_code_says_what_is_left() {
        let code = |trees: Vec<TreeReport>, interrupted| {
            let (session, total) = (SessionId::random(), Duration::ZERO);
            let (left_out, expected) = (Vec::new(), None);
            Evacuation { session, trees, left_out, total, expected, dry_run: false, interrupted }.exit_code()
        };
        let gone = without_move(&Target::Pid(Pid(8)), Fate::Gone(None));
        assert_eq!(code(vec![gone.clone()], None), 0);
        assert_eq!(code(vec![gone.clone()], Some(FailureKind::Interrupted)), 0, "it was too late");
        let blocked = stayed(FailureKind::Blocked, TargetState::Running);
        assert_eq!(code(vec![gone.clone(), blocked.clone()], None), 6);
        assert_eq!(code(vec![blocked.clone()], Some(FailureKind::Terminated)), 143);
        let doubt = stayed(FailureKind::NeedsPerson, TargetState::InDoubt);
        assert_eq!(code(vec![blocked, doubt], Some(FailureKind::Terminated)), 4);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let options = |change: &dyn Fn(&mut EvacuateOptions)| {
            let mut options = EvacuateOptions::new(vec![Target::Pid(Pid(7))], vec!["b".parse().unwrap()]);
            change(&mut options);
            refuse(&options).is_err_and(|failure| failure.kind == FailureKind::Usage)
        };
        assert!(!options(&|_| ()));
        assert!(options(&|options| options.to.push("b".parse().unwrap())));
        assert!(options(&|options| options.to.push(Dest::Local)));
        assert!(options(&|options| options.to.clear()));
        assert!(options(&|options| options.further.alternates.push("b".parse().unwrap())));
        assert!(options(&|options| (options.serial, options.mode.mode) = (true, Mode::PreCopy)));
        let address = |options: &mut EvacuateOptions| {
            options.state.move_addresses.push("192.0.2.7/24@eth0".parse().unwrap());
        };
        assert!(!options(&address), "one tree can take an address along");
        assert!(options(&|options| {
            address(options);
            options.targets.push(Target::Pid(Pid(8)));
        }));
    }
}
