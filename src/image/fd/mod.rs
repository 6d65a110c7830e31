//! Descriptors and what they refer to: one file per kind.

pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod inotify;
pub mod lock;
pub mod netlink;
pub mod nsfd;
pub mod pidfd;
pub mod pipe;
pub mod regular;
pub mod signalfd;
pub mod tcp;
pub mod timerfd;
pub mod tty;
pub mod udp;
pub mod unix;

use super::{Bytes, FileId, NsId, NsPid};
use serde::{Deserialize, Serialize};

/// A descriptor table (`CLONE_FILES`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FdTable {
    /// Descriptors, ascending.
    pub entries: Vec<FdEntry>,
}

/// One descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdEntry {
    /// Its number.
    pub fd: u32,
    /// The open file description it refers to.
    pub file: FileId,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
}

/// An open file description: what `open(2)` makes and `dup(2)`, `fork(2)` and `SCM_RIGHTS` share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// `O_*` as of `fdinfo` without `O_CLOEXEC`.
    pub flags: u32,
    /// Offset, bytes.
    pub offset: u64,
    /// `F_SETOWN_EX` and `F_SETSIG`.
    pub owner: Option<FileOwner>,
    /// `F_SETLEASE`.
    pub lease: Option<lock::Lease>,
    /// What it is.
    pub kind: FileKind,
}

/// Who gets SIGIO for a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// `F_OWNER_TID` = 0, `F_OWNER_PID` = 1, `F_OWNER_PGRP` = 2.
    pub kind: i32,
    /// The id, as the target sees it.
    pub id: NsPid,
    /// `F_GETSIG`, 0 = SIGIO.
    pub signal: i32,
    /// Real and effective user of the owner when it was set.
    pub uids: [u32; 2],
}

/// Kinds of files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file or directory with a path, also `O_PATH`.
    Regular(regular::Regular),
    /// A deleted file whose content travels.
    Ghost(regular::GhostFile),
    /// One end of a pipe, or an open FIFO.
    Pipe(pipe::PipeEnd),
    /// eventfd(2).
    EventFd(eventfd::EventFd),
    /// epoll(7).
    Epoll(epoll::Epoll),
    /// signalfd(2).
    SignalFd(signalfd::SignalFd),
    /// timerfd_create(2).
    TimerFd(timerfd::TimerFd),
    /// inotify(7).
    Inotify(inotify::Inotify),
    /// memfd_create(2) or a System V segment's file.
    Shmem(regular::ShmemFile),
    /// A character or block device node.
    Device(device::Device),
    /// Either side of a pseudo-terminal, or `/dev/tty`.
    Tty(tty::TtyFile),
    /// AF_UNIX.
    Unix(super::UnixId),
    /// TCP over IPv4 or IPv6.
    Tcp(tcp::Tcp),
    /// UDP over IPv4 or IPv6, also ping sockets without state.
    Udp(udp::Udp),
    /// AF_NETLINK.
    Netlink(netlink::Netlink),
    /// pidfd_open(2).
    PidFd(pidfd::PidFd),
    /// `/proc/PID/ns/*`.
    Namespace(nsfd::NsFd),
    /// A file of `/proc` that belongs to a task of the tree.
    ProcFile(regular::ProcFile),
    /// Held by somebody outside the tree; given at restore by the caller under this key
    /// (`--stdio`, `--external file[..]`, `--inherit-fd`).
    External(External),
}

/// A file that ends outside the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// What the restoring side is asked for: `stdin`, `stdout`, `stderr`, `pipe:[INO]`, `tty[..]`, ...
    pub key: String,
    /// What `/proc/PID/fd/N` showed.
    pub link: Bytes,
    /// `st_mode` of the object.
    pub mode: u32,
    /// How the tree has set the terminal, if it is one.
    pub terminal: Option<tty::TerminalSettings>,
}

/// A file by its path in a mount namespace, with what is compared before it is opened again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRef {
    /// Absolute path as seen from the root of the mount namespace.
    pub path: Bytes,
    /// The mount namespace.
    pub mnt: NsId,
    /// `st_mode`, type and permission bits.
    pub mode: u32,
    /// `st_dev` on the source.
    pub device: u64,
    /// `st_ino` on the source.
    pub inode: u64,
    /// Length in bytes (regular files; 0 otherwise).
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
}

/// Options every socket has (`SOL_SOCKET`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SocketOptions {
    /// User that owns the socket, as the engine sees it (`st_uid`): `SO_REUSEPORT` groups are kept apart by it.
    pub uid: u32,
    /// Group that owns the socket, as the engine sees it (`st_gid`).
    pub gid: u32,
    /// Integer options by number (`SO_REUSEADDR`, `SO_KEEPALIVE`, `SO_SNDBUF`, ...) as getsockopt(2) gives them; without those
    /// that have the value every new socket has.
    pub ints: Vec<(i32, i32)>,
    /// Options with structured values by number: `SO_LINGER`, `SO_RCVTIMEO_NEW`, `SO_SNDTIMEO_NEW`, `SO_BINDTODEVICE`, raw.
    pub raw: Vec<(i32, Bytes)>,
    /// Options that are the number of an interface, which is another one on every host (`IP_UNICAST_IF`, `IPV6_UNICAST_IF`,
    /// `IPV6_MULTICAST_IF`), as (level, number of the option, name of the interface).
    pub interfaces: Vec<(i32, i32, Bytes)>,
    /// `SO_GET_FILTER`: classic BPF, instructions of 8 bytes.
    pub filter: Vec<u64>,
    /// `SO_LOCK_FILTER`.
    pub filter_locked: bool,
    /// `SO_BUF_LOCK`: buffers whose size the program fixed.
    pub buffer_lock: i32,
}

/// Iteration over descriptions with their ids.
pub fn enumerate(files: &[File]) -> impl Iterator<Item = (FileId, &File)> {
    files.iter().enumerate().map(|(n, f)| (FileId::from(n), f))
}
