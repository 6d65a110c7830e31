//! The service manager of this host: what it would do when a unit's main process ends, and keeping it from that.
//!
//! systemd takes no `Restart=` from `systemctl set-property`: a unit is held by a drop-in below /run, which a reload makes
//! effective for the unit as it runs, and which is gone after a boot in any case. Its name has the session's id, so that any
//! later program can release it.

use super::words::SessionId;
use crate::failure::{Failure, Result};
use crate::image::Pid;
use crate::proc::ProcDir;
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long `systemctl` may take: a reload reads all units of the host anew, and nothing is stopped meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the manager may take to see that a unit's processes have ended.
const END_SEEN: Duration = Duration::from_secs(10);
/// The most that is read of what it says, bytes.
const SAID_MAX: u64 = 64 << 10;

/// Nothing is started again, nothing is run, and nothing is cleaned up when the processes of the unit end.
const DROP_IN: &str =
    "# Made by migrate while the program of this unit moves to another host; without need once it has.
[Unit]
OnFailure=
OnSuccess=
[Service]
Restart=no
SuccessExitStatus=SIGKILL
ExecStop=
ExecStopPost=
RuntimeDirectoryPreserve=yes
";

/// systemd, if it runs here.
#[derive(Debug, Clone)]
pub struct Manager {
    systemctl: PathBuf,
    busctl: PathBuf,
    /// Units of this boot.
    units: PathBuf,
}

impl Manager {
    /// The system's.
    pub fn here() -> Option<Self> {
        let units = PathBuf::from("/run/systemd/system");
        // Not running means that nothing is supervised by it.
        units.exists().then(|| Self { systemctl: "systemctl".into(), busctl: "busctl".into(), units })
    }

    /// Another one, for tests: its programs are in this directory.
    #[cfg(test)]
    pub fn at(programs: &Path, units: impl Into<PathBuf>) -> Self {
        Self { systemctl: programs.join("systemctl"), busctl: programs.join("busctl"), units: units.into() }
    }

