//! `migrate list`.

use crate::ops::options::ListOptions;

/// List process trees that could be moved
///
/// One line for each tree, unit and container: process id, processes, memory, and whether it can be moved or the first thing that stands in the way.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

impl Args {
    /// The choices as the engine takes them.
    pub fn options(&self) -> ListOptions {
        ListOptions {}
    }
}
