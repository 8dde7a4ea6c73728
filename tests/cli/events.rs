//! `events`.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Cli, DEADLINE, Daemon, pid, wait_for};
use crate::{cli, shared, start_slow_task};

/// `nkcluster events` that runs.
struct Events {
    child: Child,
    lines: Receiver<String>,
    errors: BufReader<ChildStderr>,
}

impl Events {
    fn start(cli: &Cli, arguments: &[&str]) -> Self {
        let mut command = cli.command(&[&["events"], arguments].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut errors = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        errors.read_line(&mut line).expect("text");
        assert!(line.contains("following"), "{line}");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
        Self { child, lines, errors }
    }

    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(DEADLINE).expect("an event in time");
        serde_json::from_str(&line).expect("JSON")
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_task_tells_its_start_and_its_end() {
    std::fs::create_dir_all(shared().worker.dir().join("files/empty")).expect("a directory");
    let events = Events::start(cli(), &["--class", "files", "--node", "w1", "--json"]);
    cli().json(&["task", "start", "w1", "files", "{\"hash\":{\"path\":\"empty\"}}", "--id", "told"]);
    let mine = |event: &Value| {
        event["event"]["nkcluster"]["task_started"] == "told" || event["event"]["nkcluster"]["task_stopped"]["id"] == "told"
    };
    let seen: Vec<Value> = std::iter::repeat_with(|| events.next()).filter(mine).take(2).collect();
    assert_eq!(seen[0]["event"], json!({ "nkcluster": { "task_started": "told" } }));
    assert_eq!(seen[1]["event"], json!({ "nkcluster": { "task_stopped": { "id": "told", "reason": "normal" } } }));
    for event in &seen {
        assert_eq!((&event["node"], &event["class"]), (&json!("w1"), &json!("files")));
        assert!(event["seq"].is_u64() && event["time"].is_u64(), "{event}");
    }
}

#[test]
fn ctrl_c_ends_it_with_0() {
    let mut events = Events::start(cli(), &[]);
    kill_process(pid(&events.child), Signal::INT).expect("it runs");
    assert_eq!(wait_for("its end", || events.child.try_wait().expect("ours")).code(), Some(0));
}

#[test]
fn the_end_of_the_link_is_told_with_3() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut control = Daemon::control(dir.path(), "c1");
    let mut events = Events::start(&Cli::to(&control), &["--json"]);
    control.close_stdin();
    control.wait();
    assert_eq!(wait_for("its end", || events.child.try_wait().expect("ours")).code(), Some(3));
    let mut line = String::new();
    events.errors.read_line(&mut line).expect("text");
    let error: Value = serde_json::from_str(&line).expect("JSON");
    assert!(error["error"]["code"].is_string(), "{line}");
}

#[test]
fn a_change_of_status_is_an_event() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    start_slow_task(&cli, &worker);
    let events = Events::start(&cli, &["--json", "--node", "w1"]);
    cli.json(&["status", "w1", "standby"]);
    let event = std::iter::repeat_with(|| events.next()).find(|event| event["event"]["nkcluster"]["node_status"] == "standby");
    assert_eq!(event.expect("it comes")["node"], "w1");
}
