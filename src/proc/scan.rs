//! Small scanners over bytes. All are total and linear.

use super::Syntax;
use crate::image::Bytes;
use std::collections::BTreeSet;

/// Lines with their numbers (1 for the first), without the newline. A last line without newline counts; an empty rest does not.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let n = if text.is_empty() { 0 } else { usize::MAX };
    text.split(|&b| b == b'\n').take(n).enumerate().map(|(n, line)| (n + 1, line))
}

/// Words separated by any number of blanks and tabs.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&b| b == b' ' || b == b'\t').filter(|w| !w.is_empty())
}

/// Without blanks and tabs on both sides.
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\n'] = text {
        text = rest;
    }
    text
}

/// What stands before and after the first `separator`.
pub(super) fn cut(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&b| b == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

fn number(text: &[u8], radix: u64) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &b in text {
        let digit = (b as char).to_digit(16)?;
        if u64::from(digit) >= radix {
            return None;
        }
        value = value.checked_mul(radix)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// An unsigned decimal number, digits only.
pub(super) fn dec(text: &[u8]) -> Option<u64> {
    number(text, 10)
}

/// A hexadecimal number without prefix.
pub(super) fn hex(text: &[u8]) -> Option<u64> {
    number(text, 16)
}

/// An octal number, with or without a leading 0.
pub(super) fn oct(text: &[u8]) -> Option<u64> {
    number(text, 8)
}

/// A decimal number that may be negative.
pub(super) fn int(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(number(digits, 10)?),
        None => i64::try_from(number(text, 10)?).ok(),
    }
}

/// An unsigned decimal number that fits 32 bits.
pub(super) fn dec32(text: &[u8]) -> Option<u32> {
    dec(text).and_then(|n| u32::try_from(n).ok())
}

/// A decimal number that may be negative and fits 32 bits.
pub(super) fn int32(text: &[u8]) -> Option<i32> {
    int(text).and_then(|n| i32::try_from(n).ok())
}

/// A list of numbers below `limit` as the kernel writes those of processors and nodes: `0-3,8`. Empty is a list, too.
pub(super) fn number_list(text: &[u8], limit: u32) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.split(|&b| b == b',').filter(|_| !text.is_empty()) {
        let (first, last) = cut(part, b'-').unwrap_or((part, part));
        let (first, last) = (dec32(first)?, dec32(last)?);
        if first > last || last >= limit {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// `MAJOR:MINOR` in the given radix (16 in maps, 10 in mountinfo) as `makedev(3)` encodes it.
pub(super) fn device(text: &[u8], radix: u64) -> Option<u64> {
    let (major, minor) = cut(text, b':')?;
    let (major, minor) = (number(major, radix)?, number(minor, radix)?);
    if major > u64::from(u32::MAX) || minor > u64::from(u32::MAX) {
        return None;
    }
    Some(nix::sys::stat::makedev(major, minor))
}

/// `sdev` of fdinfo (the kernel's own encoding, 12 bits major and 20 bits minor) as `makedev(3)` encodes it.
pub(super) fn kernel_device(text: &[u8]) -> Option<u64> {
    let value = u32::try_from(hex(text)?).ok()?;
    Some(nix::sys::stat::makedev(u64::from(value >> 20), u64::from(value & 0xf_ffff)))
}

/// Undoes the kernel's octal escapes (`\040` for a blank). A backslash that starts no escape stands for itself.
pub(super) fn unescape_octal(text: &[u8]) -> Bytes {
    if !text.contains(&b'\\') {
        return text.into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out.into()
}

/// Undoes the escapes of process names in stat and status: `\n` and `\\`.
pub(super) fn unescape_comm(text: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match rest {
            [b'\\', b'n', tail @ ..] => (b'\n', tail),
            [b'\\', b'\\', tail @ ..] => (b'\\', tail),
            _ => (first, tail),
        };
        out.push(byte);
        rest = tail;
    }
    out.into()
}

/// Turns a missing value into a [`Syntax`] error for `line`.
pub(super) trait OrSyntax<T> {
    /// `what` says what was expected.
    fn or_syntax(self, line: (usize, &[u8]), what: &'static str) -> Result<T, Syntax>;
}

impl<T> OrSyntax<T> for Option<T> {
    fn or_syntax(self, (number, text): (usize, &[u8]), what: &'static str) -> Result<T, Syntax> {
        self.ok_or_else(|| Syntax::new(number, what, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_strict() {
        assert_eq!(dec(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(dec(b"18446744073709551616"), None);
        assert_eq!(dec(b""), None);
        assert_eq!(dec(b"+1"), None);
        assert_eq!(dec(b"1a"), None);
        assert_eq!(int(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(int(b"-9223372036854775809"), None);
        assert_eq!(int(b"--1"), None);
        assert_eq!(hex(b"ffFF"), Some(0xffff));
        assert_eq!(oct(b"0100002"), Some(0o100002));
        assert_eq!(oct(b"8"), None);
    }

    #[test]
    fn lines_count_as_written() {
        assert_eq!(lines(b"").count(), 0);
        assert_eq!(lines(b"\n").count(), 0);
        assert_eq!(lines(b"a\n\nb").map(|(n, l)| (n, l.len())).collect::<Vec<_>>(), [(1, 1), (2, 0), (3, 1)]);
        assert_eq!(lines(b"a\n").count(), 1);
    }

    #[test]
    fn lists_are_bounded() {
        let list = |text: &[u8]| number_list(text, 8).map(|numbers| numbers.into_iter().collect::<Vec<_>>());
        assert_eq!(list(b"0-2,5").as_deref(), Some(&[0, 1, 2, 5][..]));
        assert_eq!(list(b"").as_deref(), Some(&[][..]));
        assert_eq!([&b"0-8"[..], b"2-1", b"1,", b"a", b"1-"].map(list), [const { None }; 5]);
    }

    #[test]
    fn escapes_are_undone_and_others_left() {
        assert_eq!(unescape_octal(br"a\040b\134c\9").0, b"a b\\c\\9");
        assert_eq!(unescape_octal(br"\777").0, br"\777");
        assert_eq!(unescape_octal(br"\37").0, br"\37");
        assert_eq!(unescape_comm(br"a\nb\\n").0, b"a\nb\\n");
        assert_eq!(unescape_comm(b"end\\").0, b"end\\");
    }

    #[test]
    fn devices_use_the_encoding_of_stat() {
        assert_eq!(device(b"fd:01", 16), Some(nix::sys::stat::makedev(0xfd, 1)));
        assert_eq!(device(b"259:1048575", 10), Some(nix::sys::stat::makedev(259, 1_048_575)));
        assert_eq!(kernel_device(b"800011"), Some(nix::sys::stat::makedev(8, 17)));
        assert_eq!(device(b"1", 10), None);
    }
}
