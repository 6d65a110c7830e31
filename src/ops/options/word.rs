//! Words of the command line inside of descriptions that go from one process of ours to another: as a person writes them.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use std::fmt::Display;
use std::str::FromStr;

/// Writes a word.
pub fn serialize<T: Display, S: Serializer>(word: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(word)
}

/// Reads a word.
pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(Error::custom)
}

/// A word that may not be there.
pub mod option {
    use super::{Deserialize, Deserializer, Display, Error, FromStr, Serializer};

    /// Writes it.
    pub fn serialize<T: Display, S: Serializer>(word: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match word {
            Some(word) => serializer.collect_str(word),
            None => serializer.serialize_none(),
        }
    }

    /// Reads it.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let word = Option::<String>::deserialize(deserializer)?;
        word.map(|word| word.parse().map_err(Error::custom)).transpose()
    }
}

/// Any number of words.
pub mod list {
    use super::{Deserialize, Deserializer, Display, Error, FromStr, Serializer};

    /// Writes them.
    pub fn serialize<T: Display, S: Serializer>(words: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(words.iter().map(ToString::to_string))
    }

    /// Reads them.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let words = Vec::<String>::deserialize(deserializer)?;
        words.into_iter().map(|word| word.parse().map_err(Error::custom)).collect()
    }
}

/// Any number of lists of words.
pub mod lists {
    use super::{Deserialize, Deserializer, Display, Error, FromStr, Serializer};

    /// Writes them.
    pub fn serialize<T: Display, S: Serializer>(lists: &[Vec<T>], serializer: S) -> Result<S::Ok, S::Error> {
        let words = |list: &Vec<T>| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        serializer.collect_seq(lists.iter().map(words))
    }

    /// Reads them.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<T>>, D::Error> {
        let lists = Vec::<Vec<String>>::deserialize(deserializer)?;
        let parse = |word: String| word.parse().map_err(Error::custom);
        lists.into_iter().map(|words| words.into_iter().map(parse).collect()).collect()
    }
}
