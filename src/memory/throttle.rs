//! A rate that is held over all that send or write, and a share of a processor.

use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Holds a rate from when it is made; for each round a new one, so that time without work allows no burst after it.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<u64>,
    begun: Instant,
    sent: AtomicU64,
    budget: Option<Arc<CpuBudget>>,
}

impl Throttle {
    /// `rate` in bytes a second; `None` = unlimited.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, begun: Instant::now(), sent: AtomicU64::new(0), budget: None }
    }

    /// Whoever sends keeps to this share of a processor, too.
    pub fn within(mut self, budget: Option<Arc<CpuBudget>>) -> Self {
        self.budget = budget;
        self
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
        if let Some(budget) = &self.budget {
            std::thread::sleep(budget.due().min(NAP));
        }
    }
}

/// One who has used too much of a processor sleeps no longer than this before it looks again.
const NAP: Duration = Duration::from_millis(100);

/// So much more than its share may be used before somebody has to sleep for it.
const SLACK: Duration = Duration::from_millis(5);

/// A share of one processor for all threads of this process together. Time without work allows no burst after it.
#[derive(Debug)]
pub struct CpuBudget {
    percent: u8,
    is_lifted: AtomicBool,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    /// When it was looked last, and the processor time of this process then.
    at: Instant,
    used: Duration,
    /// Processor time that was used before its time.
    debt: Duration,
}

impl CpuBudget {
    /// `percent` of one processor, from 1.
    pub fn new(percent: u8) -> Self {
        let ledger = Ledger { at: Instant::now(), used: own_time(), debt: Duration::ZERO };
        Self { percent: percent.max(1), is_lifted: AtomicBool::new(false), ledger: Mutex::new(ledger) }
    }

    /// For now it does not hold, or does so again.
    pub fn lift(&self, is_lifted: bool) {
        self.is_lifted.store(is_lifted, Ordering::Relaxed);
    }

    /// How long nobody should work so that the share is kept.
    pub fn due(&self) -> Duration {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let due = ledger.look(Instant::now(), own_time(), self.percent);
        if self.is_lifted.load(Ordering::Relaxed) {
            ledger.debt = Duration::ZERO;
            return Duration::ZERO;
        }
        due
    }
}

impl Ledger {
    fn look(&mut self, at: Instant, used: Duration, percent: u8) -> Duration {
        let earned = at.saturating_duration_since(self.at) * u32::from(percent) / 100;
        self.debt = (self.debt + used.saturating_sub(self.used)).saturating_sub(earned);
        (self.at, self.used) = (at, used);
        if self.debt <= SLACK { Duration::ZERO } else { self.debt * 100 / u32::from(percent) }
    }
}

/// Processor time of all threads of this process.
fn own_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
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

    #[test]
    fn a_share_of_a_processor_is_paid_back_and_never_saved_up() {
        let begun = Instant::now();
        let mut ledger = Ledger { at: begun, used: Duration::ZERO, debt: Duration::ZERO };
        let ms = Duration::from_millis;
        // 100 ms of work in 100 ms, at a quarter: 75 ms are owed, which takes 300 ms.
        assert_eq!(ledger.look(begun + ms(100), ms(100), 25), ms(300));
        assert_eq!(ledger.look(begun + ms(300), ms(100), 25), ms(100));
        assert_eq!(ledger.look(begun + ms(10_000), ms(100), 25), Duration::ZERO);
        assert_eq!(ledger.look(begun + ms(10_100), ms(200), 25), ms(300), "a long rest was not saved up");
        let budget = CpuBudget::new(1);
        while own_time().saturating_sub(budget.ledger.lock().unwrap().used) < ms(20) {
            std::hint::spin_loop();
        }
        assert!(budget.due() > ms(500), "{budget:?}");
        budget.lift(true);
        assert_eq!(budget.due(), Duration::ZERO);
    }
}
