//! `migrate pre-dump`: the memory of a running tree becomes an image that is good as a parent, and a tracker is left behind
//! that keeps note of what is written from then on.

use super::dump::memory::{self, Rounds, Taken, warn_compared};
use super::dump::place::{Place, Sink};
use super::dump::{Job, backend, compression};
use super::options::PreDumpOptions;
use super::outcome::{Outcome, State, Where};
use super::places::Places;
use super::{Event, Events, preflight, target};
use crate::collect::{Policy, host};
use crate::companion::tracker::{self, Kept, KeptSpace};
use crate::failure::{Failure, Result, TargetState};
use crate::image::manifest::{HostSummary, Kind, TreeEntry, Wishes};
use crate::image::mm::PAGE;
use crate::image::{MmId, Model, Pid};
use crate::memory::Space;
use crate::memory::pipeline::default_workers;
use crate::memory::rounds::Tree;
use crate::memory::store::{Draft, StoredPages};
use crate::memory::track::Backend;
use crate::proc::ProcDir;
use std::collections::HashMap;
use std::time::Instant;

/// Saves the memory of the target, which runs on.
///
/// # Errors
/// Whatever keeps the image from being complete; then nothing of it is left, and nothing is tracked any more.
pub fn run(options: &PreDumpOptions, events: &dyn Events) -> Result<Outcome> {
    let began = Instant::now();
    let resolved = target::resolve(&options.target)?;
    let root = resolved.root(&options.target)?;
    super::late::complete(&resolved.processes, events)?;
    let findings = preflight::look(&options.target, &resolved, &Policy::default(), None)?;
    for blocker in &findings.blockers {
        // Only memory is saved now; whoever dumps later may have options for it.
        let text = format!("{} will stand in the way of a dump: {} {}", blocker.code, blocker.object, blocker.reason);
        events.event(Event::Warning(text));
    }
    let job = Job {
        root,
        known: &resolved.processes,
        events,
        workers: options.memory.streams.map_or_else(default_workers, usize::from),
        resident_bytes: findings.memory_bytes,
        processes: findings.processes,
        threads: findings.threads,
        bandwidth: options.memory.bandwidth,
    };
    let packing = compression(options.memory.compress);
    let parent = options.parent.as_deref();
    let mut place = Place::in_dir(&options.dir, false, parent, &resolved.processes, packing)?;
    let taken = match Taken::of(root) {
        Some(taken) => taken.fitting(&mut place, events),
        None => {
            if parent.is_some() {
                warn_compared(events);
            }
            None
        }
    };
    let backend = backend(options.memory.track)?;
    let sink = Sink::of(&place, backend);
    let running = |f: Failure| f.target(TargetState::Running);
    let mut tree = memory::begin(&job, &sink, &place, taken).map_err(running)?;
    let mut rounds = Rounds::none();
    memory::one(&job, &sink, &place, &mut tree, &mut rounds, &mut Instant::now()).map_err(running)?;
    let names = name(&sink, &place, &mut tree).map_err(running)?;
    drop(sink);
    let draft = draft(&resolved.processes, &mut tree, &names)?;
    super::interrupt::check().map_err(running)?;
    let image = place.finish_memory(draft).map_err(running)?;
    let mut outcome = Outcome::new(options.session, State::Running, Where::Source);
    outcome.notes.push(format!(
        "memory alone: it cannot be restored. Go on with: migrate dump {} --parent {} -D NEWDIR",
        options.target,
        options.dir.display()
    ));
    leave_tracker(options, root, image, &mut tree, events);
    outcome.target_pid = Some(root.0);
    outcome.mode = Some("pre-copy");
    outcome.processes = Some(findings.processes);
    outcome.threads = Some(findings.threads);
    outcome.pages = Some(rounds.done.iter().map(|r| r.pages).sum());
    outcome.bytes = outcome.pages.map(|pages| pages * PAGE);
    outcome.rounds = rounds.done;
    outcome.downtime = Some(tree.stops.0);
    outcome.total = Some(began.elapsed());
    Ok(outcome)
}

