//! One session as it is shown: events while it runs, one result at its end.

use super::html::Record;
use super::json::{self, Object, Stamp, us};
use super::progress::Display;
use super::style::{Style, clean, paint};
use super::units::{bytes, count, time};
use super::{Settings, Stream, failure, put, report};
use crate::failure::{Failure, TargetState};
use crate::ops::outcome::Outcome;
use crate::ops::warm::{Say, Shown};
use crate::ops::words::SessionId;
use crate::ops::{Event, Events, clones};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A session of a verb. It takes the events of the operation and shows them as the person or program has asked for.
pub struct Session {
    settings: Settings,
    verb: String,
    target: Option<String>,
    stamp: Stamp,
    /// Where the result goes: standard error when standard output carries an image.
    results: Stream,
    display: Mutex<Display>,
    /// Where the page at the end goes, and what it will show.
    page: Option<(PathBuf, Mutex<Record>)>,
    /// Where its log is kept.
    log: Option<PathBuf>,
    /// Who says things instead of this process.
    say: Option<Say>,
    /// What its last event is called.
    last: &'static str,
}

impl Session {
    /// Begins a session. `data` = standard output carries data.
    pub fn begin(settings: &Settings, verb: &str, id: SessionId, target: Option<String>, data: bool) -> Self {
        Self::begin_with(settings, verb, (id, target), data, None)
    }

    /// Begins a session that is shown by somebody else.
    pub fn begin_elsewhere(settings: &Settings, verb: &str, id: SessionId, target: &str, say: Say) -> Self {
        Self::begin_with(settings, verb, (id, Some(target.to_owned())), false, Some(say))
    }

    fn begin_with(
        settings: &Settings,
        verb: &str,
        (id, target): (SessionId, Option<String>),
        data: bool,
        say: Option<Say>,
    ) -> Self {
        let session = Self {
            settings: *settings,
            verb: verb.to_owned(),
            target,
            stamp: Stamp::begin(id),
            results: if data { Stream::Err } else { Stream::Out },
            display: Mutex::new(Display::new(settings)),
            page: None,
            log: None,
            say,
            last: "result",
        };
        session.emit("session", || {
            Object::default().with("verb", session.verb.as_str()).known("asked_for", session.target.as_deref())
        });
        session
    }

    /// The end of this session is also written as a page (`--report`).
    pub fn with_page(mut self, path: Option<PathBuf>) -> Self {
        self.page = path.map(|path| (path, Mutex::default()));
        self
    }

    /// It is a part of something larger, which has a result of its own.
    pub fn as_part(mut self) -> Self {
        self.last = "tree";
        self
    }

    /// A failure says that this session has a log here.
    pub fn with_log(mut self, path: Option<PathBuf>) -> Self {
        self.log = path;
        self
    }

    fn write_page(&self, result: &Result<Outcome, Failure>) {
        let Some((path, record)) = &self.page else { return };
        let record = record.lock().unwrap_or_else(PoisonError::into_inner);
        let page = record.page(&self.verb, self.target.as_deref(), result, self.stamp.elapsed());
        if let Err(error) = std::fs::write(path, page) {
            // What the session was about has happened all the same.
            put(Stream::Err, &format!("warning: the report {} could not be written: {error}\n", path.display()));
        }
    }

    /// Shows the end of a session that was about a tree, and returns the exit code.
    pub fn finish(self, result: Result<Outcome, Failure>) -> u8 {
        self.write_page(&result);
        let text = |outcome: &Outcome| match self.verb.as_str() {
            // For a shell that takes note of it.
            "warm" => format!("{}\n", outcome.session),
            verb => report::text(verb, self.target.as_deref(), outcome),
        };
        let partly = result.as_ref().ok().and_then(clones::partly);
        let result = result.map(|outcome| (json::outcome(&outcome), text(&outcome)));
        let exit = partly.as_ref().map_or(0, Failure::exit_code);
        self.end_with((exit, partly), result)
    }

    /// Shows the end of any session: fields of the `result` for programs, a text for people, or the failure.
    /// Returns the exit code.
    pub(super) fn end(self, result: Result<(Object, String), Failure>) -> u8 {
        self.end_with((0, None), result)
    }

    /// The same where what was achieved may not be everything: with the exit code, and what has failed of it.
    pub(super) fn end_with(
        self,
        (exit, partly): (u8, Option<Failure>),
        result: Result<(Object, String), Failure>,
    ) -> u8 {
        self.display.lock().unwrap_or_else(PoisonError::into_inner).end();
        match result {
            Ok((fields, text)) => {
                self.emit(self.last, || {
                    let ok = Object::default().with("ok", exit == 0).with("exit", exit);
                    let ended = ok.with("verb", self.verb.as_str()).and(fields);
                    partly.iter().fold(ended, |ended, failure| ended.object("failure", json::cause(failure)))
                });
                // Without the id of what was started nobody could speak to it.
                if !self.settings.json && (!self.settings.quiet || self.verb == "warm") {
                    self.put(self.results, &text);
                }
                if let Some(failure) = partly.filter(|_| !self.settings.json) {
                    self.put(Stream::Err, &failure::text(&failure, true, self.log.as_deref(), &self.settings));
                }
                exit
            }
            Err(failure) => {
                let log = self.log.as_deref();
                self.emit(self.last, || failure::result(&failure, &self.verb).known("log", log.and_then(Path::to_str)));
                if !self.settings.json {
                    let told = self.target.is_some() || failure.target != TargetState::Untouched;
                    self.put(Stream::Err, &failure::text(&failure, told, log, &self.settings));
                }
                failure.exit_code()
            }
        }
    }

