//! A slow link: a relay of TCP connections that lets so many bytes a second through, each after half a round trip, and that can be cut.

use crate::hosts::Host;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes on their way in one direction of a connection at most: more than rate and delay keep on the way.
const WINDOW: usize = 1 << 20;
const CHUNK: usize = 16 << 10;

/// What all connections share.
#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    /// Bytes a second.
    rate: f64,
    /// One way.
    delay: Duration,
    /// When each direction has carried what was given to it so far.
    free: [Mutex<Instant>; 2],
    open: Mutex<Vec<TcpStream>>,
    cut: AtomicBool,
    over: AtomicBool,
    carried: AtomicU64,
}

/// The relay; it ends with this value.
#[derive(Debug)]
pub struct Relay(Arc<Shared>, Option<JoinHandle<()>>);

impl Relay {
    /// Takes what comes to `at` in a host's network, and carries it to `to`.
    pub fn begin(host: &Host, at: String, to: SocketAddr, rate: f64, round_trip: Duration) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            to,
            rate,
            delay: round_trip / 2,
            free: [(); 2].map(|()| Mutex::new(Instant::now())),
            open: Mutex::default(),
            cut: AtomicBool::new(false),
            over: AtomicBool::new(false),
            carried: AtomicU64::new(0),
        });
        let (own, network) = (Arc::clone(&shared), format!("/proc/{}/ns/net", host.init));
        let (tell, told) = std::sync::mpsc::channel();
        // Threads are in the network of whoever has begun them.
        let accepts = std::thread::spawn(move || {
            let listener = listen(&network, &at).map_err(|e| format!("{at} in {network}: {e}"));
            let (listener, said) = listener.map_or_else(|e| (None, Err(e)), |listener| (Some(listener), Ok(())));
            let _ = tell.send(said);
            if let Some(listener) = listener {
                accept(&own, &listener);
            }
        });
        told.recv().map_err(|e| e.to_string())??;
        Ok(Self(shared, Some(accepts)))
    }

    /// Ends all connections, and takes no new one until it is healed.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::SeqCst);
        lock(&self.0.open).drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
    }

    pub fn heal(&self) {
        self.0.cut.store(false, Ordering::SeqCst);
    }

    /// Bytes carried towards the destination so far.
    pub fn carried(&self) -> u64 {
        self.0.carried.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.cut();
        // Its port is free then.
        let _ = self.1.take().map(JoinHandle::join);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(network: &str, at: &str) -> io::Result<TcpListener> {
    let network = std::fs::File::open(network)?;
    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.over.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        // A connection that is dropped at once is one that a broken link refuses.
        if shared.cut.load(Ordering::SeqCst) || client.set_nonblocking(false).is_err() {
            continue;
        }
        let Ok(server) = TcpStream::connect(shared.to) else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ends = [&client, &client, &server, &server].map(TcpStream::try_clone);
        let [Ok(keep_client), Ok(from_client), Ok(keep_server), Ok(from_server)] = ends else { continue };
        lock(&shared.open).extend([keep_client, keep_server]);
        for (way, from, to) in [(0, from_client, server), (1, from_server, client)] {
            let line = Arc::new(Line::default());
            let (shared, other) = (Arc::clone(shared), Arc::clone(&line));
            std::thread::spawn(move || take(&shared, way, from, &line));
            std::thread::spawn(move || give(to, &other));
        }
    }
}

/// What is on its way in one direction of a connection.
#[derive(Debug, Default)]
struct Line {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each with the time at which it arrives.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Line {
    fn put(&self, arrives: Instant, bytes: Vec<u8>) {
        let mut queue = lock(&self.queue);
        while queue.bytes > WINDOW {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.bytes += bytes.len();
        queue.chunks.push_back((arrives, bytes));
        self.changed.notify_all();
    }

    fn get(&self) -> (Instant, Vec<u8>) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some((arrives, bytes)) = queue.chunks.pop_front() {
                queue.bytes -= bytes.len();
                self.changed.notify_all();
                return (arrives, bytes);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Reads, and notes when it arrives; nothing at the end.
fn take(shared: &Shared, way: usize, mut from: TcpStream, line: &Line) {
    loop {
        let mut bytes = vec![0; CHUNK];
        let count = from.read(&mut bytes).unwrap_or(0);
        bytes.truncate(count);
        let sent = {
            let mut free = lock(&shared.free[way]);
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(count as f64 / shared.rate);
            *free
        };
        if way == 0 {
            shared.carried.fetch_add(count as u64, Ordering::SeqCst);
        }
        // No faster than the link takes it.
        std::thread::sleep(sent.saturating_duration_since(Instant::now()));
        line.put(sent + shared.delay, bytes);
        if count == 0 {
            return;
        }
    }
}

/// Writes what has arrived. After an error it goes on to take what comes, so that nobody waits for room.
fn give(mut to: TcpStream, line: &Line) {
    loop {
        let (arrives, bytes) = line.get();
        std::thread::sleep(arrives.saturating_duration_since(Instant::now()));
        if bytes.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        let _ = to.write_all(&bytes);
    }
}
