//! The destination's end of a move: the engine behind [`crate::migration::destination`].

use super::network::Arriving;
use super::options::{MoveAddress, StateOptions, Stdio};
use crate::blocker::{Blocker, codes};
use crate::failure::{Failure, Result};
use crate::image::Model;
use crate::memory::pipeline::default_workers;
use crate::memory::store::{ImageDir, PageReader};
use crate::migration::MoveError;
use crate::migration::destination::{self, Builder, Surroundings};
use crate::net::address::Place;
use crate::restore::{self, Restored};
use crate::transport::Link;
use std::path::Path;

/// Takes a target that comes over the link, and sees to it that it runs.
///
/// # Errors
/// See [`destination::run`].
pub fn run(link: Link, state_dir: &Path, max_memory_bytes: Option<u64>) -> std::result::Result<(), MoveError> {
    let journals = state_dir.join("moves");
    // Memory first: contents are read back once, a moment later.
    let stores = [Path::new("/dev/shm"), Path::new("/var/tmp"), state_dir];
    let around = Surroundings { journals: &journals, stores: &stores, max_memory_bytes };
    destination::run(link, &mut Engine::default(), around)
}

/// Rebuilds targets with the restore of this program.
#[derive(Default)]
struct Engine {
    state: StateOptions,
    restored: Option<Restored<'static>>,
    network: Arriving,
}

impl Builder for Engine {
    fn preflight(&mut self, model: &Model, state: &serde_json::Value) -> Result<Vec<Blocker>> {
        self.state = serde_json::from_value(state.clone())
            .map_err(|error| Failure::of("the choices of the source cannot be read", &error))?;
        let coming = self.state.move_addresses.iter().map(|address| address.ip).collect();
        let scope = restore::preflight::Scope { cpu: self.state.cpu, original_runs: true, coming };
        let options = restore::Options { pids: self.state.pids, files: self.state.files, ..Default::default() };
        let mut blockers = restore::preflight::look(model, &options, &scope);
        let same_network = original_here(model) && restore::fd::taken_over::is_same_network(model);
        self.network = Arriving::begin(&self.addresses(), model, same_network);
        let unknown = self.addresses().into_iter().filter(|place| !place.has_interface());
        blockers.extend(unknown.map(|place| {
            Blocker::new(codes::ADDRESS_MISSING, place.to_string()).because("there is no such interface here")
        }));
        Ok(blockers)
    }

    fn prepare(&mut self, image: &ImageDir) -> Result<()> {
        let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("the target cannot be rebuilt here", e);
        let model = image.model().map_err(|e| failed(&e))?;
        let model = restore::vdso::adapted(model).map_err(|e| failed(&e))?;
        let pages = PageReader::of(image).map_err(|e| failed(&e))?;
        let options = restore::Options {
            pids: self.state.pids,
            files: self.state.files,
            cgroup: self.state.cgroup.clone(),
            stdio: self.state.stdio,
            log: self.stdio_log(&model),
            own_session: true,
            workers: default_workers(),
            original_here: original_here(&model),
            segments_kept: self.network.keeps(),
            ..restore::Options::default()
        };
        // Sockets are bound to these. The source has given them up.
        self.network.take_addresses(self.addresses(), &model).map_err(|e| failed(&e))?;
        // This process serves one session: the model lives as long as it does.
        let model: &'static Model = Box::leak(Box::new(model));
        let restored = restore::build(model, &pages, &options, &|_| {}).map_err(|e| failed(&e))?;
        for warning in &restored.warnings {
            tracing::warn!(warning, "restore");
        }
        self.restored = Some(restored);
        self.network.announce();
        Ok(())
    }

    fn run(&mut self) -> Result<i32> {
        let restored = self.restored.take().ok_or_else(|| Failure::new("there is nothing to run"))?;
        let network = &mut self.network;
        let root = restored
            .go_with(false, &mut || network.inject())
            .map_err(|e| Failure::of("the target cannot be started here", &e))?;
        network.settle();
        Ok(root.0)
    }

    fn deliver(&mut self, packets: &[u8]) -> Result<()> {
        self.network.deliver(packets)
    }

    fn discard(&mut self) {
        // Skeletons are killed with the value.
        self.restored = None;
        self.network.discard();
    }
}

impl Engine {
    /// `--stdio log`: a file in the state directory of this host.
    fn stdio_log(&self, model: &Model) -> Option<std::path::PathBuf> {
        if self.state.stdio != Stdio::Log {
            return None;
        }
        let root = model.root();
        let name = root.threads.first().map(|thread| thread.comm.to_string()).unwrap_or_default();
        super::restore::state_log(&format!("{}.{}", name.replace(['/', '.'], "_"), root.pid))
    }

    /// Addresses that come with the target, on interfaces of this host.
    fn addresses(&self) -> Vec<Place> {
        let place = |address: &MoveAddress| Place {
            ip: address.ip,
            prefix: address.prefix,
            interface: address.dest_interface.clone().unwrap_or_else(|| address.interface.clone()),
        };
        self.state.move_addresses.iter().map(place).collect()
    }
}

/// The original is on this kernel.
fn original_here(model: &Model) -> bool {
    crate::proc::sys::boot_id().is_ok_and(|here| here == model.host.boot_id)
}
