//! `migrate keygen`: the key with which this host or user shows who it is.

use super::options::KeygenOptions;
use super::places::Places;
use crate::failure::{Failure, Result};
use crate::transport::{TransportError, keys};
use std::path::PathBuf;

/// A key that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The line for the other host's peers file: fingerprint and name.
    pub line: String,
    /// Where key and certificate lie.
    pub dir: PathBuf,
    /// The peers file of this host, where the other host's line belongs.
    pub peers: PathBuf,
}

/// Makes the key of this host (root) or user.
pub fn run(options: &KeygenOptions) -> Result<Made> {
    make(options, &Places::here())
}

fn make(options: &KeygenOptions, places: &Places) -> Result<Made> {
    let name = options.name.clone().unwrap_or_else(hostname);
    if name.is_empty()
        || name.contains(char::is_whitespace)
        || name.contains(['=', '#'])
        || name.chars().any(char::is_control)
    {
        return Err(Failure::new(format!("{name:?} cannot be a name in a peers file"))
            .hint("choose one without blanks, = and #: --name NAME")
            .kind(crate::failure::FailureKind::Usage));
    }
    let identity = keys::generate(&places.keys, &name, options.force).map_err(|error| {
        let exists = matches!(&error, TransportError::File { operation: "overwrite", .. });
        let failure = Failure::of("no key was made", &error);
        if exists { failure.hint("peers know the key that is there; --force replaces it") } else { failure }
    })?;
    Ok(Made {
        line: format!("{} {name}", identity.fingerprint()),
        dir: places.keys.clone(),
        peers: places.peers.clone(),
    })
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|_| "unnamed".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::peers::Peers;

    fn places(dir: &std::path::Path) -> Places {
        Places { keys: dir.join("keys"), peers: dir.join("peers"), state: dir.join("state"), run: dir.join("run") }
    }

    #[test]
    fn the_line_is_one_of_a_peers_file() {
        let dir = tempfile::tempdir().unwrap();
        let options = KeygenOptions { name: Some("alpha".into()), force: false };
        let made = make(&options, &places(dir.path())).unwrap();
        let fingerprint = keys::Identity::load(&made.dir).unwrap().fingerprint();
        assert_eq!(Peers::parse(&made.line).unwrap().find(&fingerprint).unwrap().name, "alpha");
        let again = make(&options, &places(dir.path())).unwrap_err();
        assert!(again.hint.unwrap().contains("--force"));
        assert!(make(&KeygenOptions { force: true, ..options }, &places(dir.path())).is_ok());
    }

    #[test]
    fn names_that_break_the_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "a b", "user=root", "#x", "a\nb"] {
            let options = KeygenOptions { name: Some(name.into()), force: false };
            assert_eq!(make(&options, &places(dir.path())).unwrap_err().exit_code(), 2, "{name:?}");
        }
        assert!(!dir.path().join("keys").exists());
    }
}
