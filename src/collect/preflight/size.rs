//! How much memory a tree has, found while it runs: what is mapped from files is read from those again and does not count.

use crate::image::Pid;
use crate::proc::ProcDir;
use crate::proc::smaps::Sizes;

/// Memory of a tree, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Each page once, whoever shares it: what it takes as it is.
    pub once: u64,
    /// Pages that relatives share copy-on-write once for each of them: what it can come to take.
    pub unshared: u64,
}

impl Size {
    /// Of these processes. One that ends meanwhile, or of which nobody may know, has none.
    pub fn of(processes: &[Pid]) -> Self {
        let mut buf = Vec::new();
        let mut sizes = |pid: &Pid| ProcDir::open(*pid).and_then(|dir| dir.smaps_rollup(&mut buf)).unwrap_or_default();
        processes.iter().map(&mut sizes).fold(Self::default(), |sum, of| sum.and(&of))
    }

    fn and(self, of: &Sizes) -> Self {
        let huge = of.private_hugetlb + of.shared_hugetlb;
        Self {
            once: self.once + of.pss_anon + of.pss_shmem + of.swap_pss,
            unshared: self.unshared + of.anonymous + of.pss_shmem + of.swap + huge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_pages_count_once_or_for_each() {
        let of = Sizes {
            rss: 100,
            anonymous: 40,
            pss_anon: 20,
            pss_shmem: 5,
            swap: 4,
            swap_pss: 2,
            private_hugetlb: 1000,
            ..Sizes::default()
        };
        let two = Size::default().and(&of).and(&of);
        assert_eq!(two, Size { once: 54, unshared: 2 * 1049 });
    }

    #[test]
    fn this_process_has_memory_and_nobody_has_none() {
        let own = Size::of(&[ProcDir::of_self().unwrap().pid()]);
        assert!(own.once > 0 && own.unshared >= own.once, "{own:?}");
        assert_eq!(Size::of(&[Pid(i32::MAX)]), Size::default());
    }
}
