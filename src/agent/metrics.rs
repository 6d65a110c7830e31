//! What a monitoring system asks an agent, over HTTP in the OpenMetrics text format.
//!
//! Everything comes from the journals of moves, this host's and those of the users that peers are confined to: sessions run in
//! processes of their own, and live longer than the agent. What journals do not hold is absent.

use crate::migration::journal::{self, Line, Role, Step};
use crate::migration::protocol::AttemptId;
use crate::migration::resolve::{self, Owner};
use crate::ops::words::Address;
use crate::transport::Abort;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one answer may take in all; there is one at a time.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read, bytes.
const REQUEST_MAX: usize = 8 << 10;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The listening side.
#[derive(Debug)]
pub struct Metrics {
    listener: TcpListener,
    moves: Moves,
}

/// Moves as this host's journals tell of them, and how many have ended since the agent began.
#[derive(Debug)]
struct Moves {
    state: PathBuf,
    known: HashSet<(AttemptId, bool)>,
    ended: BTreeMap<&'static str, u64>,
    /// Of those that have moved from here.
    pauses: Pauses,
    bytes_sent: u64,
}

/// Upper ends of the classes of pauses, as OpenMetrics writes them, seconds.
const PAUSES: [&str; 11] = ["0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1.0", "5.0", "30.0"];

/// How long targets stood still: in each class how many, and all together.
#[derive(Debug, Default, Clone, PartialEq)]
struct Pauses {
    /// Not longer than each of [`PAUSES`].
    within: [u64; PAUSES.len()],
    count: u64,
    sum_us: u64,
}

impl Pauses {
    fn add(&mut self, us: u64) {
        let seconds = us as f64 / 1e6;
        for (within, end) in self.within.iter_mut().zip(PAUSES) {
            *within += u64::from(end.parse::<f64>().is_ok_and(|end| seconds <= end));
        }
        self.count += 1;
        self.sum_us += us;
    }

    /// As OpenMetrics has a histogram.
    fn text(&self, name: &str) -> String {
        let mut text = String::new();
        for (end, count) in PAUSES.iter().zip(self.within) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{end}\"}} {count}");
        }
        let (count, sum) = (self.count, self.sum_us as f64 / 1e6);
        let _ = write!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}\n");
        text
    }
}

/// What the journals say now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// By role and phase.
    sessions: BTreeMap<(&'static str, &'static str), u64>,
    in_doubt: u64,
}

