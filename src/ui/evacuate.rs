//! An evacuation as it is shown: a line for each tree that moves, what has become of each, and why some stay.

use super::lines::Lines;
use super::session::Session;
use super::style::clean;
use super::units::{bytes, count, time};
use super::{Settings, Stream, failure, html, json, put, table};
use crate::blocker::Blocker;
use crate::failure::Failure;
use crate::ops::evacuate::{Evacuation, Far, Fate, LeftOut, Moved, Notice, Shows, TreeReport};
use crate::ops::{Event, Events};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// A tree that moves.
#[derive(Debug, Default)]
struct Standing {
    /// `4242 (redis) -> b`.
    head: String,
    rounds: u32,
    sent: (u64, u64),
    expected_pause: Option<Duration>,
    frozen: bool,
    downtime: Option<Duration>,
}

impl Standing {
    fn text(&self) -> String {
        let share = match self.sent {
            (0, 0) => String::new(),
            (done, 0) => format!(", {}", bytes(done)),
            (done, total) => format!(", {} of {}", bytes(done), bytes(total)),
        };
        let rounds =
            if self.rounds > 0 { format!(", after {}", count(self.rounds.into(), "round")) } else { String::new() };
        let phase = match (self.downtime, self.expected_pause) {
            (Some(pause), _) => format!(", runs after a pause of {}", time(pause)),
            _ if self.frozen => ", stands still".to_owned(),
            (None, Some(pause)) => format!(", a pause of {}", time(pause)),
            (None, None) => String::new(),
        };
        format!("{}{share}{rounds}{phase}", self.head)
    }
}

/// What is shown of an evacuation while it goes on, and at its end.
pub struct View {
    session: Session,
    lines: Lines,
    moving: BTreeMap<String, Standing>,
    page: Option<PathBuf>,
}

impl View {
    /// Begins. `page`: where the page at the end goes (`--report`).
    pub fn begin(session: Session, page: Option<PathBuf>) -> Self {
        let lines = Lines::new(session.settings());
        Self { session, lines, moving: BTreeMap::new(), page }
    }

    /// How moves are shown.
    pub fn shows(&self) -> Shows {
        let settings = *self.session.settings();
        // The whole has a line for each, so that of their own reports those are left that somebody has asked for.
        Shows { settings: settings.to_hand_on(), ends: settings.json || settings.verbose > 0 }
    }

    /// Something happens.
    pub fn notice(&mut self, notice: Notice<'_>) {
        match notice {
            Notice::Warning(text) => self.lines.around(|| self.session.event(Event::Warning(text))),
            Notice::Planning(trees, hosts) => {
                let what = format!("looking at {} and {}", count(trees as u64, "tree"), count(hosts as u64, "host"));
                self.lines.say(&what);
            }
            Notice::Begins { target, name, dest } => {
                let standing = Standing {
                    head: format!("{} -> {dest}", called(&target.to_string(), name)),
                    ..Standing::default()
                };
                self.lines.say(&format!("{}: begins", standing.head));
                self.lines.show(&target.to_string(), &standing.text());
                self.moving.insert(target.to_string(), standing);
            }
            Notice::Far(target, far) => self.far(&target.to_string(), far),
            Notice::Said(target, out, text) => self.said(&target.to_string(), out, &text),
            Notice::Ends(tree) => {
                self.moving.remove(&tree.target.to_string());
                self.lines.end(&tree.target.to_string());
                self.lines.say(&end(tree));
            }
        }
    }

    fn far(&mut self, target: &str, far: Far) {
        let Some(standing) = self.moving.get_mut(target) else { return };
        match far {
            Far::Sent { done, total } => standing.sent = (done, total),
            Far::Round { number, expected_pause } => {
                (standing.rounds, standing.expected_pause) = (number, expected_pause)
            }
            Far::Frozen => standing.frozen = true,
            Far::Switched { downtime } => standing.downtime = Some(downtime),
        }
        let text = standing.text();
        self.lines.show(target, &text);
    }

