//! The file of peers: reading is total, and names a line that is there.
#![no_main]

#[path = "../decoders/peers.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod peers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| peers::check(bytes));
