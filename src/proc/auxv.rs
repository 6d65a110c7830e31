//! `/proc/PID/auxv` (proc_pid_auxv(5), getauxval(3)).

use super::{ProcDir, Result};
use crate::image::Bytes;

/// Pairs of a 64-bit process's auxiliary vector up to `AT_NULL`, which is left out, as is a pair that is cut.
pub fn pairs(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let word = |b: &[u8; 8]| u64::from_ne_bytes(*b);
    bytes
        .as_chunks::<16>()
        .0
        .iter()
        .map(move |pair| {
            let (words, _) = pair.as_chunks::<8>();
            (word(&words[0]), word(&words[1]))
        })
        .take_while(|&(key, _)| key != libc::AT_NULL)
}

/// The value of one key (`AT_SYSINFO_EHDR`, `AT_PHDR`, ...).
pub fn value(bytes: &[u8], key: u64) -> Option<u64> {
    pairs(bytes).find(|&(k, _)| k == key).map(|(_, value)| value)
}

impl ProcDir {
    /// Reads `auxv`, raw: what `PR_SET_MM_MAP` takes.
    ///
    /// # Errors
    /// See [`ProcDir::read_into`]. Empty for a zombie.
    pub fn auxv(&self, buf: &mut Vec<u8>) -> Result<Bytes> {
        Ok(self.read_into("auxv", buf)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_at_the_null_entry() {
        let words = [3u64, 64, 6, 4096, 0, 0, 9, 9];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(pairs(&bytes).collect::<Vec<_>>(), [(3, 64), (6, 4096)]);
        assert_eq!(pairs(&bytes[..25]).count(), 1);
        assert_eq!(value(&bytes, 9), None);
    }

    #[test]
    fn page_size_of_this_process() {
        let auxv = ProcDir::of_self().unwrap().auxv(&mut Vec::new()).unwrap();
        assert_eq!(value(&auxv.0, libc::AT_PAGESZ), Some(4096));
    }
}
