//! Processes and threads.

use super::fd::classify::magic;
use super::fd::set::fs_magic;
use super::fd::{ghost, views};
use super::seen::{self, Seen};
use super::sharing::{Bare, Shared};
use super::{Cx, Error, Result, cgroup, creds, mappings, mm, ns, numa, restart, signals, timers};
use crate::blocker::{Blocker, codes};
use crate::image::fd::PathRef;
use crate::image::task::{Dead, Fs, RLimit, Registers, Rseq, Task, TaskState, Thread};
use crate::image::{Bytes, FdTableId, FsId, GhostId, MmId, NsPid, Pid, SighandId, TaskId};
use crate::proc::ProcDir;
use crate::proc::status::Status;
use crate::sys::XSTATE_MAX;
use crate::sys::abi::RseqConfiguration;
use crate::sys::fd::Kcmp;
use crate::trace::Batch;
use crate::trace::calls::{ThreadAnswer, ThreadQuery};
use crate::trace::freeze::FrozenProcess;
use crate::trace::remote::{Remote, Scratch};
use nix::fcntl::OFlag;
use zerocopy::IntoBytes;

/// The objects that tasks may share.
struct Sharing {
    mm: Shared,
    files: Shared,
    fs: Shared,
    sighand: Shared,
    io: Shared,
    /// A thread of ours without an I/O context.
    bare: Pid,
}

impl Sharing {
    /// The numbers of a thread's descriptor table and file-system state, and whether each is new; its I/O context. `first`: the
    /// same of the first thread of its process.
    fn of_thread(&mut self, tid: Pid, seen: &Seen, first: Option<&Numbers>) -> Numbers {
        let (files, fs) = (first.filter(|_| seen.same_files), first.filter(|_| seen.same_fs));
        Numbers {
            files: files.map_or_else(|| self.files.number(tid), |first| (first.files.0, false)),
            fs: fs.map_or_else(|| self.fs.number(tid), |first| (first.fs.0, false)),
            io_context: if seen.no_io_context { 0 } else { self.io.number(tid).0 as u32 },
        }
    }
}

/// What a thread may share with others, numbered.
struct Numbers {
    files: (usize, bool),
    fs: (usize, bool),
    io_context: u32,
}

/// Adds every process of the tree to the model.
pub fn collect(cx: &mut Cx<'_>) -> Result<()> {
    let statuses = number_everybody(cx)?;
    let bare = Bare::start().map_err(|e| Error::System {
        operation: "start a thread",
        object: "our own process".to_owned(),
        errno: crate::sys::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
    })?;
    let mut sharing = Sharing {
        mm: Shared::new(Kcmp::Vm),
        files: Shared::new(Kcmp::Files),
        fs: Shared::new(Kcmp::Fs),
        sighand: Shared::new(Kcmp::Sighand),
        io: Shared::beside(Kcmp::Io, bare.tid),
        bare: bare.tid,
    };
    let level = statuses.first().map_or(0, |root| root.ns_pid.len().saturating_sub(1));
    for (at, status) in statuses.iter().enumerate() {
        let task = process(cx, &mut sharing, at, (status, level))?;
        cx.model.tasks.push(task);
        cx.process_of.push(at);
    }
    number_io_contexts(&mut cx.model.tasks);
    numa::settle(&mut cx.model);
    unread_stops(cx)?;
    Ok(())
}

/// An I/O context that nobody shares comes with the first use of a disk and says nothing: only those that are shared have
/// numbers, in their order of appearance.
fn number_io_contexts(tasks: &mut [Task]) {
    let threads = || tasks.iter().flat_map(|task| &task.threads);
    let mut shared: Vec<u32> = Vec::new();
    for thread in threads() {
        let context = thread.io_context;
        if !shared.contains(&context) && threads().filter(|other| other.io_context == context).count() > 1 {
            shared.push(context);
        }
    }
    shared.retain(|context| *context != 0);
    for thread in tasks.iter_mut().flat_map(|task| &mut task.threads) {
        let place = shared.iter().position(|context| *context == thread.io_context);
        thread.io_context = place.map_or(0, |place| place as u32 + 1);
    }
}

