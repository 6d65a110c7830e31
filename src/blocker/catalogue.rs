//! The tables of all codes.

mod descriptors;
mod files;
mod system;
mod tasks;

use super::Entry;

/// Makes a constant and an entry of each row.
macro_rules! table {
    ($table:ident: $($name:ident = $number:literal, $title:literal,
        object: $object:literal, why: $why:literal, remedy: $remedy:literal, kernel: $kernel:literal;)*) => {
        $(
            #[doc = $title]
            pub const $name: $crate::blocker::Code = $crate::blocker::Code($number);
        )*
        pub(super) const $table: &[$crate::blocker::Entry] = &[$($crate::blocker::Entry {
            code: $name, name: stringify!($name), title: $title, object: $object, why: $why, remedy: $remedy, kernel: $kernel,
        }),*];
    };
}
use table;

/// The constants, one for each code.
pub mod codes {
    pub use super::descriptors::*;
    pub use super::files::*;
    pub use super::system::*;
    pub use super::tasks::*;
}

/// Numbers and names of the groups.
pub const GROUPS: [(u16, &str); 11] = [
    (1, "tasks"),
    (2, "memory"),
    (3, "descriptors"),
    (4, "sockets"),
    (5, "files and mounts"),
    (6, "namespaces and cgroups"),
    (7, "CPU and kernel"),
    (8, "privilege"),
    (9, "peer and transport"),
    (10, "image"),
    (11, "supervisor and container"),
];

/// The entries, one table a group.
pub(super) const TABLES: [&[Entry]; 11] = [
    tasks::TASKS,
    tasks::MEMORY,
    descriptors::DESCRIPTORS,
    descriptors::SOCKETS,
    files::FILES,
    files::NAMESPACES,
    system::KERNEL,
    system::PRIVILEGE,
    system::PEER,
    files::IMAGE,
    system::SUPERVISOR,
];