    /// What a move has to say: events as they are, and to a person with its name in front.
    fn said(&self, target: &str, out: bool, text: &str) {
        if self.session.settings().json {
            put(if out { Stream::Out } else { Stream::Err }, text);
        } else {
            let named: String = text.lines().map(|line| format!("{target}: {line}\n")).collect();
            self.lines.around(|| put(Stream::Err, &named));
        }
    }

    /// The end; the exit code.
    pub fn end(self, result: Result<Evacuation, Failure>) -> u8 {
        let result = result.map(|evacuation| {
            let text = text(&evacuation, self.session.settings());
            (evacuation, text)
        });
        if let Some(path) = &self.page
            && let Err(error) = std::fs::write(path, html::evacuation(&result))
        {
            // What it tells of has happened all the same.
            put(Stream::Err, &format!("warning: the report {} could not be written: {error}\n", path.display()));
        }
        let exit = result.as_ref().map_or(0, |(evacuation, _)| evacuation.exit_code());
        self.session.end_with((exit, None), result.map(|(evacuation, text)| (json::evacuation(&evacuation), text)))
    }
}

fn called(target: &str, name: &str) -> String {
    if name.is_empty() { target.to_owned() } else { format!("{target} ({})", clean(name)) }
}

/// One line: what has become of a tree.
fn end(tree: &TreeReport) -> String {
    let head = called(&tree.target.to_string(), &tree.name);
    match &tree.fate {
        Fate::Planned { dest, .. } => format!("{head} -> {dest}"),
        Fate::Moved { dest, moved } => {
            let took = tree.took.map(|took| format!(" in {}", time(took))).unwrap_or_default();
            let pause = moved.downtime.map(|pause| format!(", a pause of {}", time(pause))).unwrap_or_default();
            let sent = moved.bytes.map(|sent| format!(", {} sent", bytes(sent))).unwrap_or_default();
            let spared = spared(moved.named_pages.unwrap_or(0));
            format!("{head} -> {dest}: moved{took}{pause}{sent}{spared}")
        }
        Fate::Gone(Some(dest)) => format!("{head}: had gone to {dest} before"),
        Fate::Gone(None) => format!("{head}: has ended by itself"),
        Fate::Stayed(failure) => format!("{head}: stays: {}", reason(failure)),
    }
}

fn reason(failure: &Failure) -> String {
    let blocker = failure.blockers.first().map(|one| format!("{} {}: {}", one.code, one.object, one.reason));
    let parts = std::iter::once(failure.what.clone()).chain(failure.causes.clone()).chain(blocker);
    clean(&parts.collect::<Vec<_>>().join(": "))
}

/// The report.
fn text(evacuation: &Evacuation, settings: &Settings) -> String {
    let coloured = settings.coloured(Stream::Out);
    let mut text = format!("{}\n", headline(evacuation));
    let rows: Vec<_> = evacuation.trees.iter().map(row).collect();
    if !rows.is_empty() {
        let memory = if evacuation.dry_run { "BYTES" } else { "SENT" };
        text += &table::lay_out(["TREE", "NAME", "STATE", "HOST", "PID", "PAUSE", memory, "TIME"], &rows, coloured);
    }
    for tree in &evacuation.trees {
        if let Fate::Moved { moved, .. } = &tree.fate {
            moved.notes.iter().for_each(|note| text += &format!("{}: {}\n", tree.target, clean(note)));
        }
    }
    for (tree, failure) in evacuation.stayed() {
        text += &format!("\n{}\n", end(tree));
        if let Some(hint) = &failure.hint {
            text += &format!("hint: {}\n", clean(hint));
        }
        text += &format!("target: {}\n", clean(&failure.target.to_string()));
    }
    let mut seen = BTreeSet::new();
    let blockers = evacuation.stayed().flat_map(|(_, failure)| failure.blockers.iter());
    let blockers: Vec<Blocker> =
        blockers.filter(|one| seen.insert((one.code, one.object.as_str(), one.reason.as_str()))).cloned().collect();
    if !blockers.is_empty() {
        text += &format!("\n{}", failure::blockers(&blockers, coloured));
    }
    text + &left_out(&evacuation.left_out) + &way_back(evacuation)
}

