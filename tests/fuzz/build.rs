//! Sets `nkcluster_seeded_crash` for this package alone, so that proving the fuzzers does not compile everything else a second time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=NKCLUSTER_SEEDED_CRASH");
    if std::env::var_os("NKCLUSTER_SEEDED_CRASH").is_some_and(|value| value == "1") {
        println!("cargo::rustc-cfg=nkcluster_seeded_crash");
    }
}
