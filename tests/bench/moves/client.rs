//! A client outside: it sends a numbered question every millisecond, whether or not earlier ones were answered, and checks each answer.
//!
//! It is this program itself, run in the clients' network as `client ADDRESS:PORT KIND`: it says `at work`, goes on until its standard
//! input closes, waits for what is missing, and says what it has seen.

use crate::hosts::{Host, Ours};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(1);
/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To say it again.
    Echo,
    /// To count (redis).
    Count,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Count => "count",
        }
    }

    fn question(self, n: u64) -> String {
        match self {
            Self::Echo => format!("{n}\n"),
            Self::Count => "INCR asked\r\n".to_owned(),
        }
    }

    fn answer(self, n: u64) -> String {
        match self {
            Self::Echo => n.to_string(),
            Self::Count => format!(":{n}\r"),
        }
    }
}

/// What it has seen, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Longest time between two answers.
    pub gap: f64,
    /// From a question to its answer, the median: a round trip.
    pub round_trip: f64,
    pub answers: u64,
}

/// A client at work.
#[derive(Debug)]
pub struct Client(Ours);

impl Client {
    pub fn start(host: &Host, address: &str, kind: Kind) -> Result<Self, String> {
        let mut client = host.command(std::env::current_exe().map_err(|e| e.to_string())?);
        client.args(["client", address, kind.name()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Ours(client.spawn().map_err(|e| e.to_string())?);
        let mut line = String::new();
        // A byte at a time: what comes later is read when it ends.
        let out = client.0.stdout.as_mut().ok_or("it is piped")?;
        while !line.ends_with('\n') {
            let mut byte = [0];
            out.read_exact(&mut byte).map_err(|e| format!("the client does not begin: {e}"))?;
            line.push(char::from(byte[0]));
        }
        if line == "at work\n" { Ok(Self(client)) } else { Err(format!("the client says {line:?}")) }
    }

    /// What it has seen; an error if an answer was wrong or did not come.
    pub fn end(mut self) -> Result<Seen, String> {
        drop(self.0.0.stdin.take());
        let mut said = String::new();
        let out = self.0.0.stdout.as_mut().ok_or("it is piped")?;
        out.read_to_string(&mut said).map_err(|e| e.to_string())?;
        let status = self.0.0.wait().map_err(|e| e.to_string())?;
        let words: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match (status.success(), words.as_slice()) {
            (true, [gap, round_trip, answers]) => {
                Ok(Seen { gap: *gap, round_trip: *round_trip, answers: *answers as u64 })
            }
            _ => Err(format!("the client's verdict: {status}: {said}")),
        }
    }
}

/// Segments that were sent again from a host's network since it was made (`TcpRetransSegs`).
pub fn repeated(host: &Host) -> Result<u64, String> {
    let output = host.command("cat").arg("/proc/net/snmp").output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(|line| line.split(' '));
    let (names, values) = (lines.next().ok_or("no counters")?, lines.next().ok_or("no counters")?);
    let value = names.zip(values).find(|(name, _)| *name == "RetransSegs").map(|(_, value)| value);
    value.and_then(|value| value.parse().ok()).ok_or_else(|| "no RetransSegs".to_owned())
}

/// The program.
pub fn run(address: &str, kind: &str) -> Result<(), String> {
    let kind = if kind == Kind::Echo.name() { Kind::Echo } else { Kind::Count };
    let mut connection = connect(address)?;
    let answers = connection.try_clone().map_err(|e| e.to_string())?;
    let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let (over, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
    let reader = {
        let (sent, last) = (Arc::clone(&sent), Arc::clone(&last));
        std::thread::spawn(move || listen(kind, answers, &sent, &last))
    };
    let stop = Arc::clone(&over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        stop.store(true, Ordering::SeqCst);
    });
    println!("at work");
    let (mut n, mut due) = (0, Instant::now());
    while !over.load(Ordering::SeqCst) {
        n += 1;
        sent.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        connection.write_all(kind.question(n).as_bytes()).map_err(|e| format!("question {n}: {e}"))?;
        due += EVERY;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    // One more, which tells the reader that it is the last.
    last.store(n + 1, Ordering::SeqCst);
    sent.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    connection.write_all(kind.question(n + 1).as_bytes()).map_err(|e| format!("the last question: {e}"))?;
    let seen = reader.join().map_err(|_| "the reader has panicked")??;
    println!("{} {} {}", seen.gap, seen.round_trip, seen.answers);
    Ok(())
}

fn connect(address: &str) -> Result<TcpStream, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(connection) => {
                connection.set_nodelay(true).map_err(|e| e.to_string())?;
                connection.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
                connection.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
                return Ok(connection);
            }
            Err(error) if Instant::now() > until => return Err(format!("{address}: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn listen(kind: Kind, answers: TcpStream, sent: &Mutex<Vec<Instant>>, last: &AtomicU64) -> Result<Seen, String> {
    let (mut gap, mut took, mut before) = (Duration::ZERO, Vec::new(), None);
    for (n, line) in (1..).zip(BufReader::new(answers).split(b'\n')) {
        let line = line.map_err(|e| format!("answer {n}: {e}"))?;
        let now = Instant::now();
        if line != kind.answer(n).as_bytes() {
            return Err(format!("answer {n} is {:?}", String::from_utf8_lossy(&line)));
        }
        gap = gap.max(before.map_or(Duration::ZERO, |before| now - before));
        before = Some(now);
        let asked = sent.lock().unwrap_or_else(PoisonError::into_inner)[n as usize - 1];
        took.push(now - asked);
        if n == last.load(Ordering::SeqCst) {
            took.sort_unstable();
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            return Ok(Seen { gap: ms(gap), round_trip: ms(took[took.len() / 2]), answers: n });
        }
    }
    Err("the connection was closed".to_owned())
}
