//! Clocks: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where the target saw them last, in a time namespace where this
//! host's clocks say something else.

use super::skeleton::Skeletons;
use super::{Error, Result};
use crate::image::Model;
use crate::image::host::Host;
use crate::proc::ProcDir;
use crate::sys::Errno;

use crate::trace::Batch;
use crate::trace::remote::{Remote, Scratch};
use std::time::{Duration, Instant};

const NS: i64 = 1_000_000_000;
/// Below this the clocks count as the same: nobody makes a namespace for it.
const SAME_NS: i64 = 1_000_000;
/// Longest wait for the clock of a tree that was made ahead of time.
const LONGEST_WAIT_NS: i64 = 50_000_000;

/// What has to be added to this host's clocks, nanoseconds; `None` where they do as they are.
///
/// On the host and boot where the tree was collected its clock simply runs on, the time in the image included, unless it
/// had a time namespace. Elsewhere it goes on from the moment of the freeze, never before it.
pub fn offsets(image: &Host, here: &Host) -> Option<(i64, i64)> {
    let slept = (here.realtime_ns - image.realtime_ns).max(0);
    let same_boot = image.boot_id == here.boot_id;
    // On the same boot the difference of what the target saw and what the host shows at equal real time is its offset.
    let passed = if same_boot { (here.monotonic_ns - image.host_monotonic_ns).max(0) } else { 0 };
    let monotonic = image.monotonic_ns + passed - here.monotonic_ns;
    let boottime = image.boottime_ns + if same_boot { passed } else { slept } - here.boottime_ns;
    let far = monotonic.abs() > SAME_NS || (!same_boot && boottime.abs() > SAME_NS);
    far.then_some((monotonic, boottime))
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
/// adds to CLOCK_MONOTONIC, nanoseconds.
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
    let here = crate::collect::host::collect(None)
        .map_err(|e| Error::Impossible { object: "clocks of this host".to_owned(), reason: e.to_string() })?;
    let Some((monotonic, boottime)) = offsets(&later(&model.host, read_at), &here) else { return Ok(None) };
    let mut batch = Batch::new();
    batch.must(libc::SYS_unshare, &[CLONE_NEWTIME.into()]);
    match remote.run_all(&scratch, &batch) {
        Ok(_) => {}
        Err(crate::trace::Error::Call { errno, .. }) => {
            warnings.push(format!(
                "no time namespace can be made here ({errno}): CLOCK_MONOTONIC jumps by {} s for the target",
                -monotonic / NS
            ));
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    }
    let dir = ProcDir::open(remote.pid())?;
    dir.write("timens_offsets", lines(monotonic, boottime).as_bytes())?;
    let mut batch = Batch::new();
    let fd = batch.open(b"/proc/self/ns/time_for_children", libc::O_RDONLY, 0);
    batch.must(libc::SYS_setns, &[fd.into(), CLONE_NEWTIME.into()]);
    batch.close(fd);
    match remote.run_all(&scratch, &batch) {
        Ok(_) => Ok(Some(monotonic)),
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
        host_monotonic_ns: host.host_monotonic_ns.saturating_add(passed),
        monotonic_ns: host.monotonic_ns.saturating_add(passed),
        boottime_ns: host.boottime_ns.saturating_add(passed),
        realtime_ns: host.realtime_ns.saturating_add(passed),
        ..host.clone()
    }
}

const CLONE_NEWTIME: u64 = 0x80;

/// As `/proc/PID/timens_offsets` takes them: the nanoseconds are never negative.
fn lines(monotonic: i64, boottime: i64) -> String {
    let line = |clock: &str, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(NS), ns.rem_euclid(NS));
    line("monotonic", monotonic) + &line("boottime", boottime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Bytes;

    fn host(boot: &str, host_monotonic_s: i64, seen_s: i64, realtime_s: i64) -> Host {
        Host {
            hostname: String::new(),
            kernel: String::new(),
            boot_id: boot.to_owned(),
            cpu_features: Vec::new(),
            xfeatures: 0,
            host_monotonic_ns: host_monotonic_s * NS,
            monotonic_ns: seen_s * NS,
            boottime_ns: seen_s * NS,
            realtime_ns: realtime_s * NS,
            vdso: Bytes::default(),
        }
    }

    #[test]
    fn same_boot_without_namespace_needs_none() {
        assert_eq!(offsets(&host("a", 100, 100, 5000), &host("a", 160, 160, 5060)), None);
    }

    #[test]
    fn same_boot_keeps_the_offset_of_the_source() {
        let (monotonic, _) = offsets(&host("a", 100, 1_000_100, 5000), &host("a", 160, 160, 5060)).unwrap();
        assert_eq!(monotonic, 1_000_000 * NS);
    }

    #[test]
    fn another_host_goes_on_from_the_freeze() {
        for (source, here) in [(1_000_000, 50), (50, 1_000_000)] {
            let image = host("a", source, source, 5000);
            let now = host("b", here, here, 5003);
            let (monotonic, boottime) = offsets(&image, &now).unwrap();
            assert_eq!(now.monotonic_ns + monotonic, image.monotonic_ns);
            assert_eq!(now.boottime_ns + boottime, image.boottime_ns + 3 * NS);
        }
    }

    #[test]
    fn a_clock_set_back_does_not_take_boottime_back() {
        let (_, boottime) = offsets(&host("a", 100, 100, 9000), &host("b", 50, 50, 5000)).unwrap();
        assert_eq!(50 * NS + boottime, 100 * NS);
    }

    #[test]
    fn negative_offsets_have_positive_nanoseconds() {
        assert_eq!(lines(-1, NS + 5), "monotonic -1 999999999\nboottime 1 5\n");
    }
}
