//! Quantities with units: never a bare number where a unit could be mistaken.

use super::WordError;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: `4096`, `64KiB`, `1GiB`, `10MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Bytes a second: `100MB/s`, `64KiB/s`, `1Gbit/s`. Never a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

/// A span of time: `50ms`, `2s`, `5m`, `1h`, also `1.5s`. Never a bare number but `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

/// Whole percents, 0 to 100: `75%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(pub u8);

/// Names of byte units and their sizes; the binary ones first, so that `Display` prefers them.
const BYTES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Names of bit units and how many bits they are.
const BITS: [(&str, u64); 4] = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

/// Names of units of time and their nanoseconds.
const TIMES: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Splits `1.5GiB` into `1.5` and `GiB`.
fn split(word: &str) -> (&str, &str) {
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    word.split_at(end)
}

/// `number` units in base units, without floating point; `None` if it is no number, not whole in base units, or too big.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 12 {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    let part = match fraction {
        "" => 0,
        digits => {
            let scaled = u128::from(digits.parse::<u64>().ok()?) * u128::from(unit);
            let ten = 10u128.pow(u32::try_from(digits.len()).ok()?);
            if scaled % ten != 0 {
                return None;
            }
            scaled / ten
        }
    };
    u64::try_from(whole + part).ok()
}

fn lookup(units: &[(&str, u64)], name: &str) -> Option<u64> {
    units.iter().find(|(unit, _)| unit.eq_ignore_ascii_case(name)).map(|(_, size)| *size)
}

/// The largest of `units` that divides `amount`, and how many of it that is.
fn largest<'a>(units: &[(&'a str, u64)], amount: u64) -> (u64, &'a str) {
    units
        .iter()
        .filter(|(_, size)| amount != 0 && amount.is_multiple_of(*size))
        .map(|(name, size)| (amount / size, *name))
        .min_by_key(|(count, _)| *count)
        .unwrap_or((amount, units[units.len() - 1].0))
}

impl FromStr for Size {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let (number, unit) = split(word);
        let unit = if unit.is_empty() { Some(1) } else { lookup(&BYTES, unit) };
        unit.and_then(|unit| scale(number, unit)).map(Self).ok_or_else(|| {
            WordError::new("size", word, "write bytes, or a number with a unit, as in 4096, 64KiB or 1GiB")
        })
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match largest(&BYTES, self.0) {
            (count, "B") => write!(f, "{count}"),
            (count, unit) => write!(f, "{count}{unit}"),
        }
    }
}

impl FromStr for Rate {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new("rate", word, why);
        let amount = word.strip_suffix("/s").ok_or_else(|| {
            wrong("a rate is an amount a second, as in 100MB/s or 1Gbit/s; a bare number is not accepted")
        })?;
        let (number, unit) = split(amount);
        let bytes = if let Some(bits) = lookup(&BITS, unit) {
            scale(number, bits).filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8)
        } else {
            lookup(&BYTES, unit).and_then(|unit| scale(number, unit))
        };
        match bytes {
            Some(0) => Err(wrong("it must be more than nothing")),
            Some(bytes) => Ok(Self(bytes)),
            None => Err(wrong("write a number with a unit of bytes or bits, as in 100MB/s or 1Gbit/s")),
        }
    }
}

impl Display for Rate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (count, unit) = largest(&BYTES, self.0);
        write!(f, "{count}{unit}/s")
    }
}

impl FromStr for Time {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let (number, unit) = split(word);
        if number == "0" && unit.is_empty() {
            return Ok(Self(Duration::ZERO));
        }
        lookup(&TIMES, unit)
            .and_then(|unit| scale(number, unit))
            .map(|ns| Self(Duration::from_nanos(ns)))
            .ok_or_else(|| WordError::new("time", word, "write a number with a unit, as in 50ms, 2s, 5m or 1h"))
    }
}

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // More than 584 years cannot be written in nanoseconds and cannot be read either.
        let ns = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        let (count, unit) = if ns == 0 { (0, "s") } else { largest(&TIMES, ns) };
        write!(f, "{count}{unit}")
    }
}

impl FromStr for Percent {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        word.strip_suffix('%')
            .and_then(|number| number.parse().ok())
            .filter(|percent| *percent <= 100)
            .map(Self)
            .ok_or_else(|| {
                WordError::new("percentage", word, "write a whole number from 0 to 100 with the sign, as in 75%")
            })
    }
}

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read<T: FromStr>(word: &str) -> Option<T> {
        word.parse().ok()
    }

    #[test]
    fn sizes_of_the_contract() {
        assert_eq!(read("4096"), Some(Size(4096)));
        assert_eq!(read("64KiB"), Some(Size(65536)));
        assert_eq!(read("1GiB"), Some(Size(1 << 30)));
        assert_eq!(read("1.5MiB"), Some(Size(1_572_864)));
        assert_eq!(read("10MB"), Some(Size(10_000_000)));
        for wrong in ["", "KiB", "1.", ".5", "1.5", "-1", "1 GiB", "1Gbit", "17179869184GiB", "0.3B", "1e3"] {
            assert_eq!(read::<Size>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rates_are_never_bare() {
        assert_eq!(read("100MB/s"), Some(Rate(100_000_000)));
        assert_eq!(read("1Gbit/s"), Some(Rate(125_000_000)));
        assert_eq!(read("2.5Gbit/s"), Some(Rate(312_500_000)));
        for wrong in ["100", "100MB", "100/s", "1bit/s", "0B/s", "MB/s"] {
            assert_eq!(read::<Rate>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_never_bare() {
        assert_eq!(read("50ms"), Some(Time(Duration::from_millis(50))));
        assert_eq!(read("2s"), Some(Time(Duration::from_secs(2))));
        assert_eq!(read("5m"), Some(Time(Duration::from_secs(300))));
        assert_eq!(read("1h"), Some(Time(Duration::from_secs(3600))));
        assert_eq!(read("1.5s"), Some(Time(Duration::from_millis(1500))));
        assert_eq!(read("0"), Some(Time(Duration::ZERO)));
        for wrong in ["50", "", "s", "1d", "-1s", "1s2"] {
            assert_eq!(read::<Time>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(read("75%"), Some(Percent(75)));
        for wrong in ["75", "101%", "%", "-1%", "7.5%"] {
            assert_eq!(read::<Percent>(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn size_reads_what_it_writes(n: u64) {
            prop_assert_eq!(read(&Size(n).to_string()), Some(Size(n)));
        }

        #[test]
        fn round_sizes_are_short(n in 1u64..1024, shift in 0u32..5) {
            let size = Size(n << (10 * shift));
            prop_assert_eq!(read(&size.to_string()), Some(size));
            prop_assert!(size.to_string().len() <= 8);
        }

        #[test]
        fn rate_reads_what_it_writes(n in 1u64..) {
            prop_assert_eq!(read(&Rate(n).to_string()), Some(Rate(n)));
        }

        #[test]
        fn time_reads_what_it_writes(n: u64) {
            let time = Time(Duration::from_nanos(n));
            prop_assert_eq!(read(&time.to_string()), Some(time));
        }

        #[test]
        fn percent_reads_what_it_writes(n in 0u8..=100) {
            prop_assert_eq!(read(&Percent(n).to_string()), Some(Percent(n)));
        }

        #[test]
        fn any_text_is_read_or_refused(word in ".{0,40}") {
            let _ = (read::<Size>(&word), read::<Rate>(&word), read::<Time>(&word), read::<Percent>(&word));
        }
    }
}
