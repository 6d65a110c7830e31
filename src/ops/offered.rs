//! What a destination was offered, in words of the rounds that follow: so that pages can go where they belong at once.

use crate::collect::{ShmemSource, Sources};
use crate::image::mm::ShmemKind;
use crate::image::{Model, Pid};
use crate::memory::Space;
use crate::memory::rounds::Round;
use crate::migration::protocol::SpaceName;
use crate::proc::{self, ProcDir};
use std::fs::File;

/// The memory of the target when it was surveyed: what tells it again.
#[derive(Default)]
pub struct Offered {
    /// For each address space a process that had it, with the time of its start.
    mms: Vec<(Pid, u64)>,
    /// Its shared memory objects.
    shmems: Vec<(ShmemKind, File)>,
}

impl Offered {
    /// From the sources of the survey's collection.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn of(model: &Model, sources: Sources) -> proc::Result<Self> {
        let start = |pid: &Pid| Ok((*pid, ProcDir::open(*pid)?.stat(&mut Vec::new())?.starttime));
        let mms = sources.mms.iter().map(start).collect::<proc::Result<_>>()?;
        let files = sources.shmems.into_iter().map(|ShmemSource::File(file)| file.into());
        Ok(Self { mms, shmems: model.shmems.iter().map(|shmem| shmem.kind.clone()).zip(files).collect() })
    }

    /// What the spaces of a round are called in the model of the survey.
    pub fn names(&self, round: &Round<'_>) -> Vec<SpaceName> {
        let spaces: Vec<_> = round.address_spaces().collect();
        let name = |space: Space| {
            let (_, process, _) = spaces.iter().find(|(other, ..)| *other == space)?;
            self.mms.iter().position(|mm| mm == process)
        };
        let mms = spaces.iter().filter_map(|(space, _, parent)| {
            let model = Some(Space::Mm(name(*space)?.into()).into());
            let cow_parent = parent.and_then(name).map(|at| at as u32);
            Some(SpaceName { sent_as: (*space).into(), model, cow_parent })
        });
        let shmems = self.shmems.iter().enumerate().filter_map(|(n, (kind, file))| {
            let space = round.shared()?.space_of(kind, file)?;
            Some(SpaceName { sent_as: space.into(), model: Some(Space::Shmem(n.into()).into()), cow_parent: None })
        });
        mms.chain(shmems).collect()
    }
}
