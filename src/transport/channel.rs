//! A channel: frames over one stream, every wait limited.
//!
//! A channel belongs to one thread at a time. After any error but a time-out that moved no byte it must be dropped: the
//! position inside a frame is lost.

use super::error::{Result, TransportError};
use super::frame::{FrameError, FrameKind, HEADER_BYTES, Header};
use super::preamble::{MAGIC, PREAMBLE_BYTES, Preamble};
use super::stream::Stream;
use super::wait::{Ended, Patience};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// What a remote shell may print before `migrate` speaks.
const NOISE_LIMIT_BYTES: usize = 64 << 10;

/// A frame that was received; the body lives in the channel until the next one.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: FrameKind,
    /// At most the limit of its kind.
    pub body: &'a [u8],
}

/// Frames over one stream.
#[derive(Debug)]
pub struct Channel {
    stream: Stream,
    patience: Patience,
    peer: String,
    during: &'static str,
    body: Vec<u8>,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Channel {
    /// A channel over a connected stream; `peer` is its name in messages.
    pub fn new(stream: Stream, peer: impl Into<String>, patience: Patience) -> Self {
        Self {
            stream,
            patience,
            peer: peer.into(),
            during: "connecting",
            body: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// The other side's name in messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Names what goes on from here, for messages: "was silent for 30s while {during}".
    pub fn during(&mut self, during: &'static str) {
        self.during = during;
    }

    /// Waits from here on are ended by this one instead.
    pub fn abort_with(&mut self, abort: super::wait::Abort) {
        self.patience.abort = abort;
    }

    /// Silence of this length means the peer is lost, from here on.
    pub fn silence(&mut self, limit: Duration) {
        self.patience.silence = limit;
    }

    /// The step from here on must be done within `limit`, however busy the peer looks; `None` lifts it.
    pub fn deadline(&mut self, limit: Option<Duration>) {
        self.patience.deadline = limit.map(|limit| Instant::now() + limit);
    }

    /// Bytes on the wire so far, headers included, TLS not.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    /// As [`Channel::bytes_sent`].
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    /// The stream, for tuning.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The stream, for somebody else to go on with between two frames.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// What limits its waits.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Sends one frame.
    pub fn send(&mut self, kind: FrameKind, body: &[u8]) -> Result<()> {
        self.send_parts(kind, &[body])
    }

    /// Sends one frame whose body is the concatenation of `parts`, without copying them.
    pub fn send_parts(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Result<()> {
        let header = Header::of(kind, parts).map_err(|e| self.frame_error(e))?;
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len() + 1);
        slices.push(IoSlice::new(header.as_bytes()));
        slices.extend(parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)));
        self.write_all(&mut slices)
    }

    /// Receives the next frame that is not a sign of life. A refusal by the peer is an error.
    pub fn receive(&mut self) -> Result<Frame<'_>> {
        loop {
            let (kind, length) = self.read_frame()?;
            if kind != FrameKind::ALIVE {
                return Ok(Frame { kind, body: &self.body[..length] });
            }
        }
    }

