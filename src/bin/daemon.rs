//! `nkcluster-node`: one node as a process.
//!
//! ```text
//! flags, environment, file ─► Config ─► logs ─► Node::start ─► ready line ─► signal ─► drain ─► exit 0
//!        usage 2             wrong 64          bind 69, bug 70               second signal: exit 1 at once
//! ```
//!
//! SIGHUP reads the certificates again.
//!
//! Standard output carries one line, for whoever started us; logs go to standard error. A panic anywhere is logged; one that ends the node itself, or a
//! machine without files and threads for it, ends the process with 70.

mod arguments;
mod check;
mod logs;

use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nkcluster::ErrorCode;
use nkcluster::config::{Config, ConfigError};
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeError, NodeHandle};
use nkcluster::types::{NodeId, NodeUri};
use nkcluster_file_sync::{FileSync, RemoteConfig, SyncRun};
use sd_notify::NotifyState;
use serde::Serialize;
use tokio::sync::oneshot;

use self::arguments::Arguments;
use crate::exit;
use crate::failure::Failure;
use crate::output::Form;
use crate::signals::{ReloadSignal, StopSignals};
use crate::sync;

/// Longest time for tasks of the runtime to notice that the process ends.
const RUNTIME_GRACE: Duration = Duration::from_millis(500);
/// Files that the class `file_sync` copies at the same time, over all its tasks; as many as rclone does.
const FILE_SYNC_TRANSFERS: usize = 4;

/// Runs the daemon with the command line of this process.
pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return crate::arguments::tell_usage(&error, Form::People),
    };
    let (config, filter) = match configure(&arguments) {
        Ok(configured) => configured,
        Err(failure) => return failure.tell(Form::People),
    };
    if arguments.check_config {
        return match Form::People.line(check::report(&config)) {
            Ok(()) => ExitCode::from(exit::DONE),
            Err(failure) => failure.tell(Form::People),
        };
    }
    logs::start(filter, config.log_format);
    if let Some(address) = config.http {
        tracing::warn!(%address, "http is ignored: there is no HTTP server yet");
    }
    match serve(config, arguments.exit_with_stdin) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => failure.tell(Form::People),
    }
}

fn serve(config: Config, exit_with_stdin: bool) -> Result<(), Failure> {
    let no_runtime = |reason: &str| bug(format!("no runtime: {reason}; are there files (`ulimit -n`) and threads (`ulimit -u`) for it?"));
    // It panics where some of what it needs is missing, instead of returning the error.
    let built = panic::catch_unwind(|| tokio::runtime::Builder::new_multi_thread().enable_all().build());
    let runtime = match built {
        Ok(built) => built.map_err(|error| no_runtime(&error.to_string()))?,
        Err(_) => return Err(no_runtime("the reason is in the log above")),
    };
    // In a task of its own, so that a panic of the node becomes an exit code.
    let run = runtime.spawn(run(config, exit_with_stdin));
    let outcome = runtime.block_on(run).unwrap_or_else(|error| Err(bug(format!("the node panicked: {error}"))));
    runtime.shutdown_timeout(RUNTIME_GRACE);
    outcome
}

fn configure(arguments: &Arguments) -> Result<(Config, tracing_subscriber::EnvFilter), Failure> {
    let wrong = |error: ConfigError| Failure::new(error.code(), error.to_string()).with_exit(exit::CONFIG);
    let config = arguments.config().map_err(wrong)?;
    let filter = logs::filter(&config.log).map_err(|error| {
        let message = format!("log = {:?}: {error}", config.log);
        Failure::new(ErrorCode::InvalidConfig, message).with_exit(exit::CONFIG)
    })?;
    Ok((config, filter))
}

