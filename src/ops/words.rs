//! The words of the command line that have a grammar of their own: targets, destinations, sizes, rates, times, percentages, session ids.
//!
//! Each type reads what a person writes (`FromStr`) and writes what it would read again (`Display`). Configuration files,
//! journals and messages use the same words.

mod address;
mod dest;
mod quantity;
mod session;
mod target;

pub use dest::{Address, Dest, Listen};
pub use quantity::{Percent, Rate, Size, Time};
pub use session::SessionId;
pub use target::Target;

/// A word that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no {kind}: {why}")]
pub struct WordError {
    /// What was expected: `size`, `time`, `destination`, ...
    pub kind: &'static str,
    /// The word as given.
    pub word: String,
    /// What is wrong with it, with an example of what would do.
    pub why: String,
}

impl WordError {
    fn new(kind: &'static str, word: &str, why: impl Into<String>) -> Self {
        Self { kind, word: word.to_owned(), why: why.into() }
    }
}
