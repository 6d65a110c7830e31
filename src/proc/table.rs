//! All processes at one glance: what lists and the search for targets need. Not for the collect path.

use super::{ProcDir, Result, cgroup, stat::Stat, status::Memory, task};
use crate::image::Pid;
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

/// One process. Kernel threads, and processes outside the tree in a table made by [`Table::around`], have `stat` alone; what
/// else is here is then empty.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its process id.
    pub pid: Pid,
    /// `stat`.
    pub stat: Stat,
    /// Real, effective, saved, file-system user, as this reader's user namespace numbers them.
    pub uids: [u32; 4],
    /// Memory; `None` for zombies and kernel threads.
    pub memory: Option<Memory>,
    /// Its id in each PID namespace, from the reader's inwards.
    pub ns_pid: Vec<i32>,
    /// Who traces it, 0 = nobody.
    pub tracer: i32,
    /// seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Memberships, a line a hierarchy.
    pub cgroups: Vec<cgroup::Line>,
}

impl Row {
    /// The parent; 0 outside the reader's PID namespace.
    pub fn parent(&self) -> Pid {
        Pid(self.stat.ppid)
    }

    /// A thread of the kernel.
    pub fn is_kernel(&self) -> bool {
        self.stat.is_of_kernel()
    }

    /// First process of a PID namespace below the reader's: of a container, as a rule.
    pub fn is_inner_init(&self) -> bool {
        self.ns_pid.len() > 1 && self.ns_pid.last() == Some(&1)
    }

    /// Its cgroups, read now if they have not been.
    pub fn read_cgroups(&self, buf: &mut Vec<u8>) -> Result<Cow<'_, [cgroup::Line]>> {
        if self.is_kernel() || !self.cgroups.is_empty() {
            return Ok(Cow::Borrowed(&self.cgroups));
        }
        ProcDir::open(self.pid)?.cgroup(buf).map(Cow::Owned)
    }

    /// The path in cgroup version 2, or in systemd's own hierarchy of version 1 where that is the one it uses.
    pub fn systemd_path(&self) -> Option<&[u8]> {
        let of =
            |controllers: &str| self.cgroups.iter().find(|l| l.controllers == controllers).map(|l| l.path.0.as_slice());
        of("name=systemd").filter(|p| *p != b"/").or_else(|| of(""))
    }
}

/// All processes that `/proc` shows, by process id.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Row>,
    index: HashMap<Pid, usize>,
    children: HashMap<Pid, Vec<Pid>>,
}

/// The row of a process with `stat` alone.
fn brief(pid: Pid, buf: &mut Vec<u8>) -> Result<Row> {
    let stat = ProcDir::stat_of_process(pid, buf)?;
    let (ns_pid, cgroups) = (vec![pid.0], Vec::new());
    Ok(Row { pid, stat, uids: [0; 4], memory: None, ns_pid, tracer: 0, seccomp: 0, cgroups })
}

/// Reads the rest. Kernel threads are half of the processes of an idle host, and nothing else of them is of interest.
fn complete(row: &mut Row, dir: &ProcDir, buf: &mut Vec<u8>) -> Result<()> {
    if row.is_kernel() {
        return Ok(());
    }
    let status = dir.status(buf)?;
    (row.uids, row.memory, row.ns_pid) = (status.uids, status.memory, status.ns_pid);
    (row.tracer, row.seccomp) = (status.tracer_pid, status.seccomp);
    row.cgroups = dir.cgroup(buf)?;
    Ok(())
}

/// Nothing, for a process that has ended.
fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_gone() => Ok(None),
        Err(e) => Err(e),
    }
}

