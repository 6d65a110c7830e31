//! `/proc/PID/cgroup` (cgroups(7)).

use super::{ProcDir, Result, Syntax, scan};
use crate::image::{
    Bytes,
    cgroup::{CgroupSet, Membership},
};

/// One line: a hierarchy and the cgroup in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Number of the hierarchy, 0 for version 2. It differs from boot to boot.
    pub hierarchy: u32,
    /// Controllers (`cpu,cpuacct`, `name=systemd`); empty for version 2.
    pub controllers: String,
    /// Path from the root of the hierarchy, as the reader's cgroup namespace shows it (it may start with `/..`).
    pub path: Bytes,
    /// The cgroup has been removed; the process in it is a zombie.
    pub deleted: bool,
}

/// Reads the lines, in the order of the file.
///
/// # Errors
/// A line that is not `NUMBER:CONTROLLERS:PATH`.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Line>, Syntax> {
    scan::lines(text)
        .map(|(number, line)| {
            let syntax = || Syntax::new(number, "expected NUMBER:CONTROLLERS:PATH", line);
            let (hierarchy, rest) = scan::cut(line, b':').ok_or_else(syntax)?;
            let (controllers, path) = scan::cut(rest, b':').ok_or_else(syntax)?;
            let hierarchy = scan::dec32(hierarchy).ok_or_else(syntax)?;
            let controllers = std::str::from_utf8(controllers).map_err(|_| syntax())?.to_owned();
            // A live cgroup may be called "x (deleted)", too; nobody does, and the path is then looked up in vain.
            let (path, deleted) = path.strip_suffix(b" (deleted)").map_or((path, false), |path| (path, true));
            Ok(Line { hierarchy, controllers, path: path.into(), deleted })
        })
        .collect()
}

impl ProcDir {
    /// Reads `cgroup`, in the order of the file.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn cgroup(&self, buf: &mut Vec<u8>) -> Result<Vec<Line>> {
        self.parsed("cgroup", buf, parse)
    }

    /// The same as a set of memberships of the model.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn cgroup_set(&self, buf: &mut Vec<u8>) -> Result<CgroupSet> {
        let lines = self.cgroup(buf)?;
        let memberships = lines.into_iter().map(|l| Membership { controllers: l.controllers, path: l.path }).collect();
        Ok(CgroupSet { memberships })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] =
        b"12:freezer:/a:b\n3:cpu,cpuacct:/\n1:name=systemd:/user.slice/x (deleted)\n0::/../init.scope\n";

    #[test]
    fn paths_may_contain_colons() {
        let lines = parse(SAMPLE).unwrap();
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[0].hierarchy, lines[0].path.0.as_slice()), (12, b"/a:b".as_slice()));
        assert_eq!(lines[1].controllers, "cpu,cpuacct");
        assert!(lines[2].deleted && lines[2].path.0 == b"/user.slice/x");
        assert_eq!((lines[3].hierarchy, lines[3].controllers.as_str()), (0, ""));
        assert!(parse(b"0:x\n").is_err());
    }
}
