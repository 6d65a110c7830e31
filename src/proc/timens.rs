//! `/proc/PID/timens_offsets` (time_namespaces(7)).

use super::{ProcDir, Result, Syntax, scan};

/// Offsets of a time namespace against the initial one, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    /// CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

/// Reads the offsets of the time namespace of the process's **children** (`time_for_children`).
///
/// # Errors
/// A line that is not a clock, seconds and nanoseconds, or an offset beyond 292 years.
pub fn parse(text: &[u8]) -> std::result::Result<Offsets, Syntax> {
    let mut offsets = Offsets::default();
    for (number, line) in scan::lines(text) {
        let mut words = scan::words(line);
        let mut set = || {
            let clock = words.next()?;
            let (seconds, nanoseconds) = (scan::int(words.next()?)?, scan::int(words.next()?)?);
            let value = seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)?;
            match clock {
                b"monotonic" | b"1" => offsets.monotonic_ns = value,
                b"boottime" | b"7" => offsets.boottime_ns = value,
                _ => return None,
            }
            Some(())
        };
        set().ok_or_else(|| Syntax::new(number, "expected CLOCK SECONDS NANOSECONDS", line))?;
    }
    Ok(offsets)
}

impl Offsets {
    /// The text to be written before the first process enters the namespace. The kernel wants nanoseconds in 0..10^9.
    pub fn to_text(self) -> String {
        let line = |clock: &str, ns: i64| {
            format!("{clock} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
        };
        line("monotonic", self.monotonic_ns) + &line("boottime", self.boottime_ns)
    }
}

/// Offsets of the clocks that this program sees; none where the kernel has no time namespaces.
pub fn own() -> Offsets {
    ProcDir::of_self().and_then(|dir| dir.timens_offsets(&mut Vec::new())).unwrap_or_default()
}

impl ProcDir {
    /// Reads `timens_offsets`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`]; absent without CONFIG_TIME_NS.
    pub fn timens_offsets(&self, buf: &mut Vec<u8>) -> Result<Offsets> {
        self.parsed("timens_offsets", buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"monotonic           5         7\nboottime           -6         0\n";

    #[test]
    fn both_clocks_and_back() {
        let offsets = parse(SAMPLE).unwrap();
        assert_eq!(offsets, Offsets { monotonic_ns: 5_000_000_007, boottime_ns: -6_000_000_000 });
        let negative = Offsets { monotonic_ns: -1, boottime_ns: 0 };
        assert_eq!(negative.to_text(), "monotonic -1 999999999\nboottime 0 0\n");
        assert_eq!(parse(negative.to_text().as_bytes()).unwrap(), negative);
        assert!(parse(b"monotonic 9223372036854775807 0\n").is_err());
        assert!(parse(b"realtime 1 0\n").is_err());
    }

    #[test]
    fn our_own() {
        ProcDir::of_self().unwrap().timens_offsets(&mut Vec::new()).unwrap();
    }
}
