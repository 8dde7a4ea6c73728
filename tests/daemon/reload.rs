//! What a running daemon reads again.

use std::path::Path;

use rustix::process::Signal;

use crate::support::{Cli, Daemon, wait_for};

fn control(dir: &Path, transport: &str) -> Daemon {
    Daemon::start(dir, &["--control", "--node-id", "c1", "--listen", &format!("nkcluster://127.0.0.1:0;transport={transport}")])
}

#[test]
fn sighup_takes_new_certificates_and_keeps_the_old_ones_if_they_are_broken() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut node, other) = (control(&dir.path().join("c1"), "wss"), control(&dir.path().join("c2"), "tls"));
    let (own, new) = (node.dir().join("tls"), other.dir().join("tls"));
    let old = dir.path().join("old.pem");
    std::fs::copy(own.join("cert.pem"), &old).expect("copies");
    let exit = |ca: &Path| Cli::at(format!("{};tls_verify=host;tls_cacertfile={}", node.uri(), ca.display())).script(&["nodes"]).code;
    assert_eq!(exit(&old), Some(0));

    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(new.join(file), own.join(file)).expect("copies");
    }
    assert_eq!(exit(&old), Some(0), "nobody has asked for the new one yet");
    node.signal(Signal::HUP);
    wait_for("the new certificate", || node.log().contains("the certificate was read again").then_some(()));
    assert_eq!(exit(&new.join("cert.pem")), Some(0));
    assert_eq!(exit(&old), Some(3));

    std::fs::write(own.join("key.pem"), "nothing").expect("writes");
    node.signal(Signal::HUP);
    wait_for("the complaint", || node.log().contains("keeps its old certificate").then_some(()));
    assert!(node.log().contains("key.pem"), "{}", node.log());
    assert_eq!(exit(&new.join("cert.pem")), Some(0));

    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0), "{}", node.log());
}

#[test]
fn a_worker_without_listeners_survives_sighup() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = control(&dir.path().join("c1"), "ws");
    let mut worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    worker.signal(Signal::HUP);
    assert_eq!(cli.json(&["call", "w1", "echo", "1"]), serde_json::json!({ "reply": [1] }));
    worker.signal(Signal::TERM);
    assert_eq!(worker.wait().code(), Some(0), "{}", worker.log());
}
