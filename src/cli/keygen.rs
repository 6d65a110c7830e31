//! `migrate keygen`.

use crate::ops::options::KeygenOptions;

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
    /// The choices as the engine takes them.
    pub fn options(&self) -> KeygenOptions {
        KeygenOptions { name: self.name.clone(), force: self.force }
    }
}