/// Asks parents whether they have waited for the stops of their children; those of a parent outside count as unread.
fn unread_stops(cx: &mut Cx<'_>) -> Result<()> {
    const FLAGS: i32 = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    for n in 0..cx.model.tasks.len() {
        let task = &cx.model.tasks[n];
        let (TaskState::Stopped(_), Some(parent)) = (task.state, task.parent) else { continue };
        let id = task.id_seen_by(&cx.model.tasks[parent.at()]);
        let process = &mut cx.frozen.processes[cx.process_of[parent.at()]];
        let Some(scratch) = process.scratch.filter(|_| !process.zombie) else { continue };
        let mut batch = Batch::new();
        let info = batch.out(128);
        batch.may(libc::SYS_waitid, &[libc::P_PID.into(), id.0.into(), info.into(), FLAGS.into(), 0u64.into()]);
        let results = process.leader().run(&scratch, &batch)?;
        cx.model.tasks[n].stop_reported = results.bytes(info)[..4] == libc::SIGCHLD.to_ne_bytes();
    }
    Ok(())
}

/// Reads the status of every process and notes how the target numbers its processes and threads.
fn number_everybody(cx: &mut Cx<'_>) -> Result<Vec<Status>> {
    let mut statuses = Vec::with_capacity(cx.frozen.processes.len());
    let mut level = 0;
    for (at, process) in cx.frozen.processes.iter().enumerate() {
        let status = process.dir.status(&mut cx.buf)?;
        if at == 0 {
            level = status.ns_pid.len().saturating_sub(1);
        }
        cx.ids.insert(process.pid, id_at(&status.ns_pid, level));
        for thread in &process.threads {
            let tid = thread.pid();
            if level == 0 {
                cx.ids.insert(tid, NsPid(tid.0));
            } else if tid != process.pid {
                let status = process.dir.thread(tid)?.status(&mut cx.buf)?;
                cx.ids.insert(tid, id_at(&status.ns_pid, level));
            }
        }
        statuses.push(status);
    }
    Ok(statuses)
}

/// The id at one level of PID namespaces; 0 where it is not visible there.
fn id_at(ids: &[i32], level: usize) -> NsPid {
    NsPid(ids.get(level).copied().unwrap_or(0))
}

/// `level`: of the PID namespace of the first process.
fn process(cx: &mut Cx<'_>, sharing: &mut Sharing, at: usize, (status, level): (&Status, usize)) -> Result<Task> {
    let process = &cx.frozen.processes[at];
    let (pid, zombie, stopped_by) = (process.pid, process.zombie, process.stopped_by);
    let stat = process.dir.stat(&mut cx.buf)?;
    let parent = if at == 0 { None } else { parent_of(cx, Pid(stat.ppid)) };
    let rlimits: Vec<RLimit> = process.dir.limits(&mut cx.buf)?.to_vec();
    let mut task = Task {
        pid: cx.ids[&pid],
        inner_pids: status.ns_pid.iter().skip(level + 1).map(|id| NsPid(*id)).collect(),
        parent,
        pgid: id_at(&status.ns_pgid, level),
        sid: id_at(&status.ns_sid, level),
        state: match (zombie, stopped_by) {
            (true, _) => TaskState::Zombie(stat.exit_code),
            (false, Some(signal)) => TaskState::Stopped(signal),
            (false, None) => TaskState::Running,
        },
        dead: None,
        exit_signal: stat.exit_signal,
        child_subreaper: false,
        threads: Vec::new(),
        mm: None,
        sighand: None,
        pending: Vec::new(),
        itimers: Default::default(),
        posix_timers: Vec::new(),
        rlimits,
        oom_score_adj: number_in(cx, at, "oom_score_adj", 10)? as i32,
        coredump_filter: if zombie { 0 } else { number_in(cx, at, "coredump_filter", 16)? as u32 },
        loginuid: number_in(cx, at, "loginuid", 10).unwrap_or(i64::from(u32::MAX)) as u32,
        namespaces: ns::of_task(cx, at)?,
        tty_device: stat.tty_device(),
        cgroups: cgroup::of(cx, at, None)?,
        stop_reported: stopped_by.is_some(),
    };
    if zombie {
        zombie_threads(cx, at, status);
        let creds = creds::collect(status, 0);
        task.dead = Some(Dead { comm: comm(&cx.frozen.processes[at].dir, &mut cx.buf)?, creds });
        return Ok(task);
    }
    fill(cx, sharing, at, &mut task)?;
    Ok(task)
}

