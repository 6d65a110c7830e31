//! Real programs: redis with much data under load, and the workloads that tests/it/programs/workloads.rs moves, with the same clients.

use crate::client::{Client, Kind, repeated};
use crate::hosts::Ours;
use crate::{ADDRESS, Bench, spread};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const REDIS: &str = "/usr/bin/redis-server";
/// Keys of 1000 bytes that take a GiB.
const KEYS: &str = "900000";
/// Keys that are saved while their server moves: for some seconds.
const SAVED_KEYS: &str = "20000";

/// Redis with a GiB.
pub fn redis(bench: &Bench, wanted: &dyn Fn(&str) -> bool) -> Result<(), String> {
    let name = "redis: 1 GiB, a question every ms";
    if !wanted(name) {
        return Ok(());
    }
    if !Path::new(REDIS).exists() {
        println!("{name}: left out, there is no {REDIS}");
        return Ok(());
    }
    let (mut pauses, mut gaps, mut beyond, mut trips, mut again) = (vec![], vec![], vec![], vec![], 0);
    for _ in 0..bench.runs {
        bench.lend_address()?;
        let pid = start_redis(bench, KEYS, "1000")?;
        let client = Client::start(&bench.hosts[2], &format!("{ADDRESS}:7001"), Kind::Count)?;
        std::thread::sleep(Duration::from_millis(300));
        let before = repeated(&bench.hosts[2])?;
        let moved = bench.moves(pid, &["--mode", "pre-copy"])?;
        std::thread::sleep(Duration::from_millis(200));
        let seen = client.end().map_err(|e| format!("{name}: {e}"))?;
        again += repeated(&bench.hosts[2])? - before;
        bench.kill(1, moved.pid);
        let pause = moved.number("downtime_us")? / 1e3;
        beyond.push(seen.gap - pause - 2.0 * seen.round_trip);
        pauses.push(pause);
        gaps.push(seen.gap);
        trips.push(seen.round_trip);
    }
    println!(
        "{name:<46} pause {} ms, gap outside {} (round trip {}), beyond pause + 2 round trips {}, no reset, {again} segments again",
        spread(pauses),
        spread(gaps),
        spread(trips),
        spread(beyond),
    );
    Ok(())
}

/// A server with so many keys, at the first host.
fn start_redis(bench: &Bench, keys: &str, bytes: &str) -> Result<i64, String> {
    let dir = bench.dir.display().to_string();
    let words = [REDIS, "--bind", ADDRESS, "--port", "7001", "--protected-mode", "no", "--save", "", "--dir", &dir];
    let pid = bench.hosts[0].start(words.iter().copied().chain(["--enable-debug-command", "yes"]))?;
    let until = Instant::now() + PATIENCE;
    loop {
        let mut fill = bench.hosts[2].command("/usr/bin/redis-cli");
        fill.args(["-h", ADDRESS, "-p", "7001", "debug", "populate", keys, "key", bytes]);
        if fill.output().is_ok_and(|output| output.stdout.starts_with(b"OK")) {
            return Ok(pid);
        }
        if Instant::now() > until {
            return Err("redis cannot be filled".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Name, client (tests/fixtures/programs/NAME_client.py), what has to be there.
const WORKLOADS: [(&str, &str, &str); 3] = [
    ("workload: a shell that forks 50 a second", "forks", "/bin/bash"),
    ("workload: redis while it saves", "saving", REDIS),
    ("workload: postgres, a connection every 20 ms", "arrivals", "/usr/lib/postgresql/15/bin/postgres"),
];

/// The named workloads, each with its client's verdict.
pub fn workloads(bench: &Bench, wanted: &dyn Fn(&str) -> bool) -> Result<(), String> {
    for (name, client, needs) in WORKLOADS.into_iter().filter(|(name, ..)| wanted(name)) {
        if !Path::new(needs).exists() {
            println!("{name}: left out, there is no {needs}");
            continue;
        }
        let (mut pauses, mut totals, mut said) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..bench.runs {
            let dir = tempfile::Builder::new().prefix("workload-").tempdir().map_err(|e| e.to_string())?;
            let moved = workload(bench, client, dir.path()).map_err(|e| format!("{name}: {e}"))?;
            pauses.push(moved.0);
            totals.push(moved.1);
            said = moved.2;
        }
        println!("{name:<46} pause {} ms, total {}; the last client: {said}", spread(pauses), spread(totals));
    }
    Ok(())
}

/// One move; pause and whole time, and what the client has said.
fn workload(bench: &Bench, name: &str, dir: &Path) -> Result<(f64, f64, String), String> {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir, open).map_err(|e| e.to_string())?;
    bench.lend_address()?;
    std::fs::write(dir.join("keys"), SAVED_KEYS).map_err(|e| e.to_string())?;
    let pid = bench.hosts[0].start(command(name, dir)?)?;
    let log = dir.join("client.log");
    let out = std::fs::File::create(&log).map_err(|e| e.to_string())?;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut client = bench.hosts[2].command("/usr/bin/python3");
    client.arg(fixture(&format!("{name}_client.py"))).arg(ADDRESS).arg(dir);
    client.stdout(out.try_clone().map_err(|e| e.to_string())?).stderr(out).stdin(Stdio::null());
    let mut client = Ours(client.spawn().map_err(|e| e.to_string())?);
    let until = Instant::now() + PATIENCE;
    while !said().contains("at work\n") {
        if Instant::now() > until || client.0.try_wait().map_err(|e| e.to_string())?.is_some() {
            return Err(format!("the client does not get to work: {}", said()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    let moved = bench.moves(pid, &["--mode", "pre-copy"])?;
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(dir.join("end"), "").map_err(|e| e.to_string())?;
    let status = client.0.wait().map_err(|e| e.to_string())?;
    bench.kill(1, moved.pid);
    if !status.success() {
        return Err(format!("the client's verdict: {status}: {}", said()));
    }
    let verdict = said().lines().last().unwrap_or_default().to_owned();
    Ok((moved.number("downtime_us")? / 1e3, moved.number("total_us")? / 1e3, verdict))
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/programs").join(name).display().to_string()
}

fn command(name: &str, dir: &Path) -> Result<Vec<String>, String> {
    let text = dir.display().to_string();
    let words: Vec<&str> = match name {
        "forks" => return Ok(vec!["/bin/bash".to_owned(), fixture("forks.sh"), text]),
        "saving" => {
            let server =
                [REDIS, "--bind", ADDRESS, "--port", "7001", "--protected-mode", "no", "--save", "", "--dir", &text];
            let slow = ["--rdb-key-save-delay", "60", "--enable-debug-command", "yes"];
            return Ok(server.iter().chain(&slow).map(|word| (*word).to_owned()).collect());
        }
        _ => vec!["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"],
    };
    let mut made = Command::new(words[0]);
    made.args(&words[1..]).args(["/usr/lib/postgresql/15/bin/initdb", "-A", "trust", "-N", "--locale=C", "-D"]);
    let output = made.arg(dir.join("data")).current_dir(dir).output().map_err(|e| e.to_string())?;
    let rules = dir.join("data/pg_hba.conf");
    let before = std::fs::read_to_string(&rules).map_err(|e| format!("initdb: {e}: {output:?}"))?;
    std::fs::write(&rules, before + "host all all 192.0.2.0/24 trust\n").map_err(|e| e.to_string())?;
    let server = ["/bin/bash".to_owned(), fixture("postgres.sh"), text, ADDRESS.to_owned()];
    Ok(words.into_iter().map(str::to_owned).chain(server).collect())
}
