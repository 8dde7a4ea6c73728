//! The examples do what they say: each is run as a process of its own.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Far longer than any of them takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs an example to its end; returns what it printed.
fn run(name: &str) -> String {
    let program = program(name);
    let mut child = Command::new(&program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}; `cargo build --examples` makes it", program.display()));
    let deadline = Instant::now() + DEADLINE;
    // They print a few lines, far less than a pipe holds.
    while child.try_wait().expect("our own child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("our own child");
            let said = child.wait_with_output().expect("it was killed");
            panic!("{name} did not end; it said: {}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("it has ended");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed, {}:\n{out}{err}", output.status);
    out.into_owned()
}

/// Cargo puts the examples beside the directory of the test executables, and builds them with `cargo test`.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("tests are in target/PROFILE/deps");
    profile.join("examples").join(name)
}

#[test]
fn hello_job_class_prints_the_greeting() {
    assert_eq!(run("hello_job_class"), "hello, world, from worker w1\n");
}

#[test]
fn events_are_heard_live_and_taken_in_by_the_class() {
    let said = run("events");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("w1 1: TaskStarted"), "{said}");
    assert_eq!(lines[1..], ["w1 2: 2", "w1 3: 1", "w1 4: 0", "the task ended: normal", "the ledger: [2, 1, 0], normal"]);
}

#[test]
fn a_tree_is_synced_by_all_workers_and_a_second_time_nothing_is_done() {
    let said = run("sync_tree");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, ["1000 files, 499500 bytes, by w1 and w2", "again: 1000 compared, 0 copied"]);
}

#[test]
fn workers_are_placed_by_their_labels() {
    let said = run("place_by_label");
    for line in ["paris transcoded 90 s of holiday.mov", "madrid transcoded 90 s of holiday.mov"] {
        assert!(said.lines().any(|said| said == line), "{said}");
    }
    assert!(!said.contains("tokyo transcoded"), "{said}");
    let europe = said.lines().find_map(|line| line.strip_prefix("region=eu ")).expect("the selector");
    assert_eq!(europe.trim(), "madrid, paris");
}

#[test]
fn an_embedded_cluster_sees_a_worker_die_and_return() {
    let said = run("embedded_cluster");
    for part in ["w1 is ready at tls:127.0.0.1:", "sent 3000000 bytes to w1", "w1 is gone: ", "(not_connected)", "w1 is back, and its file"]
    {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
}

#[test]
fn counters_survive_a_rolling_restart_of_all_control_nodes() {
    let said = run("counters");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("counted on {") && ["c1", "c2", "c3"].iter().all(|name| lines[0].contains(name)), "{said}");
    let each = |name: &str, count: u64| format!("without {name}: {count} on each of 12 counters");
    assert_eq!(lines[1..4], [each("c1", 2), each("c2", 3), each("c3", 4)]);
    assert_eq!(lines[4..], ["restarted all of them: 5 on each of 12 counters"]);
}
