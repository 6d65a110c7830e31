//! Moves, and who owns their targets.

use super::json::{self, Object, Stamp};
use super::style::clean;
use super::{Settings, Stream, put, result, table, units};
use crate::migration::handover::Reply;
use crate::migration::journal::{Role, Step};
use crate::migration::resolve::Owner;
use crate::migration::standby::Became;
use crate::ops::promote::Promoted;
use crate::ops::resolve::Resolved;
use crate::ops::status::Entry;
use crate::ops::warm::wire::{Account, Candidate, States};
use crate::ops::words::SessionId;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

/// Shows the moves that this host knows of.
pub fn show(entries: &[Entry], settings: &Settings) {
    let sessions = entries.iter().map(object).collect();
    result(settings, "status", Object::default().list("sessions", sessions), &text(entries, settings));
}

fn text(entries: &[Entry], settings: &Settings) -> String {
    let rows: Vec<_> = entries.iter().map(row).collect();
    if rows.is_empty() {
        return "no move is under way or in doubt here\n".to_owned();
    }
    let coloured = settings.coloured(Stream::Out);
    let mut text = table::lay_out(["SESSION", "ROLE", "PEER", "PID", "PHASE", "OWNER"], &rows, coloured);
    for account in entries.iter().filter_map(|entry| entry.warm.as_ref()) {
        text += &warm(account, coloured);
    }
    text
}

/// How far the destinations of a warm-up are.
fn warm(account: &Account, coloured: bool) -> String {
    let ms = |ms: u64| units::time(Duration::from_millis(ms));
    let rows: Vec<[String; 7]> = account
        .candidates
        .iter()
        .map(|one| {
            let state = match &one.reason {
                Some(reason) => format!("{}: {}", one.state, clean(reason)),
                None => one.state.clone(),
            };
            let pause = one.expected_downtime_us.map(|us| units::time(Duration::from_micros(us)));
            [
                account.session.clone(),
                clean(&one.dest),
                state,
                one.left_bytes.map(units::bytes).unwrap_or_default(),
                one.stored_age_ms.map(ms).unwrap_or_default(),
                pause.unwrap_or_default(),
                format!("{}, {}", units::count(one.rounds.into(), "round"), units::bytes(one.bytes_sent)),
            ]
        })
        .collect();
    let is_over = account.phase == "ended";
    let mut text = String::new();
    if !is_over && !rows.is_empty() {
        let header = ["WARM", "DEST", "STATE", "LEFT", "STORED BEFORE", "PAUSE NOW", "SENT"];
        text = format!("\n{}", table::lay_out(header, &rows, coloured));
    }
    let rate = account.dirty_bytes_per_s.filter(|_| !is_over);
    let rate = rate.map(|rate| format!(", {}/s are written", units::bytes(rate))).unwrap_or_default();
    let phase = if is_over { "its warm-up has ended, after" } else { &account.phase };
    let since = if is_over { "" } else { "for " };
    text += &format!("\n{}: {phase} {since}{}{rate}\n", account.session, ms(account.age_ms));
    if let Some(states) = account.states.as_ref().filter(|_| !is_over) {
        text += &of_states(states, &account.candidates);
    }
    account.notes.iter().for_each(|note| text += &format!("  note: {}\n", clean(note)));
    text
}

/// What states for the death of the source have cost, and who keeps one.
fn of_states(states: &States, candidates: &[Candidate]) -> String {
    let us = |us: u64| units::time(Duration::from_micros(us));
    let kept = |one: &Candidate| {
        let age = one.state_age_ms.map(|ms| format!("{} old", units::time(Duration::from_millis(ms))));
        let end = one.states_end.as_ref().map(|why| format!("no more: {}", clean(why)));
        let words: Vec<String> = age.into_iter().chain(end).collect();
        format!("{} {}", clean(&one.dest), if words.is_empty() { "none".to_owned() } else { words.join(", ") })
    };
    let kept: Vec<String> = candidates.iter().map(kept).collect();
    let mut text = format!(
        "  states: {} taken, pause {} (longest {}), {}; kept: {}\n",
        states.taken,
        us(states.pause_us),
        us(states.longest_pause_us),
        units::bytes(states.bytes),
        kept.join("; ")
    );
    if let Some(reason) = &states.reason {
        text += &format!("  states that were not taken: {}, the last: {}\n", states.failed, clean(reason));
    }
    text
}

