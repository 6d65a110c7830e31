//! One test binary for everything that runs processes.

mod agent;
mod reader;
mod ssh;
mod sockets;
