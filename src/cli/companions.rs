//! Entries of this program that are no verbs: a companion of ours is the same program, started again with a hidden first word.
//! Every program that has the engine in it begins here, as the engine starts whatever program it runs in.

use super::warm::FRONT;
use crate::agent::session;
use crate::companion::{lock_guard, pager, tracker};
use crate::migration::postcopy::receiver;
use crate::ops::{cascade, evacuate::mover, guardian, places::Places, warm::session as warm};
use crate::ui;
use std::ffi::OsString;

/// What tables of processes call a companion: the kernel would call it after the link by which it was started.
const NAME: &std::ffi::CStr = c"migrate";

/// Prepares the process for what the engine does in it, and runs the companion that these arguments (with the program's name
/// first) ask for; its exit code. `None`: they are a command line.
pub fn begin(arguments: &[OsString]) -> Option<u8> {
    // Without it some things take longer.
    let _ = crate::sys::fd::make_room();
    crate::trace::sleepers::keep_in(Places::here().run);
    let main = companion(arguments)?;
    let _ = nix::sys::prctl::set_name(NAME);
    Some(main())
}

/// The main function that a hidden first word names.
fn companion(arguments: &[OsString]) -> Option<Box<dyn FnOnce() -> u8>> {
    match arguments {
        [_, entry] if tracker::is_entry(entry) => Some(Box::new(tracker::main)),
        // Without a file there is nothing that can be told.
        [_, entry] if guardian::is_entry(entry) => {
            Some(Box::new(|| guardian::main(&|path| drop(ui::log::begin(0, Some(path))))))
        }
        [_, entry] if warm::is_entry(entry) => Some(Box::new(|| warm::main(&FRONT))),
        [_, entry] if mover::is_entry(entry) => Some(Box::new(|| mover::main(&FRONT))),
        [_, entry] if cascade::is_entry(entry) => Some(Box::new(|| cascade::main(&FRONT))),
        [_, entry] => Some(Box::new(pager::entry(entry).or_else(|| receiver::entry(entry))?)),
        [_, entry, argument] if entry == session::ENTRY => {
            let argument = argument.clone();
            Some(Box::new(move || session::main(&argument)))
        }
        [_, entry, _will] if lock_guard::is_entry(entry) => Some(Box::new(lock_guard::main)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hidden_words_are_companions() {
        let is = |line: &str| companion(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).is_some();
        for line in [
            "m tracker-process",
            "m lock-guard-process will",
            "m pages-process",
            "m cascade-process",
            "m evacuate-move-process",
        ] {
            assert!(is(line), "{line}");
        }
        for line in ["m", "m dump", "m dump 7", "m lock-guard-process", "m tracker-process 7", "m dump tracker-process"]
        {
            assert!(!is(line), "{line}");
        }
    }
}
