//! System calls by name, with typed arguments, for batches.

use super::batch::{Arg, Batch, Out, Ref, Results};
use crate::image::numa::{NODES, Policy};
use crate::image::signals::AltStack;
use crate::sys::abi::{CloneArgs, StackT};

impl Batch {
    /// mmap(2), fixed unless the address is 0.
    pub fn mmap(&mut self, addr: u64, len: u64, prot: u32, flags: i32, fd: impl Into<Arg>, offset: u64) -> Ref {
        self.must(libc::SYS_mmap, &[addr.into(), len.into(), prot.into(), flags.into(), fd.into(), offset.into()])
    }

    /// munmap(2).
    pub fn munmap(&mut self, addr: u64, len: u64) -> Ref {
        self.must(libc::SYS_munmap, &[addr.into(), len.into()])
    }

    /// mprotect(2).
    pub fn mprotect(&mut self, addr: u64, len: u64, prot: u32) -> Ref {
        self.must(libc::SYS_mprotect, &[addr.into(), len.into(), prot.into()])
    }

    /// madvise(2).
    pub fn madvise(&mut self, addr: u64, len: u64, advice: i32) -> Ref {
        self.must(libc::SYS_madvise, &[addr.into(), len.into(), advice.into()])
    }

    /// openat(2) from the working directory.
    pub fn open(&mut self, path: &[u8], flags: i32, mode: u32) -> Ref {
        let path = self.c_string(path);
        self.must(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, flags.into(), mode.into()])
    }

    /// close(2).
    pub fn close(&mut self, fd: impl Into<Arg>) -> Ref {
        self.must(libc::SYS_close, &[fd.into()])
    }

    /// dup3(2) with or without `O_CLOEXEC`.
    pub fn dup3(&mut self, from: impl Into<Arg>, to: u32, cloexec: bool) -> Ref {
        let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
        self.must(libc::SYS_dup3, &[from.into(), to.into(), flags.into()])
    }

    /// prctl(2), its failure looked at afterwards.
    pub fn may_prctl(&mut self, option: i32, a: impl Into<Arg>, b: impl Into<Arg>) -> Ref {
        self.may(libc::SYS_prctl, &[option.into(), a.into(), b.into(), 0u64.into(), 0u64.into()])
    }

    /// prctl(2).
    pub fn prctl(&mut self, option: i32, a: impl Into<Arg>, b: impl Into<Arg>) -> Ref {
        self.must(libc::SYS_prctl, &[option.into(), a.into(), b.into(), 0u64.into(), 0u64.into()])
    }

    /// rt_sigaction(2) that reads the action of a signal into the returned room.
    pub fn read_sigaction(&mut self, signal: i32) -> Out {
        let out = self.out(size_of::<crate::sys::abi::KernelSigaction>());
        self.may(libc::SYS_rt_sigaction, &[signal.into(), 0u64.into(), out.into(), 8u64.into()]);
        out
    }

    /// clone3(2).
    pub fn clone3(&mut self, args: &CloneArgs, set_tid: &[i32]) -> Ref {
        let ids: Vec<u8> = set_tid.iter().flat_map(|id| id.to_ne_bytes()).collect();
        let ids_at = self.bytes(&ids);
        let args = CloneArgs { set_tid: 0, set_tid_size: set_tid.len() as u64, ..*args };
        let args_at = self.value(&args);
        // The kernel refuses an address without a length.
        if !set_tid.is_empty() {
            self.relocate(args_at, std::mem::offset_of!(CloneArgs, set_tid), ids_at);
        }
        self.must(libc::SYS_clone3, &[args_at, size_of::<CloneArgs>().into()])
    }
}

