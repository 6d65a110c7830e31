//! A complete state, as it lies on the disk.
//!
//! ```text
//! magic | length of the head: u64 | head, JSON | model | rows | checks of pages | BLAKE3 digest of everything before
//! ```
//! Little-endian. Rows are those of the rounds, and then those of what was read of the target that stood still: of each page the last
//! holds. What is damaged has another digest, and a page another check: neither is ever started.

use super::layer::{Check, Layer, Mark, Row};
use super::{STATE, Terms};
use crate::image::mm::PAGE;
use crate::image::{MmId, Model, codec, limits, verify};
use crate::memory::store::{self, Compression, Draft, ImageWriter, PageOptions, PageWriter, SpaceInfo, StoreError};
use crate::memory::{RangeSet, Space};
use crate::migration::protocol::SpaceName;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{FromBytes, IntoBytes};

const MAGIC: &[u8; 16] = b"migrate state 1\n";
/// Longest head that is read, bytes.
const HEAD_MAX: u64 = 16 << 20;
/// Longest state that is read, without its pages, bytes: for 1 TiB of memory.
const STATE_MAX: u64 = 16 << 30;
/// Pages read in one go.
const PIECE_PAGES: usize = 256;

/// What a state says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Head {
    /// When the target was like this, milliseconds since the epoch.
    pub unix_ms: u64,
    /// Name of the file of pages.
    pub pages: String,
    /// What the model calls the spaces that pages came for.
    pub names: Vec<SpaceName>,
    pub terms: Terms,
    /// Bytes of the model, rows, and checks; [`Head::write`] says them.
    pub lengths: (u64, u64, u64),
}

