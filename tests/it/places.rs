//! What is left at a host of a test: a directory that its programs have as `MIGRATE_PLACES`.

use crate::handover::wait;
use crate::moves::{on_host, result, run, text};
use std::path::Path;

/// Processes that have these places: what has been started there, and what outlives a command.
pub fn processes(places: &Path) -> Vec<i32> {
    let ours = format!("MIGRATE_PLACES={}", places.display());
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|word| word == ours.as_bytes())
    };
    pids.filter(is_ours).collect()
}

/// Those but one: an agent, say.
pub fn others(places: &Path, but: u32) -> usize {
    processes(places).into_iter().filter(|pid| u32::try_from(*pid) != Ok(but)).count()
}

/// Nothing at this host waits for somebody to decide.
pub fn is_settled(places: &Path, what: &str) {
    let undecided = || {
        let output = run(on_host(places), &["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        result(&output)["sessions"].as_array().map_or(0, Vec::len)
    };
    wait(|| undecided() == 0, &format!("{what}: {} knows that it is over", places.display()));
}
