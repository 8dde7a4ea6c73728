//! The programs over QUIC, and what is said about sctp.

use rustix::process::Signal;

use crate::support::{Cli, Daemon, Ran, daemon_command};

const LISTEN: &str = "nkcluster://127.0.0.1:0;transport=quic";

#[test]
fn programs_speak_quic_and_a_control_node_that_was_killed_is_found_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let both = format!("{LISTEN}, nkcluster://127.0.0.1:0;transport=tls");
    let mut control = Daemon::start(&dir.path().join("c1"), &["--control", "--node-id", "c1", "--listen", &both]);
    let uri = control.uri();
    assert!(uri.ends_with(";transport=quic"), "{}", control.ready);
    assert!(control.ready["listen"][1].as_str().is_some_and(|second| second.ends_with(";transport=tls")), "{}", control.ready);
    let mut worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    assert!(cli.json(&["info", "w1"])["remote"].as_str().is_some_and(|remote| remote.starts_with("quic:127.0.0.1:")));
    let local = dir.path().join("content");
    std::fs::write(&local, vec![7; 3 << 20]).expect("writes");
    cli.script(&["send", "w1", &local.display().to_string(), "content"]).json();
    assert_eq!(std::fs::metadata(worker.dir().join("files/content")).expect("it is there").len(), 3 << 20);

    control.signal(Signal::KILL);
    control.wait();
    let mut control = Daemon::start(&dir.path().join("c1"), &["--control", "--node-id", "c1", "--listen", &uri]);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    assert_eq!(cli.json(&["call", "w1", "echo", "1"]), serde_json::json!({ "reply": [1] }));
    for node in [&mut worker, &mut control] {
        node.signal(Signal::TERM);
        assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    }
}

#[test]
fn a_worker_that_listens_on_quic_is_attached_by_its_address() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let worker = Daemon::start(&dir.path().join("w1"), &["--worker", "--node-id", "w1", "--listen", LISTEN]);
    let cli = Cli::to(&control);
    assert_eq!(cli.json(&["connect", &worker.uri()]), serde_json::json!({ "node": "w1" }));
    cli.wait_status("w1", "ready");
}

#[test]
fn nobody_listens_is_told_without_waiting_for_an_answer() {
    let nobody = Cli::at("nkcluster://127.0.0.1:1;transport=quic");
    nobody.script(&["--timeout", "10s", "nodes"]).fails(3, "no_connections").naming(&["quic:127.0.0.1:1", "refused"]);
}

#[test]
fn sctp_is_refused_with_what_there_is_instead() {
    const SCTP: &str = "nkcluster://127.0.0.1:1;transport=sctp";
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = daemon_command();
    command.args(["--control", "--listen", SCTP, "--state-dir"]).arg(dir.path());
    Ran::of(command, "").fails(64, "unsupported_transport").naming(&["sctp", "quic"]);
    Cli::at(SCTP).script(&["nodes"]).fails(3, "no_connections").naming(&["unsupported_transport", "sctp", "quic"]);
    let control = Daemon::control(dir.path(), "c1");
    let attached = Cli::to(&control).script(&["connect", SCTP]);
    assert!(attached.code.is_some_and(|code| code != 0), "{attached:?}");
    attached.naming(&["unsupported_transport", "sctp", "quic"]);
    // A worker that was told so goes on looking, and says why.
    let worker = Daemon::start(&dir.path().join("w1"), &["--worker", "--cluster-addr", SCTP]);
    crate::support::wait_for("the reason in its log", || worker.log().contains("unsupported_transport").then_some(()));
}
