//! Frames: what every byte on a channel belongs to after the preamble.
//!
//! ```text
//! 0      4      8        12       16            24
//! | magic| kind | length | spare  | xxh3 checksum | body: `length` bytes
//! ```
//! Little-endian. The checksum covers kind, length and body, so that a body never passes for another kind. It finds
//! damage, not malice: authenticity is the channel's business. Kinds are four printable letters, so that one from a newer
//! program can be refused by its name. An all-zero header is no frame.

use std::fmt::{self, Debug, Display, Formatter};
use xxhash_rust::xxh3::Xxh3;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = size_of::<Header>();

const MAGIC: [u8; 4] = *b"mgr1";

/// What a frame is; four letters on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameKind(pub [u8; 4]);

impl FrameKind {
    /// First exchange, both directions: JSON of [`super::hello::Hello`].
    pub const HELLO: Self = Self(*b"HELO");
    /// A bulk connection asks to join, and is answered: the token.
    pub const JOIN: Self = Self(*b"JOIN");
    /// A refusal in words (UTF-8); the sender closes after it.
    pub const REFUSE: Self = Self(*b"NOPE");
    /// "I am alive and busy": resets the silence time-out, never seen above the channel.
    pub const ALIVE: Self = Self(*b"LIVE");
    /// A protocol message, JSON.
    pub const MESSAGE: Self = Self(*b"MESG");
    /// A piece of the model of the target.
    pub const MODEL: Self = Self(*b"MODL");
    /// Pages.
    pub const PAGES: Self = Self(*b"PAGE");
    /// A piece of a file's content.
    pub const FILE: Self = Self(*b"FILE");
    /// Packets of the network for sockets of the target.
    pub const SEGMENTS: Self = Self(*b"SEGM");
    /// End of a round on this channel; in post-copy, of everything.
    pub const MARK: Self = Self(*b"MARK");
    /// Pages that somebody waits for.
    pub const WANTED: Self = Self(*b"WANT");
    /// Pages that are missing; an empty one ends the list.
    pub const MISSING: Self = Self(*b"MISS");
    /// Who has waited for pages, and how long.
    pub const WAITS: Self = Self(*b"WAIT");
    /// A frame of another connection on its way through a proxy: the number of its lane, and the frame ([`super::proxy`]).
    pub const CARRY: Self = Self(*b"CARY");
}

/// The longest body of any frame that is passed on, bytes.
const PASSED_MAX: u32 = 5 << 20;

/// What a frame that is carried has before its body: its lane and its own header, bytes.
const CARRIED_BYTES: u32 = 4 + HEADER_BYTES as u32;

/// Every kind there is, and the longest body it may have, bytes.
const KINDS: [(FrameKind, u32); 14] = [
    (FrameKind::HELLO, 64 << 10),
    (FrameKind::JOIN, 64),
    (FrameKind::REFUSE, 4 << 10),
    (FrameKind::ALIVE, 0),
    (FrameKind::MESSAGE, 4 << 20),
    (FrameKind::MODEL, 4 << 20),
    (FrameKind::PAGES, 5 << 20),
    (FrameKind::FILE, 5 << 20),
    (FrameKind::SEGMENTS, 256 << 10),
    (FrameKind::MARK, 64),
    (FrameKind::WANTED, 96 << 10),
    (FrameKind::MISSING, 96 << 10),
    (FrameKind::WAITS, 192 << 10),
    (FrameKind::CARRY, PASSED_MAX + CARRIED_BYTES),
];

impl Display for FrameKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.iter().all(u8::is_ascii_graphic) {
            self.0.iter().try_for_each(|byte| write!(f, "{}", *byte as char))
        } else {
            write!(f, "{:02x?}", self.0)
        }
    }
}

impl Debug for FrameKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// The bytes before a body.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    magic: [u8; 4],
    kind: [u8; 4],
    length: U32,
    spare: U32,
    checksum: U64,
}

/// What is wrong with a header or a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The magic is missing, or spare bits are set.
    NotAFrame([u8; 4]),
    /// A kind that is not in the table.
    UnknownKind(FrameKind),
    /// The body would be longer than its kind may be.
    TooLong {
        /// Kind announced.
        kind: FrameKind,
        /// Bytes announced.
        length: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The body is not what was sent.
    Checksum(FrameKind),
}

/// The longest body of a kind, bytes; `None` for a kind that does not exist.
pub fn limit(kind: FrameKind) -> Option<u32> {
    KINDS.iter().find(|(known, _)| *known == kind).map(|(_, limit)| *limit)
}

