//! What the command line asks for, with CRIU's defaults.

use crate::config::Places;
use crate::getopt::{self, Item, Kind, Option_};
use std::path::PathBuf;
use std::time::Duration;

/// Every option that is understood. What is not here is refused by name.
pub const TABLE: &[Option_] = &[
    option("tree", Some('t'), Kind::Value),
    option("images-dir", Some('D'), Kind::Value),
    option("work-dir", Some('W'), Kind::Value),
    option("log-file", Some('o'), Kind::Value),
    option("verbosity", Some('v'), Kind::Optional),
    option("pidfile", None, Kind::Value),
    option("leave-running", Some('R'), Kind::Switch),
    option("leave-stopped", Some('s'), Kind::Switch),
    option("restore-detached", Some('d'), Kind::Switch),
    option("daemon", None, Kind::Switch),
    option("restore-sibling", Some('S'), Kind::Switch),
    option("shell-job", Some('j'), Kind::Switch),
    option("tcp-established", None, Kind::Switch),
    option("tcp-close", None, Kind::Switch),
    option("file-locks", Some('l'), Kind::Switch),
    option("link-remap", None, Kind::Switch),
    option("ext-unix-sk", Some('x'), Kind::Optional),
    option("track-mem", None, Kind::Switch),
    option("prev-images-dir", None, Kind::Value),
    option("pre-dump-mode", None, Kind::Value),
    option("timeout", None, Kind::Value),
    option("config", None, Kind::Value),
    option("no-default-config", None, Kind::Switch),
    option("feature", None, Kind::Value),
    option("extra", None, Kind::Switch),
    option("all", None, Kind::Switch),
    option("version", Some('V'), Kind::Optional),
    option("help", Some('h'), Kind::Optional),
];

const fn option(name: &'static str, letter: Option<char>, kind: Kind) -> Option_ {
    Option_ { name, letter, kind }
}

/// The resolved settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// What to do: `dump`, `restore`, ...
    pub action: String,
    /// `-t`.
    pub tree: Option<i32>,
    /// `-D`, the working directory by default.
    pub images: PathBuf,
    /// `-W`; where relative log files lie. `images` by default.
    pub work: Option<PathBuf>,
    /// `-o`.
    pub log: Option<PathBuf>,
    /// 0 to 4, 2 by default.
    pub verbosity: u8,
    /// `--pidfile`.
    pub pidfile: Option<PathBuf>,
    /// `-R`.
    pub leave_running: bool,
    /// `-s`.
    pub leave_stopped: bool,
    /// `-d`.
    pub detached: bool,
    /// `-S`.
    pub sibling: bool,
    /// `-j`.
    pub shell_job: bool,
    /// `--tcp-established`.
    pub tcp_established: bool,
    /// `--tcp-close`.
    pub tcp_close: bool,
    /// `-x`.
    pub ext_unix: bool,
    /// `--prev-images-dir`, relative to `images`.
    pub prev_images: Option<PathBuf>,
    /// `--track-mem`.
    pub track_mem: bool,
    /// `--timeout`: for so long it is tried to stop the tree; `None` = as the engine does.
    pub timeout: Option<Duration>,
    /// `--feature` of check.
    pub feature: Option<String>,
    /// `--version`.
    pub version: bool,
    /// `--help`.
    pub help: bool,
}

impl Settings {
    /// Reads the command line.
    ///
    /// # Errors
    /// One line for the person who typed it.
    pub fn of(arguments: impl IntoIterator<Item = String>, files: &Places) -> Result<Self, String> {
        let mut settings = Self { images: PathBuf::from("."), verbosity: 2, ..Self::default() };
        let line = getopt::parse(TABLE, arguments)?;
        let options = line.iter().filter_map(|item| match item {
            Item::Option(name, value) => Some((*name, value.as_deref())),
            Item::Word(_) => None,
        });
        let (mut defaults, mut named) = (true, None);
        for (name, value) in options {
            match name {
                "config" => named = value.map(PathBuf::from),
                "no-default-config" => defaults = value == Some("no"),
                _ => {}
            }
        }
        let from_files = getopt::parse(TABLE, files.words(defaults, named.as_deref())?)?;
        for item in from_files.into_iter().chain(line) {
            match item {
                Item::Word(word) if settings.action.is_empty() => settings.action = word,
                Item::Word(word) => return Err(format!("excessive parameter {word}")),
                Item::Option(name, value) => settings.set(name, value)?,
            }
        }
        settings.checked()
    }

