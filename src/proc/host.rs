//! Memory of processes: this one by the name of a mapping, any other through `/proc/PID/mem`.

use super::ProcDir;
use crate::image::Pid;
use std::io::Result;

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
