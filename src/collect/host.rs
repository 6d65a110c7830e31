//! Facts of this host.

use super::Result;
use crate::image::Bytes;
use crate::image::host::Host;
use crate::proc::timens;
use std::sync::OnceLock;

/// What stays as it is while this program runs: reading it takes a millisecond.
struct Fixed {
    boot_id: String,
    cpu_features: Vec<String>,
    vdso: Vec<u8>,
}

fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| Fixed {
        boot_id: crate::proc::sys::boot_id().unwrap_or_default(),
        cpu_features: crate::proc::sys::cpu_features().unwrap_or_default(),
        vdso: crate::arch::vdso::own_text().to_vec(),
    })
}

/// Reads what takes time, so that it need not be done while a target is stopped.
pub fn prepare() {
    fixed();
}

/// This host, now, with CLOCK_MONOTONIC and CLOCK_BOOTTIME as they are seen with these offsets; `None`: as we see them.
pub fn collect(seen: Option<(i64, i64)>) -> Result<Host> {
    let uname = nix::sys::utsname::uname().ok();
    let name = |f: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|u| f(u).to_string_lossy().into_owned()).unwrap_or_default()
    };
    let clock = |id| {
        let now = nix::time::clock_gettime(id).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
        now.tv_sec() * 1_000_000_000 + now.tv_nsec()
    };
    let own = timens::own();
    let (monotonic, boottime) = seen.unwrap_or((own.monotonic_ns, own.boottime_ns));
    Ok(Host {
        hostname: name(|u| u.nodename()),
        kernel: name(|u| u.release()),
        boot_id: fixed().boot_id.clone(),
        cpu_features: fixed().cpu_features.clone(),
        xfeatures: crate::arch::xfeatures(),
        monotonic_ns: clock(nix::time::ClockId::CLOCK_MONOTONIC) - own.monotonic_ns + monotonic,
        boottime_ns: clock(nix::time::ClockId::CLOCK_BOOTTIME) - own.boottime_ns + boottime,
        realtime_ns: clock(nix::time::ClockId::CLOCK_REALTIME),
        vdso: Bytes(fixed().vdso.clone()),
    })
}
