//! `/proc/PID/cmdline` and `/proc/PID/environ` (proc_pid_cmdline(5), proc_pid_environ(5)): strings that end with NUL.

use super::{ProcDir, Result};
use crate::image::Bytes;

/// The strings of a list in which each ends with NUL. A program may have written anything there (`setproctitle(3)`): what
/// follows the last NUL is one more string.
pub fn strings(bytes: &[u8]) -> Vec<Bytes> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    bytes.split(|&b| b == 0).map(Bytes::from).collect()
}

impl ProcDir {
    /// Reads `cmdline`: empty for zombies and kernel threads.
    ///
    /// # Errors
    /// See [`ProcDir::read_into`].
    pub fn cmdline(&self, buf: &mut Vec<u8>) -> Result<Vec<Bytes>> {
        Ok(strings(self.read_into("cmdline", buf)?))
    }

    /// Reads `environ`: what the process was started with, or what it wrote there.
    ///
    /// # Errors
    /// See [`ProcDir::read_into`].
    pub fn environ(&self, buf: &mut Vec<u8>) -> Result<Vec<Bytes>> {
        Ok(strings(self.read_into("environ", buf)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_arguments_and_unended_ones() {
        assert_eq!(strings(b"a\0\0b\0"), [b"a".as_slice().into(), b"".as_slice().into(), Bytes::from(b"b".as_slice())]);
        assert_eq!(strings(b"nginx: master").len(), 1);
        assert_eq!(strings(b"\0").len(), 1);
        assert!(strings(b"").is_empty());
    }

    #[test]
    fn our_own() {
        let ours: Vec<Bytes> = std::env::args().map(|a| a.into_bytes().into()).collect();
        assert_eq!(ProcDir::of_self().unwrap().cmdline(&mut Vec::new()).unwrap(), ours);
    }
}
