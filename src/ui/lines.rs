//! Progress of several things at once: a line for each, which moves on a terminal, or comes again now and then.

use super::progress::{EVERY, Kind};
use super::{Settings, Stream, put};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::time::Instant;

/// Lines of what is under way, by a name of the caller's.
#[derive(Debug)]
pub struct Lines {
    kind: Kind,
    all: MultiProgress,
    each: BTreeMap<String, (Option<ProgressBar>, Instant)>,
}

impl Lines {
    /// None yet.
    pub fn new(settings: &Settings) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { kind: Kind::of(settings), all, each: BTreeMap::new() }
    }

    /// Something begins, or is further than before.
    pub fn show(&mut self, name: &str, text: &str) {
        let (kind, all) = (self.kind, &self.all);
        let (bar, shown) = self.each.entry(name.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg}").expect("the template is a constant and was tested");
            ((kind == Kind::Bar).then(|| all.add(ProgressBar::new_spinner().with_style(style))), Instant::now())
        });
        if let Some(bar) = bar {
            bar.set_message(text.to_owned());
            bar.tick();
        } else if kind == Kind::Plain && shown.elapsed() >= EVERY {
            *shown = Instant::now();
            put(Stream::Err, &format!("{text}\n"));
        }
    }

    /// Something has ended: its line goes.
    pub fn end(&mut self, name: &str) {
        if let Some((Some(bar), _)) = self.each.remove(name) {
            bar.finish_and_clear();
        }
    }

    /// Says something that stays, unless nothing is to be said.
    pub fn say(&self, text: &str) {
        if self.kind != Kind::None {
            self.around(|| put(Stream::Err, &format!("{text}\n")));
        }
    }

    /// Has something said without tearing the lines.
    pub fn around(&self, say: impl FnOnce()) {
        self.all.suspend(say);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Progress;

    #[test]
    fn lines_come_and_go() {
        let mut lines = Lines::new(&Settings { progress: Progress::Bar, ..Settings::default() });
        lines.show("a", "first");
        lines.show("a", "second");
        lines.show("b", "first");
        assert_eq!(lines.each.len(), 2);
        lines.end("a");
        lines.end("a");
        assert_eq!(lines.each.len(), 1);
        lines.end("b");
    }
}