    /// The same, but `None` after a sign of life: for whoever has more than one channel to listen to.
    pub fn receive_one(&mut self) -> Result<Option<Frame<'_>>> {
        let (kind, length) = self.read_frame()?;
        Ok((kind != FrameKind::ALIVE).then(|| Frame { kind, body: &self.body[..length] }))
    }

    /// Reads a frame; its kind and the length of its body.
    fn read_frame(&mut self) -> Result<(FrameKind, usize)> {
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header)?;
        let header = Header::read_from_bytes(&header).expect("the size is that of a header");
        let (kind, length) = header.check().map_err(|e| self.frame_error(e))?;
        let length = length as usize;
        // The buffer grows once to the longest body seen; limits keep that small.
        let mut body = std::mem::take(&mut self.body);
        if body.len() < length {
            body.resize(length, 0);
        }
        let read = self.read_exact(&mut body[..length]);
        self.body = body;
        read?;
        header.check_body(&self.body[..length]).map_err(|e| self.frame_error(e))?;
        match kind {
            FrameKind::REFUSE => {
                Err(TransportError::Refused { peer: self.peer.clone(), reason: printable(&self.body[..length], 2000) })
            }
            kind => Ok((kind, length)),
        }
    }

    /// Receives the next frame as it is, header included and signs of life too: for whoever passes it on.
    pub fn receive_raw(&mut self) -> Result<Vec<u8>> {
        let mut frame = vec![0; HEADER_BYTES];
        self.read_exact(&mut frame)?;
        let header = Header::read_from_bytes(&frame).expect("the size is that of a header");
        let length = header.passes().map_err(|e| self.frame_error(e))? as usize;
        frame.resize(HEADER_BYTES + length, 0);
        self.read_exact(&mut frame[HEADER_BYTES..])?;
        Ok(frame)
    }

    /// Sends a frame that [`Channel::receive_raw`] has received elsewhere.
    pub fn send_raw(&mut self, frame: &[u8]) -> Result<()> {
        self.write_all(&mut [IoSlice::new(frame)])
    }

    /// Two hands on it, between two frames: one to receive by and one to send by, each in a thread of its own.
    pub fn split(self) -> Result<(Self, Self)> {
        let failed = |source| TransportError::Io { operation: "take in two hands", peer: self.peer.clone(), source };
        let (input, output) = self.stream.split().map_err(failed)?;
        let half = |stream| Self { during: self.during, ..Self::new(stream, self.peer.clone(), self.patience.clone()) };
        Ok((half(input), half(output)))
    }

    /// Receives a frame that must be of this kind.
    pub fn expect(&mut self, kind: FrameKind, name: &'static str) -> Result<&[u8]> {
        let peer = self.peer.clone();
        let frame = self.receive()?;
        if frame.kind == kind {
            Ok(frame.body)
        } else {
            Err(TransportError::UnexpectedKind { peer, expected: name, got: frame.kind })
        }
    }

    /// Whether a frame (or its beginning, or the end of the stream) can be read without waiting.
    pub fn is_readable(&mut self) -> Result<bool> {
        if self.stream.has_plain_text() {
            return Ok(true);
        }
        let (fd, events) = self.stream.read_interest();
        let mut fds = [nix::poll::PollFd::new(fd, events)];
        match nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(self.io_error("wait for", errno.into())),
        }
    }

    /// What becomes readable when something comes, unless [`Channel::is_readable`] already.
    pub fn readable_fd(&self) -> BorrowedFd<'_> {
        self.stream.read_interest().0
    }

    /// Waits until something can be read, but not longer than `limit`. Gives whether something can.
    pub fn wait_readable(&mut self, limit: Duration) -> Result<bool> {
        if self.is_readable()? {
            return Ok(true);
        }
        let (fd, events) = self.stream.read_interest();
        let until = Instant::now() + limit;
        let patience = Patience { deadline: Some(until), ..self.patience.clone() };
        match patience.wait(fd, events) {
            Ok(()) => Ok(true),
            Err(Ended::Deadline) => Ok(false),
            // A time-out that is longer than the patience: silence is for receivers to find.
            Err(Ended::Silent(_)) => Ok(false),
            Err(ended) => Err(self.ended(ended)),
        }
    }

    /// Refuses in words and closes. Errors are of no interest: the peer may have gone already.
    pub fn refuse(mut self, reason: &str) {
        let mut end = reason.len().min(4000);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        self.deadline(Some(Duration::from_secs(2)));
        let _ = self.send(FrameKind::REFUSE, &reason.as_bytes()[..end]);
        self.stream.close_write();
        // Closing with unread data would reset the connection, and the refusal with it.
        let mut rest = [0; 4096];
        while self.read_some(&mut rest).is_ok() {}
    }

    /// Sends the bytes that open a connection.
    pub fn send_preamble(&mut self, preamble: Preamble) -> Result<()> {
        self.write_all(&mut [IoSlice::new(preamble.as_bytes())])
    }

    /// Reads the peer's preamble; up to 64 KiB of other output before it (banners, a shell's messages) are skipped.
    /// On failure `noise` holds what was read instead.
    pub fn receive_preamble(&mut self, noise: &mut Vec<u8>) -> Result<Preamble> {
        let mut window: Vec<u8> = Vec::with_capacity(PREAMBLE_BYTES);
        // Byte by byte at first: nothing after the preamble may be consumed, it belongs to frames.
        loop {
            let mut byte = [0];
            if let Err(error) = self.read_exact(&mut byte) {
                noise.append(&mut window);
                return Err(error);
            }
            window.push(byte[0]);
            while !MAGIC.starts_with(&window[..window.len().min(MAGIC.len())]) {
                noise.push(window.remove(0));
            }
            if noise.len() > NOISE_LIMIT_BYTES {
                return Err(TransportError::NotMigrate { peer: self.peer.clone(), noise: printable(noise, 500) });
            }
            if window.len() == MAGIC.len() {
                break;
            }
        }
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(&window);
        self.read_exact(&mut bytes[MAGIC.len()..])?;
        Ok(Preamble::read_from_bytes(&bytes).expect("the size is that of a preamble"))
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            done += self.read_some(&mut buf[done..])?;
        }
        Ok(())
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            match self.stream.try_read(buf) {
                Ok(0) => return Err(self.closed()),
                Ok(count) => {
                    self.bytes_received += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let (fd, events) = self.stream.read_interest();
                    self.patience.wait(fd, events).map_err(|ended| self.ended(ended))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io_error("read from", error)),
            }
        }
    }

    fn write_all(&mut self, mut slices: &mut [IoSlice<'_>]) -> Result<()> {
        while !slices.is_empty() {
            match self.stream.try_write(slices) {
                Ok(0) => return Err(self.closed()),
                Ok(count) => {
                    self.bytes_sent += count as u64;
                    IoSlice::advance_slices(&mut slices, count);
                }
                Err(error) => self.after_write_error(error)?,
            }
        }
        loop {
            match self.stream.try_flush() {
                Ok(()) => return Ok(()),
                Err(error) => self.after_write_error(error)?,
            }
        }
    }

    /// Waits where that helps.
    fn after_write_error(&mut self, error: io::Error) -> Result<()> {
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                let (fd, events) = self.stream.write_interest();
                self.patience.wait(fd, events).map_err(|ended| self.ended(ended))
            }
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(self.io_error("write to", error)),
        }
    }

    fn closed(&self) -> TransportError {
        TransportError::Closed { peer: self.peer.clone(), during: self.during }
    }

    fn io_error(&self, operation: &'static str, source: io::Error) -> TransportError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
        match source.kind() {
            BrokenPipe | ConnectionReset | ConnectionAborted | UnexpectedEof => self.closed(),
            TimedOut => self.ended(Ended::Silent(self.patience.silence)),
            io::ErrorKind::InvalidData if self.stream.is_tls() => {
                TransportError::Tls { peer: self.peer.clone(), reason: source.to_string() }
            }
            _ => TransportError::Io { operation, peer: self.peer.clone(), source },
        }
    }

    fn ended(&self, ended: Ended) -> TransportError {
        let (peer, during) = (self.peer.clone(), self.during);
        match ended {
            Ended::Aborted => TransportError::Aborted { during },
            Ended::Silent(after) => TransportError::Silent { peer, during, after },
            Ended::Deadline => TransportError::Deadline { peer, during },
            Ended::Poll(source) => TransportError::Io { operation: "wait for", peer, source },
        }
    }

    fn frame_error(&self, error: FrameError) -> TransportError {
        let peer = self.peer.clone();
        match error {
            FrameError::NotAFrame(found) => TransportError::NotAFrame { peer, found },
            FrameError::UnknownKind(kind) => TransportError::UnknownKind { peer, kind },
            FrameError::TooLong { kind, length, limit } => TransportError::FrameTooLong { peer, kind, length, limit },
            FrameError::Checksum(kind) => TransportError::Checksum { peer, kind },
        }
    }
}

/// Text from the other side, fit for a terminal: control characters become spaces, cut at `limit` characters.
pub fn printable(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(limit) {
        Some((end, _)) => format!("{}...", &words[..end]),
        None => words,
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
