//! Frames on the wire: a header is refused or bounded, and a body that is taken is the one that was sent.
#![no_main]

#[path = "../decoders/frame.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| frame::check(bytes));
