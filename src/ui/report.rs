//! The report of a dump, pre-dump, restore or move for a person.

use super::style::clean;
use super::units::{bytes, count, time};
use crate::ops::outcome::{Outcome, State, Where};

/// The report: what happened in one line, then the numbers that are known.
pub fn text(verb: &str, target: Option<&str>, outcome: &Outcome) -> String {
    let mut text = format!("{}\n", headline(verb, target, outcome));
    let mut row = |name: &str, value: String| text += &format!("  {name:<10}{value}\n");
    let size =
        [outcome.processes.map(|n| count(n.into(), "process")), outcome.threads.map(|n| count(n.into(), "thread"))];
    let size: Vec<_> = size.into_iter().flatten().collect();
    if !size.is_empty() {
        row("tree", size.join(", "));
    }
    if let Some(downtime) = outcome.downtime {
        row("pause", format!("{}{}", time(downtime), parts(outcome)));
    }
    if let Some(total) = outcome.total {
        row("total", format!("{}{}", time(total), rounds(outcome)));
    }
    let volume = match (outcome.bytes, outcome.pages) {
        (Some(b), Some(p)) => Some(format!("{}, {}", bytes(b), count(p, "page"))),
        (Some(b), None) => Some(bytes(b)),
        (None, Some(p)) => Some(count(p, "page")),
        (None, None) => None,
    };
    if let Some(volume) = volume {
        row(if verb == "move" { "sent" } else { "size" }, volume);
    }
    if verb == "pre-dump" {
        row("session", outcome.session.to_string());
    }
    for note in &outcome.notes {
        text += &format!("{}\n", clean(note));
    }
    text
}

fn headline(verb: &str, target: Option<&str>, outcome: &Outcome) -> String {
    let name = match (outcome.target_pid, &outcome.target_comm) {
        (Some(pid), Some(comm)) => format!("{pid} ({})", clean(comm)),
        (Some(pid), None) => pid.to_string(),
        (None, _) => target.map(clean).unwrap_or_default(),
    };
    if outcome.place == Where::Source && matches!(verb, "dump" | "move") {
        // A dry run: a real one leaves it elsewhere, nowhere, or on both sides.
        return format!("nothing is in the way of a {verb} of {name}");
    }
    let done = match verb {
        "dump" => "dumped",
        "pre-dump" => "memory saved of",
        "restore" => "restored",
        "move" => "moved",
        other => other,
    };
    let pid = outcome.pid.map(|pid| format!(" as {pid}")).unwrap_or_default();
    let fate = match (outcome.state, &outcome.place) {
        (State::Running, Where::Dest(host)) => format!("runs on {}{pid}", clean(host)),
        (State::Running, Where::Both) => "runs on both sides".to_owned(),
        (State::Running, _) => format!("runs{pid}"),
        (State::Stopped, Where::Dest(host)) => format!("stopped on {}{pid}", clean(host)),
        (State::Stopped, _) => format!("stopped{pid}"),
        (State::Ended, _) => "has ended".to_owned(),
        (State::Held, _) => "held frozen".to_owned(),
        (State::InDoubt, _) => "in doubt".to_owned(),
    };
    match name.is_empty() {
        true => format!("{done}: {fate}"),
        false => format!("{done} {name}: {fate}"),
    }
}

fn parts(outcome: &Outcome) -> String {
    let parts: Vec<_> = outcome.downtime_parts.iter().map(|(name, took)| format!("{name} {}", time(*took))).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(" ({})", parts.join(", ")),
    }
}

fn rounds(outcome: &Outcome) -> String {
    match (outcome.rounds.len() as u64, outcome.exit_condition) {
        (0, _) => String::new(),
        (n, None) => format!(" in {}", count(n, "round")),
        (n, Some(condition)) => format!(" in {}, ended by {condition}", count(n, "round")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::words::SessionId;
    use std::time::Duration;

    #[test]
    fn a_dry_run_is_no_dump() {
        let outcome = Outcome::new(SessionId::random(), State::Running, Where::Source);
        assert_eq!(text("dump", Some("7"), &outcome), "nothing is in the way of a dump of 7\n");
    }

    #[test]
    fn known_numbers_only() {
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        assert_eq!(text("move", Some("7"), &outcome), "moved 7: runs on b\n");
        assert_eq!(text("restore", None, &outcome), "restored: runs on b\n");
        let session = format!("memory saved of 7: runs on b\n  session   {}\n", outcome.session);
        assert_eq!(text("pre-dump", Some("7"), &outcome), session);
        outcome.target_pid = Some(7);
        outcome.target_comm = Some("redis".into());
        outcome.pid = Some(8);
        outcome.downtime = Some(Duration::from_micros(900));
        outcome.downtime_parts = vec![("freeze", Duration::from_micros(300)), ("network", Duration::from_micros(600))];
        outcome.bytes = Some(1 << 20);
        outcome.notes = vec!["note".into()];
        assert_eq!(
            text("move", None, &outcome),
            "moved 7 (redis): runs on b as 8\n  pause     900 us (freeze 300 us, network 600 us)\n  sent      1.00 MiB\nnote\n"
        );
    }
}
