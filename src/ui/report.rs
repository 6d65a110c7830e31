//! The report of a dump, pre-dump, restore or move for a person.

use super::style::clean;
use super::units::{bytes, count, time};
use crate::memory::lazy::Waits;
use crate::migration::cascade::{Moved, Stage};
use crate::migration::points::taking::Cost;
use crate::migration::report::{Became, CandidateReport};
use crate::migration::switchover::forecast::Forecast;
use crate::ops::hooks::{HookEnd, HookPoint, How};
use crate::ops::outcome::{KeptWarm, Outcome, State, Where};
use std::time::Duration;

/// Threads that a person is told of one by one.
const THREADS_NAMED: usize = 8;

/// A hook that has ended, in a few words.
pub fn hook(point: HookPoint, name: &str, HookEnd { took, how }: HookEnd) -> String {
    let how = match how {
        How::Exit(code) => format!("status {code}"),
        How::Signal(signal) => format!("signal {signal}"),
        How::TimedOut => "ended, as it took too long".to_owned(),
        How::NotRun => "could not be run".to_owned(),
    };
    format!("at {}: {name}: {how} after {}", point.name(), time(took))
}

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
    if let Some(mode @ ("post-copy" | "hybrid")) = outcome.mode {
        row("mode", mode.to_owned());
    }
    if let Some(downtime) = outcome.downtime {
        row("pause", format!("{}{}", time(downtime), parts(outcome)));
    }
    if let Some(expected) = outcome.expected_downtime {
        row("expected", format!("a pause of {}", time(expected)));
    }
    if let Some(forecast) = &outcome.forecast {
        row("expected", self::forecast(forecast));
    }
    if let Some(total) = outcome.total {
        row("total", format!("{}{}", time(total), rounds(outcome)));
    }
    if let Some(volume) = volume(outcome) {
        let to_another = matches!(&outcome.place, Where::Dest(host) if host != "local");
        row(if matches!(verb, "move" | "clone" | "switch") || to_another { "sent" } else { "size" }, volume);
    }
    let not_sent: Vec<_> = [(outcome.zero_pages, "zero"), (outcome.named_pages, "named by digest")]
        .into_iter()
        .filter_map(|(pages, why)| Some(format!("{} {why}", count(pages.filter(|pages| *pages > 0)?, "page"))))
        .collect();
    if !not_sent.is_empty() {
        row("not sent", not_sent.join(", "));
    }
    for (n, waits) in outcome.stalls.iter().take(THREADS_NAMED).enumerate() {
        row(if n == 0 { "waits" } else { "" }, stalls(waits));
    }
    if outcome.stalls.len() > THREADS_NAMED {
        row("", format!("{} further threads less than that", outcome.stalls.len() - THREADS_NAMED));
    }
    if let Some(cost) = &outcome.points {
        row("states", points(cost));
    }
    for (n, attempt) in outcome.attempts.iter().enumerate() {
        let dests = clean(&attempt.dests.join(", "));
        row(
            "attempt",
            format!("{}, to {dests}, failed after {}: {}", n + 1, time(attempt.took), clean(&attempt.failure)),
        );
    }
    if !outcome.via.is_empty() {
        row("through", clean(&outcome.via.join(", then ")));
    }
    for candidate in &outcome.candidates {
        row("to", candidate_line(candidate));
    }
    for stage in &outcome.stages {
        row("then", self::stage(stage));
    }
    outcome.kept_warm.iter().for_each(|kept| row("warm", kept_warm(kept)));
    if verb == "pre-dump" {
        row("session", outcome.session.to_string());
    }
    for note in &outcome.notes {
        text += &format!("{}\n", clean(note));
    }
    text
}

fn volume(outcome: &Outcome) -> Option<String> {
    match (outcome.bytes, outcome.pages) {
        (Some(b), Some(p)) => Some(format!("{}, {}", bytes(b), count(p, "page"))),
        (Some(b), None) => Some(bytes(b)),
        (None, Some(p)) => Some(count(p, "page")),
        (None, None) => None,
    }
}

/// What a move would cost, in a line.
pub fn forecast(forecast: &Forecast) -> String {
    let pause = match forecast.downtime {
        Some(downtime) => format!("a pause of {}", time(downtime)),
        None => "and then it would stay, as it writes too much".to_owned(),
    };
    format!("about {} in {}, {pause}", bytes(forecast.bytes), time(forecast.total))
}

