//! The list of things that could be moved.

use super::json::{self, Object};
use super::units::bytes;
use super::{Settings, Stream, check, failure, result, table};
use crate::blocker::Blocker;
use crate::ops::check::peers::PeerReport;
use crate::ops::list::{Entry, Kind, Listing};

/// Shows what there is on this host, and what could go to the hosts that were asked.
pub fn listing(listing: &Listing, settings: &Settings) {
    let peers = &listing.peers;
    let entries = listing.entries.iter().map(|entry| object(entry, peers)).collect();
    let mut fields = Object::default().list("entries", entries);
    if !peers.is_empty() {
        fields = fields.list("peers", peers.iter().map(check::peer).collect());
    }
    result(settings, "list", fields, &text(listing, settings.coloured(Stream::Out)));
}

fn text(listing: &Listing, coloured: bool) -> String {
    let peers = &listing.peers;
    let rows: Vec<_> = listing.entries.iter().map(|entry| row(entry, peers)).collect();
    let last = if peers.is_empty() { "MOVABLE" } else { "MOVABLE TO" };
    let mut text = table::lay_out(["TARGET", "KIND", "NAME", "PROCESSES", "MEMORY", last], &rows, coloured);
    // A host's own are said once, with their remedies.
    let blockers: Vec<Blocker> = peers.iter().flat_map(PeerReport::all_blockers).cloned().collect();
    if !blockers.is_empty() {
        text += "\n";
        text += &failure::blockers(&blockers, coloured);
    }
    text
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

fn row(entry: &Entry, peers: &[PeerReport]) -> [String; 6] {
    let movable = match &entry.blocker {
        None if peers.is_empty() => NOTHING.to_owned(),
        None => peers.iter().map(|peer| at(entry, peer)).collect::<Vec<_>>().join("; "),
        Some(blocker) => said(blocker),
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

/// What can be seen from outside is not everything, hence no plain "yes".
const NOTHING: &str = "nothing seen in the way";

fn said(blocker: &Blocker) -> String {
    format!("{} {}: {}", blocker.code, blocker.object, blocker.reason)
}

fn at(entry: &Entry, peer: &PeerReport) -> String {
    let what = match (peer.blockers.first(), entry.blocker_at(peer)) {
        (Some(blocker), _) => blocker.code.to_string(),
        (None, Some(blocker)) => said(&blocker),
        (None, None) => NOTHING.to_owned(),
    };
    format!("{}: {what}", peer.dest)
}

fn object(entry: &Entry, peers: &[PeerReport]) -> Object {
    let fields = Object::default()
        .with("target", entry.target.to_string())
        .with("kind", kind(entry.kind))
        .with("name", entry.name.as_str())
        .with("pid", entry.root.0)
        .with("uid", entry.uid)
        .with("processes", entry.processes)
        .with("threads", entry.threads)
        .with("memory_bytes", entry.memory_bytes);
    let there = |peer: &PeerReport| {
        let blockers = entry.blocker_at(peer).iter().map(json::blocker).collect();
        Object::default().with("dest", peer.dest.to_string()).list("blockers", blockers)
    };
    let fields = match &entry.blocker {
        Some(blocker) => fields.list("blockers", vec![json::blocker(blocker)]),
        None => fields,
    };
    if peers.is_empty() { fields } else { fields.list("there", peers.iter().map(there).collect()) }
}
