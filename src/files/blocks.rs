//! Content of a file, block by block: what differs from the pass before.
//!
//! A block's digest covers where its data lies between holes and what it is: a block that became a hole, or the other way
//! round, differs.

use super::op::Op;
use super::{Result, failed};
use crate::image::Bytes;
use crate::sys::page_buffer::PageBuffer;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where operations and their content go: `None` says only that we are alive.
pub type Out<'a, E> = dyn FnMut(Option<&Op>, &[u8]) -> std::result::Result<(), E> + 'a;

/// Bytes of a block.
pub const BLOCK: u64 = 64 << 10;

/// Digest of a block; 0 = all of it is a hole. The first half of a BLAKE3 digest.
pub type Digest = u128;

/// Stretches of a file that are not holes, within a part of it: (offset, length), ascending.
struct Extents<'f> {
    file: &'f File,
    size: u64,
    /// The last one that was found.
    data: (u64, u64),
}

impl Extents<'_> {
    /// Data in `[from, to)`. Asked for ascending parts only.
    fn within(&mut self, from: u64, to: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        let mut at = from;
        while at < to {
            if self.data.1 <= at {
                self.data = self.next(at)?;
            }
            let (start, end) = (self.data.0.max(at), self.data.1.min(to));
            if start >= to {
                break;
            }
            found.push((start, end - start));
            at = end;
        }
        Ok(found)
    }

    /// The first stretch that ends beyond `at`; beyond the end of the file there is none.
    fn next(&self, at: u64) -> io::Result<(u64, u64)> {
        let none = (u64::MAX, u64::MAX);
        let seek = |at: u64, whence| lseek(self.file, i64::try_from(at).unwrap_or(i64::MAX), whence);
        match seek(at, Whence::SeekData) {
            Ok(start) => match seek(start as u64, Whence::SeekHole) {
                Ok(end) => Ok((start as u64, end as u64)),
                // It was cut off meanwhile.
                Err(nix::errno::Errno::ENXIO) => Ok(none),
                Err(errno) => Err(errno.into()),
            },
            Err(nix::errno::Errno::ENXIO) => Ok(none),
            // A file system that does not know.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EOPNOTSUPP) => Ok((at, self.size)),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Sends the blocks of a file that differ from `known`; the digests of all its blocks.
///
/// # Errors
/// It cannot be read; those of `out`.
pub fn changed<E: From<super::Error>>(
    file: &File,
    path: &[u8],
    size: u64,
    known: &[Digest],
    out: &mut Out<'_, E>,
) -> std::result::Result<Vec<Digest>, E> {
    let read = |e: io::Error| E::from(failed("read", path)(e));
    let mut extents = Extents { file, size, data: (0, 0) };
    let mut digests = Vec::new();
    let mut buffer = PageBuffer::of(BLOCK as usize);
    for (n, from) in (0..size).step_by(BLOCK as usize).enumerate() {
        let to = (from + BLOCK).min(size);
        let segments = extents.within(from, to).map_err(read)?;
        let digest = digest_of(file, from, &segments, &mut buffer).map_err(read)?;
        let before = known.get(n).copied().unwrap_or_default();
        digests.push(digest);
        if digest == before {
            // So that the other end hears of us.
            out(None, &[])?;
            continue;
        }
        let has_hole = segments.iter().map(|(_, len)| len).sum::<u64>() < to - from;
        if before != 0 && has_hole {
            out(Some(&Op::Hole { offset: from, len: to - from }), &[])?;
        }
        for (offset, len) in segments {
            let at = (offset - from) as usize;
            out(Some(&Op::Data { offset }), &buffer[at..at + len as usize])?;
        }
    }
    Ok(digests)
}

/// Reads the data of a block to its place in `buffer`.
fn digest_of(file: &File, from: u64, segments: &[(u64, u64)], buffer: &mut [u8]) -> io::Result<Digest> {
    if segments.is_empty() {
        return Ok(0);
    }
    let mut hasher = blake3::Hasher::new();
    for (offset, len) in segments {
        let at = (offset - from) as usize;
        let part = &mut buffer[at..at + *len as usize];
        fill(file, part, *offset)?;
        hasher.update(&offset.to_le_bytes()).update(&len.to_le_bytes()).update(part);
    }
    let digest = u128::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("it has 32"));
    Ok(digest.max(1))
}

/// What is beyond the end (it was cut off meanwhile) reads as zero: its time has changed, and the next pass reads it again.
fn fill(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                break;
            }
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// BLAKE3 of the first `len` bytes, hexadecimal; `None` if it has fewer.
///
/// # Errors
/// It cannot be read.
pub fn whole(file: &File, path: &Bytes, len: u64) -> Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = PageBuffer::of(1 << 20);
    let mut at = 0;
    while at < len {
        let part = buffer.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        match file.read_at(&mut buffer[..part], at) {
            Ok(0) => return Ok(None),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed("read", &path.0)(e)),
        }
    }
    Ok(Some(hasher.finalize().to_hex().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(file: &File, known: &[Digest]) -> (Vec<Digest>, Vec<(Op, Vec<u8>)>) {
        let mut said = Vec::new();
        let size = file.metadata().unwrap().len();
        let digests = changed::<super::super::Error>(file, b"x", size, known, &mut |op, content| {
            said.extend(op.map(|op| (op.clone(), content.to_vec())));
            Ok(())
        });
        (digests.unwrap(), said)
    }

    #[test]
    fn only_what_differs_is_said_and_holes_stay_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * BLOCK + 5).unwrap();
        file.write_all_at(&[7; 4096], 3 * BLOCK).unwrap();
        file.write_all_at(b"tail", 10 * BLOCK + 1).unwrap();
        let (first, said) = pass(&file, &[]);
        assert_eq!(first.len(), 11);
        assert_eq!(said.len(), 2, "{:?}", said.iter().map(|(op, _)| op).collect::<Vec<_>>());
        assert!(said.iter().all(|(op, content)| matches!(op, Op::Data { .. }) && content.len() <= 4096));
        let (second, said) = pass(&file, &first);
        assert_eq!((second.clone(), said.len()), (first, 0));
        file.write_all_at(b"x", 3 * BLOCK + 9).unwrap();
        let (third, said) = pass(&file, &second);
        assert!(third != second && said.iter().any(|(op, _)| *op == Op::Data { offset: 3 * BLOCK }));
        // A block that is made a hole again.
        let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(&file, punch, 3 * BLOCK as i64, BLOCK as i64).unwrap();
        let (_, said) = pass(&file, &third);
        assert_eq!(said, [(Op::Hole { offset: 3 * BLOCK, len: BLOCK }, Vec::new())]);
    }

    #[test]
    fn a_digest_is_of_so_many_bytes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abcdef", 0).unwrap();
        let path = Bytes(b"x".to_vec());
        let of = |len| whole(&file, &path, len).unwrap();
        assert_eq!(of(3).unwrap(), blake3::hash(b"abc").to_hex().to_string());
        assert_eq!(of(7), None, "it is shorter");
    }
}
