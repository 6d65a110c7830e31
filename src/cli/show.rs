//! `migrate show`.

use crate::ops::options::ImageOptions;
use std::path::PathBuf;

/// Show what is in an image
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
