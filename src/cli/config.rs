//! Configuration files: TOML whose keys are the long options.
//!
//! ```toml
//! progress = "plain"            # options of every verb
//! [move]                        # options of one verb
//! max-downtime = "100ms"
//! [groups]                      # @rack1 on the line
//! rack1 = ["tcp://b", "tcp://c"]
//! ```
//! What is on the command line wins, then `--config`, the file that `MIGRATE_CONFIG` names, the user's, the system's.
//! A file that is named and does not exist is an error; the usual ones need not exist.

use crate::failure::{Failure, FailureKind};
use crate::ops::words::Dest;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Largest configuration file that is read, bytes.
const SIZE_MAX: u64 = 1 << 20;

/// All configuration files, the one that wins first.
#[derive(Debug, Default)]
pub struct Config {
    files: Vec<(PathBuf, Table)>,
}

/// What a file says about one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The verb; `None` = an option of every verb.
    verb: Option<String>,
    /// The long option without its dashes.
    key: String,
    /// Its values, as on the command line; `true` for a flag that is set.
    values: Vec<OsString>,
    /// `FILE: [verb] key`, for messages.
    origin: String,
}

/// Flags of which the command line takes one: the other in a file then does not count.
const RIVALS: [(&str, &str); 2] = [("leave-running", "leave-stopped"), ("leave-stopped", "leave-running")];

/// Where files are looked for: taken from the environment once, so that tests can choose.
#[derive(Debug, Default)]
pub struct Places {
    /// `--config`.
    pub option: Option<PathBuf>,
    /// `MIGRATE_CONFIG`.
    pub variable: Option<PathBuf>,
    /// The user's and the system's, which need not exist.
    pub usual: Vec<PathBuf>,
}

impl Places {
    /// The places of this user.
    pub fn of_environment(option: Option<PathBuf>) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let user = home.map(|home| home.join("migrate/config.toml"));
        let system = PathBuf::from("/etc/migrate/config.toml");
        Self { option, variable: set("MIGRATE_CONFIG"), usual: user.into_iter().chain([system]).collect() }
    }
}

fn usage(what: String, cause: Option<String>) -> Failure {
    Failure { causes: cause.into_iter().collect(), ..Failure::new(what).kind(FailureKind::Usage) }
}

impl Config {
    /// Reads the files.
    ///
    /// # Errors
    /// Usage, when a named file is missing, or any is no TOML, too large or not readable.
    pub fn read(places: &Places) -> Result<Self, Failure> {
        let mut files = Vec::new();
        for path in places.option.iter().chain(&places.variable) {
            files.push((path.clone(), read_file(path).and_then(|table| table.ok_or_else(|| missing(path)))?));
        }
        for path in &places.usual {
            if let Some(table) = read_file(path)? {
                files.push((path.clone(), table));
            }
        }
        Ok(Self { files })
    }

    /// Members of a group: those of the first file that has it.
    ///
    /// # Errors
    /// Usage, when no file has the group or a member is no destination.
    pub fn group(&self, name: &str) -> Result<Vec<Dest>, Failure> {
        for (path, table) in &self.files {
            let Some(group) = table.get("groups").and_then(|groups| groups.get(name)) else { continue };
            let wrong = |cause: String| usage(format!("{}: group {name}", path.display()), Some(cause));
            let members = group.as_array().ok_or_else(|| wrong("it is no list of destinations".to_owned()))?;
            return members
                .iter()
                .map(|member| {
                    let word = member.as_str().ok_or_else(|| wrong(format!("{member} is no text")))?;
                    word.parse().map_err(|error| wrong(format!("{error}")))
                })
                .collect();
        }
        Err(usage(format!("there is no group {name} in the configuration"), None)
            .hint("add it under [groups]: NAME = [\"host1\", \"tcp://host2\"]"))
    }

    /// What the files say about the options of `cli` and its verbs. The first file that has a key decides.
    ///
    /// # Errors
    /// Usage, for a section or key that is none, or a value of a kind no option has.
    pub fn settings(&self, cli: &clap::Command) -> Result<Vec<Setting>, Failure> {
        let mut found: Vec<Setting> = Vec::new();
        for (path, table) in &self.files {
            for (key, value) in table {
                match value {
                    Value::Table(_) if key == "groups" => {}
                    Value::Table(section) => {
                        let verb = cli.find_subcommand(key);
                        let verb =
                            verb.ok_or_else(|| usage(format!("{}: there is no verb {key}", path.display()), None))?;
                        for (key, value) in section {
                            add(&mut found, verb, Some(verb.get_name()), path, key, value)?;
                        }
                    }
                    _ => add(&mut found, cli, None, path, key, value)?,
                }
            }
        }
        Ok(found)
    }
}

