//! How the daemon ends.

use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{Cli, Daemon, wait_for};

#[test]
fn sigterm_and_sigint_drain_and_exit_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut control = Daemon::control(dir.path(), "c1");
        let mut worker = Daemon::worker(dir.path(), "w1", &control);
        Cli::to(&control).wait_status("w1", "ready");
        worker.signal(signal);
        assert_eq!(worker.wait().code(), Some(0), "{}", worker.log());
        control.signal(signal);
        assert_eq!(control.wait().code(), Some(0), "{}", control.log());
    }
}

#[test]
fn the_end_of_standard_input_is_a_request_to_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut worker = Daemon::start(dir.path(), &["--worker"]);
    worker.close_stdin();
    assert_eq!(worker.wait().code(), Some(0), "{}", worker.log());
}

#[test]
fn a_worker_that_stops_is_told_as_not_connected() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let mut worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    worker.signal(Signal::TERM);
    worker.wait();
    cli.wait_status("w1", "not_connected");
}

/// A transfer that takes minutes keeps the drain busy, so that the second signal comes in time.
#[test]
fn a_second_signal_exits_at_once_with_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut control = Daemon::control(dir.path(), "c1");
    let worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let large = dir.path().join("large");
    std::fs::File::create(&large).and_then(|file| file.set_len(1 << 40)).expect("made");
    let mut send = cli.command(&["send", "w1", &large.display().to_string(), "large"]);
    let mut send = send.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_for("the transfer", || std::fs::read_dir(worker.dir().join("files")).ok()?.next().map(drop));
    control.signal(Signal::TERM);
    wait_for("the drain", || control.log().contains("a second signal exits at once").then_some(()));
    control.signal(Signal::TERM);
    assert_eq!(control.wait().code(), Some(1), "{}", control.log());
    send.kill().expect("it runs");
    send.wait().expect("ours");
}
