//! What this host has too little of for a tree: numbers, sizes, privileges. A pure comparison of a model with a [`Host`].

use super::creds::Own;
use crate::blocker::{Blocker, codes};
use crate::image::mm::{Backing, Mm, ShmemKind, Vma};
use crate::image::task::{Sched, Task, Thread};
use crate::image::{Model, NsPid};

use crate::proc::{ProcDir, sys};
use std::collections::{BTreeMap, BTreeSet};

/// Capabilities, as bit masks (capabilities(7)).
const IPC_LOCK: u64 = 1 << 14;
const SYS_RAWIO: u64 = 1 << 17;
const SYS_NICE: u64 = 1 << 23;
const SYS_RESOURCE: u64 = 1 << 24;

/// Largest address of a program where page tables have four levels, and one more (x86-64).
const FOUR_LEVELS: u64 = 1 << 47;

/// What there is here.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Effective capabilities.
    pub caps: u64,
    /// `kernel.pid_max`.
    pub pid_max: u64,
    /// `fs.nr_open`.
    pub nr_open: u64,
    /// `fs.pipe-max-size`, bytes.
    pub pipe_max: u64,
    /// `vm.mmap_min_addr`.
    pub mmap_min_addr: u64,
    /// Hard limits of this process by number.
    pub hard_limits: Vec<u64>,
    /// Features of the processor.
    pub cpu_features: Vec<String>,
    /// Processors that are on line, by number; empty: not known.
    pub cpus: BTreeSet<u32>,
    /// Huge pages that can be had, by their size in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

impl Host {
    /// This one, as this process finds it. `model`: whose sizes of huge pages are looked at.
    pub fn here(model: &Model) -> Self {
        let limits = ProcDir::of_self().and_then(|dir| dir.limits(&mut Vec::new()));
        // What cannot be read is no limit.
        Self {
            caps: Own::read().caps,
            pid_max: sys::pid_max().unwrap_or(u64::MAX),
            nr_open: sys::number("fs/nr_open").unwrap_or(u64::MAX),
            pipe_max: sys::pipe_max_size().unwrap_or(u64::MAX),
            mmap_min_addr: sys::number("vm/mmap_min_addr").unwrap_or(0),
            hard_limits: limits.map(|all| all.iter().map(|limit| limit.hard).collect()).unwrap_or_default(),
            cpu_features: sys::cpu_features().unwrap_or_default(),
            cpus: sys::online_cpus().unwrap_or_default(),
            huge_pages: wanted_huge_pages(model)
                .keys()
                .filter_map(|size| Some((*size, sys::huge_pages(*size)?)))
                .collect(),
        }
    }

    fn may(&self, capability: u64) -> bool {
        self.caps & capability != 0
    }

    fn has(&self, feature: &str) -> bool {
        self.cpu_features.is_empty() || self.cpu_features.iter().any(|has| has == feature)
    }

    fn hard_limit(&self, resource: u32) -> u64 {
        self.hard_limits.get(resource as usize).copied().unwrap_or(u64::MAX)
    }
}

/// Everything of which there is too little.
pub fn blockers(model: &Model, host: &Host) -> Vec<Blocker> {
    let mut found = Vec::new();
    let mut addressed = BTreeSet::new();
    for task in &model.tasks {
        found.extend(ids(task, host));
        found.extend(task.threads.iter().filter_map(|thread| scheduling(task, thread, host)));
        let mm = task.mm.filter(|mm| addressed.insert(*mm)).and_then(|mm| model.mms.get(mm.at()));
        found.extend(mm.into_iter().flat_map(|mm| memory(task, mm, host)));
    }
    found.extend(descriptors(model, host));
    found.extend(pipes(model, host));
    found.extend(huge_pages(model, host));
    found
}

fn ids(task: &Task, host: &Host) -> Option<Blocker> {
    let ids = task.threads.iter().map(|thread| thread.tid).chain([task.pid, task.pgid, task.sid]);
    let NsPid(largest) = ids.max()?;
    let above = u64::try_from(largest).is_ok_and(|id| id >= host.pid_max);
    let reason = format!("the ids here end at {} (kernel.pid_max)", host.pid_max.saturating_sub(1));
    above.then(|| Blocker::new(codes::PID_ABOVE_MAX, format!("id {largest} of {}", object(task))).because(reason))
}

fn scheduling(task: &Task, thread: &Thread, host: &Host) -> Option<Blocker> {
    let of = || format!("thread {} of {}", thread.tid, object(task));
    let sched = &thread.sched;
    let own = affinity(sched);
    if !own.is_empty() && !host.cpus.is_empty() && own.is_disjoint(&host.cpus) {
        let list = own.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let reason = format!("it may run on processors {list} only, and none of them is on line here");
        return Some(Blocker::new(codes::SCHEDULING, of()).because(reason));
    }
    let real_time = [libc::SCHED_FIFO, libc::SCHED_RR].contains(&(sched.policy as i32));
    let deadline = sched.policy as i32 == libc::SCHED_DEADLINE;
    let allowed = real_time && host.hard_limit(libc::RLIMIT_RTPRIO) >= u64::from(sched.priority);
    if !(real_time || deadline) || allowed || host.may(SYS_NICE) {
        return None;
    }
    let reason = "it has a real-time policy, which takes CAP_SYS_NICE";
    Some(Blocker::new(codes::SCHEDULING, of()).because(reason))
}

