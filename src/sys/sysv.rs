//! shmget(2), shmat(2), shmctl(2): System V shared memory, as the calling thread's IPC namespace has it.

use super::{Errno, Result, check};
use std::os::fd::OwnedFd;

/// `SHM_RDONLY`: attached for reading alone.
pub const SHM_RDONLY: i32 = 0o10_000;
/// `SHM_EXEC`: attached executable.
pub const SHM_EXEC: i32 = 0o100_000;
/// `SHM_DEST` in the mode of a segment: removed once nobody is attached.
pub const SHM_DEST: u32 = 0o1000;
/// `SHM_LOCKED` in the mode of a segment.
pub const SHM_LOCKED: u32 = 0o2000;
/// `SHM_STAT_ANY` (Linux 4.17): as `IPC_STAT`, whatever the caller may read.
pub const SHM_STAT_ANY: i32 = 15;
/// `SHM_LOCK`.
pub const SHM_LOCK: i32 = 11;
/// Bytes of `struct shmid64_ds` of x86-64.
pub const SHMID_DS_LEN: usize = 112;

/// What `IPC_STAT` says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// `key_t`; `IPC_PRIVATE` (0) also for those that are to be removed.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permissions, [`SHM_DEST`], [`SHM_LOCKED`].
    pub mode: u32,
    /// Bytes, as they were asked for.
    pub size: u64,
    /// How many mappings there are.
    pub attached: u64,
}

impl Segment {
    /// Reads a `struct shmid64_ds`.
    pub fn of_bytes(raw: &[u8; SHMID_DS_LEN]) -> Self {
        let u32_at = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
        Self {
            key: u32_at(0).cast_signed(),
            uid: u32_at(4),
            gid: u32_at(8),
            cuid: u32_at(12),
            cgid: u32_at(16),
            mode: u32_at(20),
            size: u64_at(48),
            attached: u64_at(88),
        }
    }
}

/// What is known of a segment; `EINVAL`, `EIDRM`: there is none with this id.
pub fn stat(id: i32) -> Result<Segment> {
    let mut raw = [0u8; SHMID_DS_LEN];
    // SHM_STAT_ANY takes a place in the kernel's table; that of an id is found in its lower bits.
    // SAFETY: the kernel writes a struct shmid64_ds, for which there is room.
    let found = check(unsafe { libc::syscall(libc::SYS_shmctl, id, SHM_STAT_ANY, raw.as_mut_ptr()) })?;
    if found == i64::from(id) { Ok(Segment::of_bytes(&raw)) } else { Err(Errno::EINVAL) }
}

/// Makes a segment; `flags` are permissions and `SHM_HUGETLB` with its page size. `EEXIST`: the key is in use.
pub fn create(key: i32, size: u64, flags: i32) -> Result<i32> {
    let flags = flags | libc::IPC_CREAT | libc::IPC_EXCL;
    // SAFETY: shmget has no pointers.
    let id = check(unsafe { libc::syscall(libc::SYS_shmget, key, size, flags) })?;
    Ok(id as i32)
}

/// Gives a segment its owner and permissions.
pub fn set_owner(id: i32, uid: u32, gid: u32, mode: u32) -> Result<()> {
    let mut raw = [0u8; SHMID_DS_LEN];
    raw[4..8].copy_from_slice(&uid.to_ne_bytes());
    raw[8..12].copy_from_slice(&gid.to_ne_bytes());
    raw[20..24].copy_from_slice(&(mode & 0o777).to_ne_bytes());
    // SAFETY: the kernel reads a struct shmid64_ds, of which it takes owner and mode.
    check(unsafe { libc::syscall(libc::SYS_shmctl, id, libc::IPC_SET, raw.as_ptr()) }).map(drop)
}

/// Marks a segment to be removed once nobody is attached.
pub fn remove(id: i32) -> Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    check(unsafe { libc::syscall(libc::SYS_shmctl, id, libc::IPC_RMID, 0) }).map(drop)
}

/// A segment as a file (through /proc/self/map_files, which needs CAP_CHECKPOINT_RESTORE): for its contents alone, a mapping
/// of it does not count as attached.
pub fn open(id: i32, size: u64) -> Result<OwnedFd> {
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
    let at = unsafe { libc::syscall(libc::SYS_shmat, id, 0, 0) };
    let start = check(at)?;
    let block = mapped_length(start as u64, size);
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start as u64 + block);
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
    // SAFETY: detaches exactly what was attached above.
    unsafe { libc::syscall(libc::SYS_shmdt, start) };
    opened
}

