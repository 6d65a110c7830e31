//! User namespaces.

use serde::{Deserialize, Serialize};

/// Id maps of a user namespace, as `/proc/PID/uid_map` shows them to its parent namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserNs {
    /// Users.
    pub uid_map: Vec<IdMap>,
    /// Groups.
    pub gid_map: Vec<IdMap>,
    /// `setgroups` is denied.
    pub setgroups_denied: bool,
    /// Owner of the namespace: user id in the parent namespace.
    pub owner_uid: u32,
}

/// One line of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}
