//! Files that go along with a target, as the source's user wants it.

use super::options::{Files, MoveOptions};
use crate::failure::{Failure, FailureKind, Result};
use crate::files::{Wish, is_below, send};
use crate::image::fd::PathRef;
use crate::image::{Bytes, NsId, Pid};
use crate::proc::ProcDir;
use crate::proc::table::Table;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `--files` and `--with`, once every path of the latter is known to be a directory. Where files are copied at all, directories
/// that were `made` for the target go along, too.
///
/// # Errors
/// Usage: one is not, or lies in another one.
pub fn wish(options: &MoveOptions, made: &[PathBuf]) -> Result<Wish> {
    let mut with: Vec<PathRef> = Vec::new();
    for path in &options.with {
        let tree = tree(path)?;
        if !with.iter().any(|known| known.path == tree.path) {
            with.push(tree);
        }
    }
    with.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(pair) =
        with.windows(2).find(|pair| Path::new(&*pair[1].path.to_string()).starts_with(pair[0].path.to_string()))
    {
        let what = format!("--with {}: it is in {}", pair[1].path, pair[0].path);
        return Err(Failure::new(what).kind(FailureKind::Usage));
    }
    let mode = options.state.files.unwrap_or_default();
    let copies = matches!(mode, Files::Auto | Files::Copy);
    // One that has just gone is none to go along.
    for tree in made.iter().filter(|_| copies).filter_map(|path| tree(path).ok()) {
        let apart = |a: &PathRef, b: &PathRef| !is_below(&a.path.0, &b.path.0) && !is_below(&b.path.0, &a.path.0);
        if with.iter().all(|known| apart(known, &tree)) {
            with.push(tree);
        }
    }
    with.sort_by(|a, b| a.path.cmp(&b.path));
    let paths: Vec<Bytes> = with.iter().map(|tree| tree.path.clone()).collect();
    Ok(Wish { mode, with, with_bytes: send::size(&paths) })
}

fn tree(path: &Path) -> Result<PathRef> {
    let failed = |e: &std::io::Error| Failure::of(format!("--with {}", path.display()), e).kind(FailureKind::Usage);
    let real = path.canonicalize().map_err(|e| failed(&e))?;
    let meta = real.symlink_metadata().map_err(|e| failed(&e))?;
    if !meta.is_dir() || real.parent().is_none() {
        let what =
            format!("--with {}: only a directory, and not that of everything, goes along as a whole", path.display());
        return Err(Failure::new(what).kind(FailureKind::Usage));
    }
    Ok(PathRef {
        path: Bytes(real.as_os_str().as_bytes().to_vec()),
        mnt: NsId(0),
        mode: meta.mode(),
        device: meta.dev(),
        inode: meta.ino(),
        size: 0,
        mtime_ns: 0,
    })
}

/// `--files copy` means nothing to an image, which holds no files.
///
/// # Errors
/// Usage.
pub fn no_copies(files: Option<Files>) -> Result<()> {
    if files == Some(Files::Copy) {
        let what = "--files copy is for a move: an image holds no files";
        return Err(Failure::new(what)
            .hint("copy them yourself, or use --files check or skip")
            .kind(FailureKind::Usage));
    }
    Ok(())
}

/// Files that a tree has mapped together with others, so that it can write to them without anybody's knowledge.
pub fn mapped(root: Pid) -> HashSet<Bytes> {
    let processes = Table::read().map(|table| table.tree(root)).unwrap_or_default();
    let mut buf = Vec::new();
    // One that has just ended has nothing mapped.
    let maps = processes.into_iter().filter_map(|pid| ProcDir::open(pid).ok()?.maps(&mut buf).ok());
    let shared = maps.flatten().filter(|mapping| mapping.shared && mapping.has_file());
    shared.map(|mapping| Bytes(mapping.path().0.to_vec())).collect()
}
