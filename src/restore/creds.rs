//! seccomp, credentials, and what a change of credentials resets: in the order the kernel wants (kernel.md 2).

use super::ns::user::inside;
use super::{Result, go, mm, skeleton::Skeletons};
use crate::image::creds::{Creds, Seccomp};
use crate::image::ns::user::UserNs;
use crate::image::task::{Task, Thread};
use crate::image::{Model, TaskId};
use crate::proc::ProcDir;
use crate::sys::abi::UserRegs;
use crate::sys::thread_ids;
use crate::trace::Batch;
use crate::trace::remote::Remote;

const PR_SET_SECUREBITS: i32 = 28;
const PR_CAPBSET_DROP: i32 = 24;
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
const CAPS: u64 = 41;

/// CAP_SETUID and CAP_SETGID: by which a task becomes whoever it was.
const BECOME_ANYBODY: u64 = 1 << 6 | 1 << 7;

/// What this program may give to tasks. Read once for all threads of a process.
#[derive(Debug)]
pub struct Own {
    /// Capabilities that it has, of its own bounding set.
    pub caps: u64,
    /// Its own, with which tasks are born; `None` where they cannot be seen.
    creds: Option<Creds>,
}

impl Own {
    /// As it is now.
    pub fn read() -> Self {
        let status = ProcDir::of_this_thread().and_then(|d| d.status(&mut Vec::new()));
        let creds = status.as_ref().ok().zip(thread_ids::securebits().ok()).map(|(status, securebits)| Creds {
            uids: status.uids,
            gids: status.gids,
            groups: sorted(&status.groups),
            caps: status.caps,
            securebits,
            no_new_privs: status.no_new_privs,
        });
        Self { caps: status.map_or(u64::MAX, |s| s.caps.bounding & s.caps.permitted), creds }
    }

    /// Whether it can make tasks of any user, not only of the one that it runs as.
    pub fn becomes_anybody(&self) -> bool {
        self.caps & BECOME_ANYBODY == BECOME_ANYBODY
    }

    /// Whether these are its own supplementary groups.
    pub fn has_groups(&self, groups: &[u32]) -> bool {
        self.creds.as_ref().is_some_and(|own| own.groups == sorted(groups))
    }

    /// Whether a task that was born with ours has these already: [`ids`] would change nothing of them.
    fn are(&self, creds: &Creds) -> bool {
        let wanted = Creds { groups: sorted(&creds.groups), no_new_privs: false, ..creds.clone() };
        self.creds.as_ref().is_some_and(|own| Creds { no_new_privs: false, ..own.clone() } == wanted)
    }
}

fn sorted(groups: &[u32]) -> Vec<u32> {
    let mut groups = groups.to_vec();
    groups.sort_unstable();
    groups
}

/// Gives every thread of a task its filters and ids, then the process what those would have reset. The first thread comes
/// first, as it installs filters for all. The others, which have nothing more to do for us as a rule, get their registers and mask
/// while the next ones are still at work.
pub fn set(
    model: &Model,
    task: TaskId,
    own: &Own,
    skeletons: &mut Skeletons,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let of = &model.tasks[task.at()];
    let scratch = skeletons.scratch;
    let skeleton = skeletons.task(task);
    let common = common_filters(of);
    let others_wait = super::task::others_wait(of);
    let batch = |(n, thread): (usize, &Thread)| -> Result<Batch> {
        let mut batch = Batch::new();
        if n > 0 && others_wait {
            super::task::last_calls(&mut batch, model, of, thread);
        }
        filters(&mut batch, model, thread, n == 0, common);
        match super::ns::ids::namespace(model, of) {
            // Most programs of root's: each change is a copy of all of them to the kernel.
            None if n > 0 && own.are(&thread.creds) => {}
            None => ids(&mut batch, &thread.creds, own),
            Some(user) => ids_inside(&mut batch, of, thread, (user, own))?,
        }
        if n == 0 {
            mm::seal(&mut batch, model, task);
            if of.threads.len() == 1 {
                was_reset(&mut batch, model, of);
            }
        }
        Ok(batch)
    };
    let batches = of.threads.iter().enumerate().map(batch).collect::<Result<Vec<Batch>>>()?;
    if let (Some((first, others)), Some((leader, threads))) =
        (batches.split_first(), skeleton.threads.split_first_mut())
    {
        leader.run_all(&scratch, first)?;
        let regs = of.threads.iter().skip(1).map(go::general).collect::<Result<Vec<UserRegs>>>()?;
        let mut ended = |n: usize, remote: &mut Remote| {
            go::prepare(&of.threads[n + 1], regs[n], remote)?;
            remote.give_back()
        };
        super::task::run_each(threads, &scratch, others, &mut ended)?;
    }
    if of.threads.len() > 1 {
        // Of all that share the address space the last to change its ids has reset it.
        let mut batch = Batch::new();
        was_reset(&mut batch, model, of);
        skeleton.threads[0].run_all(&scratch, &batch)?;
    }
    for (thread, remote) in of.threads.iter().zip(&mut skeleton.threads).skip(1) {
        if thread.pdeath_signal != 0 {
            let mut batch = Batch::new();
            batch.prctl(libc::PR_SET_PDEATHSIG, thread.pdeath_signal, 0u64);
            remote.run_all(&scratch, &batch)?;
        }
    }
    let host = super::ns::ids::namespace(model, of).is_none();
    if host && of.threads.iter().any(|t| t.creds.caps.permitted & !own.caps != 0) {
        warnings.push(format!("process {}: capabilities that this program lacks itself could not be given", of.pid));
    }
    Ok(())
}

