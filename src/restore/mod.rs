//! Model to target: makes a live tree.
//!
//! [`plan`] (pure) orders the work; [`material`] opens what skeletons inherit; [`skeleton`] makes empty stopped tasks with
//! the right ids; the rooms that mirror the model give each what it had; [`go`] sets registers and releases everybody. [`clone`]
//! makes different what copies of one tree cannot both have.
//! [`preflight`] and [`limits`] say before what this host lacks; [`root`], [`pidns`] and [`sessions`] are who makes whom, `newcomers` who
//! has come late; [`lazy`] is memory that follows, [`cow`] memory that relatives share.
//! [`prebuilt`] is where a migration stops for a while, and [`reconcile`] what it does when the target has changed.
//! Until [`Restored::go`] the tree is held by [`skeleton::Skeletons`], which kills it when dropped.

pub mod cgroup;
pub mod clock;
pub mod clone;
pub mod cow;
pub mod creds;
pub mod fd;
pub mod go;
pub mod lazy;
pub mod limits;
pub mod material;
pub mod mm;
mod newcomers;
pub mod ns;
mod numa;
pub mod pidns;
pub mod plan;
pub mod prebuilt;
pub mod preflight;
pub mod reconcile;
pub mod restart;
pub mod root;
pub mod sessions;
pub mod sharing;
pub mod signals;
pub mod skeleton;
pub mod sysv;
pub mod task;
pub mod threads;
pub mod timers;
pub mod vdso;

use crate::companion::held::Held;
use crate::image::{Model, Pid, TaskId};
use crate::memory::pipeline::PipelineError;
use crate::memory::store::PageReader;
use crate::ops::options::Pids;
use crate::trace;
use fd::bequest::Bequest;
pub use prebuilt::Prebuilt;

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A skeleton could not be traced or worked with.
    #[error(transparent)]
    Trace(#[from] trace::Error),
    /// /proc could not be read or written.
    #[error(transparent)]
    Proc(#[from] crate::proc::Error),
    /// Memory contents could not be loaded.
    #[error(transparent)]
    Pages(#[from] PipelineError),
    /// A test wanted a failure.
    #[error(transparent)]
    Injected(#[from] crate::fault::Injected),
    /// A process id is taken.
    #[error("process id {pid} is in use here, by {occupant}")]
    PidInUse {
        /// The id.
        pid: i32,
        /// Name of who has it.
        occupant: String,
    },
    /// A system call of ours failed.
    #[error("{operation} for {object}: {errno}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// For which object.
        object: String,
        /// Kernel's answer.
        errno: crate::sys::Errno,
    },
    /// A file the tree needs is not what it was.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A socket could not be made.
    #[error("{object}")]
    Socket {
        /// Which.
        object: String,
        /// Why.
        #[source]
        error: crate::net::Error,
    },
    /// The model asks for something that cannot be made here.
    #[error("{object}: {reason}")]
    Impossible {
        /// What.
        object: String,
        /// Why not.
        reason: String,
    },
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// The caller's choices.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--pids`.
    pub pids: crate::ops::options::Pids,
    /// `--files`.
    pub files: crate::ops::options::Files,
    /// Descriptors of ours that stand for files held outside the tree, by the key of
    /// [`crate::image::fd::External`].
    pub externals: Vec<(String, std::os::fd::RawFd)>,
    /// `--stdio`; what is not given in `externals` is made by it.
    pub stdio: crate::ops::options::Stdio,
    /// The file of `--stdio log`.
    pub log: Option<std::path::PathBuf>,
    /// A session that was begun outside the tree is begun anew; else the tree stays in ours (a job of this terminal).
    pub own_session: bool,
    /// `--cgroup`.
    pub cgroup: crate::ops::options::Cgroup,
    /// Tells this tree from others below `/migrate`.
    pub name: String,
    /// The root becomes a child of our parent instead of ours.
    pub sibling: bool,
    /// Page workers.
    pub workers: usize,
    /// What memory allows it comes later, see [`lazy`].
    pub lazy: bool,
    /// When the clocks of the model were read, for a tree that is made ahead of time; `None` = they stand since.
    pub read_at: Option<std::time::Instant>,
    /// The original is on this very kernel, frozen, and ends when this tree runs: what has a name is there already.
    pub original_here: bool,
    /// Somebody keeps TCP segments that are sent here before the tree runs: until then nobody answers them.
    pub segments_kept: bool,
    /// The tree is one of several copies, see [`clone`], made of a model that [`clone::as_clone`] has made; with [`Pids::New`].
    pub identity: Option<clone::Identity>,
    /// In which directory a clone finds its id.
    pub id_dir: std::path::PathBuf,
}

/// A tree that is complete and stopped.
pub struct Restored<'m> {
    model: &'m Model,
    /// Still in repair mode: where a restore fails, connections end silently.
    sleeping: fd::sockets::Sleeping,
    /// Removed again where a restore fails.
    segments: sysv::Segments,
    skeletons: skeleton::Skeletons,
    /// Processes whose cgroups are not the root's, see [`cgroup::Apart`].
    apart: cgroup::Apart,
    /// Things a person should know.
    pub warnings: Vec<String>,
}

/// A tree that is complete and stands still whoever of us dies; one write makes it run. Dropped, it is ended.
#[derive(Debug)]
pub struct Armed<'m> {
    model: &'m Model,
    root: Pid,
    sleeping: Option<fd::sockets::Sleeping>,
    bequest: Bequest,
    segments: Option<sysv::Segments>,
    apart: cgroup::Apart,
    tree: go::Armed,
}

