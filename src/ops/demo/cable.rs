//! A cable between a source and an agent that is cut when COMMIT goes over it, the worst moment there is, and mended a second
//! later.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it stays cut.
const MENDED_AFTER: Duration = Duration::from_secs(1);

/// What is looked for: the order to run the target.
const COMMIT: &[u8] = b"\"message\":\"commit\"";

/// What becomes of COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It is lost.
    Before,
    /// It arrives, and what is said to it is lost.
    After,
}

/// The cable; it lies as long as this program runs.
#[derive(Debug)]
pub struct Cable {
    cut: Arc<Mutex<Option<Instant>>>,
}

impl Cable {
    /// Lays it from a socket at `path` to the one of the agent.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn lay(path: &Path, agent: PathBuf, how: Cut) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let cut = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&cut);
        std::thread::Builder::new().name("cable".into()).spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&agent)) else { return };
                if at(&seen).is_some_and(|at| at.elapsed() < MENDED_AFTER) {
                    continue;
                }
                let ends = (client.try_clone(), server.try_clone());
                let (Ok(from_client), Ok(from_server)) = ends else { return };
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || carry(from_client, server, Some((&seen, how))));
                std::thread::spawn(move || carry(from_server, client, None));
            }
        })?;
        Ok(Self { cut })
    }

    /// Whether it has been cut.
    pub fn is_cut(&self) -> bool {
        at(&self.cut).is_some()
    }
}

fn at(cut: &Mutex<Option<Instant>>) -> Option<Instant> {
    *cut.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries what comes, until it is cut or either end closes.
fn carry(mut from: UnixStream, mut to: UnixStream, watch: Option<(&Mutex<Option<Instant>>, Cut)>) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let words = &buffer[..count];
        // Sent in one write, and the only thing under way then.
        let strikes =
            watch.filter(|_| words.windows(COMMIT.len()).any(|window| window == COMMIT)).filter(|(cut, _)| {
                let mut cut = cut.lock().unwrap_or_else(PoisonError::into_inner);
                cut.replace(Instant::now()).is_none()
            });
        if !matches!(strikes, Some((_, Cut::Before))) && to.write_all(words).is_err() {
            break;
        }
        if strikes.is_some() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