    /// What cannot be meant.
    fn checked(self) -> Result<Self, String> {
        if self.action == "restore" && self.sibling && !self.detached {
            return Err("--restore-sibling only makes sense with --restore-detached".to_owned());
        }
        Ok(self)
    }

    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), String> {
        let on = value.as_deref() != Some("no");
        let text = value.clone().unwrap_or_default();
        match name {
            "tree" => self.tree = Some(text.parse().ok().filter(|p| *p > 0).ok_or("invalid PID given")?),
            "images-dir" => self.images = text.into(),
            "work-dir" => self.work = Some(text.into()),
            "log-file" => self.log = Some(text.into()),
            "verbosity" => self.verbosity = verbosity(value.as_deref(), self.verbosity),
            "pidfile" => self.pidfile = Some(text.into()),
            "leave-running" => self.leave_running = on,
            "leave-stopped" => self.leave_stopped = on,
            "restore-detached" | "daemon" => self.detached = on,
            "restore-sibling" => self.sibling = on,
            "shell-job" => self.shell_job = on,
            "tcp-established" => self.tcp_established = on,
            "tcp-close" => self.tcp_close = on,
            "ext-unix-sk" if value.is_some() => {
                return Err(format!("--ext-unix-sk={text}: sockets cannot be chosen; without a value it is about all"));
            }
            "ext-unix-sk" => self.ext_unix = true,
            "track-mem" => self.track_mem = on,
            "prev-images-dir" => self.prev_images = Some(text.into()),
            "pre-dump-mode" if text == "splice" || text == "read" => {}
            "pre-dump-mode" => return Err(format!("unable to parse value of '--pre-dump-mode {text}'")),
            "timeout" => {
                let seconds: u32 = text.parse().map_err(|_| format!("--timeout {text} is no number of seconds"))?;
                self.timeout = (seconds > 0).then_some(Duration::from_secs(seconds.into()));
            }
            "feature" => self.feature = Some(text),
            "version" => self.version = true,
            "help" => self.help = true,
            // Locks and links are always kept; files were read before; a check looks at everything.
            "file-locks" | "link-remap" | "config" | "no-default-config" | "extra" | "all" => {}
            other => return Err(format!("unrecognized option '--{other}'")),
        }
        Ok(())
    }

    /// Where a relative path of the log or pid file lies.
    pub fn in_work_dir(&self, file: &std::path::Path) -> PathBuf {
        self.work.as_ref().unwrap_or(&self.images).join(file)
    }
}

/// `-v` = 3... `-v4` = 4, `-vvvv` = 4; any other word counts as level 0.
fn verbosity(value: Option<&str>, now: u8) -> u8 {
    match value {
        None => now.max(2) + 1,
        Some(vs) if !vs.is_empty() && vs.bytes().all(|b| b == b'v') => (vs.len() as u8 + 1).min(4),
        Some(number) => number.parse().unwrap_or(0),
    }
    .min(4)
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use crate::config::Places;
    use std::time::Duration;

    fn of(line: &str) -> Result<Settings, String> {
        Settings::of(line.split_whitespace().map(str::to_owned), &Places::default())
    }

    #[test]
    fn files_come_before_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let default = file("default.conf", "tcp-established\nlog-file default.log\ntimeout 3\n");
        let environment = file("environment.conf", "log-file \"environment.log\"\n");
        let named = file("named.conf", "shell-job # of a person\ntimeout 5\n");
        let places = Places { defaults: vec![default, dir.path().join("none")], environment: Some(environment) };
        let of = |line: &str| Settings::of(line.split_whitespace().map(str::to_owned), &places);
        let line = format!("restore -d --config {} --timeout 7", named.display());
        let s = of(&line).unwrap();
        assert!(s.tcp_established && s.shell_job && s.detached);
        assert_eq!((s.timeout, s.log), (Some(Duration::from_secs(7)), Some("environment.log".into())));
        let s = of("restore --no-default-config").unwrap();
        assert!(!s.tcp_established && s.timeout.is_none());
        assert!(of("restore --config /nowhere").unwrap_err().contains("/nowhere"));
        file("named.conf", "lazy-pages\n");
        assert!(of(&line).unwrap_err().contains("lazy-pages"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        assert!(of("dump -t 7 --ext-unix-sk=4711").unwrap_err().contains("--ext-unix-sk=4711"));
        assert!(of("dump -t 7 -x").unwrap().ext_unix);
        assert!(of("dump -t 7 --timeout soon").unwrap_err().contains("--timeout soon"));
        assert_eq!(of("dump -t 7 --timeout 0").unwrap().timeout, None);
        assert!(of("restore -S").unwrap_err().contains("--restore-detached"));
    }

    #[test]
    fn a_runtime_s_line() {
        let line = "restore -d -S -D /img -W /work -o restore.log -v4 --tcp-established -j --pidfile /p";
        let s = of(line).unwrap();
        assert!(s.detached && s.sibling && s.tcp_established && s.shell_job && s.verbosity == 4);
        assert_eq!(s.in_work_dir(s.log.as_ref().unwrap()), std::path::Path::new("/work/restore.log"));
        assert_eq!(s.action, "restore");
    }

    #[test]
    fn defaults() {
        let s = of("dump -t 7").unwrap();
        assert_eq!((s.tree, s.verbosity, s.leave_running), (Some(7), 2, false));
        assert_eq!(s.images, std::path::Path::new("."));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(of("dump -t x").unwrap_err().contains("PID"));
        assert!(of("dump dump").unwrap_err().contains("excessive"));
        assert!(of("dump --lazy-pages").unwrap_err().contains("lazy-pages"));
        assert!(of("--no-default-config --no-default-config check").is_ok());
    }
}
