//! A control node whose clock is set by an hour while it works. It is the clock of one process: `libfaketime` stands before it, and reads a file.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::several::{Caller, NAMES, Plane, WORKERS, index, without};
use crate::support::wait_for;

const HOUR_S: i64 = 3600;
/// What a reading of a clock may be off, by the time that it takes.
const NEAR_MS: i64 = 60_000;
/// Pings of a worker, one in a second: longer than a silent control node is kept.
const PINGS: u64 = 7;

/// Debian's `libfaketime`. Where everything must be tested, it may not be left out.
fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found = places.map(|place| place.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "`faketime` is not installed");
        eprintln!("skipped: `faketime` is not installed");
    }
    found
}

/// Takes away what the library leaves behind of each process that was killed, with this value.
struct Sweep;

impl Drop for Sweep {
    fn drop(&mut self) {
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let process = ["faketime_shm_", "sem.faketime_sem_"].iter().find_map(|prefix| name.strip_prefix(prefix));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                // Another test may do the same at the same time.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Sets the clock that reads this file.
fn set(clock: &Path, seconds: i64) {
    // Never seen half written.
    let new = clock.with_extension("new");
    fs::write(&new, format!("{seconds:+}\n")).expect("written");
    fs::rename(&new, clock).expect("renamed");
}

/// What the control node that holds `w1` knows of it, asked by way of another one.
fn info(plane: &Plane, by: &str) -> Value {
    plane.at(by).json(&["info", WORKERS[0]])
}

#[test]
fn a_control_node_whose_clock_jumps_by_an_hour_loses_nothing_and_shows_it() {
    let Some(library) = library() else { return };
    // Dropped after the nodes.
    let _sweep = Sweep;
    let clocks = tempfile::tempdir().expect("a directory");
    let clock = |id: &str| clocks.path().join(id);
    for name in NAMES {
        set(&clock(name), 0);
    }
    let files = clocks.path().to_owned();
    let mut plane = Plane::start_with(move |id, command| {
        if NAMES.contains(&id) {
            command.env("LD_PRELOAD", &library).env("FAKETIME_TIMESTAMP_FILE", files.join(id));
            // The file is read each time; only the clock on the wall is another one, as when somebody sets it.
            command.env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
    });
    let tasks = plane.start_tasks();
    let home = plane.settled(&NAMES).remove(0);
    let (terms, ring) = (plane.terms(), plane.at("c1").json(&["ring"]));
    let caller = Caller::start(&plane);
    for jump in [HOUR_S, -HOUR_S] {
        set(&clock(&home), jump);
        wait_for("the clock to be seen as wrong by all", || {
            let is_seen = |name: &&str| {
                let skew = info(&plane, name)["clock_skew_ms"].as_i64();
                skew.is_some_and(|skew| (skew + jump * 1000).abs() < NEAR_MS)
            };
            NAMES.iter().all(is_seen).then_some(())
        });
        let pings = || info(&plane, "c1")["latency"]["count"].as_u64().expect("measured");
        let enough = pings() + PINGS;
        wait_for("some pings", || (pings() >= enough).then_some(()));
        caller.wait_for(100);
        assert_eq!(plane.terms(), terms, "no worker was adopted anew");
        for name in NAMES {
            assert_eq!(plane.at(name).json(&["ring"]), ring);
        }
        plane.unharmed(&NAMES, &tasks);
    }
    caller.finish();

    // It starts again an hour before it started first, and is the younger of its two lives all the same.
    plane.kill(&home);
    plane.agree(&without(&home));
    plane.restart(&home);
    plane.agree(&NAMES);
    plane.settled(&NAMES);
    plane.unharmed(&NAMES, &tasks);
    for name in NAMES {
        assert!(!plane.controls[index(name)].log().contains("node_id_in_use"), "{name}");
    }
}
