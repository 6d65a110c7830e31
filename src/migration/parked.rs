//! A prepared copy that waits as an image: the source has not been heard for a whole lease, and memory and process ids are
//! given back meanwhile. A directory beside the journal of the attempt:
//!
//! ```text
//! ATTEMPT.parked/terms.json   what the tree is made with
//! ATTEMPT.parked/image/       the target before its first instruction here; it appears under this name when it is complete
//! ATTEMPT.parked/copy         where memory is still at the source: the model, and which pages ([`super::inventory`])
//! ```
//! In the last case the image is one of memory alone, so that nobody takes it for a whole one.
//!
//! Written by [`super::destination::Builder::park`]; [`unpark`] makes of it a copy that stands still again, which can fail and be
//! tried again, and comes before `owner` is recorded.

use super::destination::Builder;
use super::journal::{Journal, Step};
use super::postcopy::{self, Later};
use super::protocol::AttemptId;
use crate::companion::pager;
use crate::failure::{Failure, Result};
use crate::fault::{self, Point};
use crate::memory::store::ImageDir;
use crate::net::nft;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Longest list of terms that is read, bytes.
const TERMS_MAX: u64 = 1 << 20;
/// Name of the terms.
const TERMS: &str = "terms.json";

/// What is to be known beside the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The choices of the source's user, as JSON.
    pub state: serde_json::Value,
    /// What holds off segments for its connections while nobody has them ([`nft`]), if anything does.
    pub held_off: Option<String>,
    /// Some of its memory follows when it runs ([`postcopy`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
}

/// Memory that is still at the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// The attempt, which names what belongs to it.
    pub attempt: AttemptId,
    /// Directory of sockets.
    pub run: PathBuf,
    /// Who has it.
    pub peer: String,
    /// It is to be known which pages were written to since they came.
    pub watched: bool,
    /// Which: in a file of its own.
    #[serde(skip)]
    pub pages: Later,
}

impl Late {
    /// Ends the pager of a copy that stands still and is about to end: what it serves is in an image, or nobody's. It says nothing to
    /// the source.
    pub fn end_pager(&self) {
        let name = postcopy::name(self.attempt);
        if let Err(error) = pager::end(&pager::socket_path(&self.run, &name)) {
            tracing::error!(%error, attempt = %self.attempt, "the pager of a copy that ends stays");
            return;
        }
        if let Err(error) = fs::remove_file(postcopy::socket_path(&self.run, &name))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, "where a pager took links");
        }
    }
}

/// Where the copy of this attempt is parked.
pub fn directory(journals: &Path, attempt: AttemptId) -> PathBuf {
    journals.join(format!("{attempt}.parked"))
}

/// Where its image is.
pub fn image(dir: &Path) -> PathBuf {
    dir.join("image")
}

/// Whether an image is there. It has its name since it was complete; whether it is damaged shows when it is read.
///
/// # Errors
/// That cannot be told: nothing may be decided.
pub fn is_there(dir: &Path) -> io::Result<bool> {
    image(dir).try_exists()
}

/// Where it stands what a copy is whose memory is not all in its image.
pub fn copy(dir: &Path) -> PathBuf {
    dir.join("copy")
}

/// Begins: the directory and the terms are on the disk when this returns.
///
/// # Errors
/// A full disk.
pub fn begin(dir: &Path, terms: &Terms) -> io::Result<()> {
    remove(dir)?;
    DirBuilder::new().mode(0o700).create(dir)?;
    let mut file = File::create_new(dir.join(TERMS))?;
    file.write_all(&serde_json::to_vec(terms).map_err(io::Error::other)?)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// The terms.
///
/// # Errors
/// There are none, or they cannot be read.
pub fn terms(dir: &Path) -> io::Result<Terms> {
    let mut text = Vec::new();
    File::open(dir.join(TERMS))?.take(TERMS_MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

/// Deletes it, whether complete or not, and lets segments for its connections in again. Nothing there is no error.
///
/// # Errors
/// It cannot be deleted.
pub fn remove(dir: &Path) -> io::Result<()> {
    if let Some(table) = terms(dir).ok().and_then(|terms| terms.held_off)
        && let Err(error) = nft::remove(None, &table)
    {
        tracing::warn!(%error, table, "segments are still held off");
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An image that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Its directory.
    pub image: PathBuf,
    /// On the disk, bytes.
    pub bytes: u64,
    /// When it was complete.
    pub since: SystemTime,
}

/// Looks at what is parked for an attempt; `None`: nothing.
pub fn look(journals: &Path, attempt: AttemptId) -> Option<Parked> {
    let image = image(&directory(journals, attempt));
    let files = fs::read_dir(&image).ok()?.flatten().filter_map(|entry| entry.metadata().ok());
    let bytes = files.map(|file| file.len()).sum();
    let since = fs::metadata(&image).and_then(|meta| meta.modified()).ok()?;
    Some(Parked { image, bytes, since })
}

/// Makes of the image a copy that stands still, as it was armed before, and notes it in the journal.
///
/// # Errors
/// It cannot be made now: nothing is left of the attempt to, and the image is as it was.
pub fn unpark(dir: &Path, builder: &mut dyn Builder, journal: &mut Journal) -> Result<()> {
    let made = rise(dir, builder, journal);
    if made.is_err() {
        builder.free();
    }
    made
}

fn rise(dir: &Path, builder: &mut dyn Builder, journal: &mut Journal) -> Result<()> {
    let failed =
        |e: &(dyn std::error::Error + 'static)| Failure::of(format!("{} cannot be restored", dir.display()), e);
    let terms = terms(dir).map_err(|e| failed(&e))?;
    let stored = ImageDir::open(&image(dir)).map_err(|e| failed(&e))?;
    builder.revive(&stored, &terms)?;
    journal.set_addresses(builder.addresses());
    let mut noted = Ok(());
    builder.arm(&mut |held| {
        journal.set_held(held.clone());
        noted = journal.write(Step::Parked);
    })?;
    noted.map_err(|e| failed(&e))?;
    if let Some(bequest) = builder.bequest().filter(|bequest| !bequest.is_empty()) {
        journal.bequeath(bequest).map_err(|e| failed(&e))?;
    }
    fault::strike(Point::DestinationUnparked);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_begun_is_no_image_and_is_gone_once_removed() {
        let journals = tempfile::tempdir().unwrap();
        let dir = directory(journals.path(), AttemptId([5; 16]));
        let written = Terms { state: serde_json::json!({ "pids": "auto" }), ..Terms::default() };
        begin(&dir, &written).unwrap();
        assert_eq!(terms(&dir).unwrap(), written);
        assert!(!is_there(&dir).unwrap() && look(journals.path(), AttemptId([5; 16])).is_none());
        // One that died in the middle is followed by another.
        begin(&dir, &written).unwrap();
        fs::create_dir(image(&dir)).unwrap();
        fs::write(image(&dir).join("pages"), [0; 99]).unwrap();
        assert!(is_there(&dir).unwrap());
        assert_eq!(look(journals.path(), AttemptId([5; 16])).unwrap().bytes, 99);
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }
}
