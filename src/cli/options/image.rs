//! Where an image is.

use crate::ops::options::ImagePlace;
use std::path::PathBuf;

/// `-D DIR | --stream`.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "image", required = true, multiple = false)]
pub struct ImageArgs {
    /// Directory of the image; a dump makes it, with mode 0700
    #[arg(short = 'D', value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// The image is one self-checking stream: standard output of a dump, standard input of a restore
    #[arg(long)]
    stream: bool,
}

impl ImageArgs {
    /// The choice as the engine takes it.
    pub fn place(&self) -> ImagePlace {
        match &self.dir {
            Some(dir) => ImagePlace::Dir(dir.clone()),
            None => ImagePlace::Stream,
        }
    }
}
