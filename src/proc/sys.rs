//! `/proc/sys` and other files of the whole system: limits and identities of this host.

use super::{Error, ProcDir, Result, Syntax, scan};
use crate::image::numa::NODES;
use std::collections::BTreeSet;

fn read(file: &str) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|source| Error::Io { operation: "read", file: file.into(), source })
}

fn parsed<T>(file: &str, parse: impl FnOnce(&[u8]) -> std::result::Result<T, Syntax>) -> Result<T> {
    parse(&read(file)?).map_err(|syntax| Error::Syntax { file: file.into(), syntax })
}

/// A value of `/proc/sys` as text, for example `kernel/random/boot_id`.
///
/// # Errors
/// The file cannot be read.
pub fn text(name: &str) -> Result<String> {
    let bytes = read(&format!("/proc/sys/{name}"))?;
    Ok(String::from_utf8_lossy(scan::trim(&bytes)).into_owned())
}

/// A value of `/proc/sys` that is one number, for example `kernel/pid_max`.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn number(name: &str) -> Result<u64> {
    parsed(&format!("/proc/sys/{name}"), |text| {
        scan::dec(scan::trim(text)).ok_or_else(|| Syntax::new(1, "expected a number", text))
    })
}

/// As [`number`], but `None` where this kernel has no such file.
///
/// # Errors
/// As [`number`].
pub fn number_if_any(name: &str) -> Result<Option<u64>> {
    match number(name) {
        Err(e) if e.is_absent() => Ok(None),
        other => other.map(Some),
    }
}

/// Numbers of the NUMA nodes that have memory and that this program may take it from; `None` where the kernel knows no nodes.
///
/// # Errors
/// A file cannot be read, or holds something else than a list.
pub fn memory_nodes() -> Result<Option<BTreeSet<u32>>> {
    const HAVE_MEMORY: &str = "/sys/devices/system/node/has_memory";
    const STATUS: &str = "/proc/self/status";
    let list = |text: &[u8]| {
        scan::number_list(scan::trim(text), NODES).ok_or_else(|| Syntax::new(1, "expected a list of nodes", text))
    };
    match parsed(HAVE_MEMORY, list) {
        Err(e) if e.is_absent() => Ok(None),
        have_memory => {
            let allowed = ProcDir::of_self()?.status(&mut Vec::new())?.mems_allowed_list;
            let allowed = list(allowed.as_bytes()).map_err(|syntax| Error::Syntax { file: STATUS.into(), syntax })?;
            Ok(Some(have_memory?.intersection(&allowed).copied().collect()))
        }
    }
}

/// Identity of this boot.
///
/// # Errors
/// As [`text`].
pub fn boot_id() -> Result<String> {
    text("kernel/random/boot_id")
}

/// One more than the largest process id.
///
/// # Errors
/// As [`number`].
pub fn pid_max() -> Result<u64> {
    number("kernel/pid_max")
}

/// Largest capacity of a pipe without CAP_SYS_RESOURCE, bytes.
///
/// # Errors
/// As [`number`].
pub fn pipe_max_size() -> Result<u64> {
    number("fs/pipe-max-size")
}

/// Number of the last capability this kernel knows.
///
/// # Errors
/// As [`number`].
pub fn cap_last_cap() -> Result<u64> {
    number("kernel/cap_last_cap")
}

/// Mappings a process may have.
///
/// # Errors
/// As [`number`].
pub fn max_map_count() -> Result<u64> {
    number("vm/max_map_count")
}

/// Whether userfaultfd without privilege also handles faults of the kernel; `None` before 5.2.
///
/// # Errors
/// As [`number`].
pub fn unprivileged_userfaultfd() -> Result<Option<bool>> {
    Ok(number_if_any("vm/unprivileged_userfaultfd")?.map(|n| n != 0))
}

/// Yama's `ptrace_scope`; `None` where Yama is not built in.
///
/// # Errors
/// As [`number`].
pub fn yama_ptrace_scope() -> Result<Option<u64>> {
    number_if_any("kernel/yama/ptrace_scope")
}

/// Memory of the host, bytes (`/proc/meminfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemInfo {
    /// `MemTotal`.
    pub total: u64,
    /// `MemAvailable`: what new programs can have without swapping.
    pub available: u64,
    /// `SwapFree`.
    pub swap_free: u64,
    /// `HugePages_Free` times `Hugepagesize`.
    pub hugetlb_free: u64,
}

