//! How each probe finds its answer.

use super::{Answer, Probe, facts};
use crate::{
    image::{Pid, mm::PAGE},
    proc::{ProcDir, cgroupfs, pagemap::Entry},
    sys::{self, Errno, clone, fd, mem, pagemap, prctl, ptrace, socket, tcp_repair, userfaultfd, wait},
};
use nix::fcntl::OFlag;
use std::{
    cell::Cell,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::fs::FileExt,
};

/// What a probe's function returns: why not, if not.
type Outcome = Result<(), String>;

/// Names the operation that failed.
fn tried<T>(what: &str, result: sys::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {}", e.desc()))
}

pub(super) fn run(probe: Probe) -> Answer {
    let outcome = match probe {
        Probe::Ptrace => traced(|_| Ok(())),
        Probe::ProcessVm => process_vm(),
        Probe::Clone3 => Child::new(0, &[], None).map(drop),
        Probe::SetTid => set_tid(),
        Probe::Kcmp => kcmp(),
        Probe::PidfdGetfd => pidfd_getfd(),
        Probe::SetMmMap => tried("PR_SET_MM_MAP_SIZE", prctl::mm_map_size()).map(drop),
        Probe::MapVdso => tried("ARCH_MAP_VDSO_64", prctl::can_map_vdso()),
        Probe::Children => file_of_self(&format!("task/{}/children", nix::unistd::gettid())),
        Probe::Timers => file_of_self("timers"),
        Probe::TimerIds => tried("PR_TIMER_CREATE_RESTORE_IDS", prctl::timer_restore_ids()).map(drop),
        Probe::SuspendSeccomp => suspend_seccomp(),
        Probe::Rseq => traced(|pid| tried("PTRACE_GET_RSEQ_CONFIGURATION", ptrace::rseq_configuration(pid)).map(drop)),
        Probe::PagemapScan => pagemap_scan(),
        Probe::Userfaultfd => userfaultfd_features().map(drop),
        Probe::WpAsync => uffd_feature(userfaultfd::feature::WP_ASYNC, "UFFD_FEATURE_WP_ASYNC, since 6.7"),
        Probe::UffdKernelFaults => tried("userfaultfd", userfaultfd::open(false)).map(drop),
        Probe::UffdPoison => uffd_feature(userfaultfd::feature::POISON, "UFFD_FEATURE_POISON, since 6.6"),
        Probe::SoftDirty => soft_dirty(),
        Probe::GuardPages => guard_pages(),
        Probe::TimeNamespace => file_of_self("ns/time"),
        Probe::UserNamespace => user_namespace(),
        Probe::CloneIntoCgroup => clone_into_cgroup(),
        Probe::CgroupV2Freezer => freezer(true),
        Probe::CgroupV1Freezer => freezer(false),
        Probe::TcpRepair => tcp_repair(),
        Probe::SockDiag => sock_diag(),
        Probe::MapFiles => map_files(),
        Probe::CheckpointRestore => capability(&[(40, "CAP_CHECKPOINT_RESTORE")]),
        Probe::SysPtrace => capability(&[(19, "CAP_SYS_PTRACE")]),
        Probe::SysAdmin => capability(&[(21, "CAP_SYS_ADMIN")]),
        Probe::NetAdmin => capability(&[(12, "CAP_NET_ADMIN")]),
        Probe::SysResource => capability(&[(24, "CAP_SYS_RESOURCE")]),
        Probe::Setuid => capability(&[(7, "CAP_SETUID"), (6, "CAP_SETGID")]),
    };
    outcome.map_or_else(Answer::No, |()| Answer::Yes)
}

/// A process of ours that only waits; it ends with this value.
struct Child(Pid);

impl Child {
    fn new(flags: u64, set_tid: &[i32], cgroup: Option<i32>) -> Result<Self, String> {
        // No exit signal: nobody else's SIGCHLD handler hears of it.
        tried("clone3", clone::paused_child(flags, 0, set_tid, cgroup)).map(Self)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.0);
        // It is our child and has not been waited for, so the number is still its own.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        while wait::wait(self.0).is_ok_and(|status| !status.ended()) {}
    }
}

