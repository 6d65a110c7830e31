//! Named places where a test can have an operation fail: `MIGRATE_FAULT=NAME`. And the field of the model that a restore is
//! to forget: `MIGRATE_FORGET=PATH`.
//!
//! Without the variable a place costs one load and one branch. A fault is an ordinary error of the layer it is in, so that
//! what is tested is the ordinary way out: the target goes on, and nothing of a half-made tree is left.

use nix::sys::signal::Signal;
use std::sync::OnceLock;

/// The operation was told to fail here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed on purpose at {} (MIGRATE_FAULT)", .0.name())]
pub struct Injected(pub Point);

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place where an operation can be made to fail.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[$doc])* $point,)* }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$point,)*];

            /// As `MIGRATE_FAULT` names it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }
        }
    };
}

points! {
    /// The cgroup of the target stands still, nobody has been asked to stop.
    CgroupFrozen = "cgroup-frozen",
    /// Every task is stopped.
    DumpFrozen = "dump-frozen",
    /// The model is complete.
    DumpCollected = "dump-collected",
    /// The target runs on, its memory is protected and not saved yet.
    DumpSnapshot = "dump-snapshot",
    /// Memory contents are written.
    DumpPages = "dump-pages",
    /// The image is about to be completed.
    DumpModel = "dump-model",
    /// The image is complete and renamed; the target has not been ended.
    DumpCommitted = "dump-committed",
    /// Files and shared memory objects are open.
    RestoreMaterial = "restore-material",
    /// All processes exist.
    RestoreSkeletons = "restore-skeletons",
    /// Mappings are made.
    RestoreMappings = "restore-mappings",
    /// Memory contents are in.
    RestorePages = "restore-pages",
    /// All threads exist.
    RestoreThreads = "restore-threads",
    /// Process groups are made.
    RestoreGroups = "restore-groups",
    /// Descriptors are in.
    RestoreFiles = "restore-files",
    /// Zombies have ended.
    RestoreZombies = "restore-zombies",
    /// Tasks have their attributes.
    RestoreTasks = "restore-tasks",
    /// Credentials and filters are set.
    RestoreCreds = "restore-creds",
    /// Pending signals are queued: the tree is complete.
    RestoreSignals = "restore-signals",
    /// Timers run, nobody is released.
    RestoreArmed = "restore-armed",
    /// Half of the tree is released.
    RestoreHalf = "restore-half",
    /// Not a failure: a pager sends nothing that nobody waits for.
    PagerBehind = "pager-behind",
    /// Not a failure: a pager gives a silent source up after a second.
    PagerImpatient = "pager-impatient",
    /// Pager: it serves.
    PagerServes = "pager-serves",
    /// Source: a state that came back is about to go on, the original has ended.
    Recovering = "recovering",
    /// Destination: a state that was kept for the death of the source is about to be started.
    Promoting = "promoting",
    /// Destination: all of a state that is kept for the death of the source has come, and is not on the disk yet.
    DestinationKeeps = "destination-keeps",
    /// Destination: a state of the target was asked for that is to go back.
    DestinationPoint = "destination-point",
    /// Source: a pass of files is there, the target runs.
    SourceFiles = "source-files",
    /// Destination: a file of a pass has come, it is not in its place yet.
    DestinationFile = "destination-file",
    /// Destination: the files of a pass are in their places.
    DestinationFiles = "destination-files",
    /// Source: PREPARED is heard; nothing holds the original but ptrace.
    SourceReady = "source-ready",
    /// Source: it is held, nothing is recorded.
    SourceHeld = "source-held",
    /// Source: `committing` is recorded, COMMIT is not sent.
    SourceCommitting = "source-committing",
    /// Source: COMMIT is sent.
    SourceCommitted = "source-committed",
    /// Source: RUNNING is heard, the original is still there.
    SourceMoved = "source-moved",
    /// Source: the original has ended, `done` is not recorded.
    SourceEnded = "source-ended",
    /// Destination: the tree is armed, nothing is recorded.
    DestinationArmed = "destination-armed",
    /// Destination: `prepared` is recorded, PREPARED is not sent.
    DestinationRecorded = "destination-recorded",
    /// Destination: PREPARED is sent.
    DestinationPrepared = "destination-prepared",
    /// Destination: the lease is over, and the image of the prepared copy is complete but for its name.
    DestinationParking = "destination-parking",
    /// Destination: `parked` is on the disk, the frozen copy is still there.
    DestinationParked = "destination-parked",
    /// Destination: a frozen copy was made of the image, `owner` is not recorded.
    DestinationUnparked = "destination-unparked",
    /// Destination: COMMIT is heard, nothing is recorded.
    DestinationOrdered = "destination-ordered",
    /// Destination: `owner` is on the disk, it does not run yet.
    DestinationOwner = "destination-owner",
    /// Destination: it runs, RUNNING is not sent.
    DestinationRunning = "destination-running",
    /// Destination: the source knows that it runs here, and nobody moves it on yet.
    DestinationPasses = "destination-passes",
}

/// Dies (`MIGRATE_KILL=NAME`) or stands still (`MIGRATE_STOP=NAME`, until somebody sends SIGCONT) if this is where it was told
/// to: no error, no guard, no way out. Where `MIGRATE_ONCE` names a file, only the first process that can remove it is struck:
/// those that come to the rescue inherit the environment.
#[inline]
pub fn strike(point: Point) {
    static WANTED: OnceLock<Option<(Point, Signal)>> = OnceLock::new();
    let wanted = || {
        let of = |variable, signal| Some((named(&std::env::var(variable).ok()?)?, signal));
        of("MIGRATE_KILL", Signal::SIGKILL).or_else(|| of("MIGRATE_STOP", Signal::SIGSTOP))
    };
    if let Some((_, signal)) = WANTED.get_or_init(wanted).filter(|(wanted, _)| *wanted == point) {
        let once = std::env::var_os("MIGRATE_ONCE");
        if once.is_none_or(|file| std::fs::remove_file(file).is_ok()) {
            let _ = nix::sys::signal::raise(signal);
        }
    }
}

/// Fails if this is where the operation was told to fail.
#[inline]
pub fn at(point: Point) -> Result<(), Injected> {
    static WANTED: OnceLock<Option<Point>> = OnceLock::new();
    match WANTED.get_or_init(wanted) {
        Some(wanted) if *wanted == point => Err(Injected(point)),
        _ => Ok(()),
    }
}

fn wanted() -> Option<Point> {
    named(&std::env::var("MIGRATE_FAULT").ok()?)
}

fn named(name: &str) -> Option<Point> {
    Point::ALL.iter().copied().find(|p| p.name() == name)
}

/// Rules of the handover that are broken on purpose, as the code names them: `MIGRATE_BREAK=HoldBeforeCommit,EndAfterRunning`.
pub fn broken_rules() -> Vec<String> {
    let names = std::env::var("MIGRATE_BREAK").unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The field that a restore is to forget, see [`crate::image::forget`].
pub fn forgotten() -> Option<String> {
    std::env::var("MIGRATE_FORGET").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_nothing_fails_unasked() {
        for (n, point) in Point::ALL.iter().enumerate() {
            assert!(Point::ALL[..n].iter().all(|p| p.name() != point.name()));
            assert_eq!(at(*point), Ok(()));
        }
    }
}
