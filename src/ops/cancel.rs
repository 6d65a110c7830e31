//! `migrate cancel`: ends the tracker that a pre-dump has left.

use super::options::CancelOptions;
use super::places::Places;
use crate::companion::tracker;
use crate::failure::{Failure, FailureKind, Result};

/// Ends the session; gives its whole id.
///
/// # Errors
/// No session of this name, or several.
pub fn run(options: &CancelOptions) -> Result<String> {
    let found = tracker::cancel(&Places::here().run, &options.session);
    match found.as_slice() {
        [id] => Ok(id.clone()),
        [] => Err(Failure::new(format!("there is no session {} on this host", options.session))
            .hint("it has ended: by itself, with its target, or with the next dump")),
        several => {
            Err(Failure::new(format!("{} can be any of: {}", options.session, several.join(", ")))
                .kind(FailureKind::Usage))
        }
    }
}
