//! Real programs from Debian packages, each checked by a client of its own (`tests/fixtures/programs/NAME_client.py`) before,
//! meanwhile and afterwards: dumped and restored, three times over, and moved to another host's network with its address.

mod bash;
mod beanstalkd;
mod java;
mod memcached;
mod nginx;
mod node;
mod postgres;
mod python3;
mod redis;
mod sqlite3;
mod stage;
mod workloads;

pub use stage::fixture;

/// The tests of a program.
macro_rules! program {
    ($program:expr) => {
        #[test]
        fn restored() {
            crate::programs::stage::run(&$program, crate::programs::stage::How::Restored(1));
        }

        #[test]
        fn chain() {
            crate::programs::stage::run(&$program, crate::programs::stage::How::Restored(3));
        }

        #[test]
        fn moved() {
            crate::programs::stage::run(&$program, crate::programs::stage::How::Moved);
        }

        #[test]
        fn lazily() {
            crate::programs::stage::run(&$program, crate::programs::stage::How::RestoredLazily(3));
        }

        #[test]
        fn followed() {
            crate::programs::stage::run(&$program, crate::programs::stage::How::Followed);
        }
    };
}
use program;
