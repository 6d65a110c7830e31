//! Memory of processes: the vDSO of this one, any other's through `/proc/PID/mem`.

use super::ProcDir;
use super::maps::Special;
use crate::image::Pid;
use std::io::Result;

/// The vDSO of this process: bytes of its data pages in front of the text, and the text.
pub fn own_vdso() -> Option<(u64, Vec<u8>)> {
    let maps = ProcDir::of_self().ok()?.maps(&mut Vec::new()).ok()?;
    let text = maps.iter().find(|m| m.special() == Some(Special::Vdso))?;
    let data = maps.iter().filter(|m| m.special() == Some(Special::Vvar)).map(super::maps::Mapping::len).sum();
    let mut bytes = vec![0; text.len() as usize];
    let own = Pid(nix::unistd::getpid().as_raw());
    (crate::sys::mem::read(own, text.start, &mut bytes) == Ok(bytes.len())).then_some((data, bytes))
}

/// `/proc/PID/mem` for reading and writing.
pub fn open_mem(pid: Pid) -> Result<std::fs::File> {
    std::fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))
}
