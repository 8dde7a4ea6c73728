//! `copy`, `sync`, `move` and `delete`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nkcluster_file_sync::queue::RunStart;
use nkcluster_file_sync::{
    Control, Crew, End, Here, Order, Queue, Remotes, RunId, Snapshot, Span, Summary, Task, Told, Way, run as follow,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::flags::{ClusterFlags, CopyFlags, DeleteFlags, DisplayFlags, RunFlags};
use super::progress::Display;
use super::{harmless, harmless_line, worker};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};
use crate::signals::StopSignals;

/// Lines that wait to be told.
const TOLD_MAX: usize = 1024;

/// A copy or sync, by the flags that it has.
#[derive(Clone, Debug, Args)]
pub(crate) struct SyncArgs<F: RunFlags> {
    /// Where files come from: a path, `name:path`, or `:s3,provider=…,endpoint=…:bucket/path`.
    #[arg(value_name = "SRC")]
    pub(crate) source: String,
    /// Where they go.
    #[arg(value_name = "DST")]
    pub(crate) destination: String,
    #[command(flatten)]
    pub(crate) flags: F,
    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
    #[command(flatten)]
    pub(crate) display: DisplayFlags,
    /// File of remotes; with --on that of the control nodes and workers counts.
    #[arg(long, env = "NKCLUSTER_REMOTES", value_name = "FILE")]
    pub(crate) remotes: Option<PathBuf>,
}

/// A move.
#[derive(Clone, Debug, Args)]
pub(crate) struct MoveArgs {
    #[command(flatten)]
    pub(crate) sync: SyncArgs<CopyFlags>,
    /// Remove directories of the source that have become empty.
    #[arg(long)]
    pub(crate) delete_empty_src_dirs: bool,
}

/// A delete.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteArgs {
    /// What is deleted: all files below it that the filters include.
    #[arg(value_name = "REMOTE")]
    pub(crate) remote: String,
    #[command(flatten)]
    pub(crate) flags: DeleteFlags,
    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
    #[command(flatten)]
    pub(crate) display: DisplayFlags,
    /// File of remotes; with --on that of the control nodes and workers counts.
    #[arg(long, env = "NKCLUSTER_REMOTES", value_name = "FILE")]
    pub(crate) remotes: Option<PathBuf>,
}

/// A delete is a run without a source.
impl From<Box<DeleteArgs>> for SyncArgs<DeleteFlags> {
    fn from(args: Box<DeleteArgs>) -> Self {
        let DeleteArgs { remote, flags, cluster, display, remotes } = *args;
        Self { source: String::new(), destination: remote, flags, cluster, display, remotes }
    }
}

/// `copy`, `sync`, `move` and `delete`, directed by this process. The crew works for its queue, beside other workers.
pub(crate) async fn run<F: RunFlags>(
    kind: Task,
    args: SyncArgs<F>,
    delete_empty_src_dirs: bool,
    crew: Option<Crew>,
    form: Form,
) -> Outcome {
    let SyncArgs { source, destination, flags, cluster, display, remotes } = args;
    let cluster = cluster.checked()?;
    let mut options = flags.options();
    options.delete_empty_src_dirs = delete_empty_src_dirs;
    cluster.apply(&mut options);
    let options = options.checked().map_err(|error| Failure::usage("invalid_usage", error.to_string()))?;
    let remotes = super::remotes(remotes)?;
    let way: Box<dyn Way> = match &cluster.cluster {
        None => Box::new(Here),
        Some(_) if cluster.is_worker() => return worker::serve(&cluster, &remotes, options.transfers as usize, form).await,
        Some(remote) => Box::new(Queue { crew, ..queue(remote, &cluster, &remotes, form).await? }),
    };
    let order = Order::new(kind, source, destination, &options);
    let signals = StopSignals::install().map_err(|error| Failure::io("cannot listen for signals", &error))?;
    let summary = watched(&order, &*way, &remotes, &display, signals, form).await;
    tell(&summary, kind, form)
}

/// The queue of `--cluster`.
async fn queue(remote: &str, cluster: &ClusterFlags, remotes: &Remotes, form: Form) -> Outcome<Queue> {
    let store = super::worker::open_queue(remote, remotes).await?;
    let run = cluster.run_id.unwrap_or_else(|| RunId::from_random(rand::random()));
    if !form.is_json() {
        output::to_stderr(&format!("run {run}; if this controller ends early, go on with --resume --run-id {run}"));
    }
    let start = if cluster.resume { RunStart::Resume } else { RunStart::New };
    let lease = lease_of(cluster.cluster_lease)?;
    Ok(Queue { store, remote: remote.to_owned(), run, start, lease, crew: None })
}

