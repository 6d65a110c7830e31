//! Frames of pages: what is handed out is within bounds, with as much content as its runs say.
#![no_main]

#[path = "../decoders/pages.rs"]
#[allow(dead_code)] // Seeds are made by the tests.
mod pages;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pages::check(bytes));
