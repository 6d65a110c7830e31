//! The page store: contents of memory in an image directory.
//!
//! Pages are keyed by [`Space`](super::Space) and number. Contents lie in *frames* in one page file for each worker that
//! wrote; a frame is read, checked and unpacked as a whole, and can be read without any other. Raw frames lie at
//! multiples of the page size, frames of neighbouring pages one behind the other, so that large reads and mappings are
//! possible. The [`index`] says for every run of pages where its content is, or that it is zero, or to be found in the
//! parent image, or in the address space it was forked from; a page in no run is a hole.
//! `writer`, by `lane`s, and `reader` do that; `overlay` is what holds in the end, `sink` a store or a `stream`.
//!
//! Integrity: every frame has an xxh3-64 in the index, the index and the model have their BLAKE3 in the manifest, and the
//! manifest has its own. Whoever can write the directory can of course write all of them.

mod contents;
mod dir;
pub mod index;
mod lane;
mod overlay;
mod reader;
mod sink;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use contents::Contents;
pub use dir::{Draft, ImageDir, ImageWriter, free_bytes};
pub use lane::Lane;
pub use reader::{PageReader, ResolvedRun, Scratch, Source};
pub use sink::{PageLane, PageSink};
pub use stream::{Head, Item, StreamError, StreamReader, StreamWriter, receive, send};
pub use writer::{Compression, Mark, PageOptions, PageWriter, SpaceInfo, StoredPages};

use super::{PageRange, Space};
use crate::blocker::{Code, codes};
use crate::image::{codec::CodecError, manifest::ManifestError};
use std::{io, path::PathBuf};

/// The check of a frame: XXH3 of 64 bits, without a seed, of the bytes as they are stored.
fn frame_check(stored: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(stored)
}

/// What can go wrong with an image directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// No room is left.
    #[error("the file system of {} is full", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is an image already.
    #[error("{} already holds an image", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has files in it that are no image of ours.
    #[error("{} is not empty and not an image", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// There is no image.
    #[error("{} is not an image: it has no manifest.json", path.display())]
    NoImage {
        /// The directory.
        path: PathBuf,
    },
    /// There is no parent where this image has its own.
    #[error("the parent image {} is not there", path.display())]
    NoParent {
        /// The directory.
        path: PathBuf,
    },
    /// The manifest is not one.
    #[error("{}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// The model is not one.
    #[error("{}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: CodecError,
    },
    /// The model is too large to be written.
    #[error("the model cannot be written")]
    Encode(#[from] CodecError),
    /// The manifest cannot be written.
    #[error("the manifest cannot be written")]
    EncodeManifest(#[from] ManifestError),
    /// The page index is not one.
    #[error("the page index is damaged: {what}")]
    Index {
        /// What is wrong.
        what: &'static str,
    },
    /// The page index is of a version this program does not know.
    #[error("the page index has version {found}; this program reads up to {known}")]
    IndexVersion {
        /// What it says.
        found: u16,
        /// The newest this program knows.
        known: u16,
    },
    /// A file is not what the manifest says.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The parent is another image than the one that was there when this one was written.
    #[error("{} is not the parent of this image: its id is {found}, not {wanted}", path.display())]
    WrongParent {
        /// Where the parent should be.
        path: PathBuf,
        /// The id found.
        found: String,
        /// The id wanted.
        wanted: String,
    },
    /// Parents of parents of parents.
    #[error("the chain of parents of {} is longer than {limit} images, or a circle", path.display())]
    Chain {
        /// The youngest image.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A page is said to be as in the parent, which does not have it.
    #[error("{space}: page {:#x} is said to be in the parent image, which does not have it", page * 4096)]
    NotInParent {
        /// Whose page.
        space: Space,
        /// Its number.
        page: u64,
    },
    /// A page was asked for that has no content in the store.
    #[error("{space}: pages {:#x}..{:#x} have no content in the store", range.start_byte(), range.end_byte())]
    NoContent {
        /// Whose pages.
        space: Space,
        /// Which.
        range: PageRange,
    },
    /// The page store has memory that the model does not have.
    #[error("the model has no memory for page {:#x} of {space}", page * 4096)]
    Foreign {
        /// Whose page.
        space: Space,
        /// Its number.
        page: u64,
    },
    /// A stream that pages or a model go to or come from.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A path that cannot be written into a manifest, or has no last part.
    #[error("{} cannot be used as the path of an image", path.display())]
    NotText {
        /// The path.
        path: PathBuf,
    },
    /// Too many of something for one image.
    #[error("too many {what} for one image")]
    TooMany {
        /// Of what.
        what: &'static str,
    },
}

impl StoreError {
    /// What `migrate explain` says more about it; `None` where the operating system has refused.
    pub fn code(&self) -> Option<Code> {
        Some(match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => codes::IMAGE_INCOMPLETE,
            Self::Io { .. } | Self::NotText { .. } | Self::TooMany { .. } | Self::Stream(StreamError::Io { .. }) => {
                return None;
            }
            Self::Encode(_) | Self::EncodeManifest(_) => return None,
            Self::Full { .. } => codes::DISK_SPACE,
            Self::Exists { .. } => codes::IMAGE_EXISTS,
            Self::NotEmpty { .. } => codes::DIRECTORY_USED,
            Self::NoImage { .. } => codes::IMAGE_INCOMPLETE,
            Self::NoParent { .. } | Self::WrongParent { .. } => codes::PARENT_MISSING,
            Self::Manifest { source: ManifestError::Version { .. }, .. } | Self::IndexVersion { .. } => {
                codes::IMAGE_VERSION
            }
            _ => codes::IMAGE_DAMAGED,
        })
    }

    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { operation, path, source },
        }
    }
}