impl Table {
    /// Reads `stat`, `status` and `cgroup` of every process. Processes that end meanwhile are passed over.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn read() -> Result<Self> {
        let mut buf = Vec::new();
        let mut rows = Vec::new();
        for pid in task::processes()? {
            let row = ProcDir::open(pid).and_then(|dir| {
                let mut row = brief(pid, &mut buf)?;
                complete(&mut row, &dir, &mut buf)?;
                Ok(row)
            });
            rows.extend(unless_gone(row)?);
        }
        Ok(Self::of(rows))
    }

    /// The same, but of processes outside the tree below `root` only `stat`, and nothing of the kernel's threads: several times as
    /// fast.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn around(root: Pid) -> Result<Self> {
        let mut buf = Vec::new();
        let mut rows = Vec::new();
        let kernel = task::kernel_threads(&mut buf);
        for pid in task::processes()?.into_iter().filter(|pid| *pid == root || kernel.binary_search(pid).is_err()) {
            rows.extend(unless_gone(brief(pid, &mut buf))?);
        }
        let mut table = Self::of(rows);
        for pid in table.tree(root) {
            let row = &mut table.rows[table.index[&pid]];
            // One that has ended since keeps what is known: whoever looks at it next will see that it is gone.
            unless_gone(ProcDir::open(pid).and_then(|dir| complete(row, &dir, &mut buf)))?;
        }
        Ok(table)
    }

    /// A table of given rows.
    pub fn of(mut rows: Vec<Row>) -> Self {
        rows.sort_by_key(|row| row.pid);
        let index = rows.iter().enumerate().map(|(n, row)| (row.pid, n)).collect();
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for row in &rows {
            children.entry(row.parent()).or_default().push(row.pid);
        }
        Self { rows, index, children }
    }

    /// Rows, ascending by process id.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row of one process.
    pub fn get(&self, pid: Pid) -> Option<&Row> {
        self.index.get(&pid).map(|&at| &self.rows[at])
    }

    /// Children of a process, ascending.
    pub fn children(&self, pid: Pid) -> &[Pid] {
        self.children.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// A process and all its descendants, parents before children; empty if there is no such process.
    pub fn tree(&self, root: Pid) -> Vec<Pid> {
        let mut found = Vec::new();
        // Rows are read one after the other: parents that ended and numbers used again could make a circle.
        let mut seen = HashSet::new();
        let mut todo = std::collections::VecDeque::from([root]);
        while let Some(pid) = todo.pop_front() {
            if self.get(pid).is_some() && seen.insert(pid) {
                found.push(pid);
                todo.extend(self.children(pid));
            }
        }
        found
    }

    /// Parent, grandparent and so on, nearest first.
    pub fn ancestors(&self, pid: Pid) -> Vec<Pid> {
        let mut found = Vec::new();
        let mut next = self.get(pid).map(Row::parent);
        while let Some(row) = next.and_then(|parent| self.get(parent)).filter(|row| !found.contains(&row.pid)) {
            found.push(row.pid);
            next = Some(row.parent());
        }
        found
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A row with nothing but ids.
    pub(crate) fn row(pid: i32, ppid: i32, sid: i32) -> Row {
        let stat = Stat { pid, ppid, session: sid, state: b'S', num_threads: 1, ..Stat::default() };
        let ns_pid = vec![pid];
        Row { pid: Pid(pid), stat, uids: [0; 4], memory: None, ns_pid, tracer: 0, seccomp: 0, cgroups: Vec::new() }
    }

    #[test]
    fn this_process_and_its_ancestors() {
        let table = Table::read().unwrap();
        let own = Pid(std::process::id() as i32);
        assert!(table.ancestors(own).contains(&table.get(own).unwrap().parent()));
        assert!(table.tree(table.get(own).unwrap().parent()).contains(&own));
        assert!(table.tree(Pid(-5)).is_empty());
    }

    #[test]
    fn around_a_process_only_its_tree_is_complete() {
        let kernel = task::kernel_threads(&mut Vec::new());
        assert!(kernel.iter().all(|pid| brief(*pid, &mut Vec::new()).is_ok_and(|row| row.is_kernel())));
        let own = Pid(std::process::id() as i32);
        let table = Table::around(own).unwrap();
        assert!(table.get(own).unwrap().memory.is_some());
        let parent = table.get(table.get(own).unwrap().parent()).unwrap();
        assert!(parent.memory.is_none() && parent.cgroups.is_empty());
        assert!(!parent.read_cgroups(&mut Vec::new()).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn circles_end(parents in prop::collection::vec(0i32..12, 12)) {
            let rows = parents.iter().enumerate().map(|(n, &parent)| row(n as i32, parent, 0)).collect();
            let table = Table::of(rows);
            for pid in 0..12 {
                prop_assert!(table.tree(Pid(pid)).len() <= 12);
                prop_assert!(table.ancestors(Pid(pid)).len() <= 12);
            }
        }
    }
}
