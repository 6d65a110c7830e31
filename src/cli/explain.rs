//! `migrate explain`.

use super::Context;
use crate::blocker::{Code, Entry, entries};
use crate::failure::{Failure, FailureKind};
use crate::ui::explain;

/// Explain what stands in the way: object, why, remedy, kernel versions
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The code, as in M0301
    #[arg(value_name = "CODE", required_unless_present = "all", conflicts_with = "all")]
    codes: Vec<Code>,
    /// Explain every code
    #[arg(long)]
    all: bool,
}

impl Args {
    /// Prints the entries.
    ///
    /// # Errors
    /// Usage, for a code that was never given.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        // Codes on the command line win over `all` in a configuration.
        let chosen: Vec<&'static Entry> = match self.codes.is_empty() {
            true => entries().collect(),
            false => self.codes.iter().map(|code| entry(*code)).collect::<Result<_, _>>()?,
        };
        explain::print(&chosen, &context.settings);
        Ok(0)
    }
}

fn entry(code: Code) -> Result<&'static Entry, Failure> {
    code.entry().ok_or_else(|| {
        Failure::new(format!("there is no code {code}"))
            .hint("migrate explain --all lists every code")
            .kind(FailureKind::Usage)
    })
}
