//! A client outside all hosts: it asks the target over one TCP connection without a pause, and checks each answer.
//!
//! The answer repeats the question and has the number of the newest ticket: a number that is not greater than the one before is one
//! of a second copy, or of an old state. A connection that breaks is made again, and counted.

use crate::net::ADDRESS;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What it has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub answers: u64,
    /// Answers to another question, or with a ticket that is not newer than the one before.
    pub wrong: usize,
    /// Connections that broke.
    pub broken: usize,
}

#[derive(Debug)]
pub struct Client {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Longest wait before it looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Client {
    /// Asks the target, which has written its port here, from this network.
    pub fn start(port: &Path, network: &Path) -> io::Result<Self> {
        let port: u16 = std::fs::read_to_string(port)?.parse().map_err(io::Error::other)?;
        let network = File::open(network)?;
        let (seen, over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (tell, ends) = (Arc::clone(&seen), Arc::clone(&over));
        let thread = std::thread::spawn(move || match setns(network, CloneFlags::CLONE_NEWNET) {
            Ok(()) => ask(port, &tell, &ends),
            Err(errno) => println!("no network for the client: {errno}"),
        });
        Ok(Self { seen, over, thread: Some(thread) })
    }

    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is answered in this time.
    pub fn is_answered(&self, limit: Duration) -> bool {
        let (before, end) = (self.seen().answers, Instant::now() + limit);
        while self.seen().answers < before + 3 {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let address: IpAddr = ADDRESS.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), LOOK_EVERY)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK_EVERY))?;
    Ok(stream)
}

fn ask(port: u16, seen: &Mutex<Seen>, over: &AtomicBool) {
    let (mut next, mut last) = (connect(port).ok(), 0);
    while !over.load(Ordering::Relaxed) {
        let stream = match next.take() {
            Some(stream) => stream,
            None => {
                std::thread::sleep(Duration::from_millis(20));
                next = connect(port).ok();
                continue;
            }
        };
        if talk(stream, &mut last, seen, over).is_err() {
            seen.lock().unwrap_or_else(PoisonError::into_inner).broken += 1;
        }
    }
}

/// Asks until the connection breaks, or all is over. `last`: the newest ticket that was seen.
fn talk(stream: TcpStream, last: &mut u64, seen: &Mutex<Seen>, over: &AtomicBool) -> io::Result<()> {
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    for question in 0u64.. {
        stream.write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        while !line.ends_with('\n') {
            match answers.read_line(&mut line) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(e),
            }
            if over.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.answers += 1;
        seen.wrong += usize::from(!is_right(&line, question, last));
    }
    Ok(())
}

fn is_right(line: &str, question: u64, last: &mut u64) -> bool {
    let mut words = line.split_whitespace().map(str::parse);
    let (Some(Ok(asked)), Some(Ok(ticket)), None) = (words.next(), words.next(), words.next()) else { return false };
    let before = std::mem::replace(last, ticket);
    asked == question && ticket > before
}

/// The client sees what it is to see.
pub fn proves_itself() -> bool {
    is_right("7 12\n", 7, &mut 11)
        && !is_right("7 12\n", 7, &mut 12)
        && !is_right("6 12\n", 7, &mut 0)
        && !is_right("7\n", 7, &mut 0)
}
