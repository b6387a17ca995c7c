//! `cargo fuzz run ingestion`: see proxy_rig::fuzz::entry.

#![no_main]

use proxy_rig::fuzz::entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::ingestion(bytes));
