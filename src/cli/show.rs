//! `migrate show`.

use super::Context;
use crate::failure::Failure;
use crate::ops::{self, options::ImageOptions};
use crate::ui;
use std::path::PathBuf;

/// Show what is in an image
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory of the image
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        ui::image::shown(&ops::show::run(&self.options())?, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> ImageOptions {
        ImageOptions { dir: self.dir.clone() }
    }
}