/// Length of the mapping of a segment of so many bytes: whole pages, huge ones where it begins at one.
fn mapped_length(start: u64, size: u64) -> u64 {
    let small = size.next_multiple_of(4096);
    [small, size.next_multiple_of(2 << 20), size.next_multiple_of(1 << 30)]
        .into_iter()
        .find(|len| std::path::Path::new(&format!("/proc/self/map_files/{start:x}-{:x}", start + len)).exists())
        .unwrap_or(small)
}

/// Runs `work` in a thread of its own that it may change: its IPC namespace, its user.
pub fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| scope.spawn(work).join().ok())
}

/// Gives the calling thread an IPC namespace of its own; its descriptor.
pub fn new_namespace() -> Result<OwnedFd> {
    // SAFETY: unshare(CLONE_NEWIPC) changes nothing but this thread's namespace.
    check(unsafe { libc::unshare(libc::CLONE_NEWIPC) }.into())?;
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::open("/proc/thread-self/ns/ipc", flags, nix::sys::stat::Mode::empty())
}

/// Runs `work` with other effective ids, of the calling thread alone. The thread has to be root.
pub fn as_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> Result<T> {
    const SAME: u32 = u32::MAX;
    // The raw calls: libc's change all threads.
    // SAFETY: setresgid and setresuid have no pointers.
    let set = |call, id: u32| check(unsafe { libc::syscall(call, SAME, id, SAME) });
    set(libc::SYS_setresgid, gid)?;
    let result = set(libc::SYS_setresuid, uid).map(|_| work());
    set(libc::SYS_setresuid, 0)?;
    set(libc::SYS_setresgid, 0)?;
    result
}

/// Process of the last semop(2) on one semaphore of a set, in our PID namespace; 0 = nobody, or one outside of it.
pub fn last_user(set: i32, semaphore: u32) -> Result<i32> {
    const GETPID: i32 = 11;
    // SAFETY: GETPID takes no buffer.
    let pid = check(unsafe { libc::syscall(libc::SYS_semctl, set, semaphore, GETPID, 0) })?;
    Ok(pid as i32)
}

/// A set of one semaphore that this process has used.
#[cfg(test)]
pub fn scratch_semaphore() -> Result<i32> {
    // SAFETY: semget has no pointers.
    let id = check(unsafe { libc::syscall(libc::SYS_semget, libc::IPC_PRIVATE, 1, 0o600) })? as i32;
    let up = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: 0 };
    // SAFETY: the kernel reads one struct sembuf.
    check(unsafe { libc::syscall(libc::SYS_semop, id, &raw const up, 1) })?;
    Ok(id)
}

/// Removes a set of semaphores.
#[cfg(test)]
pub fn remove_semaphores(id: i32) -> Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    check(unsafe { libc::syscall(libc::SYS_semctl, id, 0, libc::IPC_RMID, 0) }).map(drop)
}

/// A message queue that this process has used.
#[cfg(test)]
pub fn scratch_queue() -> Result<i32> {
    // SAFETY: msgget has no pointers.
    let id = check(unsafe { libc::syscall(libc::SYS_msgget, libc::IPC_PRIVATE, 0o600) })? as i32;
    let message: (i64, [u8; 8]) = (1, *b"message ");
    // SAFETY: the kernel reads a long and 8 bytes.
    check(unsafe { libc::syscall(libc::SYS_msgsnd, id, &raw const message, 8, 0) })?;
    Ok(id)
}

/// Removes a message queue.
#[cfg(test)]
pub fn remove_queue(id: i32) -> Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    check(unsafe { libc::syscall(libc::SYS_msgctl, id, libc::IPC_RMID, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_made_read_and_removed() {
        let id = create(libc::IPC_PRIVATE, 5000, 0o640).unwrap();
        let segment = stat(id).unwrap();
        assert_eq!((segment.key, segment.size, segment.mode, segment.attached), (0, 5000, 0o640, 0));
        set_owner(id, segment.uid, segment.gid, 0o600).unwrap();
        assert_eq!(stat(id).unwrap().mode, 0o600);
        remove(id).unwrap();
        assert!(stat(id).is_err());
        assert!(stat(-1).is_err());
    }
}