/// get_mempolicy(2) of the thread, or of what is mapped at `address`; the returned room gets the mode, `mask` the nodes: one bit
/// each, of [`NODES`]. Where the kernel has no such call the mode is 0.
pub fn get_mempolicy(batch: &mut Batch, mask: Option<Out>, address: Option<u64>) -> Out {
    const MPOL_F_ADDR: u32 = 1 << 1;
    let mode = batch.out(4);
    let (mask, bits) = mask.map_or((0u64.into(), 0), |mask| (mask.into(), NODES + 1));
    let (address, flags) = address.map_or((0, 0), |address| (address, MPOL_F_ADDR));
    batch.may(libc::SYS_get_mempolicy, &[mode.into(), mask, bits.into(), address.into(), flags.into()]);
    mode
}

/// What a thread tells about itself that nobody else can see.
#[derive(Debug)]
pub struct ThreadQuery {
    tid_address: Out,
    alt_stack: Out,
    pdeath_signal: Out,
    securebits: Ref,
    policy: (Out, Out),
    timer_slack: Ref,
    personality: Ref,
    name: Out,
}

/// The answers.
#[derive(Debug)]
pub struct ThreadAnswer {
    /// `set_tid_address(2)`.
    pub clear_child_tid: u64,
    /// `sigaltstack(2)`.
    pub alt_stack: AltStack,
    /// `PR_GET_PDEATHSIG`.
    pub pdeath_signal: i32,
    /// `PR_GET_SECUREBITS`.
    pub securebits: u32,
    /// get_mempolicy(2).
    pub numa: Option<Policy>,
    /// `PR_GET_TIMERSLACK`, nanoseconds.
    pub timer_slack_ns: u64,
    /// personality(2).
    pub personality: u32,
    /// `PR_GET_NAME`, without the byte that ends it.
    pub name: Vec<u8>,
}

impl ThreadQuery {
    /// Adds the calls.
    pub fn ask(batch: &mut Batch) -> Self {
        const ASK_PERSONALITY: u32 = u32::MAX;
        const NAME_BYTES: usize = 16;
        const PR_GET_TID_ADDRESS: i32 = 40;
        let (tid_address, alt_stack, pdeath_signal) = (batch.out(8), batch.out(size_of::<StackT>()), batch.out(4));
        batch.may_prctl(PR_GET_TID_ADDRESS, tid_address, 0u64);
        batch.may(libc::SYS_sigaltstack, &[0u64.into(), alt_stack.into()]);
        batch.may_prctl(libc::PR_GET_PDEATHSIG, pdeath_signal, 0u64);
        let nodes = batch.out(NODES as usize / 8);
        let policy = (get_mempolicy(batch, Some(nodes), None), nodes);
        let name = batch.out(NAME_BYTES);
        batch.may_prctl(libc::PR_GET_NAME, name, 0u64);
        Self {
            name,
            policy,
            personality: batch.may(libc::SYS_personality, &[ASK_PERSONALITY.into()]),
            tid_address,
            alt_stack,
            pdeath_signal,
            securebits: batch.may_prctl(libc::PR_GET_SECUREBITS, 0u64, 0u64),
            timer_slack: batch.may_prctl(libc::PR_GET_TIMERSLACK, 0u64, 0u64),
        }
    }

    /// Reads the answers.
    pub fn answer(&self, results: &Results) -> ThreadAnswer {
        let stack: StackT = results.value(self.alt_stack);
        // SS_ONSTACK is where the thread happens to be, not an attribute.
        let alt_stack = AltStack { address: stack.sp, flags: stack.flags & !libc::SS_ONSTACK, size: stack.size };
        ThreadAnswer {
            clear_child_tid: results.value(self.tid_address),
            alt_stack,
            pdeath_signal: results.value(self.pdeath_signal),
            securebits: results.get(self.securebits).unwrap_or(0) as u32,
            numa: Policy::of_mask(results.value(self.policy.0), results.bytes(self.policy.1)),
            timer_slack_ns: results.get(self.timer_slack).unwrap_or(50_000),
            personality: results.get(self.personality).unwrap_or(0) as u32,
            name: results.bytes(self.name).split(|b| *b == 0).next().unwrap_or_default().to_vec(),
        }
    }
}
