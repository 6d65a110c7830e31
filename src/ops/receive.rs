//! The destination's end of a move: the engine behind [`crate::migration::destination`].

use super::addresses;
use super::cascade;
use super::hooks::Aside;
use super::late;
use super::network::Arriving;
use super::options::{Pids, StateOptions, Stdio};
use super::park;
use super::places::Places;
use super::point::Given;
use super::scope::{Adoption, adopt_aside};
use super::supervisor;
use super::systemd::MaskedUnit;
use super::words::SessionId;
use crate::blocker::Blocker;
use crate::companion::held::Held;
use crate::companion::pager::{self, Kept, Origin, Ready};
use crate::failure::{Failure, Result};
use crate::image::{Bytes, Model};
use crate::memory::pipeline::default_workers;
use crate::memory::store::{ImageDir, PageReader};
use crate::memory::{RangeSet, Space};
use crate::migration::MoveError;
use crate::migration::cascade::{Onward, Passed};
use crate::migration::common_pages::shelf::CommonShelf;
use crate::migration::destination::{self, Builder, Contents, Expected, Introduction, Standing, Surroundings};
use crate::migration::inventory::{self, Inventory};
use crate::migration::keeper;
use crate::migration::landing::Memory;
use crate::migration::leftover::Leftover;
use crate::migration::parked::{self, Terms};
use crate::migration::points::Taken;
use crate::migration::postcopy::{self, Later, receiver};
use crate::migration::protocol::AttemptId;
use crate::migration::store;
use crate::net::address::Place;
use crate::restore::fd::bequest::Bequest;
use crate::restore::reconcile::Fit;
use crate::restore::{self, Armed, Prebuilt, Restored, clone};
use crate::trace::pages::TargetPages;
use crate::transport::Link;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Takes a target that comes over the link, and sees to it that it runs, and goes on to further hosts where that is wanted. Whoever has
/// sent it, and the most memory that it may have, bytes. `rule`: what forbids it to go on from here, if something does.
///
/// # Errors
/// See [`destination::run`].
pub fn run(
    link: Link,
    (state_dir, run): (&Path, &Path),
    (max_memory_bytes, principal): (Option<u64>, &str),
    rule: Option<&'static str>,
) -> std::result::Result<(), MoveError> {
    let journals = state_dir.join("moves");
    let stores = store::places(state_dir);
    let around = Surroundings { journals: &journals, run, stores: &stores, max_memory_bytes, principal };
    let mut engine = Engine { state_dir: state_dir.to_owned(), rule, ..Engine::default() };
    let received = destination::run(link, &mut engine, around);
    engine.hooks.end(received.is_ok());
    let (passed, leftover, common) = (engine.passed.take(), engine.leftover.take(), engine.common.take());
    // Nothing of ours has a hand on it any more.
    drop(engine);
    passed.into_iter().for_each(|passed| cascade::pass_on(passed, rule));
    leftover.into_iter().for_each(Leftover::hold);
    common.into_iter().for_each(CommonShelf::hold);
    received
}

/// Attends a copy whose session is dead, see [`keeper::attend`].
///
/// # Errors
/// Those of that.
pub fn attend(state_dir: &Path, run: &Path, attempt: AttemptId) -> std::io::Result<()> {
    let mut engine = Engine { state_dir: state_dir.to_owned(), ..Engine::default() };
    let phase = keeper::attend(&state_dir.join("moves"), run, attempt, &mut engine)?;
    tracing::info!(%attempt, ?phase, "a copy whose session is dead was attended");
    Ok(())
}

/// What makes trees of what is parked here.
pub(super) fn engine() -> impl Builder {
    Engine { state_dir: Places::here().state, ..Engine::default() }
}

