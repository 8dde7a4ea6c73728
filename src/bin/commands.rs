//! `nkcluster`: one command, one connection, one answer.

mod events;
mod files;
mod keygen;
mod members;
mod nodes;
mod ping;
mod resolve;
mod tasks;
mod values;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nkcluster::Error;
use nkcluster::cluster::{CallOptions, Cluster, ConnectOptions};
use nkcluster::config::Config;
use nkcluster::transport::Resolver;
use nkcluster::types::Secret;
use nkcluster_file_sync::{Crew, Task};
use tokio::io::AsyncReadExt;

use crate::arguments;
use crate::cli::{Cli, Command, Global};
use crate::dev;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::Form;
use crate::sync::{self, Asked, PlacedRun, SyncArgs};

/// Longest JSON that is read from standard input; a payload has the same bound.
const INPUT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long the end of a connection may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// A connection to the cluster, and how to answer.
pub(crate) struct Session {
    pub(crate) cluster: Cluster,
    pub(crate) timeout: Duration,
    pub(crate) form: Form,
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return arguments::tell_usage(&error, arguments::asks_for_json()),
    };
    let form = if cli.global.json { Form::Json } else { Form::People };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::io("cannot start", &error).tell(form),
    };
    let outcome = runtime.block_on(run(cli, form));
    // A thread that still reads standard input must not keep us.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => failure.tell(form),
    }
}

async fn run(cli: Cli, form: Form) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Dev(args) => dev::run(args, form).await,
        Command::Keygen(args) => keygen::run(args, &global, form).await,
        Command::Resolve { uri } => resolve::run(&uri, &global, form).await,
        Command::Check(args) => sync::check(*args, form).await,
        Command::Queue(args) => queue(args.asked()?, &global, form).await,
        Command::Rcd(args) => sync::rcd(args, form).await,
        Command::Copy(args) => copy(Task::Copy, *args, false, &global, form).await,
        Command::Sync(args) => copy(Task::Sync, *args, false, &global, form).await,
        Command::Move(args) => copy(Task::Move, args.sync, args.delete_empty_src_dirs, &global, form).await,
        Command::Delete(args) => copy(Task::Delete, args.into(), false, &global, form).await,
        command => {
            let session = Session::open(&global, form).await?;
            let outcome = session.run(command).await;
            // So that workers need not remember the calls of a command that has ended. Nobody should wait long for it.
            let _ = tokio::time::timeout(GOODBYE, session.cluster.close()).await;
            outcome
        }
    }
}

/// A run of the distributed copy. With `--on` the workers of a cluster do the work; a control node of it directs the run, or this process, if there is a queue.
async fn copy<F: sync::RunFlags>(kind: Task, args: SyncArgs<F>, delete_empty_src_dirs: bool, global: &Global, form: Form) -> Outcome {
    let Some(selector) = args.cluster.on.clone() else {
        return sync::run(kind, args, delete_empty_src_dirs, None, form).await;
    };
    let open = async || match Session::open(global, form).await {
        // The usual code means here that there is no such source.
        Err(failure @ Failure::Told { exit: exit::UNREACHED, .. }) => Err(failure.with_exit(exit::FATAL)),
        opened => opened,
    };
    let (session, outcome) = if args.cluster.cluster.is_some() {
        let cluster = args.cluster.clone().checked()?;
        let args = SyncArgs { cluster, ..args };
        let session = open().await?;
        let crew = Crew::new(session.cluster.clone(), selector);
        let outcome = sync::run(kind, args, delete_empty_src_dirs, Some(crew), form).await;
        (session, outcome)
    } else {
        let run = PlacedRun::new(kind, selector, args, delete_empty_src_dirs).await?;
        let session = open().await?;
        let outcome = run.follow(session.cluster.clone(), form).await;
        (session, outcome)
    };
    let _ = tokio::time::timeout(GOODBYE, session.cluster.close()).await;
    outcome
}

/// A queue on a storage, or the runs of the cluster.
async fn queue(asked: Asked, global: &Global, form: Form) -> Outcome {
    let asked = match asked {
        Asked::Storage(remote, remotes) => return sync::queue(&remote, remotes, form).await,
        Asked::Runs(asked) => asked,
    };
    let session = Session::open(global, form).await?;
    let outcome = sync::runs(&session.cluster, asked, session.timeout, form).await;
    let _ = tokio::time::timeout(GOODBYE, session.cluster.close()).await;
    outcome
}

impl Session {
    async fn open(global: &Global, form: Form) -> Outcome<Self> {
        let password = password(global)?.unwrap_or_else(|| Secret::new(Config::DEFAULT_PASSWORD));
        let mut options = ConnectOptions::new(global.connect.0.clone(), global.cluster_name.clone(), password);
        options.pbkdf2_iters = global.pbkdf2_iters;
        options.resolver = resolver(global);
        options.control_key = global.trusted_control_key.map(|key| key.0);
        // One that hangs must not use up the time of the others.
        options.connect_timeout = global.timeout / u32::try_from(global.connect.0.len()).unwrap_or(u32::MAX);
        let connected = tokio::time::timeout(global.timeout, Cluster::connect(options)).await;
        let cluster = connected.map_err(|_| no_answer(global))?.map_err(|error| Failure::unreached(&error))?;
        Ok(Self { cluster, timeout: global.timeout, form })
    }

