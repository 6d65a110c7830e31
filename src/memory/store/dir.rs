//! Image directories: made under another name and renamed when complete; opened and checked.

use super::{PageOptions, PageWriter, StoreError, StoredPages, index::Index};
use crate::image::manifest;
use crate::image::{
    Model, codec, limits,
    manifest::{
        FORMAT, FileEntry, HostSummary, INDEX_FILE, Kind, MODEL_FILE, Manifest, ParentLink, TreeEntry, VERSION, Wishes,
        digest, rfc3339, tree_of,
    },
};
use crate::memory::Space;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

/// Writes a new file and brings it to the disk.
pub(super) fn write_synced(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(StoreError::io("create", path))?;
    file.write_all(content).map_err(StoreError::io("write", path))?;
    file.sync_all().map_err(StoreError::io("sync", path))
}

fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(StoreError::io("sync", path))
}

/// Bytes that an ordinary process may still write on the file system of this path, see statvfs(3).
///
/// # Errors
/// [`StoreError::Io`] when the path cannot be examined.
pub fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|e| StoreError::io("examine", path)(e.into()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// What the manifest of a new image says besides what the image itself knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it is good for.
    pub kind: Kind,
    /// Where it was made.
    pub host: HostSummary,
    /// The processes.
    pub tree: Vec<TreeEntry>,
    /// What a restore does that is not told otherwise.
    pub restore: Wishes,
}

impl Draft {
    /// What a model says; `pages` gives the memory of each process.
    pub fn of(model: &Model, pages: &StoredPages) -> Self {
        let memory = |mm| pages.per_space.get(&Space::Mm(mm)).copied().unwrap_or(0) * crate::image::mm::PAGE;
        Self { kind: Kind::Full, host: HostSummary::of(model), tree: tree_of(model, memory), restore: Wishes::new() }
    }
}

/// An image in the making. Dropped before [`ImageWriter::commit`] it leaves nothing behind.
///
/// Files are written to `.NAME.partial-PID` beside the directory that will have them, so a crash leaves either a
/// complete image or none. Where `dir` is a mount point they are written below it and moved in the end, the manifest last:
/// without one a directory is no image. (What a crash leaves under that name is removed by the next dump to the same place.)
#[derive(Debug)]
pub struct ImageWriter {
    target: PathBuf,
    partial: PathBuf,
    /// Held while this process lives: tells a directory in the making from one that was left behind.
    _lock: Flock<File>,
    parent: Option<ParentLink>,
    replace: bool,
    in_place: bool,
    files: Vec<FileEntry>,
    done: bool,
}

