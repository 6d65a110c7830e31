//! Pseudo-terminals.

use crate::image::{Bytes, NsPid, PtyId};
use serde::{Deserialize, Serialize};

/// A pseudo-terminal pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// Number below `/dev/pts`.
    pub index: u32,
    /// `struct termios2`, raw.
    pub termios: Bytes,
    /// `struct winsize`: rows, columns, x pixels, y pixels.
    pub winsize: [u16; 4],
    /// Session whose controlling terminal it is; 0 = none.
    pub sid: NsPid,
    /// Foreground process group; 0 = none.
    pub pgid: NsPid,
    /// `TIOCSPTLCK`: the slave is locked.
    pub locked: bool,
    /// `TIOCPKT`: packet mode of the master.
    pub packet: bool,
    /// `TIOCEXCL`.
    pub exclusive: bool,
    /// Owner and group of the slave node.
    pub uid: u32,
    /// Group of the slave node.
    pub gid: u32,
    /// Mode of the slave node.
    pub mode: u32,
    /// Written by the slave's users and not read from the master yet.
    pub output: Bytes,
    /// Written to the master and not read by the slave's users yet.
    pub input: Bytes,
}

/// Which side of a terminal a description is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtyFile {
    /// The pair.
    pub pty: PtyId,
    /// Which side.
    pub side: TtySide,
}

/// Sides of a pseudo-terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TtySide {
    /// `/dev/ptmx`.
    Master,
    /// `/dev/pts/N`.
    Slave,
    /// `/dev/tty` opened as such: the controlling terminal of the opener.
    Controlling,
}
