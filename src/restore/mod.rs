//! Model to target: makes a live tree.
//!
//! [`plan`] (pure) orders the work; [`material`] opens what skeletons inherit; [`skeleton`] makes empty stopped tasks with
//! the right ids; the rooms that mirror the model give each what it had; [`go`] sets registers and releases everybody.
//! Until [`Restored::go`] the tree is held by [`skeleton::Skeletons`], which kills it when dropped.

pub mod cgroup;
pub mod clock;
pub mod cow;
pub mod creds;
pub mod fd;
pub mod go;
pub mod material;
pub mod mm;
pub mod ns;
pub mod pidns;
pub mod plan;
pub mod preflight;
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

use crate::fault::{self, Point};
use crate::image::{Model, Pid, TaskId};
use crate::memory::Space;
use crate::memory::pipeline::{PipelineError, load_pages};
use crate::memory::store::{PageReader, ResolvedRun};
use crate::trace;

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
    /// The original is on this very kernel, frozen, and ends when this tree runs: what has a name is there already.
    pub original_here: bool,
    /// Somebody keeps TCP segments that are sent here before the tree runs: until then nobody answers them.
    pub segments_kept: bool,
}

/// A tree that is complete and stopped.
pub struct Restored<'m> {
    model: &'m Model,
    /// Still in repair mode: where a restore fails, connections end silently.
    sleeping: fd::sockets::Sleeping,
    /// Removed again where a restore fails.
    segments: sysv::Segments,
    skeletons: skeleton::Skeletons,
    /// Things a person should know.
    pub warnings: Vec<String>,
}

/// Makes the tree of the model, stopped, with everything but its first instruction.
pub fn build<'m>(
    model: &'m Model,
    pages: &PageReader,
    options: &Options,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Restored<'m>> {
    let mut warnings = Vec::new();
    let plan = plan::plan(model)?;
    let mut material = material::prepare(model, options, &mut warnings)?;
    fault::at(Point::RestoreMaterial)?;
    load_shared(pages, &material, options)?;
    fd::shmem::seal_first(model, &material)?;
    let loader = cow::Loader { pages, material: &material, options, progress };
    let mut skeletons = skeleton::make(model, &plan, &loader, options, &mut warnings)?;
    fault::at(Point::RestoreSkeletons)?;
    for task in plan.order.iter().copied() {
        cow::lay_out(model, task, &mut skeletons, &loader)?;
    }
    sysv::settle(model, &mut skeletons, &material)?;
    fault::at(Point::RestoreMappings)?;
    cow::fill_rest(model, &mut skeletons, &loader)?;
    fault::at(Point::RestorePages)?;
    // Before anybody enters a user namespace: helpers take the ids of leaders that are gone.
    sessions::process_groups(model, &plan, &mut skeletons)?;
    fault::at(Point::RestoreGroups)?;
    for task in plan.order.iter().copied() {
        mm::finish(model, task, &mut skeletons, &material)?;
        ns::ids::enter(model, task, &mut skeletons)?;
        threads::make(model, task, &mut skeletons)?;
    }
    fault::at(Point::RestoreThreads)?;
    let mut opened = fd::make_all(model, &mut skeletons, &material, options, &mut warnings)?;
    fd::install_all(model, &opened, &mut skeletons, &material)?;
    fault::at(Point::RestoreFiles)?;
    task::end_zombies(model, &mut skeletons)?;
    fault::at(Point::RestoreZombies)?;
    for task in plan.order.iter().copied() {
        task::finish(model, task, &mut skeletons, &mut warnings)?;
    }
    fd::finish(model, &opened, &mut skeletons)?;
    let sleeping = std::mem::take(&mut opened.sleeping);
    drop(opened);
    fault::at(Point::RestoreTasks)?;
    for task in plan.order.iter().copied() {
        creds::set(model, task, &mut skeletons, &mut warnings)?;
    }
    fault::at(Point::RestoreCreds)?;
    for task in plan.order.iter().copied() {
        signals::queue(model, task, &mut skeletons)?;
    }
    for task in plan.order.iter().copied() {
        task::schedule(model, task, &mut skeletons, &mut warnings)?;
    }
    fault::at(Point::RestoreSignals)?;
    let segments = std::mem::take(&mut material.segments);
    Ok(Restored { model, sleeping, segments, skeletons, warnings })
}

fn load_shared(pages: &PageReader, material: &material::Material, options: &Options) -> Result<()> {
    let runs = runs(pages, |space| matches!(space, Space::Shmem(_)))?;
    Ok(load_pages(pages, &runs, &material.shared_pages()?, options.workers.max(1), &|_| {})?)
}

fn runs(pages: &PageReader, wanted: impl Fn(Space) -> bool) -> Result<Vec<ResolvedRun>> {
    let mut all = Vec::new();
    for space in pages.spaces().filter(|s| wanted(*s)) {
        all.extend(pages.runs(space).map_err(PipelineError::Store)?);
    }
    Ok(all)
}

impl Restored<'_> {
    /// The root's process id as we see it.
    pub fn root(&self) -> Pid {
        self.skeletons.pid(TaskId(0))
    }

    /// The child of ours whose end tells how the root has ended: the root, or process 1 of its new PID namespace, which ends
    /// as the root does (128 + N after signal N).
    pub fn child(&self) -> Pid {
        self.skeletons.init.as_ref().map_or_else(|| self.root(), trace::remote::Remote::pid)
    }

    /// Process ids of all tasks as we see them, in the order of the model.
    pub fn pids(&self) -> Vec<Pid> {
        (0..self.model.tasks.len()).map(|n| self.skeletons.pid(TaskId::from(n))).collect()
    }

    /// Lets everybody run (or leaves everybody stopped, as by SIGSTOP).
    pub fn go(self, leave_stopped: bool) -> Result<Pid> {
        self.go_with(leave_stopped, &mut || ())
    }

    /// The same; `deliver` gives sockets what was sent to them while nobody heard it, see [`fd::sockets::Sleeping::wake`].
    pub fn go_with(mut self, leave_stopped: bool, deliver: &mut dyn FnMut()) -> Result<Pid> {
        let root = self.root();
        for warning in self.sleeping.wake(self.model, deliver)? {
            tracing::warn!("{warning}");
        }
        go::go(self.model, self.skeletons, leave_stopped)?;
        self.segments.keep();
        Ok(root)
    }
}
