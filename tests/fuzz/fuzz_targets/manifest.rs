//! `manifest.json`: decoding is total, also behind a right digest.
#![no_main]

#[path = "../decoders/manifest.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| manifest::check(bytes));
