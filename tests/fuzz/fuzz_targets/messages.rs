//! Messages of a move: what decodes is, encoded and decoded again, the same.
#![no_main]

#[path = "../decoders/messages.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod messages;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| messages::check(bytes));
