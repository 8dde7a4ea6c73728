//! How the daemon starts, and how it refuses to.

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Cli, DEADLINE, Daemon, Ran, command, daemon_command, wait_for};

fn daemon(arguments: &[&str]) -> Ran {
    let mut command = daemon_command();
    command.args(arguments);
    Ran::of(command, "")
}

fn file(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).expect("writes");
    path.display().to_string()
}

#[test]
fn the_ready_line_has_real_ports_and_its_keys_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = daemon_command();
    command.args(["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp", "--exit-with-stdin"]);
    let mut child = command
        .arg("--state-dir")
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().expect("piped")), &mut line).expect("text");
    drop(child.stdin.take());
    let ready: Value = serde_json::from_str(&line).expect("JSON");
    let listen = ready["listen"][0].as_str().expect("it listens");
    let port = listen.strip_prefix("nkcluster://127.0.0.1:").and_then(|rest| rest.strip_suffix(";transport=tcp"));
    let port: u16 = port.and_then(|port| port.parse().ok()).expect("an address of tcp");
    assert_ne!(port, 0);
    let expected =
        format!(r#"{{"ready":true,"node_id":"c1","role":"control","listen":["nkcluster://127.0.0.1:{port};transport=tcp"],"http":null}}"#);
    assert_eq!(line, format!("{expected}\n"));
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn a_worker_is_ready_without_listening_and_without_a_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let worker = Daemon::start(dir.path(), &["--worker", "--node-id", "w1", "--cluster-addr", "nkcluster://127.0.0.1:1;transport=tcp"]);
    assert_eq!(worker.ready, json!({ "ready": true, "node_id": "w1", "role": "worker", "listen": [], "http": null }));
    wait_for("a log line about the cluster that is away", || worker.log().contains("127.0.0.1:1").then_some(()));
}

#[test]
fn without_files_for_a_runtime_it_exits_with_70_and_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let starved = |files: u32| {
        let mut command = command("sh");
        command.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &files.to_string(), env!("CARGO_BIN_EXE_nkcluster-node")]);
        command.args(["--worker", "--listen", "nkcluster://127.0.0.1:0;transport=tcp", "--exit-with-stdin", "--state-dir"]).arg(dir.path());
        Ran::of(command, "")
    };
    starved(4).fails(70, "internal").naming(&["Too many open files", "ulimit -n"]);
    // A little more, and something else fails first; some of it panics.
    for files in 5..16 {
        let ran = starved(files);
        assert!(matches!(ran.code, Some(0 | 64 | 69 | 70)), "with {files} files: {ran:?}");
    }
}

#[test]
fn two_nodes_without_an_id_have_different_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let ids = ["a", "b"].map(|name| Daemon::start(&dir.path().join(name), &["--worker"]).ready["node_id"].clone());
    assert!(ids[0].is_string());
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn wrong_usage_exits_with_2() {
    daemon(&["--no-such-flag"]).fails(2, "invalid_usage").naming(&["--no-such-flag"]);
    daemon(&["--control", "--worker"]).fails(2, "invalid_usage").naming(&["--control", "--worker"]);
    daemon(&["--password", "hush"]).fails(2, "invalid_usage");
}

#[test]
fn help_and_version_exit_with_0() {
    assert!(daemon(&["--help"]).text().contains("--check-config"));
    assert!(!daemon(&["--help"]).text().contains("exit-with-stdin"));
    assert!(daemon(&["--version"]).text().starts_with("nkcluster-node "));
}

#[test]
fn bad_configuration_exits_with_64_and_names_file_key_and_what_was_expected() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, "ping_time = 7\n");
    daemon(&["--worker", "--config", &path]).fails(64, "invalid_config").naming(&["node.toml", "ping_time", "7", "1000"]);
    let path = file(&dir, "pign_time = 5000\n");
    daemon(&["--worker", "--config", &path]).fails(64, "invalid_config").naming(&["node.toml", "pign_time", "did you mean", "ping_time"]);
    let path = file(&dir, "listen = \"http://x\"\n");
    daemon(&["--worker", "--config", &path]).fails(64, "invalid_scheme").naming(&["node.toml", "listen"]);
    let path = file(&dir, "not toml\n");
    daemon(&["--worker", "--config", &path]).fails(64, "invalid_config").naming(&["node.toml", "line 1"]);
    daemon(&["--worker", "--config", "/no/such/file"]).fails(64, "invalid_config").naming(&["/no/such/file"]);
}

