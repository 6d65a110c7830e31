//! System V semaphores and message queues: `/proc/PID` does not tell who uses them, but the kernel notes who did last.

use crate::{
    image::Pid,
    proc::{Result, sysvipc},
    sys::sysv,
};
use std::collections::HashSet;

/// Semaphores looked at, in all sets together.
const SEMAPHORES_MAX: u32 = 100_000;

/// What the tree has used last and leaves behind, in words: none of it is in an image, and values that `SEM_UNDO` would take
/// back at the end of a process are taken back when the original ends.
pub(super) fn left_behind(tree: &[Pid]) -> Result<Vec<String>> {
    let tree: HashSet<i32> = tree.iter().map(|pid| pid.0).collect();
    let mut found = Vec::new();
    let mut left = SEMAPHORES_MAX;
    for set in sysvipc::semaphores()? {
        let count = set.count.min(left);
        left -= count;
        // A set that is removed meanwhile has no users.
        let user = (0..count).filter_map(|n| sysv::last_user(set.id, n).ok()).find(|pid| tree.contains(pid));
        if let Some(pid) = user {
            found.push(format!(
                "pid {pid} uses the System V semaphores {} (key {:#x}): they stay on this host as they are, and what was \
                 taken with SEM_UNDO is given back when the original ends",
                set.id, set.key
            ));
        }
    }
    for queue in sysvipc::queues()? {
        let users = [queue.last_sender, queue.last_receiver];
        if let Some(pid) = users.into_iter().find(|pid| tree.contains(pid)) {
            found.push(format!(
                "pid {pid} uses the System V message queue {} (key {:#x}): it stays on this host as it is",
                queue.id, queue.key
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_and_a_set_of_ours_are_found() {
        let own = Pid(std::process::id().cast_signed());
        let (set, queue) = (sysv::scratch_semaphore().unwrap(), sysv::scratch_queue().unwrap());
        let found = left_behind(&[own]);
        let nobody = left_behind(&[Pid(0)]);
        sysv::remove_semaphores(set).unwrap();
        sysv::remove_queue(queue).unwrap();
        let found = found.unwrap();
        assert!(found.iter().any(|text| text.contains(&format!("semaphores {set} "))), "{found:?}");
        assert!(found.iter().any(|text| text.contains(&format!("queue {queue} "))), "{found:?}");
        assert!(!nobody.unwrap().iter().any(|text| text.contains(&format!("semaphores {set} "))));
    }
}
