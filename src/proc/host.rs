//! Facts of this host and of this process itself.

use super::ProcDir;
use crate::image::Pid;
use std::io::Result;

/// `/proc/sys/kernel/random/boot_id`; empty if it cannot be read.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// Features of the first processor as `/proc/cpuinfo` names them, sorted.
pub fn cpu_features() -> Vec<String> {
    let text = std::fs::read("/proc/cpuinfo").unwrap_or_default();
    let flags = text.split(|b| *b == b'\n').find(|l| l.starts_with(b"flags")).unwrap_or_default();
    let words = flags.split(|b| *b == b':').nth(1).unwrap_or_default();
    let mut names: Vec<String> = words
        .split(|b| *b == b' ')
        .filter(|w| !w.is_empty())
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect();
    names.sort();
    names
}

/// The contents of a mapping of this process by the name that `maps` shows, such as `[vdso]`.
pub fn own_mapping(name: &[u8]) -> Option<Vec<u8>> {
    let maps = ProcDir::of_self().ok()?.maps(&mut Vec::new()).ok()?;
    let mapping = maps.iter().find(|m| m.name.0 == name)?;
    let mut bytes = vec![0; mapping.len() as usize];
    let own = Pid(nix::unistd::getpid().as_raw());
    (crate::sys::mem::read(own, mapping.start, &mut bytes) == Ok(bytes.len())).then_some(bytes)
}

/// `/proc/PID/mem` for reading and writing.
pub fn open_mem(pid: Pid) -> Result<std::fs::File> {
    std::fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))
}
