//! Made by the engine, through the root directory of the tree's mount namespace; `/dev/tty` and the controlling terminal
//! inside the target: pseudo-terminals.
//!
//! The pairs come before all processes but the first ([`prepare`]): a session leader takes its terminal before it has
//! children, who inherit it ([`acquire`]). The foreground group is set when groups are made ([`foreground`]), size and modes
//! before that, so that nobody gets a signal for them. What waited in the queues comes last ([`finish`]).

use super::{Maker, roots};
use crate::image::fd::tty::{Pty, PtyState, TERMIOS, TtyFile, TtySide};
use crate::image::task::TaskState;
use crate::image::{Model, NsPid, PtyId, TaskId};
use crate::proc::ProcDir;
use crate::restore::skeleton::Skeletons;
use crate::restore::{Error, Result};
use crate::sys::fd::{pidfd_getfd, pidfd_open};
use crate::sys::tty_queue::{self, Waiting};
use crate::sys::{Errno, tty};
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Numbers that are passed over to get at a certain one; `kernel.pty.max` is 4096 as a rule.
const TRIES: usize = 5000;

/// The pairs of a tree in the making, by [`PtyId`].
#[derive(Debug, Default)]
pub struct Terminals(Vec<Pair>);

#[derive(Debug)]
struct Pair {
    master: OwnedFd,
    /// Keeps the slave open; `None` where nobody has opened it yet.
    slave: Option<OwnedFd>,
    /// Of the slave, as the tree sees it.
    path: Vec<u8>,
}

fn failed(operation: &'static str, pty: &Pty) -> impl Fn(Errno) -> Error + use<> {
    let object = format!("terminal /dev/pts/{}", pty.index);
    move |errno| Error::System { operation, object: object.clone(), errno }
}

/// Makes all pairs, with the numbers they had where those are free.
pub fn prepare(model: &Model, skeletons: &Skeletons, warnings: &mut Vec<String>) -> Result<Terminals> {
    let mut pairs: Vec<Option<Pair>> = model.ptys.iter().map(|_| None).collect();
    // One whose number is in use takes any: only after those that get their own.
    for own_number in [true, false] {
        for (pty, place) in model.ptys.iter().zip(&mut pairs) {
            if place.is_some() {
                continue;
            }
            let root = root_of(model, skeletons, pty)?;
            let free = roots::open(&root, &slave_path(pty, pty.index), libc::O_PATH as u32).is_err();
            if free == own_number {
                *place = Some(pair(&root, pty, free, warnings)?);
            }
        }
    }
    Ok(Terminals(pairs.into_iter().flatten().collect()))
}

/// The root directory through which a terminal is reached: that of the root task, if it is in the mount namespace.
fn root_of(model: &Model, skeletons: &Skeletons, pty: &Pty) -> Result<OwnedFd> {
    if model.root().namespaces.mnt != pty.mnt {
        return roots::own();
    }
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
    Ok(ProcDir::open(skeletons.pid(TaskId(0)))?.open_file("root", flags)?)
}

/// `/dev/pts/N`, beside `/dev/ptmx` or in one directory with `ptmx`.
fn slave_path(pty: &Pty, index: u32) -> Vec<u8> {
    let at = pty.ptmx.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let directory = &pty.ptmx.0[..at];
    let below = if directory.ends_with(b"/pts") { "" } else { "/pts" };
    [directory, format!("{below}/{index}").as_bytes()].concat()
}

