use super::*;
use crate::proc::locks::Kind;

pub(in crate::proc) const EPOLL: &[u8] = b"pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2070\n\
tfd:        5 events: 80000019 data:     ffffffff00000005  pos:0 ino:3e sdev:d\ntfd:        7 events:       1d data: 7 \n";
pub(in crate::proc) const INOTIFY: &[u8] = b"pos:\t0\nflags:\t00\nmnt_id:\t15\nino:\t2070\n\
inotify wd:2 ino:e sdev:fd00001 mask:3ce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0e000000aabbccdd\ninotify wd:1 ino:f sdev:1a mask:2 ignored_mask:0\n";
pub(in crate::proc) const TIMER: &[u8] =
    b"pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t2070\nclockid: 1\nticks: 3\nsettime flags: 01\n\
it_value: (1, 500000000)\nit_interval: (0, 7)\n";
pub(in crate::proc) const RING: &[u8] = b"pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2070\nSqMask:\t0x3\nSqHead:\t0\nCqMask:\t0x7\nSQEs:\t0\nCQEs:\t1\n\
  0: user_data:5, res:0, flags:0\nSqThread:\t-1\nSqThreadCpu:\t-1\nUserFiles:\t1\n    0: /x\nUserBufs:\t2\n    0: 0x1/2\nPollList:\nCqOverflowList:\nNAPI:\tdisabled\n";

fn with(text: &str) -> FdInfo {
    parse(format!("pos:\t0\nflags:\t02\nmnt_id:\t1\nino:\t2\n{text}").as_bytes()).unwrap()
}

#[test]
fn common_lines_and_locks() {
    let info = parse(
        b"pos:\t-5\nflags:\t0100002\nmnt_id:\t29\nino:\t77\nlock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n\
        lock:\t2: POSIX  ADVISORY  READ 359 00:13:11691 5 9\n",
    )
    .unwrap();
    assert_eq!((info.pos, info.flags, info.mnt_id, info.ino), (-5, 0o100_002, 29, Some(77)));
    assert_eq!(info.locks.iter().map(|l| l.kind).collect::<Vec<_>>(), [Kind::Flock, Kind::Posix]);
    assert_eq!(info.detail, Detail::None);
}

#[test]
fn epoll_targets() {
    let Detail::Epoll(targets) = parse(EPOLL).unwrap().detail else { panic!("not epoll") };
    let device = nix::sys::stat::makedev(0, 13);
    assert_eq!(targets[0], EpollTarget { fd: 5, events: 0x8000_0019, data: 0xffff_ffff_0000_0005, ino: 0x3e, device });
    assert_eq!((targets[1].fd, targets[1].data, targets[1].ino), (7, 7, 0));
}

#[test]
fn inotify_watches() {
    let Detail::Inotify(watches) = parse(INOTIFY).unwrap().detail else { panic!("not inotify") };
    assert_eq!((watches[0].wd, watches[0].ino, watches[0].mask), (2, 14, 0x3ce));
    assert_eq!(watches[0].device, nix::sys::stat::makedev(253, 1));
    assert_eq!((watches[0].handle_type, watches[0].handle.0.as_slice()), (1, b"\x0e\0\0\0\xaa\xbb\xcc\xdd".as_slice()));
    assert!(watches[1].handle.0.is_empty());
    let wrong = "pos: 0\nflags: 0\ninotify wd:1 ino:1 sdev:1 mask:1 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:00\n";
    assert!(parse(wrong.as_bytes()).is_err());
}

#[test]
fn timers_counters_signals() {
    let spec = TimerSpec { remaining_ns: 1_500_000_000, interval_ns: 7 };
    assert_eq!(parse(TIMER).unwrap().detail, Detail::TimerFd { clock: 1, ticks: 3, settime_flags: 1, spec });
    let count = with("eventfd-count:               2a\neventfd-id: 1\neventfd-semaphore: 1\n").detail;
    assert_eq!(count, Detail::EventFd { count: 42, semaphore: Some(true) });
    assert_eq!(with("sigmask:\t0000000000000200\n").detail, Detail::SignalFd { mask: 0x200 });
}

#[test]
fn other_kinds() {
    assert_eq!(with("Pid:\t12\nNSpid:\t12\t3\n").detail, Detail::PidFd { pid: 12, ns_pids: vec![12, 3] });
    assert_eq!(with("Pid:\t-1\n").detail, Detail::PidFd { pid: -1, ns_pids: vec![] });
    assert_eq!(with("tty-index:\t4\n").detail, Detail::PtyMaster { index: 4 });
    assert_eq!(with("pending:\t0\ntotal:\t0\nAPI:\taa:0:0\n").detail, Detail::Userfaultfd);
    assert_eq!(with("prog_type:\t1\nprog_jited:\t1\n").detail, Detail::Other("prog_type".into()));
    assert_eq!(with("fanotify flags:0 event-flags:0\n").detail, Detail::Fanotify);
    let ring = IoUring { sq_mask: 3, cq_mask: 7, sq_thread: -1, user_files: 1, user_bufs: 2, sqes: 0, cqes: 1 };
    assert_eq!(parse(RING).unwrap().detail, Detail::IoUring(Box::new(ring)));
}

#[test]
fn no_flags_is_an_error() {
    assert!(parse(b"pos:\t0\n").is_err());
    assert!(parse(b"pos:\t0\nflags:\t9\n").is_err());
}

#[test]
fn real_descriptors() {
    use nix::sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
    };
    use std::os::fd::{AsFd, AsRawFd};
    let dir = ProcDir::of_self().unwrap();
    let mut buf = Vec::new();
    let event = EventFd::from_value_and_flags(7, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC).unwrap();
    let event_number = event.as_raw_fd().cast_unsigned();
    let info = dir.fdinfo(event_number, &mut buf).unwrap();
    assert!(matches!(info.detail, Detail::EventFd { count: 7, semaphore: Some(true) | None }), "{info:?}");
    assert_ne!(info.flags & libc::O_CLOEXEC.cast_unsigned(), 0);

    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 99)).unwrap();
    let number = epoll.0.as_raw_fd().cast_unsigned();
    let Detail::Epoll(targets) = dir.fdinfo(number, &mut buf).unwrap().detail else { panic!("not epoll") };
    assert_eq!((targets.len(), targets[0].fd, targets[0].data), (1, event_number, 99));

    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    inotify.add_watch("/tmp", AddWatchFlags::IN_CREATE).unwrap();
    let number = inotify.as_fd().as_raw_fd().cast_unsigned();
    let Detail::Inotify(watches) = dir.fdinfo(number, &mut buf).unwrap().detail else { panic!("not inotify") };
    let tmp = nix::sys::stat::stat("/tmp").unwrap();
    assert_eq!((watches.len(), watches[0].ino, watches[0].mask), (1, tmp.st_ino, 0x100));
    assert!(dir.fds().unwrap().contains(&number));
}
