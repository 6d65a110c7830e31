//! What a descriptor is, by what `/proc/PID/fd/N` shows: also for a target that runs.

use crate::blocker::{Code, codes};
use nix::sys::stat::{major, minor};

/// Kinds of descriptors as far as `/proc` tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A regular file or directory, or anything at all opened with `O_PATH`.
    Path,
    /// A file of a `/proc`.
    Proc,
    /// A pipe, or a FIFO with a name.
    Pipe,
    /// A socket.
    Socket,
    /// eventfd(2).
    EventFd,
    /// epoll(7).
    Epoll,
    /// signalfd(2).
    SignalFd,
    /// timerfd_create(2).
    TimerFd,
    /// inotify(7).
    Inotify,
    /// pidfd_open(2).
    PidFd,
    /// A namespace.
    Namespace,
    /// A memfd, or the file behind other shared memory.
    Shmem,
    /// A device node without state of its own.
    Device,
    /// A terminal.
    Tty,
    /// Something that cannot be saved.
    Unsupported(Code),
}

/// What `stat(2)` and the link of a descriptor say.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The text of the link.
    pub link: &'a [u8],
    /// `st_mode`.
    pub mode: u32,
    /// `st_rdev`.
    pub rdev: u64,
    /// `f_type` of the file system.
    pub fs_magic: i64,
    /// `O_PATH` is set.
    pub o_path: bool,
}

/// Magic numbers of file systems (statfs(2)).
pub mod magic {
    /// procfs.
    pub const PROC: i64 = 0x9fa0;
    /// Namespace files.
    pub const NSFS: i64 = 0x6e73_6673;
    /// POSIX message queues.
    pub const MQUEUE: i64 = 0x1980_0202;
    /// hugetlbfs.
    pub const HUGETLB: i64 = 0x9584_58f6;
    /// sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs: sizes and times mean nothing there.
    pub const PSEUDO: [i64; 7] = [PROC, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673];
}

/// Tells what a descriptor is.
pub fn classify(look: Look<'_>) -> Class {
    if let Some(kind) = look.link.strip_prefix(b"anon_inode:") {
        return anonymous(kind);
    }
    if look.fs_magic == magic::NSFS {
        return Class::Namespace;
    }
    if look.fs_magic == magic::MQUEUE {
        return Class::Unsupported(codes::MESSAGE_QUEUE);
    }
    if look.fs_magic == magic::PROC {
        return Class::Proc;
    }
    if look.link.starts_with(b"pidfd:") {
        return Class::PidFd;
    }
    if look.o_path {
        return Class::Path;
    }
    match look.mode & libc::S_IFMT {
        libc::S_IFSOCK => Class::Socket,
        libc::S_IFIFO => Class::Pipe,
        libc::S_IFCHR => character_device(look.rdev),
        libc::S_IFBLK => Class::Device,
        libc::S_IFREG => regular(look.link),
        libc::S_IFDIR => Class::Path,
        _ => Class::Unsupported(codes::DESCRIPTOR_UNKNOWN),
    }
}

fn anonymous(kind: &[u8]) -> Class {
    let kind = kind.strip_prefix(b"[").and_then(|k| k.strip_suffix(b"]")).unwrap_or(kind);
    match kind {
        b"eventfd" => Class::EventFd,
        b"eventpoll" => Class::Epoll,
        b"signalfd" => Class::SignalFd,
        b"timerfd" => Class::TimerFd,
        b"inotify" => Class::Inotify,
        b"pidfd" => Class::PidFd,
        b"io_uring" => Class::Unsupported(codes::IO_URING),
        b"userfaultfd" => Class::Unsupported(codes::USERFAULTFD),
        b"perf_event" => Class::Unsupported(codes::PERF_EVENT),
        b"fanotify" => Class::Unsupported(codes::FANOTIFY),
        b"landlock-ruleset" => Class::Unsupported(codes::LANDLOCK_RULESET),
        b"seccomp notify" => Class::Unsupported(codes::SECCOMP_LISTENER),
        b"btf" => Class::Unsupported(codes::BPF),
        _ if kind.starts_with(b"bpf") => Class::Unsupported(codes::BPF),
        _ if kind.starts_with(b"kvm") => Class::Unsupported(codes::KVM),
        _ => Class::Unsupported(codes::DESCRIPTOR_UNKNOWN),
    }
}

