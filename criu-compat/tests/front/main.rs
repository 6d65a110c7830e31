//! The program `criu`, as its callers use it: real programs are saved and restored, and exit codes, logs and pid files are
//! looked at.

mod companions;
mod dump;
mod kept;
mod restore;
mod sockets;
mod stage;
