use super::*;
use crate::blocker::Code;
use crate::image::tests::sample;
use crate::image::{Bytes, FileId, fd};

/// A host that has enough of everything.
fn ample() -> Host {
    Host {
        caps: u64::MAX,
        pid_max: 1 << 22,
        nr_open: 1 << 20,
        pipe_max: 1 << 20,
        mmap_min_addr: 0x1000,
        hard_limits: vec![u64::MAX; 16],
        cpu_features: vec!["la57".to_owned(), "ospke".to_owned()],
        cpus: (0..8).collect(),
        huge_pages: BTreeMap::from([(2 << 20, 1000)]),
    }
}

/// What is in the way of this model here; each names its object, and says why and what to do.
fn found(model: &Model, host: &Host) -> Vec<(Code, String)> {
    let blockers = blockers(model, host);
    assert!(
        blockers.iter().all(|b| !b.object.is_empty() && !b.reason.is_empty() && !b.remedy.is_empty()),
        "{blockers:?}"
    );
    blockers.into_iter().map(|blocker| (blocker.code, blocker.object)).collect()
}

fn codes_of(model: &Model, host: &Host) -> Vec<Code> {
    found(model, host).into_iter().map(|(code, _)| code).collect()
}

/// One task with nothing that takes anything.
fn modest() -> Model {
    let mut model = sample();
    model.tasks.truncate(1);
    model.tasks[0].threads.truncate(1);
    let thread = &mut model.tasks[0].threads[0];
    (thread.sched.policy, thread.sched.affinity) = (0, Bytes(vec![0xff]));
    for vma in model.mms.iter_mut().flat_map(|mm| &mut mm.vmas) {
        (vma.pkey, vma.locked) = (0, None);
    }
    model.mms.iter_mut().for_each(|mm| mm.pkeys = 1);
    model.shmems.iter_mut().for_each(|shmem| shmem.kind = ShmemKind::Anon);
    model.pipes.clear();
    model
}

#[test]
fn an_ample_host_has_enough() {
    assert_eq!(found(&modest(), &ample()), []);
    let here = Host::here(&modest());
    assert!(here.pid_max > 300 && here.nr_open >= 1024 && !here.cpus.is_empty() && here.hard_limits.len() == 16);
}

#[test]
fn ids_and_descriptors_above_the_limits() {
    let mut model = modest();
    model.tasks[0].pid = NsPid(40_000);
    let host = Host { pid_max: 32_768, ..ample() };
    assert_eq!(found(&model, &host)[0], (codes::PID_ABOVE_MAX, "id 40000 of pid 40000 (worker)".to_owned()));
    assert_eq!(codes_of(&model, &ample()), []);
    let mut model = modest();
    model.fd_tables = vec![fd::FdTable { entries: vec![fd::FdEntry { fd: 5000, file: FileId(0), cloexec: false }] }];
    let host = Host { nr_open: 1024, ..ample() };
    assert_eq!(found(&model, &host), [(codes::DESCRIPTOR_LIMIT, "descriptor 5000".to_owned())]);
}

#[test]
fn policies_and_processors() {
    let mut model = modest();
    model.tasks[0].threads[0].sched.affinity = Bytes(vec![0, 0b110]);
    assert_eq!(codes_of(&model, &ample()), [codes::SCHEDULING]);
    assert_eq!(codes_of(&model, &Host { cpus: (0..10).collect(), ..ample() }), []);
    let mut model = modest();
    let unable = Host { caps: 0, hard_limits: vec![0; 16], mmap_min_addr: 0, ..ample() };
    for (policy, priority) in [(libc::SCHED_FIFO, 3), (libc::SCHED_RR, 3), (libc::SCHED_DEADLINE, 0)] {
        let sched = &mut model.tasks[0].threads[0].sched;
        (sched.policy, sched.priority) = (policy as u32, priority);
        assert_eq!(codes_of(&model, &unable), [codes::SCHEDULING], "{policy}");
        assert_eq!(codes_of(&model, &ample()), []);
    }
    model.tasks[0].threads[0].sched.policy = libc::SCHED_RR as u32;
    model.tasks[0].threads[0].sched.priority = 3;
    assert_eq!(codes_of(&model, &Host { hard_limits: vec![3; 16], ..unable }), []);
}

#[test]
fn addresses_keys_and_locked_memory() {
    let without =
        |features: &[&str]| Host { cpu_features: features.iter().map(|f| (*f).to_owned()).collect(), ..ample() };
    let mut model = modest();
    model.mms[0].vmas[0].start = 0x800;
    assert_eq!(codes_of(&model, &Host { caps: 0, ..ample() }), [codes::ADDRESS_SPACE]);
    assert_eq!(codes_of(&model, &ample()), []);
    let mut model = modest();
    model.mms[0].vmas.last_mut().unwrap().end = FOUR_LEVELS + 0x1000;
    assert_eq!(codes_of(&model, &without(&["ospke"])), [codes::ADDRESS_SPACE]);
    let mut model = modest();
    model.mms[0].vmas[1].pkey = 2;
    assert_eq!(codes_of(&model, &without(&["la57"])), [codes::PROTECTION_KEYS]);
    model.mms[0].vmas[1].prot = libc::PROT_EXEC as u32;
    assert_eq!(codes_of(&model, &without(&["la57"])), []);
    model.mms[0].pkeys = 0b101;
    assert_eq!(codes_of(&model, &without(&["la57"])), [codes::PROTECTION_KEYS]);
    let mut model = modest();
    model.mms[0].vmas[1].locked = Some(false);
    let unable = Host { caps: 0, hard_limits: vec![0x800; 16], mmap_min_addr: 0, ..ample() };
    assert_eq!(codes_of(&model, &unable), [codes::MEMORY_LOCK]);
    assert_eq!(codes_of(&model, &Host { hard_limits: vec![0x1000; 16], ..unable }), []);
}

#[test]
fn pipes_and_huge_pages() {
    let mut model = modest();
    let pipe = |len: usize| fd::pipe::Pipe {
        capacity: 4 << 20,
        data: Bytes(vec![1; len]),
        packets: Vec::new(),
        fifo: None,
        deleted: false,
    };
    model.pipes = vec![pipe(100), pipe(2 << 20)];
    let unable = Host { caps: 0, mmap_min_addr: 0, ..ample() };
    assert_eq!(found(&model, &unable), [(codes::PIPE_SIZE, "pipe 1 of 4194304 bytes".to_owned())]);
    assert_eq!(codes_of(&model, &ample()), []);
    let mut model = modest();
    model.mms[0].vmas[2].backing = Backing::HugeAnon { page_size: 2 << 20 };
    model.mms[0].vmas[2].no_reserve = false;
    model.shmems[0] = crate::image::mm::Shmem { size: 6 << 20, ..model.shmems[0].clone() };
    model.shmems[0].kind = ShmemKind::HugeAnon { page_size: 2 << 20 };
    let host = |free| Host { huge_pages: BTreeMap::from([(2 << 20, free)]), ..ample() };
    assert_eq!(codes_of(&model, &host(5)), []);
    assert_eq!(found(&model, &host(4)), [(codes::HUGETLB_SHORT, "5 huge pages of 2048 kB".to_owned())]);
}