/// Everything of a live process that needs to be asked from inside.
fn fill(cx: &mut Cx<'_>, sharing: &mut Sharing, at: usize, task: &mut Task) -> Result<()> {
    let process = &cx.frozen.processes[at];
    let tids: Vec<Pid> = process.threads.iter().map(Remote::pid).collect();
    // It is stopped, so its number means nobody else.
    let dir = ProcDir::open(process.pid)?;
    seen::beside((&dir, sharing.bare), &tids, |looking| {
        let scratch = fill_process(cx, sharing, at, task)?;
        fill_threads(cx, sharing, (at, &scratch), looking, task)
    })
}

/// What its threads have in common. Gives its scratch area.
fn fill_process(cx: &mut Cx<'_>, sharing: &mut Sharing, at: usize, task: &mut Task) -> Result<Scratch> {
    let pid = cx.frozen.processes[at].pid;
    let (mm_number, mm_is_new) = sharing.mm.number(pid);
    task.mm = Some(MmId::from(mm_number));
    let mappings = if mm_is_new { Some(mappings::of_process(cx, at)?) } else { None };
    mm::leave_vdso(cx, at, mm_number, mappings.as_ref())?;
    mm::ensure_scratch(cx, at, mm_number, mappings.as_ref())?;
    let (sighand, sighand_is_new) = sharing.sighand.number(pid);
    task.sighand = Some(SighandId::from(sighand));
    let scratch = cx.frozen.processes[at].scratch.expect("ensure_scratch has made it");
    let mut batch = Batch::new();
    let actions = sighand_is_new.then(|| signals::ask(&mut batch));
    let itimers = timers::ask(&mut batch);
    let subreaper = batch.out(4);
    batch.may_prctl(libc::PR_GET_CHILD_SUBREAPER, subreaper, 0u64);
    let mm_query = mappings.as_ref().map(|mappings| mm::ask(&mut batch, mappings));
    let results = cx.frozen.processes[at].leader().run(&scratch, &batch)?;
    task.child_subreaper = results.value::<u32>(subreaper) != 0;
    task.itimers = timers::answer(&results, &itimers);
    if let Some(actions) = actions {
        cx.model.sighands.push(signals::answer(&results, &actions));
    }
    task.posix_timers = timers::posix(cx, at, &scratch)?;
    if let (Some(mappings), Some(query)) = (&mappings, &mm_query) {
        mm::collect(cx, at, mappings, &results, query)?;
    }
    let process = &cx.frozen.processes[at];
    task.pending = signals::pending(process.threads[0].tracee(), true)?;
    Ok(scratch)
}

fn fill_threads(
    cx: &mut Cx<'_>,
    sharing: &mut Sharing,
    (at, scratch): (usize, &Scratch),
    looking: seen::Looking<'_, '_>,
    task: &mut Task,
) -> Result<()> {
    let alone = cx.frozen.processes.len() == 1;
    let asked = ask_threads(&mut cx.frozen.processes[at], scratch)?;
    let mut first = None;
    for (n, (asked, seen)) in asked.into_iter().zip(looking.rest()?).enumerate() {
        let mut numbers = sharing.of_thread(cx.frozen.processes[at].threads[n].pid(), &seen, first.as_ref());
        if n == 0 && alone {
            numbers.io_context = 0;
        }
        let thread = thread(cx, (at, n), asked, (&numbers, seen))?;
        first.get_or_insert(numbers);
        task.threads.push(thread);
    }
    Ok(())
}

/// What only the tracer of a thread can tell.
struct Asked {
    answer: ThreadAnswer,
    xstate: Vec<u8>,
    rseq: RseqConfiguration,
}

