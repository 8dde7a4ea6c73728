//! `queue`: of a storage, what waits, what is in work where, and what is done; of a cluster, its runs.

use std::path::PathBuf;

use clap::Args;
use nkcluster_file_sync::queue::{Batch, FILE_BYTES_MAX, STATUS_BYTES_MAX, SharedStore, StoreError, StoredContent, WorkerStatus};
use nkcluster_file_sync::{RunId, StatsReport};
use serde_json::json;

use super::runs::{RunAction, RunsAsked};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};

/// Batches of which the inputs are counted; of more only the number is told.
const COUNTED_MAX: usize = 1_000;

/// The variable that names the storage of a queue.
const STORAGE_VARIABLE: &str = "RCLONE_CLUSTER";

/// A look at a queue, or at the runs of a cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct QueueArgs {
    /// Storage where a queue lives; without it, the runs that the control nodes direct are shown.
    #[arg(long, env = STORAGE_VARIABLE, hide_env_values = true, value_name = "REMOTE")]
    cluster: Option<String>,
    /// File of remotes.
    #[arg(long, env = "NKCLUSTER_REMOTES", value_name = "FILE")]
    remotes: Option<PathBuf>,
    /// Only runs whose ids come behind this one; where there are more than are shown, a warning names it.
    #[arg(long, value_name = "RUN")]
    after: Option<RunId>,
    #[command(subcommand)]
    action: Option<RunAction>,
}

/// Whom it is about.
pub(crate) enum Asked {
    /// The queue on a storage, with the file of remotes.
    Storage(String, Option<PathBuf>),
    /// The runs of a cluster.
    Runs(RunsAsked),
}

impl QueueArgs {
    /// Whom it is about. The variable names the storage for whoever says nothing else.
    pub(crate) fn asked(self) -> Outcome<Asked> {
        let Self { cluster, remotes, after, action } = self;
        let is_said = cluster.is_some() && cluster != std::env::var(STORAGE_VARIABLE).ok();
        match (action, after, cluster.filter(|remote| !remote.is_empty())) {
            (Some(_), _, Some(_)) | (None, Some(_), Some(_)) if is_said => Err(Failure::usage(
                "invalid_usage",
                "--cluster names a queue on a storage, whose runs nobody but their controllers can steer; leave it out for the runs of the cluster",
            )),
            (Some(action), None, _) => Ok(Asked::Runs(RunsAsked::One(action))),
            (Some(_), Some(_), _) => Err(Failure::usage("invalid_usage", "--after is for the list of runs")),
            (None, None, Some(remote)) => Ok(Asked::Storage(remote, remotes)),
            (None, after, _) => Ok(Asked::Runs(RunsAsked::List(after))),
        }
    }
}

/// `queue --cluster`.
pub(crate) async fn run(remote: &str, remotes: Option<PathBuf>, form: Form) -> Outcome {
    let remotes = super::remotes(remotes)?;
    let store = super::worker::open_queue(remote, &remotes).await?;
    let failed = |error: StoreError| Failure::new("no_queue", error.what);
    let mut directories = Vec::new();
    for name in ["pending", "processing", "done"] {
        let listed = store.list(&format!("queue/{name}")).await.map_err(failed)?;
        let mut files = 0;
        for file in listed.iter().take(COUNTED_MAX).filter(|_| name != "done") {
            files += inputs(&store, &format!("queue/{name}/{}", file.name)).await.map_err(failed)?;
        }
        directories.push(json!({ "name": name, "batches": listed.len(), "files": files, "jobs": listed.iter().map(|file| &file.name).collect::<Vec<_>>() }));
    }
    for kind in ["input-ok", "input-error", "output-ok", "output-failed"] {
        let listed = store.list(&format!("queue/finished/{kind}")).await.map_err(failed)?;
        directories.push(json!({ "name": format!("finished/{kind}"), "batches": listed.len() }));
    }
    let mut workers = Vec::new();
    for file in store.list("queue/status").await.map_err(failed)? {
        let read = store.read(&format!("queue/status/{}", file.name), STATUS_BYTES_MAX).await.map_err(failed)?;
        let StoredContent::Bytes(bytes) = read else { continue };
        match WorkerStatus::from_json(&bytes) {
            Ok(status) => workers.push(status),
            Err(error) => output::to_stderr(&super::harmless_line(&format!("NOTICE: queue/status/{} is no status: {error}", file.name))),
        }
    }
    form.print(&json!({ "queue": directories, "workers": workers }), || text(&directories, &workers))
}

/// Inputs of a batch; none of one that is gone meanwhile, or is no batch.
async fn inputs(store: &SharedStore, path: &str) -> Result<usize, StoreError> {
    Ok(match store.read(path, FILE_BYTES_MAX).await? {
        StoredContent::Bytes(bytes) => Batch::from_json(&bytes).map_or(0, |batch| batch.inputs.len()),
        StoredContent::Missing | StoredContent::TooLong => 0,
    })
}

fn text(directories: &[serde_json::Value], workers: &[WorkerStatus]) -> String {
    let mut table = output::table(["what", "batches", "files"]);
    for directory in directories {
        let files = directory.get("files").map_or_else(|| "-".to_owned(), ToString::to_string);
        table.add_row([directory["name"].as_str().unwrap_or_default().to_owned(), directory["batches"].to_string(), files]);
    }
    let mut text = output::text_of(&table);
    if workers.is_empty() {
        return text + "\n\nno worker has told its status";
    }
    let mut table = output::table(["worker", "batches", "files", "bytes", "told"]);
    for worker in workers {
        let mut sum = StatsReport::default();
        for stats in worker.running.values() {
            sum += &serde_json::from_value(stats.clone()).unwrap_or_default();
        }
        let (id, running) = (worker.id.to_string(), worker.running.len().to_string());
        table.add_row([id, running, sum.transfers.to_string(), output::bytes(sum.bytes), super::harmless(&worker.updated)]);
    }
    text.push_str("\n\n");
    text + &output::text_of(&table)
}
