//! Fuzzer of [`nkcluster_fuzz::payload`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| -> libfuzzer_sys::Corpus { nkcluster_fuzz::tried(nkcluster_fuzz::payload, data) });
