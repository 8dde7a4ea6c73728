//! Fuzzer of [`nkcluster_fuzz::labels`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::labels(data));
