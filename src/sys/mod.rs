//! All unsafe code.