/// Files without a name in any mount that a program can see are shared memory objects, or belong to a driver.
fn regular(link: &[u8]) -> Class {
    let shmem = link.starts_with(b"/memfd:") || link.starts_with(b"/SYSV") || link == b"/dev/zero (deleted)";
    if shmem && link.ends_with(b" (deleted)") {
        return Class::Shmem;
    }
    if link.starts_with(b"/dmabuf:") || link.starts_with(b"/drm mm object") || link.starts_with(b"/i915") {
        return Class::Unsupported(codes::DMABUF);
    }
    if link.starts_with(b"/secretmem") { Class::Unsupported(codes::DESCRIPTOR_UNKNOWN) } else { Class::Path }
}

/// Major numbers as in the kernel's `admin-guide/devices.txt`.
fn character_device(rdev: u64) -> Class {
    const MEM: u64 = 1;
    const TTY: u64 = 4;
    const TTY_AUX: u64 = 5;
    const MISC: u64 = 10;
    const DRI: u64 = 226;
    match (major(rdev), minor(rdev)) {
        // null, zero, full, random, urandom, kmsg
        (MEM, 3 | 5 | 7 | 8 | 9 | 11) => Class::Device,
        (TTY | TTY_AUX | 136..=143, _) => Class::Tty,
        (MISC, 232) => Class::Unsupported(codes::KVM),
        (DRI, _) => Class::Unsupported(codes::DMABUF),
        _ => Class::Unsupported(codes::DEVICE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::makedev;

    fn look(link: &[u8], mode: u32, rdev: u64) -> Class {
        classify(Look { link, mode, rdev, fs_magic: 0xef53, o_path: false })
    }

    #[test]
    fn links_tell_the_kind() {
        assert_eq!(look(b"anon_inode:[eventfd]", 0o600, 0), Class::EventFd);
        assert_eq!(look(b"anon_inode:inotify", 0o600, 0), Class::Inotify);
        assert_eq!(look(b"anon_inode:[io_uring]", 0o600, 0), Class::Unsupported(codes::IO_URING));
        assert_eq!(look(b"anon_inode:bpf-map", 0o600, 0), Class::Unsupported(codes::BPF));
        assert_eq!(look(b"anon_inode:[something new]", 0o600, 0), Class::Unsupported(codes::DESCRIPTOR_UNKNOWN));
        assert_eq!(look(b"pipe:[12]", libc::S_IFIFO | 0o600, 0), Class::Pipe);
        assert_eq!(look(b"socket:[12]", libc::S_IFSOCK | 0o777, 0), Class::Socket);
        assert_eq!(look(b"/memfd:x (deleted)", libc::S_IFREG | 0o777, 0), Class::Shmem);
        assert_eq!(look(b"/memfd:x", libc::S_IFREG | 0o777, 0), Class::Path, "a file in the root directory");
        assert_eq!(look(b"/tmp/x (deleted)", libc::S_IFREG | 0o644, 0), Class::Path);
    }

    #[test]
    fn devices_by_number() {
        assert_eq!(look(b"/dev/null", libc::S_IFCHR, makedev(1, 3)), Class::Device);
        assert_eq!(look(b"/dev/mem", libc::S_IFCHR, makedev(1, 1)), Class::Unsupported(codes::DEVICE));
        assert_eq!(look(b"/dev/pts/3", libc::S_IFCHR, makedev(136, 3)), Class::Tty);
        assert_eq!(look(b"/dev/ptmx", libc::S_IFCHR, makedev(5, 2)), Class::Tty);
        assert_eq!(look(b"/dev/kvm", libc::S_IFCHR, makedev(10, 232)), Class::Unsupported(codes::KVM));
    }

    #[test]
    fn a_path_descriptor_is_a_path_whatever_it_names() {
        let look = Look { link: b"/dev/kvm", mode: libc::S_IFCHR, rdev: makedev(10, 232), fs_magic: 0, o_path: true };
        assert_eq!(classify(look), Class::Path);
    }
}