/// Rebuilds targets with the restore of this program.
#[derive(Default)]
struct Engine {
    state: StateOptions,
    /// The tree that was made ahead of time, and how the final model fits it.
    prebuilt: Option<Prebuilt<'static>>,
    fit: Option<Fit>,
    restored: Option<Restored<'static>>,
    armed: Option<Armed<'static>>,
    /// Of the cgroup of its own that it is frozen in until it runs.
    name: String,
    network: Arriving,
    /// Others have been offered the target, too.
    to_several: bool,
    /// Which attempt this is, in names.
    attempt: String,
    /// The original is in this very network, and what it has of sockets is taken over.
    same_network: bool,
    /// The memory of the tree that stands still, until it runs.
    memory: Option<TargetPages>,
    /// Some of it comes later, and this is known of that.
    lacks: Option<parked::Late>,
    /// Of this host: where it is written if pages are lost.
    state_dir: PathBuf,
    /// Pages that come later, and what the process that brings them is to know.
    late: Option<(Later, Kept)>,
    /// It is to be known which of them were written to.
    watched: bool,
    /// An image here whose pages need not travel.
    base: Option<PathBuf>,
    /// The process that brings them, if it was started ahead of time.
    pager: Option<Ready>,
    hooks: Aside,
    /// A unit here that is kept from running beside the target.
    to_mask: Option<String>,
    masked: Option<MaskedUnit>,
    /// The service manager takes the tree over.
    adopted: Option<Adoption>,
    /// What states of the target have given so far.
    given: Given,
    /// What forbids it to move targets on from here.
    rule: Option<&'static str>,
    /// The target runs here, and is to go on.
    passed: Option<Passed>,
    /// It runs elsewhere, and these are its pages.
    leftover: Option<Leftover>,
    /// What it has shared with other trees.
    common: Option<CommonShelf>,
}

impl Builder for Engine {
    fn introduce(&mut self, who: &Introduction<'_>) {
        self.hooks = Aside::of(who);
        self.base = who.base.map(Path::to_owned);
        self.to_several = who.to_several && !who.dry_run;
        self.attempt = who.attempt.to_string();
    }

    fn preflight(&mut self, model: &Model, state: &serde_json::Value, judged: &HashSet<Bytes>) -> Result<Vec<Blocker>> {
        self.name = SessionId::random().to_string();
        self.state = serde_json::from_value(state.clone())
            .map_err(|error| Failure::of("the choices of the source cannot be read", &error))?;
        self.hooks.clone_id = self.state.identity.as_ref().map(|identity| identity.id.clone());
        self.hooks.preflight(&self.state.hooks)?;
        let coming = self.state.move_addresses.iter().map(|address| address.ip).collect();
        let model = &*self.own(Cow::Borrowed(model));
        self.begin_network(model);
        let scope = restore::preflight::Scope {
            cpu: self.state.cpu.unwrap_or_default(),
            original_runs: !self.state.from_image,
            original_stays: self.state.identity.is_some() && !self.state.from_image,
            original_has_ports: self.same_network,
            coming,
            judged: judged.clone(),
        };
        let options = restore::Options {
            pids: self.state.pids.unwrap_or_default(),
            files: self.state.files.unwrap_or_default(),
            cgroup: self.state.cgroup.clone().unwrap_or_default(),
            ..Default::default()
        };
        let mut blockers = restore::preflight::look(model, &options, &scope);
        blockers.extend(addresses::blockers(&self.addresses()));
        if self.to_several {
            blockers.extend(self.network.keep_quiet(&self.addresses(), &self.attempt));
        }
        blockers.extend(addresses::blockers(self.state.identity.iter().flat_map(|identity| &identity.address)));
        // On one host it is the unit that the target leaves, which the source looks after. A copy takes no unit's place.
        if !self.original_here(model) && self.state.identity.is_none() {
            let (units, to_mask) = supervisor::beside(model, self.state.supervisor);
            blockers.extend(units);
            self.to_mask = to_mask;
        }
        Ok(blockers)
    }

    fn look_onward(&mut self, onward: &Onward) -> (Vec<Blocker>, Vec<String>) {
        cascade::look(onward, self.rule)
    }

    fn pass_on(&mut self, passed: Passed) {
        self.passed = Some(passed);
    }

    fn look_after(&mut self, common: CommonShelf) {
        self.common = Some(common);
    }

    fn adapted(&self, model: Model) -> Result<Model> {
        restore::vdso::adapted(self.own(Cow::Owned(model)).into_owned()).map_err(|e| failed(&e))
    }

