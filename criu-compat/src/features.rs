//! Features of `check --feature`, by CRIU's names. Callers leave out what is answered no, so yes means that this program does
//! with it what CRIU does.

use migrate_engine::kernel::{self, Probe};

/// What a feature depends on.
#[derive(Debug, Clone, Copy)]
enum Needs {
    /// The engine has it on every kernel that it runs on.
    Nothing,
    /// The kernel has all of these.
    All(&'static [Probe]),
    /// The kernel has one of these.
    Any(&'static [Probe]),
    /// The kernel is of this release or a later one.
    Since(u32, u32),
    /// We do not do it.
    Never,
}

use Needs::{All, Any, Never, Nothing, Since};

const FEATURES: &[(&str, Needs)] = &[
    ("mem_dirty_track", Any(&[Probe::WpAsync, Probe::SoftDirty])),
    ("aio_remap", Never),
    ("timerfd", Nothing),
    ("tun", Never),
    ("tun_ns", Never),
    ("userns", All(&[Probe::UserNamespace])),
    ("fdinfo_lock", Nothing),
    ("mnt_id", Nothing),
    ("seccomp_suspend", All(&[Probe::SuspendSeccomp])),
    ("seccomp_filters", All(&[Probe::SuspendSeccomp])),
    ("loginuid", Nothing),
    ("cgroupns", Never),
    ("autofs", Never),
    ("tcp_half_closed", All(&[Probe::TcpRepair])),
    // 32-bit programs.
    ("compat_cr", Never),
    // Both are about the action lazy-pages.
    ("uffd", Never),
    ("uffd-noncoop", Never),
    ("can_map_vdso", All(&[Probe::MapVdso])),
    // Trees with several network namespaces, and those of their own; links in them.
    ("sk_ns", Never),
    ("nsid", Never),
    ("link_nsid", Never),
    ("external_net_ns", Never),
    ("newifindex", Never),
    // UNIX sockets that are bound over a mount.
    ("sk_unix_file", Never),
    ("net_diag_raw", Never),
    ("kcmp_epoll", All(&[Probe::Kcmp])),
    ("timens", All(&[Probe::TimeNamespace])),
    ("clone3_set_tid", All(&[Probe::SetTid])),
    // Rules of a network namespace, and the network lock by them: ours is in the sockets.
    ("nftables", Never),
    ("network_lock_nftables", Never),
    ("has_ipt_legacy", Never),
    // An option of the RPC.
    ("pidfd_store", Never),
    ("ns_pid", Never),
    ("apparmor_stacking", Never),
    ("move_mount_set_group", Since(5, 15)),
    ("sockopt_buf_lock", Since(5, 14)),
    ("memfd_hugetlb", Nothing),
    ("openat2", Nothing),
    ("get_rseq_conf", All(&[Probe::Rseq])),
    ("ipv6_freebind", Nothing),
    ("pagemap_scan", All(&[Probe::PagemapScan])),
    ("pagemap_scan_guard_pages", All(&[Probe::PagemapScan, Probe::GuardPages])),
    ("timer_cr_ids", All(&[Probe::TimerIds])),
    ("overlayfs_maps", Nothing),
    // Hardware breakpoints, by which it steps over system calls: we do not need them.
    ("breakpoints", Never),
];

/// Whether it works here; `None`: no feature has this name.
pub fn works(name: &str) -> Option<bool> {
    let (_, needs) = FEATURES.iter().find(|(known, _)| *known == name)?;
    Some(match needs {
        Nothing => true,
        All(probes) => probes.iter().all(|probe| probe.works()),
        Any(probes) => probes.iter().any(|probe| probe.works()),
        Since(major, minor) => kernel::is_at_least(*major, *minor),
        Never => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_there_once_and_answers_as_the_kernel_does() {
        let names: std::collections::BTreeSet<_> = FEATURES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), FEATURES.len());
        assert_eq!(works("clone3_set_tid"), Some(Probe::SetTid.works()));
        assert_eq!(works("mem_dirty_track"), Some(Probe::WpAsync.works() || Probe::SoftDirty.works()));
        assert_eq!((works("timerfd"), works("compat_cr"), works("list")), (Some(true), Some(false), None));
    }
}
