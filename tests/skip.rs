//! What a test does not show here, and why: never silently. Said past the harness, which keeps what a passing test prints, counted,
//! and noted in the file that `MIGRATE_SKIPS` names, of which `tests/run` makes a list.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Says that this test leaves something out: `skip!("needs root")`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => { $crate::skip::say(&format!($($reason)*)) };
}

/// See [`crate::skip!`].
pub fn say(reason: &str) {
    static COUNTED: AtomicUsize = AtomicUsize::new(0);
    let thread = std::thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("a thread of a test"));
    let number = COUNTED.fetch_add(1, Ordering::Relaxed) + 1;
    // In one write each: other processes and threads say something, too.
    let _ = std::io::stderr().write_all(format!("SKIPPED (number {number}) {line}").as_bytes());
    if let Some(path) = std::env::var_os("MIGRATE_SKIPS") {
        let file = std::fs::File::options().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
