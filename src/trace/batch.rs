//! A batch: a table of system calls that a target runs in one go, with the data they point to.

use crate::sys::Errno;
use crate::sys::abi::BatchRow;
use crate::sys::stub;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An argument of a remote system call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A number, or an address in the target.
    Value(u64),
    /// What an earlier call of this batch returns.
    Result(Ref),
    /// The address of bytes that travel with the batch, at this offset of its data.
    Data(u32),
}

/// A call of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ref(u32);

/// Room in the batch's data that calls write to.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    offset: u32,
    len: u32,
}

impl From<Ref> for Arg {
    fn from(r: Ref) -> Self {
        Self::Result(r)
    }
}

impl From<Out> for Arg {
    fn from(out: Out) -> Self {
        Self::Data(out.offset)
    }
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Self::Value(v)
    }
}

impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Self::Value(u64::from(v))
    }
}

impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Self::Value(i64::from(v) as u64)
    }
}

impl From<i64> for Arg {
    fn from(v: i64) -> Self {
        Self::Value(v as u64)
    }
}

impl From<usize> for Arg {
    fn from(v: usize) -> Self {
        Self::Value(v as u64)
    }
}

/// System calls to be run inside a target.
#[derive(Debug, Default)]
pub struct Batch {
    calls: Vec<Call>,
    data: Vec<u8>,
    /// (where in `data` an address goes, offset of what it points to)
    relocations: Vec<(u32, u32)>,
    reads_back: bool,
    /// The call that is to be looked at before what follows it.
    shown: Option<Ref>,
}

#[derive(Debug)]
struct Call {
    number: u64,
    args: [Arg; 6],
    flags: u64,
}