/// What the change of ids has reset, of the process and of its first thread.
fn was_reset(batch: &mut Batch, model: &Model, of: &Task) {
    if let Some(mm) = of.mm {
        let dumpable = model.mms[mm.at()].dumpable;
        // 2 (readable by root only) cannot be set, only come about by a change of ids: 0 is the same to everybody but root.
        batch.may_prctl(libc::PR_SET_DUMPABLE, u64::from(dumpable == 1), 0u64);
    }
    if let Some(signal) = of.threads.first().map(|first| first.pdeath_signal).filter(|signal| *signal != 0) {
        batch.prctl(libc::PR_SET_PDEATHSIG, signal, 0u64);
    }
}

/// How many filters, from the oldest on, all threads of a process have in common: installed for all at once, so that the
/// program can install more for all at once.
fn common_filters(task: &Task) -> usize {
    let of = |thread: &Thread| match &thread.seccomp {
        Seccomp::Filter(ids) => ids.clone(),
        Seccomp::Disabled | Seccomp::Strict => Vec::new(),
    };
    let Some((first, others)) = task.threads.split_first() else { return 0 };
    let first = of(first);
    let shared = |with: &Thread| first.iter().zip(of(with)).take_while(|(a, b)| **a == *b).count();
    others.iter().map(shared).min().unwrap_or(0)
}

