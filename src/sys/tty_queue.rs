//! What waits in a pseudo-terminal (n_tty): taken out, and put in again as it was.
//!
//! The kernel shows nothing of it without giving it away, and part of it (a line that is still being typed) only in another
//! mode of the line discipline. So whoever looks takes all out and puts it back, while nobody else uses the terminal.

use super::tty::{set_termios, termios};
use super::{Errno, Result, check};
use crate::image::fd::tty::TERMIOS;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const TIOCSTI: u64 = 0x5412;
/// More than a line discipline (4096) and the buffers below it (64 KiB) hold.
const MOST: usize = 256 << 10;
/// What one line discipline takes at once.
const DISCIPLINE: usize = 4095;

/// What waits in a pair.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    /// For the master.
    pub output: Vec<u8>,
    /// Whole lines for the slave, in canonical mode.
    pub lines: Vec<Vec<u8>>,
    /// For the slave, no whole line.
    pub input: Vec<u8>,
}

impl Waiting {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `struct termios2` by its fields.
#[derive(Debug, Clone, Copy)]
struct Mode([u8; TERMIOS]);

impl Mode {
    const IFLAG: usize = 0;
    const OFLAG: usize = 4;
    const LFLAG: usize = 12;
    const CC: usize = 17;
    const VEOF: usize = 4;
    const VMIN: usize = 6;
    const VSTART: usize = 8;
    const VSTOP: usize = 9;
    const VEOL: usize = 11;
    const VEOL2: usize = 16;
    const ICANON: u32 = 2;
    const EXTPROC: u32 = 0x1_0000;
    const IXON: u32 = 0x400;

