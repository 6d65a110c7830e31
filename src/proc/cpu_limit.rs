//! Processor time of a cgroup (`cpu.max` of version 2, `cpu.cfs_quota_us` of version 1): less for a while, then as before.

use super::cgroupfs::{Hierarchy, own_cgroup};
use super::table::Table;
use crate::image::Pid;
use std::io;
use std::path::PathBuf;

/// Length of an accounting period, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// A cgroup whose processor time is limited until this is dropped.
#[derive(Debug)]
pub struct CpuLimit {
    dir: PathBuf,
    v2: bool,
    before: String,
}

impl CpuLimit {
    /// The limit of the cgroup that holds exactly these processes, as it is; `None` if there is no such cgroup with a
    /// processor controller.
    pub fn of(table: &Table, processes: &[Pid], hierarchies: &[Hierarchy]) -> Option<Self> {
        hierarchies.iter().find_map(|hierarchy| {
            let dir = own_cgroup(table, processes, hierarchy)?;
            let v2 = hierarchy.is_v2();
            let before = std::fs::read_to_string(dir.join(file(v2))).ok()?;
            Some(Self { dir, v2, before: before.trim().to_owned() })
        })
    }

    /// Allows so many thousandths of one processor.
    ///
    /// # Errors
    /// The cgroup is gone, or no privilege.
    pub fn set(&self, thousandths: u64) -> io::Result<()> {
        let quota = (PERIOD_US * thousandths / 1000).max(1000);
        if !self.v2 {
            std::fs::write(self.dir.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
        }
        self.write(&if self.v2 { format!("{quota} {PERIOD_US}") } else { quota.to_string() })
    }

    fn write(&self, value: &str) -> io::Result<()> {
        std::fs::write(self.dir.join(file(self.v2)), value)
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        // The cgroup may have gone with its processes.
        let _ = self.write(&self.before);
    }
}

fn file(v2: bool) -> &'static str {
    if v2 { "cpu.max" } else { "cpu.cfs_quota_us" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_comes_back() {
        for (v2, before, limited) in [(true, "max 100000", "25000 100000"), (false, "-1", "25000")] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file(v2));
            let limit = CpuLimit { dir: dir.path().into(), v2, before: before.into() };
            limit.set(250).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), limited);
            drop(limit);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        }
    }
}
