//! Made by the engine: pipes and FIFOs, filled before anybody has them.

use super::{LARGEFILE, Maker, roots};
use crate::image::PipeId;
use crate::image::fd::PathRef;
use crate::image::fd::pipe::Pipe;
use crate::restore::{Error, Result};
use crate::sys::openat2::reopen;
use crate::sys::{Errno, fcntl, pipe};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, mkfifoat, unlinkat};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Pipes made so far: both ends stay open until every description is made.
pub(crate) type Pipes = HashMap<PipeId, Ends>;

/// Both ends of a pipe.
#[derive(Debug)]
pub(crate) struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Handed out as they are: the first descriptions of a pipe are those that pipe(2) made.
    reader_taken: bool,
    writer_taken: bool,
}

const O_DIRECT: u32 = libc::O_DIRECT as u32;

/// A description of one end.
pub(crate) fn make(maker: &mut Maker<'_>, id: PipeId, flags: u32) -> Result<OwnedFd> {
    if !maker.pipes.contains_key(&id) {
        let ends = ends(maker, &maker.model.pipes[id.at()])?;
        maker.pipes.insert(id, ends);
    }
    let Ends { reader, writer, reader_taken, writer_taken } = maker.pipes.get_mut(&id).expect("made above");
    let (base, taken) = match flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY => (&*reader, reader_taken),
        _ => (&*writer, writer_taken),
    };
    let named = maker.model.pipes[id.at()].fifo.is_some();
    let original = !named && flags & LARGEFILE == 0 && flags as i32 & libc::O_ACCMODE != libc::O_RDWR && !*taken;
    if original {
        *taken = true;
        return base.try_clone().map_err(|e| failed("dup")(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))));
    }
    let drop = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_ASYNC) as u32;
    reopen(base, flags & !drop).map_err(failed("open (pipe)"))
}

fn failed(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::System { operation, object: "a pipe".to_owned(), errno }
}

fn ends(maker: &mut Maker<'_>, model: &Pipe) -> Result<Ends> {
    let (reader, writer) = match &model.fifo {
        None => pipe::pipe(libc::O_NONBLOCK).map_err(failed("pipe2"))?,
        Some(path) => {
            let root = maker.roots.get(maker.model, maker.skeletons, path.mnt)?;
            let both = fifo(root, path, model.deleted)?;
            let again = both.try_clone().map_err(|e| failed("dup")(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
            (again, both)
        }
    };
    if maker.options.original_here && model.fifo.as_ref().is_some_and(|path| is_same(path, &writer)) {
        // The very FIFO of the frozen original, with what is in it.
        return Ok(Ends { reader, writer, reader_taken: false, writer_taken: false });
    }
    resize(maker.warnings, model, &writer)?;
    if pipe::readable(&reader).map_err(failed("ioctl FIONREAD"))? == 0 {
        fill(model, &writer)?;
    } else if !model.data.0.is_empty() {
        let path = model.fifo.as_ref().map(|f| f.path.to_string()).unwrap_or_default();
        return Err(Error::File { path, reason: "somebody else has written to this FIFO".to_owned() });
    }
    Ok(Ends { reader, writer, reader_taken: false, writer_taken: false })
}

fn is_same(path: &PathRef, fifo: &OwnedFd) -> bool {
    fstat(fifo).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (path.device, path.inode))
}

/// Opens a FIFO for both directions, which never waits.
fn fifo(root: &OwnedFd, path: &PathRef, deleted: bool) -> Result<OwnedFd> {
    let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
    if deleted {
        return removed_fifo(root, path);
    }
    let seen = roots::open(root, &path.path.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32)?;
    if fstat(&seen).map_err(failed("stat"))?.st_mode & libc::S_IFMT != libc::S_IFIFO {
        return Err(Error::File { path: path.path.to_string(), reason: "it is not a FIFO here".to_owned() });
    }
    reopen(&seen, flags).map_err(failed("open (FIFO)"))
}

/// A FIFO without a name, made beside its old place.
fn removed_fifo(root: &OwnedFd, path: &PathRef) -> Result<OwnedFd> {
    let at = path.path.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let directory = if at == 0 { &b"/"[..] } else { &path.path.0[..at] };
    let parent = roots::open(root, directory, (libc::O_PATH | libc::O_DIRECTORY) as u32)?;
    let mode = Mode::from_bits_truncate(path.mode & 0o7777);
    let own = String::from_utf8_lossy(&path.path.0[at + 1..]).into_owned();
    let mut names = std::iter::once(own).chain((0..100).map(|n| format!(".migrate-{}-{n}", std::process::id())));
    let name = loop {
        let Some(name) = names.next() else { return Err(failed("mkfifo")(Errno::EEXIST)) };
        match mkfifoat(&parent, name.as_str(), mode) {
            Ok(()) => break name,
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed("mkfifo")(errno)),
        }
    };
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let opened = nix::fcntl::openat(&parent, name.as_str(), flags, Mode::empty());
    unlinkat(&parent, name.as_str(), UnlinkatFlags::NoRemoveDir).map_err(failed("unlink"))?;
    opened.map_err(failed("open (FIFO)"))
}

fn resize(warnings: &mut Vec<String>, model: &Pipe, end: &OwnedFd) -> Result<()> {
    let has = fcntl::pipe_size(end).map_err(failed("fcntl F_GETPIPE_SZ"))?;
    if has == model.capacity {
        return Ok(());
    }
    match fcntl::set_pipe_size(end, model.capacity) {
        // Above fs.pipe-max-size it needs CAP_SYS_RESOURCE. What is in the pipe may fit all the same: fill() will tell.
        Err(Errno::EPERM) => {
            warnings.push(format!(
                "a pipe of {} bytes could only be made {has} bytes large (fs.pipe-max-size)",
                model.capacity
            ));
            Ok(())
        }
        set => set.map_err(failed("fcntl F_SETPIPE_SZ")),
    }
}

fn fill(model: &Pipe, writer: &OwnedFd) -> Result<()> {
    let too_small = |errno| match errno {
        Errno::EAGAIN => Error::Impossible {
            object: "a pipe".to_owned(),
            reason: format!("{} bytes are in it, more than fit here (fs.pipe-max-size)", model.data.0.len()),
        },
        errno => failed("write (pipe)")(errno),
    };
    let before = fcntl::flags(writer).map_err(failed("fcntl F_GETFL"))?;
    if !model.packets.is_empty() {
        fcntl::set_flags(writer, before | O_DIRECT).map_err(failed("fcntl F_SETFL"))?;
    }
    let mut rest = model.data.0.as_slice();
    let mut lengths = model.packets.iter();
    while !rest.is_empty() {
        let len = lengths.next().map_or(rest.len(), |len| (*len as usize).min(rest.len()));
        let n = nix::unistd::write(writer, &rest[..len]).map_err(too_small)?;
        rest = &rest[n..];
    }
    fcntl::set_flags(writer, before).map_err(failed("fcntl F_SETFL"))
}