/// `--watch`: on a terminal one table that changes, else a table for each change; with `--json` an event of the kind `session`
/// for each session that has changed, and the result at the end.
#[derive(Debug)]
pub struct View<'a> {
    settings: &'a Settings,
    stamp: Stamp,
    shown: Vec<Entry>,
    /// Lines of the table on the terminal.
    lines: usize,
}

impl<'a> View<'a> {
    /// Begins; nothing is shown yet.
    pub fn begin(settings: &'a Settings) -> Self {
        Self { settings, stamp: Stamp::begin(SessionId::random()), shown: Vec::new(), lines: 0 }
    }

    /// Something has changed.
    pub fn show(&mut self, entries: &[Entry]) {
        if self.settings.json {
            for entry in entries.iter().filter(|entry| !self.shown.contains(entry)) {
                let fields = Object::default().with("verb", "status").and(about(entry));
                let stamp = entry.line.session.parse().map(|session| self.stamp.of(session));
                put(Stream::Out, &stamp.as_ref().unwrap_or(&self.stamp).line("session", fields));
            }
        } else {
            let table = text(entries, self.settings);
            let back = match std::io::stdout().is_terminal() && self.lines > 0 {
                // Up over the old table, and everything below away (console_codes(4)).
                true => format!("\x1b[{}A\x1b[J", self.lines),
                false => String::new(),
            };
            self.lines = table.lines().count();
            put(Stream::Out, &format!("{back}{table}"));
        }
        self.shown = entries.to_vec();
    }

    /// The last look.
    pub fn end(self, entries: &[Entry]) {
        if self.settings.json {
            show(entries, self.settings);
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Source => "source",
        Role::Destination => "destination",
    }
}

/// The phase of a warm-up that goes on.
fn warm_phase(account: &Account) -> Option<&'static str> {
    let phases = ["beginning", "warm", "switching", "in-pause", "reconnecting"];
    phases.into_iter().find(|phase| *phase == account.phase)
}

fn phase(entry: &Entry) -> &'static str {
    if let Some(phase) = entry.warm.as_ref().and_then(|account| warm_phase(account)) {
        return phase;
    }
    match entry.line.step {
        _ if entry.standby.is_some() && !entry.busy => "standby",
        Step::Done if entry.line.standby == Some(Became::Promoted) => "promoted",
        Step::Begun if entry.busy => "under way",
        Step::Begun => "interrupted",
        Step::Prepared if entry.busy => "prepared, waits",
        Step::Prepared => "prepared, held",
        Step::Parked if entry.busy => "parked, being decided",
        Step::Parked => "parked",
        Step::Committing => "committing",
        Step::Owner => "owner",
        Step::Aborted => "stayed",
        Step::Cloned => "cloned",
        Step::Done => "moved",
    }
}

fn words(entry: &Entry) -> String {
    let seconds = |then: SystemTime| then.elapsed().unwrap_or_default().as_secs();
    let who = owner(entry);
    if let Some(image) = &entry.left {
        return format!(
            "this host: its later state was about to go on from {}; if it does not run, migrate restore -D does that",
            image.display()
        );
    }
    if let Some(newest) = &entry.standby {
        let (size, age) = (units::bytes(newest.bytes), seconds(newest.taken));
        let start =
            if entry.busy { String::new() } else { format!("; migrate promote {} starts it", entry.line.session) };
        return format!("{who}, unless it is dead: a state {age} s old is kept here ({size}){start}");
    }
    match (entry.recoverable, &entry.parked, &entry.line.not_parked) {
        (Some(taken), ..) => format!("{who} (a state {} s old can be resumed here)", seconds(taken)),
        (_, Some(parked), _) => {
            let (size, age) = (units::bytes(parked.bytes), seconds(parked.since));
            format!(
                "{who}, unless it says otherwise: the copy here waits in {} ({size}, {age} s old)",
                parked.image.display()
            )
        }
        (.., Some(reason)) => format!("{who} (the copy here stays in memory: {reason})"),
        _ => who.to_owned(),
    }
}

