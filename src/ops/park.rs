//! A prepared target that stands still here becomes an image ([`crate::migration::parked`]).
//!
//! The model is the one it was made of, and nothing of it has run since: only its pages are read, beside it, as those of any
//! stopped target. Nobody is traced and nobody is thawed. Who attends a copy that another process has made knows the same from its
//! [inventory](crate::migration::inventory), and reaches its memory from outside.

use crate::companion::held::Held;
use crate::failure::{Failure, Result};
use crate::fault::{self, Point};
use crate::image::fd::FileKind;
use crate::image::fd::tcp::TcpState;
use crate::image::manifest::Kind;
use crate::image::mm::Backing;
use crate::image::{Model, Pid, ShmemId};
use crate::memory::pipeline::{default_workers, dump_pages};
use crate::memory::scan::{private_pages, shared_pages};
use crate::memory::store::{Compression, Draft, ImageWriter, PageOptions, StoredPages, free_bytes};
use crate::memory::{PageRange, RangeSet, Space};
use crate::migration::inventory::{self, Inventory, Way};
use crate::migration::parked::{self, Terms};
use crate::net::nft::{self, Lifetime, PacketLock};
use crate::net::segment::parse_address;
use crate::proc::ProcDir;
use crate::sys::Errno;
use crate::trace::pages::TargetPages;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Room that is left to others, bytes.
const RESERVE_BYTES: u64 = 16 << 20;

/// Writes it. `same_network`: its sockets are the original's, which lives.
///
/// # Errors
/// A full disk, or memory that cannot be read: what was written is for the caller to remove.
pub(super) fn write(
    (model, pages): (&Model, &TargetPages),
    terms: Terms,
    same_network: bool,
    dir: &Path,
) -> Result<()> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("the prepared copy cannot be parked", e);
    let connections = if same_network { Vec::new() } else { connections(model) };
    let held_off = (!connections.is_empty()).then(|| nft::name_of(&connections));
    let terms = Terms { held_off, ..terms };
    parked::begin(dir, &terms).map_err(|e| failed(&e))?;
    let late = terms.late.as_ref().map(|late| late.pages.as_slice());
    let plan = without(plan(model, pages).map_err(|e| failed(&e))?, late.unwrap_or_default());
    let kind = if late.is_some() { Kind::Memory } else { Kind::Full };
    let (mut image, stored) = write_pages(pages, &plan, dir)?;
    let model = whole(model);
    if kind == Kind::Full {
        image.write_model(&model).map_err(|e| failed(&e))?;
    } else {
        // An image of memory alone: it is not whole, and nobody but us knows what it lacks.
        let copy = Inventory { terms, ..Inventory::default() };
        let written = inventory::write(&parked::copy(dir), copy, &model).and_then(|file| file.sync_all());
        written.and_then(|()| File::open(dir)?.sync_all()).map_err(|e| failed(&e))?;
    }
    // What comes for its connections once they are gone must not be answered; until then it is repeated by its senders.
    let packets = hold_off(&connections).map_err(|e| failed(&e))?;
    fault::strike(Point::DestinationParking);
    fault::at(Point::DestinationParking).map_err(|e| failed(&e))?;
    image.commit(Draft { kind, ..Draft::of(&model, &stored) }, stored).map_err(|e| failed(&e))?;
    packets.into_iter().for_each(PacketLock::keep);
    Ok(())
}

/// Writes its pages alone, for a session that is to bring the target here once more.
///
/// # Errors
/// A full disk, or memory that cannot be read: what was written is for the caller to remove.
pub(super) fn keep((model, pages): (&Model, &TargetPages), dir: &Path) -> Result<()> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("the pages cannot be kept", e);
    let (image, stored) = write_pages(pages, &plan(model, pages).map_err(|e| failed(&e))?, dir)?;
    let draft = Draft { kind: Kind::Memory, ..Draft::of(&whole(model), &stored) };
    image.commit(draft, stored).map(drop).map_err(|e| failed(&e))
}

/// The model of an image in which every address space is written whole.
fn whole(model: &Model) -> Model {
    let mut model = model.clone();
    model.mms.iter_mut().for_each(|mm| mm.cow_parent = None);
    model
}

/// Writes these pages into an image that is not complete yet.
fn write_pages(pages: &TargetPages, plan: &[(Space, PageRange)], dir: &Path) -> Result<(ImageWriter, StoredPages)> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::of("pages of the prepared copy cannot be written", e);
    room(plan, dir)?;
    let image = ImageWriter::create(&parked::image(dir), false).map_err(|e| failed(&e))?;
    let out = image.pages(PageOptions { compression: Compression::Auto, parent: None });
    dump_pages(pages, plan, &out, default_workers(), &|_| {}).map_err(|e| failed(&e))?;
    let stored = out.finish().map_err(|e| failed(&e))?;
    Ok((image, stored))
}

/// What a copy that is held is, for whoever parks it when we are dead.
pub(super) fn inventory(
    (model, pages): (&Model, &TargetPages),
    held: &Held,
    terms: Terms,
    same_network: bool,
) -> Inventory {
    let shmems = (0..model.shmems.len()).map(|n| way((model, pages), held, n.into()));
    Inventory {
        terms,
        same_network,
        mms: pages.mms.iter().map(|pid| pid.0).collect(),
        shmems: shmems.collect(),
        ..Inventory::default()
    }
}

