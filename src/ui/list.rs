//! The list of things that could be moved.

use super::json::{self, Object};
use super::units::bytes;
use super::{Settings, Stream, result, table};
use crate::ops::list::{Entry, Kind, Listing};

/// Shows what there is on this host.
pub fn listing(listing: &Listing, settings: &Settings) {
    let entries = listing.entries.iter().map(object).collect();
    let rows: Vec<_> = listing.entries.iter().map(row).collect();
    let headings = ["TARGET", "KIND", "NAME", "PROCESSES", "MEMORY", "MOVABLE"];
    let text = table::lay_out(headings, &rows, settings.coloured(Stream::Out));
    result(settings, "list", Object::default().list("entries", entries), &text);
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Unit => "unit",
        Kind::Container => "container",
        Kind::Tree => "tree",
        Kind::Session => "session",
        Kind::Job => "job",
    }
}

fn row(entry: &Entry) -> [String; 6] {
    // What can be seen from outside is not everything, hence no plain "yes".
    let movable = match &entry.blocker {
        None => "nothing seen in the way".to_owned(),
        Some(blocker) => format!("{} {}: {}", blocker.code, blocker.object, blocker.reason),
    };
    [
        entry.target.to_string(),
        kind(entry.kind).to_owned(),
        entry.name.clone(),
        entry.processes.to_string(),
        bytes(entry.memory_bytes),
        movable,
    ]
}

fn object(entry: &Entry) -> Object {
    let fields = Object::default()
        .with("target", entry.target.to_string())
        .with("kind", kind(entry.kind))
        .with("name", entry.name.as_str())
        .with("pid", entry.root.0)
        .with("uid", entry.uid)
        .with("processes", entry.processes)
        .with("threads", entry.threads)
        .with("memory_bytes", entry.memory_bytes);
    match &entry.blocker {
        Some(blocker) => fields.list("blockers", vec![json::blocker(blocker)]),
        None => fields,
    }
}