/// Attaches to a child, stops it and looks.
fn traced(look: impl FnOnce(Pid) -> Outcome) -> Outcome {
    let child = Child::new(0, &[], None)?;
    tried("PTRACE_SEIZE", ptrace::seize(child.0, ptrace::options::EXIT_KILL))?;
    tried("PTRACE_INTERRUPT", ptrace::interrupt(child.0, 0))?;
    match tried("waiting for the stop", wait::wait(child.0))? {
        wait::Status::EventStop(_) => look(child.0),
        other => Err(format!("the child reported {other:?} instead of a stop")),
    }
}

fn process_vm() -> Outcome {
    static WORD: u64 = 0x6d69_6772_6174_6521;
    let child = Child::new(0, &[], None)?;
    let mut bytes = [0; 8];
    tried("process_vm_readv", mem::read(child.0, &raw const WORD as u64, &mut bytes))?;
    if u64::from_ne_bytes(bytes) == WORD { Ok(()) } else { Err("process_vm_readv: read something else".into()) }
}

/// Takes the number of a child that has just ended, a few times if somebody else is faster.
fn set_tid() -> Outcome {
    let mut outcome = Ok(());
    for _ in 0..8 {
        let free = Child::new(0, &[], None)?.0.0;
        outcome = match clone::paused_child(0, 0, &[free], None) {
            Ok(pid) => {
                drop(Child(pid));
                return Ok(());
            }
            Err(Errno::EEXIST) => Err("process ids are used up faster than they can be chosen".into()),
            Err(e) => return Err(format!("clone3 with set_tid: {}", e.desc())),
        };
    }
    outcome
}

fn kcmp() -> Outcome {
    let child = Child::new(0, &[], None)?;
    let own = Pid(nix::unistd::getpid().as_raw());
    tried("kcmp", fd::kcmp(own, child.0, fd::Kcmp::Vm, 0, 0)).map(drop)
}

fn pidfd_getfd() -> Outcome {
    let file = tried("open", nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()))?;
    let child = Child::new(0, &[], None)?;
    let pidfd = tried("pidfd_open", fd::pidfd_open(child.0))?;
    let number = u32::try_from(file.as_raw_fd()).expect("descriptors are not negative");
    tried("pidfd_getfd", fd::pidfd_getfd(pidfd.as_fd(), number)).map(drop)
}

