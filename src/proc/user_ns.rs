//! `/proc/PID/uid_map`, `gid_map`, `setgroups` (user_namespaces(7)).

use super::{ProcDir, Result, Syntax, scan};
use crate::image::ns::user::IdMap;

/// Lines a map may have (user_namespaces(7), 4.15+).
pub const LINES_MAX: usize = 340;

/// Reads an id map: first id inside, first id outside (as the reader's user namespace numbers it; `u32::MAX` where that
/// has no number for it), count.
///
/// # Errors
/// A line that is not three numbers, or more lines than the kernel allows.
pub fn parse_map(text: &[u8]) -> std::result::Result<Vec<IdMap>, Syntax> {
    let mut maps = Vec::new();
    for (number, line) in scan::lines(text) {
        let mut words = scan::words(line);
        let mut next = || words.next().and_then(scan::dec32);
        match (next(), next(), next(), next()) {
            (Some(inside), Some(outside), Some(count), None) if maps.len() < LINES_MAX => {
                maps.push(IdMap { inside, outside, count });
            }
            _ => return Err(Syntax::new(number, "expected three numbers of an id map", line)),
        }
    }
    Ok(maps)
}

/// The number inside for a number outside; `None` if it is not mapped.
pub fn to_inside(maps: &[IdMap], outside: u32) -> Option<u32> {
    let map = maps.iter().find(|m| outside >= m.outside && outside - m.outside < m.count)?;
    map.inside.checked_add(outside - map.outside)
}

/// The number outside for a number inside; `None` if it is not mapped.
pub fn to_outside(maps: &[IdMap], inside: u32) -> Option<u32> {
    let map = maps.iter().find(|m| inside >= m.inside && inside - m.inside < m.count)?;
    map.outside.checked_add(inside - map.inside)
}

impl ProcDir {
    /// Reads `uid_map`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn uid_map(&self, buf: &mut Vec<u8>) -> Result<Vec<IdMap>> {
        self.parsed("uid_map", buf, parse_map)
    }

    /// Reads `gid_map`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn gid_map(&self, buf: &mut Vec<u8>) -> Result<Vec<IdMap>> {
        self.parsed("gid_map", buf, parse_map)
    }

    /// Whether `setgroups` says `deny`.
    ///
    /// # Errors
    /// See [`ProcDir::read_into`].
    pub fn setgroups_denied(&self, buf: &mut Vec<u8>) -> Result<bool> {
        Ok(self.read_into("setgroups", buf)?.starts_with(b"deny"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"         0     100000      65536\n     70000          5 1\n";

    #[test]
    fn both_ways() {
        let maps = parse_map(SAMPLE).unwrap();
        assert_eq!(to_inside(&maps, 100_033), Some(33));
        assert_eq!(to_inside(&maps, 5), Some(70_000));
        assert_eq!(to_inside(&maps, 6), None);
        assert_eq!(to_outside(&maps, 65_535), Some(165_535));
        assert_eq!(to_outside(&maps, 65_536), None);
        assert!(parse_map(b"0 0\n").is_err());
        assert!(parse_map(b"0 0 1 2\n").is_err());
        assert!(parse_map(&b"0 0 1\n".repeat(LINES_MAX + 1)).is_err());
    }

    #[test]
    fn our_own_map_is_not_empty() {
        let dir = ProcDir::of_self().unwrap();
        assert!(!dir.uid_map(&mut Vec::new()).unwrap().is_empty());
        assert!(!dir.gid_map(&mut Vec::new()).unwrap().is_empty());
        dir.setgroups_denied(&mut Vec::new()).unwrap();
    }
}
