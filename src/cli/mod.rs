//! The command line: definitions of the verbs, and the way from arguments to an exit code.
//!
//! One file a verb: its options as the parser sees them, and how they become the plain options of `ops/`. Groups of
//! options that verbs share are in `options/`, those that all have in [`everywhere`]; man pages and completions are made by [`generate`],
//! [`companions`] are entries that are no verbs. A verb that is not in `Verb` does not exist for a person.

pub mod companions;
mod config;
pub mod everywhere;
pub mod generate;
mod options;
pub mod signals;

mod agent;
mod cancel;
mod check;
mod clone;
mod demo;
mod dump;
mod evacuate;
mod explain;
mod keygen;
mod list;
mod r#move;
mod pre_dump;
mod promote;
mod resolve;
mod restore;
mod show;
mod status;
mod switch;
mod verify;
mod warm;

use crate::failure::Failure;
use crate::ops::outside;
use crate::ops::places::Places;
use crate::ops::words::{SessionId, Target};
use crate::ui::{self, Session, Settings};
use clap::{CommandFactory, FromArgMatches};
use config::Config;
use std::ffi::OsString;
use std::path::PathBuf;

/// Checkpoint, restore and live migration of Linux process trees
#[derive(Debug, clap::Parser)]
#[command(name = "migrate", version, disable_help_subcommand = true, propagate_version = false, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    everywhere: everywhere::Everywhere,
}

/// The verbs.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    Check(check::Args),
    List(list::Args),
    Status(status::Args),
    Show(show::Args),
    Verify(verify::Args),
    Explain(explain::Args),
    Agent(agent::Args),
    Keygen(keygen::Args),
    Dump(dump::Args),
    PreDump(pre_dump::Args),
    Restore(restore::Args),
    Demo(demo::Args),
    Move(Box<r#move::Args>),
    Clone(Box<clone::Args>),
    Warm(Box<warm::Args>),
    Switch(switch::Args),
    Cancel(cancel::Args),
    Promote(promote::Args),
    Evacuate(Box<evacuate::Args>),
    Resolve(resolve::Args),
}

impl Verb {
    fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Check(args) => args.run(context),
            Self::List(args) => args.run(context),
            Self::Status(args) => args.run(context),
            Self::Show(args) => args.run(context),
            Self::Verify(args) => Ok(args.run(context)),
            Self::Explain(args) => args.run(context),
            Self::Agent(args) => args.run(context),
            Self::Keygen(args) => args.run(context),
            Self::Dump(args) => args.run(context),
            Self::PreDump(args) => args.run(context),
            Self::Restore(args) => args.run(context),
            Self::Demo(args) => args.run(context),
            Self::Move(args) => args.run(context),
            Self::Clone(args) => args.run(context),
            Self::Warm(args) => args.run(context),
            Self::Switch(args) => args.run(context),
            Self::Cancel(args) => args.run(context),
            Self::Promote(args) => args.run(context),
            Self::Evacuate(args) => args.run(context),
            Self::Resolve(args) => args.run(context),
        }
    }
}

/// What a verb needs besides its own options.
#[derive(Debug)]
pub struct Context {
    settings: Settings,
    config: Config,
    verb: String,
    /// As they were given, without the program's name.
    arguments: Vec<OsString>,
    /// No file was named for the log.
    keeps_log: bool,
}

impl Context {
    /// Takes the command out of the target, if it is in it; `false`: another process goes on with the work, and this one is to
    /// end.
    fn is_outside(&self, target: &Target) -> Result<bool, Failure> {
        match outside::step(target, &self.arguments)? {
            outside::Step::Work => Ok(true),
            outside::Step::End(pid) => {
                ui::note(
                    &format!("this command is part of {target}: it goes on outside, as process {pid}"),
                    &self.settings,
                );
                Ok(false)
            }
        }
    }

    /// Begins the log of a session, unless it goes to a file of its own; where it is, for a person.
    fn log(&self, session: SessionId, dry_run: bool) -> Option<PathBuf> {
        let dir = Places::here().state.join("logs");
        let verbose = self.settings.verbose;
        let kept = (self.keeps_log && !dry_run).then(|| ui::log::keep(verbose, &dir, session)).flatten();
        if self.keeps_log && kept.is_none() {
            // Without a file there is nothing that can fail.
            let _ = ui::log::begin(verbose, None);
        }
        kept
    }

    /// Begins to show a session of this verb. `data` = standard output carries data, so that the result goes to standard error.
    fn session(&self, id: SessionId, target: Option<String>, data: bool) -> Session {
        Session::begin(&self.settings, &self.verb, id, target, data)
    }
}

/// Runs the program and returns its exit code.
pub fn run(args: Vec<OsString>) -> u8 {
    let (cli, config, verb) = match parse(&args) {
        Ok(parsed) => parsed,
        Err(Refused::Parser(error)) => return ui::clap_error(&error),
        Err(Refused::Config(failure, settings, verb)) => return ui::failure::show(&failure, &verb, &settings),
    };
    let settings = cli.everywhere.settings();
    // That of a move is kept under the name of its session.
    let keeps_log = matches!(cli.verb, Verb::Move(_) | Verb::Clone(_)) && cli.everywhere.log.is_none();
    if !keeps_log && let Err(failure) = ui::log::begin(settings.verbose, cli.everywhere.log.as_deref()) {
        return ui::failure::show(&failure, &verb, &settings);
    }
    let arguments = args.get(1..).unwrap_or_default().to_vec();
    let context = Context { settings, config, verb, arguments, keeps_log };
    match cli.verb.run(&context) {
        Ok(code) => code,
        Err(failure) => ui::failure::show(&failure, &context.verb, &context.settings),
    }
}

/// Why the arguments were not accepted, or what was printed instead (help, version).
enum Refused {
    Parser(clap::Error),
    Config(Box<Failure>, Settings, String),
}

/// Reads the arguments, with the configuration as defaults.
fn parse(args: &[OsString]) -> Result<(Cli, Config, String), Refused> {
    let mut matches = command().try_get_matches_from(args).map_err(Refused::Parser)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(Refused::Parser)?;
    let verb = matches.subcommand_name().unwrap_or_default().to_owned();
    let refuse = |cli: &Cli, failure| Refused::Config(Box::new(failure), cli.everywhere.settings(), verb.clone());

    let places = config::Places::of_environment(cli.everywhere.config.clone());
    let config = Config::read(&places).map_err(|failure| refuse(&cli, failure))?;
    let mut command = command();
    let settings = config.settings(&command).map_err(|failure| refuse(&cli, failure))?;
    if !settings.is_empty() {
        command = config::with_defaults(command, &settings, &matches);
        matches = command.try_get_matches_from(args).map_err(|error| refuse(&cli, config::blame(&error, &settings)))?;
        cli = Cli::from_arg_matches(&matches).map_err(Refused::Parser)?;
    }
    Ok((cli, config, verb))
}

/// The definition of the command line: the parser's, and that of man pages, completions and tests.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Whether a command line, the program's name first, would be run: it fits the definitions.
///
/// # Errors
/// What a person would be told.
pub fn understands(args: &[String]) -> Result<(), String> {
    match command().try_get_matches_from(args) {
        Ok(_) => Ok(()),
        // Help and version are understood, too.
        Err(error) if error.exit_code() == 0 => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