/// Asks the threads of a process, all at the same time.
fn ask_threads(process: &mut FrozenProcess, scratch: &Scratch) -> Result<Vec<Asked>> {
    let ask = |_: &Remote| {
        let mut batch = Batch::new();
        let query = ThreadQuery::ask(&mut batch);
        (batch, query)
    };
    let (batches, queries): (Vec<Batch>, Vec<ThreadQuery>) = process.threads.iter().map(ask).unzip();
    let mut buf = vec![0; XSTATE_MAX];
    // In the order in which they come to their end, which is any.
    let mut of_tracer = vec![Default::default(); queries.len()];
    let results = process.run_each(scratch, &batches, &mut |n, remote| {
        let len = remote.tracee().xstate(&mut buf)?;
        of_tracer[n] = (buf[..len].to_vec(), remote.tracee().rseq()?);
        Ok(())
    })?;
    let answers = queries.iter().zip(&results).map(|(query, results)| query.answer(results));
    Ok(answers.zip(of_tracer).map(|(answer, (xstate, rseq))| Asked { answer, xstate, rseq }).collect())
}

/// One thread: its position, what it said of itself, and what others see of it.
fn thread(cx: &mut Cx<'_>, (at, n): (usize, usize), asked: Asked, (numbers, seen): (&Numbers, Seen)) -> Result<Thread> {
    let Asked { answer, xstate, rseq } = asked;
    let Numbers { files, fs, io_context } = *numbers;
    let remote = &cx.frozen.processes[at].threads[n];
    let tid = remote.pid();
    // Seen while it was stopped: no signal is asked for where there is none.
    let pending = if seen.status.sig_pnd == 0 { Vec::new() } else { signals::pending(remote.tracee(), false)? };
    let (saved, blocked) = (remote.saved, remote.saved_mask);
    let restart = restart::collect(remote);
    let seccomp = creds::seccomp(cx, at, n, &seen.status)?;
    if files.1 {
        cx.table_owner.push((at, n));
    }
    if fs.1 {
        note_fs(cx, (at, n), &seen.status)?;
    }
    Ok(Thread {
        tid: cx.ids[&tid],
        inner_tids: Vec::new(),
        comm: Bytes(answer.name),
        regs: Registers {
            general: saved
                .as_bytes()
                .chunks_exact(8)
                .map(|w| u64::from_ne_bytes(w.try_into().expect("8 bytes")))
                .collect(),
            xstate: Bytes(xstate),
        },
        blocked,
        alt_stack: answer.alt_stack,
        pending,
        creds: creds::collect(&seen.status, answer.securebits),
        seccomp,
        pdeath_signal: answer.pdeath_signal,
        sched: seen.sched,
        numa: answer.numa,
        timer_slack_ns: answer.timer_slack_ns,
        clear_child_tid: answer.clear_child_tid,
        robust_list: seen.robust_list,
        rseq: (rseq.address != 0).then_some(Rseq { address: rseq.address, size: rseq.size, signature: rseq.signature }),
        fd_table: FdTableId::from(files.0),
        fs: FsId::from(fs.0),
        io_context,
        personality: answer.personality,
        cgroups: None,
        restart,
    })
}

/// Threads of a process that share nothing with the leader but its group cannot be told apart from a zombie leader's.
fn zombie_threads(cx: &mut Cx<'_>, at: usize, status: &Status) {
    let live = cx.frozen.processes[at].threads.len();
    if live > 0 || status.threads > 1 {
        cx.block(
            crate::blocker::codes::LEADER_EXITED,
            format!("pid {}", cx.frozen.processes[at].pid),
            format!("its first thread has ended while {live} others still run"),
            "wait until the process has ended, or end it",
        );
    }
}

fn parent_of(cx: &Cx<'_>, ppid: Pid) -> Option<TaskId> {
    cx.process_of.iter().position(|p| cx.frozen.processes[*p].pid == ppid).map(TaskId::from).or(Some(TaskId(0)))
}

fn comm(dir: &ProcDir, buf: &mut Vec<u8>) -> Result<Bytes> {
    let text = dir.read_into("comm", buf)?;
    Ok(Bytes(text.strip_suffix(b"\n").unwrap_or(text).to_vec()))
}

fn number_in(cx: &mut Cx<'_>, at: usize, name: &str, radix: u32) -> Result<i64> {
    let text = cx.frozen.processes[at].dir.read_into(name, &mut cx.buf)?;
    Ok(std::str::from_utf8(text).ok().and_then(|t| i64::from_str_radix(t.trim(), radix).ok()).unwrap_or(0))
}

