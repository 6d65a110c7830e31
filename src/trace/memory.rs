//! Memory of a stopped or running task.

use super::{Error, Result};
use crate::image::Pid;
use crate::sys::mem;
use std::os::unix::fs::FileExt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Reads exactly `buf.len()` bytes. Follows the mappings' own protection (`EFAULT` on `PROT_NONE`).
pub fn read(pid: Pid, address: u64, buf: &mut [u8]) -> Result<()> {
    let len = buf.len();
    let mut done = 0;
    while done < len {
        match mem::read(pid, address + done as u64, &mut buf[done..]) {
            Ok(0) => {
                return Err(Error::Memory { pid, operation: "read", address, len, errno: crate::sys::Errno::EFAULT });
            }
            Ok(n) => done += n,
            Err(errno) => return Err(Error::Memory { pid, operation: "read", address, len, errno }),
        }
    }
    Ok(())
}

/// Writes exactly `buf.len()` bytes.
pub fn write(pid: Pid, address: u64, buf: &[u8]) -> Result<()> {
    let len = buf.len();
    let mut done = 0;
    while done < len {
        match mem::write(pid, address + done as u64, &buf[done..]) {
            Ok(0) => {
                return Err(Error::Memory { pid, operation: "write", address, len, errno: crate::sys::Errno::EFAULT });
            }
            Ok(n) => done += n,
            Err(errno) => return Err(Error::Memory { pid, operation: "write", address, len, errno }),
        }
    }
    Ok(())
}

/// Reads one value.
pub fn read_value<T: FromBytes + IntoBytes + KnownLayout + Immutable>(pid: Pid, address: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    read(pid, address, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes whatever the protection says (`/proc/PID/mem`, `FOLL_FORCE`): only for code in our own scratch page, and for
/// pages that are read-only to their owner. Breaks copy-on-write like a debugger would.
pub fn force_write(pid: Pid, address: u64, buf: &[u8]) -> Result<()> {
    let failed = |e: std::io::Error| Error::Memory {
        pid,
        operation: "force-write",
        address,
        len: buf.len(),
        errno: crate::sys::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
    };
    let file = crate::proc::open_mem(pid).map_err(failed)?;
    file.write_all_at(buf, address).map_err(failed)
}

/// Reads whatever the protection says.
pub fn force_read(pid: Pid, address: u64, buf: &mut [u8]) -> Result<()> {
    let len = buf.len();
    let failed = |e: std::io::Error| Error::Memory {
        pid,
        operation: "force-read",
        address,
        len,
        errno: crate::sys::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
    };
    let file = crate::proc::open_mem(pid).map_err(failed)?;
    file.read_exact_at(buf, address).map_err(failed)
}
