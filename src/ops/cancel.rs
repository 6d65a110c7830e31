//! `migrate cancel`: ends a warm-up, deletes the state of one that is kept here, or ends the tracker that a pre-dump has left.

use super::options::{CancelOptions, ResolveOptions, StatusOptions};
use super::places::Places;
use super::{promote, resolve, status, warm};
use crate::companion::tracker;
use crate::failure::{Failure, FailureKind, Result};
use crate::migration::handover::Choice;
use crate::migration::journal::{Role, Step};

/// Ends the session; gives its whole id.
///
/// # Errors
/// No session of this name, or several; the target of a warm-up is moving already; a source whose state is kept here is heard.
pub fn run(options: &CancelOptions) -> Result<String> {
    let run = Places::here().run;
    let (warm, trackers) = (warm::fitting(&options.session), tracker::fitting(&run, &options.session));
    let found: Vec<String> = warm.iter().chain(&trackers).cloned().collect();
    match found.as_slice() {
        [id] if trackers.is_empty() => warm::cancel(id)?.ok_or_else(|| none(options)),
        [id] => {
            tracker::cancel(&run, id);
            Ok(id.clone())
        }
        [] => match promote::discard(&options.session)? {
            Some(id) => Ok(id),
            None => cut_off(options).ok_or_else(|| none(options)),
        },
        several => {
            Err(Failure::new(format!("{} can be any of: {}", options.session, several.join(", ")))
                .kind(FailureKind::Usage))
        }
    }
}

fn none(options: &CancelOptions) -> Failure {
    Failure::new(format!("there is no session {} on this host", options.session))
        .hint("it has ended: by itself, with its target, or with the next dump")
}

/// A session whose process was killed before the pause: its target runs, its destinations delete what they hold by themselves, and
/// its journal is what is left.
fn cut_off(options: &CancelOptions) -> Option<String> {
    let session = Some(options.session.clone()).filter(|session| !session.is_empty());
    let entries = status::run(&StatusOptions { session, all: false }).ok()?;
    let is_cut_off = |entry: &&status::Entry| {
        let line = &entry.line;
        line.role == Role::Source && line.step == Step::Begun && !entry.busy && entry.warm.is_none()
    };
    let [entry] = entries.iter().filter(is_cut_off).collect::<Vec<_>>()[..] else { return None };
    let session = entry.line.session.clone();
    resolve::run(&ResolveOptions { session, choice: Choice::Run, yes: true }).ok().map(|resolved| resolved.session)
}
