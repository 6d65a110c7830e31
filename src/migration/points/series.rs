//! Where the source keeps points: a directory beside the journal, with a file for each, and one that says who the original is.
//!
//! ```text
//! NUMBER.MILLISECONDS.whole | NUMBER.MILLISECONDS.after     when it was asked for, since the epoch
//!   magic | frames: kind u32, length u64, body | BLAKE3 digest of everything before
//! ```
//! A point has its name when it is complete, and what is damaged all the same has another digest: neither is ever resumed. Nothing
//! is synced to the disk: with this host the frozen original ends, and without it no point is of any use.

use super::{Place, Row, decode};
use crate::companion::held::Held;
use crate::image::{Model, Pid, codec};
use crate::memory::store::free_bytes;
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::pages::{self, Run, What};
use crate::migration::postcopy::Later;
use crate::migration::protocol::{AttemptId, MODEL_BYTES_MAX};
use crate::transport::frame::{FrameKind, limit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const MAGIC: &[u8; 16] = b"migrate point 1\n";
const DIGEST: usize = blake3::OUT_LEN;
/// Kinds of frames.
const PAGES: u32 = 1;
const MODEL: u32 = 2;
const INDEX: u32 = 3;
/// Room that is left to others, bytes.
const RESERVE_BYTES: u64 = 64 << 20;
/// Points after a whole one may be so much longer than that, bytes: then the next is whole.
const LONG: u64 = 64 << 20;

/// Where the points of an attempt are.
pub fn directory(journals: &Path, attempt: AttemptId) -> PathBuf {
    journals.join(format!("{attempt}.points"))
}

/// Where those of an attempt are once one of them is resumed, so that nobody resumes another.
pub fn taken_up(points: &Path) -> PathBuf {
    points.with_extension("recovered")
}

/// The image of a point in a directory of these.
pub fn image(dir: &Path) -> PathBuf {
    dir.join("image")
}

/// The image of a point that somebody has begun to resume, and has not come to the end.
pub fn left(journals: &Path, attempt: AttemptId) -> Option<PathBuf> {
    let image = image(&taken_up(&directory(journals, attempt)));
    // It has this name when it is complete.
    image.is_dir().then_some(image)
}

/// Removes them, if there are any.
pub fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "points were left behind");
        }
        _ => {}
    }
}

/// The frozen original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Who has its address spaces: process id and when it began (clock ticks after boot), by the numbers of the model that the
    /// destination has.
    pub owners: Vec<(i32, u64)>,
    /// Pages that the destination did not have when the target began to run there: the number of the address space, first page,
    /// how many.
    pages: Vec<(u32, u64, u64)>,
}

impl Original {
    /// These processes, for as long as they are those, and pages of theirs.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn of(owners: &[Pid], later: &Later) -> crate::proc::Result<Self> {
        let mut buf = Vec::new();
        let started = |pid: &Pid| Ok((pid.0, crate::proc::ProcDir::open(*pid)?.stat(&mut buf)?.starttime));
        let owners = owners.iter().map(started).collect::<crate::proc::Result<_>>()?;
        let mut all = Vec::new();
        for (space, pages) in later {
            let Space::Mm(mm) = space else { continue };
            all.extend(pages.iter().map(|range| (mm.0, range.first, range.count)));
        }
        Ok(Self { owners, pages: all })
    }

    /// Whether all pages that an index says are the original's can be.
    pub fn has(&self, index: &[Row]) -> bool {
        let mut held: BTreeMap<u32, RangeSet> = BTreeMap::new();
        for &(mm, first, count) in &self.pages {
            held.entry(mm).or_default().insert(PageRange::new(first, count));
        }
        index.iter().all(|row| match row.place {
            Place::Points(_) => true,
            Place::Original(mm, from) => {
                let range = PageRange::new(from, row.range.count);
                mm.at() < self.owners.len()
                    && held.get(&mm.0).is_some_and(|held| held.within(range).pages() == range.count)
            }
        })
    }
}

/// A point that is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    number: u64,
    unix_ms: u64,
    whole: bool,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('.');
        let (number, unix_ms) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let whole = match parts.next()? {
            "whole" => true,
            "after" => false,
            _ => return None,
        };
        parts.next().is_none().then_some(Self { number, unix_ms, whole })
    }

    fn path(&self, dir: &Path) -> PathBuf {
        let kind = if self.whole { "whole" } else { "after" };
        dir.join(format!("{:08}.{}.{kind}", self.number, self.unix_ms))
    }
}

