//! Images that are damaged or made up, given to the program: a clear failure, and nothing half-made is left.

use crate::cli::migrate;
use migrate_engine::image::manifest::{FILE, MODEL_FILE, Manifest, digest};
use migrate_engine::image::{Model, codec};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A saved program with two processes, a pipe between them, a thread and shared memory.
const PROGRAM: &str = "
import mmap, os, sys, threading, time
os.closerange(3, 1024)
shared = mmap.mmap(-1, 1 << 16)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if os.fork() == 0:
    time.sleep(1000)
listening, told = os.pipe()
os.write(told, b'unread')
open(sys.argv[1], 'w').close()
time.sleep(1000)
";

struct Saved {
    dir: tempfile::TempDir,
    pid: i32,
    model: Value,
}

impl Saved {
    /// `None`, said, where it cannot be tried.
    fn make() -> Option<Self> {
        let (root, python) = (nix::unistd::geteuid().is_root(), Path::new("/usr/bin/python3").exists());
        if !root || !python {
            crate::skip!("hostile: needs root ({root}) and /usr/bin/python3 ({python})");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let mut program = Command::new("setsid");
        program.args(["/usr/bin/python3", "-c", PROGRAM]).arg(&ready);
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut program = crate::networks::Killed(program.spawn().unwrap());
        for _ in 0..1000 {
            if ready.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = program.0.id() as i32;
        let image = dir.path().join("image");
        let output = migrate(&["dump", &pid.to_string(), "-D", image.to_str().unwrap()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program.0.wait().unwrap();
        let model = codec::decode(&std::fs::read(image.join(MODEL_FILE)).unwrap()).unwrap();
        Some(Self { dir, pid, model: serde_json::to_value(model).unwrap() })
    }

    fn good(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// A copy that may be spoilt.
    fn copy(&self) -> PathBuf {
        let bad = self.dir.path().join("bad");
        let _ = std::fs::remove_dir_all(&bad);
        std::fs::create_dir(&bad).unwrap();
        for entry in std::fs::read_dir(self.good()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), bad.join(entry.file_name())).unwrap();
        }
        bad
    }

    /// A copy with another model, and all checksums right. `None`: there is no such model.
    fn forged(&self, model: &Value) -> Option<PathBuf> {
        let model: Model = serde_json::from_value(model.clone()).ok()?;
        let bad = self.copy();
        let bytes = codec::encode(&model).unwrap();
        let (mut manifest, _) = Manifest::decode(&std::fs::read(bad.join(FILE)).unwrap()).unwrap();
        let entry = manifest.files.iter_mut().find(|entry| entry.name == MODEL_FILE).unwrap();
        (entry.bytes, entry.blake3) = (bytes.len() as u64, Some(digest(&bytes)));
        std::fs::write(bad.join(MODEL_FILE), bytes).unwrap();
        std::fs::write(bad.join(FILE), manifest.encode().unwrap().0).unwrap();
        Some(bad)
    }

    /// Processes of the program, whatever they are called: those with its ids, or its name in their arguments.
    fn alive(&self) -> Vec<i32> {
        let mark = self.dir.path().join("ready").display().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let maps = if *pid == self.pid { std::fs::read(format!("/proc/{pid}/maps")) } else { Ok(Vec::new()) };
            String::from_utf8_lossy(&line).contains(&mark)
                || String::from_utf8_lossy(&maps.unwrap_or_default()).contains("python3")
        })
        .collect()
    }

    /// `restore` of it. Whether it came up; then it is ended again.
    fn restores(&self, bad: &Path, what: &str) -> bool {
        let restore = ["restore", "-D", bad.to_str().unwrap(), "--detach", "--json"];
        let mut command = Command::new("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_migrate")]).args(restore).stdin(Stdio::null());
        let output = command.env("XDG_CONFIG_HOME", "/nonexistent").output().unwrap();
        let up = output.status.success();
        if up {
            for pid in self.alive() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
            // A process that was killed has yet to end.
            for _ in 0..500 {
                if self.alive().is_empty() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        } else {
            assert!(matches!(output.status.code(), Some(1 | 3 | 7 | 125)), "{what}: {}", text(&output));
            let said = String::from_utf8_lossy(&output.stdout).lines().last().map(str::to_owned).unwrap_or_default();
            let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{what}: {}", text(&output)));
            assert_eq!(said["ok"], false, "{what}");
            assert!(said["failure"]["what"].as_str().is_some_and(|what| !what.is_empty()), "{what}: {said}");
        }
        assert_eq!(self.alive(), [0; 0], "{what}: something is left of it: {}", text(&output));
        up
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        for pid in self.alive() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Says no, by code 7, in all three ways of reading an image.
fn is_refused(saved: &Saved, bad: &Path, what: &str) {
    for verb in ["verify", "show"] {
        let mut command = Command::new("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_migrate"), verb]).arg(bad).stdin(Stdio::null());
        let output = command.output().unwrap();
        // Pages are not looked at by `show`.
        let may_pass = verb == "show" && !what.starts_with("model") && !what.starts_with("manifest");
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 7)) || may_pass && code == Some(0), "{verb} of {what}: {}", text(&output));
        assert!(may_pass || String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{}", text(&output));
    }
    assert!(!saved.restores(bad, what), "{what} was restored");
}

