//! A session that carries pages: passes the bytes of its connection on to the pager, and back.

use super::socket_path;
use crate::migration::MoveError;
use crate::migration::protocol::AttemptId;
use crate::transport::stream::Stream;
use crate::transport::{Channel, TransportError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a pager that is being started is waited for.
const START: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 20 });
/// Between two looks whether it is there, milliseconds.
const LOOK_MS: u8 = 2;
/// Without any byte for so long the connection is given up: either end says something every few seconds.
const SILENCE: Duration = Duration::from_secs(60);
/// What is on the way in one direction, bytes: little, so that what is sent later is not late.
const BUFFER: usize = 64 << 10;

/// What a link is for, as the pager is told by its first byte.
pub(super) const URGENT: u8 = b'U';
pub(super) const BULK: u8 = b'B';

/// Passes on until either end closes.
///
/// # Errors
/// There is no pager of this attempt, or the connection fails.
pub fn run(control: Channel, run: &Path, attempt: AttemptId, urgent: bool) -> Result<(), MoveError> {
    let peer = control.peer().to_owned();
    let failed = |operation| {
        let peer = peer.clone();
        move |source| MoveError::from(TransportError::Io { operation, peer, source })
    };
    let socket = match connect(&socket_path(run, &super::name(attempt)), &control) {
        Ok(socket) => socket,
        Err(error) => {
            control.refuse("nobody takes pages of this attempt here");
            return Err(failed("pass pages on from")(error));
        }
    };
    let ready = io::Write::write_all(&mut (&socket), &[if urgent { URGENT } else { BULK }]);
    let inner = ready.and_then(|()| Stream::unix(socket)).map_err(failed("pass pages on from"))?;
    pump(control.into_stream(), inner).map_err(failed("pass pages on from"))
}

/// Waits for the pager, for as long as somebody wants it: a copy that was killed never has one.
fn connect(path: &Path, control: &Channel) -> io::Result<UnixStream> {
    let deadline = Instant::now() + START;
    loop {
        match UnixStream::connect(path) {
            Err(_) if Instant::now() < deadline => {}
            connected => return connected,
        }
        let mut fds = [PollFd::new(control.readable_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
        // An end that is closed is told of whether it is asked for or not (poll(2)).
        if poll(&mut fds, PollTimeout::from(LOOK_MS)).is_ok_and(|ready| ready > 0) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

/// Bytes on their way from one stream to the other.
struct Way {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Way {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER], from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Moves what can be moved; whether anything was. The end of the stream is an error.
    fn go(&mut self, source: &mut Stream, dest: &mut Stream) -> io::Result<bool> {
        let mut moved = false;
        if self.is_empty() {
            match unless_blocked(source.try_read(&mut self.bytes))? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(n) => (self.from, self.to, moved) = (0, n, true),
                None => {}
            }
        }
        if !self.is_empty() {
            let rest = &self.bytes[self.from..self.to];
            if let Some(n) = unless_blocked(dest.try_write(&[IoSlice::new(rest)]))? {
                self.from += n;
                moved = true;
            }
        }
        let _ = unless_blocked(dest.try_flush())?;
        Ok(moved)
    }
}

fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

fn pump(mut outer: Stream, mut inner: Stream) -> io::Result<()> {
    let (mut inward, mut outward) = (Way::new(), Way::new());
    let mut last = Instant::now();
    loop {
        let passed = inward.go(&mut outer, &mut inner).and_then(|a| Ok(a | outward.go(&mut inner, &mut outer)?));
        match passed {
            Ok(true) => last = Instant::now(),
            Ok(false) if last.elapsed() > SILENCE => return Err(io::ErrorKind::TimedOut.into()),
            Ok(false) => wait(&outer, &inner, &inward, &outward),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

fn wait(outer: &Stream, inner: &Stream, inward: &Way, outward: &Way) {
    let interests = [
        if inward.is_empty() { outer.read_interest() } else { inner.write_interest() },
        if outward.is_empty() { inner.read_interest() } else { outer.write_interest() },
    ];
    let mut fds: Vec<PollFd<'_>> =
        interests.into_iter().map(|(fd, events): (_, PollFlags)| PollFd::new(fd, events)).collect();
    // An error is nothing to wait for: the next read or write finds out.
    let _ = poll(&mut fds, PollTimeout::from(1000u16));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::tests::links;
    use std::io::{Read, Write};

    #[test]
    fn a_pager_is_not_waited_for_when_nobody_wants_it_any_more() {
        let (ours, theirs) = links(0, None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no-pager");
        let begun = Instant::now();
        let waits = std::thread::spawn(move || (connect(&path, &theirs.control).map(drop), begun.elapsed()));
        std::thread::sleep(Duration::from_millis(50));
        drop(ours);
        let (ended, after) = waits.join().unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionAborted, "after {after:?}");
        assert!(after < START, "{after:?}");
    }

    #[test]
    fn bytes_go_both_ways_until_one_end_closes() {
        let ((mut a, outer), (inner, mut b)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let (outer, inner) = (Stream::unix(outer).unwrap(), Stream::unix(inner).unwrap());
        let pump = std::thread::spawn(move || pump(outer, inner));
        let much: Vec<u8> = (0..3_000_000u32).map(|n| (n >> 8) as u8).collect();
        let sent = much.clone();
        let sender = std::thread::spawn(move || {
            a.write_all(&sent).unwrap();
            let mut answer = [0; 5];
            a.read_exact(&mut answer).unwrap();
            answer
        });
        let mut got = vec![0; much.len()];
        b.read_exact(&mut got).unwrap();
        assert!(got == much);
        b.write_all(b"there").unwrap();
        assert_eq!(&sender.join().unwrap(), b"there");
        pump.join().unwrap().unwrap();
    }
}
