//! Spreads of measured times.

use std::{fmt, time::Duration};

/// Some measurements of one thing.
#[derive(Debug, Clone, Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    pub fn add(&mut self, took: Duration) {
        let at = self.0.partition_point(|t| *t < took);
        self.0.insert(at, took);
    }

    /// The middle one; of an even number the upper.
    pub fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.0.first(), self.0.last()) {
            (Some(least), Some(most)) => format!("{} ({}-{})", ms(self.median()), ms(*least), ms(*most)),
            _ => "none".to_owned(),
        };
        f.pad(&text)
    }
}

/// Milliseconds, with three digits at most behind the first.
pub fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        0.0..10.0 => format!("{ms:.2}"),
        10.0..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

/// Bytes per second for a person.
pub fn gib_per_second(speed: f64) -> String {
    format!("{:.2} GiB/s", speed / f64::from(1 << 30))
}

/// Bytes that programs can still take.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(u64::MAX >> 10) << 10
}
