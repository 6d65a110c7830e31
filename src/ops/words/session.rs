//! Names of sessions.

use super::WordError;
use std::fmt::{self, Display, Formatter};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

/// How many letters a session id has.
const LETTERS: usize = 8;

/// The id of one session (a dump, a restore, a move): eight lower-case letters, chosen at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; LETTERS]);

impl SessionId {
    /// A new id; two are equal once in 2 * 10^11.
    pub fn random() -> Self {
        // The standard library seeds each RandomState from the kernel: 64 random bits, 38 of which are used.
        let mut bits = RandomState::new().build_hasher().finish();
        Self(std::array::from_fn(|_| {
            let letter = u8::try_from(bits % 26).expect("less than 26");
            bits /= 26;
            b'a' + letter
        }))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("made of letters")
    }

    /// Whether this is the session a person means by `prefix`.
    pub fn starts_with(&self, prefix: &str) -> bool {
        self.as_str().starts_with(prefix)
    }
}

impl FromStr for SessionId {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        <[u8; LETTERS]>::try_from(word.as_bytes())
            .ok()
            .filter(|letters| letters.iter().all(u8::is_ascii_lowercase))
            .map(Self)
            .ok_or_else(|| WordError::new("session id", word, "a session id is eight lower-case letters"))
    }
}

impl Display for SessionId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_differ_and_are_read_again() {
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| SessionId::random()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!("abcdefg".parse::<SessionId>().is_err());
        assert!("abcdefgH".parse::<SessionId>().is_err());
    }
}
