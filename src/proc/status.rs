//! `/proc/PID/status` (proc_pid_status(5)).

use super::{ProcDir, Result, Syntax, scan};
use crate::image::{Bytes, creds::Capabilities};

/// `/proc/PID/status` or that of a thread. Ids of users and groups are as the reader's user namespace numbers them.
///
/// What an older kernel does not print keeps its default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Name, any bytes.
    pub name: Bytes,
    /// `umask(2)`; `None` for a zombie.
    pub umask: Option<u32>,
    /// `R`, `S`, `D`, `Z`, `T`, `t`, `X`, `I`.
    pub state: u8,
    /// Thread group (process id).
    pub tgid: i32,
    /// NUMA group, 0 = none.
    pub ngid: i32,
    /// Thread id.
    pub pid: i32,
    /// Parent; 0 if it is outside the reader's PID namespace.
    pub ppid: i32,
    /// Who traces it, 0 = nobody (or somebody outside the reader's PID namespace).
    pub tracer_pid: i32,
    /// Real, effective, saved, file-system user.
    pub uids: [u32; 4],
    /// Real, effective, saved, file-system group.
    pub gids: [u32; 4],
    /// Slots allocated in the descriptor table.
    pub fd_size: u32,
    /// Supplementary groups, ascending.
    pub groups: Vec<u32>,
    /// Thread group in each PID namespace, from that of the mounted `/proc` inwards.
    pub ns_tgid: Vec<i32>,
    /// Thread id in each PID namespace.
    pub ns_pid: Vec<i32>,
    /// Process group in each PID namespace.
    pub ns_pgid: Vec<i32>,
    /// Session in each PID namespace.
    pub ns_sid: Vec<i32>,
    /// Kernel thread (6.9+).
    pub kthread: bool,
    /// Memory; `None` without an address space (zombies, kernel threads).
    pub memory: Option<Memory>,
    /// A core dump is being written.
    pub core_dumping: bool,
    /// Transparent huge pages are not switched off (`PR_SET_THP_DISABLE`).
    pub thp_enabled: Option<bool>,
    /// Threads in the process.
    pub threads: u32,
    /// Signals queued for the user, and the limit.
    pub sig_q: (u64, u64),
    /// Pending for the thread; bit n-1 for signal n, as in all masks here.
    pub sig_pnd: u64,
    /// Pending for the process.
    pub shd_pnd: u64,
    /// Blocked.
    pub sig_blk: u64,
    /// Ignored.
    pub sig_ign: u64,
    /// Caught.
    pub sig_cgt: u64,
    /// Capabilities.
    pub caps: Capabilities,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters (5.9+).
    pub seccomp_filters: Option<u32>,
    /// `PR_SPEC_STORE_BYPASS` in words.
    pub speculation_store_bypass: String,
    /// `PR_SPEC_INDIRECT_BRANCH` in words.
    pub speculation_indirect_branch: String,
    /// `x86_Thread_features`: `shstk`, `wrss` where shadow stacks are on.
    pub x86_thread_features: Vec<String>,
    /// `x86_Thread_features_locked`.
    pub x86_thread_features_locked: Vec<String>,
    /// Processors it may run on, as a list (`0-3,8`).
    pub cpus_allowed_list: String,
    /// NUMA nodes it may use, as a list.
    pub mems_allowed_list: String,
}

/// Sizes of an address space, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// `VmSize`: all mappings.
    pub size: u64,
    /// `VmLck`: locked.
    pub locked: u64,
    /// `VmPin`: pinned.
    pub pinned: u64,
    /// `VmRSS`: resident.
    pub rss: u64,
    /// `RssAnon`: resident, private.
    pub rss_anon: u64,
    /// `RssFile`: resident, of files.
    pub rss_file: u64,
    /// `RssShmem`: resident, shared memory.
    pub rss_shmem: u64,
    /// `VmData`: private writable mappings.
    pub data: u64,
    /// `VmStk`: stack.
    pub stack: u64,
    /// `VmPTE`: page tables.
    pub page_tables: u64,
    /// `VmSwap`: swapped out.
    pub swap: u64,
    /// `HugetlbPages`: resident in hugetlb pages.
    pub hugetlb: u64,
}

fn array<const N: usize>(value: &[u8]) -> Option<[u32; N]> {
    let mut words = scan::words(value);
    let mut out = [0; N];
    for slot in &mut out {
        *slot = scan::dec32(words.next()?)?;
    }
    Some(out)
}

