//! Destinations as written on the line: one, a list, or a group of the configuration.

use crate::cli::config::Config;
use crate::failure::Failure;
use crate::ops::words::{Dest, WordError};
use std::str::FromStr;

/// `DEST`, where `@GROUP` stands for a list in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestArg {
    /// A destination.
    One(Dest),
    /// The name of a group.
    Group(String),
}

impl FromStr for DestArg {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word.strip_prefix('@') {
            Some(name) if !name.is_empty() => Ok(Self::Group(name.to_owned())),
            _ => word.parse().map(Self::One),
        }
    }
}

/// The destinations that the words stand for, groups replaced by their members.
///
/// # Errors
/// Usage, when a group is not in the configuration or one of its members is no destination.
pub fn resolve(words: &[DestArg], config: &Config) -> Result<Vec<Dest>, Failure> {
    let mut found = Vec::new();
    for word in words {
        match word {
            DestArg::One(dest) => found.push(dest.clone()),
            DestArg::Group(name) => found.extend(config.group(name)?),
        }
    }
    Ok(found)
}