fn pair(root: &OwnedFd, pty: &Pty, free: bool, warnings: &mut Vec<String>) -> Result<Pair> {
    let flags = (libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK) as u32;
    let mut passed = Vec::new();
    let (master, index) = loop {
        let master = roots::open(root, &pty.ptmx.0, flags)?;
        let index = tty::index(&master).map_err(failed("ioctl TIOCGPTN", pty))?;
        if !free || index >= pty.index || passed.len() >= TRIES {
            break (master, index);
        }
        // The kernel gives the lowest number there is.
        passed.push(master);
    };
    drop(passed);
    if index != pty.index && pty.state != PtyState::HungUp {
        warnings.push(format!("terminal /dev/pts/{} is in use here: it is /dev/pts/{index} now", pty.index));
    }
    tty::set_locked(&master, false).map_err(failed("ioctl TIOCSPTLCK", pty))?;
    if let Some(termios) = termios_of(pty) {
        tty::set_termios(&master, &termios).map_err(failed("ioctl TCSETS2", pty))?;
        tty::set_size(&master, pty.winsize).map_err(failed("ioctl TIOCSWINSZ", pty))?;
    }
    let path = slave_path(pty, index);
    let slave = match pty.state {
        PtyState::Fresh => {
            let node = roots::open(root, &path, libc::O_PATH as u32)?;
            let node = format!("/proc/self/fd/{}", node.as_raw_fd());
            nix::unistd::chown(node.as_str(), Some(Uid::from_raw(pty.uid)), Some(Gid::from_raw(pty.gid)))
                .map_err(failed("chown", pty))?;
            let mode = Mode::from_bits_truncate(pty.mode);
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                node.as_str(),
                mode,
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )
            .map_err(failed("chmod", pty))?;
            None
        }
        _ => {
            let slave = tty::slave(&master, flags).map_err(failed("ioctl TIOCGPTPEER", pty))?;
            fchown(&slave, Some(Uid::from_raw(pty.uid)), Some(Gid::from_raw(pty.gid)))
                .map_err(failed("fchown", pty))?;
            fchmod(&slave, Mode::from_bits_truncate(pty.mode)).map_err(failed("fchmod", pty))?;
            Some(slave)
        }
    };
    Ok(Pair { master, slave, path })
}

/// Whether the pairs made for an earlier model are those of a later one: the same terminals of the same sessions.
pub fn same_pairs(old: &Model, new: &Model) -> bool {
    let made_as = |pty: &Pty| (pty.index, pty.ptmx.clone(), pty.mnt, pty.state, pty.sid, pty.uid, pty.gid, pty.mode);
    old.ptys.iter().map(made_as).eq(new.ptys.iter().map(made_as))
}

/// Modes and sizes as a later model has them.
pub fn renew(model: &Model, skeletons: &Skeletons) -> Result<()> {
    for (pty, pair) in model.ptys.iter().zip(&skeletons.terminals.0) {
        if let Some(termios) = termios_of(pty) {
            tty::set_termios(&pair.master, &termios).map_err(failed("ioctl TCSETS2", pty))?;
            tty::set_size(&pair.master, pty.winsize).map_err(failed("ioctl TIOCSWINSZ", pty))?;
        }
    }
    Ok(())
}

fn termios_of(pty: &Pty) -> Option<[u8; TERMIOS]> {
    pty.termios.0.as_slice().try_into().ok()
}

/// The terminal a session had.
fn of_session(model: &Model, sid: NsPid) -> Option<(PtyId, &Pty)> {
    let at = model.ptys.iter().position(|pty| pty.sid == sid && pty.sid.0 != 0)?;
    Some((PtyId::from(at), &model.ptys[at]))
}

/// A session leader takes the session's terminal, if it had one.
pub fn acquire(model: &Model, sid: NsPid, terminals: &Terminals, leader: &mut Remote, scratch: Scratch) -> Result<()> {
    let Some((id, _)) = of_session(model, sid) else { return Ok(()) };
    let Some(pair) = terminals.0.get(id.at()) else { return Ok(()) };
    let mut batch = Batch::new();
    on_terminal(&mut batch, &pair.path, |batch, fd| {
        batch.must(libc::SYS_ioctl, &[fd, tty::TIOCSCTTY.into(), 0u64.into()]);
    });
    leader.run_all(&scratch, &batch)?;
    Ok(())
}

/// Opens a terminal for one call.
fn on_terminal(batch: &mut Batch, path: &[u8], call: impl FnOnce(&mut Batch, crate::trace::Arg)) {
    let path = batch.c_string(path);
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let fd = batch.must(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, flags.into(), 0u64.into()]);
    call(batch, fd.into());
    batch.close(fd);
}

/// Sets the foreground groups, while the leaders of all groups are there, and takes the terminal from those of a session
/// who have none.
pub fn foreground(model: &Model, skeletons: &mut Skeletons) -> Result<()> {
    for (n, pty) in model.ptys.iter().enumerate() {
        let Some(leader) = model.task_of(pty.sid).filter(|_| pty.sid.0 != 0) else { continue };
        let Some(path) = skeletons.terminals.0.get(n).map(|pair| pair.path.clone()) else { continue };
        if is_live(model, leader) && pty.pgid.0 != 0 {
            let mut batch = Batch::new();
            on_terminal(&mut batch, &path, |batch, fd| {
                let group = batch.value(&pty.pgid.0);
                // A group whose last member has ended cannot be made again where its number is in use.
                batch.may(libc::SYS_ioctl, &[fd, tty::TIOCSPGRP.into(), group]);
            });
            let (remote, scratch) = skeletons.leader(leader);
            remote.run_all(&scratch, &batch)?;
        }
        let without = |task: &crate::image::task::Task| task.sid == pty.sid && task.tty_device == 0;
        let members = (0..model.tasks.len()).map(TaskId::from).filter(|id| without(&model.tasks[id.at()]));
        for member in members.filter(|id| *id != leader && is_live(model, *id)) {
            let mut batch = Batch::new();
            on_terminal(&mut batch, &path, |batch, fd| {
                batch.may(libc::SYS_ioctl, &[fd, tty::TIOCNOTTY.into(), 0u64.into()]);
            });
            let (remote, scratch) = skeletons.leader(member);
            remote.run_all(&scratch, &batch)?;
        }
    }
    Ok(())
}

