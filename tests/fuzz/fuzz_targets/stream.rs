//! Image streams: reading is total and ends.
#![no_main]

#[path = "../decoders/stream.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod stream;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stream::check(bytes));
