//! The vDSO: this kernel's text, a `syscall` instruction in it, and how the text of another kernel is made to use it.
//!
//! A program keeps addresses of vDSO functions for as long as it lives. Under another kernel the old text stays where it
//! was, as ordinary memory, and each function of it begins with a jump to the function of that name in this kernel's own
//! block ([`redirect`]). Bodies stay: what was interrupted in one by a signal handler returns into it, finds zeros where
//! the kernel's data was, which stand for "no clock to be read here", and makes the system call.

use crate::image::limits::VDSO_TEXT_BYTES;
use std::sync::OnceLock;

/// `arch_prctl(ARCH_MAP_VDSO_64)`: maps the vDSO block at an address (Linux 4.9, `CONFIG_CHECKPOINT_RESTORE`).
pub const ARCH_MAP_VDSO_64: u64 = 0x2003;

/// This kernel's block of vDSO mappings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// The text: the same in every 64-bit process of this boot.
    pub text: Vec<u8>,
    /// Bytes of data pages (`[vvar]`, `[vvar_vclock]`) in front of it.
    pub data: u64,
}

/// This kernel's block, as it is mapped in this process. Empty where there is none (`vdso=0`).
pub fn own() -> &'static Block {
    static BLOCK: OnceLock<Block> = OnceLock::new();
    BLOCK.get_or_init(|| crate::proc::own_vdso().map(|(data, text)| Block { text, data }).unwrap_or_default())
}

/// The bytes of this process's own `[vdso]` mapping.
pub fn own_text() -> &'static [u8] {
    &own().text
}

/// Offset of a `syscall` instruction in the vDSO text, for a first system call in a target without touching its code.
pub fn syscall_offset(text: &[u8]) -> Option<u64> {
    text.windows(2).position(|w| w == [0x0f, 0x05]).map(|n| n as u64)
}

/// From which offset on, aligned, the bytes of the vDSO text belong to nothing that is loaded: the kernel fills the last page up
/// with the section table, which only debuggers read, and zeros. Total on any bytes.
pub fn spare(text: &[u8], align: usize) -> Option<usize> {
    const PROGRAM_HEADERS: u64 = 32;
    const LOADED: u32 = 1;
    let headers = u64_at(text, PROGRAM_HEADERS)?;
    let (size, count) = (u64::from(u16_at(text, 54)?), u64::from(u16_at(text, 56)?));
    let mut end = None;
    for n in 0..count {
        let header = headers.checked_add(n * size)?;
        if u32_at(text, header)? == LOADED {
            let (offset, size) = (u64_at(text, header.checked_add(8)?)?, u64_at(text, header.checked_add(40)?)?);
            end = end.max(Some(offset.checked_add(size)?));
        }
    }
    let end = usize::try_from(end?).ok()?.checked_next_multiple_of(align)?;
    (end <= text.len()).then_some(end)
}

/// A function that a vDSO exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function<'t> {
    /// Its name.
    pub name: &'t [u8],
    /// Where it begins in the text.
    pub offset: usize,
    /// Its length, bytes.
    pub size: usize,
}

/// Functions of the text of a vDSO, in the order of its symbol table; none in anything else. Total on any bytes.
pub fn functions(text: &[u8]) -> Vec<Function<'_>> {
    Symbols::of(text).map(|symbols| symbols.functions().collect()).unwrap_or_default()
}

/// Does a function of this text, mapped at `at`, begin with a jump to one of `own`, mapped at `own_at`? Then [`redirect`] has
/// been here before.
pub fn leads_to(text: &[u8], at: u64, own: &[u8], own_at: u64) -> bool {
    let targets = functions(own);
    let jumps = |function: &Function<'_>| {
        let Some(code) = text.get(function.offset..function.offset + function.size) else { return false };
        let from = at.wrapping_add(function.offset as u64);
        targets.iter().any(|target| code.starts_with(&jump(from, own_at.wrapping_add(target.offset as u64))))
    };
    functions(text).iter().any(jumps)
}

