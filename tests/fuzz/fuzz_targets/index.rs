//! `index.bin`: decoding is total, also behind a right checksum, and what decodes is sound.
#![no_main]

#[path = "../decoders/index.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod index;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| index::check(bytes));