fn list<T>(value: &[u8], convert: impl Fn(&[u8]) -> Option<T>) -> Option<Vec<T>> {
    scan::words(value).map(convert).collect()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn flag(value: &[u8]) -> Option<bool> {
    scan::dec(value).map(|n| n != 0)
}

/// `123 kB`, in bytes.
pub(super) fn kib(value: &[u8]) -> Option<u64> {
    scan::dec(scan::trim(value.strip_suffix(b"kB")?))?.checked_mul(1024)
}

/// Fills the field that `key` names; `None` for a value without the expected form. Unknown keys are left out.
fn set(s: &mut Status, key: &[u8], v: &[u8]) -> Option<()> {
    match key {
        b"Name" => s.name = scan::unescape_comm(v),
        b"Umask" => s.umask = Some(u32::try_from(scan::oct(v)?).ok()?),
        b"State" => s.state = v.first().copied().filter(u8::is_ascii_alphabetic)?,
        b"Tgid" => s.tgid = scan::int32(v)?,
        b"Ngid" => s.ngid = scan::int32(v)?,
        b"Pid" => s.pid = scan::int32(v)?,
        b"PPid" => s.ppid = scan::int32(v)?,
        b"TracerPid" => s.tracer_pid = scan::int32(v)?,
        b"Uid" => s.uids = array(v)?,
        b"Gid" => s.gids = array(v)?,
        b"FDSize" => s.fd_size = scan::dec32(v)?,
        b"Groups" => s.groups = list(v, scan::dec32)?,
        b"NStgid" => s.ns_tgid = list(v, scan::int32)?,
        b"NSpid" => s.ns_pid = list(v, scan::int32)?,
        b"NSpgid" => s.ns_pgid = list(v, scan::int32)?,
        b"NSsid" => s.ns_sid = list(v, scan::int32)?,
        b"Kthread" => s.kthread = flag(v)?,
        b"CoreDumping" => s.core_dumping = flag(v)?,
        b"THP_enabled" => s.thp_enabled = Some(flag(v)?),
        b"Threads" => s.threads = scan::dec32(v)?,
        b"SigQ" => {
            let (queued, limit) = scan::cut(v, b'/')?;
            s.sig_q = (scan::dec(queued)?, scan::dec(limit)?);
        }
        b"SigPnd" => s.sig_pnd = scan::hex(v)?,
        b"ShdPnd" => s.shd_pnd = scan::hex(v)?,
        b"SigBlk" => s.sig_blk = scan::hex(v)?,
        b"SigIgn" => s.sig_ign = scan::hex(v)?,
        b"SigCgt" => s.sig_cgt = scan::hex(v)?,
        b"CapInh" => s.caps.inheritable = scan::hex(v)?,
        b"CapPrm" => s.caps.permitted = scan::hex(v)?,
        b"CapEff" => s.caps.effective = scan::hex(v)?,
        b"CapBnd" => s.caps.bounding = scan::hex(v)?,
        b"CapAmb" => s.caps.ambient = scan::hex(v)?,
        b"NoNewPrivs" => s.no_new_privs = flag(v)?,
        b"Seccomp" => s.seccomp = scan::dec32(v)?,
        b"Seccomp_filters" => s.seccomp_filters = Some(scan::dec32(v)?),
        b"Speculation_Store_Bypass" => s.speculation_store_bypass = text(v),
        b"SpeculationIndirectBranch" => s.speculation_indirect_branch = text(v),
        b"x86_Thread_features" => s.x86_thread_features = list(v, |w| Some(text(w)))?,
        b"x86_Thread_features_locked" => s.x86_thread_features_locked = list(v, |w| Some(text(w)))?,
        b"Cpus_allowed_list" => s.cpus_allowed_list = text(v),
        b"Mems_allowed_list" => s.mems_allowed_list = text(v),
        _ => return set_memory(s, key, v),
    }
    Some(())
}

fn set_memory(s: &mut Status, key: &[u8], v: &[u8]) -> Option<()> {
    let mut memory = s.memory.unwrap_or_default();
    let field = match key {
        b"VmSize" => &mut memory.size,
        b"VmLck" => &mut memory.locked,
        b"VmPin" => &mut memory.pinned,
        b"VmRSS" => &mut memory.rss,
        b"RssAnon" => &mut memory.rss_anon,
        b"RssFile" => &mut memory.rss_file,
        b"RssShmem" => &mut memory.rss_shmem,
        b"VmData" => &mut memory.data,
        b"VmStk" => &mut memory.stack,
        b"VmPTE" => &mut memory.page_tables,
        b"VmSwap" => &mut memory.swap,
        b"HugetlbPages" => &mut memory.hugetlb,
        _ => return Some(()),
    };
    *field = kib(v)?;
    s.memory = Some(memory);
    Some(())
}

/// Reads the lines. Keys this program does not know are passed over.
///
/// # Errors
/// A known key with a value of another form, or no `Pid:`, `Uid:` or `State:` at all.
pub fn parse(text: &[u8]) -> std::result::Result<Status, Syntax> {
    let mut status = Status::default();
    let mut seen = [false; 3];
    for (number, line) in scan::lines(text) {
        let Some((key, value)) = scan::cut(line, b':') else {
            return Err(Syntax::new(number, "expected `KEY: VALUE`", line));
        };
        // A name may begin or end with blanks; only the tab after the colon is the kernel's.
        let value = if key == b"Name" { value.strip_prefix(b"\t").unwrap_or(value) } else { scan::trim(value) };
        set(&mut status, key, value).ok_or_else(|| Syntax::new(number, "unexpected value", line))?;
        match key {
            b"Pid" => seen[0] = true,
            b"Uid" => seen[1] = true,
            b"State" => seen[2] = true,
            _ => {}
        }
    }
    if seen == [true; 3] { Ok(status) } else { Err(Syntax::new(0, "expected `Pid:`, `Uid:` and `State:`", text)) }
}

impl ProcDir {
    /// Reads `status`.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn status(&self, buf: &mut Vec<u8>) -> Result<Status> {
        self.parsed("status", buf, parse)
    }

    /// `task/TID/status` of a thread of this process, without opening its directory.
    ///
    /// # Errors
    /// See [`ProcDir::parsed`].
    pub fn thread_status(&self, tid: crate::image::Pid, buf: &mut Vec<u8>) -> Result<Status> {
        self.parsed(&format!("task/{tid}/status"), buf, parse)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const SAMPLE: &[u8] = b"Name:\t a\\n: b \nUmask:\t0022\nState:\tT (stopped)\nTgid:\t7408\nNgid:\t0\nPid:\t7409\nPPid:\t7398\n\
TracerPid:\t5\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t256\nGroups:\t4 24 4294967294 \nNStgid:\t7408\t1\nNSpid:\t7409\t2\nNSpgid:\t7398\t0\n\
NSsid:\t6227\t0\nKthread:\t0\nVmPeak:\t    3060 kB\nVmSize:\t    3060 kB\nVmLck:\t       0 kB\nVmRSS:\t    1672 kB\nVmSwap:\t 4 kB\n\
CoreDumping:\t1\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\nThreads:\t2\nSigQ:\t3/96365\nSigPnd:\t0000000000000100\n\
ShdPnd:\t0000000000000200\nSigBlk:\t0000000000010000\nSigIgn:\t0000000000001000\nSigCgt:\tffffffffffffffff\nCapInh:\t0000000000000001\n\
CapPrm:\t000001fffeffffff\nCapEff:\t000001fffefffffe\nCapBnd:\t000001fffefffffd\nCapAmb:\t0000000000000002\nNoNewPrivs:\t1\nSeccomp:\t2\n\
Seccomp_filters:\t3\nSpeculation_Store_Bypass:\tthread vulnerable\nSpeculationIndirectBranch:\tconditional enabled\n\
x86_Thread_features:\tshstk wrss \nx86_Thread_features_locked:\t\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\nMems_allowed:\t00000000,00000001\n\
Mems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t1\n";

    #[test]
    fn every_field_of_the_sample() {
        let s = parse(SAMPLE).unwrap();
        assert_eq!(s.name.0, b" a\n: b ");
        assert_eq!((s.umask, s.state, s.tgid, s.pid, s.ppid, s.tracer_pid), (Some(0o22), b'T', 7408, 7409, 7398, 5));
        assert_eq!((s.uids, s.gids), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!(s.groups, [4, 24, u32::MAX - 1]);
        assert_eq!(
            (s.ns_pid, s.ns_tgid, s.ns_pgid, s.ns_sid),
            (vec![7409, 2], vec![7408, 1], vec![7398, 0], vec![6227, 0])
        );
        let memory = s.memory.unwrap();
        assert_eq!((memory.size, memory.rss, memory.swap), (3060 << 10, 1672 << 10, 4 << 10));
        assert_eq!((s.core_dumping, s.thp_enabled, s.threads, s.sig_q), (true, Some(true), 2, (3, 96365)));
        assert_eq!((s.sig_pnd, s.shd_pnd, s.sig_blk, s.sig_ign, s.sig_cgt), (0x100, 0x200, 0x10000, 0x1000, u64::MAX));
        assert_eq!((s.caps.inheritable, s.caps.effective, s.caps.ambient), (1, 0x1ff_feff_fffe, 2));
        assert_eq!((s.no_new_privs, s.seccomp, s.seccomp_filters), (true, 2, Some(3)));
        assert_eq!(s.x86_thread_features, ["shstk", "wrss"]);
        assert_eq!((s.cpus_allowed_list.as_str(), s.mems_allowed_list.as_str()), ("0-1", "0"));
    }

    #[test]
    fn wrong_values_name_their_line() {
        assert_eq!(parse(b"Name:\tx\nUid:\t0\t0\n").unwrap_err().line, 2);
        assert_eq!(parse(b"Name:\tx\n").unwrap_err().line, 0);
        assert!(parse(b"nonsense").is_err());
    }

    #[test]
    fn reads_itself() {
        let status = ProcDir::of_self().unwrap().status(&mut Vec::new()).unwrap();
        assert_eq!(status.pid as u32, std::process::id());
        assert!(status.memory.unwrap().rss > 0 && status.threads > 0);
        assert_eq!(status.ns_pid.first(), Some(&status.pid));
    }
}
