//! The report of a move as one page without anything outside of it: what happened, the timeline, rounds, and where the
//! pause went.

use super::report;
use super::units::{bytes, count, time};
use crate::failure::Failure;
use crate::memory::lazy::Waits;
use crate::memory::lazy::stalls::{CLASSES, class_limit};
use crate::ops::Event;
use crate::ops::evacuate::{Evacuation, Fate};
use crate::ops::outcome::Outcome;
use std::fmt::Write;
use std::time::Duration;

/// What a session has shown so far, for the page at its end.
#[derive(Debug, Default)]
pub struct Record {
    /// Each event with the time since the beginning; progress is left out.
    events: Vec<(Duration, Event)>,
}

/// Events that are kept: a warm-up has rounds without end.
const EVENTS_MAX: usize = 10_000;

/// Width of the timeline, pixels.
const WIDTH: f64 = 900.0;

impl Record {
    /// Notes an event.
    pub fn note(&mut self, at: Duration, event: &Event) {
        if self.events.len() < EVENTS_MAX && !matches!(event, Event::Progress { .. }) {
            self.events.push((at, event.clone()));
        }
    }

    /// The page. `headline` is what a person would be told; `now` is how long it took.
    pub fn page(&self, verb: &str, target: Option<&str>, result: &Result<Outcome, Failure>, now: Duration) -> String {
        let mut page = begun(&format!("migrate {verb} {}", target.unwrap_or_default()));
        match result {
            Ok(outcome) => {
                let text = report::text(verb, target, outcome);
                let _ = writeln!(page, "<pre class=\"ok\">{}</pre>", escaped(&text));
            }
            Err(failure) => page += &failed(failure),
        }
        page += &self.timeline(now);
        page += &self.rounds();
        if let Ok(outcome) = result {
            page += &budget(outcome);
            page += &stalls(&outcome.stalls);
        }
        page += &self.log();
        page += "</body></html>\n";
        page
    }

    /// Rounds as bars over the whole time, the pause in another colour.
    fn timeline(&self, now: Duration) -> String {
        let x = |at: Duration| WIDTH * at.as_secs_f64() / now.as_secs_f64().max(1e-9);
        let mut bars = String::new();
        let mut bar = |class: &str, from: Duration, to: Duration, title: String| {
            let (left, width) = (x(from), (x(to) - x(from)).max(1.0));
            let _ = writeln!(
                bars,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"8\" width=\"{width:.1}\" height=\"28\"><title>{}</title></rect>",
                escaped(&title)
            );
        };
        let mut frozen = None;
        for (at, event) in &self.events {
            match event {
                Event::Round { number, took, bytes: sent, .. } => {
                    bar(
                        "round",
                        at.saturating_sub(*took),
                        *at,
                        format!("round {number}: {} in {}", bytes(*sent), time(*took)),
                    );
                }
                Event::Frozen => frozen = Some(*at),
                Event::Switched { downtime } => {
                    let from = frozen.unwrap_or(at.saturating_sub(*downtime)).min(at.saturating_sub(*downtime));
                    bar("pause", from, *at, format!("pause: {}", time(*downtime)));
                }
                _ => {}
            }
        }
        format!(
            "<h2>Timeline</h2>\n<svg width=\"{WIDTH}\" height=\"60\" role=\"img\" aria-label=\"timeline\">\n{bars}<text x=\"0\" y=\"54\">0</text><text x=\"{WIDTH}\" y=\"54\" text-anchor=\"end\">{}</text></svg>\n",
            time(now)
        )
    }

    fn rounds(&self) -> String {
        let mut rows = String::new();
        for (_, event) in &self.events {
            if let Event::Round { number, pages, bytes: sent, took, dirty_bytes_per_s, expected_pause } = event {
                let rate = (*sent as f64 / took.as_secs_f64().max(1e-9)) as u64;
                let _ = writeln!(
                    rows,
                    "<tr><td>{number}</td><td>{pages}</td><td>{}</td><td>{}</td><td>{}/s</td><td>{}/s</td><td>{}</td></tr>",
                    bytes(*sent),
                    time(*took),
                    bytes(rate),
                    bytes(*dirty_bytes_per_s),
                    expected_pause.map(time).unwrap_or_default()
                );
            }
        }
        if rows.is_empty() {
            return String::new();
        }
        format!(
            "<h2>Rounds</h2>\n<table><tr><th>round</th><th>pages</th><th>sent</th><th>time</th><th>rate</th><th>written meanwhile</th><th>pause expected</th></tr>\n{rows}</table>\n"
        )
    }

