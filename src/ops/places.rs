//! Where this program keeps its files (the table in cli.md): for root in /etc, /var/lib and /run, for a user in the XDG
//! base directories.

use std::env;
use std::path::PathBuf;

/// Directories and files of this user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Key and certificate of this host or user; mode 0700.
    pub keys: PathBuf,
    /// Who may connect.
    pub peers: PathBuf,
    /// Journals, reports, logs: survives a reboot.
    pub state: PathBuf,
    /// Sockets and trackers: does not survive one.
    pub run: PathBuf,
}

impl Places {
    /// Of the user this program runs as; all below the directory that `MIGRATE_PLACES` names, if it does (several hosts
    /// on one machine, as in tests).
    pub fn here() -> Self {
        if let Some(dir) = env::var_os("MIGRATE_PLACES").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
            return Self {
                keys: dir.join("keys"),
                peers: dir.join("peers"),
                state: dir.join("state"),
                run: dir.join("run"),
            };
        }
        if nix::unistd::geteuid().is_root() {
            Self::of_root()
        } else {
            Self::of_user(|name| env::var_os(name).map(PathBuf::from))
        }
    }

    /// Directories of hooks, one for each point; beside the file of peers.
    pub fn hooks(&self) -> PathBuf {
        self.peers.with_file_name("hooks.d")
    }

    fn of_root() -> Self {
        Self {
            keys: "/etc/migrate/keys".into(),
            peers: "/etc/migrate/peers".into(),
            state: "/var/lib/migrate".into(),
            run: "/run/migrate".into(),
        }
    }

    fn of_user(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let home = absolute("HOME").unwrap_or_else(|| "/".into());
        let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("migrate");
        let state = absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("migrate");
        // Without a run-time directory the state directory is the private place there is.
        let run = absolute("XDG_RUNTIME_DIR").map_or_else(|| state.join("run"), |path| path.join("migrate"));
        Self { keys: config.join("keys"), peers: config.join("peers"), state, run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_places_of_their_own() {
        let set = |name: &str| match name {
            "HOME" => Some("/home/u".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            "XDG_STATE_HOME" => Some("not/absolute".into()),
            _ => None,
        };
        let places = Places::of_user(set);
        assert_eq!(places.keys, PathBuf::from("/home/u/.config/migrate/keys"));
        assert_eq!(places.state, PathBuf::from("/home/u/.local/state/migrate"));
        assert_eq!(places.run, PathBuf::from("/run/user/7/migrate"));
        assert_eq!(Places::of_root().hooks(), PathBuf::from("/etc/migrate/hooks.d"));
        assert_eq!(Places::of_root().peers, PathBuf::from("/etc/migrate/peers"));
    }
}
