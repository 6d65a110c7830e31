//! Options that are defined but that the engine does not honour yet: hidden from help, manual and completions, and
//! refused, because an option that is ignored is a lie. Whoever makes one work removes its row.

use crate::failure::{Failure, FailureKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

/// Verb and long option (the ids are the same with underscores).
const NOT_YET: &[(&str, &str)] = &[("dump", "move-address"), ("restore", "move-address"), ("restore", "supervisor")];

/// The definitions without what does not work yet.
pub fn hide(mut cli: Command) -> Command {
    for (verb, long) in NOT_YET {
        if cli.find_subcommand(verb).is_some() {
            cli = cli.mut_subcommand(*verb, |command| {
                let id =
                    command.get_arguments().find(|arg| arg.get_long() == Some(long)).map(|arg| arg.get_id().clone());
                match id {
                    Some(id) => command.mut_arg(id, |arg| arg.hide(true)),
                    None => command,
                }
            });
        }
    }
    cli
}

/// Refuses what does not work yet.
///
/// # Errors
/// Usage, naming the option.
pub fn check(verb: &str, matches: &ArgMatches) -> Result<(), Failure> {
    for (_, long) in NOT_YET.iter().filter(|(of, _)| *of == verb) {
        let given = [long.replace('-', "_"), format!("{}es", long.replace('-', "_"))].iter().any(|id| {
            matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
        });
        if given {
            return Err(Failure::new(format!("{verb} --{long} does not work yet")).kind(FailureKind::Usage));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_an_option_that_is_hidden_and_refused() {
        let cli = crate::cli::command();
        for (verb, long) in NOT_YET {
            let Some(command) = cli.find_subcommand(verb) else { continue };
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(long));
            let arg = arg.unwrap_or_else(|| panic!("{verb} has no option --{long}"));
            assert!(arg.is_hide_set());
            let value = match (arg.get_action().takes_values(), arg.get_possible_values().last(), *long) {
                (false, ..) => String::new(),
                (true, Some(word), _) => format!("={}", word.get_name()),
                (true, None, "move-address") => "=192.0.2.1/32@lo".to_owned(),
                (true, None, "cgroup") => "=same".to_owned(),
                (true, None, "bandwidth") => "=1MB/s".to_owned(),
                (true, None, _) => "=1".to_owned(),
            };
            let option = format!("--{long}{value}");
            let words = match (*verb, *long) {
                ("restore", "stream") => vec!["migrate", verb, &option],
                ("restore", _) => vec!["migrate", verb, "-D", "d", &option],
                (_, "stream") => vec!["migrate", verb, "1", &option],
                ("move", _) => vec!["migrate", verb, "1", "b", &option],
                _ => vec!["migrate", verb, "1", "-D", "d", &option],
            };
            let matches = cli.clone().try_get_matches_from(words).unwrap();
            let (_, matches) = matches.subcommand().unwrap();
            let failure = check(verb, matches).expect_err(long);
            assert!(failure.what.contains(long));
        }
    }
}