/// An old text whose functions lead to a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redirected {
    /// The text to be put where the old one was.
    pub text: Vec<u8>,
    /// What was put into it: offset and length of each piece, bytes.
    pub pieces: Vec<(usize, usize)>,
    /// Functions that are left as they are: this kernel lacks them and they are no system calls as far as is known, or they
    /// need no data of the kernel and have no room for a jump.
    pub left: Vec<String>,
    /// Functions of the clock, the processor or random numbers that have no room for what would have to be there.
    pub stuck: Vec<String>,
}

/// Redirects the functions of `old`, mapped at address `old_at`, to those of `new`, mapped at `new_at`. One that only the old
/// vDSO has and that does what a system call does makes that call.
pub fn redirect(old: &[u8], old_at: u64, new: &[u8], new_at: u64) -> Redirected {
    let mut redirected = Redirected { text: old.to_vec(), ..Redirected::default() };
    let targets = functions(new);
    let old_functions = functions(old);
    for function in &old_functions {
        let begin = function.offset;
        // Two names of one function, as `time` and `__vdso_time`.
        if redirected.pieces.iter().any(|piece| piece.0 == begin) {
            continue;
        }
        let wanted = plain(function.name);
        let call = CALLS.iter().find(|(name, _)| name.as_bytes() == wanted).map(|(_, number)| *number);
        let code = match (targets.iter().find(|f| plain(f.name) == wanted), call) {
            (Some(target), _) => jump(old_at.wrapping_add(begin as u64), new_at.wrapping_add(target.offset as u64)),
            (None, Some(number)) => instead(number),
            (None, None) => {
                redirected.left.push(name(function));
                continue;
            }
        };
        // Symbols of a sane text do not overlap; nothing is written over the beginning of the next function.
        let next = old_functions.iter().map(|f| f.offset).filter(|offset| *offset > begin).min();
        let room = next.map_or(function.size, |next| function.size.min(next - begin));
        if code.len() <= room {
            redirected.text[begin..][..code.len()].copy_from_slice(&code);
            redirected.pieces.push((begin, code.len()));
        } else if call.is_some() {
            redirected.stuck.push(name(function));
        } else {
            redirected.left.push(name(function));
        }
    }
    redirected
}

fn name(function: &Function<'_>) -> String {
    String::from_utf8_lossy(function.name).into_owned()
}

/// Functions that do what a system call of the same arguments does.
const CALLS: [(&str, i64); 6] = [
    ("clock_gettime", libc::SYS_clock_gettime),
    ("gettimeofday", libc::SYS_gettimeofday),
    ("time", libc::SYS_time),
    ("clock_getres", libc::SYS_clock_getres),
    ("getcpu", libc::SYS_getcpu),
    ("getrandom", libc::SYS_getrandom),
];

/// The name without its prefix: most functions have both names.
fn plain(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"__vdso_").unwrap_or(name)
}

/// `jmp rel32` within 2 GiB, else `movabs rax; jmp *rax` (no function has an argument in rax).
fn jump(from: u64, to: u64) -> Vec<u8> {
    const NEAR: u64 = 5;
    let distance = to.wrapping_sub(from.wrapping_add(NEAR)) as i64;
    match i32::try_from(distance) {
        Ok(distance) => [&[0xe9][..], &distance.to_le_bytes()].concat(),
        Err(_) => [&[0x48, 0xb8][..], &to.to_le_bytes(), &[0xff, 0xe0]].concat(),
    }
}

/// The system call of this number. None has a fourth argument, so all are where the kernel wants them.
fn instead(number: i64) -> Vec<u8> {
    let call = [&[0xb8][..], &(number as u32).to_le_bytes(), &[0x0f, 0x05, 0xc3]].concat();
    if number != libc::SYS_getrandom {
        return call;
    }
    // A fifth argument of -1 is a question about its state (getrandom(2) has none): ENOSYS, as of a kernel without it.
    // cmp $-1,%r8; jne 1f; mov $-ENOSYS,%rax; ret; 1:
    let question =
        [&[0x49, 0x83, 0xf8, 0xff, 0x75, 0x08, 0x48, 0xc7, 0xc0][..], &(-libc::ENOSYS).to_le_bytes(), &[0xc3]];
    [question.concat(), call].concat()
}

/// The dynamic symbols of an ELF image as it is mapped. The section table of a vDSO is not needed.
struct Symbols<'t> {
    text: &'t [u8],
    /// What addresses in it are ahead of offsets (before Linux 4.5: where it was linked for).
    bias: u64,
    symbols: u64,
    strings: u64,
    count: u64,
}

