//! The link between the two hosts: a relay of UNIX sockets outside both, which can be told to fall silent or to break.
//!
//! A direction that is silent keeps what is said, as TCP does on a path that drops packets, and delivers it late when the link is
//! healed: by then each side has decided what it makes of the silence. Connections that are made meanwhile are silent likewise. A
//! link that is broken closes every connection, and takes no new one until it is mended.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outage {
    /// Nothing reaches the destination.
    pub to_destination: bool,
    /// Nothing reaches the source.
    pub to_source: bool,
    /// Both ends see it: connections are closed.
    pub broken: bool,
}

#[derive(Debug, Default)]
struct State {
    outage: Outage,
    rate: Option<u32>,
    open: Vec<UnixStream>,
    over: bool,
}

/// The relay; it ends with this value.
#[derive(Debug)]
pub struct Link {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    ToDestination,
    ToSource,
}

/// Longest look at a state that does not change.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Link {
    /// Lays it from a socket at `path` to the one of the agent.
    ///
    /// So many bytes a second go to the destination at most.
    pub fn lay(path: &Path, agent: &Path, rate: Option<u32>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new((Mutex::new(State { rate, ..State::default() }), Condvar::new()));
        let (own, agent) = (Arc::clone(&shared), agent.to_owned());
        std::thread::spawn(move || accept(&own, &listener, &agent));
        Ok(Self { shared })
    }

    /// From now on it is like this.
    pub fn set(&self, outage: Outage) {
        let mut state = lock(&self.shared.0);
        state.outage = outage;
        if outage.broken {
            state.open.drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
        self.shared.1.notify_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.0);
        state.over = true;
        state.open.drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
        self.shared.1.notify_all();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(shared: &Arc<(Mutex<State>, Condvar)>, listener: &UnixListener, agent: &Path) {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(_) if lock(&shared.0).over => return,
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        let (Ok(()), Ok(server)) = (client.set_nonblocking(false), UnixStream::connect(agent)) else { continue };
        let mut state = lock(&shared.0);
        if state.outage.broken || state.over {
            continue;
        }
        let ends = [&client, &client, &server, &server].map(UnixStream::try_clone);
        let [Ok(keep_client), Ok(from_client), Ok(keep_server), Ok(from_server)] = ends else { continue };
        state.open.extend([keep_client, keep_server]);
        drop(state);
        for (from, to, way) in [(from_client, server, Way::ToDestination), (from_server, client, Way::ToSource)] {
            let shared = Arc::clone(shared);
            std::thread::spawn(move || carry(&shared, from, to, way));
        }
    }
}

/// Carries what comes, until either end closes. An end is closed as silently as words are kept.
fn carry(shared: &(Mutex<State>, Condvar), mut from: UnixStream, mut to: UnixStream, way: Way) {
    let mut buffer = [0; 65536];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        let mut state = lock(&shared.0);
        let silent = |state: &State| match way {
            Way::ToDestination => state.outage.to_destination,
            Way::ToSource => state.outage.to_source,
        };
        while silent(&state) && !state.over {
            state = shared.1.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        let rate = state.rate.filter(|_| matches!(way, Way::ToDestination));
        drop(state);
        std::thread::sleep(rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) * count as u32 / rate));
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