    /// How things are shown.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Writes an event for programs.
    pub(super) fn emit(&self, kind: &str, fields: impl FnOnce() -> Object) {
        if self.settings.json {
            self.put(self.results, &self.stamp.line(kind, fields()));
        }
    }

    fn put(&self, stream: Stream, text: &str) {
        match &self.say {
            Some(say) => say(stream == Stream::Out, text),
            None => put(stream, text),
        }
    }

    /// One of several destinations is further than before.
    fn candidate(&self, dest: &str, stage: &'static str, rounds: u32, sent: u64) {
        self.emit("candidate", || {
            Object::default().with("dest", dest).with("stage", stage).with("rounds", rounds).with("bytes_sent", sent)
        });
        self.detail(|| format!("{}: {stage}, {}, {}", clean(dest), count(rounds.into(), "round"), bytes(sent)));
    }

    fn say(&self, text: &str) {
        match &self.say {
            Some(say) => say(false, text),
            None => self.display.lock().unwrap_or_else(PoisonError::into_inner).say(text),
        }
    }

    /// Something for those who asked for more.
    fn detail(&self, text: impl FnOnce() -> String) {
        if self.settings.verbose > 0 && !self.settings.json {
            self.say(&format!("{:>9}  {}\n", time(self.stamp.elapsed()), text()));
        }
    }

    fn with_display(&self, change: impl FnOnce(&mut Display)) {
        change(&mut self.display.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shown for Session {
    fn finish(self: Box<Self>, result: Result<Outcome, Failure>) -> u8 {
        Self::finish(*self, result)
    }
}

impl Events for Session {
    fn event(&self, event: Event) {
        if let Some((_, record)) = &self.page {
            record.lock().unwrap_or_else(PoisonError::into_inner).note(self.stamp.elapsed(), &event);
        }
        match event {
            Event::Preflight { blockers, tasks, memory_bytes } => {
                self.emit("preflight", || {
                    Object::default()
                        .with("blockers", blockers.len() as u64)
                        .with("tasks", tasks)
                        .with("memory_bytes", memory_bytes)
                });
                for blocker in &blockers {
                    self.emit("blocker", || json::blocker(blocker));
                }
                self.detail(|| {
                    let size = format!("{}, {}", count(tasks.into(), "task"), bytes(memory_bytes));
                    format!("preflight: {size}, {}", count(blockers.len() as u64, "blocker"))
                });
            }
            Event::Round { number, pages, bytes: sent, took, dirty_bytes_per_s, expected_pause } => {
                self.emit("round", || {
                    Object::default()
                        .with("number", number)
                        .with("pages", pages)
                        .with("bytes", sent)
                        .with("took_us", us(took))
                        .with("dirty_bytes_per_s", dirty_bytes_per_s)
                        .known("expected_downtime_us", expected_pause.map(us))
                });
                self.with_display(|display| display.round(number, expected_pause));
                self.detail(|| {
                    let volume = format!("{}, {} in {}", count(pages, "page"), bytes(sent), time(took));
                    let pause =
                        expected_pause.map_or_else(String::new, |p| format!(", the pause would be {}", time(p)));
                    format!("round {number}: {volume}, {}/s written meanwhile{pause}", bytes(dirty_bytes_per_s))
                });
            }
            Event::Progress { phase, done, total } => self.with_display(|display| display.advance(phase, done, total)),
            Event::Frozen => {
                self.emit("frozen", Object::default);
                self.detail(|| "frozen".to_owned());
            }
            Event::Switched { downtime } => {
                self.emit("switched", || Object::default().with("downtime_us", us(downtime)));
                self.detail(|| format!("switched after a pause of {}", time(downtime)));
            }
            Event::Candidate { dest, stage, rounds, bytes } => self.candidate(&dest, stage, rounds, bytes),
            Event::Stage(stage) => {
                self.emit("stage", || json::stage(&stage));
                if !self.settings.json && !self.settings.quiet {
                    self.say(&format!("{}\n", report::stage(&stage)));
                }
            }
            Event::Hook { point, name, ended } => {
                self.emit("hook", || json::hook(point, &name, ended));
                if let Some(ended) = ended {
                    self.detail(|| format!("hook {}", report::hook(point, &clean(&name), ended)));
                }
            }
            Event::Warning(text) => {
                self.emit("warning", || Object::default().with("text", text.as_str()));
                if !self.settings.json && !self.settings.quiet {
                    let label = paint("warning:", Style::Warning, self.settings.coloured(Stream::Err));
                    self.say(&format!("{label} {}\n", clean(&text)));
                }
            }
        }
    }
}
