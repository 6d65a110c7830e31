//! `migrate verify`.

use super::Context;
use crate::ops::words::SessionId;
use crate::ops::{self, options::ImageOptions};
use crate::ui;
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
    /// Runs the verb and returns its exit code.
    pub fn run(&self, context: &Context) -> u8 {
        let session = context.session(SessionId::random(), None, false);
        let result = ops::verify::run(&self.options(), &session);
        ui::image::verified(session, &self.dir, result)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> ImageOptions {
        ImageOptions { dir: self.dir.clone() }
    }
}