fn is_live(model: &Model, task: TaskId) -> bool {
    !matches!(model.tasks[task.at()].state, TaskState::Zombie(_))
}

/// One side of a pair.
pub(crate) fn make(maker: &mut Maker<'_>, file: TtyFile, flags: u32) -> Result<OwnedFd> {
    let pty = &maker.model.ptys[file.pty.at()];
    if file.side == TtySide::Controlling
        && let Some(opened) = controlling(maker, pty, flags)?
    {
        return Ok(opened);
    }
    let Some(pair) = maker.skeletons.terminals.0.get(file.pty.at()) else {
        let object = format!("terminal /dev/pts/{}", pty.index);
        return Err(Error::Impossible { object, reason: "it has not been made".to_owned() });
    };
    if file.side == TtySide::Master {
        let again = pair.master.try_clone();
        return again.map_err(|e| failed("dup", pty)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))));
    }
    tty::slave(&pair.master, flags & !ONCE).map_err(failed("ioctl TIOCGPTPEER", pty))
}

const ONCE: u32 = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC) as u32;

/// `/dev/tty`, opened by somebody of the session; `None` where nobody is left of it.
fn controlling(maker: &mut Maker<'_>, pty: &Pty, flags: u32) -> Result<Option<OwnedFd>> {
    let model = maker.model;
    let member = |task: &crate::image::task::Task| {
        task.sid == pty.sid && pty.sid.0 != 0 && task.tty_device != 0 && !matches!(task.state, TaskState::Zombie(_))
    };
    let Some(at) = model.tasks.iter().position(member) else { return Ok(None) };
    let (remote, scratch) = maker.skeletons.leader(TaskId::from(at));
    let mut batch = Batch::new();
    let path = batch.c_string(b"/dev/tty");
    let flags = (flags & !ONCE) | libc::O_CLOEXEC as u32;
    let opened = batch.must(libc::SYS_openat, &[libc::AT_FDCWD.into(), path, flags.into(), 0u64.into()]);
    let results = remote.run_all(&scratch, &batch)?;
    let fd = results.get(opened).map_err(failed("open /dev/tty", pty))?;
    let pidfd = pidfd_open(remote.pid()).map_err(failed("pidfd_open", pty))?;
    let ours = pidfd_getfd(pidfd.as_fd(), fd as u32).map_err(failed("pidfd_getfd", pty))?;
    let mut batch = Batch::new();
    batch.close(fd);
    remote.run_all(&scratch, &batch)?;
    Ok(Some(ours))
}

/// Fills the queues and sets what would have been in the way before; closes what nobody had open.
pub(crate) fn finish(maker: &mut Maker<'_>) -> Result<()> {
    let pairs = std::mem::take(&mut maker.skeletons.terminals.0);
    for (pty, Pair { master, slave, .. }) in maker.model.ptys.iter().zip(pairs) {
        if let (Some(slave), Some(termios)) = (&slave, termios_of(pty)) {
            let waiting = Waiting {
                output: pty.output.0.clone(),
                lines: pty.lines.iter().map(|line| line.0.clone()).collect(),
                input: pty.input.0.clone(),
            };
            tty_queue::put(&master, slave, &termios, &waiting).map_err(failed("filling the queues", pty))?;
            if pty.stopped {
                tty_queue::set_stopped(&master, slave, true).map_err(failed("stopping the output", pty))?;
            }
            if pty.exclusive {
                tty::set_exclusive(slave).map_err(failed("ioctl TIOCEXCL", pty))?;
            }
        }
        if pty.packet {
            tty::set_packet_mode(&master, true).map_err(failed("ioctl TIOCPKT", pty))?;
        }
        if pty.locked {
            tty::set_locked(&master, true).map_err(failed("ioctl TIOCSPTLCK", pty))?;
        }
    }
    Ok(())
}
