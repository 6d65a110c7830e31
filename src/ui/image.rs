//! What is in an image, and whether it is sound.

use super::json::Object;
use super::style::clean;
use super::units::{bytes, count};
use super::{Session, Settings, result};
use crate::failure::Failure;
use crate::image::manifest::{Kind, Wishes};
use crate::ops::show::{Parent, Process, Shown};
use crate::ops::verify::Verified;
use std::path::Path;

/// Page size of all images there are, bytes.
const PAGE: u64 = 4096;

/// Shows an image.
pub fn shown(shown: &Shown, settings: &Settings) {
    result(settings, "show", fields(shown), &text(shown));
}

/// Ends a session of `verify`.
pub fn verified(session: Session, dir: &Path, result: Result<Verified, Failure>) -> u8 {
    session.end(result.map(|verified| {
        let fields = Object::default()
            .with("id", verified.id.as_str())
            .with("kind", kind(verified.kind))
            .with("images", verified.images as u64)
            .with("processes", verified.processes as u64)
            .with("pages", verified.pages)
            .with("bytes", verified.bytes);
        let parents = match verified.images {
            0 | 1 => String::new(),
            n => format!(" with {}", count(n as u64 - 1, "parent")),
        };
        let size = format!("{}, {}", count(verified.processes as u64, "process"), bytes(verified.bytes));
        (fields, format!("{}: sound{parents} ({size} read)\n", clean(&dir.display().to_string())))
    }))
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Memory => "memory",
    }
}

fn fields(shown: &Shown) -> Object {
    let manifest = &shown.manifest;
    let objects =
        shown.objects.iter().fold(Object::default(), |fields, (what, number)| fields.with(what, *number as u64));
    Object::default()
        .with("dir", shown.dir.display().to_string())
        .with("id", shown.id.as_str())
        .with("kind", kind(manifest.kind))
        .with("version", manifest.version)
        .with("program", manifest.program.as_str())
        .with("created", manifest.created.as_str())
        .with("hostname", manifest.host.hostname.as_str())
        .with("kernel", manifest.host.kernel.as_str())
        .with("machine", manifest.host.machine.as_str())
        .with("cpu_features", manifest.host.cpu_features.clone())
        .known("restore", (!manifest.restore.is_empty()).then(|| wishes(&manifest.restore)))
        .list("tree", shown.processes.iter().map(process).collect())
        .object("objects", objects)
        .with("pages", manifest.pages.data)
        .with("zero_pages", manifest.pages.zero)
        .with("parent_pages", manifest.pages.parent)
        .with("stored_bytes", manifest.pages.stored_bytes)
        .list("parents", shown.parents.iter().map(parent).collect())
        .known("broken_chain", shown.broken_chain.as_deref())
}

fn process(process: &Process) -> Object {
    Object::default()
        .with("pid", process.pid)
        .known("parent", process.parent)
        .with("comm", process.comm.as_str())
        .with("state", process.state.as_str())
        .with("threads", process.threads)
        .with("memory_bytes", process.memory_bytes)
        .known("mappings", process.mappings.map(|n| n as u64))
        .known("descriptors", process.descriptors.map(|n| n as u64))
        .known("exe", process.exe.as_deref())
}

fn parent(parent: &Parent) -> Object {
    Object::default()
        .with("dir", parent.dir.display().to_string())
        .with("id", parent.id.as_str())
        .with("created", parent.created.as_str())
        .with("stored_bytes", parent.stored_bytes)
}

/// What a restore does that is not told otherwise, as options.
fn wishes(wishes: &Wishes) -> String {
    let option = |(name, value): (&String, &serde_json::Value)| {
        let word = value.as_str().or_else(|| value.get("path")?.as_str());
        format!("--{name} {}", word.unwrap_or("?"))
    };
    wishes.iter().map(option).collect::<Vec<_>>().join(" ")
}

fn text(shown: &Shown) -> String {
    let manifest = &shown.manifest;
    let host = &manifest.host;
    let mut text = String::new();
    let mut row = |name: &str, value: String| text += &format!("{name:<9} {}\n", clean(&value));
    let what = match manifest.kind {
        Kind::Full => "a process tree, can be restored",
        Kind::Memory => "memory alone, parent for a later dump",
    };
    row("image", format!("{} ({what})", shown.dir.display()));
    row("made", format!("{} by migrate {}", manifest.created, manifest.program));
    row("on", format!("{}, Linux {}, {}", host.hostname, host.kernel, host.machine));
    let pages = manifest.pages;
    let stored = format!("{} stored", bytes(pages.stored_bytes));
    let elsewhere = match pages.parent {
        0 => String::new(),
        n => format!(", {} in parents", bytes(n.saturating_mul(PAGE))),
    };
    row("memory", format!("{}, {stored}{elsewhere}", bytes(pages.data.saturating_mul(PAGE))));
    for parent in &shown.parents {
        row("parent", format!("{} ({}, {})", parent.dir.display(), parent.created, bytes(parent.stored_bytes)));
    }
    if !manifest.restore.is_empty() {
        row("restore", wishes(&manifest.restore));
    }
    if let Some(why) = &shown.broken_chain {
        row("missing", why.clone());
    }
    if !shown.objects.is_empty() {
        let objects: Vec<_> = shown.objects.iter().map(|(what, number)| format!("{what} {number}")).collect();
        row("holds", objects.join(", "));
    }
    text.push('\n');
    text + &shown.processes.iter().map(line).collect::<String>()
}

/// A process, indented by its place in the tree.
fn line(process: &Process) -> String {
    let indent = "  ".repeat(process.depth.min(32));
    let mut parts = vec![process.state.clone(), count(process.threads.into(), "thread"), bytes(process.memory_bytes)];
    parts.extend(process.mappings.map(|n| count(n as u64, "mapping")));
    parts.extend(process.descriptors.map(|n| count(n as u64, "descriptor")));
    parts.extend(process.exe.clone());
    clean(&format!("{indent}{} ({}): {}", process.pid, process.comm, parts.join(", "))) + "\n"
}
