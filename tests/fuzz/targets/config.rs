//! Fuzzer of [`nkcluster_fuzz::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::config(data));
