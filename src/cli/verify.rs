//! `migrate verify`.

use crate::ops::options::ImageOptions;
use std::path::PathBuf;

/// Check an image from end to end without starting anything
///
/// Reads all of it and its parents: versions, digests, references. The exit code is 0, or 7 if anything is wrong.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory of the image
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
}

impl Args {
    /// The choices as the engine takes them.
    pub fn options(&self) -> ImageOptions {
        ImageOptions { dir: self.dir.clone() }
    }
}