fn lease_of(span: Span) -> Outcome<Duration> {
    const LEAST: Duration = Duration::from_secs(3);
    match span.duration() {
        Some(lease) if lease >= LEAST => Ok(lease),
        _ => Err(Failure::usage(
            "invalid_usage",
            format!("--cluster-lease: expected at least {LEAST:?}, as workers tell that they live once a second"),
        )),
    }
}

/// Follows the order while it is shown; Ctrl-C ends it soon, a second one at once.
pub(super) async fn watched(
    order: &Order,
    way: &dyn Way,
    remotes: &Arc<Remotes>,
    display: &DisplayFlags,
    mut signals: StopSignals,
    form: Form,
) -> Summary {
    let screen = Display::new(display.progress, form.is_json());
    let control = Control::default();
    let (told, mut hears) = mpsc::channel(TOLD_MAX);
    let running = follow(order, way, remotes, &control, told);
    tokio::pin!(running);
    let pause = screen.pause(display.stats.duration());
    let mut tick = pause.map(|pause| tokio::time::interval_at(tokio::time::Instant::now() + pause, pause));
    let summary = loop {
        tokio::select! {
            summary = &mut running => break summary,
            Some(told) = hears.recv() => show(&told, &screen, display.verbose, form),
            () = ticked(tick.as_mut()) => screen.show(&control.snapshot()),
            _ = signals.next() => {
                if control.is_cancelled() {
                    std::process::exit(exit::FAILED.into());
                }
                screen.tell("stopping; again to stop at once");
                control.cancel();
            }
        }
    };
    while let Ok(told) = hears.try_recv() {
        show(&told, &screen, display.verbose, form);
    }
    screen.finish(&Snapshot { stats: summary.stats.clone(), ..control.snapshot() });
    summary
}

pub(super) async fn ticked(tick: Option<&mut tokio::time::Interval>) {
    match tick {
        Some(tick) => drop(tick.tick().await),
        None => std::future::pending().await,
    }
}

pub(super) fn show(told: &Told, screen: &Display, verbose: bool, form: Form) {
    if form.is_json() {
        let line = match told {
            Told::Failed { path, error } => json!({ "failed": { "path": path, "error": error } }),
            Told::Notice(what) => json!({ "notice": what }),
            Told::Would(what) => json!({ "would": what }),
            Told::Did(path) if verbose => json!({ "did": path }),
            Told::Did(_) => return,
        };
        return output::to_stderr(&line.to_string());
    }
    match told {
        Told::Failed { path, error } if path.is_empty() => screen.tell(&format!("ERROR: {}", harmless_line(error))),
        Told::Failed { path, error } => screen.tell(&format!("ERROR: {}: {}", harmless(path), harmless_line(error))),
        Told::Notice(what) => screen.tell(&format!("NOTICE: {}", harmless(what))),
        Told::Would(what) => screen.tell(&format!("NOTICE: would {}", harmless(what))),
        Told::Did(path) if verbose => screen.tell(&format!("INFO: {}", harmless(path))),
        Told::Did(_) => {}
    }
}

/// The summary on standard output for scripts, and the code with which the process ends: rclone's.
pub(super) fn tell(summary: &Summary, kind: Task, form: Form) -> Outcome {
    if form.is_json() {
        form.document(&json!({ "end": summary.end, "stats": summary.stats, "errors": summary.errors }))?;
    }
    let Some((code, exit)) = ending(summary.end) else { return Ok(()) };
    let verb = match kind {
        Task::Copy => "copy",
        Task::Sync => "sync",
        Task::Move => "move",
        Task::Delete => "delete",
    };
    let first = summary.errors.first().map(|error| format!(": {}", harmless_line(error))).unwrap_or_default();
    let count = summary.stats.errors.max(summary.errors.len() as u64);
    let what = match count {
        0 | 1 => format!("{verb} failed{first}"),
        _ => format!("{verb} failed with {count} errors, the first of them{first}"),
    };
    Err(Failure::new(code, what).with_exit(exit))
}

/// The name of an end that is no success, and the code with which the process ends then: rclone's.
pub(super) fn ending(end: End) -> Option<(&'static str, u8)> {
    match end {
        End::Success => None,
        End::Failed => Some(("copy_failed", exit::FAILED)),
        End::Cancelled => Some(("cancelled", exit::FAILED)),
        End::SourceMissing => Some(("directory_not_found", exit::DIRECTORY_MISSING)),
        End::Temporary => Some(("copy_failed", exit::TEMPORARY)),
        End::Fatal => Some(("copy_failed", exit::FATAL)),
    }
}
