//! Every committed input once more: what a fuzzer has found stays found.

use std::fs;
use std::path::{Path, PathBuf};

use nkcluster_fuzz::{TARGETS, Target};

/// Inputs of one target: a corpus is a start, not an archive.
const INPUTS_MAX: usize = 40;
/// Bytes of all corpora.
const BYTES_MAX: u64 = 300 * 1024;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let directory = corpora().join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.sort();
    paths
}

fn replay(target: &str) {
    let run: Target = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name").1;
    for path in inputs(target) {
        // Shown only if it panics: then this is the input.
        println!("{}", path.display());
        run(&fs::read(&path).expect("a readable file"));
    }
}

macro_rules! replayed {
    ($($target:ident)+) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )+

        #[test]
        fn every_target_is_replayed_and_has_a_fuzzer() {
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($target)),+]);
            for name in &names {
                let fuzzer = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("targets/{name}.rs"));
                let code = fs::read_to_string(&fuzzer).unwrap_or_else(|error| panic!("{}: {error}", fuzzer.display()));
                assert!(code.contains(&format!("nkcluster_fuzz::tried(nkcluster_fuzz::{name}, data)")), "{}", fuzzer.display());
            }
            let mut directories: Vec<_> = fs::read_dir(corpora()).expect("the corpora").map(|entry| entry.expect("readable").file_name()).collect();
            directories.sort();
            assert_eq!(directories, names);
        }
    };
}

replayed!(before_trust config handshake intermediary labels payload selector session transfer uri);

#[test]
fn corpora_are_small() {
    let mut bytes = 0;
    for (target, _) in TARGETS {
        let paths = inputs(target);
        assert!(!paths.is_empty() && paths.len() <= INPUTS_MAX, "{target} has {} inputs", paths.len());
        bytes += paths.iter().map(|path| fs::metadata(path).expect("a file").len()).sum::<u64>();
    }
    assert!(bytes < BYTES_MAX, "{bytes} bytes");
}

#[test]
fn seeds_are_those_of_this_version() {
    for (target, name, content) in nkcluster_fuzz::seeds::seeds() {
        let path = corpora().join(target).join(format!("seed-{name}"));
        let committed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(committed == content, "{}: `cargo run -p nkcluster-fuzz --bin seeds` writes it anew", path.display());
    }
}

#[test]
fn inputs_without_content_are_harmless() {
    for (_, run) in TARGETS {
        run(&[]);
        run(&[0; 64]);
        run(&[0xff; 64]);
    }
}
