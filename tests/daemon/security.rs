//! Transports and secrets as an operator sets them up.

use crate::support::{Cli, Daemon, Ran, command};

/// What `nkcluster keygen` prints.
fn keygen(arguments: &[&str], password: &str) -> String {
    let mut command = command(env!("CARGO_BIN_EXE_nkcluster"));
    command.arg("keygen").args(arguments).env("NKCLUSTER_PASSWORD", password);
    Ran::of(command, "").text().trim_end().to_owned()
}

#[test]
fn a_listener_of_tls_is_reached_with_its_own_certificate() {
    let dir = tempfile::tempdir().expect("a directory");
    let control =
        Daemon::start(&dir.path().join("c1"), &["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tls"]);
    let _worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    let worker = cli.wait_status("w1", "ready");
    assert!(worker["remote"].as_str().is_some_and(|remote| remote.starts_with("tls:127.0.0.1:")), "{worker}");
    assert_eq!(cli.json(&["call", "w1", "echo", "1"]), serde_json::json!({ "reply": [1] }));
    // Its certificate is its own, and nobody we trust vouches for it.
    let strict = Cli::at(format!("{};tls_verify=true", control.uri()));
    assert_eq!(strict.script(&["nodes"]).code, Some(3));
}

#[test]
fn each_role_has_its_secret_and_control_nodes_sign() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::start_with(
        &dir.path().join("c1"),
        &["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp"],
        |command| {
            command.env("NKCLUSTER_WORKER_PASSWORD", "of-workers");
            command.env("NKCLUSTER_ADMIN_PASSWORD", "of-operators").env("NKCLUSTER_CONTROL_PASSWORD", "of-controls");
        },
    );
    let key = keygen(&["--control-key"], "of-controls");
    let worker = |id: &str, password: &str| {
        let arguments = ["--worker", "--node-id", id, "--cluster-addr", &control.uri()];
        Daemon::start_with(&dir.path().join(id), &arguments, |command| {
            command.env("NKCLUSTER_PASSWORD", password).env("NKCLUSTER_CONTROL_KEY", &key);
        })
    };
    let (_worker, _thief) = (worker("w1", "of-workers"), worker("w2", "of-operators"));
    let ask = |password: &str, key: &str| {
        let mut command = Cli::to(&control).command(&["--json", "nodes"]);
        command.env("NKCLUSTER_PASSWORD", password).env("NKCLUSTER_CONTROL_KEY", key);
        Ran::of(command, "")
    };
    let nodes = crate::support::wait_for("the worker", || {
        let nodes = ask("of-operators", &key).json();
        nodes.as_array().is_some_and(|nodes| nodes.len() == 2).then_some(nodes)
    });
    assert_eq!((&nodes[0]["id"], &nodes[1]["id"]), (&"c1".into(), &"w1".into()));
    ask("of-workers", &key).fails(3, "invalid_password");
    let other = keygen(&["--control-key"], "of-others");
    assert_eq!(ask("of-operators", &other).code, Some(3));
}

#[test]
fn the_token_of_a_worker_is_for_its_id_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::start_with(
        &dir.path().join("c1"),
        &["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp"],
        |command| {
            command.env("NKCLUSTER_NODE_TOKENS", "true").env("NKCLUSTER_WORKER_PASSWORD", "of-workers");
        },
    );
    let token = keygen(&["--node-token", "w1"], "of-workers");
    let worker = |id: &str| {
        let arguments = ["--worker", "--node-id", id, "--cluster-addr", &control.uri()];
        Daemon::start_with(&dir.path().join(id), &arguments, |command| {
            command.env("NKCLUSTER_NODE_TOKEN", &token);
        })
    };
    let (_worker, thief) = (worker("w1"), worker("w2"));
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    crate::support::wait_for("the refusal of the thief", || thief.log().contains("invalid_password").then_some(()));
    assert_eq!(cli.node("w2"), None);
}