/// Filters, while CAP_SYS_ADMIN is still there; suspended as long as we trace.
fn filters(batch: &mut Batch, model: &Model, thread: &Thread, leader: bool, common: usize) {
    const SECCOMP_FILTER_FLAG_TSYNC: u64 = 1;
    const SECCOMP_SET_MODE_STRICT: u64 = 0;
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    // Flags that change how a filter is attached, not what it does afterwards, are not set again.
    const LASTING_FLAGS: u64 = 0b10110;
    match &thread.seccomp {
        Seccomp::Disabled => {}
        Seccomp::Strict => {
            batch.must(libc::SYS_seccomp, &[SECCOMP_SET_MODE_STRICT.into(), 0u64.into(), 0u64.into()]);
        }
        Seccomp::Filter(ids) => {
            for (n, id) in ids.iter().enumerate().skip(if leader { 0 } else { common }) {
                let filter = &model.seccomp_filters[id.at()];
                let program: Vec<u8> = filter.program.iter().flat_map(|i| i.to_ne_bytes()).collect();
                let program = batch.bytes(&program);
                let header = batch.value(&[filter.program.len() as u64, 0u64]);
                batch.relocate(header, 8, program);
                let for_all = if n < common { SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
                let flags = filter.flags & LASTING_FLAGS | for_all;
                batch.must(libc::SYS_seccomp, &[SECCOMP_SET_MODE_FILTER.into(), flags.into(), header]);
            }
        }
    }
    if thread.creds.no_new_privs {
        batch.prctl(libc::PR_SET_NO_NEW_PRIVS, 1u64, 0u64);
    }
}

/// User, groups, capabilities, of which only our own can be given.
pub fn ids(batch: &mut Batch, creds: &Creds, own: &Own) {
    bounding(batch, creds, own.caps);
    users(batch, creds, own);
    batch.may_prctl(PR_SET_SECUREBITS, u64::from(creds.securebits), 0u64);
    capabilities(batch, creds, own.caps);
}

/// In a user namespace of its own a thread has all capabilities that there are, and mostly its users and groups already.
fn ids_inside(batch: &mut Batch, task: &Task, thread: &Thread, (user, own): (&UserNs, &Own)) -> Result<()> {
    const ALL: u64 = (1 << CAPS) - 1;
    let creds = &thread.creds;
    bounding(batch, creds, ALL);
    if !super::ns::ids::entered_as(task, thread) {
        let mut seen = creds.clone();
        for id in &mut seen.uids {
            *id = inside(&user.uid_map, *id, "user")?;
        }
        for id in seen.gids.iter_mut().chain(&mut seen.groups) {
            *id = inside(&user.gid_map, *id, "group")?;
        }
        users(batch, &seen, own);
    }
    batch.may_prctl(PR_SET_SECUREBITS, u64::from(creds.securebits), 0u64);
    capabilities(batch, creds, ALL);
    Ok(())
}

fn bounding(batch: &mut Batch, creds: &Creds, own: u64) {
    for cap in (0..CAPS).filter(|c| own & !creds.caps.bounding & 1 << c != 0) {
        batch.prctl(PR_CAPBSET_DROP, cap, 0u64);
    }
}

/// User and groups; capabilities stay.
pub fn users(batch: &mut Batch, creds: &Creds, own: &Own) {
    const KEEP_CAPS: u64 = 1 << 4;
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    // Those it was born with, ours, are not set: in some user namespaces nobody may (user_namespaces(7), "setgroups").
    if own.becomes_anybody() && !own.has_groups(&creds.groups) {
        let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let at = batch.bytes(&groups);
        batch.must(libc::SYS_setgroups, &[creds.groups.len().into(), at]);
    }
    // Capabilities must outlive the change of user ids; they are set to what they were right after.
    batch.may_prctl(PR_SET_SECUREBITS, KEEP_CAPS | NO_SETUID_FIXUP, 0u64);
    let [r, e, s, fs] = creds.gids;
    batch.must(libc::SYS_setresgid, &[r.into(), e.into(), s.into()]);
    batch.may(libc::SYS_setfsgid, &[fs.into()]);
    let [r, e, s, fs] = creds.uids;
    batch.must(libc::SYS_setresuid, &[r.into(), e.into(), s.into()]);
    batch.may(libc::SYS_setfsuid, &[fs.into()]);
}

fn capabilities(batch: &mut Batch, creds: &Creds, own: u64) {
    const VERSION_3: u32 = 0x2008_0522;
    let caps = &creds.caps;
    let header = batch.value(&[VERSION_3, 0u32]);
    let half = |shift: u32| {
        [caps.effective & own, caps.permitted & own, caps.inheritable & own].map(|set| (set >> shift) as u32)
    };
    let (low, high) = (half(0), half(32));
    let data: Vec<u8> = low.into_iter().chain(high).flat_map(u32::to_ne_bytes).collect();
    let data = batch.bytes(&data);
    batch.must(libc::SYS_capset, &[header, data]);
    batch.may_prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0u64);
    for cap in (0..CAPS).filter(|c| caps.ambient & own & 1 << c != 0) {
        batch.may_prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_differs_from_us_in_nothing_is_left_as_it_was_born() {
        let own = Own::read();
        let ours = own.creds.clone().expect("our own can be seen");
        assert!(own.are(&ours));
        // Filters come with it, not with the ids.
        assert!(own.are(&Creds { no_new_privs: !ours.no_new_privs, ..ours.clone() }));
        let caps = |change: fn(&mut crate::image::creds::Capabilities)| {
            let mut other = ours.clone();
            change(&mut other.caps);
            other
        };
        let mut others = vec![
            Creds { securebits: ours.securebits ^ 1, ..ours.clone() },
            Creds { groups: [ours.groups.as_slice(), &[4_000_000]].concat(), ..ours.clone() },
            caps(|caps| caps.inheritable ^= 1),
            caps(|caps| caps.permitted ^= 1),
            caps(|caps| caps.effective ^= 1),
            caps(|caps| caps.bounding ^= 1),
            caps(|caps| caps.ambient ^= 1),
        ];
        for n in 0..4 {
            let (mut user, mut group) = (ours.clone(), ours.clone());
            user.uids[n] ^= 1;
            group.gids[n] ^= 1;
            others.extend([user, group]);
        }
        assert!(others.iter().all(|other| !own.are(other)));
    }
}
