//! Workers of a queue: `rcd`, and any of the commands with an id of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nkcluster_file_sync::queue::{SharedStore, WorkerEvent, WorkerId, WorkerOptions, run_worker};
use nkcluster_file_sync::{Executor, Rate, Remotes};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use serde_json::json;

use super::flags::ClusterFlags;
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};
use crate::signals::StopSignals;

/// Time without work after which a worker of a transient cluster ends: the controller may have ended before this one had begun, and tells nobody whom it does not know.
const TRANSIENT_IDLE: Duration = Duration::from_secs(600);
/// Characters of an id that nobody has chosen.
const ID_CHARS: usize = 10;

/// A persistent worker.
#[derive(Clone, Debug, Args)]
pub(crate) struct RcdArgs {
    /// Storage that controllers and workers share, where the queue lives.
    #[arg(long, env = "RCLONE_CLUSTER", hide_env_values = true, value_name = "REMOTE")]
    cluster: String,
    /// Name of this worker; none or `0`: ten random characters.
    #[arg(long, env = "RCLONE_CLUSTER_ID", value_name = "ID")]
    cluster_id: Option<String>,
    /// Files that are copied at the same time.
    #[arg(long, value_name = "N", default_value_t = 4)]
    transfers: u32,
    /// Bytes per second, such as 10M.
    #[arg(long, value_name = "RATE", default_value = "off")]
    bwlimit: Rate,
    /// Tell each batch.
    #[arg(short = 'v', long)]
    verbose: bool,
    /// File of remotes.
    #[arg(long, env = "NKCLUSTER_REMOTES", value_name = "FILE")]
    remotes: Option<PathBuf>,
}

/// `rcd`.
pub(crate) async fn run(args: RcdArgs, form: Form) -> Outcome {
    let remotes = super::remotes(args.remotes)?;
    let id = match args.cluster_id.filter(|id| !id.is_empty() && id != "0") {
        Some(id) => id,
        None => rand::rng().sample_iter(Alphanumeric).take(ID_CHARS).map(char::from).collect(),
    };
    let executor = Executor::new(remotes.clone(), args.transfers as usize);
    if args.bwlimit.bytes_per_second().is_some() {
        executor.set_bandwidth(args.bwlimit.bytes_per_second());
    }
    work(&args.cluster, WorkerOptions::new(worker_id(&id)?), &remotes, executor, args.verbose, form).await
}

/// A worker of a transient cluster: the same command line as the controller, with another id.
pub(super) async fn serve(cluster: &ClusterFlags, remotes: &Arc<Remotes>, transfers: usize, form: Form) -> Outcome {
    let (Some(remote), Some(id)) = (&cluster.cluster, &cluster.cluster_id) else {
        return Err(Failure::usage("invalid_usage", "a worker needs --cluster and --cluster-id"));
    };
    let options = WorkerOptions { idle_timeout: Some(TRANSIENT_IDLE), ..WorkerOptions::new(worker_id(id)?) };
    work(remote, options, remotes, Executor::new(remotes.clone(), transfers), false, form).await
}

/// Opens the queue of `--cluster`.
pub(super) async fn open_queue(remote: &str, remotes: &Remotes) -> Outcome<SharedStore> {
    let opened = remotes.open(remote).map_err(|error| Failure::usage("invalid_usage", format!("--cluster: {error}")))?;
    opened.open_queue().await.map_err(|error| Failure::new("no_queue", format!("--cluster {opened}: {error}")))
}

fn worker_id(text: &str) -> Outcome<WorkerId> {
    text.parse().map_err(|error| Failure::usage("invalid_usage", format!("--cluster-id: {error}")))
}

async fn work(remote: &str, options: WorkerOptions, remotes: &Arc<Remotes>, executor: Executor, verbose: bool, form: Form) -> Outcome {
    let id = options.id.clone();
    let store = open_queue(remote, remotes).await?;
    let listener = Arc::new(move |event: WorkerEvent| tell(&event, verbose, form));
    let worker = run_worker(store, Arc::new(executor), options, listener);
    form.print(&json!({ "ready": true, "worker": id }), || format!("worker {id} waits for batches; Ctrl-C stops it"))?;
    let mut signals = StopSignals::install().map_err(|error| Failure::io("cannot listen for signals", &error))?;
    let stop = worker.stopper();
    let ended = worker.ended();
    tokio::pin!(ended);
    let mut asked = false;
    let end = loop {
        tokio::select! {
            end = &mut ended => break end,
            _ = signals.next() => {
                if std::mem::replace(&mut asked, true) {
                    std::process::exit(exit::FAILED.into());
                }
                output::to_stderr("stopping: what has begun is finished, the rest goes back to the queue; again to stop at once");
                stop.send_replace(true);
            }
        }
    };
    form.print(&json!({ "ended": end.to_string() }), || format!("worker {id} has ended: {end}"))
}

fn tell(event: &WorkerEvent, verbose: bool, form: Form) {
    let (what, is_odd) = (event.to_string(), event.is_odd());
    if !is_odd && !verbose {
        return;
    }
    match form {
        Form::Json => {
            let key = if is_odd { "notice" } else { "did" };
            output::to_stderr(&json!({ key: what }).to_string());
        }
        Form::People => {
            let level = if is_odd { "NOTICE" } else { "INFO" };
            output::to_stderr(&format!("{level}: {}", super::harmless(&what)));
        }
    }
}
