//! Reads past the page cache: a device writes to memory at a time that no page table tells of.
//!
//! A page is written in the eyes of the kernel when such a read(2) begins; its content changes when the device is done. A
//! round that protects and copies the page in between would have the old content, and never hear of the new one. Nobody who
//! is stopped is inside of a read (its stop waits for the device), so rounds over such a program begin with a short stop.
//! What goes on without the program (`io_submit(2)`, io_uring) is refused by the preflight.

use crate::image::Pid;
use crate::proc::{Error, ProcDir, Result};
use crate::sys::fd::{Kcmp, kcmp};
use std::cmp::Ordering;

/// Descriptors that no device writes to memory through. That of a regular file or a block device begins with a slash.
const PLAIN: [&[u8]; 4] = [b"socket:", b"pipe:", b"anon_inode:", b"/dev/pts/"];

/// Whether a process, or one of its threads with a descriptor table of its own, has a file open with `O_DIRECT`.
///
/// # Errors
/// It cannot be examined; the process may be gone.
pub(super) fn is_possible(process: &ProcDir, buf: &mut Vec<u8>) -> Result<bool> {
    if in_table(process, buf)? {
        return Ok(true);
    }
    let leader = process.pid();
    let own = |tid: &Pid| *tid != leader && kcmp(leader, *tid, Kcmp::Files, 0, 0).is_ok_and(|o| o != Ordering::Equal);
    for tid in process.tasks()?.into_iter().filter(own) {
        match process.thread(tid).and_then(|thread| in_table(&thread, buf)) {
            Ok(false) => {}
            Err(e) if e.is_gone() => {}
            found => return found,
        }
    }
    Ok(false)
}

fn in_table(task: &ProcDir, buf: &mut Vec<u8>) -> Result<bool> {
    for fd in task.fds()? {
        match task.readlink(&format!("fd/{fd}")) {
            Ok(name) if PLAIN.iter().any(|kind| name.0.starts_with(kind)) => continue,
            Ok(_) => {}
            // Closed meanwhile.
            Err(e) if is_closed(&e) => continue,
            Err(e) => return Err(e),
        }
        match task.fdinfo(fd, buf) {
            Ok(info) if info.flags & libc::O_DIRECT as u32 != 0 => return Ok(true),
            Ok(_) => {}
            Err(e) if is_closed(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

fn is_closed(error: &Error) -> bool {
    error.is_gone() || error.errno() == Some(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_file_past_the_page_cache_is_seen() {
        // A process of its own: other tests open files, too.
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let child = |file: std::fs::File| {
            std::process::Command::new("sleep")
                .arg("60")
                .stdin(file)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        };
        let open = |flags| std::fs::OpenOptions::new().read(true).custom_flags(flags).open(file.path());
        let seen = |file: std::fs::File| {
            let mut child = child(file);
            let dir = ProcDir::open(Pid(child.id().cast_signed())).unwrap();
            let found = is_possible(&dir, &mut Vec::new());
            let _ = child.kill();
            let _ = child.wait();
            found.unwrap()
        };
        assert!(!seen(open(0).unwrap()));
        // Not every file system has it.
        if let Ok(direct) = open(libc::O_DIRECT) {
            assert!(seen(direct));
        }
    }
}