impl Head {
    pub fn taken(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.unix_ms)
    }

    /// Reads it, and nothing else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut start = [0; MAGIC.len() + 8];
        file.read_exact(&mut start)?;
        let (magic, length) = start.split_at(MAGIC.len());
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
        if magic != MAGIC || length > HEAD_MAX {
            return Err(damaged("it is none of this version"));
        }
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }

    /// Writes a state; it is on the disk when this returns.
    pub fn write(mut self, path: &Path, model: &[u8], layers: &[&Layer]) -> io::Result<()> {
        let parts: Vec<_> = layers.iter().map(|layer| layer.rows()).collect();
        let rows = parts.iter().map(|(rows, _)| rows.len() as u64).sum();
        let checks = parts.iter().map(|(_, checks)| checks.len() as u64).sum();
        self.lengths = (model.len() as u64, rows, checks);
        let text = serde_json::to_vec(&self).map_err(io::Error::other)?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let (mut file, mut digest) = (BufWriter::new(file), blake3::Hasher::new());
        let mut put = |bytes: &[u8]| {
            digest.update(bytes);
            file.write_all(bytes)
        };
        put(MAGIC)?;
        put(&(text.len() as u64).to_le_bytes())?;
        put(&text)?;
        put(model)?;
        parts.iter().try_for_each(|(rows, _)| put(rows.as_bytes()))?;
        parts.iter().try_for_each(|(_, checks)| put(checks.as_bytes()))?;
        file.write_all(digest.finalize().as_bytes())?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// The newest complete state, to be started.
#[derive(Debug)]
pub struct Complete {
    dir: PathBuf,
    head: Head,
    layer: Layer,
    /// The target as it stood.
    pub model: Model,
}

impl Complete {
    /// Opens what is kept in this directory.
    ///
    /// # Errors
    /// There is nothing; it is damaged, or cannot be read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(STATE);
        let head = Head::read(&path)?;
        let mut bytes = Vec::new();
        File::open(&path)?.take(STATE_MAX).read_to_end(&mut bytes)?;
        let at = bytes.len().checked_sub(blake3::OUT_LEN).ok_or_else(|| damaged("it is too short"))?;
        let (said, digest) = bytes.split_at(at);
        if blake3::hash(said).as_bytes() != digest {
            return Err(damaged("its digest is another one"));
        }
        let text = u64::from_le_bytes(said[MAGIC.len()..MAGIC.len() + 8].try_into().expect("8 bytes")) as usize;
        let rest = &said[MAGIC.len() + 8 + text..];
        let short = || damaged("it is cut short");
        let (model, rest) = split(rest, head.lengths.0, 1).ok_or_else(short)?;
        let (rows, rest) = split(rest, head.lengths.1, size_of::<Row>()).ok_or_else(short)?;
        let (checks, rest) = split(rest, head.lengths.2, size_of::<Check>()).ok_or_else(short)?;
        let (Ok(rows), Ok(mut checks), true) =
            (<[Row]>::ref_from_bytes(rows), <[Check]>::ref_from_bytes(checks), rest.is_empty())
        else {
            return Err(short());
        };
        let mut layer = Layer::default();
        layer
            .apply(rows, &mut checks)
            .filter(|()| checks.is_empty())
            .ok_or_else(|| damaged("its rows make no sense"))?;
        let model = codec::decode(model).map_err(io::Error::other)?;
        verify::model(&model).map_err(io::Error::other)?;
        if Path::new(&head.pages).components().count() != 1 {
            return Err(damaged("its pages are somewhere else"));
        }
        Ok(Self { dir: dir.to_owned(), head, layer, model })
    }

    /// Makes an image of it, which must not be there yet.
    ///
    /// # Errors
    /// A page is damaged; a full disk. There is no image then.
    pub fn write_image(&self, at: &Path) -> Result<(), StoreError> {
        let path = self.dir.join(&self.head.pages);
        let failed = |source: io::Error| StoreError::Io { operation: "read", path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let mut image = ImageWriter::create(at, true)?;
        let pages = image.pages(PageOptions { compression: Compression::Off, parent: None });
        for name in &self.head.names {
            let Some(space) = name.model.map(Space::from) else { continue };
            let cow_parent = name.cow_parent.map(MmId);
            pages.space(space, SpaceInfo { cow_parent, ..SpaceInfo::default() });
            self.contents(Space::from(name.sent_as), space, &file, &pages, &failed)?;
            self.marks(Space::from(name.sent_as), space, &pages);
        }
        let stored = pages.finish()?;
        image.write_model(&self.model)?;
        image.commit(Draft::of(&self.model, &stored), stored).map(drop)
    }

    fn contents(
        &self,
        from: Space,
        to: Space,
        file: &File,
        pages: &PageWriter,
        failed: &dyn Fn(io::Error) -> StoreError,
    ) -> Result<(), StoreError> {
        let all: Vec<_> = self.layer.slots.range((from, 0)..(from, limits::PAGE_NUMBERS)).collect();
        let mut buffer = Vec::new();
        let is_next = |a: &(&(Space, u64), &super::layer::Slot), b: &(&(Space, u64), &super::layer::Slot)| {
            a.0.1 + 1 == b.0.1 && a.1.number + 1 == b.1.number
        };
        for piece in all.chunk_by(is_next).flat_map(|run| run.chunks(PIECE_PAGES)) {
            buffer.resize(piece.len() * PAGE as usize, 0);
            let ((_, first), slot) = piece[0];
            file.read_exact_at(&mut buffer, slot.number * PAGE).map_err(failed)?;
            let is_right = |(content, (_, slot)): (&[u8], &(_, &super::layer::Slot))| xxh3_64(content) == slot.check;
            if !buffer.chunks_exact(PAGE as usize).zip(piece).all(is_right) {
                return Err(failed(damaged(&format!("pages of {from} from {first} on have another check"))));
            }
            pages.write_run(to, *first, &buffer)?;
        }
        Ok(())
    }

    fn marks(&self, from: Space, to: Space, pages: &PageWriter) {
        for (mark, said) in [(Mark::Zero, store::Mark::Zero), (Mark::Inherit, store::Mark::Inherit)] {
            let ranges = self.layer.marks.get(&(from, mark));
            ranges.iter().flat_map(|ranges: &&RangeSet| ranges.iter()).for_each(|range| pages.mark(to, range, said));
        }
    }
}

/// So many things of this size, and the rest.
fn split(bytes: &[u8], count: u64, size: usize) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(count).ok()?.checked_mul(size)?;
    bytes.split_at_checked(length)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the state is damaged: {what}"))
}