    fn flags(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn set_flags(&mut self, at: usize, flags: u32) {
        self.0[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
    }

    fn cc(&mut self, at: usize) -> &mut u8 {
        &mut self.0[Self::CC + at]
    }

    /// Reads return lines.
    fn canonical(&self) -> bool {
        self.flags(Self::LFLAG) & (Self::ICANON | Self::EXTPROC) == Self::ICANON
    }

    /// Everything goes through as it is: no echo, no signals, no conversions, no special characters. `IXON` stays: without
    /// it stopped output would start again.
    fn literal(mut self) -> Self {
        let canonical = if self.canonical() { Self::ICANON } else { 0 };
        self.set_flags(Self::IFLAG, self.flags(Self::IFLAG) & Self::IXON);
        self.set_flags(Self::OFLAG, 0);
        self.set_flags(Self::LFLAG, canonical);
        self.0[Self::CC..Self::CC + 19].fill(0);
        *self.cc(Self::VMIN) = 1;
        self
    }
}

/// Takes everything out. `slave`: a descriptor of the slave that does not block; without one its input stays where it is.
pub fn take(master: &OwnedFd, slave: Option<&OwnedFd>) -> Result<Waiting> {
    let mut waiting = Waiting::default();
    let mut buf = vec![0; 64 << 10];
    if let Some(slave) = slave {
        let mode = Mode(termios(slave)?);
        if mode.canonical() {
            while waiting.lines.len() < MOST {
                match nix::unistd::read(slave, &mut buf) {
                    Ok(n) => waiting.lines.push(buf[..n].to_vec()),
                    Err(Errno::EAGAIN) => break,
                    Err(errno) => return Err(errno),
                }
            }
            let mut open = mode.literal();
            open.set_flags(Mode::LFLAG, 0);
            set_termios(slave, &open.0)?;
        }
        let rest = rest(slave, &mut buf, &mut waiting.input);
        if mode.canonical() {
            set_termios(slave, &mode.0)?;
        }
        rest?;
    }
    while readable(master)? && waiting.output.len() < MOST {
        match nix::unistd::read(master, &mut buf) {
            Ok(0) | Err(Errno::EIO | Errno::EAGAIN) => break,
            Ok(n) => waiting.output.extend_from_slice(&buf[..n]),
            Err(errno) => return Err(errno),
        }
    }
    Ok(waiting)
}

fn rest(slave: &OwnedFd, buf: &mut [u8], input: &mut Vec<u8>) -> Result<()> {
    while input.len() < MOST {
        match nix::unistd::read(slave, buf) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(n) => input.extend_from_slice(&buf[..n]),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The master has something to read; what is on its way to it has arrived when this returns.
pub fn readable(master: &OwnedFd) -> Result<bool> {
    Ok(events(master, PollFlags::POLLIN)?.contains(PollFlags::POLLIN))
}

/// What poll(2) says at once.
pub fn events(fd: &OwnedFd, wanted: PollFlags) -> Result<PollFlags> {
    let mut polled = [PollFd::new(fd.as_fd(), wanted)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().unwrap_or(PollFlags::empty()))
}

/// Puts everything in again and sets the terminal to `wanted`; what was there before comes first.
pub fn put(master: &OwnedFd, slave: &OwnedFd, wanted: &[u8; TERMIOS], waiting: &Waiting) -> Result<()> {
    if waiting.is_empty() {
        return set_termios(slave, wanted);
    }
    let literal = Mode(*wanted).literal();
    set_termios(slave, &literal.0)?;
    let filled = fill(master, slave, Mode(*wanted), waiting);
    set_termios(slave, wanted)?;
    filled
}

fn fill(master: &OwnedFd, slave: &OwnedFd, wanted: Mode, waiting: &Waiting) -> Result<()> {
    let mut literal = wanted.literal();
    write_all(slave, &waiting.output)?;
    let mut total = 0;
    for line in &waiting.lines {
        total += line.len() + 1;
        if total > DISCIPLINE {
            write_all(master, line)?;
            continue;
        }
        type_in(master, slave, line, Some((wanted, &mut literal)))?;
    }
    let fits = waiting.input.len().min(DISCIPLINE.saturating_sub(total));
    type_in(master, slave, &waiting.input[..fits], None)?;
    write_all(master, &waiting.input[fits..])
}

/// Types into the line discipline; `ends`: the text is a line, with the mode to take its ends from and the current one.
fn type_in(master: &OwnedFd, slave: &OwnedFd, text: &[u8], ends: Option<(Mode, &mut Mode)>) -> Result<()> {
    let Some((mut wanted, literal)) = ends else { return inject(master, slave, text) };
    let (special, body, last) = match text.split_last() {
        Some((b'\n', _)) => return inject(master, slave, text),
        Some((end, body)) if *end != 0 && [*wanted.cc(Mode::VEOL), *wanted.cc(Mode::VEOL2)].contains(end) => {
            (Mode::VEOL, body, *end)
        }
        _ => (Mode::VEOF, text, 4),
    };
    inject(master, slave, body)?;
    *literal.cc(special) = last;
    set_termios(slave, &literal.0)?;
    inject(master, slave, &[last])?;
    *literal.cc(special) = 0;
    set_termios(slave, &literal.0)
}

/// Has the line discipline of the slave receive these bytes, now. TIOCSTI needs CAP_SYS_ADMIN for a terminal that is not our
/// own; without, they go the usual way, which takes a moment.
fn inject(master: &OwnedFd, slave: &OwnedFd, text: &[u8]) -> Result<()> {
    for (n, byte) in text.iter().enumerate() {
        // SAFETY: TIOCSTI reads one byte.
        let done = unsafe { libc::ioctl(slave.as_fd().as_raw_fd(), TIOCSTI, byte as *const u8) };
        match check(i64::from(done)) {
            Err(Errno::EPERM | Errno::EIO) if n == 0 => {
                write_all(master, text)?;
                std::thread::sleep(std::time::Duration::from_millis(5));
                return Ok(());
            }
            other => other.map(drop)?,
        }
    }
    Ok(())
}

fn write_all(fd: &OwnedFd, mut rest: &[u8]) -> Result<()> {
    for _ in 0..1000 {
        if rest.is_empty() {
            return Ok(());
        }
        match nix::unistd::write(fd, rest) {
            Ok(n) => rest = &rest[n..],
            // What was written before is on its way to the line discipline.
            Err(Errno::EAGAIN) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EAGAIN)
}

/// Output of the slave is stopped: it takes nothing although there is room.
pub fn stopped(slave: &OwnedFd) -> Result<bool> {
    Ok(!events(slave, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT))
}

/// Stops or starts the output of a slave, as its user does with `^S` and `^Q`.
pub fn set_stopped(master: &OwnedFd, slave: &OwnedFd, on: bool) -> Result<()> {
    const STOP: u8 = 0x13;
    const START: u8 = 0x11;
    let before = termios(slave)?;
    let mut mode = Mode(before).literal();
    mode.set_flags(Mode::IFLAG, Mode::IXON);
    *mode.cc(Mode::VSTOP) = STOP;
    *mode.cc(Mode::VSTART) = START;
    set_termios(slave, &mode.0)?;
    let done = inject(master, slave, &[if on { STOP } else { START }]);
    set_termios(slave, &before)?;
    done
}

#[cfg(test)]
mod tests {
    use super::super::tty;
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode as Permissions;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let master = open("/dev/ptmx", flags, Permissions::empty()).unwrap();
        tty::set_locked(&master, false).unwrap();
        let slave = tty::slave(&master, flags.bits() as u32).unwrap();
        (master, slave)
    }

    fn settle() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    #[test]
    fn what_waits_is_taken_out_and_put_back() {
        let (master, slave) = pair();
        let mut mode = Mode(tty::termios(&slave).unwrap());
        mode.set_flags(Mode::LFLAG, mode.flags(Mode::LFLAG) & !8);
        tty::set_termios(&slave, &mode.0).unwrap();
        nix::unistd::write(&master, b"first\rdone\x04\x04ty\x16\x03ping").unwrap();
        nix::unistd::write(&slave, b"out\nput").unwrap();
        settle();
        let wanted = Waiting {
            output: b"out\r\nput".to_vec(),
            lines: vec![b"first\n".to_vec(), b"done".to_vec(), Vec::new()],
            input: b"ty\x03ping".to_vec(),
        };
        for _ in 0..3 {
            let taken = take(&master, Some(&slave)).unwrap();
            assert_eq!(taken, wanted);
            assert!(take(&master, Some(&slave)).unwrap().is_empty());
            put(&master, &slave, &mode.0, &taken).unwrap();
            assert_eq!(tty::termios(&slave).unwrap(), mode.0);
        }
        nix::unistd::write(&master, b"!\n").unwrap();
        settle();
        let mut line = [0; 64];
        for wanted in [&b"first\n"[..], b"done", b"", b"ty\x03ping!\n"] {
            let n = nix::unistd::read(&slave, &mut line).unwrap();
            assert_eq!(&line[..n], wanted);
        }
    }

    #[test]
    fn output_is_stopped_and_started() {
        let (master, slave) = pair();
        assert!(!stopped(&slave).unwrap());
        set_stopped(&master, &slave, true).unwrap();
        assert!(stopped(&slave).unwrap());
        assert_eq!(nix::unistd::write(&slave, b"x"), Err(Errno::EAGAIN));
        set_stopped(&master, &slave, false).unwrap();
        assert_eq!(nix::unistd::write(&slave, b"x"), Ok(1));
    }
}
