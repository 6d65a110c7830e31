//! How long a process with much memory stands still, as it sees that itself and as a client of it does.

use crate::client::{Client, Kind, repeated};
use crate::criu::Criu;
use crate::notes::{self, Access, Notes};
use crate::{Bench, spread};
use std::path::Path;
use std::time::Duration;

/// MiB, pages written a second, link, whether it is measured only when it is asked for: it takes minutes.
const SHAPES: [(u64, u64, Option<&str>, bool); 12] = [
    (1, 2000, None, false),
    (64, 2000, None, false),
    (64, 20_000, None, false),
    (1024, 2000, None, false),
    (1024, 20_000, None, false),
    (4096, 2000, None, true),
    (4096, 20_000, None, true),
    (1, 2000, Some("1gbit"), false),
    (64, 2000, Some("1gbit"), false),
    (64, 20_000, Some("1gbit"), true),
    (1024, 2000, Some("1gbit"), false),
    (4096, 2000, Some("1gbit"), true),
];
/// CRIU keeps all of it in a file system of memory beside the process: beyond this it is left out.
const CRIU_MAX_MIB: u64 = 1024;
/// A page with its name on the wire.
const PAGE_BYTES: f64 = 4096.0 + 64.0;
/// The moved process works so long before it is looked at.
const AFTERWARDS: Duration = Duration::from_millis(150);

/// What one move has shown; times in milliseconds.
struct Moved {
    reported: f64,
    total: f64,
    /// Between two of its writes.
    felt: f64,
    /// Between two answers that a client gets.
    seen: f64,
    round_trip: f64,
    sent: f64,
    unavoidable: f64,
    /// Segments that the client has sent again.
    repeated: u64,
}

/// The longest time between two accesses, milliseconds.
pub fn longest_gap(accesses: &[Access]) -> f64 {
    accesses.windows(2).map(|two| two[1].when.saturating_sub(two[0].when)).max().unwrap_or(0) as f64 / 1e6
}

/// Bytes that have to be sent: every page once, and again those that were written after they were read. The first round reads
/// pages in ascending order from its beginning to its end (`read`, ns).
fn unavoidable(accesses: &[Access], pages: u64, read: (u64, u64), frozen: u64) -> f64 {
    let mut again = vec![false; pages as usize];
    let took = (read.1 - read.0) as f64;
    for access in accesses.iter().filter(|access| access.when < frozen) {
        let was_read = read.0 as f64 + took * f64::from(access.page) / pages as f64;
        if let Some(page) = again.get_mut(access.page as usize) {
            *page |= access.when as f64 > was_read;
        }
    }
    (pages as f64 + again.iter().filter(|again| **again).count() as f64) * PAGE_BYTES
}