/// Reads `/proc/meminfo`.
///
/// # Errors
/// A known line without a number, or no `MemTotal`.
pub fn parse_meminfo(text: &[u8]) -> std::result::Result<MemInfo, Syntax> {
    let mut info = MemInfo::default();
    let (mut pages, mut size) = (0u64, 0u64);
    for (number, line) in scan::lines(text) {
        let Some((key, value)) = scan::cut(line, b':') else { continue };
        let slot = match key {
            b"MemTotal" => &mut info.total,
            b"MemAvailable" => &mut info.available,
            b"SwapFree" => &mut info.swap_free,
            b"HugePages_Free" => &mut pages,
            b"Hugepagesize" => &mut size,
            _ => continue,
        };
        let word = scan::words(value).next().and_then(scan::dec);
        let unit = if key == b"HugePages_Free" { 1 } else { 1024 };
        let value = word.and_then(|n| n.checked_mul(unit));
        *slot = value.ok_or_else(|| Syntax::new(number, "expected a number of kB", line))?;
    }
    info.hugetlb_free = pages.saturating_mul(size);
    if info.total == 0 { Err(Syntax::new(0, "expected `MemTotal:`", text)) } else { Ok(info) }
}

/// Memory of this host.
///
/// # Errors
/// `/proc/meminfo` cannot be read or understood.
pub fn meminfo() -> Result<MemInfo> {
    parsed("/proc/meminfo", parse_meminfo)
}

/// Features of the first processor in `/proc/cpuinfo` (`flags`, or `Features` on arm64), sorted, each once.
pub fn parse_cpu_features(text: &[u8]) -> Vec<String> {
    let found = scan::lines(text).find_map(|(_, line)| {
        let (key, value) = scan::cut(line, b':')?;
        matches!(scan::trim(key), b"flags" | b"Features").then_some(value)
    });
    let words = scan::words(found.unwrap_or(b""));
    let mut features: Vec<String> = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    features.sort_unstable();
    features.dedup();
    features
}

/// Features of this host's processor.
///
/// # Errors
/// `/proc/cpuinfo` cannot be read.
pub fn cpu_features() -> Result<Vec<String>> {
    Ok(parse_cpu_features(&read("/proc/cpuinfo")?))
}

/// Does the kernel use huge pages for every mapping that does not refuse them (transparent huge pages, "always")?
pub fn huge_pages_everywhere() -> bool {
    std::fs::read("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| text.starts_with(b"[always]"))
}

/// Processes and threads made since boot (`processes` in `/proc/stat`): unchanged means that nobody forked.
///
/// # Errors
/// `/proc/stat` cannot be read or has no such line.
pub fn forks_since_boot() -> Result<u64> {
    parsed("/proc/stat", |text| {
        let line = scan::lines(text).find_map(|(_, line)| line.strip_prefix(b"processes "));
        line.and_then(|n| scan::dec(scan::trim(n))).ok_or_else(|| Syntax::new(0, "expected `processes N`", text))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::proc) const MEMINFO: &[u8] =
        b"MemTotal:       24669508 kB\nMemAvailable:   2000 kB\nSwapFree: 0 kB\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";

    #[test]
    fn values_of_this_host() {
        assert!(pid_max().unwrap() >= 301);
        assert!(pipe_max_size().unwrap() >= 4096);
        assert!((10..64).contains(&cap_last_cap().unwrap()));
        assert_eq!(boot_id().unwrap().len(), 36);
        assert!(max_map_count().unwrap() > 0);
        unprivileged_userfaultfd().unwrap();
        yama_ptrace_scope().unwrap();
        assert_eq!(number_if_any("kernel/no_such_value").unwrap(), None);
        assert!(meminfo().unwrap().available > 0);
        assert!(!cpu_features().unwrap().is_empty());
        assert!(forks_since_boot().unwrap() > 0);
    }

    #[test]
    fn memory_and_features() {
        let info = parse_meminfo(MEMINFO).unwrap();
        assert_eq!((info.total, info.available, info.hugetlb_free), (24_669_508 << 10, 2000 << 10, 6 << 20));
        assert!(parse_meminfo(b"MemTotal: x kB\n").is_err());
        assert_eq!(parse_cpu_features(b"processor\t: 0\nflags\t\t: sse fpu sse\n\nflags\t: x\n"), ["fpu", "sse"]);
    }
}