fn owner(entry: &Entry) -> &'static str {
    match (entry.line.role, entry.owner) {
        (_, Owner::Here) => "this host",
        (Role::Source, Owner::There) if entry.line.pages_owed => "the destination, which needs memory from here",
        (Role::Source, Owner::There) => "the destination",
        (Role::Destination, Owner::There) => "the source",
        (_, Owner::EndedHere) => "nobody: ended with this host",
        (_, Owner::InDoubt) => match entry.said {
            Some(Reply::Prepared) => "in doubt: a copy waits at the destination",
            Some(Reply::EndedWithHost) => "in doubt: it ran there and ended with that host",
            Some(Reply::Unknown) => "in doubt: the destination's journal is gone",
            _ => "in doubt: the destination does not answer",
        },
    }
}

fn row(entry: &Entry) -> [String; 6] {
    let line = &entry.line;
    [
        line.session.clone(),
        role(line.role).to_owned(),
        line.peer.clone(),
        line.target_pid.map(|pid| pid.to_string()).unwrap_or_default(),
        phase(entry).to_owned(),
        words(entry),
    ]
}

fn object(entry: &Entry) -> Object {
    Object::default().with("session", entry.line.session.as_str()).and(about(entry))
}

/// All but its id, which an event has already.
fn about(entry: &Entry) -> Object {
    let line = &entry.line;
    let owner_word = match entry.owner {
        Owner::Here => "here",
        Owner::There => "there",
        Owner::EndedHere => "nobody",
        Owner::InDoubt => "in-doubt",
    };
    Object::default()
        .with("attempt", line.attempt.to_string())
        .with("role", role(line.role))
        .with("peer", line.peer.as_str())
        .known("pid", line.target_pid)
        .with("phase", phase(entry))
        .with("busy", entry.busy)
        .with("owner", owner_word)
        .known(
            "recoverable_age_ms",
            entry.recoverable.map(|taken| taken.elapsed().unwrap_or_default().as_millis() as u64),
        )
        .known("recovered_image", entry.left.as_ref().map(|image| image.display().to_string()))
        .known("image", entry.parked.as_ref().map(|parked| parked.image.display().to_string()))
        .known("image_bytes", entry.parked.as_ref().map(|parked| parked.bytes))
        .known(
            "image_age_ms",
            entry.parked.as_ref().map(|parked| parked.since.elapsed().unwrap_or_default().as_millis() as u64),
        )
        .known("not_parked", entry.line.not_parked.clone())
        .known(
            "state_age_ms",
            entry.standby.as_ref().map(|newest| newest.taken.elapsed().unwrap_or_default().as_millis() as u64),
        )
        .known("state_bytes", entry.standby.as_ref().map(|newest| newest.bytes))
        .and(
            entry
                .warm
                .as_ref()
                .map_or_else(Object::default, |account| Object::default().object("warm", json::warm(account))),
        )
        .with("words", words(entry))
}

/// A person has started a state.
pub fn promoted(promoted: &Promoted, settings: &Settings) {
    for warning in &promoted.warnings {
        put(Stream::Err, &format!("warning: {}\n", clean(warning)));
    }
    let fields = Object::default()
        .with("promoted", promoted.session.as_str())
        .with("pid", promoted.pid)
        .with("state_age_ms", promoted.age.as_millis() as u64);
    let age = promoted.age.as_secs_f64();
    let text = format!("{}: it runs here as process {}, as it was {age:.1} s ago\n", promoted.session, promoted.pid);
    result(settings, "promote", fields, &text);
}

/// A person has decided.
pub fn resolved(resolved: &Resolved, settings: &Settings) {
    for warning in &resolved.warnings {
        put(Stream::Err, &format!("warning: {warning}\n"));
    }
    if settings.json {
        let fields = Object::default().with("ok", true).with("exit", 0).with("verb", "resolve");
        let fields = fields.with("resolved", resolved.session.as_str()).with("target", resolved.target.as_str());
        put(Stream::Out, &Stamp::begin(SessionId::random()).line("result", fields));
    } else {
        put(Stream::Out, &format!("{}: {}\n", resolved.session, resolved.target));
    }
}