impl<'t> Symbols<'t> {
    const SYMBOL: u64 = 24;
    /// More than any vDSO has.
    const MOST: u64 = 1024;

    fn of(text: &'t [u8]) -> Option<Self> {
        const IDENT: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
        const EM_X86_64: u16 = 62;
        if !text.starts_with(&IDENT) || u16_at(text, 18)? != EM_X86_64 || text.len() as u64 > VDSO_TEXT_BYTES {
            return None;
        }
        let (mut dynamic, mut bias) = (None, None);
        let (at, size, count) = (u64_at(text, 32)?, u64::from(u16_at(text, 54)?), u16_at(text, 56)?);
        for n in 0..u64::from(count) {
            let header = at.checked_add(n.checked_mul(size)?)?;
            let (kind, offset) = (u32_at(text, header)?, u64_at(text, header.checked_add(8)?)?);
            match kind {
                1 if bias.is_none() => bias = Some(u64_at(text, header.checked_add(16)?)?.wrapping_sub(offset)),
                2 => dynamic = Some(offset),
                _ => {}
            }
        }
        let mut found = Self { text, bias: bias?, symbols: 0, strings: 0, count: 0 };
        found.read_dynamic(dynamic?)?;
        Some(found)
    }

    fn read_dynamic(&mut self, dynamic: u64) -> Option<()> {
        let mut hash = None;
        for n in 0..64 {
            let at = dynamic.checked_add(n * 16)?;
            let (tag, value) = (u64_at(self.text, at)?, u64_at(self.text, at.checked_add(8)?)?);
            match tag {
                0 => break,
                4 => hash = Some(value.wrapping_sub(self.bias)),
                5 => self.strings = value.wrapping_sub(self.bias),
                6 => self.symbols = value.wrapping_sub(self.bias),
                _ => {}
            }
        }
        // Without the old kind of hash table, which says how many there are, the strings come next behind the symbols.
        self.count = match hash {
            Some(hash) => u64::from(u32_at(self.text, hash.checked_add(4)?)?),
            None => self.strings.saturating_sub(self.symbols) / Self::SYMBOL,
        };
        self.count = self.count.min(Self::MOST);
        Some(())
    }

    fn string(&self, at: u64) -> Option<&'t [u8]> {
        let from = self.text.get(usize::try_from(self.strings.checked_add(at)?).ok()?..)?;
        Some(&from[..from.iter().position(|b| *b == 0)?])
    }

    fn function(&self, n: u64) -> Option<Function<'t>> {
        const FUNCTION: u8 = 2;
        let at = self.symbols.checked_add(n * Self::SYMBOL)?;
        let info = *self.text.get(usize::try_from(at.checked_add(4)?).ok()?)?;
        let section = u16_at(self.text, at.checked_add(6)?)?;
        let offset = u64_at(self.text, at.checked_add(8)?)?.wrapping_sub(self.bias);
        let size = u64_at(self.text, at.checked_add(16)?)?;
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.text.len() as u64);
        if info & 15 != FUNCTION || section == 0 || !inside {
            return None;
        }
        let name = self.string(u64::from(u32_at(self.text, at)?))?;
        Some(Function { name, offset: offset as usize, size: size as usize })
    }

    fn functions(&self) -> impl Iterator<Item = Function<'t>> + '_ {
        (0..self.count).filter_map(|n| self.function(n))
    }
}

fn bytes_at<const N: usize>(text: &[u8], at: u64) -> Option<[u8; N]> {
    text.get(usize::try_from(at).ok()?..)?.first_chunk().copied()
}

fn u16_at(text: &[u8], at: u64) -> Option<u16> {
    bytes_at(text, at).map(u16::from_le_bytes)
}

fn u32_at(text: &[u8], at: u64) -> Option<u32> {
    bytes_at(text, at).map(u32::from_le_bytes)
}

fn u64_at(text: &[u8], at: u64) -> Option<u64> {
    bytes_at(text, at).map(u64::from_le_bytes)
}

#[cfg(test)]
#[path = "vdso_tests.rs"]
mod tests;
