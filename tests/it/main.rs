//! One test binary for everything that runs processes.

mod reader;