/// Opens one of our own files of `/proc`.
fn file_of_self(name: &str) -> Outcome {
    let opened = ProcDir::of_self().and_then(|dir| dir.open_file(name, OFlag::O_RDONLY));
    opened.map(drop).map_err(|e| chain(&e))
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The kernel refuses this option to a tracer with filters of its own, and without CAP_SYS_ADMIN; a child without filters
/// will do to ask.
fn suspend_seccomp() -> Outcome {
    let child = Child::new(0, &[], None)?;
    let seized = ptrace::seize(child.0, ptrace::options::SUSPEND_SECCOMP);
    match seized {
        Err(Errno::EPERM) if facts().own_seccomp_filters => {
            Err("this command itself runs under a seccomp filter".into())
        }
        Err(Errno::EPERM) => Err("PTRACE_O_SUSPEND_SECCOMP: needs CAP_SYS_ADMIN".into()),
        other => tried("PTRACE_O_SUSPEND_SECCOMP", other),
    }
}

/// A page of ours that has been written, and its address.
fn written_page() -> (Vec<u8>, u64) {
    let room = vec![1u8; 2 * PAGE as usize];
    let address = (room.as_ptr() as u64).next_multiple_of(PAGE);
    (room, address)
}

fn own_pagemap() -> Result<OwnedFd, String> {
    let file = ProcDir::of_self().and_then(|dir| dir.open_file("pagemap", OFlag::O_RDONLY));
    file.map_err(|e| chain(&e))
}

fn pagemap_scan() -> Outcome {
    let file = own_pagemap()?;
    let (room, address) = written_page();
    let present = pagemap::category::PRESENT;
    let query = pagemap::Query { all_of: present, report: present, ..pagemap::Query::default() };
    let found = Cell::new(0);
    let scan = pagemap::scan(file.as_fd(), address, address + PAGE, query, &mut Vec::new(), |region| {
        found.set(found.get() + (region.end - region.start) / PAGE);
    });
    tried("PAGEMAP_SCAN, since 6.7", scan)?;
    drop(room);
    if found.get() == 1 { Ok(()) } else { Err("PAGEMAP_SCAN does not see a page that was just written".into()) }
}

/// A page just written in a new mapping has the bit, if there is such a bit at all.
fn soft_dirty() -> Outcome {
    let file = std::fs::File::from(own_pagemap()?);
    let (room, address) = written_page();
    let mut bytes = [0; Entry::SIZE];
    let read = file.read_exact_at(&mut bytes, crate::proc::pagemap::offset_of(address));
    read.map_err(|e| format!("reading pagemap: {e}"))?;
    drop(room);
    let entry = Entry(u64::from_ne_bytes(bytes));
    if entry.is_soft_dirty() { Ok(()) } else { Err("the kernel has no CONFIG_MEM_SOFT_DIRTY".into()) }
}

fn userfaultfd_features() -> Result<u64, String> {
    let fd = tried("userfaultfd", userfaultfd::open(true))?;
    tried("UFFDIO_API", userfaultfd::handshake(fd.as_fd(), 0))
}

fn uffd_feature(feature: u64, name: &str) -> Outcome {
    if userfaultfd_features()? & feature != 0 { Ok(()) } else { Err(format!("the kernel has no {name}")) }
}

/// A mapping of nobody's: `madvise` then fails with ENOMEM where it knows the advice, with EINVAL where it does not.
fn guard_pages() -> Outcome {
    match sys::mem::advise_nowhere(102) {
        Errno::ENOMEM => Ok(()),
        e => Err(format!("MADV_GUARD_INSTALL, since 6.13: {}", e.desc())),
    }
}

fn user_namespace() -> Outcome {
    Child::new(libc::CLONE_NEWUSER as u64, &[], None).map(drop)
}

fn hierarchies() -> Result<Vec<cgroupfs::Hierarchy>, String> {
    cgroupfs::hierarchies().map_err(|e| chain(&e))
}

/// A directory of our own version 2 cgroup.
fn clone_into_cgroup() -> Outcome {
    let hierarchies = hierarchies()?;
    let v2 = hierarchies.iter().find(|h| h.is_v2()).ok_or("cgroup version 2 is not mounted")?;
    let lines = ProcDir::of_self().and_then(|dir| dir.cgroup(&mut Vec::new())).map_err(|e| chain(&e))?;
    let own = lines.iter().find(|l| l.hierarchy == 0).and_then(|l| v2.dir(&l.path.0));
    let own = own.ok_or("this process's cgroup is not mounted here")?;
    let dir =
        nix::fcntl::open(&own, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty());
    let dir = tried("opening the cgroup", dir)?;
    Child::new(0, &[], Some(dir.as_raw_fd())).map(drop)
}

fn freezer(v2: bool) -> Outcome {
    let hierarchies = hierarchies()?;
    let fits = |h: &&cgroupfs::Hierarchy| h.is_v2() == v2 && (v2 || h.controllers.split(',').any(|c| c == "freezer"));
    let hierarchy = hierarchies.iter().find(fits).ok_or("not mounted")?;
    let writable = nix::unistd::access(&hierarchy.mount, nix::unistd::AccessFlags::W_OK);
    tried("making a cgroup", writable)?;
    // Version 2 has had it since 5.2; older kernels lack pidfd_getfd as well and cannot be used anyway.
    Ok(())
}

fn tcp_repair() -> Outcome {
    let socket = tried("socket", socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0))?;
    tried("TCP_REPAIR", tcp_repair::enter(socket.as_fd()))
}

fn sock_diag() -> Outcome {
    const NETLINK_SOCK_DIAG: i32 = 4;
    tried("sock_diag", socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)).map(drop)
}

/// Follows the link of the mapping that holds this very function.
fn map_files() -> Outcome {
    let dir = ProcDir::of_self().map_err(|e| chain(&e))?;
    let maps = dir.maps(&mut Vec::new()).map_err(|e| chain(&e))?;
    let code = map_files as fn() -> Outcome as usize as u64;
    let mapping = maps.iter().find(|m| m.start <= code && code < m.end).ok_or("this program is not mapped")?;
    dir.open_file(&mapping.map_file(), OFlag::O_RDONLY).map(drop).map_err(|e| chain(&e))
}

fn capability(wanted: &[(u32, &str)]) -> Outcome {
    let missing: Vec<&str> =
        wanted.iter().filter(|(number, _)| facts().capabilities >> number & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("missing: {}", missing.join(", "))) }
}
