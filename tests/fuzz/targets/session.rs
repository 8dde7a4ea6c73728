//! Fuzzer of [`nkcluster_fuzz::session`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::session(data));