/// When an event was said, ns since 1970, by its time of the day; `near` is some time on that day.
fn when(event: &serde_json::Value, near: u64) -> Option<u64> {
    const DAY: u64 = 86_400_000_000_000;
    let text = event["ts"].as_str()?.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = text.split(':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let seconds =
        seconds.parse::<f64>().ok()? + minutes.parse::<f64>().ok()? * 60.0 + hours.parse::<f64>().ok()? * 3600.0;
    let of_day = (seconds * 1e9) as u64;
    let day = near / DAY * DAY + of_day;
    // The other side of midnight.
    Some(if day + DAY / 2 < near { day + DAY } else { day })
}

/// A target at the first host.
fn start(bench: &Bench, (mib, rate): (u64, u64), address: Option<&str>) -> Result<(Notes, i64), String> {
    let path = bench.dir.join("notes");
    let notes = Notes::make(&path)?;
    let (mib, rate, path) = (mib.to_string(), rate.to_string(), path.display().to_string());
    let fixture = bench.fixture.display().to_string();
    let words = [&fixture, &mib, &rate, "uniform", &path].map(str::to_owned);
    let server = address.map(|address| [address.to_owned(), "7000".to_owned()]);
    let pid = bench.hosts[0].start(words.into_iter().chain(server.into_iter().flatten()))?;
    notes.until(notes::READY)?;
    std::thread::sleep(Duration::from_millis(300));
    Ok((notes, pid))
}

fn ours(bench: &Bench, shape: (u64, u64)) -> Result<Moved, String> {
    let address = bench.lend_address()?;
    let (notes, pid) = start(bench, shape, Some(address))?;
    let client = Client::start(&bench.hosts[2], &format!("{address}:7000"), Kind::Echo)?;
    std::thread::sleep(Duration::from_millis(100));
    let (before, first) = (repeated(&bench.hosts[2])?, notes.count()?);
    let moved = bench.moves(pid, &["--mode", "pre-copy", "--files", "skip"])?;
    std::thread::sleep(AFTERWARDS);
    let seen = client.end()?;
    let repeated = repeated(&bench.hosts[2])? - before;
    let accesses = notes.accesses()?.split_off(first);
    let wrong = notes.wrong()?;
    bench.kill(1, moved.pid);
    if wrong != 0 {
        return Err(format!("{wrong} WRONG PAGES after the move"));
    }
    let near = accesses.first().ok_or("it has written nothing")?.when;
    let event = |name: &str| moved.events.iter().find(|event| event["event"] == name);
    let time = |name: &str| event(name).and_then(|e| when(e, near)).ok_or_else(|| format!("no event {name}"));
    let (end, frozen) = (time("round")?, time("frozen")?);
    let took = event("round").and_then(|round| round["took_us"].as_u64()).unwrap_or(0) * 1000;
    Ok(Moved {
        reported: moved.number("downtime_us")? / 1e3,
        total: moved.number("total_us")? / 1e3,
        felt: longest_gap(&accesses),
        seen: seen.gap,
        round_trip: seen.round_trip,
        sent: moved.number("bytes_sent")?,
        unavoidable: unavoidable(&accesses, shape.0 * 256, (end - took, end), frozen),
        repeated,
    })
}

/// The pause of CRIU, milliseconds, as the process sees it.
fn theirs(bench: &Bench, criu: &Criu<'_>, shape: (u64, u64)) -> Result<f64, String> {
    let (notes, pid) = start(bench, shape, None)?;
    let first = notes.count()?;
    criu.moves(&bench.hosts, pid, &bench.dir.join("criu-images"))?;
    std::thread::sleep(AFTERWARDS);
    let accesses = notes.accesses()?.split_off(first);
    let wrong = notes.wrong()?;
    bench.kill(1, pid);
    if wrong == 0 { Ok(longest_gap(&accesses)) } else { Err(format!("CRIU: {wrong} WRONG PAGES")) }
}

/// All shapes whose name has one of these parts.
pub fn run(bench: &Bench, wanted: &dyn Fn(&str) -> bool, all: bool, criu: Option<&Path>) -> Result<(), String> {
    for (mib, rate, link, long) in SHAPES {
        let size = if mib < 1024 { format!("{mib} MiB") } else { format!("{} GiB", mib / 1024) };
        let name = format!("memory: {size}, {rate} pages/s, {}", link.unwrap_or("unlimited"));
        if !wanted(&name) || (long && !all) {
            continue;
        }
        bench.limit(link)?;
        let criu = criu.filter(|_| mib <= CRIU_MAX_MIB).map(Criu);
        let (mut moves, mut pauses) = (Vec::new(), Vec::new());
        for _ in 0..bench.runs {
            moves.push(ours(bench, (mib, rate)).map_err(|e| format!("{name}: {e}"))?);
            if let Some(criu) = &criu {
                pauses.push(theirs(bench, criu, (mib, rate)).map_err(|e| format!("{name}: {e}"))?);
            }
        }
        print(&name, &moves, &pauses);
    }
    bench.limit(None)
}

fn print(name: &str, moves: &[Moved], criu: &[f64]) {
    let row = |value: &dyn Fn(&Moved) -> f64| spread(moves.iter().map(value).collect());
    let mut line = format!(
        "{name:<46} pause {} ms, felt inside {}, gap outside {} (round trip {}), total {}, sent {} x unavoidable, {} segments again",
        row(&|m| m.reported),
        row(&|m| m.felt),
        row(&|m| m.seen),
        row(&|m| m.round_trip),
        row(&|m| m.total),
        row(&|m| m.sent / m.unavoidable),
        moves.iter().map(|m| m.repeated).sum::<u64>(),
    );
    if !criu.is_empty() {
        let ratios = moves.iter().zip(criu).map(|(ours, theirs)| ours.felt / theirs).collect();
        line += &format!("; CRIU felt inside {}, ours / CRIU {}", spread(criu.to_vec()), spread(ratios));
    }
    println!("{line}");
}
