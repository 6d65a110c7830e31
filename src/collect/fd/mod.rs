//! Descriptors.

pub mod socket;
pub mod tcp;

use super::{Cx, Result};
use crate::image::GhostId;

/// Reads all descriptor tables.
pub fn collect(cx: &mut Cx<'_>) -> Result<()> {
    let empty = crate::image::fd::FdTable { entries: Vec::new() };
    cx.model.fd_tables = vec![empty; cx.table_owner.len()];
    Ok(())
}

/// The deleted file behind a mapping.
pub fn ghost_of_mapping(cx: &mut Cx<'_>, at: usize, link: &str) -> Result<Option<GhostId>> {
    let object = format!("pid {} {link}", cx.frozen.processes[at].pid);
    cx.blockers.push(crate::blocker::Blocker::new(crate::blocker::codes::FILE_HIDDEN, object));
    Ok(None)
}
