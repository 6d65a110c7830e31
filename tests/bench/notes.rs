//! What tests/fixtures/stalls.c notes of its accesses to memory, in a file that it has mapped.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Word that is not 0 once it has set up.
pub const READY: u64 = 0;
/// Words: it is asked to compare its pages; 1 + the wrong ones; accesses so far.
const COMPARE: u64 = 1;
const WRONG: u64 = 2;
const COUNT: u64 = 3;
/// No step takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Accesses that are noted at most.
const ACCESSES_MAX: u64 = 1 << 20;

/// One access: when it began (ns), which page, how long it took (us).
#[derive(Debug, Clone, Copy)]
pub struct Access {
    pub when: u64,
    pub page: u32,
    pub took_us: u32,
}

/// The file that the process maps.
#[derive(Debug)]
pub struct Notes(File);

impl Notes {
    /// An empty one.
    pub fn make(path: &Path) -> Result<Self, String> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let notes = Self(file.map_err(|e| format!("{}: {e}", path.display()))?);
        notes.0.set_len(64 + 16 * ACCESSES_MAX).map_err(|e| e.to_string())?;
        Ok(notes)
    }

    /// Has every page compared; how many were wrong.
    pub fn wrong(&self) -> Result<u64, String> {
        self.0.write_all_at(&1u64.to_ne_bytes(), COMPARE * 8).map_err(|e| e.to_string())?;
        Ok(self.until(WRONG)? - 1)
    }

    /// Accesses so far.
    pub fn count(&self) -> Result<usize, String> {
        Ok(self.word(COUNT)? as usize)
    }

    fn word(&self, n: u64) -> Result<u64, String> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, n * 8).map_err(|e| e.to_string())?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Waits until a word is not 0.
    pub fn until(&self, n: u64) -> Result<u64, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.word(n)? {
                0 if Instant::now() > deadline => return Err(format!("word {n} of the notes stays 0")),
                0 => std::thread::sleep(Duration::from_millis(1)),
                value => return Ok(value),
            }
        }
    }

    pub fn accesses(&self) -> Result<Vec<Access>, String> {
        let count = self.word(COUNT)?;
        let mut bytes = vec![0; count as usize * 16];
        self.0.read_exact_at(&mut bytes, 64).map_err(|e| e.to_string())?;
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        let access = |bytes: &[u8]| {
            let (when, rest) = (word(&bytes[..8]), word(&bytes[8..]));
            Access { when, page: (rest >> 32) as u32, took_us: rest as u32 }
        };
        Ok(bytes.chunks_exact(16).map(access).collect())
    }
}
