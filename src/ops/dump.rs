//! `migrate dump`: a tree becomes an image.

use super::options::{AfterDump, DumpOptions, ImagePlace, Stdio};
use super::outcome::{Outcome, Round, State, Where};
use super::{Event, Events, preflight, target};
use crate::collect::{self, Policy};
use crate::failure::{Failure, FailureKind, Result, TargetState};
use crate::image::{MmId, Pid, ShmemId};
use crate::memory::pipeline::{default_workers, dump_pages};
use crate::memory::store::{Draft, ImageWriter, PageOptions};
use crate::memory::{PageRange, Space, scan};
use crate::trace::freeze::Frozen;
use crate::trace::pages::TargetPages;
use std::os::fd::AsFd;
use std::time::Instant;

/// Saves the target.
pub fn run(options: &DumpOptions, events: &dyn Events) -> Result<Outcome> {
    let began = Instant::now();
    let resolved = target::resolve(&options.target)?;
    let root = resolved.root(&options.target)?;
    let ends_here = (options.after == AfterDump::End).then_some(options.state.supervisor);
    let findings = preflight::pass(&options.target, &resolved, &policy(options), ends_here, events)?;
    if options.dry_run {
        let mut outcome = Outcome::new(options.session.clone(), State::Running, Where::Source);
        outcome.target_pid = Some(root.0);
        (outcome.processes, outcome.threads) = (Some(findings.processes), Some(findings.threads));
        return Ok(outcome);
    }
    let ImagePlace::Dir(dir) = &options.image else {
        return Err(Failure::new("a dump to a stream is not there yet").kind(FailureKind::Usage));
    };
    let writer = ImageWriter::create(dir, options.force)
        .map_err(|e| Failure::of(format!("cannot write an image to {}", dir.display()), &e))?;
    let mut frozen = freeze(root)?;
    let frozen_at = frozen.since;
    events.event(Event::Frozen);
    let saved = save(options, events, writer, &mut frozen)?;
    let mut outcome = Outcome::new(options.session.clone(), State::Ended, Where::Nowhere);
    finish(options, frozen, &mut outcome)?;
    outcome.downtime = Some(frozen_at.elapsed());
    outcome.target_pid = Some(root.0);
    outcome.total = Some(began.elapsed());
    outcome.mode = Some("stop-and-copy");
    outcome.bytes = Some(saved.bytes);
    outcome.pages = Some(saved.pages);
    outcome.processes = Some(saved.processes);
    outcome.threads = Some(saved.threads);
    outcome.target_comm = Some(saved.comm);
    let took = outcome.downtime.unwrap_or_default();
    outcome.rounds.push(Round { number: 1, pages: saved.pages, bytes: saved.bytes, took });
    Ok(outcome)
}

/// Stops the tree.
pub(crate) fn freeze(root: Pid) -> Result<Frozen> {
    Frozen::tree(root).map_err(|e| Failure::of(format!("cannot stop process {root}"), &e).target(TargetState::Running))
}

/// What the image holds.
struct Saved {
    pages: u64,
    bytes: u64,
    processes: u32,
    threads: u32,
    comm: String,
}

fn save(options: &DumpOptions, events: &dyn Events, mut writer: ImageWriter, frozen: &mut Frozen) -> Result<Saved> {
    let running = |f: Failure| f.target(TargetState::Running);
    let what = "cannot save the target";
    let policy = policy(options);
    let collection =
        collect::collect(frozen, &policy).map_err(|e| running(Failure::of("cannot read the target's state", &e)))?;
    if !collection.blockers.is_empty() {
        return Err(running(Failure::blocked("the target cannot be saved", collection.blockers)));
    }
    let model = collection.model;
    let plan = page_plan(&model, &collection.sources).map_err(|e| running(Failure::of(what, &e)))?;
    let total: u64 = plan.iter().map(|(_, r)| r.bytes()).sum();
    let sources = collection.sources;
    let shmems = sources.shmems.into_iter().map(|collect::ShmemSource::File(f)| f).collect();
    let source = TargetPages::new(sources.mms, shmems);
    let pages = writer.pages(PageOptions::default());
    let done = std::sync::atomic::AtomicU64::new(0);
    dump_pages(&source, &plan, &pages, default_workers(), &|n| {
        let done = done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n;
        events.event(Event::Progress { phase: "memory", done, total });
    })
    .map_err(|e| running(Failure::of("cannot copy the target's memory", &e)))?;
    let stored = pages.finish().map_err(|e| running(Failure::of("cannot write the image", &e)))?;
    writer.write_model(&model).map_err(|e| running(Failure::of("cannot write the image", &e)))?;
    let saved = Saved {
        pages: plan.iter().map(|(_, r)| r.count).sum(),
        bytes: total,
        processes: model.tasks.len() as u32,
        threads: model.tasks.iter().map(|t| t.threads.len() as u32).sum(),
        comm: model.root().threads.first().map(|t| t.comm.to_string()).unwrap_or_default(),
    };
    let draft = Draft::of(&model, &stored);
    writer.commit(draft, stored).map_err(|e| running(Failure::of("cannot write the image", &e)))?;
    Ok(saved)
}

fn policy(options: &DumpOptions) -> Policy {
    Policy {
        tcp: options.state.tcp,
        external_unix: options.state.external_unix,
        allow_external_stdio: !matches!(options.state.stdio, Stdio::Auto | Stdio::Refuse),
    }
}

/// Which pages have to be saved.
pub(crate) fn page_plan(
    model: &crate::image::Model,
    sources: &collect::Sources,
) -> std::result::Result<Vec<(Space, PageRange)>, collect::Error> {
    let mut plan = Vec::new();
    for (n, (mm, pid)) in model.mms.iter().zip(&sources.mms).enumerate() {
        let failed =
            |errno| collect::Error::System { operation: "scan", object: format!("/proc/{pid}/pagemap"), errno };
        let pagemap = crate::proc::ProcDir::open(*pid)?.open_file("pagemap", nix::fcntl::OFlag::O_RDONLY)?;
        plan.extend(scan::private_pages(MmId::from(n), mm, &pagemap.into()).map_err(failed)?);
    }
    for (n, (shmem, collect::ShmemSource::File(file))) in model.shmems.iter().zip(&sources.shmems).enumerate() {
        let failed = |errno| collect::Error::System { operation: "lseek", object: format!("shared memory {n}"), errno };
        plan.extend(scan::shared_pages(ShmemId::from(n), shmem.size, file.as_fd()).map_err(failed)?);
    }
    Ok(plan)
}

/// Ends, stops or releases the target, now that the image is complete.
fn finish(options: &DumpOptions, frozen: Frozen, outcome: &mut Outcome) -> Result<()> {
    let failed = |e: crate::trace::Error| Failure::of("the image is complete, but the target could not be ended", &e);
    match options.after {
        AfterDump::End => frozen.kill().map_err(|e| failed(e).kind(FailureKind::NeedsPerson).target(TargetState::Held)),
        AfterDump::Run => {
            (outcome.state, outcome.place) = (State::Running, Where::Both);
            frozen.thaw().map_err(failed)
        }
        AfterDump::Stop => {
            (outcome.state, outcome.place) = (State::Stopped, Where::Both);
            frozen.thaw_stopped().map_err(failed)
        }
    }
}
