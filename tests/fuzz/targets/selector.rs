//! Fuzzer of [`nkcluster_fuzz::selector`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::selector(data));