    async fn run(&self, command: Command) -> Outcome {
        match command {
            Command::Dev(_)
            | Command::Keygen(_)
            | Command::Resolve { .. }
            | Command::Copy(_)
            | Command::Sync(_)
            | Command::Move(_)
            | Command::Delete(_)
            | Command::Check(_)
            | Command::Queue(_)
            | Command::Rcd(_) => Err(Failure::new("internal", "this command needs no connection")),
            Command::Nodes { select } => nodes::list(self, select).await,
            Command::Info { node } => nodes::info(self, &node).await,
            Command::Members => members::list(self).await,
            Command::Ring => members::ring(self).await,
            Command::Join { uri } => members::join(self, &uri).await,
            Command::Leave { node } => members::leave(self, &node).await,
            Command::Plan => members::plan(self).await,
            Command::Commit => members::commit(self).await,
            Command::Connect { uri } => nodes::connect(self, &uri).await,
            Command::Forget { node } => nodes::forget(self, &node).await,
            Command::Status { node, status } => nodes::status(self, &node, status).await,
            Command::Meta { node, change } => values::meta(self, &node, change).await,
            Command::Data { node, operation } => values::data(self, &node, operation).await,
            Command::Request { node, class, payload, exclusive } => tasks::request(&self.over(exclusive), &node, &class, &payload).await,
            Command::Task(command) => tasks::task(self, command).await,
            Command::Call { node, function, args } => tasks::call(self, &node, &function, &args).await,
            Command::Events { class, node } => events::follow(self, class, node).await,
            Command::Send { node, local, remote, recursive, exclusive } => {
                files::send(&self.over(exclusive), &node, &local, &remote, recursive).await
            }
            Command::Fetch { node, remote, local, exclusive } => files::fetch(&self.over(exclusive), &node, &remote, &local).await,
            Command::Ping { node, count, interval } => ping::run(self, &node, count, interval).await,
        }
    }

    /// The same, over connections of its own if so.
    fn over(&self, exclusive: bool) -> Self {
        let cluster = if exclusive { self.cluster.exclusive() } else { self.cluster.clone() };
        Self { cluster, timeout: self.timeout, form: self.form }
    }

    /// One call within `--timeout`.
    fn options(&self) -> CallOptions {
        CallOptions::timeout(self.timeout)
    }
}

/// One that asks whom the command line says.
fn resolver(global: &Global) -> Resolver {
    Resolver::new(global.dns.clone(), Config::control().dns_cache_ttl)
}

fn no_answer(global: &Global) -> Failure {
    let uris: Vec<_> = global.connect.0.iter().map(ToString::to_string).collect();
    let message = format!("no control node answered within {}: {}", humantime::format_duration(global.timeout), uris.join(", "));
    Failure::unreached(&Error::new(nkcluster::ErrorCode::NoConnections, message))
}

/// The secret that the operator named, if any: the file, else the variable.
fn password(global: &Global) -> Outcome<Option<Secret>> {
    match &global.password_file {
        Some(path) => password_of_file(path).map(Some),
        None => match std::env::var("NKCLUSTER_PASSWORD") {
            Ok(password) => Ok(Some(Secret::new(password)).filter(|password| !password.is_empty())),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(error) => Err(Failure::usage("invalid_config", format!("NKCLUSTER_PASSWORD: {error}"))),
        },
    }
}

/// Secrets are short; what is longer is some other file.
const PASSWORD_BYTES_MAX: u64 = 4096;

fn password_of_file(path: &Path) -> Outcome<Secret> {
    use std::io::Read;
    let failed = |reason: String| Failure::usage("invalid_config", format!("password_file {}: {reason}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    file.take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(failed(format!("longer than {PASSWORD_BYTES_MAX} bytes")));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    match text.is_empty() {
        true => Err(failed("is empty".to_owned())),
        false => Ok(Secret::new(text)),
    }
}

/// A JSON argument; `-` reads it from standard input.
async fn json_argument(text: &str) -> Outcome<nkcluster::types::Payload> {
    let mut input = String::new();
    if text == "-" {
        let mut stdin = tokio::io::stdin().take(INPUT_BYTES_MAX + 1);
        stdin.read_to_string(&mut input).await.map_err(|error| Failure::io("cannot read standard input", &error))?;
    }
    let text = if text == "-" { &input } else { text };
    nkcluster::types::Payload::from_json(text).map_err(|error| Failure::from(error).with_exit(exit::USAGE).context("the JSON argument"))
}
