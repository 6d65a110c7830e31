//! `migrate keygen`.

use super::Context;
use crate::failure::Failure;
use crate::ops::keygen;
use crate::ops::options::KeygenOptions;
use crate::ui;

/// Make the key with which this host or user shows who it is
///
/// Prints one line for the peers file of the other host.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Name in the certificate and in the line [default: name of this host]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Replace the key that is there: peers know the old one
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Makes the key and prints the line.
    ///
    /// # Errors
    /// When there is a key already, or it cannot be written.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        let made = keygen::run(&self.options())?;
        ui::agent::key(&made, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> KeygenOptions {
        KeygenOptions { name: self.name.clone(), force: self.force }
    }
}