/// `cli` with the settings as defaults of its options: what is on the command line wins over them.
pub fn with_defaults(mut cli: clap::Command, settings: &[Setting], given: &clap::ArgMatches) -> clap::Command {
    for setting in settings {
        let command = match &setting.verb {
            Some(verb) => cli.find_subcommand(verb),
            None => Some(&cli),
        };
        let id = command.and_then(|command| option(command, &setting.key)).map(|arg| arg.get_id().clone());
        let (Some(id), false) = (id, rival_given(setting, given)) else { continue };
        let values = setting.values.clone();
        let set = |arg: clap::Arg| arg.default_values(values);
        cli = match &setting.verb {
            Some(verb) => cli.mut_subcommand(verb, |command| command.mut_arg(id, set)),
            None => cli.mut_arg(id, set),
        };
    }
    cli
}

/// The failure to report when a command line that is right by itself is refused together with the settings.
pub fn blame(error: &clap::Error, settings: &[Setting]) -> Failure {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let culprit = settings.iter().find(|setting| line.contains(&format!("--{}", setting.key)));
    match culprit {
        Some(setting) => usage(format!("{}: the value cannot be used", setting.origin), Some(line)),
        None => usage("the configuration does not fit the command line".to_owned(), Some(line)),
    }
}

fn rival_given(setting: &Setting, given: &clap::ArgMatches) -> bool {
    let Some((verb, matches)) = given.subcommand() else { return false };
    setting.verb.as_deref() == Some(verb)
        && RIVALS.iter().filter(|(key, _)| setting.key == *key).any(|(_, rival)| {
            // Ids are the names of the fields.
            matches.value_source(&rival.replace('-', "_")) == Some(clap::parser::ValueSource::CommandLine)
        })
}

fn option<'a>(command: &'a clap::Command, key: &str) -> Option<&'a clap::Arg> {
    let known = command.get_arguments().find(|arg| arg.get_long() == Some(key));
    known.filter(|arg| !arg.is_hide_set() && !["config", "help", "version"].contains(&key))
}

fn missing(path: &Path) -> Failure {
    usage(format!("cannot read the configuration {}", path.display()), Some("no such file".to_owned()))
}

fn read_file(path: &Path) -> Result<Option<Table>, Failure> {
    let wrong = |cause: String| usage(format!("cannot read the configuration {}", path.display()), Some(cause));
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > SIZE_MAX => return Err(wrong(format!("it is larger than {SIZE_MAX} bytes"))),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    text.parse().map(Some).map_err(|error: toml::de::Error| wrong(error.to_string().trim_end().to_owned()))
}

/// Adds one key, unless a file before had it.
fn add(
    found: &mut Vec<Setting>,
    command: &clap::Command,
    verb: Option<&str>,
    path: &Path,
    key: &str,
    value: &Value,
) -> Result<(), Failure> {
    let section = verb.map(|verb| format!("[{verb}] ")).unwrap_or_default();
    let origin = format!("{}: {section}{key}", path.display());
    let Some(option) = option(command, key) else {
        return Err(usage(format!("{origin}: there is no such option"), None));
    };
    if found.iter().any(|setting| setting.verb.as_deref() == verb && setting.key == key) {
        return Ok(());
    }
    let values = values(option, value).map_err(|cause| usage(origin.clone(), Some(cause)))?;
    // A flag that is false hides one that is true in a later file, hence it is kept, too.
    found.push(Setting { verb: verb.map(str::to_owned), key: key.to_owned(), values, origin });
    Ok(())
}

/// A value as on the command line.
fn values(option: &clap::Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let takes_value = option.get_action().takes_values();
    match value {
        Value::Boolean(set) if !takes_value => Ok(vec![set.to_string().into()]),
        _ if !takes_value => Err("write true or false".to_owned()),
        Value::String(text) => Ok(vec![text.into()]),
        Value::Integer(number) => Ok(vec![number.to_string().into()]),
        Value::Array(values) => values
            .iter()
            .map(|value| value.as_str().map(OsString::from).ok_or_else(|| format!("{value} is no text")))
            .collect(),
        _ => Err("write a text in quotes, as on the command line".to_owned()),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
