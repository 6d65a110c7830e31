//! What is to be dumped or moved.

use super::WordError;
use crate::image::Pid;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

/// Names the processes an operation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A process and all its descendants: `1234`.
    Pid(Pid),
    /// The process whose id stands in a file, and all its descendants: `pidfile:/run/redis.pid`.
    PidFile(PathBuf),
    /// Every process of a systemd unit: `unit:redis.service`.
    Unit(String),
    /// Every process of a cgroup, as a path below the mount of its hierarchy: `cgroup:/jobs/7`.
    Cgroup(PathBuf),
    /// The tree in an image, which is restored on another host. No word of a command line: that has `-D DIR`.
    Image(PathBuf),
}

const HOW: &str = "write a process id, pidfile:PATH, unit:NAME or cgroup:PATH";

impl FromStr for Target {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let wrong = |why: &str| WordError::new("target", word, why);
        let Some((scheme, rest)) = word.split_once(':') else {
            return match word.parse::<i32>() {
                Ok(pid) if pid > 0 && word.bytes().all(|b| b.is_ascii_digit()) => Ok(Self::Pid(Pid(pid))),
                _ => Err(wrong(HOW)),
            };
        };
        match scheme {
            "pidfile" | "unit" | "cgroup" if rest.is_empty() => Err(wrong("nothing follows the colon")),
            "pidfile" => Ok(Self::PidFile(rest.into())),
            "unit" if rest.contains('/') => Err(wrong("a unit is named without a path, as in unit:redis.service")),
            "unit" => Ok(Self::Unit(rest.to_owned())),
            "cgroup" => Ok(Self::Cgroup(rest.into())),
            "container" => {
                Err(wrong("containers cannot be named yet; name the process id of the container's first process"))
            }
            _ => Err(wrong(HOW)),
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => pid.fmt(f),
            Self::PidFile(path) => write!(f, "pidfile:{}", path.display()),
            Self::Unit(name) => write!(f, "unit:{name}"),
            Self::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
            Self::Image(dir) => write!(f, "image:{}", dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrong_targets_are_refused() {
        for wrong in
            ["", "0", "-1", "+1", "x", "1x", "pid:1", "pidfile:", "unit:a/b", "container:x", "image:/x", "99999999999"]
        {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    fn any_target() -> impl Strategy<Value = Target> {
        prop_oneof![
            (1..i32::MAX).prop_map(|pid| Target::Pid(Pid(pid))),
            "[^\0]{1,30}".prop_map(|path| Target::PidFile(path.into())),
            "[a-z@.:-]{1,30}".prop_map(Target::Unit),
            "/[^\0]{0,30}".prop_map(|path| Target::Cgroup(path.into())),
        ]
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(target in any_target()) {
            prop_assert_eq!(target.to_string().parse(), Ok(target));
        }

        #[test]
        fn any_text_is_read_or_refused(word in ".{0,40}") {
            let _ = word.parse::<Target>();
        }
    }
}
