//! A rate that is held over all that send or write.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Holds a rate from when it is made; for each round a new one, so that time without work allows no burst after it.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<u64>,
    begun: Instant,
    sent: AtomicU64,
}

impl Throttle {
    /// `rate` in bytes a second; `None` = unlimited.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, begun: Instant::now(), sent: AtomicU64::new(0) }
    }

    /// `bytes` more were sent: sleeps until that is within the rate.
    pub fn sent(&self, bytes: u64) {
        self.reached(self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    /// `total` bytes were sent in all: sleeps until that is within the rate.
    pub fn reached(&self, total: u64) {
        if let Some(rate) = self.rate.filter(|rate| *rate > 0) {
            let due = Duration::from_secs_f64(total as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(self.begun.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_held() {
        let throttle = Throttle::new(Some(1 << 20));
        let started = Instant::now();
        for _ in 0..10 {
            throttle.sent(10 << 10);
        }
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(95), "{took:?}");
        throttle.reached(150 << 10);
        assert!(started.elapsed() >= Duration::from_millis(145));
        Throttle::new(None).sent(u64::MAX / 2);
    }
}