impl Armed<'_> {
    /// What holds it.
    pub fn held(&self) -> &Held {
        self.tree.held()
    }

    /// What it was made of.
    pub fn model(&self) -> &Model {
        self.model
    }

    /// The root's process id as we see it.
    pub fn root(&self) -> Pid {
        self.root
    }

    /// What whoever lets it run after our death needs for its sockets.
    pub fn bequest(&self) -> &Bequest {
        &self.bequest
    }

    /// Leaves it as it is, to whoever finds it in a journal.
    pub fn leave(self) {
        self.segments.into_iter().for_each(|mut segments| segments.keep());
        self.tree.leave();
    }

    /// Lets it run. Sockets that do not wake are warned of: it runs nevertheless, since by now it runs nowhere else. `deliver` gives
    /// them what was sent to them while nobody heard it, see [`fd::sockets::Sleeping::wake`].
    ///
    /// # Errors
    /// It could not be let go: it is held as before.
    pub fn run(&mut self, deliver: &mut dyn FnMut()) -> std::io::Result<()> {
        match self.sleeping.take().map(|sleeping| sleeping.wake(self.model, deliver)) {
            Some(Ok(warnings)) => warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
            Some(Err(error)) => tracing::warn!("some of its sockets stay mute: {error}"),
            None => {}
        }
        self.tree.run()?;
        self.segments.take().into_iter().for_each(|mut segments| segments.keep());
        self.apart.settle();
        Ok(())
    }
}

/// Makes the tree of the model, stopped, with everything but its first instruction. Where an id is taken by somebody who was born
/// since it was looked at (`--pids auto`), the tree is made anew in a PID namespace of its own, in which nobody else is born.
pub fn build<'m>(
    model: &'m Model,
    pages: &PageReader,
    options: &Options,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Restored<'m>> {
    let make = |options: &Options| Prebuilt::make(model, Some(pages), options, progress)?.complete(options);
    match make(options) {
        Err(Error::PidInUse { pid, occupant }) if options.pids == Pids::Auto => {
            let mut restored = make(&Options { pids: Pids::New, ..options.clone() })?;
            let what =
                format!("process id {pid} was just taken by {occupant}: the tree gets a PID namespace of its own");
            restored.warnings.push(what);
            Ok(restored)
        }
        made => made,
    }
}

impl<'m> Restored<'m> {
    /// The root's process id as we see it.
    pub fn root(&self) -> Pid {
        self.skeletons.pid(TaskId(0))
    }

    /// The child of ours whose end tells how the root has ended: the root, or process 1 of its new PID namespace, which ends
    /// as the root does (128 + N after signal N).
    pub fn child(&self) -> Pid {
        self.skeletons.init.as_ref().map_or_else(|| self.root(), trace::remote::Remote::pid)
    }

    /// Process ids of those that are no zombies, as we see them, the root first.
    pub fn pids_alive(&self) -> Vec<Pid> {
        let alive = |n: &usize| !self.model.tasks[*n].threads.is_empty();
        (0..self.model.tasks.len()).filter(alive).map(|n| self.skeletons.pid(TaskId::from(n))).collect()
    }

    /// Process ids of all tasks as we see them, in the order of the model.
    pub fn pids(&self) -> Vec<Pid> {
        (0..self.model.tasks.len()).map(|n| self.skeletons.pid(TaskId::from(n))).collect()
    }

    /// Memory that is to come later, ready to be served: from now on whoever touches it waits. Nothing without [`Options::lazy`]
    /// or [`Prebuilt::expect`]. `pages` has its contents, if they are here.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn late(&mut self, pages: Option<&PageReader>) -> Result<lazy::Late> {
        lazy::register(self.model, &mut self.skeletons, pages)
    }

    /// Lets go of everybody without letting anybody run: what can fail has been done when this returns. `note` is told who it is
    /// before.
    pub fn arm(self, note: &mut dyn FnMut(&Held)) -> Result<Armed<'m>> {
        let root = self.root();
        let bequest = Bequest::of(&self.sleeping, self.model, &self.skeletons);
        let tree = go::arm(self.model, self.skeletons, note)?;
        let (sleeping, segments) = (Some(self.sleeping), Some(self.segments));
        Ok(Armed { model: self.model, root, sleeping, bequest, segments, apart: self.apart, tree })
    }

    /// Lets everybody run (or leaves everybody stopped, as by SIGSTOP). A tree that was frozen is so again: in this cgroup.
    pub fn go(mut self, leave_stopped: bool) -> Result<Option<std::path::PathBuf>> {
        for warning in self.sleeping.wake(self.model, &mut || ())? {
            tracing::warn!("{warning}");
        }
        let freezer = go::go(self.model, self.skeletons, leave_stopped)?;
        self.segments.keep();
        self.apart.settle();
        Ok(freezer.map(|freezer| freezer.dir))
    }
}
