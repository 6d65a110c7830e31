//! Mappings that cannot be saved, and shared memory that others use as well.

use super::Member;
use crate::{
    blocker::{Blocker, Code, codes},
    collect::{mapped, sysv},
    image::{Pid, mm::PAGE},
    proc::{
        ProcDir, Result,
        maps::{Mapping, Special},
        smaps::{Flagged, VmFlags},
        table::Table,
    },
};
use std::collections::{BTreeMap, HashSet};

/// Shared memory without a name that the tree maps, and the first mapping met.
#[derive(Debug, Default)]
pub(super) struct Shared(BTreeMap<Object, String>);

/// What tells one such object from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Object {
    /// By device and inode.
    Nameless(u64, u64),
    /// A System V segment, by its IPC namespace and id.
    Segment(u64, u64),
}

impl Object {
    fn of(dir: &ProcDir, mapping: &Mapping) -> Option<Self> {
        if is_nameless_shared(mapping) {
            return Some(Self::Nameless(mapping.device, mapping.inode));
        }
        sysv::key_of(&mapping.name.0)?;
        Some(Self::Segment(dir.ns("ipc").ok()?, mapping.inode))
    }
}

fn object(pid: Pid, mapping: &Mapping) -> String {
    format!("pid {pid} mapping {:x}-{:x} {}", mapping.start, mapping.end, mapping.name)
}

/// How closely mappings are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Their flags are read: the kernel walks all page tables for it (20 ms/GiB), and writes 600 bytes for each mapping.
    Flags,
    /// Flags are read only of a process that has a mapping whose flags decide.
    Names,
}

/// More than this of resident memory, bytes, and it is dear to read flags.
const MUCH: u64 = 64 << 20;
/// More processes than this, and it is.
const MANY: usize = 8;
/// More mappings of a process than this, and it is.
const MANY_MAPPINGS: usize = 256;