/// Numbers of the processors that a thread may run on.
fn affinity(sched: &Sched) -> BTreeSet<u32> {
    let bits = sched.affinity.0.iter().zip(0u32..);
    bits.flat_map(|(byte, n)| (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| n * 8 + bit)).collect()
}

/// Addresses, keys and locked pages of an address space.
fn memory(task: &Task, mm: &Mm, host: &Host) -> Vec<Blocker> {
    let mut found = Vec::new();
    let at = |vma: &Vma| format!("{} mapping {:#x}-{:#x}", object(task), vma.start, vma.end);
    // The kernel's own lie where this kernel puts them.
    let mappings = || mm.vmas.iter().filter(|vma| !matches!(vma.backing, Backing::Vdso | Backing::Vvar));
    if let Some(low) = mappings().find(|vma| vma.start < host.mmap_min_addr).filter(|_| !host.may(SYS_RAWIO)) {
        let reason = format!("addresses below {:#x} take CAP_SYS_RAWIO here (vm.mmap_min_addr)", host.mmap_min_addr);
        found.push(Blocker::new(codes::ADDRESS_SPACE, at(low)).because(reason));
    }
    if let Some(high) = mappings().find(|vma| vma.end > FOUR_LEVELS).filter(|_| !host.has("la57")) {
        let reason = "the processor here has no five-level page tables (la57)";
        found.push(Blocker::new(codes::ADDRESS_SPACE, at(high)).because(reason));
    }
    // Memory that may only be executed has a key of the kernel's where there are any, and does without one elsewhere.
    let keyed = mappings().find(|vma| vma.pkey != 0 && vma.prot != libc::PROT_EXEC as u32);
    if let Some(keyed) = keyed.filter(|_| !host.has("ospke")) {
        found.push(Blocker::new(codes::PROTECTION_KEYS, at(keyed)));
    } else if mm.pkeys & !1 != 0 && !host.has("ospke") {
        found.push(Blocker::new(codes::PROTECTION_KEYS, format!("{} keys {:#x}", object(task), mm.pkeys & !1)));
    }
    let locked: u64 = mappings().filter(|vma| vma.locked.is_some()).map(Vma::len).sum();
    let limit = host.hard_limit(libc::RLIMIT_MEMLOCK);
    if locked > limit && !host.may(IPC_LOCK) {
        let reason = format!("it has locked {locked} bytes, and {limit} may be locked here");
        found.push(Blocker::new(codes::MEMORY_LOCK, object(task)).because(reason));
    }
    found
}

fn descriptors(model: &Model, host: &Host) -> Option<Blocker> {
    let entries = model.fd_tables.iter().filter_map(|table| table.entries.last());
    let highest = entries.map(|entry| entry.fd).max().filter(|fd| u64::from(*fd) >= host.nr_open)?;
    let reason = format!("descriptors here end at {} (fs.nr_open)", host.nr_open.saturating_sub(1));
    Some(Blocker::new(codes::DESCRIPTOR_LIMIT, format!("descriptor {highest}")).because(reason))
}

/// A pipe that is made smaller than it was is said when it is made; here only those whose content may not fit.
fn pipes(model: &Model, host: &Host) -> Vec<Blocker> {
    if host.may(SYS_RESOURCE) {
        return Vec::new();
    }
    let too_large = model
        .pipes
        .iter()
        .zip(0..)
        .filter(|(pipe, _)| u64::from(pipe.capacity) > host.pipe_max && pipe.data.0.len() as u64 > host.pipe_max);
    let blocker = |(pipe, n): (&crate::image::fd::pipe::Pipe, i32)| {
        let (held, max) = (pipe.data.0.len(), host.pipe_max);
        let reason = format!("it holds {held} bytes, and a pipe here has at most {max} (fs.pipe-max-size)");
        Blocker::new(codes::PIPE_SIZE, format!("pipe {n} of {} bytes", pipe.capacity)).because(reason)
    };
    too_large.map(blocker).collect()
}

/// Huge pages that are taken when memory is mapped, by their size in bytes.
fn wanted_huge_pages(model: &Model) -> BTreeMap<u64, u64> {
    let mut wanted = BTreeMap::new();
    let mut add = |size: u64, bytes: u64| {
        if size != 0 {
            *wanted.entry(size).or_default() += bytes.div_ceil(size);
        }
    };
    for vma in model.mms.iter().flat_map(|mm| &mm.vmas).filter(|vma| !vma.no_reserve) {
        if let Backing::HugeAnon { page_size } = vma.backing {
            add(page_size, vma.len());
        }
    }
    for shmem in &model.shmems {
        match shmem.kind {
            ShmemKind::Memfd { huge_page, .. } | ShmemKind::SysV { huge_page, .. } => add(huge_page, shmem.size),
            ShmemKind::HugeAnon { page_size } => add(page_size, shmem.size),
            ShmemKind::Anon => {}
        }
    }
    wanted
}

fn huge_pages(model: &Model, host: &Host) -> Vec<Blocker> {
    let wanted = wanted_huge_pages(model).into_iter();
    let short = wanted.filter_map(|(size, count)| {
        let free = host.huge_pages.get(&size).copied().unwrap_or(0);
        let object = format!("{count} huge pages of {} kB", size >> 10);
        (free < count).then(|| Blocker::new(codes::HUGETLB_SHORT, object).because(format!("{free} are free here")))
    });
    short.collect()
}

fn object(task: &Task) -> String {
    format!("pid {} ({})", task.pid, task.threads.first().map(|thread| thread.comm.to_string()).unwrap_or_default())
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
