//! Workers and control nodes that die, freeze and come back.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Cli, Daemon};

#[test]
fn a_killed_worker_is_told_at_once_and_comes_back_as_a_new_incarnation() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let mut worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let before = cli.json(&["info", "w1"])["incarnation"].clone();
    worker.signal(Signal::KILL);
    worker.wait();
    cli.wait_status("w1", "not_connected");
    let asked = Instant::now();
    cli.script(&["request", "w1", "core", "\"ping\""]).fails(1, "not_connected");
    assert!(asked.elapsed() < Duration::from_secs(20), "it must not wait for the timeout of 30 s");
    let _worker = worker.again();
    cli.wait_status("w1", "ready");
    assert_ne!(cli.json(&["info", "w1"])["incarnation"], before);
}

#[test]
fn a_frozen_worker_is_told_and_goes_on_as_the_same_incarnation() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let before = cli.json(&["info", "w1"])["incarnation"].clone();
    worker.signal(Signal::STOP);
    cli.wait_status("w1", "not_connected");
    worker.signal(Signal::CONT);
    cli.wait_status("w1", "ready");
    assert_eq!(cli.json(&["info", "w1"])["incarnation"], before);
    assert_eq!(cli.json(&["data", "w1", "get", "none"]), serde_json::json!({ "value": null }));
}

#[test]
fn a_worker_finds_its_control_node_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut control = Daemon::control(dir.path(), "c1");
    let uri = control.uri();
    let _worker = Daemon::worker(dir.path(), "w1", &control);
    Cli::to(&control).wait_status("w1", "ready");
    control.signal(Signal::KILL);
    control.wait();
    let control = Daemon::start(&dir.path().join("c1"), &["--control", "--node-id", "c1", "--listen", &uri]);
    Cli::to(&control).wait_status("w1", "ready");
}

#[test]
fn a_worker_is_attached_by_its_address_and_forgotten() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let worker =
        Daemon::start(&dir.path().join("w1"), &["--worker", "--node-id", "w1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp"]);
    let cli = Cli::to(&control);
    assert_eq!(cli.node("w1"), None);
    assert_eq!(cli.json(&["connect", &worker.uri()]), serde_json::json!({ "node": "w1" }));
    cli.wait_status("w1", "ready");
    assert_eq!(cli.json(&["forget", "w1"]), serde_json::json!({ "node": "w1" }));
    assert_eq!(cli.node("w1"), None);
    cli.run(&["info", "w1"]).fails(4, "not_found");
}
