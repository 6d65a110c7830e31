//! `model.bin`: decoding is total, what decodes can be checked, and encodes to something equal.
#![no_main]

#[path = "../decoders/model.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| model::check(bytes));
