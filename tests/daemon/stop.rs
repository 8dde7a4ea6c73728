//! How the daemon ends.

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

/// A task that takes no notice keeps the drain busy, so that the second signal comes in time.
#[test]
fn a_second_signal_exits_at_once_with_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let mut worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let slow = crate::support::start_slow_task(&cli, &worker);
    worker.signal(Signal::TERM);
    wait_for("the drain", || worker.log().contains("a second signal exits at once").then_some(()));
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait().code(), Some(1), "{}\n{slow}", worker.log());
}