fn headline(evacuation: &Evacuation) -> String {
    let all = count(evacuation.trees.len() as u64, "tree");
    let number = |is: &dyn Fn(&Fate) -> bool| evacuation.trees.iter().filter(|tree| is(&tree.fate)).count();
    if evacuation.dry_run {
        let planned = number(&|fate| matches!(fate, Fate::Planned { .. }));
        let expected = evacuation.expected.map(|expected| format!(", in about {}", time(expected))).unwrap_or_default();
        return format!("{planned} of {all} would move{expected}");
    }
    let moved = number(&|fate| matches!(fate, Fate::Moved { .. }));
    let gone = match number(&|fate| matches!(fate, Fate::Gone(Some(_)))) {
        0 => String::new(),
        gone => format!(", {gone} had gone before"),
    };
    let (total, sent) = (time(evacuation.total), bytes(evacuation.bytes()));
    let spared = spared(evacuation.named_pages());
    format!("{moved} of {all} moved in {total}, {sent} sent{spared}{gone}")
}

/// What did not travel, as the destination has had it before.
fn spared(named_pages: u64) -> String {
    if named_pages > 0 { format!(", {} named by digest", count(named_pages, "page")) } else { String::new() }
}

fn row(tree: &TreeReport) -> [String; 8] {
    let known = |value: Option<String>| value.unwrap_or_default();
    let [target, name] = [tree.target.to_string(), tree.name.clone()];
    let (state, host, pid, pause, volume, took) = match &tree.fate {
        Fate::Planned { dest, forecast } => {
            let pause = forecast.and_then(|cost| cost.downtime).map(time);
            let volume = forecast.map(|cost| bytes(cost.bytes));
            ("would move", dest.to_string(), None, pause, volume, forecast.map(|cost| time(cost.total)))
        }
        Fate::Moved { dest, moved: Moved { pid, downtime, bytes: sent, .. } } => {
            let (pause, sent) = (downtime.map(time), sent.map(bytes));
            ("moved", dest.to_string(), pid.map(|pid| pid.to_string()), pause, sent, tree.took.map(time))
        }
        Fate::Gone(dest) => {
            let state = if dest.is_some() { "had gone" } else { "has ended" };
            (state, known(dest.clone()), None, None, None, None)
        }
        Fate::Stayed(_) => ("stays", String::new(), None, None, None, None),
    };
    [target, name, state.to_owned(), host, known(pid), known(pause), known(volume), known(took)]
}