/// How a shared memory object is reached from outside.
fn way((model, pages): (&Model, &TargetPages), held: &Held, id: ShmemId) -> Option<Way> {
    let mapped = model.mms.iter().zip(&pages.mms).find_map(|(mm, pid)| {
        let vma = mm.vmas.iter().find(|vma| matches!(vma.backing, Backing::Shmem(of) if of == id))?;
        Some(Way::Mapped { pid: pid.0, at: vma.start })
    });
    let live = model.tasks.iter().filter(|task| !task.threads.is_empty());
    let open = || {
        live.zip(&held.processes).find_map(|(task, (pid, _))| {
            let table = &model.fd_tables[task.threads.first()?.fd_table.at()];
            let is_it = |kind: &FileKind| matches!(kind, FileKind::Shmem(file) if file.shmem == id);
            let entry = table.entries.iter().find(|entry| is_it(&model.files[entry.file.at()].kind))?;
            Some(Way::Open { pid: *pid, fd: entry.fd })
        })
    };
    mapped.or_else(open)
}

/// The memory of a copy that another process has made.
///
/// # Errors
/// Some of it cannot be reached.
pub(super) fn memory(inventory: &Inventory, model: &Model) -> io::Result<TargetPages> {
    if (inventory.mms.len(), inventory.shmems.len()) != (model.mms.len(), model.shmems.len()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the inventory is not that of this model"));
    }
    let open = |way: &Option<Way>| match way {
        Some(way) => open(*way),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "a shared memory object has no name that could be opened")),
    };
    let shmems = inventory.shmems.iter().map(|way| open(way).map(Into::into)).collect::<io::Result<_>>()?;
    Ok(TargetPages::new(inventory.mms.iter().copied().map(Pid).collect(), shmems))
}

fn open(way: Way) -> io::Result<File> {
    let (pid, name) = match way {
        Way::Open { pid, fd } => (pid, format!("fd/{fd}")),
        Way::Mapped { pid, at } => {
            let maps = ProcDir::open(Pid(pid)).and_then(|dir| dir.maps(&mut Vec::new())).map_err(io::Error::other)?;
            let mapping = maps.iter().find(|mapping| mapping.start <= at && at < mapping.end);
            (pid, mapping.ok_or(io::ErrorKind::NotFound)?.map_file())
        }
    };
    let opened = ProcDir::open(Pid(pid)).and_then(|dir| dir.open_file(&name, OFlag::O_RDONLY));
    opened.map(File::from).map_err(io::Error::other)
}

/// Everything it has.
fn plan(model: &Model, pages: &TargetPages) -> io::Result<Vec<(Space, PageRange)>> {
    let mut plan = Vec::new();
    for (n, (mm, pid)) in model.mms.iter().zip(&pages.mms).enumerate() {
        let opened = ProcDir::open(*pid).and_then(|dir| dir.open_file("pagemap", OFlag::O_RDONLY));
        let pagemap = opened.map_err(io::Error::other)?;
        plan.extend(private_pages(n.into(), mm, &pagemap.into())?);
    }
    for (n, (shmem, file)) in model.shmems.iter().zip(&pages.shmems).enumerate() {
        plan.extend(shared_pages(n.into(), shmem.size, file.as_fd())?);
    }
    Ok(plan)
}

/// But for pages that are still to come: whatever stands in their places.
fn without(plan: Vec<(Space, PageRange)>, late: &[(Space, RangeSet)]) -> Vec<(Space, PageRange)> {
    let left = |(space, range): (Space, PageRange)| {
        let mut left: RangeSet = [range].into_iter().collect();
        let of_space = late.iter().filter(|(of, _)| *of == space);
        of_space
            .flat_map(|(_, pages)| pages.within(range).iter().collect::<Vec<_>>())
            .for_each(|part| left.remove(part));
        left.iter().map(move |part| (space, part)).collect::<Vec<_>>()
    };
    plan.into_iter().flat_map(left).collect()
}

/// Refuses what cannot fit before a disk is filled that others need.
fn room(plan: &[(Space, PageRange)], dir: &Path) -> Result<()> {
    let needed: u64 = plan.iter().map(|(_, range)| range.bytes()).sum();
    let Ok(free) = free_bytes(dir) else { return Ok(()) };
    if needed <= free.saturating_sub(RESERVE_BYTES) {
        return Ok(());
    }
    let what = format!("the image needs room for {needed} bytes, {} has {free} bytes free", dir.display());
    Err(Failure::new(what).hint("make room there"))
}

fn hold_off(connections: &[nft::Tuple]) -> crate::net::Result<Option<PacketLock>> {
    if connections.is_empty() {
        return Ok(None);
    }
    match PacketLock::set(None, connections, Lifetime::Stays) {
        Ok(lock) => Ok(Some(lock)),
        Err(crate::net::Error::Kernel { errno: Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT, .. }) => {
            tracing::warn!("no nf_tables here: what peers send to a parked copy is answered with a reset");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Connections in the network of this host: those of a network of its own end with that, unseen.
fn connections(model: &Model) -> Vec<nft::Tuple> {
    let of_host = |kind: &FileKind| match kind {
        FileKind::Tcp(tcp) if matches!(tcp.state, TcpState::Connected(_)) && model.namespaces[tcp.net.at()].of_host => {
            Some((parse_address(&tcp.local.0)?, parse_address(&tcp.peer.0)?))
        }
        _ => None,
    };
    model.files.iter().filter_map(|file| of_host(&file.kind)).collect()
}
