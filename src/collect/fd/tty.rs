//! Asked of duplicates by the engine: pseudo-terminals whose master the tree has. Others end outside of it.
//!
//! What waits in a terminal cannot be looked at: it is taken out and put back at once, while the tree stands still.

use super::outside;
use super::views::mnt_of;
use super::{State, set::Description};
use crate::blocker::{Blocker, codes};
use crate::collect::{Cx, Result};
use crate::image::fd::FileKind;
use crate::image::fd::tty::{Pty, PtyState, TtyFile, TtySide};
use crate::image::{Bytes, FileId, NsPid, PtyId};
use crate::sys::{Errno, tty, tty_queue};
use nix::poll::PollFlags;
use nix::sys::stat::{fstat, major, minor};
use std::os::fd::OwnedFd;

/// Major numbers of slaves (admin-guide/devices.txt); the kernel gives out the first.
const SLAVES: std::ops::RangeInclusive<u64> = 136..=143;

/// What a description of a terminal turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Master {
        index: u32,
    },
    /// `device`: of the devpts instance; `None` where `/dev/tty` hides it.
    Slave {
        index: u32,
        device: Option<u64>,
    },
    /// Nobody has the master any more.
    HungUp {
        index: u32,
        inode: (u64, u64),
    },
    /// A console, a serial line.
    Real,
}

/// A master of the tree with its pair.
struct Master {
    index: u32,
    /// Device of its devpts instance, once a slave of it is open.
    device: Option<u64>,
    id: FileId,
    fd: OwnedFd,
    pty: PtyId,
}

/// Which pair it belongs to is told by [`finish`], when all descriptions are known.
pub fn collect(state: &mut State, id: FileId) -> Option<FileKind> {
    state.ttys.push(id);
    let side = if state.set[id].stat.st_rdev == PTMX { TtySide::Master } else { TtySide::Slave };
    Some(FileKind::Tty(TtyFile { pty: PtyId(0), side }))
}

const PTMX: u64 = nix::sys::stat::makedev(5, 2);
const TTY: u64 = nix::sys::stat::makedev(5, 0);

/// Pairs up masters and slaves, and reads the pairs; terminals that end outside become external files or blockers.
pub fn finish(cx: &mut Cx<'_>, state: &mut State) -> Result<()> {
    let ids = std::mem::take(&mut state.ttys);
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let fd = state.set.duplicate(id)?;
        found.push((id, look(&state.set[id], &fd)?));
    }
    let mut masters = Vec::new();
    for (id, what) in &found {
        if let Found::Master { index } = *what {
            let fd = state.set.duplicate(*id)?;
            let in_tree = found.iter().any(|(_, f)| matches!(f, Found::Slave { index: i, .. } if *i == index));
            let device = if in_tree { peer(&fd).and_then(|slave| fstat(&slave)).ok().map(|s| s.st_dev) } else { None };
            masters.push(Master { index, device, id: *id, fd, pty: PtyId(0) });
        }
    }
    for master in &mut masters {
        let inside = found.iter().any(|(_, f)| belongs(master, *f));
        let pty = pair(cx, state, master, inside)?;
        master.pty = PtyId::from(cx.model.ptys.len());
        cx.model.ptys.push(pty);
    }
    let mut dead = Vec::new();
    let mut outer = Vec::new();
    for (id, what) in found {
        let side = if state.set[id].stat.st_rdev == TTY { TtySide::Controlling } else { TtySide::Slave };
        let file = match what {
            Found::Master { .. } => {
                let master = masters.iter().find(|m| m.id == id);
                TtyFile { pty: master.map_or(PtyId(0), |m| m.pty), side: TtySide::Master }
            }
            Found::HungUp { index, inode } => TtyFile { pty: hung_up(cx, state, &mut dead, id, index, inode), side },
            Found::Slave { .. } | Found::Real => match masters.iter().find(|m| belongs(m, what)) {
                Some(master) => TtyFile { pty: master.pty, side },
                None => {
                    outer.push(id);
                    continue;
                }
            },
        };
        cx.model.files[id.at()].kind = FileKind::Tty(file);
    }
    outside::terminals(cx, state, &outer)
}

/// The slave of a master, which may be locked.
fn peer(master: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
    match tty::slave(master, flags) {
        Err(Errno::EIO) if tty::locked(master)? => {
            tty::set_locked(master, false)?;
            let slave = tty::slave(master, flags);
            tty::set_locked(master, true)?;
            slave
        }
        slave => slave,
    }
}

