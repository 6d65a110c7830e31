//! The two programs that are compared, as commands that somebody types.

use crate::{Failed, at, target::Target};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// A program that saves and restores.
#[derive(Debug)]
pub enum Tool {
    Ours(PathBuf),
    Criu(PathBuf),
}

/// What becomes of the target of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It ends.
    Ends,
    /// It runs on.
    RunsOn,
    /// It runs on while it is saved, where the tool has that.
    Snapshot,
}

/// What one dump took.
#[derive(Debug, Clone, Copy)]
pub struct Dumped {
    /// The whole command.
    pub total: Duration,
    /// How long the target stood still, as the program itself says.
    pub pause: Duration,
}

impl Tool {
    pub fn name(&self) -> &'static str {
        match self {
            Tool::Ours(_) => "ours",
            Tool::Criu(_) => "CRIU",
        }
    }

    /// Which version it is.
    pub fn version(&self) -> String {
        let (Tool::Ours(program) | Tool::Criu(program)) = self;
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("unknown").replace("Version: ", "CRIU ")
    }

    /// Saves the target.
    pub fn dump(&self, target: &Target, dir: &Path, after: After) -> Result<Dumped, Failed> {
        let pid = target.pid().to_string();
        match self {
            Tool::Ours(program) => {
                let mut command = Command::new(program);
                command.args(["dump", "--json", &pid, "-D"]).arg(dir);
                command.args((after == After::RunsOn).then_some("--leave-running"));
                command.args((after == After::Snapshot).then_some("--snapshot"));
                let (total, output) = timed(&mut command)?;
                Ok(Dumped { total, pause: pause_of_ours(&output.stdout)? })
            }
            Tool::Criu(program) => {
                fs::create_dir(dir).map_err(at("the directory for CRIU's image"))?;
                let mut command = Command::new(program);
                command.args(["dump", "-o", "dump.log", "-t", &pid, "-D"]).arg(dir);
                command.args((after != After::Ends).then_some("--leave-running"));
                let (total, _) = timed(&mut command)?;
                Ok(Dumped { total, pause: pause_of_criu(&dir.join("stats-dump"))? })
            }
        }
    }

    /// Restores it; returns when it runs.
    pub fn restore(&self, dir: &Path) -> Result<Duration, Failed> {
        let mut command = match self {
            Tool::Ours(program) => {
                let mut command = Command::new(program);
                command.args(["restore", "--detach", "-D"]).arg(dir);
                command
            }
            Tool::Criu(program) => {
                let mut command = Command::new(program);
                command.args(["restore", "--restore-detached", "-o", "restore.log", "-D"]).arg(dir);
                command
            }
        };
        Ok(timed(&mut command)?.0)
    }
}

/// Runs a command to its end.
fn timed(command: &mut Command) -> Result<(Duration, Output), Failed> {
    // What it leaves running must not hold a pipe of ours: into files.
    let (mut out, mut err) = (temporary()?, temporary()?);
    command.stdin(Stdio::null()).env("XDG_CONFIG_HOME", "/nonexistent").env_remove("MIGRATE_CONFIG");
    command.stdout(out.try_clone().map_err(at("a file"))?).stderr(err.try_clone().map_err(at("a file"))?);
    let began = Instant::now();
    let status = command.status().map_err(at(&command.get_program().to_string_lossy()))?;
    let took = began.elapsed();
    let output = Output { status, stdout: content(&mut out)?, stderr: content(&mut err)? };
    if status.success() {
        return Ok((took, output));
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    Err(format!("{command:?}: {status}: {}", last.join(" | ")).into())
}

fn temporary() -> Result<fs::File, Failed> {
    tempfile::tempfile_in("/dev/shm").map_err(at("a temporary file"))
}

fn content(file: &mut fs::File) -> Result<Vec<u8>, Failed> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(at("a temporary file"))?;
    Ok(bytes)
}

/// From the event that ends the command's output: the whole pause, or, for a target that ended, the sum of its parts.
fn pause_of_ours(json: &[u8]) -> Result<Duration, Failed> {
    let text = String::from_utf8_lossy(json);
    let result: serde_json::Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).map_err(at("events"))?;
    if std::env::var_os("PEERS_DETAILS").is_some() {
        eprintln!("  {} rounds {}", result["downtime_parts"], result["rounds"]);
    }
    let parts = result["downtime_parts"].as_object().into_iter().flatten().filter_map(|(_, us)| us.as_u64()).sum();
    Ok(Duration::from_micros(result["downtime_us"].as_u64().unwrap_or(parts)))
}

/// CRIU's statistics: two magic numbers, a length, and a message of Protocol Buffers, whose field 1 is a message with the
/// times of the dump; the first two of its fields are the microseconds of the freezing and of the frozen state.
fn pause_of_criu(path: &Path) -> Result<Duration, Failed> {
    let bytes = fs::read(path).map_err(at("stats-dump"))?;
    let damaged = || Failed::from("stats-dump of CRIU is not what was expected");
    let mut entry = bytes.get(12..).ok_or_else(damaged)?;
    let dump = loop {
        match field(&mut entry).ok_or_else(damaged)? {
            (1, Value::Bytes(bytes)) => break bytes,
            _ => continue,
        }
    };
    let (mut rest, mut us) = (dump, 0);
    while let Some((number, value)) = field(&mut rest) {
        if let (1 | 2, Value::Number(n)) = (number, value) {
            us += n;
        }
    }
    Ok(Duration::from_micros(us))
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The next field of a message: its number and value.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => Value::Number(varint(rest)?),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let (bytes, later) = rest.split_at_checked(length)?;
            *rest = later;
            Value::Bytes(bytes)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, later) = rest.split_first()?;
        *rest = later;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