impl Header {
    /// The header of a body that is sent in parts.
    pub fn of(kind: FrameKind, parts: &[&[u8]]) -> Result<Self, FrameError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = checked_length(kind, length as u64)?;
        Ok(Self {
            magic: MAGIC,
            kind: kind.0,
            length: length.into(),
            spare: 0.into(),
            checksum: checksum(kind, length, parts).into(),
        })
    }

    /// A header from the wire: kind and length of the body to read.
    pub fn check(&self) -> Result<(FrameKind, u32), FrameError> {
        if self.magic != MAGIC || self.spare.get() != 0 {
            return Err(FrameError::NotAFrame(self.magic));
        }
        let kind = FrameKind(self.kind);
        Ok((kind, checked_length(kind, u64::from(self.length.get()))?))
    }

    /// Of a frame that is passed on: the length of its body. Its kind, and whether it is damaged, is for its receiver to find.
    pub fn passes(&self) -> Result<u32, FrameError> {
        if self.magic != MAGIC {
            return Err(FrameError::NotAFrame(self.magic));
        }
        let (kind, length) = (FrameKind(self.kind), self.length.get());
        match length <= PASSED_MAX {
            true => Ok(length),
            false => Err(FrameError::TooLong { kind, length: length.into(), limit: PASSED_MAX.into() }),
        }
    }

    /// The checksum that its sender has given it.
    pub fn checksum(&self) -> u64 {
        self.checksum.get()
    }

    /// Whether this is the body that was sent.
    pub fn check_body(&self, body: &[u8]) -> Result<(), FrameError> {
        let kind = FrameKind(self.kind);
        if checksum(kind, self.length.get(), &[body]) == self.checksum.get() {
            Ok(())
        } else {
            Err(FrameError::Checksum(kind))
        }
    }
}

fn checked_length(kind: FrameKind, length: u64) -> Result<u32, FrameError> {
    let limit = limit(kind).ok_or(FrameError::UnknownKind(kind))?;
    match u32::try_from(length) {
        Ok(length) if length <= limit => Ok(length),
        _ => Err(FrameError::TooLong { kind, length, limit: limit.into() }),
    }
}

fn checksum(kind: FrameKind, length: u32, parts: &[&[u8]]) -> u64 {
    let mut hash = Xxh3::with_seed(u64::from(u32::from_le_bytes(kind.0)) | u64::from(length) << 32);
    for part in parts {
        hash.update(part);
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kinds_are_named_once() {
        for (i, (kind, _)) in KINDS.iter().enumerate() {
            assert!(kind.0.iter().all(u8::is_ascii_uppercase), "{kind}");
            assert!(KINDS[..i].iter().all(|(other, _)| other != kind), "{kind} twice");
        }
    }

    #[test]
    fn unknown_kinds_are_named() {
        assert_eq!(Header::of(FrameKind(*b"WARP"), &[]).err(), Some(FrameError::UnknownKind(FrameKind(*b"WARP"))));
        assert_eq!(FrameKind(*b"WARP").to_string(), "WARP");
        assert_eq!(FrameKind([0, 1, 2, 3]).to_string(), "[00, 01, 02, 03]");
    }

    #[test]
    fn zeroes_are_no_frame() {
        let header = Header::read_from_bytes(&[0; HEADER_BYTES]).unwrap();
        assert_eq!(header.check(), Err(FrameError::NotAFrame([0; 4])));
    }

    #[test]
    fn a_body_in_parts_is_the_body() {
        let whole = Header::of(FrameKind::PAGES, &[b"abcdef"]).unwrap();
        let parts = Header::of(FrameKind::PAGES, &[b"ab", b"", b"cdef"]).unwrap();
        assert_eq!(whole.as_bytes(), parts.as_bytes());
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(bytes in proptest::array::uniform24(any::<u8>())) {
            let header = Header::read_from_bytes(&bytes).unwrap();
            if let Ok((kind, length)) = header.check() {
                prop_assert!(length <= limit(kind).unwrap());
            }
        }

        #[test]
        fn damage_is_found(body in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..320, bit in 0u8..8) {
            let header = Header::of(FrameKind::MODEL, &[&body]).unwrap();
            let mut wire = [header.as_bytes(), &body].concat();
            let at = at % wire.len();
            wire[at] ^= 1 << bit;
            let (head, body) = wire.split_at(HEADER_BYTES);
            let header = Header::read_from_bytes(head).unwrap();
            let found = match header.check() {
                Err(_) => true,
                Ok((_, length)) => length as usize != body.len() || header.check_body(body).is_err(),
            };
            prop_assert!(found);
        }
    }
}
