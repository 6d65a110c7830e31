//! `migrate show`: what is in an image.

use super::image::{image_failure, with_causes};
use crate::failure::Result;
use crate::image::{
    Model,
    fd::FileKind,
    manifest::{Kind, Manifest},
    task::Task,
};
use crate::memory::store::ImageDir;
use crate::ops::options::ImageOptions;
use std::path::PathBuf;

/// What an image holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Where it is.
    pub dir: PathBuf,
    /// Its id: 64 hex digits.
    pub id: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// The processes, the root first; from the manifest alone where the image has no model.
    pub processes: Vec<Process>,
    /// Kernel objects of the whole tree: (what, how many), only what there is.
    pub objects: Vec<(&'static str, usize)>,
    /// Parent images, the nearest first.
    pub parents: Vec<Parent>,
    /// Why the list of parents ends before its end: a parent is missing or not the one it was.
    pub broken_chain: Option<String>,
}

/// One process of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id as the target sees it.
    pub pid: i32,
    /// Parent's process id; `None` for the root.
    pub parent: Option<i32>,
    /// Processes between it and the root.
    pub depth: usize,
    /// Name of the leading thread.
    pub comm: String,
    /// `running`, `stopped`, `zombie`.
    pub state: String,
    /// Threads.
    pub threads: u32,
    /// Memory that the image or one of its parents holds of it, bytes.
    pub memory_bytes: u64,
    /// Mappings; `None` where the image has no model.
    pub mappings: Option<usize>,
    /// Descriptors; `None` where the image has no model.
    pub descriptors: Option<usize>,
    /// Path of the executable; `None` for a zombie and where the image has no model.
    pub exe: Option<String>,
}

/// A parent image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Where it is.
    pub dir: PathBuf,
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created: String,
    /// Bytes of its page files.
    pub stored_bytes: u64,
}

/// Reads manifest and model of an image. Contents of memory are not read: `verify` does.
///
/// # Errors
/// An image that is missing, damaged or of another version (exit code 7).
pub fn run(options: &ImageOptions) -> Result<Shown> {
    let failed = |e| image_failure(&options.dir, &e);
    let image = ImageDir::open(&options.dir).map_err(failed)?;
    let model = match image.manifest().kind {
        Kind::Full => Some(image.model().map_err(failed)?),
        Kind::Memory => None,
    };
    let (parents, broken_chain) = parents(&image);
    Ok(Shown {
        dir: options.dir.clone(),
        id: image.id().to_owned(),
        manifest: image.manifest().clone(),
        processes: processes(image.manifest(), model.as_ref()),
        objects: model.as_ref().map(objects).unwrap_or_default(),
        parents,
        broken_chain,
    })
}

fn parents(image: &ImageDir) -> (Vec<Parent>, Option<String>) {
    let mut found = Vec::new();
    let mut at = image.clone();
    while found.len() < crate::image::limits::CHAIN {
        match at.open_parent() {
            Ok(None) => return (found, None),
            Err(error) => return (found, Some(with_causes(&error))),
            Ok(Some(parent)) => {
                let manifest = parent.manifest();
                found.push(Parent {
                    dir: parent.path().to_owned(),
                    id: parent.id().to_owned(),
                    created: manifest.created.clone(),
                    stored_bytes: manifest.pages.stored_bytes,
                });
                at = parent;
            }
        }
    }
    (found, Some("the chain of parents does not end".into()))
}

fn processes(manifest: &Manifest, model: Option<&Model>) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::with_capacity(manifest.tree.len());
    for entry in &manifest.tree {
        let parent = entry.parent.and_then(|pid| found.iter().find(|p| p.pid == pid));
        let depth = parent.map_or(0, |p| p.depth + 1);
        let task = model.and_then(|m| m.tasks.iter().find(|t| t.pid.0 == entry.pid).map(|t| (m, t)));
        let mm = task.and_then(|(m, t)| t.mm.and_then(|mm| m.mms.get(mm.at())));
        found.push(Process {
            pid: entry.pid,
            parent: entry.parent,
            depth,
            comm: entry.comm.clone(),
            state: entry.state.clone(),
            threads: entry.threads,
            memory_bytes: entry.memory_bytes,
            mappings: mm.map(|mm| mm.vmas.len()),
            descriptors: task.map(|(m, t)| descriptors(m, t)),
            exe: mm.map(|mm| mm.exe.path.to_string()),
        });
    }
    found
}

fn descriptors(model: &Model, task: &Task) -> usize {
    let table = task.threads.first().and_then(|t| model.fd_tables.get(t.fd_table.at()));
    table.map_or(0, |t| t.entries.len())
}

fn objects(model: &Model) -> Vec<(&'static str, usize)> {
    let of = |wanted: fn(&FileKind) -> bool| model.files.iter().filter(|f| wanted(&f.kind)).count();
    let all = [
        ("address spaces", model.mms.len()),
        ("shared memory objects", model.shmems.len()),
        ("open files", model.files.len()),
        ("regular files", of(|k| matches!(k, FileKind::Regular(_)))),
        ("deleted files", model.ghosts.len()),
        ("pipes", model.pipes.len()),
        ("UNIX sockets", model.unix_sockets.len()),
        ("TCP sockets", of(|k| matches!(k, FileKind::Tcp(_)))),
        ("UDP sockets", of(|k| matches!(k, FileKind::Udp(_)))),
        ("terminals", model.ptys.len()),
        ("epoll instances", of(|k| matches!(k, FileKind::Epoll(_)))),
        ("eventfds", of(|k| matches!(k, FileKind::EventFd(_)))),
        ("timerfds", of(|k| matches!(k, FileKind::TimerFd(_)))),
        ("signalfds", of(|k| matches!(k, FileKind::SignalFd(_)))),
        ("inotify instances", of(|k| matches!(k, FileKind::Inotify(_)))),
        ("files held outside the tree", of(|k| matches!(k, FileKind::External(_)))),
        ("locks", model.locks.len()),
        ("namespaces of its own", model.namespaces.iter().filter(|n| !n.of_host).count()),
    ];
    all.into_iter().filter(|(_, n)| *n > 0).collect()
}