/// Gives the address spaces their names in the image: in the order in which they were found.
fn name(sink: &Sink<'_>, place: &Place, tree: &mut Tree) -> Result<HashMap<Space, Space>> {
    let failed = |e: crate::memory::store::StoreError| Failure::of("cannot write the image", &e).code(e.code());
    let spaces: Vec<Space> = tree.watched().iter().map(|w| w.space).collect();
    let names: HashMap<Space, Space> =
        spaces.iter().enumerate().map(|(n, space)| (*space, Space::Mm(MmId::from(n)))).collect();
    let identities = place.live_identities(tree).renamed(&names);
    for (from, to) in &names {
        sink.get().rename(*from, Some(*to)).map_err(failed)?;
    }
    for dead in tree.dead() {
        sink.get().rename(*dead, None).map_err(failed)?;
    }
    place.declare(sink.get(), &identities).map_err(failed)?;
    Ok(names)
}

/// What the manifest says.
fn draft(
    processes: &[Pid],
    tree: &mut Tree,
    names: &HashMap<Space, Space>,
) -> Result<impl FnOnce(&StoredPages) -> Draft + use<>> {
    let host = host::collect(None).map_err(|e| Failure::of("cannot describe this host", &e))?;
    let host = HostSummary::of(&Model::empty(host));
    let spaces: HashMap<Pid, Space> = tree.watched().iter().map(|w| (w.dir.pid(), names[&w.space])).collect();
    let mut entries = Vec::new();
    let mut buf = Vec::new();
    for pid in processes {
        let Ok(stat) = ProcDir::open(*pid).and_then(|d| d.stat(&mut buf)) else { continue };
        let entry = TreeEntry {
            pid: pid.0,
            parent: processes.contains(&Pid(stat.ppid)).then_some(stat.ppid),
            comm: stat.comm.to_string(),
            state: if stat.is_zombie() { "zombie" } else { "running" }.to_owned(),
            threads: u32::try_from(stat.num_threads).unwrap_or(1),
            memory_bytes: 0,
        };
        entries.push((entry, spaces.get(pid).copied()));
    }
    Ok(move |stored: &StoredPages| {
        let bytes = |space: Option<Space>| space.and_then(|s| stored.per_space.get(&s)).copied().unwrap_or(0) * PAGE;
        let filled = entries.into_iter().map(|(entry, space)| TreeEntry { memory_bytes: bytes(space), ..entry });
        Draft { kind: Kind::Memory, host, tree: filled.collect(), restore: Wishes::new() }
    })
}

/// Leaves the descriptors with a tracker process. That it fails costs the next dump time, nothing else.
fn leave_tracker(options: &PreDumpOptions, root: Pid, image: String, tree: &mut Tree, events: &dyn Events) {
    if tree.backend() != Backend::WriteProtect {
        return;
    }
    let Ok(stat) = ProcDir::open(root).and_then(|d| d.stat(&mut Vec::new())) else { return };
    let session = options.session.to_string();
    let mut spaces = Vec::new();
    let mut descriptors = Vec::new();
    for mut watched in std::mem::take(tree.watched()) {
        let Some(uffd) = watched.tracking.take().and_then(|tracking| tracking.into_uffd()) else { continue };
        let (fd, tracked, kernel_faults) = uffd.into_parts();
        descriptors.push(fd);
        spaces.push(KeptSpace {
            pid: watched.dir.pid().0,
            start_time: watched.start_time,
            tracked: tracker::pairs(&tracked),
            kernel_faults,
            owed: tracker::pairs(&watched.owed),
        });
    }
    let socket = tracker::socket_path(&Places::here().run, root, stat.starttime, &session);
    let keep_s = options.keep_tracking.as_secs().max(1);
    let kept = Kept { root: root.0, start_time: stat.starttime, session, image, spaces, keep_s, socket };
    if let Err(e) = tracker::leave(&kept, &descriptors) {
        events.event(Event::Warning(format!("no tracker could be left, the next dump compares every page: {e}")));
    }
}
