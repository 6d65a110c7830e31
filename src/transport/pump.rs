//! Two streams joined: what comes from either goes to the other, as it is.

use super::error::{Result, TransportError};
use super::stream::Stream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use std::io::{ErrorKind, IoSlice};
use std::time::Duration;

/// Bytes on their way in one direction, at most.
const ROOM: usize = 256 << 10;

/// How long without a byte before both ends are given up: whoever speaks our protocol gives signs of life more often.
const SILENCE: Duration = Duration::from_secs(120);

/// One direction.
#[derive(Debug)]
struct Way {
    bytes: Vec<u8>,
    done: usize,
    filled: usize,
    /// The source has not ended.
    open: bool,
    /// What was written may still be held back.
    unflushed: bool,
    /// The end has been passed on.
    ended: bool,
}

impl Way {
    fn new() -> Self {
        Self { bytes: vec![0; ROOM], done: 0, filled: 0, open: true, unflushed: false, ended: false }
    }

    fn is_empty(&self) -> bool {
        self.done == self.filled
    }

    /// Moves what can be moved now; whether anything was.
    fn step(&mut self, from: &mut Stream, to: &mut Stream) -> std::io::Result<bool> {
        let mut moved = false;
        if self.is_empty() && self.open {
            match from.try_read(&mut self.bytes) {
                Ok(0) => self.open = false,
                Ok(count) => (self.done, self.filled) = (0, count),
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(error),
            }
            moved = !self.open || !self.is_empty();
        }
        while !self.is_empty() {
            match to.try_write(&[IoSlice::new(&self.bytes[self.done..self.filled])]) {
                Ok(count) => {
                    self.done += count;
                    (self.unflushed, moved) = (true, true);
                }
                Err(error) if would_block(&error) => return Ok(moved),
                Err(error) => return Err(error),
            }
        }
        if self.unflushed {
            match to.try_flush() {
                Ok(()) => self.unflushed = false,
                Err(error) if would_block(&error) => return Ok(moved),
                Err(error) => return Err(error),
            }
        }
        if !self.open && !std::mem::replace(&mut self.ended, true) {
            to.close_write();
        }
        Ok(moved)
    }

    fn is_done(&self) -> bool {
        self.ended
    }
}

fn would_block(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Carries bytes both ways until both have ended, or `b` has: that is the one that serves.
///
/// # Errors
/// One of them breaks, or nothing is said for two minutes.
pub fn pump(a: &mut Stream, b: &mut Stream, peer: &str) -> Result<()> {
    let failed = |source| TransportError::Io { operation: "carry bytes of", peer: peer.into(), source };
    let (mut to_b, mut to_a) = (Way::new(), Way::new());
    loop {
        let forth = to_b.step(a, b).map_err(failed)?;
        let back = to_a.step(b, a).map_err(failed)?;
        if to_a.is_done() {
            return Ok(());
        }
        if forth || back {
            continue;
        }
        let mut waits = Vec::with_capacity(2);
        for (way, from, to) in [(&to_b, &*a, &*b), (&to_a, &*b, &*a)] {
            let wanted = match way.is_empty() && !way.unflushed {
                true if way.ended => continue,
                true => from.read_interest(),
                false => to.write_interest(),
            };
            waits.push(PollFd::new(wanted.0, wanted.1));
        }
        let limit = PollTimeout::try_from(SILENCE).unwrap_or(PollTimeout::MAX);
        match poll(&mut waits, limit) {
            Ok(0) => return Err(failed(ErrorKind::TimedOut.into())),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn more_than_fits_goes_both_ways_and_the_end_is_passed_on() {
        let ((near, a), (far, b)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let relay = std::thread::spawn(move || {
            let (mut a, mut b) = (Stream::unix(a).unwrap(), Stream::unix(b).unwrap());
            pump(&mut a, &mut b, "test")
        });
        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7) as u8).collect();
        // Echoes until the end, then ends.
        let echo = std::thread::spawn(move || {
            let (mut reader, mut writer) = (far.try_clone().unwrap(), far);
            std::io::copy(&mut reader, &mut writer).unwrap()
        });
        let (mut reader, mut writer, sent) = (near.try_clone().unwrap(), near, data.clone());
        let sender = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        assert!(back == data);
        sender.join().unwrap();
        assert_eq!(echo.join().unwrap(), data.len() as u64);
        relay.join().unwrap().unwrap();
    }
}
