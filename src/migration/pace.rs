//! Whether a round waits for the link: seen while it is under way, for the first one has nothing before it.

use super::effort::SLOW_LINK;
use std::time::{Duration, Instant};

/// A judgement takes so long; the buffers of sockets swallow what comes at first.
const WINDOW: Duration = Duration::from_millis(100);

/// Windows in a row that must agree: a processor that was taken away for a while is no slow link.
const WINDOWS: u32 = 2;

/// How fast one channel takes what it is given.
#[derive(Debug)]
pub struct Pace {
    /// Channels that share the link.
    channels: u64,
    since: Instant,
    bytes: u64,
    waited: Duration,
    slow: u32,
}

impl Pace {
    /// Of one of so many channels; begins now.
    pub fn begin(channels: usize) -> Self {
        Self { channels: channels as u64, since: Instant::now(), bytes: 0, waited: Duration::ZERO, slow: 0 }
    }

    /// A frame was sent; `began`: when it was given to the channel. Whether the link is what is waited for.
    pub fn is_slow(&mut self, bytes: u64, began: Instant) -> bool {
        self.note(bytes, began, Instant::now())
    }

    fn note(&mut self, bytes: u64, began: Instant, now: Instant) -> bool {
        self.bytes += bytes;
        self.waited += now.saturating_duration_since(began);
        let took = now.saturating_duration_since(self.since);
        if took >= WINDOW {
            let slow = rate(self.bytes * self.channels, took) < SLOW_LINK && self.waited > took / 2;
            self.slow = if slow { self.slow + 1 } else { 0 };
            (self.since, self.bytes, self.waited) = (now, 0, Duration::ZERO);
        }
        self.slow >= WINDOWS
    }
}

fn rate(bytes: u64, took: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 1 MiB, each `waited` in the channel and `worked` before. The first that is judged slow.
    fn judged(frames: u32, waited: u64, worked: u64) -> Option<u32> {
        let mut pace = Pace::begin(1);
        let mut now = pace.since;
        (0..frames).find(|_| {
            let began = now + Duration::from_millis(worked);
            now = began + Duration::from_millis(waited);
            pace.note(1 << 20, began, now)
        })
    }

    #[test]
    fn a_link_is_slow_that_is_waited_for() {
        assert_eq!(judged(100, 80, 1), Some(3), "12 MiB/s: two windows of two frames");
        assert_eq!(judged(100, 1, 80), None, "the reader is slow, not the link");
        assert_eq!(judged(2000, 1, 1), None, "500 MiB/s");
    }

    #[test]
    fn one_hitch_is_no_slow_link() {
        let mut pace = Pace::begin(2);
        let (start, ms) = (pace.since, Duration::from_millis);
        assert!(!pace.note(1 << 20, start, start + ms(150)));
        assert!(!pace.note(100 << 20, start + ms(150), start + ms(250)));
        assert!(!pace.note(1 << 20, start + ms(250), start + ms(400)));
        assert!(pace.note(1 << 20, start + ms(400), start + ms(550)));
    }
}