/// What was not meant, in a line for each reason.
fn left_out(all: &[LeftOut]) -> String {
    let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for left in all {
        let name = if left.target.to_string().contains(&left.name) { "" } else { &left.name };
        by.entry(left.why).or_default().push(called(&left.target.to_string(), name));
    }
    let lines: String = by.iter().map(|(why, names)| format!("left out, as {why}: {}\n", names.join(", "))).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// How what has moved comes back from each host.
fn way_back(evacuation: &Evacuation) -> String {
    let mut by: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for tree in &evacuation.trees {
        if let Fate::Moved { dest, moved: Moved { pid: Some(pid), .. } } = &tree.fate {
            by.entry(dest.to_string()).or_default().push(pid.to_string());
        }
    }
    let line = |(dest, pids): (&String, &Vec<String>)| {
        format!("back from {dest}: there, migrate evacuate {} --to THIS-HOST\n", pids.join(" "))
    };
    let lines: String = by.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocker::codes;
    use crate::failure::TargetState;
    use crate::image::Pid;
    use crate::ops::words::{SessionId, Target};
    use crate::ui::Color;

    fn tree(pid: i32, name: &str, fate: Fate) -> TreeReport {
        TreeReport {
            target: Target::Pid(Pid(pid)),
            name: name.to_owned(),
            memory_bytes: Some(1 << 20),
            session: None,
            began: Some(Duration::from_secs(1)),
            took: Some(Duration::from_secs(2)),
            fate,
        }
    }

    fn sample() -> Evacuation {
        let moved = Moved {
            pid: Some(70),
            mode: Some("pre-copy".to_owned()),
            downtime: Some(Duration::from_millis(8)),
            bytes: Some(2 << 20),
            named_pages: Some(7),
            forecast: None,
            notes: Vec::new(),
        };
        let blocked =
            Failure::blocked("9 cannot be moved", vec![Blocker::new(codes::IO_URING, "pid 9 fd 3").remedy("none")]);
        Evacuation {
            session: SessionId::random(),
            trees: vec![
                tree(7, "redis", Fate::Moved { dest: "b".parse().unwrap(), moved }),
                tree(8, "", Fate::Gone(Some("c".to_owned()))),
                tree(9, "job<i>\u{1b}", Fate::Stayed(blocked.target(TargetState::Running))),
            ],
            left_out: vec![LeftOut {
                target: Target::Unit("ssh.service".to_owned()),
                name: "ssh.service".to_owned(),
                why: "it serves this host",
            }],
            total: Duration::from_secs(4),
            expected: None,
            dry_run: false,
            interrupted: None,
        }
    }

    #[test]
    fn the_report_has_every_tree_and_every_reason() {
        let settings = Settings { color: Color::Never, ..Settings::default() };
        assert_eq!(
            text(&sample(), &settings),
            "1 of 3 trees moved in 4.00 s, 2.00 MiB sent, 7 pages named by digest, 1 had gone before\n\
             TREE  NAME     STATE     HOST  PID  PAUSE    SENT      TIME\n\
             7     redis    moved     b     70   8.00 ms  2.00 MiB  2.00 s\n\
             8              had gone  c\n\
             9     job<i>\u{fffd}  stays\n\
             \n\
             9 (job<i>\u{fffd}): stays: 9 cannot be moved: M0301 pid 9 fd 3: io_uring instance\n\
             target: still running, unchanged\n\
             \n\
             CODE   OBJECT      REASON             REMEDY\n\
             M0301  pid 9 fd 3  io_uring instance  none\n\
             \n\
             left out, as it serves this host: unit:ssh.service\n\
             \n\
             back from b: there, migrate evacuate 70 --to THIS-HOST\n"
        );
    }

    #[test]
    fn the_page_has_a_bar_for_each_move_and_no_markup_of_names() {
        let page = html::evacuation(&Ok((sample(), text(&sample(), &Settings::default()))));
        assert!(!page.contains("<i>") && !page.contains('\u{1b}') && !page.contains("http"), "{page}");
        assert_eq!((page.matches("class=\"round\"").count(), page.matches("<rect class=\"pause\"").count()), (1, 1));
    }

    #[test]
    fn a_line_says_how_far_a_move_is() {
        let mut standing = Standing { head: "7 (redis) -> b".to_owned(), ..Standing::default() };
        assert_eq!(standing.text(), "7 (redis) -> b");
        (standing.sent, standing.rounds, standing.expected_pause) =
            ((1 << 20, 4 << 20), 2, Some(Duration::from_millis(7)));
        assert_eq!(standing.text(), "7 (redis) -> b, 1.00 MiB of 4.00 MiB, after 2 rounds, a pause of 7.00 ms");
        standing.downtime = Some(Duration::from_millis(8));
        assert_eq!(
            standing.text(),
            "7 (redis) -> b, 1.00 MiB of 4.00 MiB, after 2 rounds, runs after a pause of 8.00 ms"
        );
    }
}