#[test]
fn damaged_images_are_refused_and_nothing_is_left() {
    let Some(saved) = Saved::make() else { return };
    for entry in std::fs::read_dir(saved.good()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let good = std::fs::read(saved.good().join(&name)).unwrap();
        let len = good.len();
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            bytes
        };
        let spoilt = [flipped(0), flipped(len / 2), flipped(len - 1), good[..len / 2].to_vec(), Vec::new()];
        for (n, bytes) in spoilt.into_iter().enumerate() {
            let bad = saved.copy();
            std::fs::write(bad.join(&name), bytes).unwrap();
            is_refused(&saved, &bad, &format!("{name}, damage {n}"));
        }
        for target in ["/etc/passwd", "/dev/zero", "nowhere"] {
            let bad = saved.copy();
            std::fs::remove_file(bad.join(&name)).unwrap();
            std::os::unix::fs::symlink(target, bad.join(&name)).unwrap();
            is_refused(&saved, &bad, &format!("{name}, a link to {target}"));
        }
        let bad = saved.copy();
        std::fs::remove_file(bad.join(&name)).unwrap();
        nix::unistd::mkfifo(&bad.join(&name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        is_refused(&saved, &bad, &format!("{name}, a pipe"));
    }
    assert!(saved.restores(&saved.good(), "the image itself"), "what is not damaged is restored");
}

/// Every number of the model, as (JSON pointer, value).
fn numbers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(at.to_owned()),
        // Contents: registers, queues.
        Value::Array(all) if all.len() > 64 && all.iter().all(Value::is_number) => {}
        Value::Array(all) => all.iter().enumerate().for_each(|(n, one)| numbers(one, &format!("{at}/{n}"), found)),
        Value::Object(all) => all.iter().for_each(|(name, one)| numbers(one, &format!("{at}/{name}"), found)),
        _ => {}
    }
}

#[test]
fn models_that_are_made_up_come_up_or_leave_nothing() {
    let Some(saved) = Saved::make() else { return };
    let mut all = Vec::new();
    numbers(&saved.model, "", &mut all);
    assert!(all.len() > 500, "{} numbers", all.len());
    let (mut up, mut refused) = (0, 0);
    // A step that visits fields of all kinds, and other ones in each value's turn.
    for (n, at) in all.iter().step_by(all.len() / 60 + 1).enumerate() {
        let was = saved.model.pointer(at).unwrap().as_i64().unwrap_or(0);
        let values = [was ^ 1, was + 4096, 0, i64::from(i32::MAX), -1, 7];
        let value = values[n % values.len()];
        let mut model = saved.model.clone();
        *model.pointer_mut(at).unwrap() = value.into();
        let Some(bad) = saved.forged(&model) else { continue };
        match saved.restores(&bad, &format!("{at} = {value} instead of {was}")) {
            true => up += 1,
            false => refused += 1,
        }
    }
    eprintln!("{up} came up, {refused} were refused");
    assert!(refused > 10, "{up} came up, {refused} were refused");
}
