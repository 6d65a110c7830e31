//! Processor time of a cgroup (`cpu.max` of version 2, `cpu.cfs_quota_us` of version 1): less for a while, then as before.

use super::cgroupfs::{Hierarchy, own_cgroup};
use super::table::Table;
use crate::image::Pid;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Length of an accounting period, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Where version 1 has it.
const PERIOD: &str = "cpu.cfs_period_us";

/// A cgroup's limit as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    dir: PathBuf,
    v2: bool,
    limit: String,
    /// Length of the accounting period, where that is a file of its own (version 1).
    period: Option<String>,
}

impl Before {
    /// Makes it so again.
    ///
    /// # Errors
    /// The cgroup is gone, with its processes perhaps.
    pub fn put_back(&self) -> io::Result<()> {
        if let Some(period) = &self.period {
            std::fs::write(self.dir.join(PERIOD), period)?;
        }
        self.write(&self.limit)
    }

    fn write(&self, value: &str) -> io::Result<()> {
        std::fs::write(self.dir.join(file(self.v2)), value)
    }
}

/// A cgroup whose processor time is limited until this is dropped.
#[derive(Debug)]
pub struct CpuLimit(Before);

impl CpuLimit {
    /// The limit of the cgroup that holds exactly these processes, as it is; `None` if there is no such cgroup with a
    /// processor controller.
    pub fn of(table: &Table, processes: &[Pid], hierarchies: &[Hierarchy]) -> Option<Self> {
        hierarchies.iter().find_map(|hierarchy| {
            let dir = own_cgroup(table, processes, hierarchy)?;
            let v2 = hierarchy.is_v2();
            let read = |name: &str| Some(std::fs::read_to_string(dir.join(name)).ok()?.trim().to_owned());
            let (limit, period) = (read(file(v2))?, if v2 { None } else { Some(read(PERIOD)?) });
            Some(Self(Before { dir, v2, limit, period }))
        })
    }

    /// What is put back when this is dropped.
    pub fn before(&self) -> &Before {
        &self.0
    }

    /// Allows so many thousandths of one processor.
    ///
    /// # Errors
    /// The cgroup is gone, or no privilege.
    pub fn set(&self, thousandths: u64) -> io::Result<()> {
        let quota = (PERIOD_US * thousandths / 1000).max(1000);
        if !self.0.v2 {
            std::fs::write(self.0.dir.join(PERIOD), PERIOD_US.to_string())?;
        }
        self.0.write(&if self.0.v2 { format!("{quota} {PERIOD_US}") } else { quota.to_string() })
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        // The cgroup may have gone with its processes.
        let _ = self.0.put_back();
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
            let period = (!v2).then(|| "50000".to_owned());
            let limit = CpuLimit(Before { dir: dir.path().into(), v2, limit: before.into(), period });
            limit.set(250).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), limited);
            drop(limit);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
            assert_eq!(v2, !dir.path().join(PERIOD).exists());
            assert!(v2 || std::fs::read_to_string(dir.path().join(PERIOD)).unwrap() == "50000");
        }
    }
}
