//! Real processes for the tests: daemons that end with the test, the command, and waiting for a condition.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for anything; only a failure waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Rounds of the password in tests; the real number would only heat the machine.
pub(crate) const ROUNDS: &str = "1000";

/// Waits until `look` finds something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(30));
    }
}

/// A command without the settings of whoever runs the tests.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NKCLUSTER_") {
            command.env_remove(name);
        }
    }
    command.env("NKCLUSTER_PBKDF2_ITERS", ROUNDS);
    command
}

/// The daemon's command.
pub(crate) fn daemon_command() -> Command {
    command(env!("CARGO_BIN_EXE_nkcluster-node"))
}

/// A daemon. It is killed with this value, and ends by itself when the test process does.
pub(crate) struct Daemon {
    pub(crate) ready: Value,
    child: Child,
    stdin: Option<ChildStdin>,
    log: Log,
    dir: PathBuf,
    arguments: Vec<String>,
}

/// What a process writes to standard error.
type Log = Arc<Mutex<String>>;

fn follow(mut stream: impl Read + Send + 'static) -> (Log, thread::JoinHandle<()>) {
    let log = Log::default();
    let kept = Arc::clone(&log);
    let reader = thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut chunk) {
            let text = String::from_utf8_lossy(&chunk[..length]);
            kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
    (log, reader)
}

impl Daemon {
    /// Starts a daemon with a state directory below `dir` and waits for its ready line.
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Self {
        Self::start_with(dir, arguments, |_| ())
    }

    /// The same, with more changes to the command.
    pub(crate) fn start_with(dir: &Path, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut command = daemon_command();
        command.args(&arguments).arg("--exit-with-stdin").arg("--state-dir").arg(dir);
        command.env("NKCLUSTER_PING_TIME", "1000").env("NKCLUSTER_PROXY_CONNECT_RETRY", "1000").env("NKCLUSTER_CLASSES", "*");
        change(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the daemon starts");
        let stdin = child.stdin.take();
        let (log, _) = follow(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("its output is text");
        // Whatever it says later must not block it.
        thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        if line.is_empty() {
            let status = child.wait().expect("it ends");
            panic!("{arguments:?} ended with {status} before it was ready: {}", log.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a ready line: {line}"));
        Self { ready, child, stdin, log, dir: dir.to_owned(), arguments }
    }

    /// A control node `id` on a port of its own.
    pub(crate) fn control(dir: &Path, id: &str) -> Self {
        Self::start(&dir.join(id), &["--control", "--node-id", id, "--listen", "nkcluster://127.0.0.1:0;transport=tcp"])
    }

    /// A worker `id` of a control node.
    pub(crate) fn worker(dir: &Path, id: &str, control: &Daemon) -> Self {
        Self::start(&dir.join(id), &["--worker", "--node-id", id, "--cluster-addr", &control.uri()])
    }

    /// The same daemon again, in its directory.
    pub(crate) fn again(&self) -> Self {
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        Self::start(&self.dir, &arguments)
    }

    /// The id of the node.
    pub(crate) fn id(&self) -> &str {
        self.ready["node_id"].as_str().expect("a name")
    }

    /// Its first address.
    pub(crate) fn uri(&self) -> String {
        self.ready["listen"][0].as_str().expect("it listens").to_owned()
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The directory of its state.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        pid(&self.child)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Closes its standard input.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.stdin.take());
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for("the daemon to end", || self.child.try_wait().expect("it is ours"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.id(), self.log());
        }
    }
}

/// The process id of a child.
pub(crate) fn pid(child: &Child) -> Pid {
    let id = i32::try_from(child.id()).expect("process ids are small");
    Pid::from_raw(id).expect("no process is 0")
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Runs a command to its end, with something on its standard input.
    pub(crate) fn of(mut command: Command, input: &str) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        // A program that does not read closes the pipe.
        let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
        let (stdout, read) = follow(child.stdout.take().expect("it is piped"));
        let (stderr, read_errors) = follow(child.stderr.take().expect("it is piped"));
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("it is ours") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let text = |log: &Log| log.lock().unwrap_or_else(PoisonError::into_inner).clone();
                panic!("{command:?} does not end; it said {:?} and {:?}", text(&stdout), text(&stderr));
            }
            thread::sleep(Duration::from_millis(5));
        };
        read.join().expect("the reader does not panic");
        read_errors.join().expect("the reader does not panic");
        let text = |log: Log| log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// The one JSON document that it printed.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.stdout.lines().count(), 1, "one document on one line: {self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// What it printed for people.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// That it failed with an exit code and an error of this name, in one line and with nothing on standard output.
    #[track_caller]
    pub(crate) fn fails(&self, exit: i32, code: &str) -> &Self {
        assert_eq!(self.code, Some(exit), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        match serde_json::from_str::<Value>(&self.stderr) {
            Ok(error) => {
                assert_eq!(error["error"]["code"], code, "{self:?}");
                assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
            }
            Err(_) => assert!(self.stderr.starts_with(&format!("error[{code}]: ")), "{self:?}"),
        }
        self
    }

    /// That its error speaks of all of these.
    #[track_caller]
    pub(crate) fn naming(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:?}");
        }
    }
}

/// `nkcluster` for a control node.
#[derive(Clone)]
pub(crate) struct Cli {
    pub(crate) connect: String,
    /// Rounds that stretch the password there.
    pub(crate) rounds: &'static str,
}

impl Cli {
    pub(crate) fn to(control: &Daemon) -> Self {
        Self::at(control.uri())
    }

    /// The control node that listens at an address.
    pub(crate) fn at(connect: impl Into<String>) -> Self {
        Self { connect: connect.into(), rounds: ROUNDS }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(env!("CARGO_BIN_EXE_nkcluster"));
        command.env("NKCLUSTER_PBKDF2_ITERS", self.rounds).args(["--connect", &self.connect]).args(arguments);
        command
    }

    /// Runs it for people.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments), "")
    }

    /// Runs it for scripts; `--json` stands last, where it is allowed too.
    pub(crate) fn script(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(&[arguments, &["--json"]].concat()), "")
    }

    /// Runs it for scripts; it must succeed.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        self.script(arguments).json()
    }

    /// A node in the list, if it is there.
    pub(crate) fn node(&self, id: &str) -> Option<Value> {
        let nodes = self.json(&["nodes"]);
        let found = nodes.as_array().expect("an array").iter().find(|node| node["id"] == id);
        found.cloned()
    }

    /// Waits until a node has a status.
    pub(crate) fn wait_status(&self, id: &str, status: &str) -> Value {
        wait_for(&format!("{id} to be {status}"), || self.node(id).filter(|node| node["status"] == status))
    }
}