    fn build_ahead(&mut self, model: Model, read_at: Instant, stored: Option<&ImageDir>) -> Result<Option<Standing>> {
        if !restore::prebuilt::can_stand(&model) {
            return Ok(None);
        }
        self.hooks.begun();
        self.mask()?;
        let mut options = restore::Options { read_at: Some(read_at), ..self.options(&model) };
        // This process serves one session: the model lives as long as it does.
        let model: &'static Model = Box::leak(Box::new(model));
        let pages = stored.map(PageReader::of).transpose().map_err(|e| failed(&e))?;
        let prebuilt = self.made(model, pages.as_ref(), &mut options).map_err(|e| failed(&e))?;
        let mms = (0..model.mms.len()).map(|n| Space::Mm(n.into()));
        let mut spaces = HashMap::new();
        for space in mms.chain((0..model.shmems.len()).map(|n| Space::Shmem(n.into()))) {
            let there = pages.as_ref().map(|pages| pages.runs(space)).transpose().map_err(|e| failed(&e))?;
            let landed = there.into_iter().flatten().map(|run| run.range).collect();
            spaces.insert(space, (prebuilt.places(space), landed));
        }
        let memory = Box::new(prebuilt.memory().map_err(|e| failed(&e))?);
        self.prebuilt = Some(prebuilt);
        Ok(Some(Standing { memory, spaces }))
    }

    fn fits(&mut self, model: &Model, homes: &HashMap<Space, Option<Space>>) -> bool {
        let options = self.options(model);
        let Some(prebuilt) = &self.prebuilt else { return false };
        self.fit = match prebuilt.fit(model, homes, &options) {
            Ok(fit) => Some(fit),
            Err(reason) => {
                tracing::info!("what was made ahead of time does not fit: {reason}");
                None
            }
        };
        self.fit.is_some()
    }

    fn kept(&self, model: &Model, space: Space) -> RangeSet {
        match (&self.prebuilt, &self.fit) {
            (Some(prebuilt), Some(fit)) => fit.kept(prebuilt.model(), model, space),
            _ => RangeSet::new(),
        }
    }

    fn adopt(
        &mut self,
        model: Model,
        stale: &[(Space, RangeSet)],
        stored: Option<&ImageDir>,
    ) -> Result<Box<dyn Memory>> {
        let options = self.options(&model);
        let (Some(mut prebuilt), Some(fit)) = (self.prebuilt.take(), self.fit.take()) else {
            return Err(Failure::new("there is no tree that was made ahead of time"));
        };
        let model: &'static Model = Box::leak(Box::new(model));
        for (space, pages) in stale {
            prebuilt.drop_pages(*space, pages).map_err(|e| failed(&e))?;
        }
        let pages = stored.map(PageReader::of).transpose().map_err(|e| failed(&e))?;
        let prebuilt = prebuilt.adopt(model, &fit, pages.as_ref(), &options).map_err(|e| failed(&e))?;
        let memory = prebuilt.memory().map_err(|e| failed(&e))?;
        self.prebuilt = Some(prebuilt);
        Ok(Box::new(memory))
    }

    fn may_lack_pages(&mut self) {
        // Without it one is started in the pause.
        self.pager = receiver::ready(self.base.as_deref()).ok();
    }

    fn expect(&mut self, later: Expected<'_>) -> Result<()> {
        let name = postcopy::name(later.attempt);
        self.lacks = Some(parked::Late {
            attempt: later.attempt,
            run: later.run.to_owned(),
            peer: later.peer.to_owned(),
            watched: later.watched,
            pages: later.pages.clone(),
        });
        let kept = Kept {
            origin: Origin::Source { peer: later.peer.to_owned() },
            tree: Held::default(),
            spaces: Vec::new(),
            views: Vec::new(),
            objects: Vec::new(),
            socket: pager::socket_path(later.run, &name),
            report: self.state_dir.join(format!("{name}.lost")),
            session: name,
        };
        (self.late, self.watched) = (Some((later.pages, kept)), later.watched);
        Ok(())
    }

    fn point(&mut self, run: &Path, attempt: AttemptId, whole: bool) -> Result<Option<Taken>> {
        self.given.point(run, attempt, whole)
    }

