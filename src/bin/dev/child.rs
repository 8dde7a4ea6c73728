//! One child process of the development cluster.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;

use super::ports;
use super::public::without_settings;
use crate::failure::{Failure, Outcome};
use crate::{DAEMON_NAME, exit};

/// Longest time until a child is ready; it stretches the password first, which takes a while on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The ready line is short; a child that writes more without an end is wrong.
const READY_BYTES_MAX: u64 = 64 * 1024;
/// Longest time for a child to drain, above what it allows itself.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How a child is started.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// Where its log goes; what stands there stays.
    pub(super) log: PathBuf,
}

/// A child that was started. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    pid: Pid,
    /// The child stops when this is closed.
    stdin: Option<ChildStdin>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    /// Starts the child and waits until it is ready.
    pub(super) async fn start(start: &Start) -> Outcome<Self> {
        let failed = |what: &str, error: std::io::Error| Failure::io(format_args!("cannot start a node: {what}"), &error);
        let program = std::env::current_exe().map_err(|error| failed("our own executable", error))?;
        let log = OpenOptions::new().create(true).append(true).open(&start.log).map_err(|error| failed("its log", error))?;
        let mut command = std::process::Command::new(program);
        command.arg0(DAEMON_NAME).args(&start.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // Signals of the terminal are for us; we stop the children.
        command.process_group(0);
        without_settings(&mut command);
        let mut child = Command::from(command).kill_on_drop(true).spawn().map_err(|error| failed("the process", error))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new("internal", "a child without a process id"))?;
        let stdout = child.stdout.take().ok_or_else(|| Failure::new("internal", "a child without standard output"))?;
        let stdin = child.stdin.take();
        let ready = tokio::time::timeout(READY_TIMEOUT, ready(stdout, &mut child)).await;
        let stdout = ready.map_err(|_| Failure::new("timeout", format!("not ready within {} s", READY_TIMEOUT.as_secs())))??;
        let (tell_ended, ended) = watch::channel(None);
        tokio::spawn(keep(child, stdout, tell_ended));
        Ok(Self { pid, stdin, ended })
    }

    /// Sends a signal; nothing if the child has ended.
    pub(super) fn signal(&self, signal: Signal) -> Outcome {
        if self.status().is_some() {
            return Ok(());
        }
        kill_process(self.pid, signal).map_err(|error| Failure::io("cannot send a signal", &error.into()))
    }

    /// How it ended, if it did.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            if self.ended.changed().await.is_err() {
                // Its keeper was dropped with the runtime: there is nothing to wait for any more.
                return std::future::pending().await;
            }
        }
    }

    /// Lets it drain, and kills it if it takes too long.
    pub(super) async fn stop(&mut self) {
        drop(self.stdin.take());
        // One that is frozen could not hear of it. It fails only if the child has ended.
        let _ = self.signal(Signal::CONT);
        if tokio::time::timeout(STOP_TIMEOUT, self.wait()).await.is_err() {
            self.kill();
            self.wait().await;
        }
    }

    /// Kills it at once, also if it is stopped by SIGSTOP.
    pub(super) fn kill(&self) {
        // It fails only if the child has ended meanwhile.
        let _ = self.signal(Signal::KILL);
    }
}

/// Reads the ready line; the reader is given back, because a child whose output is closed would fail to write.
async fn ready(stdout: ChildStdout, child: &mut Child) -> Outcome<BufReader<ChildStdout>> {
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    let read = (&mut stdout).take(READY_BYTES_MAX).read_line(&mut line).await;
    read.map_err(|error| Failure::io("cannot read the ready line", &error))?;
    if !line.is_empty() {
        let ready: serde_json::Value =
            serde_json::from_str(&line).map_err(|_| Failure::new("protocol_error", format!("no ready line: {line}")))?;
        return match ready["ready"] == true {
            true => Ok(stdout),
            false => Err(Failure::new("protocol_error", format!("no ready line: {line}"))),
        };
    }
    let status = child.wait().await.map_err(|error| Failure::io("cannot wait for a node", &error))?;
    match status.code() == Some(i32::from(exit::UNAVAILABLE)) {
        true => Err(Failure::new(ports::IN_USE, "its port is in use")),
        false => Err(Failure::new("process_failed", format!("it ended before it was ready ({status})"))),
    }
}

/// Owns the process until it has ended.
async fn keep(mut child: Child, mut stdout: BufReader<ChildStdout>, ended: watch::Sender<Option<ExitStatus>>) {
    // What it says after its ready line is for nobody, but must not block it.
    let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
    if let Ok(status) = child.wait().await {
        // Nobody may be left to be told.
        let _ = ended.send(Some(status));
    }
}
