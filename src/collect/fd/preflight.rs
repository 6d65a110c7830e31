//! What stands in the way, of a tree that runs: only `/proc` is looked at, and duplicates of its sockets; nothing is stopped.

use super::classify::{Class, Look, classify};
use super::outside::{self, Missing, Outsiders};
use super::set::fs_magic;
use super::socket_preflight::Sockets;
use super::tty_preflight::Terminals;
use super::views::DELETED;
use super::{ghost, pidfd};
use crate::blocker::{Blocker, codes};
use crate::collect::{Policy, Result};
use crate::image::Pid;
use crate::proc::fdinfo::{Detail, FdInfo};
use crate::proc::{Error, ProcDir};
use nix::sys::stat::FileStat;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Ends of one pipe that the tree has.
#[derive(Debug, Default)]
struct Ends {
    reads: bool,
    writes: bool,
    fifo: bool,
    /// The first descriptor met, and whether all of them are standard ones.
    object: String,
    all_stdio: bool,
}

/// One descriptor as seen in passing.
struct Seen {
    object: String,
    fd: u32,
    link: Vec<u8>,
    stat: FileStat,
    info: FdInfo,
    class: Class,
}

/// Everything about descriptors that would stop a dump of these processes (all of the tree). Descriptors that come and go
/// meanwhile are passed over; the collection of the frozen tree looks again.
///
/// # Errors
/// `/proc` cannot be read.
pub fn preflight(tree: &[ProcDir], policy: &Policy) -> Result<(Vec<Blocker>, bool)> {
    let pids: HashSet<Pid> = tree.iter().map(ProcDir::pid).collect();
    let mut found = Vec::new();
    let mut pipes: BTreeMap<(u64, u64), Ends> = BTreeMap::new();
    let mut magics = HashMap::new();
    let mut sockets = Sockets::default();
    let mut terminals = Terminals::default();
    let mut buf = Vec::new();
    for dir in tree {
        let fds = match dir.fds() {
            Err(e) if e.is_gone() => continue,
            fds => fds?,
        };
        for fd in fds {
            let Some(seen) = absent_is_none(look(dir, fd, &mut magics, &mut buf))? else { continue };
            if seen.class == Class::Tty {
                let controlling = dir.stat(&mut buf).map_or(0, |stat| stat.tty_device());
                terminals.note(&seen.object, &seen.link, seen.stat.st_rdev, &seen.info.detail, controlling);
            } else if seen.class == Class::Pipe {
                note_end(&mut pipes, &seen);
            } else if seen.class == Class::Socket {
                found.extend(sockets.look(dir, fd, seen.stat.st_ino, &seen.object, policy));
            } else {
                found.extend(judge(&seen, &pids));
            }
        }
    }
    found.extend(sockets.signed());
    found.extend(sockets.outside(&pids, policy, &mut buf));
    let root = tree.first().map(ProcDir::pid);
    if !policy.allow_external_stdio {
        found.extend(terminals.outside(&pids, root, &mut buf)?);
    }
    found.extend(pipes_outside(&pipes, &pids, root, policy, &mut buf)?);
    Ok((found, sockets.tcp > 0))
}

/// A descriptor that was closed, or whose process has ended, meanwhile is none.
fn absent_is_none<T>(result: std::result::Result<T, Error>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_gone() || e.is_absent() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn look(dir: &ProcDir, fd: u32, magics: &mut HashMap<u64, i64>, buf: &mut Vec<u8>) -> std::result::Result<Seen, Error> {
    let name = format!("fd/{fd}");
    let link = dir.readlink(&name)?;
    let stat = dir.stat_of(&name)?;
    let info = dir.fdinfo(fd, buf)?;
    let fs_magic = *magics.entry(stat.st_dev).or_insert_with(|| fs_magic(dir, &name));
    let o_path = info.flags & libc::O_PATH as u32 != 0;
    let class = classify(Look { link: &link.0, mode: stat.st_mode, rdev: stat.st_rdev, fs_magic, o_path });
    Ok(Seen { object: format!("pid {} fd {fd} ({link})", dir.pid()), fd, link: link.0, stat, info, class })
}

fn note_end(pipes: &mut BTreeMap<(u64, u64), Ends>, seen: &Seen) {
    let mode = seen.info.flags as i32 & libc::O_ACCMODE;
    let ends = pipes.entry((seen.stat.st_dev, seen.stat.st_ino)).or_insert_with(|| Ends {
        object: seen.object.clone(),
        fifo: !seen.link.starts_with(b"pipe:["),
        all_stdio: true,
        ..Ends::default()
    });
    ends.reads |= mode != libc::O_WRONLY;
    ends.writes |= mode != libc::O_RDONLY;
    ends.all_stdio &= seen.fd < 3;
}

fn judge(seen: &Seen, tree: &HashSet<Pid>) -> Option<Blocker> {
    let object = seen.object.as_str();
    match seen.class {
        Class::Unsupported(code) => Some(Blocker::new(code, object)),
        Class::PidFd => match seen.info.detail {
            Detail::PidFd { pid, .. } if pid != -1 && !tree.contains(&Pid(pid)) => Some(pidfd::outside(object, pid)),
            _ => None,
        },
        Class::Path if seen.stat.st_nlink == 0 && seen.link.ends_with(DELETED) => {
            // Blocks of 512 bytes: holes do not travel.
            let content = (seen.stat.st_blocks as u64).saturating_mul(512).min(seen.stat.st_size as u64);
            let reason =
                || format!("{content} bytes of its content would have to travel, at most {} do", ghost::CONTENT_MAX);
            (content > ghost::CONTENT_MAX).then(|| Blocker::new(codes::GHOST_SIZE, object).because(reason()))
        }
        _ => None,
    }
}

fn pipes_outside(
    pipes: &BTreeMap<(u64, u64), Ends>,
    tree: &HashSet<Pid>,
    root: Option<Pid>,
    policy: &Policy,
    buf: &mut Vec<u8>,
) -> Result<Vec<Blocker>> {
    let one_sided: Vec<(&Ends, Missing)> = pipes
        .iter()
        .filter(|(_, e)| !(e.reads && e.writes || policy.allow_external_stdio && e.all_stdio))
        .map(|(inode, e)| (e, Missing { inode: *inode, reader: e.writes, certain: !e.fifo }))
        .collect();
    if one_sided.is_empty() {
        return Ok(Vec::new());
    }
    let outsiders = Outsiders::search(tree, &one_sided.iter().map(|(_, m)| m.inode).collect(), buf)?;
    // From here nobody can tell a closed end from one in a queue: only what is seen is named.
    let held = one_sided.iter().filter(|(_, missing)| outsiders.holds(missing));
    let blocker = |ends: &Ends, missing: &Missing| {
        let along = root.and_then(|root| outsiders.taken_along(root, missing));
        let blocker = Blocker::new(codes::PIPE_OUTSIDE, &*ends.object).because(outsiders.reason(missing));
        blocker.remedy(outside::pipe_remedy(ends.all_stdio, along))
    };
    Ok(held.map(|(ends, missing)| blocker(ends, missing)).collect())
}