    fn prepare(&mut self, contents: Contents<'_>) -> Result<()> {
        self.hooks.begun();
        self.mask()?;
        let late = self.late.as_ref().map(|(pages, _)| pages.clone()).unwrap_or_default();
        // Sockets are bound to these. The source has given them up.
        let restored = match contents {
            Contents::Stored(image) => {
                let model = image.model().map_err(|e| failed(&e))?;
                return self.prepare_stored(image, model, &late);
            }
            Contents::Landed(stale) => {
                let Some(mut prebuilt) = self.prebuilt.take() else {
                    return Err(Failure::new("there is no tree that was made ahead of time"));
                };
                for (space, pages) in stale {
                    prebuilt.drop_pages(space, &pages).map_err(|e| failed(&e))?;
                }
                self.network.take_addresses(self.addresses(), prebuilt.model()).map_err(|e| failed(&e))?;
                let options = self.options(prebuilt.model());
                self.memory = Some(prebuilt.memory().map_err(|e| failed(&e))?);
                expecting(prebuilt, &late, self.watched).and_then(|prebuilt| prebuilt.complete(&options))
            }
        };
        self.prepared(restored.map_err(|e| failed(&e))?)
    }

    fn bequest(&self) -> Option<&Bequest> {
        self.armed.as_ref().map(Armed::bequest)
    }

    fn arm(&mut self, note: &mut dyn FnMut(&Held)) -> Result<()> {
        let restored = self.restored.take().ok_or_else(|| Failure::new("there is nothing to run"))?;
        let armed = restored.arm(note).map_err(|e| Failure::of("the target cannot be started here", &e))?;
        self.armed = Some(armed);
        Ok(())
    }

    fn addresses(&self) -> Vec<(IpAddr, u8, String)> {
        Self::addresses(self).into_iter().map(|place| (place.ip, place.prefix, place.interface)).collect()
    }

    fn run(&mut self) -> Result<i32> {
        let armed = self.armed.as_mut().ok_or_else(|| Failure::new("there is nothing to run"))?;
        // Should it fail: who has run for a moment waits for what is missing until the very end.
        self.lacks = None;
        let network = &mut self.network;
        network.chosen();
        armed.run(&mut || network.inject()).map_err(|e| Failure::of("the target cannot be let go", &e))?;
        network.settle();
        self.memory = None;
        let root = armed.root().0;
        let untold = self.state.identity.as_ref().and_then(|identity| clone::announce(armed.root(), identity));
        untold.into_iter().for_each(|warning| tracing::warn!("{warning}"));
        if let Some(text) = self.masked.take().and_then(MaskedUnit::stay) {
            tracing::warn!("{text}");
        }
        self.hooks.runs(root);
        // Whom the manager takes over leaves its cgroup, and runs.
        self.adopted = if armed.model().frozen.is_empty() { adopt_aside(&self.name) } else { None };
        Ok(root)
    }

    fn announce(&mut self) {
        self.network.announce();
    }

    fn deliver(&mut self, packets: &[u8]) -> Result<()> {
        self.network.deliver(packets)
    }

    fn leave(&mut self) {
        // The copy may still run here.
        drop(self.masked.take().and_then(MaskedUnit::stay));
        self.armed.take().into_iter().for_each(Armed::leave);
    }

    fn park(&mut self, dir: &Path) -> Result<()> {
        let (Some(armed), Some(memory)) = (&self.armed, &self.memory) else {
            return Err(Failure::new("there is nothing to park"));
        };
        park::write((armed.model(), memory), self.terms()?, self.same_network, dir)
    }

    fn keep(&mut self, dir: &Path, lease: Duration) -> Result<()> {
        let (Some(armed), Some(memory)) = (&self.armed, &self.memory) else {
            return Err(Failure::new("there is nothing to keep"));
        };
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("the pages cannot be kept", e);
        let leftover = Leftover::begin(dir, lease).map_err(|e| failed(&e))?;
        match park::keep((armed.model(), memory), dir) {
            Ok(()) => self.leftover = Some(leftover),
            Err(failure) => {
                leftover.discard();
                return Err(failure);
            }
        }
        Ok(())
    }

    fn describe(&self, path: &Path, lease: Duration) -> Result<()> {
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("what the copy is cannot be written down", e);
        let (Some(armed), Some(memory)) = (&self.armed, &self.memory) else {
            return Err(Failure::new("there is nothing that could be parked"));
        };
        let what = park::inventory((armed.model(), memory), armed.held(), self.terms()?, self.same_network);
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        inventory::write(path, Inventory { lease_ms, ..what }, armed.model()).map(drop).map_err(|e| failed(&e))
    }

