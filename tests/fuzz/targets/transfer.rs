//! Fuzzer of [`nkcluster_fuzz::transfer`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::transfer(data));
