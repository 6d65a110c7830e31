//! Groups of options that several verbs share, and how words become values.

pub mod dest;
pub mod image;
pub mod many;
pub mod memory;
pub mod mode;
pub mod peer;
pub mod state;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// The words an option accepts: the word, its meaning for the program, its meaning for a person.
pub type Words<T> = &'static [(&'static str, T, &'static str)];

/// A parser that takes one of a few words; help, man page and completions show them.
pub fn one_of<T: Copy + Send + Sync + 'static>(words: Words<T>) -> impl TypedValueParser<Value = T> {
    let possible = words.iter().map(|(word, _, help)| PossibleValue::new(*word).help(*help));
    PossibleValuesParser::new(possible).map(move |chosen| {
        let known = words.iter().find(|(word, ..)| *word == chosen);
        known.map(|(_, value, _)| *value).expect("the parser above lets through these words only")
    })
}
