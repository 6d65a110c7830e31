//! The first bytes of every connection, before any TLS: they say that `migrate` is speaking, and what the connection is
//! for, so that an agent can hand it to the right process without having read anything else.
//!
//! The session number in it routes; it gives no right. Rights come from the channel and from the token in a JOIN frame.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a preamble on the wire.
pub const PREAMBLE_BYTES: usize = size_of::<Preamble>();

/// Not text, so that no banner contains it.
pub const MAGIC: [u8; 8] = *b"\x01MIGRATE";

/// Version of the preamble itself; the protocol has its own.
const PREAMBLE_VERSION: u16 = 1;

/// Number of a session, chosen by its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SessionNumber(pub [u8; 16]);

impl std::fmt::Display for SessionNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelRole {
    /// Begins a session: messages, and bulk data where there is no other connection.
    Control,
    /// Joins a session: bulk data.
    Bulk,
}

/// The bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Preamble {
    magic: [u8; 8],
    version: U16,
    role: u8,
    spare: [u8; 5],
    session: [u8; 16],
}

impl Preamble {
    /// Begins a session, or answers that the program is there.
    pub fn control() -> Self {
        Self::new(1, SessionNumber::default())
    }

    /// Joins a session.
    pub fn bulk(session: SessionNumber) -> Self {
        Self::new(2, session)
    }

    fn new(role: u8, session: SessionNumber) -> Self {
        Self { magic: MAGIC, version: PREAMBLE_VERSION.into(), role, spare: [0; 5], session: session.0 }
    }

    /// Role and session, or what is wrong.
    pub fn check(&self) -> Result<(ChannelRole, SessionNumber), String> {
        if self.magic != MAGIC {
            return Err("these are not the first bytes of migrate".into());
        }
        if self.version.get() != PREAMBLE_VERSION {
            return Err(format!("preamble of version {}, this program knows {PREAMBLE_VERSION}", self.version));
        }
        let role = match self.role {
            1 => ChannelRole::Control,
            2 => ChannelRole::Bulk,
            other => return Err(format!("unknown channel role {other}")),
        };
        Ok((role, SessionNumber(self.session)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn says_what_it_is_for() {
        let number = SessionNumber([7; 16]);
        let read = |p: Preamble| Preamble::read_from_bytes(p.as_bytes()).unwrap().check();
        assert_eq!(read(Preamble::control()), Ok((ChannelRole::Control, SessionNumber::default())));
        assert_eq!(read(Preamble::bulk(number)), Ok((ChannelRole::Bulk, number)));
        assert_eq!(number.to_string(), "07".repeat(16));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::array::uniform32(any::<u8>())) {
            let _ = Preamble::read_from_bytes(&bytes).unwrap().check();
        }
    }
}