fn belongs(master: &Master, slave: Found) -> bool {
    let Found::Slave { index, device } = slave else { return false };
    index == master.index && (device.is_none() || master.device.is_none() || device == master.device)
}

fn look(d: &Description, fd: &OwnedFd) -> Result<Found> {
    if d.stat.st_rdev == PTMX {
        return Ok(Found::Master { index: tty::index(fd).map_err(d.failed("ioctl TIOCGPTN"))? });
    }
    let own = SLAVES.contains(&major(d.stat.st_rdev)).then_some(d.stat.st_dev);
    match tty::device(fd) {
        Ok(device) if SLAVES.contains(&major(device)) => Ok(Found::Slave { index: minor(device) as u32, device: own }),
        Ok(_) => Ok(Found::Real),
        Err(Errno::EIO) if own.is_some() => Ok(Found::HungUp { index: minor(d.stat.st_rdev) as u32, inode: d.inode() }),
        // Of /dev/tty only the descriptor is left.
        Err(Errno::EIO) if d.stat.st_rdev == TTY => Ok(Found::HungUp { index: 0, inode: d.inode() }),
        Err(Errno::ENOTTY | Errno::EIO) => Ok(Found::Real),
        Err(errno) => Err(d.failed("ioctl TIOCGDEV")(errno)),
    }
}

/// Everything about a pair whose master the tree has.
fn pair(cx: &mut Cx<'_>, state: &mut State, master: &Master, inside: bool) -> Result<Pty> {
    let d = &state.set[master.id];
    let failed = |operation| d.failed(operation);
    let fd = &master.fd;
    let closed = tty_queue::events(fd, PollFlags::POLLIN).map_err(failed("poll"))?.contains(PollFlags::POLLHUP);
    let at = match (inside, closed) {
        (_, true) => PtyState::SlaveClosed,
        (true, _) => PtyState::Open,
        (false, false) => PtyState::Fresh,
    };
    if tty::discipline(fd).map_err(failed("ioctl TIOCGETD"))? != 0 {
        let reason = "a protocol (PPP, SLIP, a modem's) runs on it and keeps state in the kernel";
        cx.blockers.push(Blocker::new(codes::DEVICE, d.object()).because(reason));
    }
    let mnt = mnt_of(cx, d.at);
    let mut pty = Pty {
        index: master.index,
        ptmx: d.link.clone(),
        mnt,
        state: at,
        termios: Bytes(tty::termios(fd).map_err(failed("ioctl TCGETS2"))?.to_vec()),
        winsize: tty::size(fd).map_err(failed("ioctl TIOCGWINSZ"))?,
        sid: NsPid(0),
        pgid: NsPid(0),
        locked: tty::locked(fd).map_err(failed("ioctl TIOCGPTLCK"))?,
        packet: tty::packet_mode(fd).map_err(failed("ioctl TIOCGPKT"))?,
        exclusive: false,
        stopped: false,
        uid: 0,
        gid: 0,
        mode: 0o620,
        output: Bytes::default(),
        lines: Vec::new(),
        input: Bytes::default(),
    };
    let session = tty::session(fd).map_err(failed("ioctl TIOCGSID"))?;
    let group = tty::foreground(fd).map_err(failed("ioctl TIOCGPGRP"))?;
    if at == PtyState::Fresh {
        held_outside(cx, state, master)?;
        owner_by_path(cx, state, &mut pty)?;
        return Ok(pty);
    }
    let slave = peer(fd).map_err(failed("ioctl TIOCGPTPEER"))?;
    let node = fstat(&slave).map_err(failed("stat"))?;
    (pty.uid, pty.gid, pty.mode) = (node.st_uid, node.st_gid, node.st_mode & 0o7777);
    pty.exclusive = tty::exclusive(&slave).map_err(failed("ioctl TIOCGEXCL"))?;
    queues(&mut pty, fd, &slave).map_err(failed("reading what waits"))?;
    if let Some(session) = session {
        pty.sid = as_seen(cx, session, |stat| stat.session, |task| task.sid)?;
        pty.pgid = as_seen(cx, group, |stat| stat.pgrp, |task| task.pgid)?;
    }
    Ok(pty)
}

