//! Progress for a person: a bar that moves, or a line now and then.

use super::units::{bytes, time};
use super::{Progress, Settings, Stream, put};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two plain lines.
pub const EVERY: Duration = Duration::from_secs(5);

/// Time before which nothing is shown: most work is done sooner.
const QUIET_AT_FIRST: Duration = Duration::from_millis(300);

/// What is shown while an operation runs.
#[derive(Debug)]
pub struct Display {
    kind: Kind,
    begun: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
    phase: &'static str,
    round: u32,
    expected_pause: Option<Duration>,
}

/// How progress is shown, once it is known what standard error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something that moves.
    Bar,
    /// A line now and then.
    Plain,
    /// Nothing.
    None,
}

impl Kind {
    /// What the settings ask for.
    pub fn of(settings: &Settings) -> Self {
        match settings.progress {
            _ if settings.quiet || settings.json => Self::None,
            Progress::Bar => Self::Bar,
            Progress::Plain => Self::Plain,
            Progress::None => Self::None,
            Progress::Auto if std::io::stderr().is_terminal() => Self::Bar,
            Progress::Auto => Self::Plain,
        }
    }
}

impl Display {
    /// A display as the settings ask for; nothing is shown yet.
    pub fn new(settings: &Settings) -> Self {
        let (kind, now) = (Kind::of(settings), Instant::now());
        Self { kind, begun: now, bar: None, last_line: now, phase: "", round: 0, expected_pause: None }
    }

    /// A round has ended; what follows belongs to the next one. The pause would be so long now.
    pub fn round(&mut self, number: u32, expected_pause: Option<Duration>) {
        (self.round, self.expected_pause) = (number, expected_pause);
    }

    /// Bytes done of bytes in all (0 = unknown).
    pub fn advance(&mut self, phase: &'static str, done: u64, total: u64) {
        match self.kind {
            Kind::None => {}
            Kind::Bar => self.bar(phase, done, total),
            Kind::Plain => {
                if self.last_line.elapsed() >= EVERY {
                    self.last_line = Instant::now();
                    put(Stream::Err, &self.line(phase, done, total));
                }
            }
        }
    }

    /// Writes a line to standard error without tearing the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| put(Stream::Err, text)),
            None => put(Stream::Err, text),
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, phase: &str, done: u64, total: u64) -> String {
        let share = match total {
            0 => String::new(),
            _ => format!(" of {} ({} %)", bytes(total), u128::from(done.min(total)) * 100 / u128::from(total)),
        };
        let round = match self.round {
            0 => String::new(),
            round => format!(", after round {round}"),
        };
        let pause = self.expected_pause.map_or_else(String::new, |pause| format!(", a pause of {}", time(pause)));
        format!("{phase}: {}{share}, {}{round}{pause}\n", bytes(done), time(self.begun.elapsed()))
    }

    fn bar(&mut self, phase: &'static str, done: u64, total: u64) {
        if self.bar.is_none() && self.begun.elapsed() < QUIET_AT_FIRST {
            return;
        }
        if self.phase != phase {
            self.end();
            self.phase = phase;
        }
        let bar = self.bar.get_or_insert_with(|| new_bar(total));
        if total != 0 {
            bar.set_length(total.max(done));
        }
        bar.set_message(match self.round {
            0 => phase.to_owned(),
            round => {
                let pause = self.expected_pause.map_or_else(String::new, |pause| format!(", pause {}", time(pause)));
                format!("{phase}, round {}{pause}", round + 1)
            }
        });
        bar.set_position(done);
    }
}

fn new_bar(total: u64) -> ProgressBar {
    let template = match total {
        0 => "{msg} {spinner} {binary_bytes}  {binary_bytes_per_sec}",
        _ => "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
    };
    let style = ProgressStyle::with_template(template).expect("the template is a constant and was tested");
    let bar = ProgressBar::with_draw_target((total != 0).then_some(total), ProgressDrawTarget::stderr());
    bar.with_style(style.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_templates_are_valid() {
        new_bar(0).finish_and_clear();
        new_bar(7).finish_and_clear();
    }

    #[test]
    fn a_plain_line_says_how_much() {
        let mut display = Display::new(&Settings { progress: Progress::Plain, ..Settings::default() });
        assert!(display.line("memory", 1 << 20, 4 << 20).starts_with("memory: 1.00 MiB of 4.00 MiB (25 %), "));
        display.round(2, None);
        let line = display.line("memory", 5, 0);
        assert!(line.starts_with("memory: 5 B, ") && line.ends_with(", after round 2\n"), "{line}");
        display.round(3, Some(Duration::from_millis(7)));
        let line = display.line("memory", 5, 0);
        assert!(line.ends_with(", after round 3, a pause of 7.00 ms\n"), "{line}");
    }
}
