use super::*;
use clap::{Arg, ArgAction, Command};

/// A command line like ours.
fn cli() -> Command {
    let flag = |name: &'static str, id: &'static str| Arg::new(id).long(name).action(ArgAction::SetTrue);
    Command::new("migrate")
        .arg(Arg::new("progress").long("progress").default_value("auto").global(true))
        .arg(Arg::new("config").long("config").global(true))
        .subcommand(
            Command::new("dump")
                .arg(flag("leave-running", "leave_running").overrides_with("leave_stopped"))
                .arg(flag("leave-stopped", "leave_stopped").overrides_with("leave_running"))
                .arg(Arg::new("compress").long("compress").value_parser(["auto", "off"]).default_value("auto"))
                .arg(Arg::new("address").long("address").action(ArgAction::Append)),
        )
        .subcommand(Command::new("move"))
}

struct Case {
    dir: tempfile::TempDir,
    places: Places,
}

impl Case {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), places: Places::default() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn usual(mut self, text: &str) -> Self {
        let path = self.file(&format!("usual{}", self.places.usual.len()), text);
        self.places.usual.push(path);
        self
    }

    fn option(mut self, text: &str) -> Self {
        self.places.option = Some(self.file("option", text));
        self
    }

    fn variable(mut self, text: &str) -> Self {
        self.places.variable = Some(self.file("variable", text));
        self
    }

    fn parse(&self, line: &str) -> Result<clap::ArgMatches, Failure> {
        let args: Vec<_> = line.split(' ').collect();
        let given = cli().try_get_matches_from(&args).unwrap();
        let settings = Config::read(&self.places)?.settings(&cli())?;
        let command = with_defaults(cli(), &settings, &given);
        command.try_get_matches_from(&args).map_err(|error| blame(&error, &settings))
    }

    fn one(&self, line: &str, key: &str) -> String {
        let matches = self.parse(line).unwrap();
        let (_, verb) = matches.subcommand().unwrap();
        match verb.try_get_one::<String>(key) {
            Ok(value) => value.cloned().unwrap_or_default(),
            Err(_) => verb.get_flag(key).to_string(),
        }
    }

    fn failure(&self) -> String {
        let failure = self.parse("migrate dump").unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
        failure.to_string()
    }
}

#[test]
fn order_of_places() {
    let case = Case::new().usual("progress = 'user'\n[dump]\ncompress = 'off'").usual("progress = 'system'");
    assert_eq!(case.one("migrate dump", "progress"), "user");
    assert_eq!(case.one("migrate dump --progress line", "progress"), "line");
    assert_eq!(case.one("migrate dump", "compress"), "off");
    assert_eq!(case.one("migrate dump --compress auto", "compress"), "auto");
    let case = case.variable("progress = 'variable'");
    assert_eq!(case.one("migrate dump", "progress"), "variable");
    let case = case.option("progress = 'option'");
    assert_eq!(case.one("migrate dump", "progress"), "option");
    assert_eq!(case.one("migrate dump", "compress"), "off");
}

#[test]
fn flags_and_lists() {
    let case = Case::new().usual("[dump]\nleave-running = true\naddress = ['a', 'b']");
    assert_eq!(case.one("migrate dump", "leave_running"), "true");
    assert_eq!(case.one("migrate dump --leave-stopped", "leave_running"), "false");
    assert_eq!(case.one("migrate dump --leave-stopped", "leave_stopped"), "true");
    let count = |line| case.parse(line).unwrap().subcommand().unwrap().1.get_many::<String>("address").unwrap().count();
    assert_eq!(count("migrate dump"), 2);
    assert_eq!(count("migrate dump --address c"), 1);
    let case = Case::new().usual("[dump]\nleave-running = false").usual("[dump]\nleave-running = true");
    assert_eq!(case.one("migrate dump", "leave_running"), "false");
}

#[test]
fn what_is_wrong_is_named() {
    let wrong = |text: &str| Case::new().usual(text).failure();
    assert!(wrong("x = 1").contains("usual0: x: there is no such option"));
    assert!(wrong("[dump]\nx = 1").contains("usual0: [dump] x: there is no such option"));
    assert!(wrong("[dmp]\nx = 1").contains("there is no verb dmp"));
    assert!(wrong("config = '/x'").contains("no such option"));
    assert!(wrong("[dump]\nleave-running = 'x'").contains("write true or false"));
    assert!(wrong("[dump]\ncompress = 1.5").contains("write a text in quotes"));
    assert!(wrong("[dump]\naddress = [1]").contains("1 is no text"));
    let bad_value = wrong("[dump]\ncompress = 'zip'");
    assert!(
        bad_value.contains("usual0: [dump] compress: the value cannot be used") && bad_value.contains("'zip'"),
        "{bad_value}"
    );
    assert!(wrong("= 1").contains("cannot read the configuration"));
}

#[test]
fn named_files_have_to_exist() {
    let mut case = Case::new();
    case.places.usual.push(case.dir.path().join("none"));
    assert_eq!(case.one("migrate dump", "progress"), "auto");
    case.places.variable = Some(case.dir.path().join("none"));
    assert!(case.failure().contains("no such file"));
}

#[test]
fn groups() {
    let case =
        Case::new().usual("[groups]\nrack = ['tcp://b', 'c']\nbad = ['http://x']").usual("[groups]\nrack = ['d']");
    let config = Config::read(&case.places).unwrap();
    assert_eq!(config.group("rack").unwrap(), ["tcp://b".parse::<Dest>().unwrap(), "c".parse().unwrap()]);
    assert!(config.group("bad").unwrap_err().to_string().contains("http://x"));
    assert!(config.group("none").is_err());
}