/// Takes out what waits, and puts it back.
fn queues(pty: &mut Pty, master: &OwnedFd, slave: &OwnedFd) -> std::result::Result<(), Errno> {
    if pty.packet {
        // A packet of changes that was not read yet is lost in this: the next one says the same.
        tty::set_packet_mode(master, false)?;
    }
    let waiting = tty_queue::take(master, Some(slave))?;
    pty.stopped = tty_queue::stopped(slave)?;
    let as_it_was = || -> std::result::Result<(), Errno> {
        if waiting.is_empty() {
            return Ok(());
        }
        let termios = tty::termios(slave)?;
        if pty.stopped {
            tty_queue::set_stopped(master, slave, false)?;
        }
        tty_queue::put(master, slave, &termios, &waiting)?;
        if pty.stopped { tty_queue::set_stopped(master, slave, true) } else { Ok(()) }
    };
    let restored = as_it_was();
    if pty.packet {
        tty::set_packet_mode(master, true)?;
    }
    restored?;
    pty.output = Bytes(waiting.output);
    pty.lines = waiting.lines.into_iter().map(Bytes).collect();
    pty.input = Bytes(waiting.input);
    Ok(())
}

/// A number of a session or group as the tree sees it: we may see another one. 0 where nobody of the tree has it and the
/// numbers differ.
fn as_seen(
    cx: &mut Cx<'_>,
    number: i32,
    of: impl Fn(&crate::proc::stat::Stat) -> i32,
    seen: impl Fn(&crate::image::task::Task) -> NsPid,
) -> Result<NsPid> {
    for (task, at) in cx.model.tasks.iter().zip(&cx.process_of) {
        if of(&cx.frozen.processes[*at].dir.stat(&mut cx.buf)?) == number {
            return Ok(seen(task));
        }
    }
    let root = cx.frozen.processes[0].pid;
    Ok(if cx.ids[&root].0 == root.0 { NsPid(number) } else { NsPid(0) })
}

/// Nobody in the tree has the slave, and nobody has closed it: somebody else may have it.
fn held_outside(cx: &mut Cx<'_>, state: &State, master: &Master) -> Result<()> {
    let tree = cx.frozen.processes.iter().map(|p| p.pid).collect();
    let holders = super::tty_preflight::holders(&tree, &mut cx.buf)?;
    let node = nix::sys::stat::makedev(136, master.index.into());
    if let Some((pid, name)) = holders.slaves.get(&node).and_then(|all| all.first()) {
        let reason = format!("its other end, /dev/pts/{}, is held by {name} (pid {pid})", master.index);
        let remedy = "name the common ancestor as the target";
        let blocker = Blocker::new(codes::TTY_OUTSIDE, state.set[master.id].object());
        cx.blockers.push(blocker.because(reason).remedy(remedy));
    }
    Ok(())
}

fn owner_by_path(cx: &mut Cx<'_>, state: &mut State, pty: &mut Pty) -> Result<()> {
    let path = format!("/dev/pts/{}", pty.index);
    let Some(view) = state.views.of(cx, pty.mnt)? else { return Ok(()) };
    if let Ok(node) = view.open(path.as_bytes(), libc::O_PATH | libc::O_NOFOLLOW).and_then(fstat) {
        (pty.uid, pty.gid, pty.mode) = (node.st_uid, node.st_gid, node.st_mode & 0o7777);
    }
    Ok(())
}

/// The pair of a slave whose master is gone; its other descriptions belong to the same.
fn hung_up(
    cx: &mut Cx<'_>,
    state: &State,
    dead: &mut Vec<((u64, u64), PtyId)>,
    id: FileId,
    index: u32,
    inode: (u64, u64),
) -> PtyId {
    if let Some((_, pty)) = dead.iter().find(|(known, _)| *known == inode) {
        return *pty;
    }
    let d = &state.set[id];
    let pty = PtyId::from(cx.model.ptys.len());
    dead.push((inode, pty));
    cx.model.ptys.push(Pty {
        index,
        ptmx: Bytes(b"/dev/ptmx".to_vec()),
        mnt: mnt_of(cx, d.at),
        state: PtyState::HungUp,
        termios: Bytes::default(),
        winsize: [0; 4],
        sid: NsPid(0),
        pgid: NsPid(0),
        locked: false,
        packet: false,
        exclusive: false,
        stopped: false,
        uid: d.stat.st_uid,
        gid: d.stat.st_gid,
        mode: d.stat.st_mode & 0o7777,
        output: Bytes::default(),
        lines: Vec::new(),
        input: Bytes::default(),
    });
    pty
}

/// A description of a terminal that ends outside: how it is set.
pub fn settings(fd: &OwnedFd) -> Option<crate::image::fd::tty::TerminalSettings> {
    let termios = tty::termios(fd).ok()?;
    Some(crate::image::fd::tty::TerminalSettings { termios: Bytes(termios.to_vec()) })
}
