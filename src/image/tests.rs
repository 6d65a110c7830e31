//! Codec and checks, on any model and on one that makes sense.

use super::*;
use crate::image::codec::CodecError;
use proptest::prelude::*;

/// A model that makes sense: a process with a child and a zombie, memory, a pipe, sockets, an epoll instance.
pub(crate) fn sample() -> Model {
    let mut model: Model = arbitrary::value(&[]);
    let namespace = |kind| ns::Namespace { inode: 7, of_host: true, owner: None, kind };
    model.namespaces = vec![
        namespace(ns::NsKind::Mnt(ns::mnt::MntNs::default())),
        namespace(ns::NsKind::Net(ns::net::NetNs::default())),
        namespace(ns::NsKind::Pid { parent: None }),
        namespace(ns::NsKind::User(ns::user::UserNs::default())),
        namespace(ns::NsKind::Uts { hostname: Bytes(b"here".to_vec()), domainname: Bytes::default() }),
        namespace(arbitrary::value(&[5])),
        namespace(arbitrary::value(&[6])),
        namespace(ns::NsKind::Time { monotonic_ns: -5, boottime_ns: 5 }),
    ];
    let path = fd::PathRef { path: Bytes(b"/usr/bin/x".to_vec()), ..arbitrary::value(&[]) };
    let namespaces = task::TaskNamespaces {
        mnt: NsId(0),
        net: NsId(1),
        pid: NsId(2),
        pid_for_children: NsId(2),
        user: NsId(3),
        uts: NsId(4),
        ipc: NsId(5),
        cgroup: NsId(6),
        time: NsId(7),
        time_for_children: NsId(7),
    };
    let thread = |tid| {
        let mut thread: task::Thread = arbitrary::value(&[]);
        thread.tid = NsPid(tid);
        thread.comm = Bytes(b"worker".to_vec());
        thread.regs = task::Registers { general: (0..27).collect(), xstate: Bytes(vec![3; 2696]) };
        thread
    };
    let task = |pid: i32, parent: Option<u32>, state, threads: Vec<_>| {
        let alive = !threads.is_empty();
        let mut task: task::Task = arbitrary::value(&[]);
        task.pid = NsPid(pid);
        task.parent = parent.map(TaskId);
        task.state = state;
        task.threads = threads;
        task.mm = alive.then_some(MmId(u32::from(parent.is_some())));
        task.sighand = alive.then_some(SighandId(0));
        task.namespaces = namespaces;
        task
    };
    model.tasks = vec![
        task(100, None, task::TaskState::Running, vec![thread(100), thread(101)]),
        task(110, Some(0), task::TaskState::Stopped(19), vec![thread(110)]),
        task(111, Some(0), task::TaskState::Zombie(256), vec![]),
    ];
    model.sighands = vec![signals::Sighand { actions: vec![signals::SigAction::default(); 64] }];
    model.fs = vec![task::Fs { umask: 0o22, cwd: path.clone(), removed_cwd: None, root: path.clone() }];
    let vma = |start, end, backing| mm::Vma { start, end, backing, ..arbitrary::value(&[]) };
    let mut memory: mm::Mm = arbitrary::value(&[]);
    memory.exe = path.clone();
    memory.vmas = vec![
        vma(0x1000, 0x9000, mm::Backing::File { path: path.clone(), flags: 0 }),
        vma(0x9000, 0xa000, mm::Backing::Anon),
        vma(0x20_0000, 0x60_0000, mm::Backing::Shmem(ShmemId(0))),
    ];
    model.mms = vec![memory.clone(), mm::Mm { cow_parent: Some(MmId(0)), ..memory }];
    model.shmems = vec![mm::Shmem { size: 0x40_0000, ..arbitrary::value(&[]) }];
    let file = |kind| fd::File { kind, ..arbitrary::value(&[]) };
    model.files = vec![
        file(fd::FileKind::Regular(fd::regular::Regular { path: path.clone() })),
        file(fd::FileKind::Pipe(fd::pipe::PipeEnd { pipe: PipeId(0) })),
        file(fd::FileKind::Unix(UnixId(0))),
        file(fd::FileKind::Epoll(fd::epoll::Epoll {
            members: vec![fd::epoll::Member { fd: 2, file: FileId(2), events: 1, data: 9 }],
        })),
    ];
    let entry = |fd| fd::FdEntry { fd, file: FileId(fd), cloexec: fd == 3 };
    model.fd_tables = vec![fd::FdTable { entries: (0..4).map(entry).collect() }];
    model.pipes = vec![fd::pipe::Pipe {
        capacity: 65536,
        data: Bytes(vec![1; 9]),
        packets: vec![4, 5],
        fifo: None,
        deleted: false,
    }];
    model.unix_sockets = vec![fd::unix::UnixSocket {
        socket_type: 1,
        net: NsId(1),
        state: fd::unix::UnixState::Connected(Some(UnixId(0))),
        ..arbitrary::value(&[])
    }];
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_model_comes_back_as_it_went(choices in prop::collection::vec(any::<u8>(), 0..6000)) {
        let model: Model = arbitrary::value(&choices);
        let encoded = codec::encode(&model).unwrap();
        prop_assert_eq!(&codec::decode(&encoded).unwrap(), &model);
        // Most of them make no sense; to say so must not fail.
        let _ = verify::model(&model);
        // The readable form is one to one as well.
        let text = serde_json::to_string(&model).unwrap();
        prop_assert_eq!(serde_json::from_str::<Model>(&text).unwrap(), model);
    }

    #[test]
    fn damage_is_always_found(choices in prop::collection::vec(any::<u8>(), 0..3000), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let good = codec::encode(&arbitrary::value(&choices)).unwrap();
        let mut bad = good.clone();
        let at = at.index(good.len());
        bad[at] ^= 1u8 << bit;
        prop_assert!(codec::decode(&bad).is_err(), "bit {} of byte {}", bit, at);
        prop_assert!(codec::decode(&good[..at]).is_err(), "cut to {}", at);
        bad = good;
        bad.push(0);
        prop_assert!(codec::decode(&bad).is_err(), "one byte more");
    }

    #[test]
    fn noise_is_no_model(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(codec::decode(&noise).is_err());
        let mut framed = b"MIGRMODL\x01\x00\x01\x00\0\0\0\0".to_vec();
        framed.extend(noise);
        prop_assert!(codec::decode(&framed).is_err());
    }
}

