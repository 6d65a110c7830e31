//! `migrate list`.

use super::Context;
use crate::failure::Failure;
use crate::ops::{self, options::ListOptions};
use crate::ui;

/// List process trees that could be moved
///
/// One line for each tree, unit and container: process id, processes, memory, and whether it can be moved or the first thing that stands in the way.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn run(&self, context: &Context) -> Result<u8, Failure> {
        ui::list::listing(&ops::list::run(&self.options())?, &context.settings);
        Ok(0)
    }

    /// The choices as the engine takes them.
    pub fn options(&self) -> ListOptions {
        ListOptions {}
    }
}
