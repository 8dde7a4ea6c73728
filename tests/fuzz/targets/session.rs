//! Fuzzer of [`nkcluster_fuzz::session`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| -> libfuzzer_sys::Corpus { nkcluster_fuzz::tried(nkcluster_fuzz::session, data) });
