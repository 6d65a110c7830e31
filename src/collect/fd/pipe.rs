//! Read by the engine on a duplicate, content by tee(2): pipes and FIFOs.

use super::outside::{Missing, Outsiders};
use super::set::Description;
use super::views::{Place, path_ref};
use super::{State, outside};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::pipe::{Pipe, PipeEnd};
use crate::image::fd::{FileKind, PathRef};
use crate::image::{Bytes, FileId, PipeId};
use crate::sys::openat2::reopen;
use crate::sys::{Errno, fcntl, pipe};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// Pipes met so far, by device and inode.
pub type Pipes = HashMap<(u64, u64), PipeId>;

const O_DIRECT: u32 = libc::O_DIRECT as u32;

/// One end of a pipe; at the first one met the pipe itself with what is in it.
pub fn collect(cx: &mut Cx<'_>, state: &mut State, id: FileId, fd: &OwnedFd) -> Result<Option<FileKind>> {
    let State { set, views, pipes, .. } = state;
    let d = &set[id];
    if let Some(pipe) = pipes.get(&d.inode()) {
        return Ok(Some(FileKind::Pipe(PipeEnd { pipe: *pipe })));
    }
    let (fifo, deleted): (Option<PathRef>, bool) = if d.link.0.starts_with(b"pipe:[") {
        (None, false)
    } else {
        match views.place_of(cx, d)? {
            Place::Named(path, mnt) => (Some(path_ref(path, mnt, &d.stat, false)), false),
            Place::Deleted(path, mnt) => (Some(path_ref(path, mnt, &d.stat, false)), true),
            Place::Hidden => {
                cx.blockers.push(Blocker::new(codes::FILE_HIDDEN, d.object()));
                return Ok(None);
            }
        }
    };
    let packets = set.iter().any(|(_, o)| o.inode() == d.inode() && o.writes() && o.flags() & O_DIRECT != 0);
    let capacity = fcntl::pipe_size(fd).map_err(d.failed("fcntl F_GETPIPE_SZ"))?;
    let (data, packets) = content(d, fd, capacity, packets)?;
    let pipe = PipeId::from(cx.model.pipes.len());
    cx.model.pipes.push(Pipe { capacity, data: Bytes(data), packets, fifo, deleted });
    pipes.insert(d.inode(), pipe);
    Ok(Some(FileKind::Pipe(PipeEnd { pipe })))
}

/// What is in a pipe, which keeps it. The second part is the lengths of packets, empty for a stream.
fn content(d: &Description, fd: &OwnedFd, capacity: u32, packets: bool) -> Result<(Vec<u8>, Vec<u32>)> {
    let waiting = pipe::readable(fd).map_err(d.failed("ioctl FIONREAD"))?;
    if waiting == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let reader;
    let from = if d.reads() {
        fd
    } else {
        let flags = (libc::O_RDONLY | libc::O_NONBLOCK) as u32;
        reader = reopen(fd, flags).map_err(d.failed("open (reading end)"))?;
        &reader
    };
    // Only pages change hands: the copy needs as many slots as the original.
    let (copy, sink) = pipe::pipe(libc::O_NONBLOCK).map_err(d.failed("pipe2"))?;
    fcntl::set_pipe_size(&sink, capacity).map_err(d.failed("fcntl F_SETPIPE_SZ"))?;
    let teed = pipe::tee(from, &sink, capacity as usize).map_err(d.failed("tee"))?;
    if teed != waiting as usize {
        return Err(d.failed("tee (incomplete)")(Errno::EIO));
    }
    let mut data = vec![0; teed];
    let (mut done, mut lengths) = (0, Vec::new());
    while done < teed {
        let n = nix::unistd::read(&copy, &mut data[done..]).map_err(d.failed("read (copy of the pipe)"))?;
        lengths.push(n as u32);
        done += n;
    }
    // A read ends at the end of a packet only: more than one read means packets, whoever wrote them may be gone.
    if !packets && lengths.len() == 1 {
        lengths.clear();
    }
    Ok((data, lengths))
}

/// Finds pipes that end outside the tree: an end is missing in it, and the pipe says that this end is open.
pub fn finish(cx: &mut Cx<'_>, state: &mut State) -> Result<()> {
    let mut ends: Vec<(bool, bool, Option<FileId>)> = vec![(false, false, None); cx.model.pipes.len()];
    for (id, d) in state.set.iter() {
        if let FileKind::Pipe(end) = cx.model.files[id.at()].kind {
            let entry = &mut ends[end.pipe.at()];
            *entry = (entry.0 || d.reads(), entry.1 || d.writes(), entry.2.or(Some(id)));
        }
    }
    let mut missing = Vec::new();
    for (n, (reads, writes, first)) in ends.into_iter().enumerate() {
        let Some(id) = first.filter(|_| !(reads && writes)) else { continue };
        if let Some(alive) = other_end_alive(state, id, reads, cx.model.pipes[n].fifo.is_some())? {
            let inode = state.set[id].inode();
            missing.push((PipeId::from(n), Missing { inode, reader: writes, certain: alive }));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let outsiders = Outsiders::find(cx, missing.iter().map(|(_, m)| m))?;
    let mut external = Vec::new();
    for (pipe, missing) in &missing {
        // A FIFO that nobody has opened for writing yet looks to its reader as if somebody had.
        if missing.certain || outsiders.holds(missing) {
            external.push((*pipe, missing));
        }
    }
    outside::pipes(cx, state, &outsiders, &external);
    Ok(())
}

/// Whether the end that is missing is open somewhere: `None` = closed, `Some(certain)` otherwise.
fn other_end_alive(state: &mut State, id: FileId, reads: bool, fifo: bool) -> Result<Option<bool>> {
    let fd = state.set.duplicate(id)?;
    let (asked, closed) =
        if reads { (PollFlags::POLLIN, PollFlags::POLLHUP) } else { (PollFlags::POLLOUT, PollFlags::POLLERR) };
    let mut polled = [PollFd::new(fd.as_fd(), asked)];
    poll(&mut polled, PollTimeout::ZERO).map_err(state.set[id].failed("poll"))?;
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    Ok((!events.intersects(closed)).then_some(!(fifo && reads)))
}