#[test]
fn bad_flags_and_variables_exit_with_64_and_name_their_source() {
    daemon(&[]).fails(64, "invalid_config").naming(&["role", "--control", "--worker"]);
    daemon(&["--worker", "--node-id", "a b"]).fails(64, "invalid_name").naming(&["command line", "node_id"]);
    daemon(&["--worker", "--listen", "nkcluster://h:1;transport=hola"]).fails(64, "invalid_transport").naming(&["command line", "listen"]);
    daemon(&["--worker", "--log", "info,=,loud"]).fails(64, "invalid_config").naming(&["log"]);
    let mut command = daemon_command();
    command.arg("--worker").env("NKCLUSTER_STATS_TIME", "soon");
    Ran::of(command, "").fails(64, "invalid_config").naming(&["environment", "NKCLUSTER_STATS_TIME", "soon"]);
}

#[test]
fn the_default_password_is_refused_where_others_can_reach_it() {
    let refused = daemon(&["--control", "--listen", "nkcluster://all:0;transport=tcp"]);
    refused.fails(64, "invalid_config").naming(&["password", "allow_default_password"]);
}

#[test]
fn a_password_is_never_repeated() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, "password = 12345678\n");
    let refused = daemon(&["--worker", "--config", &path]);
    refused.fails(64, "invalid_config").naming(&["password"]);
    assert!(!refused.stderr.contains("12345678"), "{refused:?}");
}

#[test]
fn a_taken_port_exits_with_69_and_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let uri = format!("nkcluster://127.0.0.1:{port};transport=tcp");
    let mut command = daemon_command();
    command.args(["--control", "--listen", &uri, "--log", "off", "--state-dir"]).arg(dir.path());
    let ran = Ran::of(command, "");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.lines().count()), (Some(69), "", 1), "{ran:?}");
    ran.naming(&["error[", &port]);
}

#[test]
fn check_config_shows_what_would_run_and_runs_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, "node_id = \"from-file\"\nmeta = \"order;odd=true\"\n");
    let ran = daemon(&["--worker", "--config", &path, "--check-config"]);
    let text = ran.text();
    assert!(text.contains("role = \"worker\"") && text.contains("node_id = \"from-file\"") && text.contains("order;odd=true"), "{text}");
    daemon(&["--worker", "--config", "/no/such/file", "--check-config"]).fails(64, "invalid_config");
}

#[test]
fn flag_beats_environment_beats_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, "role = \"worker\"\nnode_id = \"of-file\"\ncluster_name = \"of-file\"\nmeta = \"file\"\n");
    let mut command = daemon_command();
    command.args(["--config", &path, "--node-id", "of-flag", "--check-config"]);
    command.env("NKCLUSTER_NODE_ID", "of-env").env("NKCLUSTER_CLUSTER_NAME", "of-env");
    let ran = Ran::of(command, "");
    let text = ran.text();
    for line in ["node_id = \"of-flag\"", "cluster_name = \"of-env\"", "meta = \"file\""] {
        assert!(text.lines().any(|seen| seen == line), "{line} is not in {text}");
    }
}

#[test]
fn the_flag_of_the_password_file_beats_the_variable() {
    let dir = tempfile::tempdir().expect("a directory");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "of-the-file\n").expect("writes");
    let mode: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, mode).expect("its mode is set");
    let secret = secret.display().to_string();
    let arguments = ["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp", "--password-file", &secret];
    let control = Daemon::start_with(&dir.path().join("c1"), &arguments, |command| {
        command.env("NKCLUSTER_PASSWORD", "of-the-variable");
    });
    let cli = Cli::to(&control);
    assert_eq!(cli.json(&["--password-file", &secret, "nodes"])[0]["id"], "c1");
    cli.script(&["nodes"]).fails(3, "invalid_password");
}

#[test]
fn logs_are_json_if_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let worker = Daemon::start(dir.path(), &["--worker", "--node-id", "w1", "--log-format", "json"]);
    let log = wait_for("the log line", || Some(worker.log()).filter(|log| log.contains("ready")));
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    assert!(lines.iter().any(|line| line["message"] == "ready" && line["node"] == "w1"), "{log}");
}

#[test]
fn systemd_is_told_that_it_is_ready_and_that_it_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("set");
    let told = || {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).expect("a message in time");
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    };
    let mut worker = Daemon::start_with(&dir.path().join("w1"), &["--worker"], |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(told(), "READY=1");
    worker.close_stdin();
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(worker.wait().code(), Some(0));
}
