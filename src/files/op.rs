//! What a pass says: a line of JSON, and bytes behind it.
//!
//! ```text
//! | length of the line: u32, little-endian | line | content |
//! ```

use super::{Error, Result, failed};
use crate::image::Bytes;
use crate::sys::xattr;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

/// Content of one operation, at most, bytes.
pub const CONTENT_MAX: usize = 1 << 20;
/// The line, at most, bytes: extended attributes are its longest part.
const LINE_MAX: usize = 2 << 20;

/// Attributes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Length, bytes.
    pub size: u64,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access, nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Last modification, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Extended attributes.
    pub xattrs: Vec<(Bytes, Bytes)>,
}

impl Meta {
    /// Of an open file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(file: &File, path: &[u8]) -> Result<Self> {
        let meta = file.metadata().map_err(failed("stat", path))?;
        let xattrs = xattr::all(file).map_err(failed("read extended attributes of", path))?;
        Ok(Self {
            xattrs: xattrs.into_iter().map(|(name, value)| (Bytes(name), Bytes(value))).collect(),
            ..Self::plain(&meta)
        })
    }

    /// Without extended attributes.
    pub fn plain(meta: &Metadata) -> Self {
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: meta.len(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            atime_ns: ns(meta.atime(), meta.atime_nsec()),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            xattrs: Vec::new(),
        }
    }
}

/// One operation. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// A directory that files to come are in; `found` = one that is there already stays as it is.
    Dir {
        /// Where.
        path: Bytes,
        /// Its attributes.
        meta: Meta,
        /// Of a directory above a file.
        found: bool,
    },
    /// Content of this regular file follows.
    File {
        /// Where.
        path: Bytes,
    },
    /// The bytes behind the line are the file's from this offset on.
    Data {
        /// Offset, bytes.
        offset: u64,
    },
    /// There is nothing here.
    Hole {
        /// Offset, bytes.
        offset: u64,
        /// Length, bytes.
        len: u64,
    },
    /// The file is complete.
    End {
        /// Its attributes.
        meta: Meta,
    },
    /// Another name of a file of the same tree.
    Link {
        /// The new name.
        path: Bytes,
        /// The name it has.
        to: Bytes,
    },
    /// A symbolic link.
    Symlink {
        /// Where.
        path: Bytes,
        /// What it says.
        target: Bytes,
        /// Its owner and times.
        meta: Meta,
    },
    /// A FIFO.
    Fifo {
        /// Where.
        path: Bytes,
        /// Its attributes.
        meta: Meta,
    },
    /// It is gone, with all that is in it.
    Remove {
        /// Where it was.
        path: Bytes,
    },
    /// A file that is not sent must have this digest of its first bytes.
    Digest {
        /// Its position among the wanted files.
        file: u32,
        /// How many bytes.
        len: u64,
        /// BLAKE3, hexadecimal; `None` = it could not be read.
        digest: Option<String>,
    },
}

impl Op {
    /// The bytes before the content.
    pub fn encode(&self) -> Vec<u8> {
        let line = serde_json::to_vec(self).expect("operations have string keys only");
        let mut bytes = u32::try_from(line.len()).expect("attributes are limited").to_le_bytes().to_vec();
        bytes.extend(line);
        bytes
    }

    /// An operation and its content.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &[u8]) -> io::Result<(Self, &[u8])> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| wrong("it is too short"))?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > LINE_MAX || len > rest.len() || rest.len() - len > CONTENT_MAX {
            return Err(wrong("its lengths do not add up"));
        }
        let (line, content) = rest.split_at(len);
        let op = serde_json::from_slice(line)?;
        if !content.is_empty() && !matches!(op, Self::Data { .. }) {
            return Err(wrong("only data has content"));
        }
        Ok((op, content))
    }
}

/// The error of an operation that makes no sense.
pub(crate) fn nonsense(path: &[u8], what: &str) -> Error {
    failed("take", path)(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn operations_arrive_as_sent() {
        let path = Bytes(b"/a/\xff\n".to_vec());
        for op in [
            Op::File { path: path.clone() },
            Op::Data { offset: 1 << 40 },
            Op::Symlink {
                path,
                target: Bytes(b"../x".to_vec()),
                meta: Meta {
                    size: 1,
                    mode: 0o4755,
                    uid: 7,
                    gid: 8,
                    atime_ns: -1,
                    mtime_ns: 2,
                    xattrs: vec![(Bytes(b"user.a".to_vec()), Bytes(vec![0, 255]))],
                },
            },
        ] {
            let bytes = op.encode();
            let (read, content) = Op::decode(&bytes).unwrap();
            assert_eq!((read, content), (op, &b""[..]));
        }
        let mut bytes = Op::Data { offset: 3 }.encode();
        bytes.extend(b"xyz");
        assert_eq!(Op::decode(&bytes).unwrap().1, b"xyz");
        let mut bytes = Op::Hole { offset: 3, len: 4 }.encode();
        bytes.extend(b"xyz");
        assert!(Op::decode(&bytes).is_err(), "nothing else has content");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Op::decode(&bytes);
        }
    }
}