/// One of several destinations.
fn candidate_line(candidate: &CandidateReport) -> String {
    let ready = candidate.ready_after.map(|after| format!(", ready {} after the stop", time(after)));
    let how = match &candidate.became {
        Became::Owner => "has the target".to_owned(),
        Became::Runs(pid) => {
            format!("runs clone {} as {pid}", clean(candidate.clone_id.as_deref().unwrap_or_default()))
        }
        Became::Stopped => "told to stop, has deleted what it held".to_owned(),
        Became::Untold => "not told to stop: deletes or parks what it holds when its lease ends".to_owned(),
        Became::Out(reason) => format!("left out: {}", clean(reason)),
    };
    let volume = format!("{}, {}", bytes(candidate.bytes_sent), count(candidate.rounds.into(), "round"));
    let via = Some(candidate.via.join(", then ")).filter(|via| !via.is_empty());
    let via = via.map(|via| format!(", by {}", clean(&via))).unwrap_or_default();
    format!("{}: {how} ({volume}{}{via})", clean(&candidate.name), ready.unwrap_or_default())
}

/// Those that stay up to date, in a line.
fn kept_warm(kept: &KeptWarm) -> String {
    let (host, dests, session) = (clean(&kept.host), clean(&kept.dests.join(", ")), clean(&kept.session));
    format!("{dests}, from {host} by session {session}: migrate status, switch and cancel there")
}

/// A stage of a cascade, in a line.
pub fn stage(stage: &Stage) -> String {
    let from = stage.from.as_ref().map(|from| format!(" by {}", clean(from))).unwrap_or_default();
    let Some(Moved { to, pid, downtime_us, total_us }) = &stage.moved else {
        let (to, session) = (clean(&stage.dests.join(", ")), clean(&stage.session));
        return format!("stage {}: moved on{from} to {to}, session {session} there", stage.number);
    };
    let pid = pid.map(|pid| format!(" as {pid}")).unwrap_or_default();
    let us = |us: &u64| time(Duration::from_micros(*us));
    let pause = downtime_us.as_ref().map(|pause| format!(", a pause of {}", us(pause))).unwrap_or_default();
    let total = total_us.as_ref().map(|total| format!(", {} in all", us(total))).unwrap_or_default();
    format!("stage {}: on {}{pid}{from}{pause}{total}", stage.number, clean(to))
}

/// States of the target that came back while it lacked memory.
fn points(cost: &Cost) -> String {
    let (number, paused, longest) = (count(cost.points, "state"), time(cost.paused), time(cost.longest));
    let mut text = format!("{number} came back, {}; paused {paused} for them, at most {longest}", bytes(cost.bytes));
    if let (failed @ 1.., Some(why)) = (cost.failed.0, cost.failed.1.as_deref()) {
        text += &format!("; {failed} could not be taken: {}", clean(why));
    }
    text
}