/// Complete points, ascending: from the last whole one on.
fn names(dir: &Path) -> Vec<Name> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<Name> = entries.filter_map(|entry| Name::parse(entry.file_name().to_str()?)).collect();
    all.sort_unstable();
    let first = all.iter().rposition(|name| name.whole).unwrap_or(all.len());
    all.drain(..first);
    all
}

/// When the newest complete point was taken; `None`: there is none.
pub fn newest(dir: &Path) -> Option<SystemTime> {
    names(dir).last().map(|name| SystemTime::UNIX_EPOCH + Duration::from_millis(name.unix_ms))
}

/// Points of a move that is under way.
#[derive(Debug)]
pub struct Series {
    dir: PathBuf,
    original: Original,
    number: u64,
    /// Bytes of the last whole point, and of those after it.
    bytes: (u64, u64),
}

impl Series {
    /// Makes one, empty.
    ///
    /// # Errors
    /// The file system's.
    pub fn make(dir: &Path, original: Original) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(dir)?;
        fs::write(dir.join("original"), serde_json::to_vec(&original).map_err(io::Error::other)?)?;
        Ok(Self { dir: dir.to_owned(), original, number: 0, bytes: (0, 0) })
    }

    /// Takes over what somebody has made who is dead. The next point is a whole one: it comes over another link.
    ///
    /// # Errors
    /// There is none; it cannot be read.
    pub fn again(dir: &Path) -> io::Result<Self> {
        let original = serde_json::from_slice(&fs::read(dir.join("original"))?).map_err(io::Error::other)?;
        let number = names(dir).last().map_or(0, |last| last.number + 1);
        Ok(Self { dir: dir.to_owned(), original, number, bytes: (0, 0) })
    }

    /// Whom its points are later states of.
    pub fn original(&self) -> &Original {
        &self.original
    }

    /// So much has changed since the last whole point that another one is shorter.
    pub fn is_long(&self) -> bool {
        self.bytes.1 > 2 * self.bytes.0 + LONG
    }

    /// Begins a point that was asked for at this time.
    ///
    /// # Errors
    /// The file system's; there is hardly any room left.
    pub fn begin(&self, asked: SystemTime) -> io::Result<Writing> {
        if free_bytes(&self.dir).map_err(io::Error::other)? < RESERVE_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.dir.join("part");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let since = asked.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut writing = Writing {
            path,
            unix_ms,
            file: BufWriter::new(file),
            digest: blake3::Hasher::new(),
            bytes: 0,
            ended: false,
        };
        writing.put(MAGIC)?;
        Ok(writing)
    }

    /// It is complete: the newest from here on. Those that nobody needs any more go.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&mut self, writing: Writing, whole: bool) -> io::Result<()> {
        if !writing.ended {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let name = Name { number: self.number, unix_ms: writing.unix_ms, whole };
        fs::rename(&writing.path, name.path(&self.dir))?;
        self.number += 1;
        if !whole {
            self.bytes.1 += writing.bytes;
            return Ok(());
        }
        self.bytes = (writing.bytes, 0);
        let entries = fs::read_dir(&self.dir)?.flatten();
        let older =
            |entry: &fs::DirEntry| Name::parse(entry.file_name().to_str()?).filter(|old| old.number < name.number);
        entries.filter(|entry| older(entry).is_some()).try_for_each(|entry| fs::remove_file(entry.path()))
    }
}

/// A point on its way in.
#[derive(Debug)]
pub struct Writing {
    path: PathBuf,
    unix_ms: u64,
    file: BufWriter<File>,
    digest: blake3::Hasher,
    bytes: u64,
    ended: bool,
}

impl Writing {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn frame(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        self.put(&kind.to_le_bytes())?;
        self.put(&(body.len() as u64).to_le_bytes())?;
        self.put(body)
    }

    /// A frame of pages, see [`pages`].
    ///
    /// # Errors
    /// The file system's.
    pub fn pages(&mut self, frame: &[u8]) -> io::Result<()> {
        self.frame(PAGES, frame)
    }

