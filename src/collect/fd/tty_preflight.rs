//! Terminals of a tree that runs: which end outside of it, who is at the other end, and what can be done.

use super::outside::{NAMED_MAX, each_outside, taken_along};
use crate::blocker::{Blocker, codes};
use crate::collect::Result;
use crate::image::Pid;
use crate::proc::fdinfo::Detail;
use nix::sys::stat::{major, makedev, minor};
use std::collections::{BTreeMap, HashMap, HashSet};

/// `/dev/ptmx`.
const PTMX: u64 = makedev(5, 2);
/// `/dev/tty`.
const TTY: u64 = makedev(5, 0);

/// Who outside the tree has which side.
#[derive(Debug, Default)]
pub struct Holders {
    /// Masters by number.
    pub masters: HashMap<u32, Vec<(Pid, String)>>,
    /// Slaves by device number.
    pub slaves: HashMap<u64, Vec<(Pid, String)>>,
}

/// Looks through the descriptors outside the tree.
pub fn holders(tree: &HashSet<Pid>, buf: &mut Vec<u8>) -> Result<Holders> {
    let mut found = Holders::default();
    each_outside(tree, |dir, fd, stat| {
        if stat.st_mode & libc::S_IFMT != libc::S_IFCHR {
            return;
        }
        let list = if stat.st_rdev == PTMX {
            let Ok(Detail::PtyMaster { index }) = dir.fdinfo(fd, buf).map(|info| info.detail) else { return };
            found.masters.entry(index).or_default()
        } else if (136..=143).contains(&major(stat.st_rdev)) {
            found.slaves.entry(stat.st_rdev).or_default()
        } else {
            return;
        };
        if list.last().is_none_or(|(last, _)| *last != dir.pid()) {
            let name = dir.read_into("comm", buf).map(|c| String::from_utf8_lossy(c).trim().to_owned());
            list.push((dir.pid(), name.unwrap_or_default()));
        }
    })?;
    Ok(found)
}

/// Terminals that the tree has open, as far as `/proc` shows them.
#[derive(Debug, Default)]
pub struct Terminals {
    masters: HashSet<u32>,
    /// By device: the first descriptor met, and how many more.
    slaves: BTreeMap<u64, (String, u32)>,
}

impl Terminals {
    /// Notes one descriptor. `controlling`: the controlling terminal of its process, which `/dev/tty` stands for.
    pub fn note(&mut self, object: &str, link: &[u8], rdev: u64, detail: &Detail, controlling: u64) {
        if rdev == PTMX {
            if let Detail::PtyMaster { index } = detail {
                self.masters.insert(*index);
            }
            return;
        }
        // A slave that was hung up is nobody's any more.
        if link.ends_with(super::views::DELETED) {
            return;
        }
        let device = if rdev == TTY && controlling != 0 { controlling } else { rdev };
        self.slaves.entry(device).or_insert_with(|| (object.to_owned(), 0)).1 += 1;
    }

    /// One blocker for each terminal that ends outside.
    pub fn outside(self, tree: &HashSet<Pid>, root: Option<Pid>, buf: &mut Vec<u8>) -> Result<Vec<Blocker>> {
        let inside =
            |device: &u64| (136..=143).contains(&major(*device)) && self.masters.contains(&(minor(*device) as u32));
        let outer: Vec<_> = self.slaves.iter().filter(|(device, _)| !inside(device)).collect();
        if outer.is_empty() {
            return Ok(Vec::new());
        }
        let holders = holders(tree, buf)?;
        Ok(outer
            .into_iter()
            .map(|(device, (object, count))| blocker(object, *count, *device, &holders, root))
            .collect())
    }
}

/// Names the terminal, who is at the other end, and what can be done.
pub fn blocker(object: &str, count: u32, device: u64, holders: &Holders, root: Option<Pid>) -> Blocker {
    let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    let blocker = Blocker::new(codes::TTY_OUTSIDE, format!("{object}{more}"));
    if !(136..=143).contains(&major(device)) {
        let reason = "a console or a serial line of this host".to_owned();
        return blocker.because(reason).remedy("--stdio attach, --stdio null or --stdio log");
    }
    let index = minor(device) as u32;
    let all = holders.masters.get(&index).map_or(&[][..], Vec::as_slice);
    let names: Vec<String> = all.iter().take(NAMED_MAX).map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    let reason = match names.is_empty() {
        true => format!("the other end of /dev/pts/{index} is in a process that cannot be seen from here"),
        false => format!("the other end of /dev/pts/{index} is held by {}", names.join(", ")),
    };
    let along = root.zip(all.first()).and_then(|(root, (holder, _))| taken_along(root, *holder));
    blocker.because(reason).remedy(remedy(along))
}

/// The choices, ready to paste.
pub fn remedy(along: Option<(Pid, String)>) -> String {
    let options = "--stdio attach, --stdio null or --stdio log";
    match along {
        Some((pid, name)) => format!("{options}; or take all of it along: target {pid} ({name})"),
        None => options.to_owned(),
    }
}
