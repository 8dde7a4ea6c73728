//! The public command, as people and scripts use it: a process of its own, its standard output, its exit code.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::exit;
use crate::failure::{Failure, Outcome};

/// Takes the variables of our environment away that would change what a program of ours does.
pub(super) fn without_settings(command: &mut std::process::Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NKCLUSTER_") {
            command.env_remove(name);
        }
    }
}

/// `nkcluster --connect …`. Each command tries the control nodes in another order: whatever is done, it must not matter through whom.
#[derive(Debug)]
pub(super) struct Public {
    program: PathBuf,
    connect: String,
}

/// What a command did.
#[derive(Debug)]
pub(super) struct Ran {
    /// Its exit code; none if a signal ended it.
    pub(super) exit: Option<u8>,
    /// Its standard output.
    pub(super) output: String,
    /// Its standard error.
    pub(super) errors: String,
}

/// A command that runs on, with its lines.
pub(super) struct Following {
    /// Killed when dropped.
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Public {
    /// The command of a cluster, from our own executable.
    pub(super) fn new(connect: String) -> Outcome<Self> {
        let program = std::env::current_exe().map_err(|error| Failure::io("cannot find our own executable", &error))?;
        Ok(Self { program, connect })
    }

    /// The same through one control node only.
    pub(super) fn through(&self, control: &str) -> Self {
        Self { program: self.program.clone(), connect: control.to_owned() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = std::process::Command::new(&self.program);
        command.arg0("nkcluster").args(["--connect", &self.connect, "--timeout", "20s"]).args(arguments);
        command.stdin(Stdio::null()).process_group(0);
        without_settings(&mut command);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub(super) async fn run(&self, arguments: &[&str]) -> Outcome<Ran> {
        let output = self.command(arguments).output().await;
        let output = output.map_err(|error| Failure::io(format_args!("cannot run nkcluster {}", arguments.join(" ")), &error))?;
        let exit = output.status.code().and_then(|code| u8::try_from(code).ok());
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        Ok(Ran { exit, output: text(output.stdout), errors: text(output.stderr) })
    }

    /// Runs a command that must succeed; returns its JSON.
    pub(super) async fn json(&self, arguments: &[&str]) -> Outcome<Value> {
        let ran = self.run(&[&["--json"], arguments].concat()).await?;
        let named = arguments.join(" ");
        if ran.exit != Some(exit::DONE) {
            return Err(Failure::new(
                "unexpected",
                format!("`nkcluster {named}` should succeed, but ended with {}: {}", ran.code(), ran.errors),
            ));
        }
        let parsed = serde_json::from_str(&ran.output);
        parsed.map_err(|_| Failure::new("unexpected", format!("`nkcluster {named}` should print JSON, but printed {:?}", ran.output)))
    }

    /// Runs a command that must fail with an exit code and a name.
    pub(super) async fn refused(&self, arguments: &[&str], exit: u8, code: &str) -> Outcome {
        let ran = self.run(&[&["--json"], arguments].concat()).await?;
        let told: Value = serde_json::from_str(&ran.errors).unwrap_or_default();
        if ran.exit == Some(exit) && told["error"]["code"] == code {
            return Ok(());
        }
        let (named, seen, errors) = (arguments.join(" "), ran.code(), ran.errors);
        Err(Failure::new("unexpected", format!("`nkcluster {named}` should end with {exit} and {code}, but ended with {seen}: {errors}")))
    }

    /// Every node, as `nkcluster --json nodes` prints it.
    pub(super) async fn nodes(&self) -> Outcome<Vec<Value>> {
        self.selected(None).await
    }

    /// The nodes that match a selector.
    pub(super) async fn selected(&self, selector: Option<&str>) -> Outcome<Vec<Value>> {
        let nodes = match selector {
            Some(selector) => self.json(&["nodes", "--select", selector]).await?,
            None => self.json(&["nodes"]).await?,
        };
        match nodes {
            Value::Array(nodes) => Ok(nodes),
            other => Err(Failure::new("unexpected", format!("`nkcluster nodes` should print an array, but printed {other}"))),
        }
    }

    /// What a command prints for people.
    pub(super) async fn text(&self, command: &str) -> Outcome<String> {
        let ran = self.run(&[command]).await?;
        match ran.exit == Some(exit::DONE) {
            true => Ok(ran.output),
            false => Err(Failure::new("unexpected", format!("`nkcluster {command}` ended with {}: {}", ran.code(), ran.errors))),
        }
    }

    /// Starts `nkcluster events` and waits until it follows.
    pub(super) async fn events(&self, arguments: &[&str]) -> Outcome<Following> {
        let mut command = self.command(&[&["--json", "events"], arguments].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Failure::io("cannot run nkcluster events", &error))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::new("internal", "a command without output"));
        };
        let mut errors = BufReader::new(stderr).lines();
        match errors.next_line().await {
            Ok(Some(line)) if line.contains("following") => {}
            seen => return Err(Failure::new("unexpected", format!("`nkcluster events` should say that it follows, but said {seen:?}"))),
        }
        // Whatever else it says must not block it.
        tokio::spawn(async move { while let Ok(Some(_)) = errors.next_line().await {} });
        Ok(Following { _child: child, lines: BufReader::new(stdout).lines() })
    }
}

impl Following {
    /// The next event.
    pub(super) async fn next(&mut self, wanted: impl std::fmt::Display, within: std::time::Duration) -> Outcome<Value> {
        let line = tokio::time::timeout(within, self.lines.next_line()).await;
        let line = line.map_err(|_| Failure::new("unexpected", format!("no event for {} s, expected {wanted}", within.as_secs())))?;
        match line.map_err(|error| Failure::io("cannot read events", &error))? {
            Some(line) => {
                serde_json::from_str(&line).map_err(|_| Failure::new("unexpected", format!("an event should be JSON, but is {line:?}")))
            }
            None => Err(Failure::new("unexpected", format!("the events ended, expected {wanted}"))),
        }
    }
}

impl Ran {
    /// Its exit code in words.
    fn code(&self) -> String {
        self.exit.map_or_else(|| "a signal".to_owned(), |code| format!("exit {code}"))
    }
}
