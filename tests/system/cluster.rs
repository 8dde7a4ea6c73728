//! A control node and a worker on different machines, and what people do with them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::namespace::Namespace;
use crate::support::{Cli, Daemon, wait_for};

/// Bytes of the file that goes to the worker and back.
const FILE_BYTES: usize = 20 * 1024 * 1024;

/// The control node `c1`, seen by somebody who sits at it.
pub(crate) struct Control<'a> {
    machine: &'a Namespace,
    dir: PathBuf,
    cli: Cli,
    events: PathBuf,
    follower: Child,
    _daemon: Daemon,
}

/// The settings of every node: on such a network a password must be a real one, and these tests are about the way.
pub(crate) fn open(command: &mut std::process::Command) {
    command.env("NKCLUSTER_ALLOW_DEFAULT_PASSWORD", "true");
}

impl<'a> Control<'a> {
    /// Starts it; somebody follows the events from now on.
    pub(crate) fn start(machine: &'a Namespace, dir: &Path, listen: &str) -> Self {
        let arguments = ["--control", "--node-id", "c1", "--listen", listen];
        let daemon = machine.inside(|| Daemon::start_with(&dir.join("c1"), &arguments, open));
        let cli = Cli::to(&daemon);
        let events = dir.join("events");
        let mut command = cli.command(&["events", "--json"]);
        command.stdin(Stdio::null()).stdout(File::create(&events).expect("made")).stderr(Stdio::null());
        let follower = machine.inside(|| command.spawn()).expect("starts");
        Self { machine, dir: dir.to_owned(), cli, events, follower, _daemon: daemon }
    }

    /// Uses the command on its machine.
    pub(crate) fn ask<T: Send>(&self, ask: impl FnOnce(&Cli) -> T + Send) -> T {
        self.machine.inside(|| ask(&self.cli))
    }

    /// The command for scripts, which must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        self.ask(|cli| cli.json(arguments))
    }

    /// Waits until the worker `w1` has a status; returns the address from where it came.
    pub(crate) fn wait_status(&self, status: &str) -> String {
        let node = self.ask(|cli| cli.wait_status("w1", status));
        node["remote"].as_str().unwrap_or_default().to_owned()
    }

    /// The incarnation of the worker.
    pub(crate) fn incarnation(&self) -> Value {
        self.json(&["info", "w1"])["incarnation"].clone()
    }

    /// Calls the worker, changes its status, runs a task on it to its end, and sends a large file there and back.
    pub(crate) fn use_fully(&self, worker: &Daemon) {
        assert_eq!(self.json(&["call", "w1", "echo", "1", "\"two\""]), json!({ "reply": [1, "two"] }));
        self.json(&["status", "w1", "standby"]);
        self.ask(|cli| cli.script(&["task", "start", "w1", "files", HASH]).fails(1, "node_not_ready").code);
        self.json(&["status", "w1", "ready"]);

        let (local, back) = (self.dir.join("local"), self.dir.join("back"));
        let content: Vec<u8> = (0..FILE_BYTES).map(|at| (at * 31 + at / 251) as u8).collect();
        fs::write(&local, &content).expect("written");
        let sent = self.json(&["send", "w1", &local.display().to_string(), "there/large"]);
        assert_eq!(sent["bytes"], FILE_BYTES, "{sent}");
        assert!(fs::read(worker.dir().join("files/there/large")).expect("it is there") == content);
        self.json(&["fetch", "w1", "there/large", &back.display().to_string()]);
        assert!(fs::read(&back).expect("it is back") == content);

        let started = self.json(&["task", "start", "w1", "files", HASH]);
        let id = started["task_id"].as_str().expect("an id");
        let end = json!({ "nkcluster": { "task_stopped": { "id": id, "reason": "normal" } } });
        wait_for("the end of the task to be told", || self.events().into_iter().find(|event| event["event"] == end));
    }

    /// Events of the worker so far.
    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.events).expect("it is written there");
        // The last line may not be whole yet.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|event: &Value| event["node"] == "w1").collect()
    }

    /// Starts a task that takes longer than any test; returns its id.
    pub(crate) fn start_slow_task(&self, worker: &Daemon) -> String {
        self.ask(|cli| cli.start_long_task(worker))
    }

    /// Whether a task runs.
    pub(crate) fn runs(&self, task: &str) -> bool {
        let tasks = self.json(&["task", "list", "w1", "files"]);
        tasks.as_array().expect("an array").iter().any(|running| running["id"] == task)
    }
}

impl Drop for Control<'_> {
    fn drop(&mut self) {
        // It ends with the control node anyway.
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}

/// What the task of the tests does.
const HASH: &str = "{\"hash\":{\"path\":\"there\"}}";

/// Starts the worker `w1` on its machine, where `environment` is set.
pub(crate) fn start_worker(machine: &Namespace, dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon {
    let arguments: Vec<&str> = ["--worker", "--node-id", "w1"].iter().chain(arguments).copied().collect();
    machine.inside(|| {
        Daemon::start_with(&dir.join("w1"), &arguments, |command| {
            open(command);
            command.envs(environment.iter().copied());
        })
    })
}
