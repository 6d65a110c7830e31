//! Quantities for people: three digits, the unit that fits.

use std::time::Duration;

/// Bytes: `512 B`, `4.00 KiB`, `1.25 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// A span of time: `850 us`, `4.20 ms`, `1.50 s`, `2 min 5 s`.
pub fn time(span: Duration) -> String {
    let us = span.as_secs_f64() * 1e6;
    if us < 999.5 {
        format!("{us:.0} us")
    } else if us < 999_500.0 {
        format!("{} ms", three_digits(us / 1e3))
    } else if us < 60e6 {
        format!("{} s", three_digits(us / 1e6))
    } else {
        let seconds = span.as_secs();
        match seconds {
            ..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
            _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        }
    }
}

/// `1 page`, `2 pages`.
pub fn count(number: u64, noun: &str) -> String {
    match (number, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "process") => format!("{number} processes"),
        _ => format!("{number} {noun}s"),
    }
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(4096), "4.00 KiB");
        assert_eq!(bytes(1_023_000), "999 KiB");
        assert_eq!(bytes(1_000_000 << 10), "977 MiB");
        assert_eq!(bytes(1 << 30), "1.00 GiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(time(Duration::from_micros(850)), "850 us");
        assert_eq!(time(Duration::from_nanos(999_600)), "1.00 ms");
        assert_eq!(time(Duration::from_millis(42)), "42.0 ms");
        assert_eq!(time(Duration::from_millis(1500)), "1.50 s");
        assert_eq!(time(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(time(Duration::from_secs(7260)), "2 h 1 min");
        assert_eq!(count(1, "process"), "1 process");
        assert_eq!(count(3, "process"), "3 processes");
        assert_eq!(count(0, "page"), "0 pages");
    }
}