fn headline(verb: &str, target: Option<&str>, outcome: &Outcome) -> String {
    let name = match (outcome.target_pid, &outcome.target_comm) {
        (Some(pid), Some(comm)) => format!("{pid} ({})", clean(comm)),
        (Some(pid), None) => pid.to_string(),
        (None, _) => target.map(clean).unwrap_or_default(),
    };
    if outcome.place == Where::Source && matches!(verb, "dump" | "move" | "clone") {
        // A dry run: a real one leaves it elsewhere, nowhere, or on both sides.
        return format!("nothing is in the way of a {verb} of {name}");
    }
    let done = match verb {
        "dump" => "dumped",
        "pre-dump" => "memory saved of",
        "restore" => "restored",
        "move" | "switch" => "moved",
        "clone" => "cloned",
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

/// How often a thread has waited for pages, and how long.
fn stalls(waits: &Waits) -> String {
    let histogram = &waits.histogram;
    let us = |us: u64| time(Duration::from_micros(us));
    let share = |percent| histogram.shorter(percent).map(|limit| format!(", {percent} % below {}", time(limit)));
    let times = count(histogram.count, "page");
    let shares: String = [50, 99].into_iter().filter_map(share).collect();
    let (total, longest) = (us(histogram.total_us), us(histogram.longest_us));
    format!("{}: {total} for {times}, longest {longest}{shares}", who(waits))
}

/// A thread that has waited, in words.
pub(super) fn who(waits: &Waits) -> String {
    match (waits.process, waits.thread) {
        (Some(process), thread) => format!("process {process} thread {thread}"),
        (None, 0) => "further threads".to_owned(),
        (None, thread) => format!("thread {thread} of a process forked meanwhile"),
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

    #[test]
    fn who_waits_is_told() {
        use crate::memory::lazy::stalls::Histogram;
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        let mut histogram = Histogram { count: 3, total_us: 1100, longest_us: 900, ..Histogram::default() };
        (histogram.classes[1], histogram.classes[4]) = (2, 1);
        let waits = |thread| Waits { process: Some(7), thread, histogram };
        outcome.stalls = (0..10).map(waits).collect();
        let text = text("move", None, &outcome);
        let line = "  waits     process 7 thread 0: 1.10 ms for 3 pages, longest 900 us, 50 % below 128 us, 99 % below 1.02 ms\n";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.matches("process 7").count(), THREADS_NAMED);
        assert!(text.contains("2 further threads"), "{text}");
        assert_eq!(who(&Waits { process: None, thread: 0, histogram }), "further threads");
    }

    #[test]
    fn what_was_not_sent_is_told() {
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        outcome.named_pages = Some(7);
        let named = text("move", None, &outcome);
        assert!(named.ends_with("\n  not sent  7 pages named by digest\n"), "{named}");
        outcome.zero_pages = Some(1);
        let both = text("move", None, &outcome);
        assert!(both.ends_with("\n  not sent  1 page zero, 7 pages named by digest\n"), "{both}");
    }

    #[test]
    fn each_of_several_destinations_has_a_line() {
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        let ready_after = Some(Duration::from_millis(2));
        let one = CandidateReport {
            name: "b".into(),
            became: Became::Owner,
            clone_id: None,
            rounds: 3,
            bytes_sent: 1 << 20,
            ready_after,
            via: Vec::new(),
        };
        let out = Became::Out("it cannot".into());
        let other = CandidateReport {
            name: "c".into(),
            became: out,
            clone_id: None,
            rounds: 1,
            bytes_sent: 7,
            ready_after: None,
            via: vec!["b".into(), "d".into()],
        };
        outcome.candidates = vec![one, other];
        let text = text("move", None, &outcome);
        let lines = "  to        b: has the target (1.00 MiB, 3 rounds, ready 2.00 ms after the stop)\n  to        c: left out: it cannot (7 B, 1 round, by b, then d)\n";
        assert!(text.ends_with(lines), "{text}");
    }

    #[test]
    fn a_dry_run_is_no_dump() {
        let outcome = Outcome::new(SessionId::random(), State::Running, Where::Source);
        assert_eq!(text("dump", Some("7"), &outcome), "nothing is in the way of a dump of 7\n");
    }

    #[test]
    fn what_is_expected_is_told() {
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Source);
        let forecast =
            Forecast { bytes: 3 << 20, total: Duration::from_secs(2), downtime: Some(Duration::from_millis(7)) };
        outcome.forecast = Some(forecast);
        let said = text("move", Some("7"), &outcome);
        assert!(said.ends_with("\n  expected  about 3.00 MiB in 2.00 s, a pause of 7.00 ms\n"), "{said}");
        outcome.forecast = Some(Forecast { downtime: None, ..forecast });
        assert!(text("move", Some("7"), &outcome).contains("it would stay"));
        let mut moved = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        moved.downtime = Some(Duration::from_millis(8));
        moved.expected_downtime = Some(Duration::from_millis(7));
        let said = text("move", Some("7"), &moved);
        assert!(said.ends_with("\n  pause     8.00 ms\n  expected  a pause of 7.00 ms\n"), "{said}");
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
        (outcome.zero_pages, outcome.named_pages) = (Some(0), Some(0));
        outcome.notes = vec!["note".into()];
        assert_eq!(
            text("move", None, &outcome),
            "moved 7 (redis): runs on b as 8\n  pause     900 us (freeze 300 us, network 600 us)\n  sent      1.00 MiB\nnote\n"
        );
    }
}
