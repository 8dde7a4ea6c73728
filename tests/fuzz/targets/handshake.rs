//! Fuzzer of [`nkcluster_fuzz::handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nkcluster_fuzz::handshake(data));