    fn park_left(&mut self, left: &Inventory, model: &Model, dir: &Path) -> Result<()> {
        let memory = park::memory(left, model)
            .map_err(|e| Failure::of("the memory of the copy cannot be reached from outside", &e))?;
        park::write((model, &memory), left.terms.clone(), left.same_network, dir)
    }

    fn free(&mut self) {
        // First, as in `discard`.
        self.network.discard();
        self.end_pager();
        let held = self.armed.as_ref().map(|armed| armed.held().clone());
        (self.prebuilt, self.restored, self.memory, self.armed) = (None, None, None, None);
        held.iter().for_each(|held| held.wait_until_gone(ENDING));
        // It may run here yet.
        drop(self.masked.take().and_then(MaskedUnit::stay));
    }

    fn revive(&mut self, image: &ImageDir, terms: &Terms) -> Result<()> {
        self.state = serde_json::from_value(terms.state.clone())
            .map_err(|error| Failure::of("the choices of the source cannot be read", &error))?;
        self.name = SessionId::random().to_string();
        let (model, late) = match &terms.late {
            None => (image.model().map_err(|e| failed(&e))?, None),
            Some(_) => {
                let dir = image.path().parent().unwrap_or(image.path());
                let (copy, model) = inventory::read_whole(&parked::copy(dir)).map_err(|e| failed(&e))?;
                (model, copy.terms.late)
            }
        };
        crate::image::verify::model(&model).map_err(|e| failed(&e))?;
        self.begin_network(&model);
        if let Some(parked::Late { attempt, run, peer, watched, pages }) = &late {
            let (attempt, watched) = (*attempt, *watched);
            self.expect(Expected { attempt, run, peer, pages: pages.clone(), watched })?;
        }
        let late = late.map(|late| late.pages).unwrap_or_default();
        self.prepare_stored(image, model, &late)
    }

    fn discard(&mut self) {
        // First: what is sent to an address that is here and to a socket that is not is answered with a reset.
        self.network.discard();
        self.end_pager();
        // Skeletons are killed with the value.
        self.prebuilt = None;
        self.restored = None;
        self.memory = None;
        self.armed = None;
        self.masked = None;
        self.hooks.rolled_back();
    }
}

/// Leaves these pages for later.
fn expecting<'m>(mut prebuilt: Prebuilt<'m>, late: &Later, watched: bool) -> restore::Result<Prebuilt<'m>> {
    if !late.is_empty() {
        prebuilt.expect(late, watched)?;
    }
    Ok(prebuilt)
}

/// From now on a process of its own brings what the tree lacks.
fn leave_to_pager(pager: Ready, restored: &mut Restored<'_>, kept: Kept) -> Result<()> {
    let late = restored.late(None).map_err(|e| failed(&e))?;
    let tree = Held::of(&restored.pids_alive(), None).map_err(|e| failed(&e))?;
    let (kept, descriptors) = late::keep(late, Kept { tree, ..kept });
    pager.leave(&kept, &descriptors).map_err(|e| failed(&e))
}

fn failed(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::of("the target cannot be rebuilt here", e)
}

/// How long an ended copy may take to give its memory back.
const ENDING: Duration = Duration::from_secs(10);

impl Engine {
    /// Before the tree ends that stands still: with nobody left its pager would look for the source, to say that everything is in.
    fn end_pager(&self) {
        if self.armed.is_some() || self.restored.is_some() {
            self.lacks.iter().for_each(parked::Late::end_pager);
        }
    }

    /// What a copy of this target is made with, once more.
    fn terms(&self) -> Result<Terms> {
        let state = serde_json::to_value(&self.state)
            .map_err(|e| Failure::of("the choices of the source cannot be written", &e))?;
        Ok(Terms { state, held_off: None, late: self.lacks.clone() })
    }

