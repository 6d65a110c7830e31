//! An image as one self-checking stream: `--stream`, and what crosses the network.
//!
//! ```text
//! magic "MIGRSTRM" | version u16 | reserved 6
//! frame: kind u8 | packing u8 | space kind u8 | reserved u8 | stored u32 | space u32 | ranges u32 | raw u64 | check u64
//!        | ranges x (first u64, count u64) | payload
//! ```
//! Integers little-endian. The check is the xxh3-64 of ranges and payload, seeded with that of the header and the number of
//! the frame: a frame that is damaged, lost, doubled or out of its place is found at once. The last frame has the BLAKE3 of all
//! checks, so that a stream that ends early is never taken for a whole one. Nothing refers to parent images. Frames come in
//! the order in which things became known: a page given twice has its later content, and the model may come first or last.

mod reader;
mod transfer;
mod writer;

pub use reader::StreamReader;
pub use transfer::{receive, send};
pub use writer::StreamWriter;

use super::{Mark, SpaceInfo};
use crate::image::{
    MmId, Model, ShmemId, codec,
    manifest::{HostSummary, Kind, TreeEntry, Wishes},
    mm::PAGE,
};
use crate::memory::{PageRange, Space};
use serde::{Deserialize, Serialize};
use std::io;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: [u8; 8] = *b"MIGRSTRM";
const VERSION: u16 = 1;
const HEADER: usize = 32;
const PAGE_BYTES: usize = PAGE as usize;
/// Pages of one frame at most.
const FRAME_PAGES: usize = 64;
/// Ranges of one frame at most: one for each page, and for marks as many as are given.
const RANGES: u32 = 1 << 20;

const HEAD: u8 = 1;
const SPACE: u8 = 2;
const DATA: u8 = 3;
const MARK: u8 = 4;
const MODEL: u8 = 5;
const END: u8 = 6;
const RENAME: u8 = 7;

/// What can go wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Writing or reading failed.
    #[error("cannot {operation} the stream")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// It ends before its end.
    #[error("the stream is cut short")]
    Truncated,
    /// It is something else.
    #[error("this is not an image stream")]
    Magic,
    /// A newer program wrote it.
    #[error("the stream has version {found}; this program reads up to {VERSION}")]
    Version {
        /// What it says.
        found: u16,
    },
    /// Something in it is not what a writer writes.
    #[error("the stream is damaged: {0}")]
    Damaged(&'static str),
    /// Its model cannot be decoded.
    #[error("the model in the stream cannot be read")]
    Model(#[from] codec::CodecError),
}

/// The beginning of a stream: whose image it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// What the image is good for.
    pub kind: Kind,
    /// Where it was made.
    pub host: HostSummary,
    /// The processes; empty where they are only known with the model.
    pub tree: Vec<TreeEntry>,
    /// What a restore does that is not told otherwise.
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    pub restore: Wishes,
}

/// One thing that a stream says.
#[derive(Debug)]
pub enum Item<'a> {
    /// Whose image it is. Always the first.
    Head(Head),
    /// A space.
    Space(Space, SpaceInfo),
    /// Content of pages: ranges of a space, and their bytes one behind the other.
    Data(Space, &'a [PageRange], &'a [u8]),
    /// Something about pages other than their content.
    Mark(Space, &'a [PageRange], Mark),
    /// Everything about the first space is about the second, or about nothing.
    Rename(Space, Option<Space>),
    /// The model, decoded; not yet looked at by [`crate::image::verify::model`].
    Model(Box<Model>),
    /// The end: all of it was there.
    End,
}

fn broken(operation: &'static str) -> impl FnOnce(io::Error) -> StreamError {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof => StreamError::Truncated,
        _ => StreamError::Io { operation, source },
    }
}

/// A frame's header but for its check.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    kind: u8,
    packing: u8,
    space: Option<Space>,
    ranges: u32,
    stored: u32,
    raw: u64,
}

fn space_words(space: Option<Space>) -> (u8, u32) {
    match space {
        None => (0, 0),
        Some(Space::Mm(id)) => (1, id.0),
        Some(Space::Shmem(id)) => (2, id.0),
    }
}

fn space_of(kind: u8, id: u32) -> Result<Option<Space>, StreamError> {
    match kind {
        0 if id == 0 => Ok(None),
        1 => Ok(Some(Space::Mm(MmId(id)))),
        2 => Ok(Some(Space::Shmem(ShmemId(id)))),
        _ => Err(StreamError::Damaged("a frame about a space of an unknown kind")),
    }
}

impl Header {
    fn bytes(&self) -> [u8; HEADER - 8] {
        let (space_kind, space) = space_words(self.space);
        let mut out = [0; HEADER - 8];
        out[..4].copy_from_slice(&[self.kind, self.packing, space_kind, 0]);
        out[4..8].copy_from_slice(&self.stored.to_le_bytes());
        out[8..12].copy_from_slice(&space.to_le_bytes());
        out[12..16].copy_from_slice(&self.ranges.to_le_bytes());
        out[16..24].copy_from_slice(&self.raw.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8; HEADER - 8]) -> Result<Self, StreamError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let id = word(8);
        let space = space_of(bytes[2], id)?;
        let raw = u64::from(word(16)) | u64::from(word(20)) << 32;
        Ok(Self { kind: bytes[0], packing: bytes[1], space, ranges: word(12), stored: word(4), raw })
    }

    fn check(bytes: &[u8], number: u64, ranges: &[u8], payload: &[u8]) -> u64 {
        let mut hash = Xxh3::with_seed(xxh3_64(bytes) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        hash.update(ranges);
        hash.update(payload);
        hash.digest()
    }
}

/// Marks as a frame has them, by number.
const MARKS: [Mark; 3] = [Mark::Zero, Mark::Inherit, Mark::Hole];
