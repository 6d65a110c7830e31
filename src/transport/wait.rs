//! Waiting on a descriptor so that the wait always ends: by data, by abort, by silence or by a deadline.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ends all waits of those who hold a clone of it. Once triggered it stays so.
#[derive(Clone, Debug)]
pub struct Abort {
    inner: Arc<(PipeReader, PipeWriter)>,
}

impl Abort {
    /// One that is not triggered. Fails when no descriptors are left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inner: Arc::new(io::pipe()?) })
    }

    /// Ends all waits, present and future. The byte is never read, so the descriptor stays readable.
    pub fn trigger(&self) {
        if !self.is_triggered() {
            // A pipe that is full is readable as well.
            let _ = (&self.inner.1).write(&[1]);
        }
    }

    /// Whether [`Abort::trigger`] was called.
    pub fn is_triggered(&self) -> bool {
        let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Readable once triggered, for a poll(2) of the caller's own.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.0.as_fd()
    }
}

/// How a wait may end other than by success.
#[derive(Debug)]
pub enum Ended {
    /// [`Abort::trigger`].
    Aborted,
    /// Nothing happened for the whole silence time-out.
    Silent(Duration),
    /// The deadline has passed.
    Deadline,
    /// poll(2) failed.
    Poll(io::Error),
}

/// What limits the waits on one connection.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Ends every wait at once.
    pub abort: Abort,
    /// The longest time without any byte moving.
    pub silence: Duration,
    /// The step under way must be done by then, however busy the peer looks.
    pub deadline: Option<Instant>,
}

impl Patience {
    /// Waits until `fd` is ready for `events`; hang-up and error count as ready (the next read or write tells).
    pub fn wait(&self, fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), Ended> {
        let silent_at = Instant::now() + self.silence;
        let until = self.deadline.map_or(silent_at, |deadline| deadline.min(silent_at));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(fd, events), PollFd::new(self.abort.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout(left)) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Ended::Poll(errno.into())),
                Ok(0) if until > Instant::now() => continue,
                Ok(0) if until == silent_at => return Err(Ended::Silent(self.silence)),
                Ok(0) => return Err(Ended::Deadline),
                Ok(_) => {}
            }
            if fds[1].any().unwrap_or(false) {
                return Err(Ended::Aborted);
            }
            return Ok(());
        }
    }
}

/// Rounded up, so that a wait never spins over its last millisecond.
fn timeout(left: Duration) -> PollTimeout {
    let ms = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
    PollTimeout::try_from(ms as i32).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(ms: u64) -> Patience {
        Patience { abort: Abort::new().unwrap(), silence: Duration::from_millis(ms), deadline: None }
    }

    #[test]
    fn silence_deadline_and_abort_end_a_wait() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut p = patience(20);
        assert!(matches!(p.wait(reader.as_fd(), PollFlags::POLLIN), Err(Ended::Silent(_))));
        p.silence = Duration::from_secs(60);
        p.deadline = Some(Instant::now() + Duration::from_millis(20));
        assert!(matches!(p.wait(reader.as_fd(), PollFlags::POLLIN), Err(Ended::Deadline)));
        p.deadline = None;
        let abort = p.abort.clone();
        let started = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            abort.trigger();
        });
        assert!(matches!(p.wait(reader.as_fd(), PollFlags::POLLIN), Err(Ended::Aborted)));
        assert!(started.elapsed() < Duration::from_secs(10));
        thread.join().unwrap();
        assert!(p.abort.is_triggered(), "an abort stays triggered");
    }

    #[test]
    fn data_ends_a_wait() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        assert!(patience(1000).wait(reader.as_fd(), PollFlags::POLLIN).is_ok());
    }
}
