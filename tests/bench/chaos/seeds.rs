//! Runs by their seeds, several side by side.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Which, and how many at a time.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    pub first: u64,
    pub runs: u64,
    pub jobs: u64,
}

impl Seeds {
    /// What each run gives, in the order in which they end; `None`: it could not be run.
    pub fn each<T: Send>(&self, run: impl Fn(u64) -> Option<T> + Sync) -> Vec<T> {
        let (next, all) = (AtomicU64::new(self.first), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.first + self.runs {
                            return;
                        }
                        if let Some(one) = run(seed) {
                            all.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                        }
                    }
                });
            }
        });
        all.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