/// Adds the file-system state of a thread that is the first to have it.
fn note_fs(cx: &mut Cx<'_>, (at, n): (usize, usize), status: &Status) -> Result<()> {
    let mnt = ns::of_task(cx, at)?.mnt;
    let process = &cx.frozen.processes[at];
    let dir = process.dir.thread(process.threads[n].pid())?;
    cx.blockers.extend(removed_root(&dir, &format!("pid {}: its root directory", process.pid))?);
    let (mut cwd, root) = (path_ref(&dir, "cwd", mnt)?, path_ref(&dir, "root", mnt)?);
    let removed_cwd = if cwd.path.0.ends_with(views::DELETED) && dir.stat_of("cwd")?.st_nlink == 0 {
        let named = cwd.path.0.len() - views::DELETED.len();
        cwd.path.0.truncate(named);
        // Nothing is there to be found again.
        (cwd.device, cwd.inode) = (0, 0);
        removed_directory(cx, &dir, &cwd, n > 0)?
    } else {
        None
    };
    cx.model.fs.push(Fs { umask: status.umask.unwrap_or(0o022), cwd, removed_cwd, root });
    Ok(())
}

/// A working directory that was removed, as one of the deleted files. `None`: a blocker was noted.
fn removed_directory(cx: &mut Cx<'_>, dir: &ProcDir, cwd: &PathRef, of_thread: bool) -> Result<Option<GhostId>> {
    let object = format!("pid {}: its working directory {}", dir.pid(), cwd.path);
    if of_thread {
        let reason = "it is a thread's own, beside that of its process";
        cx.blockers.push(Blocker::new(codes::DIRECTORY_REMOVED, object).because(reason));
        return Ok(None);
    }
    if let Some(blocker) = gone_with_its_process(dir, &object)? {
        cx.blockers.push(blocker);
        return Ok(None);
    }
    let stat = dir.stat_of("cwd")?;
    let file = dir.open_file("cwd", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let found = ghost::Found { stat: &stat, path: cwd.path.clone(), mnt: cwd.mnt, file: &file, object: &object };
    ghost::collect(cx, &mut views::Views::default(), found)
}

/// A directory of `/proc` of a process that is gone cannot be made again. Looked for in the preflight as well.
pub fn gone_with_its_process(dir: &ProcDir, object: &str) -> crate::proc::Result<Option<Blocker>> {
    let link = match dir.readlink("cwd") {
        // Who is ending has none any more, while it is still there.
        Err(e) if e.is_absent() => return Ok(None),
        link => link?,
    };
    let gone = link.0.ends_with(views::DELETED) && fs_magic(dir, "cwd") == magic::PROC;
    let reason = "it is in /proc, of a process that has ended";
    Ok(gone.then(|| Blocker::new(codes::DIRECTORY_REMOVED, object).because(reason)))
}

/// A root directory that has no name any more. Looked for in the preflight as well.
pub fn removed_root(dir: &ProcDir, object: &str) -> crate::proc::Result<Option<Blocker>> {
    let (stat, link) = match (dir.stat_of("root"), dir.readlink("root")) {
        (Err(e), _) | (_, Err(e)) if e.is_absent() => return Ok(None),
        (stat, link) => (stat?, link?),
    };
    let removed = stat.st_nlink == 0 && link.0.ends_with(views::DELETED);
    Ok(removed.then(|| Blocker::new(codes::DIRECTORY_REMOVED, format!("{object} {link}"))))
}

/// A path that a link of /proc shows, with what identifies the file behind it.
pub fn path_ref(dir: &ProcDir, link: &str, mnt: crate::image::NsId) -> Result<PathRef> {
    Ok(path_of(dir.readlink(link)?, &dir.stat_of(link)?, mnt))
}

/// The same of a path and what stat(2) says of the file.
pub fn path_of(path: Bytes, stat: &libc::stat, mnt: crate::image::NsId) -> PathRef {
    PathRef {
        path,
        mnt,
        mode: stat.st_mode,
        device: stat.st_dev,
        inode: stat.st_ino,
        size: if stat.st_mode & libc::S_IFMT == libc::S_IFREG { stat.st_size as u64 } else { 0 },
        mtime_ns: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
    }
}