    /// What `systemctl show` says of a unit; `None` if it cannot be asked.
    pub fn show(&self, unit: &str) -> Option<HashMap<String, String>> {
        let properties =
            "--property=MainPID,Restart,WatchdogUSec,RestartForceExitStatus,RuntimeDirectory,ActiveState,LoadState";
        let text = self.run(&["show", properties, "--", unit]).ok()?;
        Some(text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    fn run(&self, arguments: &[&str]) -> io::Result<String> {
        said_by(&self.systemctl, arguments)
    }

    /// Calls a method of it by D-Bus: the name, the signature and the arguments in words of busctl(1).
    ///
    /// # Errors
    /// It refuses, or cannot be asked.
    pub fn call(&self, words: &[String]) -> io::Result<String> {
        const OBJECT: [&str; 4] =
            ["call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
        let words: Vec<&str> = OBJECT.into_iter().chain(words.iter().map(String::as_str)).collect();
        said_by(&self.busctl, &words)
    }

    /// Keeps units from being started again when their main process ends; released when dropped.
    ///
    /// # Errors
    /// One cannot be held, or the manager does not say that it is; none is, then.
    pub fn hold(&self, session: SessionId, units: Vec<String>) -> Result<HeldUnits> {
        let held = HeldUnits { manager: self.clone(), session, units };
        let failed = |unit: &str, e: io::Error| Failure::of(format!("{unit} cannot be kept from starting again"), &e);
        for unit in &held.units {
            let dir = self.units.join(format!("{unit}.d"));
            let written = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(drop_in(session)), DROP_IN));
            written.map_err(|e| failed(unit, e))?;
        }
        self.run(&["daemon-reload"]).map_err(|e| failed(&held.units.join(", "), e))?;
        for unit in &held.units {
            let restart = self.show(unit).and_then(|mut said| said.remove("Restart"));
            if restart.as_deref() != Some("no") {
                let said = restart.unwrap_or_else(|| "nothing".to_owned());
                return Err(failed(unit, io::Error::other(format!("systemd still says Restart={said}"))));
            }
        }
        Ok(held)
    }

    /// Releases whatever a session has held, if anything; what could not be done, in words.
    pub fn release(&self, session: SessionId) -> Vec<String> {
        let dirs = fs::read_dir(&self.units).into_iter().flatten().flatten().map(|entry| entry.path());
        let files: Vec<PathBuf> = dirs.map(|dir| dir.join(drop_in(session))).filter(|file| file.exists()).collect();
        if files.is_empty() {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        for file in &files {
            if let Err(error) = fs::remove_file(file) {
                warnings.push(format!("{} holds a unit and could not be removed: {error}", file.display()));
            }
            // Others may have drop-ins there.
            let _ = file.parent().map(fs::remove_dir);
        }
        if let Err(error) = self.run(&["daemon-reload"]) {
            warnings.push(format!("systemctl daemon-reload, after a unit was released: {error}"));
        }
        warnings
    }

    /// Releases what a session has held whose program is dead: at once where the main process of a unit goes on, else once the
    /// manager has seen its end; what could not be done, in words.
    pub fn settle(&self, session: SessionId) -> Vec<String> {
        let dirs = fs::read_dir(&self.units).into_iter().flatten().flatten();
        let held = dirs.filter(|dir| dir.path().join(drop_in(session)).exists());
        let units = held.filter_map(|dir| Some(dir.file_name().to_str()?.strip_suffix(".d")?.to_owned()));
        let ended = |unit: &String| {
            let main = self.show(unit).and_then(|said| said.get("MainPID")?.parse().ok()).map(Pid);
            let stat = main.and_then(|main| ProcDir::open(main).ok()?.stat(&mut Vec::new()).ok());
            stat.is_none_or(|stat| stat.is_zombie())
        };
        let units: Vec<String> = units.filter(ended).collect();
        if units.is_empty() {
            return self.release(session);
        }
        HeldUnits { manager: self.clone(), session, units }.after_end()
    }

    /// Keeps a unit from being started at all, until a person unmasks it or the host boots.
    ///
    /// # Errors
    /// It cannot be.
    pub fn mask(&self, unit: &str) -> Result<MaskedUnit> {
        let failed = |e: io::Error| Failure::of(format!("{unit} cannot be kept from starting"), &e);
        let path = self.units.join(unit);
        symlink("/dev/null", &path).map_err(failed)?;
        let masked = MaskedUnit { manager: self.clone(), path: Some(path) };
        self.run(&["daemon-reload"]).map_err(failed)?;
        Ok(masked)
    }

    /// Until no process of the unit is left for all that the manager knows.
    fn has_ended(&self, unit: &str) -> bool {
        let until = Instant::now() + END_SEEN;
        loop {
            let state = self.show(unit).and_then(|mut said| said.remove("ActiveState"));
            if matches!(state.as_deref(), Some("inactive" | "failed")) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn drop_in(session: SessionId) -> String {
    format!("50-migrate-{session}.conf")
}

/// A name that is one, and nothing else to a program or a path.
pub fn is_unit_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":_.\\@-".contains(c);
    name.len() <= 255 && name.ends_with(".service") && name.chars().all(plain) && !name.starts_with(['-', '.'])
}

/// Units that are not started again.
#[derive(Debug)]
pub struct HeldUnits {
    manager: Manager,
    session: SessionId,
    units: Vec<String>,
}

impl HeldUnits {
    /// The processes have ended: released once the manager has seen that; what a person should know.
    pub fn after_end(mut self) -> Vec<String> {
        let units = std::mem::take(&mut self.units);
        let late: Vec<&String> = units.iter().filter(|unit| !self.manager.has_ended(unit)).collect();
        match late.first() {
            None => self.manager.release(self.session),
            Some(unit) => vec![format!(
                "systemd has not seen {unit} end yet: it is kept from starting again until {} is removed",
                self.manager.units.join(format!("{unit}.d")).join(drop_in(self.session)).display()
            )],
        }
    }

    /// They stay held: whoever decides about the target releases them.
    pub fn leave(mut self) {
        self.units.clear();
    }
}

impl Drop for HeldUnits {
    fn drop(&mut self) {
        if !self.units.is_empty() {
            for warning in self.manager.release(self.session) {
                tracing::warn!("{warning}");
            }
        }
    }
}

/// A unit that cannot be started; it can again when this is dropped.
#[derive(Debug)]
pub struct MaskedUnit {
    manager: Manager,
    path: Option<PathBuf>,
}

impl MaskedUnit {
    /// It stays so; what a person should know.
    pub fn stay(mut self) -> Option<String> {
        let path = self.path.take()?;
        let unit = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Some(format!(
            "{unit} is masked here so that it does not run beside the target: systemctl unmask --runtime {unit}"
        ))
    }
}

impl Drop for MaskedUnit {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let removed = remove_link(&path).and_then(|()| self.manager.run(&["daemon-reload"]));
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "a unit stays masked");
        }
    }
}

fn remove_link(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// What a program says that ends with success in time.
fn said_by(program: &Path, arguments: &[&str]) -> io::Result<String> {
    let mut command = Command::new(program);
    let mut child =
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let deadline = Instant::now() + PATIENCE;
    // It writes a few lines only, so it never waits for us to read.
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // It is our own child; an error means that it has just ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} does not answer", program.display())));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if !status.success() {
        return Err(io::Error::other(format!("{} {}: {status}", program.display(), arguments[0])));
    }
    let mut text = String::new();
    if let Some(said) = child.stdout.take() {
        said.take(SAID_MAX).read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A `systemctl` that knows one running unit, x.service with Restart=always, and believes drop-ins once it has reloaded.
    pub fn fake(dir: &Path, main: i32) -> Manager {
        let (path, units) = (dir.join("systemctl"), dir.join("units"));
        fs::create_dir_all(&units).unwrap();
        let script = format!(
            "#!/bin/sh\ncd {}\necho \"$*\" >> calls\ncase $1 in\n\
             daemon-reload) rm -f loaded; cat units/x.service.d/*.conf > loaded 2>/dev/null || true;;\n\
             show) echo MainPID={main}; grep -s ^Restart= loaded || echo Restart=always; echo WatchdogUSec=0\n\
             if [ -e ended ]; then echo ActiveState=failed; else echo ActiveState=active; fi;;\n\
             esac\n",
            dir.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Manager::at(dir, units)
    }

    /// One of which this shell script is what it does when called by D-Bus, in the directory.
    pub fn with_bus(dir: &Path, does: &str) -> Manager {
        let path = dir.join("busctl");
        fs::write(&path, format!("#!/bin/sh\ncd {}\n{does}\n", dir.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Manager::at(dir, dir.join("units"))
    }

    fn restart(manager: &Manager) -> String {
        manager.show("x.service").unwrap()["Restart"].clone()
    }

    #[test]
    fn a_unit_is_held_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let manager = fake(dir.path(), i32::MAX);
        let session = SessionId::random();
        assert_eq!(restart(&manager), "always");
        let held = manager.hold(session, vec!["x.service".into()]).unwrap();
        assert_eq!(restart(&manager), "no");
        drop(held);
        assert_eq!(restart(&manager), "always", "rolled back");
        assert_eq!(fs::read_dir(dir.path().join("units")).unwrap().count(), 0, "nothing is left");
        manager.hold(session, vec!["x.service".into()]).unwrap().leave();
        assert_eq!(restart(&manager), "no", "in doubt: still held");
        // By whoever finds it: its main process has ended, and the manager sees that in a moment.
        fs::write(dir.path().join("ended"), "").unwrap();
        assert_eq!(manager.settle(session), Vec::<String>::new());
        assert_eq!(restart(&manager), "always");
        fs::remove_file(dir.path().join("ended")).unwrap();
        let held = manager.hold(session, vec!["x.service".into()]).unwrap();
        fs::write(dir.path().join("ended"), "").unwrap();
        assert_eq!(held.after_end(), Vec::<String>::new());
        assert_eq!(restart(&manager), "always", "its end was seen: nothing starts it again now");
    }

    #[test]
    fn a_manager_that_does_not_obey_is_no_hold() {
        let dir = tempfile::tempdir().unwrap();
        let manager = fake(dir.path(), 7);
        let script = "#!/bin/sh\necho Restart=always\n";
        fs::write(dir.path().join("systemctl"), script).unwrap();
        let failure = manager.hold(SessionId::random(), vec!["x.service".into()]).unwrap_err();
        assert!(failure.to_string().contains("still says Restart=always"), "{failure}");
        assert_eq!(fs::read_dir(dir.path().join("units")).unwrap().count(), 0);
    }

    #[test]
    fn a_unit_is_masked_until_that_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let manager = fake(dir.path(), 0);
        let link = dir.path().join("units/x.service");
        drop(manager.mask("x.service").unwrap());
        assert!(!link.is_symlink());
        let told = manager.mask("x.service").unwrap().stay().unwrap();
        assert!(link.is_symlink() && told.contains("unmask --runtime x.service"), "{told}");
        assert!(manager.mask("x.service").is_err(), "what is there already stays");
        assert!(link.is_symlink());
    }

    #[test]
    fn names_of_units() {
        assert!(is_unit_name("redis-server@a\\x2db.service"));
        for wrong in ["../x.service", "a/b.service", "-x.service", ".service", "x.socket", "x.service\n"] {
            assert!(!is_unit_name(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn its_silence_is_no_answer() {
        assert_eq!(Manager::at(Path::new("/no/such"), "/nowhere").show("x.service"), None);
    }
}
