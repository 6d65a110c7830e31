//! Who has waited for pages, how long, and how often: a histogram for each thread.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Classes of one histogram: below 64 us, then doubling; the last is everything from about 1 s on.
pub const CLASSES: usize = 16;
/// Upper end of the first class, microseconds.
const FIRST_US: u64 = 64;
/// Most threads that are told apart; all further ones are counted as one.
pub const THREADS_MAX: usize = 1024;

/// A thread: the number of the address space that it faulted in, and its id as it sees itself.
type Who = (usize, u32);
/// All threads that have no histogram of their own.
const OTHERS: Who = (usize::MAX, 0);

/// What is told about one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// Its process where it runs now; `None` = a process that was forked while pages were missing, or, with thread 0, all
    /// threads beyond [`THREADS_MAX`].
    pub process: Option<i32>,
    /// Its id as it sees itself.
    pub thread: u32,
    /// How long, and how often.
    pub histogram: Histogram,
}

/// The waits of one thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many.
    pub count: u64,
    /// All of them, microseconds.
    pub total_us: u64,
    /// The longest, microseconds.
    pub longest_us: u64,
    /// How many by length, see [`class_limit`].
    pub classes: [u64; CLASSES],
}

/// Waits shorter than this are in a class, or in one before it; `None` = in the last.
pub fn class_limit(class: usize) -> Option<Duration> {
    (class + 1 < CLASSES).then(|| Duration::from_micros(FIRST_US << class))
}

impl Histogram {
    fn add(&mut self, wait: Duration) {
        let us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let class = (us / FIRST_US).checked_ilog2().map_or(0, |n| n as usize + 1).min(CLASSES - 1);
        self.count += 1;
        self.total_us = self.total_us.saturating_add(us);
        self.longest_us = self.longest_us.max(us);
        self.classes[class] += 1;
    }

    /// The upper end of the class in which this share of the waits has been reached: so many were shorter. `None` = in the
    /// last class, or there are none.
    pub fn shorter(&self, percent: u64) -> Option<Duration> {
        let wanted = (self.count * percent).div_ceil(100).max(1);
        let mut sum = 0;
        let class = self.classes.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        class.and_then(class_limit)
    }

    fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.total_us = self.total_us.saturating_add(other.total_us);
        self.longest_us = self.longest_us.max(other.longest_us);
        self.classes.iter_mut().zip(other.classes).for_each(|(own, theirs)| *own = own.saturating_add(theirs));
    }
}

/// Waits that have ended, and those that go on.
#[derive(Debug, Default)]
pub struct Stalls {
    ended: BTreeMap<Who, Histogram>,
    /// By address space and page.
    waiting: HashMap<(usize, u64), Vec<(Who, Instant)>>,
}

impl Stalls {
    /// A thread waits for a page of an address space from now on. A thread that asks again (it was woken too early) has
    /// waited all the time.
    pub fn begin(&mut self, member: usize, page: u64, thread: u32, now: Instant) {
        let who = (member, thread);
        let waiting = self.waiting.entry((member, page)).or_default();
        if !waiting.iter().any(|(other, _)| *other == who) {
            waiting.push((who, now));
        }
    }

    /// These pages are there, or need not be waited for any more.
    pub fn end(&mut self, member: usize, first: u64, count: u64, now: Instant) {
        // Few wait at a time, and pages come in large pieces.
        let ended = |(of, page): &(usize, u64)| *of == member && *page >= first && *page - first < count;
        if self.waiting.is_empty() {
            return;
        }
        let Self { ended: histograms, waiting } = self;
        waiting.retain(|place, waits| {
            let over = ended(place);
            if over {
                waits.drain(..).for_each(|(who, since)| note(histograms, who, now.saturating_duration_since(since)));
            }
            !over
        });
    }

    /// Waits that have ended, the thread that has waited most first. `process` is whose an address space is, by its number.
    pub fn told(&self, process: impl Fn(usize) -> Option<i32>) -> Vec<Waits> {
        let mut rows: BTreeMap<(Option<i32>, u32), Histogram> = BTreeMap::new();
        for (&(member, thread), histogram) in &self.ended {
            rows.entry((process(member), thread)).or_default().merge(histogram);
        }
        let waits = |((process, thread), histogram)| Waits { process, thread, histogram };
        let mut rows: Vec<Waits> = rows.into_iter().map(waits).collect();
        rows.sort_by_key(|waits| std::cmp::Reverse(waits.histogram.total_us));
        rows
    }
}

fn note(histograms: &mut BTreeMap<Who, Histogram>, who: Who, wait: Duration) {
    let known = histograms.contains_key(&who) || histograms.len() < THREADS_MAX;
    histograms.entry(if known { who } else { OTHERS }).or_default().add(wait);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_is_counted_once_in_the_class_of_its_length() {
        let mut histogram = Histogram::default();
        for us in [0, 63, 64, 127, 128, 1 << 19, 1 << 20, u64::MAX / 2] {
            histogram.add(Duration::from_micros(us));
        }
        assert_eq!(histogram.count, histogram.classes.iter().sum::<u64>());
        assert_eq!((histogram.classes[0], histogram.classes[1], histogram.classes[2]), (2, 2, 1));
        assert_eq!(histogram.classes[CLASSES - 2], 1, "{histogram:?}");
        assert_eq!(histogram.classes[CLASSES - 1], 2, "{histogram:?}");
        for class in 0..CLASSES - 1 {
            let limit = class_limit(class).unwrap();
            let (mut below, mut at) = (Histogram::default(), Histogram::default());
            below.add(limit - Duration::from_micros(1));
            at.add(limit);
            assert_eq!((below.classes[class], at.classes[class + 1]), (1, 1), "{class}");
        }
        assert_eq!(class_limit(CLASSES - 1), None);
    }

    #[test]
    fn a_wait_lasts_until_its_page_is_there() {
        let mut stalls = Stalls::default();
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        stalls.begin(0, 5, 100, at(0));
        stalls.begin(0, 5, 101, at(1));
        stalls.begin(1, 5, 200, at(1));
        // Asked again.
        stalls.begin(0, 5, 100, at(2));
        stalls.end(0, 6, 10, at(3));
        assert!(stalls.told(|_| None).is_empty());
        stalls.end(0, 0, 6, at(4));
        stalls.end(0, 0, 6, at(9));
        let told = stalls.told(|member| (member == 0).then_some(7));
        let rows: Vec<_> =
            told.iter().map(|w| (w.process, w.thread, w.histogram.count, w.histogram.longest_us)).collect();
        assert_eq!(rows, [(Some(7), 100, 1, 4000), (Some(7), 101, 1, 3000)]);
        assert_eq!(told[0].histogram.shorter(50), Some(Duration::from_micros(64 << 6)));
    }

    #[test]
    fn a_target_with_threads_without_end_does_not_fill_us() {
        let mut stalls = Stalls::default();
        let now = Instant::now();
        for thread in 0..THREADS_MAX as u32 + 7 {
            stalls.begin(0, 1, thread, now);
            stalls.end(0, 1, 1, now);
        }
        let told = stalls.told(|member| (member == 0).then_some(1));
        assert_eq!(told.len(), THREADS_MAX + 1);
        assert_eq!(told.iter().find(|w| w.process.is_none()).map(|w| (w.thread, w.histogram.count)), Some((0, 7)));
    }
}
