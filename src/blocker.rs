//! Blockers: what cannot be saved or restored, found before anything is stopped.
//!
//! Codes are stable (cli.md): M01 tasks, M02 memory, M03 descriptors, M04 sockets, M05 files and mounts, M06 namespaces
//! and cgroups, M07 CPU and kernel, M08 privilege, M09 peer and transport, M10 image, M11 supervisor and container.
//! Never re-used, never re-numbered.
//!
//! Each code has a constant in [`codes`] and an [`Entry`] that `migrate explain` prints; both come from one row of the
//! tables below this folder, so that neither can be missing. `Blocker::new(codes::IO_URING, "pid 7 fd 3")` is all a
//! preflight has to write; where it knows more than the table it says so with `because` and `remedy`.

mod catalogue;

pub use catalogue::{GROUPS, codes};

use serde::{Deserialize, Serialize};

/// A stable code, shown as `M0301`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Code(pub u16);

impl Code {
    /// What the catalogue says about it; `None` for a number that was never given.
    pub fn entry(self) -> Option<&'static Entry> {
        entries().find(|entry| entry.code == self)
    }

    /// The group it belongs to: 3 for `M0301`.
    pub fn group(self) -> u16 {
        self.0 / 100
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "M{:04}", self.0)
    }
}

/// A word that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no code: a code is the letter M and four digits, as in M0301")]
pub struct CodeError(String);

impl std::str::FromStr for Code {
    type Err = CodeError;

    fn from_str(word: &str) -> Result<Self, CodeError> {
        word.strip_prefix(['M', 'm'])
            .filter(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(Self)
            .ok_or_else(|| CodeError(word.to_owned()))
    }
}

/// What the catalogue says about a code.
#[derive(Debug)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// Name of its constant.
    pub name: &'static str,
    /// The reason in a few words, as in the table of blockers.
    pub title: &'static str,
    /// What kind of object it is about, and how one recognises it.
    pub object: &'static str,
    /// Why it stands in the way.
    pub why: &'static str,
    /// What to do, in a few words.
    pub remedy: &'static str,
    /// Which kernels it concerns, or from which on it is gone.
    pub kernel: &'static str,
}

/// Every entry, by code.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    catalogue::TABLES.iter().flat_map(|table| table.iter())
}

/// One thing that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable code; `migrate explain CODE` has more.
    pub code: Code,
    /// What: `pid 1234 fd 7 (socket:[9876])`.
    pub object: String,
    /// Why it is in the way.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl Blocker {
    /// A blocker with reason and remedy from the catalogue.
    pub fn new(code: Code, object: impl Into<String>) -> Self {
        let (reason, remedy) = code.entry().map_or(("", ""), |entry| (entry.title, entry.remedy));
        Self { code, object: object.into(), reason: reason.to_owned(), remedy: remedy.to_owned() }
    }

    /// Says more exactly why.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Says more exactly what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_and_written() {
        assert_eq!("M0301".parse(), Ok(codes::IO_URING));
        assert_eq!("m0301".parse(), Ok(codes::IO_URING));
        assert_eq!(codes::IO_URING.to_string(), "M0301");
        for wrong in ["", "M", "301", "M301", "M03010", "M03a1", "X0301", "M+301"] {
            assert!(wrong.parse::<Code>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn codes_rise_and_lie_in_their_groups() {
        let all: Vec<_> = entries().collect();
        for pair in all.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} comes after {}", pair[0].code, pair[1].code);
        }
        for (table, (number, _)) in catalogue::TABLES.iter().zip(GROUPS) {
            assert!(!table.is_empty());
            for entry in *table {
                assert_eq!(entry.code.group(), number, "{}", entry.name);
                assert_ne!(entry.code.0 % 100, 0, "{} has no number of its own", entry.name);
            }
        }
        assert_eq!(catalogue::TABLES.len(), GROUPS.len());
    }

    #[test]
    fn every_entry_is_complete() {
        for entry in entries() {
            assert_eq!(entry.code.entry().map(|e| e.name), Some(entry.name));
            for text in [entry.title, entry.object, entry.why, entry.remedy, entry.kernel] {
                assert!(!text.trim().is_empty(), "{}", entry.name);
                assert_eq!(text, text.trim(), "{}", entry.name);
            }
            assert!(entry.why.ends_with('.'), "{}: `why` is made of sentences", entry.name);
            assert!(entry.title.len() <= 60, "{}: the title has to fit a table", entry.name);
            assert!(entry.remedy.len() <= 110, "{}: the remedy has to fit a table", entry.name);
        }
    }

    #[test]
    fn a_blocker_takes_its_words_from_the_catalogue() {
        let blocker = Blocker::new(codes::TRACED, "pid 7");
        assert_eq!(blocker.reason, codes::TRACED.entry().unwrap().title);
        assert_eq!(blocker.clone().because("traced by gdb (8)").reason, "traced by gdb (8)");
        assert_eq!(blocker.remedy("quit gdb").remedy, "quit gdb");
    }
}
