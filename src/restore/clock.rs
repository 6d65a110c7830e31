//! Clocks: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where the target saw them last, in a time namespace where this
//! host's clocks say something else.

use super::skeleton::Skeletons;
use super::{Error, Result};
use crate::blocker::{Blocker, codes};
use crate::image::Model;
use crate::image::host::Host;
use crate::kernel::Probe;
use crate::proc::ProcDir;
use crate::proc::timens::{self, Offsets};
use crate::sys::Errno;
use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use std::time::{Duration, Instant};

const NS: i64 = 1_000_000_000;
/// CAP_SYS_ADMIN, which a time namespace takes.
const SYS_ADMIN: u64 = 1 << 21;
/// Below this the clocks count as the same: nobody makes a namespace for it.
const SAME_NS: i64 = 1_000_000;
/// Longest wait for the clock of a tree that was made ahead of time.
const LONGEST_WAIT_NS: i64 = 50_000_000;

/// The offsets that the tree's time namespace has to have; `None` where those we have ourselves will do.
///
/// On the boot on which the tree was collected its clocks simply run on, the time in the image included. Elsewhere they go
/// on from the moment of the freeze, never before it. `here`: the clocks of this host as somebody in its initial time
/// namespace sees them. `seen`: the tree's offsets on the host and boot it was collected on.
fn offsets(image: &Host, seen: (i64, i64), here: &Host, own: Offsets) -> Option<Offsets> {
    if image.boot_id == here.boot_id {
        let seen = Offsets { monotonic_ns: seen.0, boottime_ns: seen.1 };
        return (seen != own).then_some(seen);
    }
    let slept = (here.realtime_ns - image.realtime_ns).max(0);
    let wanted = Offsets {
        monotonic_ns: image.monotonic_ns - here.monotonic_ns,
        boottime_ns: image.boottime_ns + slept - here.boottime_ns,
    };
    let far = |wanted: i64, own: i64| (wanted - own).abs() > SAME_NS;
    let is_far = far(wanted.monotonic_ns, own.monotonic_ns) || far(wanted.boottime_ns, own.boottime_ns);
    is_far.then_some(wanted)
}

/// The target's clocks, where they would go back here: this host has run for less long, and a time namespace cannot be made.
pub fn goes_back(model: &Model) -> Option<Blocker> {
    let here = crate::collect::host::collect(Some((0, 0))).ok()?;
    let own = timens::own();
    let seen = model.clock_offsets(model.root().namespaces.time);
    let back = steps_back_ns(offsets(&model.host, seen, &here, own)?, own);
    let stays = back <= SAME_NS || super::creds::Own::read().caps & SYS_ADMIN != 0 && Probe::TimeNamespace.works();
    let reason = format!("CLOCK_MONOTONIC or CLOCK_BOOTTIME would go back by {} s", back / NS);
    (!stays).then(|| Blocker::new(codes::CLOCK_BACK, format!("clocks of process {}", model.root().pid)).because(reason))
}

/// By how much the clocks go back where they are left as we have them, nanoseconds.
fn steps_back_ns(wanted: Offsets, own: Offsets) -> i64 {
    (wanted.monotonic_ns - own.monotonic_ns).max(wanted.boottime_ns - own.boottime_ns)
}

/// How far the clock of a tree that was made ahead of time is behind what the target saw last, nanoseconds. As a rule it is
/// not: it was set by a message that took less than the pause has by now.
fn behind_ns(model: &Model, skeletons: &Skeletons) -> i64 {
    let Some(offset) = skeletons.clock_offset else { return 0 };
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| model.host.monotonic_ns - (now.tv_sec() * NS + now.tv_nsec() + offset))
}

/// Whether waiting for the clock to catch up would take longer than to make the tree anew.
pub fn is_late(model: &Model, skeletons: &Skeletons) -> bool {
    behind_ns(model, skeletons) > LONGEST_WAIT_NS
}

/// Until the clock of a tree that was made ahead of time is not behind what the target saw last.
pub fn catch_up(model: &Model, skeletons: &Skeletons) {
    let behind = behind_ns(model, skeletons);
    if behind > 0 {
        tracing::debug!("the target's clock is {behind} ns behind");
        std::thread::sleep(Duration::from_nanos(behind.unsigned_abs()));
    }
}

