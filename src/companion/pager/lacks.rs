//! What a tree lacks in the moment in which it stands still, told by its pager to whoever has stopped it.
//!
//! A client of the pager's socket sends `L` (lacks), and gets a description ([`parcel`]). What the target has done to its
//! mappings until it was stopped is known by then: whoever changes them goes on only when the pager has read of it.
//!
//! Who has looked which pages were written to may protect them again, to see the next writes alone. Before that it sends `W` and
//! these pages ([`Written`]): the pager keeps what the kernel then no longer knows, also for whoever looks after it, and counts
//! how often that was done, so that nobody takes what another has protected for pages that nobody has written to.

use super::{KeptSpace, PATIENCE, parcel};
use crate::companion::held::Held;
use crate::image::MmId;
use crate::memory::lazy::{Piece, Server, Source};
use crate::memory::{PageRange, Space};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// First byte of a client that asks for this.
pub(super) const QUESTION: u8 = b'L';
/// First byte of a client that says what was written to.
pub(super) const NOTE: u8 = b'W';
/// Somebody stands still meanwhile.
const ANSWER: Duration = Duration::from_secs(2);

/// What a tree lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacks {
    /// Its processes as they were restored.
    pub tree: Held,
    /// Address spaces as they were restored: the number in the model of the origin, and a process that has it.
    pub spaces: Vec<(u32, i32)>,
    /// Missing pages: by the position of their address space in `spaces`, the first address (in pages), how many, whose they
    /// are at the origin, and the first one there.
    pub missing: Vec<(usize, u64, u64, u32, u64)>,
    /// Those of them whose pages come write-protected: which were not written to since is known, and those are as they came.
    pub watched: Vec<usize>,
    /// But where a page came to lie that is not the page of this address at the origin: the address space, first page, how many.
    pub moved: Vec<(usize, u64, u64)>,
    /// Which were written to, before they were protected again: the address space, first page, how many.
    #[serde(default)]
    pub written: Vec<(usize, u64, u64)>,
    /// How often pages were protected again.
    #[serde(default)]
    pub protected: u64,
    /// Missing pages that are none of these: of children forked since, and of shared memory.
    pub others: u64,
}

impl Lacks {
    /// Of what a server has still to bring.
    pub(super) fn of<S: Source>(server: &mut Server<'_, S>, tree: &Held, spaces: &[KeptSpace], protected: u64) -> Self {
        let mut missing = Vec::new();
        for (n, piece) in server.settled() {
            let Piece { at: PageRange { first, count }, space: Space::Mm(MmId(mm)), from } = piece else { continue };
            if n < spaces.len() {
                missing.push((n, first, count, mm, from));
            }
        }
        let named: u64 = missing.iter().map(|(_, _, count, ..)| count).sum();
        let others = server.missing().saturating_sub(named);
        let moved = server.moved().map(|(n, range)| (n, range.first, range.count)).collect();
        let written = server.written().map(|(n, range)| (n, range.first, range.count)).collect();
        let watched = (0..spaces.len()).filter(|n| spaces[*n].watched).collect();
        let spaces = spaces.iter().map(|space| (space.mm, space.pid)).collect();
        Self { tree: tree.clone(), spaces, missing, watched, moved, written, protected, others }
    }

    /// Tells a client.
    pub(super) fn tell(&self, client: &mut UnixStream) -> io::Result<()> {
        client.set_write_timeout(Some(ANSWER))?;
        parcel::send(client, self, &[])
    }

    /// Whether this process has one of the address spaces, and has had it from the beginning.
    pub fn is_original(&self, pid: i32, start_time: u64) -> bool {
        self.tree.processes.contains(&(pid, start_time)) && self.spaces.iter().any(|(_, owner)| *owner == pid)
    }
}

/// Pages that were written to: the position of their address space in [`Lacks::spaces`], the first page, how many.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written(pub Vec<(usize, u64, u64)>);

impl Written {
    /// Tells the pager that listens here, which has noted it when this returns; how often that was done, with this time.
    ///
    /// # Errors
    /// It does not answer: they must not be protected.
    pub fn note(&self, socket: &Path) -> io::Result<u64> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.write_all(&[NOTE])?;
        parcel::send(&mut stream, self, &[])?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        Ok(u64::from_le_bytes(count))
    }

    /// Notes what a client says.
    pub(super) fn take<S: Source>(
        server: &mut Server<'_, S>,
        client: &mut UnixStream,
        protected: &mut u64,
    ) -> io::Result<()> {
        let (Self(all), _) = parcel::receive(client, |_| 0)?;
        for (n, first, count) in all {
            server.note_written(n, PageRange::new(first, count));
        }
        *protected += 1;
        client.set_write_timeout(Some(ANSWER))?;
        client.write_all(&protected.to_le_bytes())
    }
}

/// Asks the pager that listens here; `None`: there is none (any more), everything is there.
///
/// # Errors
/// It does not answer.
pub fn ask(socket: &Path) -> io::Result<Option<Lacks>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(e),
    };
    stream.set_read_timeout(Some(PATIENCE.min(ANSWER)))?;
    stream.write_all(&[QUESTION])?;
    match parcel::receive(&mut stream, |_: &Lacks| 0) {
        Ok((lacks, _)) => Ok(Some(lacks)),
        // It has just ended.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && !socket.exists() => Ok(None),
        Err(e) => Err(e),
    }
}