impl ImageWriter {
    /// Begins an image at `dir`, which must not exist, or be empty; with `force` it may hold an image, which is replaced
    /// when the new one is complete (not so where something is mounted at `dir`: that image has to be removed first).
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NotEmpty`], or what the file system says.
    pub fn create(dir: &Path, force: bool) -> Result<Self, StoreError> {
        let target = resolved_target(dir)?;
        // What is mounted cannot be renamed over: there the files are moved one by one, the manifest last.
        let in_place = is_mount_point(&target)?;
        Self::begin(target, force, in_place)
    }

    /// As [`ImageWriter::create`] without `force`, but in a directory that is there, stays the same directory, and may hold
    /// other files: for a caller that has a descriptor of it or keeps files of its own beside the image.
    pub fn create_in_place(dir: &Path) -> Result<Self, StoreError> {
        Self::begin(resolved_target(dir)?, false, true)
    }

    fn begin(target: PathBuf, force: bool, in_place: bool) -> Result<Self, StoreError> {
        let replace = match fs::read_dir(&target) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(StoreError::io("read", &target)(e)),
            Ok(entries) => {
                let image = target.join(manifest::FILE).exists();
                if image && (!force || in_place) {
                    return Err(StoreError::Exists { path: target });
                }
                if !image && !in_place && entries.flatten().next().is_some() {
                    return Err(StoreError::NotEmpty { path: target });
                }
                image
            }
        };
        let (partial, lock) = make_partial(&target, in_place)?;
        Ok(Self { target, partial, _lock: lock, parent: None, replace, in_place, files: Vec::new(), done: false })
    }

    /// The directory that is being filled: on the same file system as the final one.
    pub fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// Names the image that pages may refer to. It must stay where it is.
    pub fn set_parent(&mut self, parent: &ImageDir) -> Result<(), StoreError> {
        let path = fs::canonicalize(parent.path()).map_err(StoreError::io("resolve", parent.path()))?;
        let path = relative(&self.target, &path);
        let path = path.to_str().map(str::to_owned).ok_or(StoreError::NotText { path })?;
        self.parent = Some(ParentLink { path, id: parent.id().to_owned() });
        Ok(())
    }

    /// The image's page store. Once for each image.
    pub fn pages(&self, options: PageOptions) -> PageWriter {
        PageWriter::new(&self.partial, options)
    }

    /// Writes the model.
    pub fn write_model(&mut self, model: &Model) -> Result<(), StoreError> {
        let encoded = codec::encode(model)?;
        write_synced(&self.partial.join(MODEL_FILE), &encoded)?;
        let bytes = encoded.len() as u64;
        self.files.push(FileEntry { name: MODEL_FILE.into(), bytes, blake3: Some(digest(&encoded)) });
        Ok(())
    }

    /// Writes the manifest, syncs, and gives the image its name. Returns the image.
    ///
    /// # Errors
    /// What the file system says; then there is no image, and what was at its place is still there.
    pub fn commit(mut self, draft: Draft, pages: StoredPages) -> Result<ImageDir, StoreError> {
        let mut files = std::mem::take(&mut self.files);
        files.extend(pages.files);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").into(),
            kind: draft.kind,
            created: rfc3339(now.as_secs()),
            host: draft.host,
            tree: draft.tree,
            restore: draft.restore,
            parent: self.parent.take(),
            pages: pages.summary,
            files,
        };
        let (encoded, id) = manifest.encode()?;
        write_synced(&self.partial.join(manifest::FILE), &encoded)?;
        sync_dir(&self.partial)?;
        self.give_name()?;
        self.done = true;
        if let Some(above) = self.target.parent() {
            sync_dir(above)?;
        }
        Ok(ImageDir { path: self.target.clone(), manifest, id })
    }

    fn give_name(&mut self) -> Result<(), StoreError> {
        let renamed = |flags| {
            renameat2(AT_FDCWD, &self.partial, AT_FDCWD, &self.target, flags)
                .map_err(|e| StoreError::io("rename the finished image to", &self.target)(e.into()))
        };
        if self.in_place {
            return self.move_files();
        }
        if !self.replace {
            // An empty directory in the way is replaced; a full one, also a new one, is not (ENOTEMPTY).
            return renamed(RenameFlags::empty());
        }
        renamed(RenameFlags::RENAME_EXCHANGE)?;
        // The old image has the temporary name now, and goes with it.
        fs::remove_dir_all(&self.partial).map_err(StoreError::io("remove the replaced image", &self.partial))
    }
}

impl ImageWriter {
    /// Moves the files into a directory that cannot be renamed over.
    fn move_files(&self) -> Result<(), StoreError> {
        let entries = fs::read_dir(&self.partial).map_err(StoreError::io("read", &self.partial))?;
        let names: Vec<OsString> = entries.flatten().map(|e| e.file_name()).filter(|n| n != manifest::FILE).collect();
        for name in names.iter().map(OsString::as_os_str).chain([OsStr::new(manifest::FILE)]) {
            if name == manifest::FILE {
                // Everything else is there for good before the manifest makes an image of it.
                sync_dir(&self.target)?;
            }
            let to = self.target.join(name);
            fs::rename(self.partial.join(name), &to).map_err(StoreError::io("move the finished file to", &to))?;
        }
        sync_dir(&self.target)?;
        fs::remove_dir(&self.partial).map_err(StoreError::io("remove", &self.partial))
    }
}

impl Drop for ImageWriter {
    fn drop(&mut self) {
        if !self.done {
            // Nothing more can be done about a failure here; the next dump to this place tries again.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// The absolute path the image will have; its parent directory must exist.
fn resolved_target(dir: &Path) -> Result<PathBuf, StoreError> {
    if let Ok(path) = fs::canonicalize(dir) {
        return Ok(path);
    }
    let name = dir.file_name().ok_or_else(|| StoreError::NotText { path: dir.to_owned() })?;
    let above = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let above = fs::canonicalize(above).map_err(StoreError::io("find the directory", above))?;
    Ok(above.join(name))
}

/// Is something mounted there? (A directory that is not there yet is none.)
fn is_mount_point(target: &Path) -> Result<bool, StoreError> {
    let here = match fs::metadata(target) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(StoreError::io("examine", target))?,
    };
    let above = target.parent().unwrap_or(target);
    let above = fs::metadata(above).map_err(StoreError::io("examine", above))?;
    // The root is its own parent. A bind mount of the same file system is not seen: renaming says EBUSY there.
    Ok(above.dev() != here.dev() || above.ino() == here.ino())
}

/// Makes and locks the directory in the making; removes what dead processes left of theirs.
fn make_partial(target: &Path, in_place: bool) -> Result<(PathBuf, Flock<File>), StoreError> {
    let mut prefix = OsString::new();
    let above = if in_place {
        target
    } else {
        prefix.push(".");
        prefix.push(target.file_name().ok_or_else(|| StoreError::NotText { path: target.to_owned() })?);
        target.parent().unwrap_or(Path::new("/"))
    };
    prefix.push(".partial-");
    remove_leftovers(above, &prefix);
    for attempt in 0.. {
        let mut name = prefix.clone();
        name.push(std::process::id().to_string());
        if attempt > 0 {
            name.push(format!(".{attempt}"));
        }
        let partial = above.join(name);
        match DirBuilder::new().mode(0o700).create(&partial) {
            Ok(()) => {
                let opened = File::open(&partial).map_err(StoreError::io("open", &partial))?;
                let lock = Flock::lock(opened, FlockArg::LockExclusiveNonblock)
                    .map_err(|(_, e)| StoreError::io("lock", &partial)(e.into()))?;
                return Ok((partial, lock));
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 64 => {}
            Err(e) => return Err(StoreError::io("make the directory", &partial)(e)),
        }
    }
    unreachable!("the loop above only ends by returning")
}

/// Removes directories in the making that nobody holds any more. Failing to is no failure.
fn remove_leftovers(above: &Path, prefix: &OsString) {
    let Ok(entries) = fs::read_dir(above) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        // One being made right now is locked a moment after it appears: leave what is young.
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok()).unwrap_or_default();
        let Ok(opened) = File::open(entry.path()) else { continue };
        if age.as_secs() >= 2 && Flock::lock(opened, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// `to` as seen from the directory `from`; both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.components().skip(common)).collect();
    if path.as_os_str().is_empty() { ".".into() } else { path }
}

/// An image directory with a manifest that was found sound.
#[derive(Debug, Clone)]
pub struct ImageDir {
    path: PathBuf,
    manifest: Manifest,
    id: String,
}

impl ImageDir {
    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// [`StoreError::NoImage`], [`StoreError::Manifest`], or what the file system says.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = path.join(manifest::FILE);
        let bytes = match read_limited(&file, limits::MANIFEST_BYTES) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NoImage { path: path.to_owned() });
            }
            other => other?,
        };
        let (manifest, id) =
            Manifest::decode(&bytes).map_err(|source| StoreError::Manifest { path: file.clone(), source })?;
        Ok(Self { path: path.to_owned(), manifest, id })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its id: the manifest's digest.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Decodes the model. [`crate::image::verify::model`] then says whether it makes sense.
    pub fn model(&self) -> Result<Model, StoreError> {
        let bytes = self.checked_file(MODEL_FILE, limits::MODEL_BYTES)?;
        codec::decode(&bytes).map_err(|source| StoreError::Model { path: self.path.join(MODEL_FILE), source })
    }

    /// Decodes the page index.
    pub fn index(&self) -> Result<Index, StoreError> {
        Index::decode(&self.checked_file(INDEX_FILE, limits::INDEX_BYTES)?)
    }

    /// The image that pages may refer to, found to be the one that was there when this one was written.
    pub fn open_parent(&self) -> Result<Option<Self>, StoreError> {
        let Some(link) = &self.manifest.parent else { return Ok(None) };
        let path = self.path.join(&link.path);
        let parent = Self::open(&path).map_err(|error| match error {
            StoreError::NoImage { path } => StoreError::NoParent { path },
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                StoreError::NoParent { path }
            }
            error => error,
        })?;
        if parent.id != link.id {
            return Err(StoreError::WrongParent { path: parent.path, found: parent.id, wanted: link.id.clone() });
        }
        Ok(Some(parent))
    }

    /// Reads a file whose length and digest the manifest has.
    fn checked_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path.join(name);
        let damaged = |what: String| StoreError::Damaged { path: path.clone(), what };
        let entry = self.manifest.file(name).ok_or_else(|| damaged("the manifest does not name it".into()))?;
        let wanted = entry.blake3.as_deref().ok_or_else(|| damaged("the manifest has no digest of it".into()))?;
        let bytes = read_limited(&path, limit.min(entry.bytes))?;
        if bytes.len() as u64 != entry.bytes {
            return Err(damaged(format!("it has {} bytes instead of {}", bytes.len(), entry.bytes)));
        }
        if digest(&bytes) != wanted {
            return Err(damaged("its digest does not match".into()));
        }
        Ok(bytes)
    }
}

/// A file of an image and its length. Whatever else is in its place is not waited for.
pub(super) fn open_plain(path: &Path) -> Result<(File, u64), StoreError> {
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.map_err(StoreError::io("open", path))?;
    let meta = file.metadata().map_err(StoreError::io("stat", path))?;
    if !meta.is_file() {
        return Err(StoreError::Damaged { path: path.to_owned(), what: "it is no regular file".to_owned() });
    }
    Ok((file, meta.len()))
}

/// Reads a file that must not be longer than `limit` bytes.
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let (file, length) = open_plain(path)?;
    if length > limit {
        let what = format!("it has {length} bytes; at most {limit} were expected");
        return Err(StoreError::Damaged { path: path.to_owned(), what });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    Ok(bytes)
}
