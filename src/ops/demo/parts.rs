//! The programs of the demo: one that counts and answers, one that asks.

use super::{PORT, SERVICE};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two lines of the client.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the client has seen in the last 100 ms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    /// Milliseconds since the client began.
    pub at_ms: u64,
    /// The host that answered last.
    pub host: String,
    /// The program's counter.
    pub counter: u64,
    /// The last round trip, microseconds.
    pub round_trip_us: u64,
    /// The longest wait for an answer in this time, microseconds.
    pub longest_us: u64,
}

/// How it went, as the client has seen it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Questions asked.
    pub questions: u64,
    /// Bytes of answers that did not come, or came wrong.
    pub bytes_lost: u64,
    /// Connections reset or closed.
    pub resets: u64,
    /// The longest wait for an answer, microseconds.
    pub longest_gap_us: u64,
    /// The counter went back at least once.
    pub counter_went_back: bool,
    /// Hosts that answered, in their order.
    pub hosts: Vec<String>,
    /// It was to stay where it was.
    #[serde(default)]
    pub stays: bool,
}

impl Verdict {
    /// Nothing was lost, and the program went on where it should: one copy of it.
    pub fn is_good(&self) -> bool {
        self.bytes_lost == 0
            && self.resets == 0
            && !self.counter_went_back
            && self.hosts.len() == if self.stays { 1 } else { 2 }
    }
}

/// The program that moves: counts every millisecond, and answers each line with its host, its counter and the line.
///
/// # Errors
/// The address cannot be bound, or the file not be written.
pub fn counter(pidfile: Option<&Path>) -> std::io::Result<()> {
    own_descriptors_only()?;
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let listener = TcpListener::bind((SERVICE, PORT))?;
    std::thread::spawn(|| {
        loop {
            COUNTER.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    if let Some(path) = pidfile {
        let draft = path.with_extension("draft");
        std::fs::write(&draft, std::process::id().to_string())?;
        std::fs::rename(draft, path)?;
    }
    for stream in listener.incoming() {
        let _ = answer(stream?, &COUNTER);
    }
    Ok(())
}

/// What this program was started with belongs to whoever started it, and would end outside of what moves.
fn own_descriptors_only() -> std::io::Result<()> {
    use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
    crate::sys::fd::close_from(3)?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

fn answer(stream: TcpStream, counter: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let host = nix::unistd::gethostname()?;
        let text = format!("{} {} {}\n", host.to_string_lossy(), counter.load(Ordering::Relaxed), line?);
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// The client: asks every millisecond over one connection, says every 100 ms what it sees (a JSON line), and at the end of
/// its standard input the verdict.
///
/// # Errors
/// The program cannot be reached at all.
pub fn client(out: &mut dyn Write) -> std::io::Result<()> {
    static END: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0; 1]);
        END.store(true, Ordering::Relaxed);
    });
    let stream = TcpStream::connect((SERVICE, PORT))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut ask = stream.try_clone()?;
    let mut answers = BufReader::new(stream);
    let began = Instant::now();
    let mut seen = Seen::default();
    let mut next = LOOK_EVERY;
    while !END.load(Ordering::Relaxed) && seen.verdict.resets == 0 {
        seen.ask(&mut ask, &mut answers);
        if began.elapsed() >= next {
            // What was missed while nobody answered is not made up for.
            next = look_after(began.elapsed());
            seen.sight.at_ms = began.elapsed().as_millis() as u64;
            writeln!(out, "{}", serde_json::to_string(&std::mem::take(&mut seen.sight))?)?;
            out.flush()?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    writeln!(out, "{}", serde_json::to_string(&seen.verdict)?)?;
    out.flush()
}

/// When the next line is due after one at this time: at a full tenth of a second that is not shown as the same.
fn look_after(now: Duration) -> Duration {
    const LATE: Duration = Duration::from_millis(5);
    let periods = (now + LOOK_EVERY - LATE).as_millis().div_ceil(LOOK_EVERY.as_millis());
    LOOK_EVERY * u32::try_from(periods).unwrap_or(u32::MAX)
}

struct Seen {
    sight: Sight,
    verdict: Verdict,
    counter: u64,
}

impl Default for Seen {
    fn default() -> Self {
        let verdict = Verdict {
            questions: 0,
            bytes_lost: 0,
            resets: 0,
            longest_gap_us: 0,
            counter_went_back: false,
            hosts: Vec::new(),
            stays: false,
        };
        Self { sight: Sight::default(), verdict, counter: 0 }
    }
}

impl Seen {
    fn ask(&mut self, ask: &mut TcpStream, answers: &mut BufReader<TcpStream>) {
        let asked = Instant::now();
        self.verdict.questions += 1;
        let question = format!("{}\n", self.verdict.questions);
        let mut line = String::new();
        let answered = ask.write_all(question.as_bytes()).and_then(|()| answers.read_line(&mut line));
        let took = asked.elapsed().as_micros() as u64;
        if !matches!(answered, Ok(n) if n > 0) {
            self.verdict.resets += 1;
            self.verdict.bytes_lost += question.len() as u64;
            return;
        }
        let mut words = line.split_whitespace();
        let (host, counter, echo) = (words.next(), words.next().and_then(|w| w.parse().ok()), words.next());
        if echo != Some(question.trim()) {
            self.verdict.bytes_lost += question.len() as u64;
        }
        let counter: u64 = counter.unwrap_or(0);
        self.verdict.counter_went_back |= counter < self.counter;
        self.counter = counter;
        let host = host.unwrap_or_default();
        if self.verdict.hosts.last().is_none_or(|last| last != host) {
            self.verdict.hosts.push(host.to_owned());
        }
        self.verdict.longest_gap_us = self.verdict.longest_gap_us.max(took);
        self.sight.longest_us = self.sight.longest_us.max(took);
        (self.sight.host, self.sight.counter, self.sight.round_trip_us) = (host.to_owned(), counter, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_a_tenth_of_a_second_apart_and_none_is_made_up_for() {
        let after = |ms| look_after(Duration::from_millis(ms)).as_millis();
        assert_eq!([after(100), after(104), after(107), after(195), after(640)], [200, 200, 300, 300, 800]);
        for now in 0..2000 {
            let shown = |ms: u128| format!("{:.1}", ms as f64 / 1000.0);
            assert_ne!(shown(now), shown(after(now as u64)), "{now}");
        }
    }
}
