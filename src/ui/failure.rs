//! How a failure is shown.

use super::json::{self, Object, Stamp};
use super::style::{Style, clean, paint};
use super::{Settings, Stream, put, table};
use crate::blocker::Blocker;
use crate::failure::{Failure, FailureKind, TargetState};
use crate::ops::words::SessionId;
use std::path::Path;

/// Shows the failure of a verb that has no session (`explain`, a wrong configuration) and returns the exit code.
pub fn show(failure: &Failure, verb: &str, settings: &Settings) -> u8 {
    if settings.json {
        let stamp = Stamp::begin(SessionId::random());
        put(Stream::Out, &stamp.line("result", result(failure, verb)));
    } else {
        // There is no target whose state could be told.
        put(Stream::Err, &text(failure, failure.target != TargetState::Untouched, None, settings));
    }
    failure.exit_code()
}

/// The fields of the last event.
pub(super) fn result(failure: &Failure, verb: &str) -> Object {
    Object::default().with("ok", false).with("exit", failure.exit_code()).with("verb", verb).and(json::failure(failure))
}

/// The failure for a person: what, causes, blockers, hint, where the log is, and last the state of the target.
pub(super) fn text(failure: &Failure, with_target: bool, log: Option<&Path>, settings: &Settings) -> String {
    let coloured = settings.coloured(Stream::Err);
    let mut text = format!("{} {}\n", paint("error:", Style::Error, coloured), clean(&failure.what));
    for cause in &failure.causes {
        // A cause of several lines (a parser's message with its excerpt) keeps them.
        for line in cause.lines() {
            text += &format!("  {}\n", clean(line));
        }
    }
    if !failure.blockers.is_empty() {
        text += &blockers(&failure.blockers, coloured);
    }
    let hint = failure.hint.clone().or_else(|| default_hint(failure));
    if let Some(hint) = hint {
        text += &format!("{} {}\n", paint("hint:", Style::Hint, coloured), clean(&hint));
    }
    if let Some(log) = log {
        text += &format!("{} {}\n", paint("log:", Style::Hint, coloured), clean(&log.display().to_string()));
    }
    if with_target {
        let target = failure.target.to_string();
        text += &format!("{} {}\n", paint("target:", Style::Strong, coloured), clean(&target));
    }
    text
}

/// Blockers as a table, all of them at once.
pub(super) fn blockers(blockers: &[Blocker], coloured: bool) -> String {
    let rows: Vec<[String; 4]> =
        blockers.iter().map(|b| [b.code.to_string(), b.object.clone(), b.reason.clone(), b.remedy.clone()]).collect();
    table::lay_out(["CODE", "OBJECT", "REASON", "REMEDY"], &rows, coloured)
}

fn default_hint(failure: &Failure) -> Option<String> {
    let blocked = || failure.explained().filter(|_| failure.kind == FailureKind::Blocked);
    Some(format!("migrate explain {} says more", failure.code.or_else(blocked)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocker::codes;
    use crate::ui::Color;

    #[test]
    fn a_failure_ends_with_the_state_of_the_target() {
        let settings = Settings { color: Color::Never, ..Settings::default() };
        let blocked = Failure::blocked(
            "cannot dump 4242 (postgres): 1 thing stands in the way",
            vec![Blocker::new(codes::IO_URING, "pid 4242 fd 19").remedy("none")],
        )
        .target(TargetState::Running);
        assert_eq!(
            text(&blocked, true, Some(Path::new("/x/y.log")), &settings),
            "error: cannot dump 4242 (postgres): 1 thing stands in the way\n\
             CODE   OBJECT          REASON             REMEDY\n\
             M0301  pid 4242 fd 19  io_uring instance  none\n\
             hint: migrate explain M0301 says more\n\
             log: /x/y.log\n\
             target: still running, unchanged\n"
        );
        let failure = Failure { causes: vec!["a\x1b[2J".into(), "b".into()], ..Failure::new("x").hint("y") };
        assert_eq!(text(&failure, false, None, &settings), "error: x\n  a\u{fffd}[2J\n  b\nhint: y\n");
    }
}
