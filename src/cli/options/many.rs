//! MANY: several destinations.

use super::dest::{self, DestArg};
use crate::cli::config::Config;
use crate::failure::Failure;
use crate::migration::source::Quorum;
use crate::ops::attempts::Further;
use crate::ops::words::Time;
use std::str::FromStr;

/// The MANY group.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct ManyArgs {
    #[command(flatten)]
    quorum: QuorumArgs,
    /// Where to if none of the destinations takes the target
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    alternate: Vec<DestArg>,
    /// Try all of them again so often (not at all), after a second and then after longer pauses
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Try nothing again after this time; without --retries as often as it allows
    #[arg(long, value_name = "TIME")]
    retry_timeout: Option<Time>,
}

impl ManyArgs {
    /// What is tried when an attempt has failed.
    ///
    /// # Errors
    /// Usage, for an unknown group.
    pub fn further(&self, config: &Config) -> Result<Further, Failure> {
        Ok(Further {
            alternates: dest::resolve(&self.alternate, config)?,
            retries: self.retries,
            within: self.retry_timeout.map(|time| time.0),
        })
    }

    /// The quorum as the engine takes it.
    pub fn quorum(&self) -> Quorum {
        self.quorum.quorum()
    }
}

/// What of the group a warm-up has, too.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Many destinations")]
pub struct QuorumArgs {
    /// The pause begins when the exit condition holds for so many of the destinations: a number, or a share such as 75%
    #[arg(long, value_name = "N|PERCENT", default_value = "1")]
    quorum: QuorumArg,
}

impl QuorumArgs {
    /// The quorum as the engine takes it.
    pub fn quorum(&self) -> Quorum {
        self.quorum.0
    }
}

/// `N` or `PERCENT`.
#[derive(Debug, Clone, Copy, Default)]
struct QuorumArg(Quorum);

impl FromStr for QuorumArg {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("'{word}' is neither a number of destinations nor a share of them such as 75%");
        let number = |digits: &str| digits.parse::<u8>().ok().filter(|number| *number > 0);
        match word.strip_suffix('%') {
            Some(percent) => number(percent).filter(|percent| *percent <= 100).map(Quorum::Percent),
            None => number(word).map(Quorum::Number),
        }
        .map(Self)
        .ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_number_or_a_share() {
        let quorum = |word: &str| word.parse::<QuorumArg>().map(|arg| arg.0);
        assert_eq!(quorum("2"), Ok(Quorum::Number(2)));
        assert_eq!(quorum("75%"), Ok(Quorum::Percent(75)));
        for wrong in ["0", "0%", "101%", "-1", "x", "", "%"] {
            assert!(quorum(wrong).is_err(), "{wrong}");
        }
        assert_eq!([1, 2, 9].map(|n| Quorum::Number(n).of(3)), [1, 2, 3]);
        assert_eq!([1, 50, 67, 100].map(|share| Quorum::Percent(share).of(3)), [1, 2, 3, 3]);
    }
}
