//! Fuzzer of [`nkcluster_fuzz::intermediary`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::intermediary(data));
