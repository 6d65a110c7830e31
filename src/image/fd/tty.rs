//! Pseudo-terminals.

use crate::image::{Bytes, NsId, NsPid, PtyId};
use serde::{Deserialize, Serialize};

/// Bytes of `struct termios2`.
pub const TERMIOS: usize = 44;

/// A pseudo-terminal pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// Number below `/dev/pts`.
    pub index: u32,
    /// What the master was opened by: `/dev/ptmx` or `/dev/pts/ptmx`.
    pub ptmx: Bytes,
    /// The mount namespace in which that path leads to the terminals the pair belongs to.
    pub mnt: NsId,
    /// Which sides there are.
    pub state: PtyState,
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
    /// `TIOCEXCL` of the slave.
    pub exclusive: bool,
    /// Output is stopped (`^S`, `TCOOFF`).
    pub stopped: bool,
    /// Owner of the slave node, as the engine sees it.
    pub uid: u32,
    /// Group of the slave node.
    pub gid: u32,
    /// Permission bits of the slave node.
    pub mode: u32,
    /// Written by the slave's users and not read from the master yet.
    pub output: Bytes,
    /// Whole lines that wait for the slave's users (canonical mode), each as one read(2) returns it: without a newline at
    /// its end it was ended by the end-of-file character.
    pub lines: Vec<Bytes>,
    /// Written to the master, not read by the slave's users, and no whole line (yet).
    pub input: Bytes,
}

/// Which sides of a pair are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PtyState {
    /// Nobody has opened the slave yet.
    Fresh,
    /// Both sides.
    Open,
    /// Whoever had the slave has closed it: the master reads EIO.
    SlaveClosed,
    /// The master was closed: the slave was hung up.
    HungUp,
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

/// What a terminal outside the tree was set to by those inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSettings {
    /// `struct termios2`, raw.
    pub termios: Bytes,
}