    fn log(&self) -> String {
        let mut rows = String::new();
        for (at, event) in &self.events {
            let text = match event {
                Event::Preflight { blockers, tasks, memory_bytes } => {
                    format!(
                        "preflight: {}, {}, {}",
                        count((*tasks).into(), "task"),
                        bytes(*memory_bytes),
                        count(blockers.len() as u64, "blocker")
                    )
                }
                Event::Round { number, .. } => format!("round {number} done"),
                Event::Frozen => "frozen".to_owned(),
                Event::Switched { downtime } => format!("switched after a pause of {}", time(*downtime)),
                Event::Candidate { dest, stage, rounds, bytes: sent } => {
                    format!("{dest}: {stage}, {}, {}", count((*rounds).into(), "round"), bytes(*sent))
                }
                Event::Hook { point, name, ended: Some(ended) } => {
                    format!("hook {}", report::hook(*point, name, *ended))
                }
                Event::Stage(stage) => super::report::stage(stage),
                Event::Warning(text) => format!("warning: {text}"),
                Event::Progress { .. } | Event::Hook { ended: None, .. } => continue,
            };
            let _ = writeln!(rows, "<tr><td>{}</td><td>{}</td></tr>", time(*at), escaped(&text));
        }
        format!("<h2>Events</h2>\n<table>{rows}</table>\n")
    }
}

/// The beginning of a page, up to its heading.
fn begun(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{0}</h1>\n",
        escaped(title)
    )
}

/// The page of an evacuation: what a person would be told, and when each tree moved.
pub fn evacuation(result: &Result<(Evacuation, String), Failure>) -> String {
    let mut page = begun("migrate evacuate");
    match result {
        Ok((evacuation, text)) => {
            let class = if evacuation.exit_code() == 0 { "ok" } else { "failed" };
            let _ = writeln!(page, "<pre class=\"{class}\">{}</pre>", escaped(text));
            page += &moves(evacuation);
        }
        Err(failure) => page += &failed(failure),
    }
    page + "</body></html>\n"
}

/// A bar for each move.
fn moves(evacuation: &Evacuation) -> String {
    let x = |at: Duration| WIDTH * at.as_secs_f64() / evacuation.total.as_secs_f64().max(1e-9);
    let (mut bars, mut top) = (String::new(), 8);
    for tree in &evacuation.trees {
        let (Some(began), Some(took)) = (tree.began, tree.took) else { continue };
        let (class, what) = match &tree.fate {
            Fate::Moved { dest, .. } => ("round", format!("to {dest}")),
            Fate::Stayed(_) => ("pause", "stays".to_owned()),
            Fate::Planned { .. } | Fate::Gone(_) => continue,
        };
        let title = escaped(&format!("{} {} {what} in {}", tree.target, tree.name, time(took)));
        let _ = writeln!(
            bars,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"16\"><title>{title}</title></rect><text x=\"4\" y=\"{}\">{title}</text>",
            x(began),
            x(took).max(1.0),
            top + 13
        );
        top += 22;
    }
    format!(
        "<h2>Moves</h2>\n<svg width=\"{WIDTH}\" height=\"{top}\" role=\"img\" aria-label=\"moves\">\n{bars}</svg>\n"
    )
}

fn failed(failure: &Failure) -> String {
    let mut text = format!("error: {}\n", failure.what);
    for cause in &failure.causes {
        text += &format!("  {cause}\n");
    }
    for blocker in &failure.blockers {
        text += &format!("  {} {}: {}; {}\n", blocker.code, blocker.object, blocker.reason, blocker.remedy);
    }
    if let Some(hint) = &failure.hint {
        text += &format!("hint: {hint}\n");
    }
    format!("<pre class=\"failed\">{}</pre>\n", escaped(&text))
}

/// The pause in its parts; what no part accounts for is a part of its own, so that they add up.
fn budget(outcome: &Outcome) -> String {
    let Some(downtime) = outcome.downtime else { return String::new() };
    let mut parts = outcome.downtime_parts.clone();
    let known: Duration = parts.iter().map(|(_, took)| *took).sum();
    let rest = downtime.saturating_sub(known);
    if !rest.is_zero() {
        parts.push(("other", rest));
    }
    let whole = downtime.max(known).as_secs_f64().max(1e-9);
    let mut rows = String::new();
    for (name, took) in &parts {
        let width = 400.0 * took.as_secs_f64() / whole;
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td>{}</td><td><div class=\"bar\" style=\"width:{width:.1}px\"></div></td></tr>",
            escaped(name),
            time(*took)
        );
    }
    let sum = parts.iter().map(|(_, took)| *took).sum();
    let expected = outcome.expected_downtime.map(|expected| format!("<p>expected: {}</p>\n", time(expected)));
    format!(
        "<h2>Downtime budget</h2>\n<table>{rows}<tr><th>pause</th><th>{}</th><th>parts: {}</th></tr></table>\n{}",
        time(downtime),
        time(sum),
        expected.unwrap_or_default()
    )
}