impl Metrics {
    /// Listens. What has ended before does not count.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn open(at: &Address, state: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind((at.host.as_str(), at.port))?;
        listener.set_nonblocking(true)?;
        let mut moves = Moves::of(state);
        moves.look();
        (moves.pauses, moves.bytes_sent) = (Pauses::default(), 0);
        moves.ended = ["done", "aborted"].map(|result| (result, 0)).into();
        Ok(Self { listener, moves })
    }

    /// Where it listens, as a person would write it.
    pub fn name(&self) -> String {
        self.listener.local_addr().map_or_else(|e| e.to_string(), |at| format!("http://{at}/metrics"))
    }

    /// Answers until `abort` is triggered.
    pub fn serve(mut self, abort: &Abort) {
        loop {
            let mut fds =
                [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN), PollFd::new(abort.fd(), PollFlags::POLLIN)];
            let polled = poll(&mut fds, PollTimeout::NONE);
            if abort.is_triggered() || polled.is_err_and(|errno| errno != nix::errno::Errno::EINTR) {
                return;
            }
            match self.listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = answer(client, || self.moves.text()) {
                        tracing::debug!(%error, "a question for metrics was not answered");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a question for metrics");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

/// One request, one answer, and the connection ends.
fn answer(mut client: TcpStream, text: impl FnOnce() -> String) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > REQUEST_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (status, kind, body) = match (words.next(), words.next()) {
        (Some(b"GET" | b"HEAD"), Some(b"/metrics")) => ("200 OK", TYPE, text()),
        (Some(b"GET" | b"HEAD"), _) => ("404 Not Found", "text/plain", "there is /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "there is GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let body = if line.starts_with(b"HEAD") { "" } else { &body };
    client.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())
}

impl Moves {
    fn of(state: &Path) -> Self {
        let state = state.to_owned();
        Self { state, known: HashSet::new(), ended: BTreeMap::new(), pauses: Pauses::default(), bytes_sent: 0 }
    }

    /// Directories of journals.
    fn dirs(&self) -> Vec<PathBuf> {
        let users = std::fs::read_dir(self.state.join("users")).into_iter().flatten().flatten();
        let users = users.map(|user| user.path().join("state/moves"));
        users.chain([self.state.join("moves")]).filter(|dir| dir.is_dir()).collect()
    }

    fn look(&mut self) -> Seen {
        let mut seen = Seen::default();
        for dir in self.dirs() {
            match journal::all(&dir) {
                Ok(lines) => lines.iter().for_each(|line| self.count(&mut seen, line, journal::is_decided(&dir, line))),
                Err(error) => tracing::warn!(%error, dir = %dir.display(), "journals cannot be read"),
            }
        }
        seen
    }

    /// `busy`: a program of ours decides about it now.
    fn count(&mut self, seen: &mut Seen, line: &Line, busy: bool) {
        let (role, at_source) = match line.role {
            Role::Source => ("source", true),
            Role::Destination => ("destination", false),
        };
        if line.step.is_final() {
            if self.known.insert((line.attempt, at_source)) {
                *self.ended.entry(phase(line.step)).or_default() += 1;
                line.downtime_us.into_iter().for_each(|us| self.pauses.add(us));
                self.bytes_sent += line.bytes_sent.unwrap_or(0);
            }
        } else if busy {
            *seen.sessions.entry((role, phase(line.step))).or_default() += 1;
        } else if resolve::owner(line) == Owner::InDoubt {
            seen.in_doubt += 1;
        }
    }

    fn text(&mut self) -> String {
        let seen = self.look();
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let _ = write!(text, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{suffix}{labels} {value}");
            }
        };
        let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        family("migrate_build_info", "gauge", "The program's version.", &[(version, 1)]);
        let sessions: Vec<_> = seen
            .sessions
            .iter()
            .map(|((role, phase), n)| (format!("{{role=\"{role}\",phase=\"{phase}\"}}"), *n))
            .collect();
        family(
            "migrate_sessions",
            "gauge",
            "Moves under way, by this host's role and the last step in its journal.",
            &sessions,
        );
        let ended: Vec<_> = self.ended.iter().map(|(result, n)| (format!("{{result=\"{result}\"}}"), *n)).collect();
        family(
            "migrate_moves",
            "counter",
            "Moves that have ended since the agent began: the target has moved, or stayed.",
            &ended,
        );
        family(
            "migrate_in_doubt",
            "gauge",
            "Moves of which only the other host's journal can tell who owns the target.",
            &[(String::new(), seen.in_doubt)],
        );
        family(
            "migrate_sent_bytes",
            "counter",
            "Bytes sent by moves from here that have ended since the agent began, headers included.",
            &[(String::new(), self.bytes_sent)],
        );
        family("migrate_downtime_seconds", "histogram", "How long targets that moved from here stood still.", &[]);
        text + &self.pauses.text("migrate_downtime_seconds") + "# EOF\n"
    }
}

fn phase(step: Step) -> &'static str {
    match step {
        Step::Begun => "begun",
        Step::Prepared => "prepared",
        Step::Parked => "parked",
        Step::Committing => "committing",
        Step::Owner => "owner",
        Step::Aborted => "aborted",
        Step::Cloned => "copied",
        Step::Done => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(attempt: u8, role: Role, step: Step) -> Line {
        let boot_id = crate::proc::sys::boot_id().unwrap_or_default();
        Line {
            attempt: AttemptId([attempt; 16]),
            role,
            step,
            boot_id,
            peer: "b".into(),
            candidates: Vec::new(),
            candidate: 0,
            target_pid: None,
            session: String::new(),
            asked_for: String::new(),
            from_image: false,
            held: None,
            addresses: Vec::new(),
            pages_owed: false,
            downtime_us: (step == Step::Done && role == Role::Source).then_some(7_500),
            bytes_sent: (step == Step::Done && role == Role::Source).then_some(4096),
            not_parked: None,
            ran: false,
            is_clone: false,
            standby: None,
            unix_ms: 0,
        }
    }

    #[test]
    fn moves_are_counted_once_and_by_what_became_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut moves = Moves::of(dir.path());
        let mut seen = Seen::default();
        for _ in 0..2 {
            seen = Seen::default();
            for (line, busy) in [
                (line(1, Role::Source, Step::Done), false),
                (line(1, Role::Destination, Step::Done), false),
                (line(2, Role::Source, Step::Aborted), false),
                (line(3, Role::Source, Step::Committing), true),
                (line(4, Role::Source, Step::Committing), false),
                (line(5, Role::Destination, Step::Begun), true),
                (line(6, Role::Destination, Step::Begun), true),
            ] {
                moves.count(&mut seen, &line, busy);
            }
        }
        assert_eq!(moves.ended, [("aborted", 1), ("done", 2)].into());
        let sessions = [(("destination", "begun"), 2), (("source", "committing"), 1)].into();
        assert_eq!(seen, Seen { sessions, in_doubt: 1 });
        let text = moves.text();
        assert!(text.contains("\nmigrate_moves_total{result=\"done\"} 2\n") && text.ends_with("# EOF\n"), "{text}");
        for sample in [
            "migrate_sent_bytes_total 4096",
            "migrate_downtime_seconds_bucket{le=\"0.005\"} 0",
            "migrate_downtime_seconds_bucket{le=\"0.01\"} 1",
            "migrate_downtime_seconds_bucket{le=\"+Inf\"} 1",
            "migrate_downtime_seconds_sum 0.0075",
            "migrate_downtime_seconds_count 1",
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample}: {text}");
        }
    }

    #[test]
    fn one_page_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::open(&Address { host: "127.0.0.1".into(), port: 0 }, dir.path()).unwrap();
        let at = metrics.listener.local_addr().unwrap();
        let abort = Abort::new().unwrap();
        let until = abort.clone();
        let served = std::thread::spawn(move || metrics.serve(&until));
        let ask = |request: &str| {
            let mut socket = TcpStream::connect(at).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            let _ = socket.read_to_string(&mut answer);
            answer
        };
        let page = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains(TYPE), "{page}");
        let body = page.split_once("\r\n\r\n").unwrap().1;
        assert!(body.contains("migrate_build_info{version=") && body.contains("\nmigrate_in_doubt 0\n"), "{body}");
        assert!(page.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        // Too long, and too slow: nobody else has to wait for long.
        assert_eq!(ask(&"x".repeat(20_000)), "");
        drop(TcpStream::connect(at).unwrap());
        assert!(ask("HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
        abort.trigger();
        served.join().unwrap();
    }
}