#[test]
fn every_bit_of_a_model_is_covered() {
    let good = codec::encode(&sample()).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(codec::decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn other_versions_and_kinds_are_named() {
    let good = codec::encode(&sample()).unwrap();
    let mut newer = good.clone();
    newer[8] = 9;
    assert!(matches!(codec::decode(&newer), Err(CodecError::Version { found: 9, .. })));
    for version in [0, TASKS.1 - 1, TASKS.1 + 1] {
        let other = lying((TASKS.0, version), 0, 8, &[0; 8]);
        assert!(
            matches!(codec::decode(&other), Err(CodecError::Version { what: "tasks", found, .. }) if found == version)
        );
    }
    assert_eq!(codec::decode(b"GIF89a"), Err(CodecError::Magic));
    assert_eq!(codec::decode(&good[..12]), Err(CodecError::Truncated { what: "the file's header" }));
}

/// Numbers and versions of two sections.
const TASKS: (u16, u16) = (2, 2);
const PIPES: (u16, u16) = (7, 1);

/// A section with a right checksum whose content lies, in a file of its own.
fn lying((kind, version): (u16, u16), packing: u16, raw: u64, payload: &[u8]) -> Vec<u8> {
    use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
    let mut out = b"MIGRMODL\x01\x00\x01\x00\0\0\0\0".to_vec();
    let mut header = Vec::new();
    for field in [kind, version, packing, 0] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header.extend_from_slice(&raw.to_le_bytes());
    header.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let check = xxh3_64_with_seed(payload, xxh3_64(&header));
    out.extend(header);
    out.extend(check.to_le_bytes());
    out.extend(payload);
    out
}

#[test]
fn lies_with_right_checksums_are_found() {
    let zeros = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
    let huge = u64::MAX.to_le_bytes();
    let cases = [
        ("an unknown section", lying((99, 1), 0, 0, b"")),
        ("an unknown packing", lying(TASKS, 7, 8, &[0; 8])),
        ("a length past the limit", lying(TASKS, 1, u64::MAX, &zeros)),
        ("a frame longer than it says", lying(TASKS, 1, 9, &zeros)),
        ("a frame shorter than it says", lying(TASKS, 1, 2 << 20, &zeros)),
        ("no frame", lying(TASKS, 1, 8, b"abcdefgh")),
        ("a list of 2^64 tasks", lying(TASKS, 0, 8, &huge)),
        ("a list of 2^64 bytes", lying(PIPES, 0, 24, &[&1u64.to_le_bytes()[..], &[0; 8], &huge].concat())),
        ("left over bytes", lying(TASKS, 0, 16, &[0; 16])),
        ("no host", lying(TASKS, 0, 8, &[0; 8])),
        ("zeros as tasks", lying(TASKS, 1, 1 << 20, &zeros)),
    ];
    for (name, bytes) in cases {
        let error = codec::decode(&bytes).expect_err(name);
        assert!(!matches!(error, CodecError::Version { .. }), "{name}: {error}");
    }
}

#[test]
fn a_sound_model_is_sound() {
    verify::model(&sample()).unwrap();
}

#[test]
fn contradictions_are_named_by_their_place() {
    type Spoil = fn(&mut Model);
    let cases: &[(&str, Spoil)] = &[
        ("tasks", |m| m.tasks.clear()),
        ("tasks[0].parent", |m| m.tasks[0].parent = Some(TaskId(1))),
        ("tasks[1].parent", |m| m.tasks[1].parent = None),
        ("tasks[1].parent", |m| m.tasks[1].parent = Some(TaskId(2))),
        ("tasks[1].pid", |m| m.tasks[1].pid = NsPid(-1)),
        ("tasks[1].threads[0].tid", |m| m.tasks[1].threads[0].tid = NsPid(101)),
        ("tasks[0].threads", |m| m.tasks[0].threads.clear()),
        ("tasks[0].mm", |m| m.tasks[0].mm = Some(MmId(2))),
        ("tasks[0].sighand", |m| m.tasks[0].sighand = None),
        ("tasks[2]", |m| m.tasks[2].mm = Some(MmId(0))),
        ("tasks[2].pid", |m| m.tasks[2].pid = NsPid(100)),
        ("tasks[0].namespaces.pid", |m| m.tasks[0].namespaces.pid = NsId(0)),
        ("tasks[0].namespaces.net", |m| m.tasks[0].namespaces.net = NsId(88)),
        ("tasks[0].threads[1].fd_table", |m| m.tasks[0].threads[1].fd_table = FdTableId(1)),
        ("tasks[0].threads[1].regs.general", |m| m.tasks[0].threads[1].regs.general.clear()),
        ("tasks[0].threads[0].comm", |m| m.tasks[0].threads[0].comm = Bytes(vec![b'a'; 16])),
        ("sighands[0].actions", |m| m.sighands[0].actions.clear()),
        ("mms[0].vmas[1].start", |m| m.mms[0].vmas[0].end = 0xa000),
        ("mms[0].vmas[0].end", |m| m.mms[0].vmas[0].end = 0x1000),
        ("mms[0].vmas[2].end", |m| m.mms[0].vmas[2].end = 1 << 60),
        ("mms[0].vmas[0].start", |m| m.mms[0].vmas[0].start = 0x1001),
        ("mms[0].vmas[2].backing", |m| m.mms[0].vmas[2].backing = mm::Backing::Shmem(ShmemId(1))),
        ("mms[0].cow_parent", |m| m.mms[0].cow_parent = Some(MmId(1))),
        ("mms[1].exe.path", |m| m.mms[1].exe.path = Bytes(b"relative".to_vec())),
        ("mms[1].exe.mnt", |m| m.mms[1].exe.mnt = NsId(3)),
        ("shmems[0].size", |m| m.shmems[0].size = u64::MAX),
        ("fd_tables[0].entries", |m| m.fd_tables[0].entries[1].fd = 0),
        ("fd_tables[0].entries[3].fd", |m| m.fd_tables[0].entries[3].fd = 1 << 20),
        ("fd_tables[0].entries[2].file", |m| m.fd_tables[0].entries[2].file = FileId(9)),
        ("files", |m| m.files[2] = m.files[3].clone()),
        ("pipes[0].data", |m| m.pipes[0].capacity = 8),
        ("pipes[0].packets", |m| m.pipes[0].packets[0] = 5),
        ("unix_sockets[0].state.peer", |m| m.unix_sockets[0].state = fd::unix::UnixState::Connected(Some(UnixId(1)))),
        ("namespaces[3].owner", |m| m.namespaces[3].owner = Some(NsId(3))),
        ("namespaces[2].kind.parent", |m| m.namespaces[2].kind = ns::NsKind::Pid { parent: Some(NsId(2)) }),
        ("namespaces[0].owner", |m| m.namespaces[0].owner = Some(NsId(1))),
    ];
    for (path, spoil) in cases {
        let mut model = sample();
        spoil(&mut model);
        let flaws = verify::model(&model).expect_err(path).flaws;
        assert!(flaws.iter().any(|f| f.path == *path), "{path}: {flaws:?}");
    }
}

#[test]
fn the_difference_of_models_is_named() {
    let before = sample();
    let mut after = before.clone();
    after.tasks[0].threads[1].sched.nice = 5;
    after.tasks[1].threads[0].regs.general[3] = 99;
    let found = diff::diff(&before, &after, &diff::Ignore::new(["tasks[*].threads[*].regs"])).unwrap();
    let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["tasks[0].threads[1].sched.nice: 0 != 5"]);
}
