//! A run that is interrupted leaves nothing behind: programs, restored copies of them, what they have allocated.
//!
//! Tests end what they start, unless they are killed. So before the first of them runs a guard is started, in a session of its
//! own, and everything that tests start is marked by a variable of its environment, which a program keeps when it is saved,
//! restored and moved. When the tests have ended, however, the guard ends whatever still has the mark, and removes the System V
//! segments and POSIX shared memory that these programs made.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Marks what belongs to one run.
const MARK: &str = "MIGRATE_TEST_RUN";

/// Reads until the tests have ended, then looks twice: somebody may start another one just then.
const GUARD: &str = r#"
read -r nothing
for again in 1 2; do
  ended=
  for environ in /proc/[0-9]*/environ; do
    pid=${environ#/proc/}; pid=${pid%/environ}
    if tr '\0' '\n' < "$environ" 2>/dev/null | grep -qx "MIGRATE_TEST_RUN=$1"; then
      kill -9 "$pid" 2>/dev/null && ended="$ended $pid"
    fi
  done
  sleep 0.2
  for pid in $ended; do
    awk -v pid="$pid" 'NR > 1 && $5 == pid && $7 == 0 { print $2 }' /proc/sysvipc/shm | xargs -r -n1 ipcrm -m 2>/dev/null
  done
done
"#;

/// Keeps the guard waiting: its standard input ends with this process.
static GUARDED: std::sync::OnceLock<std::process::ChildStdin> = std::sync::OnceLock::new();

/// Called before `main`: nothing has been started, and no thread could be reading the environment.
extern "C" fn begin() {
    if std::env::var_os(MARK).is_some() {
        // A test that runs this program again.
        return;
    }
    let run = std::process::id().to_string();
    let guard = Command::new("/bin/sh")
        .args(["-c", GUARD, "guard", &run])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    if let Ok(mut guard) = guard {
        let _ = GUARDED.set(guard.stdin.take().expect("it is a pipe"));
        set_mark(&run);
    }
}

#[allow(unsafe_code)]
fn set_mark(run: &str) {
    // SAFETY: called before `main`, by the only thread there is.
    unsafe { std::env::set_var(MARK, run) };
}

#[allow(unsafe_code)]
// SAFETY: the C library calls what stands in this section before `main`; the function takes no arguments it would miss.
#[unsafe(link_section = ".init_array")]
#[used]
static BEGIN: extern "C" fn() = begin;

/// In a run of its own that is killed while its program runs.
#[test]
fn what_a_killed_run_has_started_ends() {
    const NAME: &str = "leftovers::what_a_killed_run_has_started_ends";
    const INNER: &str = "MIGRATE_TEST_LEFTOVERS";
    if std::env::var_os(INNER).is_some() {
        let mut child = Command::new("setsid").args(["sleep", "4242"]).stdout(Stdio::null()).spawn().unwrap();
        println!("sleeps {}", child.id());
        let _ = child.wait();
        return;
    }
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(INNER, "1")
        .env_remove(MARK)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(run.stdout.take().unwrap()));
    let line = lines.map_while(Result::ok).find(|line| line.contains("sleeps ")).expect("it starts a program");
    let pid: i32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    let sleeps = || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"sleep\x004242\0"));
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !sleeps() {
        assert!(std::time::Instant::now() < limit, "it does not start");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    while sleeps() {
        assert!(std::time::Instant::now() < limit, "it goes on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