/// Puts a task, and with it all its children to come, into a time namespace of the tree's own if one is needed. What it
/// adds to our own CLOCK_MONOTONIC, nanoseconds.
///
/// # Errors
/// The namespace is there and cannot be entered.
pub fn enter(
    model: &Model,
    read_at: Option<Instant>,
    remote: &mut Remote,
    scratch: Scratch,
    warnings: &mut Vec<String>,
) -> Result<Option<i64>> {
    let here = crate::collect::host::collect(Some((0, 0)))
        .map_err(|e| Error::Impossible { object: "clocks of this host".to_owned(), reason: e.to_string() })?;
    let own = timens::own();
    let seen = model.clock_offsets(model.root().namespaces.time);
    let Some(offsets) = offsets(&later(&model.host, read_at), seen, &here, own) else { return Ok(None) };
    let mut batch = Batch::new();
    batch.must(libc::SYS_unshare, &[CLONE_NEWTIME.into()]);
    match remote.run_all(&scratch, &batch) {
        Ok(_) => {}
        Err(crate::trace::Error::Call { errno, .. }) => {
            warnings.push(format!(
                "no time namespace can be made here ({errno}): CLOCK_MONOTONIC jumps by {} s for the target",
                (own.monotonic_ns - offsets.monotonic_ns) / NS
            ));
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    }
    let dir = ProcDir::open(remote.pid())?;
    dir.write("timens_offsets", offsets.to_text().as_bytes())?;
    let mut batch = Batch::new();
    let fd = batch.open(b"/proc/self/ns/time_for_children", libc::O_RDONLY, 0);
    batch.must(libc::SYS_setns, &[fd.into(), CLONE_NEWTIME.into()]);
    batch.close(fd);
    match remote.run_all(&scratch, &batch) {
        Ok(_) => Ok(Some(offsets.monotonic_ns - own.monotonic_ns)),
        Err(crate::trace::Error::Call { pid, errno, .. }) => Err(Error::System {
            operation: "enter a time namespace",
            object: format!("process {pid}"),
            errno: if errno == Errno::UnknownErrno { Errno::EINVAL } else { errno },
        }),
        Err(e) => Err(e.into()),
    }
}

/// The clocks of a host that runs on since they were read.
fn later(host: &Host, read_at: Option<Instant>) -> Host {
    let passed = read_at.map_or(0, |at| i64::try_from(at.elapsed().as_nanos()).unwrap_or(i64::MAX));
    Host {
        monotonic_ns: host.monotonic_ns.saturating_add(passed),
        boottime_ns: host.boottime_ns.saturating_add(passed),
        realtime_ns: host.realtime_ns.saturating_add(passed),
        ..host.clone()
    }
}

const CLONE_NEWTIME: u64 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Bytes;

    const INITIAL: Offsets = Offsets { monotonic_ns: 0, boottime_ns: 0 };
    const AHEAD: Offsets = Offsets { monotonic_ns: 1_000_000 * NS, boottime_ns: 1_000_000 * NS };

    fn host(boot: &str, monotonic_s: i64, realtime_s: i64) -> Host {
        Host {
            hostname: String::new(),
            kernel: String::new(),
            boot_id: boot.to_owned(),
            cpu_features: Vec::new(),
            xfeatures: 0,
            monotonic_ns: monotonic_s * NS,
            boottime_ns: monotonic_s * NS,
            realtime_ns: realtime_s * NS,
            vdso: Bytes::default(),
        }
    }

    #[test]
    fn same_boot_without_namespace_needs_none() {
        assert_eq!(offsets(&host("a", 100, 5000), (0, 0), &host("a", 160, 5060), INITIAL), None);
    }

    #[test]
    fn same_boot_keeps_the_offset_of_the_source() {
        let (image, here) = (host("a", 1_000_100, 5000), host("a", 160, 5060));
        let ahead = (AHEAD.monotonic_ns, AHEAD.boottime_ns);
        assert_eq!(offsets(&image, ahead, &here, INITIAL), Some(AHEAD));
        assert_eq!(offsets(&image, ahead, &here, AHEAD), None, "we are in it ourselves");
        assert_eq!(offsets(&host("a", 100, 5000), (0, 0), &here, AHEAD), Some(INITIAL), "out of ours");
    }

    #[test]
    fn another_host_goes_on_from_the_freeze() {
        for (source, here) in [(1_000_000, 50), (50, 1_000_000)] {
            for own in [INITIAL, AHEAD] {
                let image = host("b", source, 5000);
                let now = host("a", here, 5003);
                let found = offsets(&image, (7, 7), &now, own).unwrap();
                assert_eq!(now.monotonic_ns + found.monotonic_ns, image.monotonic_ns);
                assert_eq!(now.boottime_ns + found.boottime_ns, image.boottime_ns + 3 * NS);
            }
        }
    }

    #[test]
    fn a_clock_that_is_left_as_it_is_goes_back_or_not() {
        let (old, young) = (host("b", 1_000_000, 5000), host("a", 50, 5000));
        let back = |image: &Host, here: &Host| offsets(image, (0, 0), here, INITIAL).map(|w| steps_back_ns(w, INITIAL));
        assert_eq!(back(&old, &young), Some(999_950 * NS));
        assert!(back(&young, &old).unwrap() < 0);
        assert_eq!(back(&young, &young), None);
    }

    #[test]
    fn a_clock_set_back_does_not_take_boottime_back() {
        let found = offsets(&host("a", 100, 9000), (0, 0), &host("b", 50, 5000), INITIAL).unwrap();
        assert_eq!(50 * NS + found.boottime_ns, 100 * NS);
    }
}