/// What `ret` holds in a row that was not reached.
const NOT_RUN: i64 = i64::MIN;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing to run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many calls.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Adds a call whose failure ends the batch: what follows is not run.
    pub fn must(&mut self, number: i64, args: &[Arg]) -> Ref {
        self.push(number, args, stub::ABORT_ON_ERROR)
    }

    /// Adds a call whose failure is looked at afterwards.
    pub fn may(&mut self, number: i64, args: &[Arg]) -> Ref {
        self.push(number, args, 0)
    }

    /// Has the batch stop here once, for [`super::remote::Remote::run_shown`]. What follows is run also if we die meanwhile.
    pub fn show(&mut self) {
        let [process, thread] = [libc::SYS_getpid, libc::SYS_gettid].map(|call| self.may(call, &[]));
        // The signal is set where the batch is laid out.
        self.shown = Some(self.may(libc::SYS_tgkill, &[process.into(), thread.into(), 0u64.into()]));
    }

    fn push(&mut self, number: i64, args: &[Arg], flags: u64) -> Ref {
        let mut all = [Arg::Value(0); 6];
        all[..args.len()].copy_from_slice(args);
        self.calls.push(Call { number: number as u64, args: all, flags });
        Ref(self.calls.len() as u32 - 1)
    }

    /// Bytes the target gets with the batch (8-byte aligned), as an argument.
    pub fn bytes(&mut self, bytes: &[u8]) -> Arg {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let offset = self.data.len() as u32;
        self.data.extend_from_slice(bytes);
        Arg::Data(offset)
    }

    /// A struct the target gets with the batch.
    pub fn value<T: IntoBytes + Immutable>(&mut self, value: &T) -> Arg {
        self.bytes(value.as_bytes())
    }

    /// A NUL-terminated string.
    pub fn c_string(&mut self, bytes: &[u8]) -> Arg {
        let arg = self.bytes(bytes);
        self.data.push(0);
        arg
    }

    /// Room of `len` bytes that calls write to, read back after the run; zero before.
    pub fn out(&mut self, len: usize) -> Out {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let offset = self.data.len() as u32;
        self.data.resize(self.data.len() + len, 0);
        self.reads_back = true;
        Out { offset, len: len as u32 }
    }

    /// Room that starts with these bytes, read back after the run (value-result arguments).
    pub fn in_out(&mut self, bytes: &[u8]) -> Out {
        let out = self.out(bytes.len());
        self.data[out.offset as usize..][..bytes.len()].copy_from_slice(bytes);
        out
    }

    /// Has the address of `target` (bytes of this batch) written into `holder` at byte `at`, wherever the batch will lie.
    pub fn relocate(&mut self, holder: Arg, at: usize, target: Arg) {
        if let (Arg::Data(holder), Arg::Data(target)) = (holder, target) {
            self.relocations.push((holder + at as u32, target));
        }
    }

    /// Overwrites bytes that were added with [`Self::bytes`] or [`Self::value`].
    pub fn patch(&mut self, arg: Arg, at: usize, bytes: &[u8]) {
        if let Arg::Data(offset) = arg {
            self.data[offset as usize + at..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Room the batch takes in the target.
    pub fn size(&self) -> usize {
        self.calls.len() * size_of::<BatchRow>() + self.data.len()
    }

    /// The table and data as they lie in the target at `base`.
    pub(super) fn lay_out(&self, base: u64) -> Vec<u8> {
        let table = self.calls.len() * size_of::<BatchRow>();
        let mut bytes = Vec::with_capacity(self.size());
        for call in &self.calls {
            let mut row = BatchRow { call: call.number | call.flags, ret: NOT_RUN, ..BatchRow::default() };
            for (n, arg) in call.args.iter().enumerate() {
                row.args[n] = match *arg {
                    Arg::Value(v) => v,
                    Arg::Data(offset) => base + table as u64 + u64::from(offset),
                    Arg::Result(Ref(at)) => {
                        row.call |= 1 << (stub::REFERENCE_SHIFT + n as u32);
                        (at as usize * size_of::<BatchRow>() + std::mem::offset_of!(BatchRow, ret)) as u64
                    }
                };
            }
            bytes.extend_from_slice(row.as_bytes());
        }
        bytes.extend_from_slice(&self.data);
        for &(at, target) in &self.relocations {
            let address = base + table as u64 + u64::from(target);
            bytes[table + at as usize..][..8].copy_from_slice(&address.to_ne_bytes());
        }
        bytes
    }

    /// Where in [`Self::lay_out`] the row is at whose call it stops to be looked at.
    pub(super) fn shown_at(&self) -> Option<usize> {
        self.shown.map(|Ref(row)| row as usize * size_of::<BatchRow>())
    }

    /// How much of it has to be read back after the run.
    pub(super) fn read_back_len(&self) -> usize {
        if self.reads_back { self.size() } else { self.calls.len() * size_of::<BatchRow>() }
    }

    /// Makes results of what was read back.
    pub(super) fn results(&self, bytes: Vec<u8>) -> Results {
        Results { bytes, calls: self.calls.iter().map(Called::from).collect() }
    }
}

/// What the calls of a batch returned.
#[derive(Debug)]
pub struct Results {
    bytes: Vec<u8>,
    calls: Vec<Called>,
}

/// What is known of a call once it was made.
#[derive(Debug, Clone, Copy)]
struct Called {
    number: u64,
    required: bool,
    /// Start and length of the memory it is about.
    area: Option<(u64, u64)>,
}

impl From<&Call> for Called {
    fn from(call: &Call) -> Self {
        let about_memory = [libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_mlock2];
        let area = match (call.args[0], call.args[1]) {
            (Arg::Value(start), Arg::Value(len)) if about_memory.contains(&(call.number as i64)) => Some((start, len)),
            _ => None,
        };
        Self { number: call.number, required: call.flags & stub::ABORT_ON_ERROR != 0, area }
    }
}

impl Called {
    /// As a person reads it: `mmap of 0x7f0000000000-0x7f0000002000`.
    fn describe(&self) -> String {
        let name = name_of(self.number);
        match self.area {
            Some((start, len)) => format!("{name} of {start:#x}-{:#x}", start.saturating_add(len)),
            None => name,
        }
    }
}

impl Results {
    /// Return value of one call; `ECANCELED` if an earlier failure kept it from running.
    pub fn get(&self, call: Ref) -> Result<u64, Errno> {
        match self.raw(call.0 as usize) {
            NOT_RUN => Err(Errno::ECANCELED),
            e @ -4095..=-1 => Err(Errno::from_raw(-e as i32)),
            v => Ok(v as u64),
        }
    }

    /// The first call that had to succeed and did not: its position, what it was and its error. What follows it was not run.
    pub fn first_error(&self) -> Option<(Ref, String, Errno)> {
        (0..self.calls.len()).find_map(|n| match self.raw(n) {
            NOT_RUN => None,
            e @ -4095..=-1 if self.calls[n].required => {
                Some((Ref(n as u32), self.calls[n].describe(), Errno::from_raw(-e as i32)))
            }
            _ => None,
        })
    }

    /// Name of a call of the batch.
    pub fn name(&self, call: Ref) -> String {
        name_of(self.calls[call.0 as usize].number)
    }

    /// Bytes written to an [`Out`].
    pub fn bytes(&self, out: Out) -> &[u8] {
        &self.bytes[self.calls.len() * size_of::<BatchRow>() + out.offset as usize..][..out.len as usize]
    }

    /// A struct written to an [`Out`].
    pub fn value<T: FromBytes + KnownLayout + Immutable>(&self, out: Out) -> T {
        T::read_from_bytes(self.bytes(out)).expect("an Out is as long as the type it was made for")
    }

    fn raw(&self, n: usize) -> i64 {
        let at = n * size_of::<BatchRow>() + std::mem::offset_of!(BatchRow, ret);
        i64::from_ne_bytes(self.bytes[at..at + 8].try_into().expect("8 bytes"))
    }
}

fn name_of(number: u64) -> String {
    syscalls::Sysno::new(number as usize & 0xffff_ffff)
        .map_or_else(|| format!("system call {number}"), |s| s.name().to_owned())
}
