//! When a restored process runs, and when it has all of its memory: `cargo bench --bench lazy` (as root).
//!
//! usage: lazy [--runs N] [MIB...]
//!
//! A process that says when it runs (tests/fixtures/heartbeat.c) is dumped once and restored in turn as usual and with `--lazy`.
//! Printed for each size: from the start of the command to the first instruction, and until the process has compared every
//! page, which it begins at once (medians, least-most). Exit code 1 if a page was wrong. Images lie in the directory for
//! temporary files.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PROGRAM: &str = env!("CARGO_BIN_EXE_migrate");
/// No step takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Words of the file that the process maps.
struct Words(File);

impl Words {
    fn get(&self, n: u64) -> Result<u64, String> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, n * 8).map_err(|e| e.to_string())?;
        Ok(u64::from_ne_bytes(word))
    }

    fn set(&self, n: u64, value: u64) -> Result<(), String> {
        self.0.write_all_at(&value.to_ne_bytes(), n * 8).map_err(|e| e.to_string())
    }

    /// Waits until a word is not 0.
    fn until(&self, n: u64) -> Result<u64, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.get(n)? {
                0 if Instant::now() > deadline => return Err(format!("word {n} stays 0")),
                0 => std::thread::sleep(Duration::from_micros(50)),
                value => return Ok(value),
            }
        }
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn migrate(args: &[&str]) -> Result<(), String> {
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("migrate {}: {said}", args.join(" "))) }
}

/// First instruction and last page, ms after the start of the command.
fn restore(dir: &Path, words: &Words, options: &[&str]) -> Result<(f64, f64), String> {
    (0..4).try_for_each(|n| words.set(n, 0))?;
    words.set(1, 1)?;
    let (image, pid) = (dir.join("image").display().to_string(), dir.join("pid").display().to_string());
    let began = now();
    // The file of words has been written to since.
    let mut args = vec!["restore", "-D", &image, "--detach", "--pidfile", &pid, "--files", "skip"];
    args.extend(options);
    migrate(&args)?;
    let first = words.until(0)?;
    let wrong = words.until(2)? - 1;
    let all = now();
    let pid = std::fs::read_to_string(&pid).map_err(|e| e.to_string())?;
    let pid = Pid::from_raw(pid.trim().parse().map_err(|_| "no process id")?);
    kill(pid, Signal::SIGKILL).map_err(|e| e.to_string())?;
    let _ = nix::sys::wait::waitpid(pid, None);
    if wrong != 0 {
        return Err(format!("{wrong} WRONG PAGES"));
    }
    // While it compares there is no other heartbeat than the first.
    let ms = |ns: u64| ns.saturating_sub(began) as f64 / 1e6;
    Ok((ms(first), ms(all)))
}

fn row(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    format!("{:>7.1} ({:.1}-{:.1})", at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

fn size(dir: &Path, fixture: &Path, mib: u64, runs: usize) -> Result<(), String> {
    let path = dir.join("words");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let words = Words(file.map_err(|e| e.to_string())?);
    words.0.set_len(4096).map_err(|e| e.to_string())?;
    let mut command = Command::new(fixture);
    command.arg(mib.to_string()).arg(&path).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
    let saved = words
        .until(0)
        .and_then(|_| migrate(&["dump", &child.id().to_string(), "-D", &dir.join("image").display().to_string()]));
    if saved.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    saved?;
    let (mut usual, mut lazy) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        usual.push(restore(dir, &words, &[])?);
        lazy.push(restore(dir, &words, &["--lazy"])?);
    }
    for (name, all) in [("usual", usual), ("lazy", lazy)] {
        let (first, last): (Vec<f64>, Vec<f64>) = all.into_iter().unzip();
        println!("{mib:>5} MiB {name:<6} first instruction {} ms, every page compared {} ms", row(first), row(last));
    }
    std::fs::remove_dir_all(dir.join("image")).map_err(|e| e.to_string())
}

fn bench() -> Result<(), String> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let (mut runs, mut sizes) = (10, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|n| n.parse().ok()).ok_or("--runs takes a number")?,
            mib => sizes.push(mib.parse().map_err(|_| format!("{mib} is no size in MiB"))?),
        }
    }
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| e.to_string())?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let fixture = dir.path().join("heartbeat");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/heartbeat.c");
    let compiled = Command::new("gcc").args(["-O2", "-o"]).arg(&fixture).arg(source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        return Err("gcc cannot compile the heartbeat".into());
    }
    let sizes = if sizes.is_empty() { vec![1, 64, 1024] } else { sizes };
    sizes.into_iter().try_for_each(|mib| size(dir.path(), &fixture, mib, runs))
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