    /// Completes a target whose memory is in an image, but for these pages.
    fn prepare_stored(&mut self, image: &ImageDir, model: Model, late: &Later) -> Result<()> {
        // Its ids are free only now.
        self.prebuilt = None;
        let model: &'static Model = Box::leak(Box::new(model));
        // Sockets are bound to these. The source has given them up.
        self.network.take_addresses(self.addresses(), model).map_err(|e| failed(&e))?;
        let pages = PageReader::of(image).map_err(|e| failed(&e))?;
        let mut options = self.options(model);
        let made = self.made(model, Some(&pages), &mut options).map_err(|e| failed(&e))?;
        self.memory = Some(made.memory().map_err(|e| failed(&e))?);
        let restored = expecting(made, late, self.watched).and_then(|prebuilt| prebuilt.complete(&options));
        self.prepared(restored.map_err(|e| failed(&e))?)
    }

    /// Makes the tree of a model. Where an id is taken that was free to see (by somebody born since, or as that of a session or group
    /// whose leader is gone), it gets a PID namespace of its own, as [`restore::build`] does.
    fn made(
        &mut self,
        model: &'static Model,
        pages: Option<&PageReader>,
        options: &mut restore::Options,
    ) -> restore::Result<Prebuilt<'static>> {
        let make = |options: &restore::Options| {
            Prebuilt::make(model, pages, options, &|_| {}).and_then(Prebuilt::with_threads)
        };
        match make(options) {
            Err(restore::Error::PidInUse { pid, .. }) if options.pids == Pids::Auto => {
                tracing::warn!(pid, "the id is taken after all: the tree gets a PID namespace of its own");
                (self.state.pids, options.pids) = (Some(Pids::New), Pids::New);
                make(options)
            }
            made => made,
        }
    }

    /// It is complete, but for what its pager brings.
    fn prepared(&mut self, mut restored: Restored<'static>) -> Result<()> {
        if let Some((_, kept)) = self.late.take() {
            let pager =
                self.pager.take().map_or_else(|| receiver::ready(self.base.as_deref()), Ok).map_err(|e| failed(&e))?;
            leave_to_pager(pager, &mut restored, kept)?;
        }
        for warning in &restored.warnings {
            tracing::warn!(warning, "restore");
        }
        self.restored = Some(restored);
        Ok(())
    }

    fn begin_network(&mut self, model: &Model) {
        // A copy has a network of its own, in which nobody can speak to it yet.
        if self.state.identity.is_some() {
            return;
        }
        self.same_network = self.original_here(model) && restore::fd::taken_over::is_same_network(model);
        self.network = Arriving::begin(&self.addresses(), model, self.same_network);
    }

    fn mask(&mut self) -> Result<()> {
        if let Some(unit) = self.to_mask.take() {
            self.masked = supervisor::mask(Some(unit))?;
        }
        Ok(())
    }

    fn options(&self, model: &Model) -> restore::Options {
        restore::Options {
            pids: self.state.pids.unwrap_or_default(),
            files: self.state.files.unwrap_or_default(),
            cgroup: self.state.cgroup.clone().unwrap_or_default(),
            stdio: self.state.stdio,
            log: self.stdio_log(model),
            own_session: true,
            name: self.name.clone(),
            workers: default_workers(),
            lazy: false,
            original_here: self.original_here(model) && self.state.identity.is_none(),
            segments_kept: self.network.keeps(),
            identity: self.state.identity.clone(),
            id_dir: Places::here().run,
            ..restore::Options::default()
        }
    }

    /// `--stdio log`: a file in the state directory of this host.
    fn stdio_log(&self, model: &Model) -> Option<std::path::PathBuf> {
        if self.state.stdio != Stdio::Log {
            return None;
        }
        let root = model.root();
        let name = root.threads.first().map(|thread| thread.comm.to_string()).unwrap_or_default();
        super::restore::state_log(&format!("{}.{}", name.replace(['/', '.'], "_"), root.pid))
    }

    /// The model as it is, or as that of a copy.
    fn own<'m>(&self, model: Cow<'m, Model>) -> Cow<'m, Model> {
        match &self.state.identity {
            Some(identity) => Cow::Owned(clone::as_clone(model.into_owned(), identity)),
            None => model,
        }
    }

    /// The original is on this kernel.
    fn original_here(&self, model: &Model) -> bool {
        !self.state.from_image && crate::proc::sys::boot_id().is_ok_and(|here| here == model.host.boot_id)
    }

    /// Addresses that come with the target, on interfaces of this host.
    fn addresses(&self) -> Vec<Place> {
        addresses::there(&self.state)
    }
}