/// Who has waited for pages: a histogram for each thread.
fn stalls(all: &[Waits]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let used = |class: &usize| all.iter().any(|waits| waits.histogram.classes[*class] > 0);
    let classes: Vec<usize> = (0..CLASSES).filter(used).collect();
    let name = |class: usize| match class_limit(class) {
        Some(limit) => format!("below {}", time(limit)),
        None => "longer".to_owned(),
    };
    let heads: String = classes.iter().map(|class| format!("<th>{}</th>", name(*class))).collect();
    let mut rows = String::new();
    for waits in all {
        let histogram = &waits.histogram;
        let us = |us: u64| time(Duration::from_micros(us));
        let counts: String = classes.iter().map(|class| format!("<td>{}</td>", histogram.classes[*class])).collect();
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{counts}</tr>",
            escaped(&report::who(waits)),
            histogram.count,
            us(histogram.total_us),
            us(histogram.longest_us)
        );
    }
    format!(
        "<h2>Waits for pages</h2>\n<table><tr><th>thread</th><th>waits</th><th>all</th><th>longest</th>{heads}</tr>\n{rows}</table>\n"
    )
}

/// Text that is no markup: names come from the target.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "body{font:15px/1.4 system-ui,sans-serif;max-width:960px;margin:2em auto;color:#222}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:1.6em}table{border-collapse:collapse}\
td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}pre{padding:.8em;background:#f4f4f4}\
pre.failed{background:#fde8e8}svg{background:#f4f4f4}svg text{font-size:12px}.round{fill:#4a7fb5}.round:hover{fill:#2d5c8a}\
.pause{fill:#c0392b}.bar{height:.9em;background:#c0392b}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::lazy::stalls::Histogram;
    use crate::ops::outcome::{State, Where};
    use crate::ops::words::SessionId;

    fn record() -> Record {
        let ms = Duration::from_millis;
        let mut record = Record::default();
        let round = Event::Round {
            number: 1,
            pages: 256,
            bytes: 1 << 20,
            took: ms(10),
            dirty_bytes_per_s: 4096,
            expected_pause: Some(ms(7)),
        };
        record.note(ms(12), &round);
        record.note(ms(20), &Event::Frozen);
        record.note(ms(26), &Event::Switched { downtime: ms(6) });
        record.note(ms(27), &Event::Warning("<script>alert('x')</script>".into()));
        record
    }

    #[test]
    fn nothing_of_the_target_becomes_markup() {
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b<i>".into()));
        outcome.target_comm = Some("a&\"<b>\u{1b}[31m".into());
        outcome.target_pid = Some(7);
        let page = record().page("move", Some("7<"), &Ok(outcome), Duration::from_millis(30));
        assert!(
            !page.contains("<script") && !page.contains("<i>") && !page.contains("<b>") && !page.contains('\u{1b}')
        );
        assert!(page.contains("&lt;script&gt;"));
        let failure = Failure::new("no <way>").hint("try & see");
        let page = record().page("move", None, &Err(failure), Duration::from_millis(30));
        assert!(page.contains("no &lt;way&gt;") && page.contains("try &amp; see"));
    }

    #[test]
    fn parts_of_the_pause_add_up() {
        let mut outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        outcome.downtime = Some(Duration::from_millis(6));
        outcome.downtime_parts = vec![("freeze", Duration::from_millis(1)), ("rebuild", Duration::from_millis(4))];
        let page = budget(&outcome);
        assert!(page.contains("<td>other</td><td>1.00 ms</td>"), "{page}");
        assert!(page.contains("<th>6.00 ms</th><th>parts: 6.00 ms</th>"), "{page}");
    }

    #[test]
    fn every_wait_is_in_a_column() {
        let mut histogram = Histogram { count: 5, total_us: 9000, longest_us: 5000, ..Histogram::default() };
        (histogram.classes[0], histogram.classes[CLASSES - 1]) = (4, 1);
        let page = stalls(&[Waits { process: Some(7), thread: 9, histogram }]);
        assert!(
            page.contains("<th>below 64.0 us</th><th>longer</th>")
                || page.contains("<th>below 64 us</th><th>longer</th>"),
            "{page}"
        );
        assert!(page.contains("<td>process 7 thread 9</td><td>5</td>") && page.contains("<td>4</td><td>1</td></tr>"));
        assert_eq!(stalls(&[]), "");
    }

    #[test]
    fn every_round_is_a_row_and_a_bar() {
        let outcome = Outcome::new(SessionId::random(), State::Running, Where::Dest("b".into()));
        let page = record().page("move", Some("7"), &Ok(outcome), Duration::from_millis(30));
        assert!(
            page.contains(
                "<td>1</td><td>256</td><td>1.00 MiB</td><td>10.0 ms</td><td>100 MiB/s</td><td>4.00 KiB/s</td>"
            )
        );
        assert_eq!(page.matches("class=\"round\"").count(), 1);
        assert_eq!(page.matches("class=\"pause\"").count(), 1);
        assert!(!page.contains("http"), "nothing from outside");
    }
}