impl Depth {
    /// For these processes, given what is in the way among their descriptors.
    ///
    /// Flags show what nothing else does where a process outside handles the page faults of a tree that has no userfaultfd
    /// of its own, and on a kernel with flags that are new. Of much memory that is found a little later, when the tree has
    /// been stopped for the first time; it is refused then, and runs on.
    pub fn fitting(members: &[Member<'_>], descriptors: &[Blocker]) -> Self {
        let resident: u64 = members.iter().filter_map(|member| member.row.memory).map(|m| m.rss).sum();
        let handles_faults = descriptors.iter().any(|blocker| blocker.code == codes::USERFAULTFD);
        if handles_faults || resident <= MUCH && members.len() <= MANY { Self::Flags } else { Self::Names }
    }
}

/// The mappings of a process, without their flags where those say nothing that is looked for.
pub(super) fn mappings(member: &Member<'_>, depth: Depth, buf: &mut Vec<u8>) -> Result<Vec<Flagged>> {
    let maps = member.dir.maps(buf)?;
    let few = maps.len() <= MANY_MAPPINGS;
    if depth == Depth::Flags && few || maps.iter().any(may_be_of_device) {
        return member.dir.smaps_flags(buf);
    }
    let plain = |mapping| Flagged { mapping, flags: VmFlags::empty(), pkey: 0, page_size: PAGE };
    Ok(maps.into_iter().map(plain).collect())
}

/// Its flags tell whether what is mapped is memory of a device: of one below /dev, or of one that sysfs shows as a file. Private
/// mappings of other files have pages of their own, and shared memory has no device behind it.
fn may_be_of_device(mapping: &Mapping) -> bool {
    let name = mapping.name.0.as_slice();
    let memory = is_nameless_shared(mapping) || sysv::key_of(name).is_some() || name.starts_with(b"/dev/shm/");
    mapping.has_file() && !memory && (mapping.shared || name.starts_with(b"/dev/"))
}

pub(super) fn look(member: &Member<'_>, mappings: &[Flagged], shared: &mut Shared, found: &mut Vec<Blocker>) {
    let pid = member.row.pid;
    // The same reason for many mappings is said once for a process.
    let mut said = HashSet::new();
    let mut files = mappings.iter().map(|flagged| &flagged.mapping).filter(|mapping| mapping.has_file());
    let by_name = files.next().is_some_and(|mapping| !mapped::links_lead(member.dir, mapping));
    for flagged in mappings {
        if by_name && only_for_root(member.dir, &flagged.mapping) && said.insert(codes::MAPPED_FILE) {
            found.push(Blocker::new(codes::MAPPED_FILE, object(pid, &flagged.mapping)));
        }
        if let Some((code, because)) = judge(flagged)
            && said.insert(code)
        {
            let blocker = Blocker::new(code, object(pid, &flagged.mapping));
            found.push(if because.is_empty() { blocker } else { blocker.because(because) });
        }
        if let Some(key) = Object::of(member.dir, &flagged.mapping) {
            shared.0.entry(key).or_insert_with(|| object(pid, &flagged.mapping));
        }
    }
}

/// Whether what is mapped has no name by which it can be found.
fn only_for_root(dir: &ProcDir, mapping: &Mapping) -> bool {
    let private_huge = !mapping.shared && mapping.name.0.starts_with(b"/anon_hugepage");
    let file = mapping.has_file() && mapping.special().is_none() && !private_huge;
    // An error: it has changed meanwhile.
    file && matches!(mapped::file_of(dir, mapping), Ok(None))
}

/// Why a mapping cannot be saved; an empty reason is the catalogue's.
fn judge(flagged: &Flagged) -> Option<(Code, &'static str)> {
    let (mapping, flags) = (&flagged.mapping, flagged.flags);
    let name = mapping.name.0.as_slice();
    if flags.contains(VmFlags::SHADOW_STACK) {
        return Some((codes::SHADOW_STACK, ""));
    }
    if flags.intersects(VmFlags::UFFD_MISSING | VmFlags::UFFD_MINOR) {
        return Some((codes::MEMORY_UFFD, ""));
    }
    match mapping.special() {
        Some(Special::Uprobes) => return Some((codes::UPROBES, "")),
        Some(Special::AnonInode(kind)) => return Some((anon_inode(kind), "")),
        Some(Special::Other(_)) => {
            return Some((codes::MEMORY_UNKNOWN, "the kernel has a name for it that is not known"));
        }
        _ => {}
    }
    if name.starts_with(b"/secretmem") {
        Some((codes::MEMFD_SECRET, ""))
    } else if name.starts_with(b"/[aio]") {
        Some((codes::AIO_CONTEXT, ""))
    } else if mapping.has_file() && flags.intersects(VmFlags::PFN_MAP | VmFlags::IO) {
        Some((codes::MEMORY_DEVICE, ""))
    } else if flags.contains(VmFlags::UNKNOWN) {
        Some((codes::MEMORY_UNKNOWN, "it has a flag in smaps that this program does not know"))
    } else {
        None
    }
}

/// `[io_uring]`, `[perf_event]`, `kvm-vcpu:0`, ...
fn anon_inode(kind: &[u8]) -> Code {
    match kind {
        b"[io_uring]" => codes::IO_URING,
        b"[perf_event]" => codes::PERF_EVENT,
        _ if kind.starts_with(b"kvm") => codes::KVM,
        _ if kind.starts_with(b"bpf") => codes::BPF,
        _ => codes::MEMORY_UNKNOWN,
    }
}

/// Shared anonymous memory and memfds. Files have a name at which others will find them as well.
fn is_nameless_shared(mapping: &Mapping) -> bool {
    let name = mapping.name.0.as_slice();
    mapping.shared && mapping.inode != 0 && (name == b"/dev/zero (deleted)" || name.starts_with(b"/memfd:"))
}

/// Most processes outside that are named for one object.
const USERS_SHOWN: usize = 5;

/// Names shared memory of the tree that a process outside maps, too. Processes that may not be looked at are passed over.
pub(super) fn mapped_outside(
    table: &Table,
    tree: &[Pid],
    shared: &Shared,
    buf: &mut Vec<u8>,
    found: &mut Vec<Blocker>,
) {
    if shared.0.is_empty() {
        return;
    }
    let tree: HashSet<Pid> = tree.iter().copied().collect();
    let mut others: BTreeMap<Object, Vec<String>> = BTreeMap::new();
    for row in table.rows().iter().filter(|row| !tree.contains(&row.pid) && !row.is_kernel()) {
        let Ok(dir) = ProcDir::open(row.pid) else { continue };
        let Ok(maps) = dir.maps(buf) else { continue };
        let keys: HashSet<Object> = maps.iter().filter_map(|mapping| Object::of(&dir, mapping)).collect();
        for key in keys.into_iter().filter(|key| shared.0.contains_key(key)) {
            others.entry(key).or_default().push(super::reach::object(row));
        }
    }
    for (key, users) in others {
        let (code, does) = match key {
            Object::Nameless(..) => (codes::SHARED_OUTSIDE, "map this shared memory"),
            Object::Segment(..) => (codes::SYSV_OUTSIDE, "have attached this segment"),
        };
        let more = users.len().saturating_sub(USERS_SHOWN);
        let named = users[..users.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        found.push(Blocker::new(code, shared.0[&key].clone()).because(format!("{named}{more} {does}, too")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::smaps::parse_flags;

    fn code(line: &str, flags: &str) -> Option<Code> {
        let text = format!("7f0000000000-7f0000001000 rw-p 00000000 {line}\nVmFlags: {flags}\n");
        judge(&parse_flags(text.as_bytes()).unwrap()[0]).map(|(code, _)| code)
    }

    #[test]
    fn whose_flags_decide() {
        let decides = |line: &str| {
            let text = format!("7f0000000000-7f0000001000 {line}\n");
            may_be_of_device(&crate::proc::maps::parse(text.as_bytes()).unwrap()[0])
        };
        assert!(decides("rw-s 00000000 00:06 9 /dev/dri/card0"));
        assert!(decides("rw-p 00000000 00:06 9 /dev/fb0"), "private, of a device");
        assert!(decides("rw-s 00000000 00:16 9 /sys/devices/pci0000:00/0000:00:02.0/resource0"));
        assert!(decides("rw-s 00000000 fe:00 9 /var/lib/file"));
        assert!(!decides("rw-p 00000000 fe:00 9 /usr/lib/libc.so.6"));
        assert!(!decides("rw-p 00000000 00:00 0 "));
        assert!(!decides("r--p 00000000 00:00 0 [vvar]"));
        assert!(!decides("rw-s 00000000 00:01 9 /dev/zero (deleted)"));
        assert!(!decides("rw-s 00000000 00:01 9 /memfd:x (deleted)"));
        assert!(!decides("rw-s 00000000 00:01 9 /SYSV00001234 (deleted)"));
        assert!(!decides("rw-s 00000000 00:1a 9 /dev/shm/segment"));
    }

    #[test]
    fn kinds_of_mappings() {
        assert_eq!(code("00:00 0 ", "rd wr mr mw me"), None);
        assert_eq!(code("00:00 0 [stack]", "rd wr gd"), None);
        assert_eq!(code("00:00 0 [vvar]", "rd mr pf io de dd"), None);
        assert_eq!(code("00:01 5 /dev/zero (deleted)", "rd wr sh ms"), None);
        assert_eq!(code("00:00 0 ", "rd wr ss"), Some(codes::SHADOW_STACK));
        assert_eq!(code("00:00 0 ", "rd wr um"), Some(codes::MEMORY_UFFD));
        assert_eq!(code("00:00 0 ", "rd wr uw"), None, "tracking by ourselves");
        assert_eq!(code("00:00 0 ", "rd wr zz"), Some(codes::MEMORY_UNKNOWN));
        assert_eq!(code("00:00 0 [uprobes]", "rd ex"), Some(codes::UPROBES));
        assert_eq!(code("00:00 0 [new thing]", "rd"), Some(codes::MEMORY_UNKNOWN));
        assert_eq!(code("00:0f 7 anon_inode:[io_uring]", "rd wr sh"), Some(codes::IO_URING));
        assert_eq!(code("00:0f 7 anon_inode:kvm-vcpu:0", "rd wr sh"), Some(codes::KVM));
        assert_eq!(code("00:12 7 /[aio] (deleted)", "rd wr sh"), Some(codes::AIO_CONTEXT));
        assert_eq!(code("00:13 7 /secretmem (deleted)", "rd wr sh lo"), Some(codes::MEMFD_SECRET));
        assert_eq!(code("00:06 9 /dev/dri/card0", "rd wr sh pf io"), Some(codes::MEMORY_DEVICE));
    }
}
