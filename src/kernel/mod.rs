//! What this kernel, and this user on it, can do.
//!
//! Each [`Probe`] tries the thing itself where that has no effect, rather than to compare version numbers: kernels are
//! patched, configured and confined. It runs when it is first asked for, once; [`Answer`]s are kept. A probe that needs a
//! process of its own makes one and waits for exactly that one, so ask before a thread waits for any child.
//!
//! For tests of what a lesser kernel would do, `MIGRATE_MASK_PROBES=wp-async,pagemap-scan` makes probes answer no.

mod facts;
mod run;
mod table;

pub use facts::{Facts, facts, is_at_least};
pub use table::{Need, Probe};

use std::{collections::BTreeSet, sync::OnceLock};

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Yes,
    /// It does not, and why.
    No(String),
    /// Switched off by `MIGRATE_MASK_PROBES`.
    Masked,
}

impl Answer {
    /// It works.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }
}

/// The variable that names probes which are to answer no, separated by commas.
pub const MASK: &str = "MIGRATE_MASK_PROBES";

/// Names in [`MASK`], as they were when first asked for.
fn mask() -> &'static BTreeSet<String> {
    static NAMES: OnceLock<BTreeSet<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let value = std::env::var(MASK).unwrap_or_default();
        value.split(',').map(|name| name.trim().replace('_', "-")).filter(|name| !name.is_empty()).collect()
    })
}

/// Names in [`MASK`] that no probe has: a test that masks nothing proves nothing.
pub fn unknown_masks() -> Vec<String> {
    mask().iter().filter(|name| Probe::ALL.iter().all(|probe| probe.name() != **name)).cloned().collect()
}

impl Probe {
    /// What this probe found; it runs now if it has not yet.
    pub fn answer(self) -> &'static Answer {
        static ANSWERS: [OnceLock<Answer>; Probe::ALL.len()] = [const { OnceLock::new() }; Probe::ALL.len()];
        ANSWERS[self as usize]
            .get_or_init(|| if mask().contains(self.name()) { Answer::Masked } else { run::run(self) })
    }

    /// It works here.
    pub fn works(self) -> bool {
        self.answer().is_yes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_positions_right() {
        let names: BTreeSet<&str> = Probe::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Probe::ALL.len());
        for (at, probe) in Probe::ALL.iter().enumerate() {
            assert_eq!(*probe as usize, at, "{probe:?}");
            assert!(probe.name().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            assert!(!probe.purpose().is_empty() && !probe.without().is_empty());
        }
    }

    #[test]
    fn every_probe_answers_and_leaves_no_child() {
        let dir = crate::proc::ProcDir::of_self().unwrap();
        for probe in Probe::ALL {
            let answer = probe.answer();
            println!("{:24} {answer:?}", probe.name());
            assert!(!matches!(answer, Answer::No(why) if why.is_empty()), "{probe:?}");
        }
        let tid = nix::unistd::gettid().as_raw();
        let text = std::fs::read_to_string(dir.file(&format!("task/{tid}/children"))).unwrap_or_default();
        assert_eq!(text.trim(), "", "children of this thread");
    }

    #[test]
    fn probes_agree_with_what_the_kernel_says_elsewhere() {
        let root = nix::unistd::geteuid().is_root();
        if root && facts().initial_user_ns {
            assert!(Probe::Ptrace.works(), "{:?}", Probe::Ptrace.answer());
        }
        // Asynchronous write protection came with PAGEMAP_SCAN in one release.
        if Probe::WpAsync.works() {
            assert!(Probe::PagemapScan.works());
        }
        assert!(Probe::ProcessVm.works(), "{:?}", Probe::ProcessVm.answer());
        assert!(facts().pid_max > 0 && facts().memory.total > 0);
    }
}
