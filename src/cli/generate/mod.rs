//! Man pages and completions, made from the definitions of the command line. They are checked in; a test compares.

mod completions;
pub mod examples;
mod man;

pub use completions::completions;
pub use man::pages;

/// A file that is made from the definitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Path from the top of the repository.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// What a positional argument stands for, as far as a shell can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Target,
    Host,
    Code,
}

/// What can be completed at a positional argument, by the name of its value.
fn kind(arg: &clap::Arg) -> Option<Kind> {
    let names = arg.get_value_names()?;
    match names.first()?.as_str() {
        "TARGET" => Some(Kind::Target),
        "DEST" => Some(Kind::Host),
        "CODE" => Some(Kind::Code),
        _ => None,
    }
}