    /// All pages are there: the rest.
    ///
    /// # Errors
    /// The file system's.
    pub fn end(&mut self, model: &[u8], index: &[u8]) -> io::Result<()> {
        self.frame(MODEL, model)?;
        self.frame(INDEX, index)?;
        let digest = self.digest.finalize();
        self.file.write_all(digest.as_bytes())?;
        self.file.flush()?;
        self.ended = true;
        Ok(())
    }
}

/// The newest complete point, to be resumed.
#[derive(Debug)]
pub struct Newest {
    dir: PathBuf,
    chain: Vec<Name>,
    /// The target as it stood.
    pub model: Model,
    /// Where its pages are.
    pub index: Vec<Row>,
    /// When it was asked for.
    pub taken: SystemTime,
    /// Who has the other pages.
    pub original: Original,
}

impl Newest {
    /// Opens it; `None`: no point is complete.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn open(dir: &Path) -> io::Result<Option<Self>> {
        let chain = names(dir);
        let Some(last) = chain.last() else { return Ok(None) };
        let (mut model, mut index) = (None, None);
        read(&last.path(dir), &mut |kind, body| {
            match kind {
                MODEL => model = codec::decode(body).ok(),
                INDEX => index = decode(body),
                _ => {}
            }
            Ok(())
        })?;
        let (Some(model), Some(index)) = (model, index) else { return Err(damaged("it has no model or no index")) };
        crate::image::verify::model(&model).map_err(io::Error::other)?;
        let original: Original = serde_json::from_slice(&fs::read(dir.join("original"))?).map_err(io::Error::other)?;
        if !original.has(&index) {
            return Err(damaged("it names memory that the original does not have"));
        }
        let taken = SystemTime::UNIX_EPOCH + Duration::from_millis(last.unix_ms);
        Ok(Some(Self { dir: dir.to_owned(), chain, model, index, taken, original }))
    }

    /// Hands out the pages that points have, by their names there: newer ones first, so that of each page the first counts.
    ///
    /// # Errors
    /// A point is damaged or cannot be read, or `each` fails.
    pub fn contents(&self, each: &mut dyn FnMut(Run, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = Vec::new();
        for name in self.chain.iter().rev() {
            read(&name.path(&self.dir), &mut |kind, body| {
                if kind != PAGES {
                    return Ok(());
                }
                let mut result = Ok(());
                pages::unpack(body, &mut buffer, &mut |run, content| {
                    if result.is_ok() && matches!(run.what, What::Data | What::Zero) {
                        result = each(run, content);
                    }
                })
                .map_err(io::Error::other)?;
                result
            })?;
        }
        Ok(())
    }

    /// Whether every process that has memory of the original is still there.
    pub fn is_original_there(&self) -> bool {
        let held = Held { processes: self.original.owners.clone(), ..Held::default() };
        held.is_whole()
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the point is damaged: {what}"))
}

/// Reads a point, and hands out its frames: nothing but what the digest at its end is of.
fn read(path: &Path, each: &mut dyn FnMut(u32, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let length = fs::metadata(path)?.len();
    let Some(length) = length.checked_sub(DIGEST as u64) else { return Err(damaged("it is too short")) };
    let mut digest = blake3::Hasher::new();
    let mut file = File::open(path)?;
    digest.update_reader((&mut file).take(length))?;
    let mut end = [0; DIGEST];
    file.read_exact(&mut end)?;
    if digest.finalize() != blake3::Hash::from_bytes(end) {
        return Err(damaged("its digest is another one"));
    }
    let mut file = BufReader::new(File::open(path)?.take(length));
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("it is none of this version"));
    }
    let longest = MODEL_BYTES_MAX.max(limit(FrameKind::PAGES).unwrap_or(0).into());
    let (mut left, mut body) = (length - MAGIC.len() as u64, Vec::new());
    while left > 0 {
        let mut head = [0; 12];
        file.read_exact(&mut head)?;
        let (kind, bytes) = head.split_at(4);
        let kind = u32::from_le_bytes(kind.try_into().expect("4 bytes"));
        let bytes = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        if bytes > longest || bytes + 12 > left {
            return Err(damaged("a frame is too long"));
        }
        body.resize(bytes as usize, 0);
        file.read_exact(&mut body)?;
        each(kind, &body)?;
        left -= bytes + 12;
    }
    Ok(())
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