/// The classes of this program. Which of them run is the configuration's choice.
fn classes() -> Result<Classes, Failure> {
    let echo = |args: Vec<serde_json::Value>| async move { Ok(serde_json::Value::Array(args)) };
    let wrong = |error: nkcluster_file_sync::ConfigError| Failure::new(ErrorCode::InvalidConfig, error.to_string()).with_exit(exit::CONFIG);
    let remotes = match std::env::var_os(sync::REMOTES_VARIABLE).map(Into::into).or_else(sync::default_file) {
        Some(file) => RemoteConfig::load(&file).map_err(wrong)?,
        None => RemoteConfig::default(),
    };
    let file_sync = FileSync::new(remotes, FILE_SYNC_TRANSFERS);
    let runs = file_sync.runs();
    let classes = Classes::new().with_tasks(nkcluster_files::Files::default()).with_tasks(file_sync);
    Ok(classes.with_placed_from::<SyncRun, _, _>(runs).with_function("echo", echo))
}

async fn run(config: Config, exit_with_stdin: bool) -> Result<(), Failure> {
    let classes = classes()?;
    let no_signals = |error| bug(format!("no signals: {error}"));
    let mut signals = StopSignals::install().map_err(no_signals)?;
    let mut reload = ReloadSignal::install().map_err(no_signals)?;
    let stdin_ended = stdin_end(exit_with_stdin);
    tokio::pin!(stdin_ended);
    let started = tokio::select! {
        started = Node::start(config, classes) => started,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before the node was up");
            return Ok(());
        }
        () = &mut stdin_ended => return Ok(()),
    };
    let node = started.map_err(start_failure)?;
    announce(&node);
    let reason = loop {
        tokio::select! {
            name = signals.next() => break name,
            () = &mut stdin_ended => break "end of standard input",
            () = reload.next() => {
                if let Err(error) = node.reload().await {
                    tracing::error!(%error, "reload");
                }
            }
        }
    };
    tracing::info!(reason, "stopping; a second signal exits at once");
    notify(&[NotifyState::Stopping]);
    tokio::select! {
        () = node.stop() => Ok(()),
        name = signals.next() => {
            tracing::warn!(signal = name, "not drained");
            Err(Failure::new("not_drained", format!("{name} while the node was stopping: what ran was cut off")).with_exit(exit::FAILED))
        }
    }
}

fn start_failure(error: NodeError) -> Failure {
    match error {
        NodeError::Config(error) => Failure::from(error).with_exit(exit::CONFIG),
        NodeError::Bind(error) => Failure::from(error).with_exit(exit::UNAVAILABLE),
        NodeError::Internal(error) => bug(error.to_string()),
    }
}

fn bug(message: String) -> Failure {
    Failure::new("internal", message).with_exit(exit::INTERNAL)
}

/// What whoever started us waits for.
#[derive(Serialize)]
struct ReadyLine<'a> {
    ready: bool,
    node_id: &'a NodeId,
    role: &'a str,
    listen: &'a [NodeUri],
    http: Option<&'a str>,
}

fn announce(node: &NodeHandle) {
    let listen = node.listen();
    let line = ReadyLine { ready: true, node_id: node.node_id(), role: node.role().name(), listen, http: None };
    let written = serde_json::to_string(&line).map_err(io::Error::other).and_then(|line| {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")?;
        stdout.flush()
    });
    if let Err(error) = written {
        tracing::warn!(%error, "nobody reads the ready line");
    }
    let listen: Vec<_> = listen.iter().map(ToString::to_string).collect();
    tracing::info!(node = %node.node_id(), role = node.role().name(), listen = listen.join(", "), "ready");
    notify(&[NotifyState::Ready]);
}

/// Tells systemd, if it started us.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not notified");
    }
}

/// Waits for the end of standard input, which comes when our parent dies, however that happens. Never, if it is not asked for.
async fn stdin_end(is_asked: bool) {
    if !is_asked {
        return std::future::pending().await;
    }
    let (ended, end) = oneshot::channel();
    // A thread of its own: a read of standard input cannot be cancelled, and the runtime would wait for it.
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        // Nobody waits any more when the node stops for another reason.
        let _ = ended.send(());
    });
    match reader {
        // The thread always sends.
        Ok(_) => drop(end.await),
        Err(error) => {
            tracing::error!(%error, "the end of standard input will not be noticed");
            std::future::pending().await
        }
    }
}
