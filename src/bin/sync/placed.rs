//! `copy`, `sync`, `move` and `delete` with `--on`: a control node directs the run, this process starts it and follows it.
//!
//! The run goes on without this process, and wherever its control node was lost. So an error on the way to it only means that it is asked again, for a bounded time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nkcluster::cluster::Cluster;
use nkcluster::job::PlacedCalls as _;
use nkcluster::types::Selector;
use nkcluster::{Error, ErrorCode};
use nkcluster_file_sync::{
    Heard, Order, RemoteSpec, RunId, RunMessage, RunReply, RunStart, RunStatus, Snapshot, SyncRun, Task, Told, Workers, read_list,
};
use serde_json::json;

use super::flags::{DisplayFlags, RunFlags};
use super::progress::Display;
use super::run::{SyncArgs, show, tell, ticked, watched};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};
use crate::signals::StopSignals;

/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at a run; the first ones come sooner, as many runs are short.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Pause before somebody else is asked.
const AGAIN: Duration = Duration::from_millis(200);
/// How long nobody may know a run that is to be followed: control nodes that were just started may not have found each other.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(5);

/// A run of a cluster, as the command line says it.
pub(crate) struct PlacedRun {
    kind: Task,
    start: RunStart,
    run: RunId,
    /// The operator gave the id.
    is_named: bool,
    resumes: bool,
    detaches: bool,
    /// How long no control node may answer.
    patience: Duration,
    display: DisplayFlags,
    /// For a run that this process directs.
    selector: Selector,
    remotes: Option<PathBuf>,
}

impl PlacedRun {
    /// Reads what only this machine has: lists of files, and where relative paths begin.
    pub(crate) async fn new<F: RunFlags>(kind: Task, selector: Selector, args: SyncArgs<F>, delete_empty_src_dirs: bool) -> Outcome<Self> {
        let SyncArgs { source, destination, flags, cluster, display, remotes } = args;
        let cluster = cluster.checked()?;
        let wrong = |why: String| Failure::usage("invalid_usage", why);
        let mut options = flags.options();
        options.delete_empty_src_dirs = delete_empty_src_dirs;
        cluster.apply(&mut options);
        let filter = options.filter;
        // It may read files, and standard input.
        let inlined = tokio::task::spawn_blocking(move || filter.inlined(&mut read_list)).await;
        options.filter = inlined.map_err(|error| Failure::new("internal", error.to_string()))?.map_err(|error| wrong(error.to_string()))?;
        options.backup_dir = options.backup_dir.map(|remote| absolute(&remote)).transpose()?;
        let options = options.checked().map_err(|error| wrong(error.to_string()))?;
        let source = if source.is_empty() { source } else { absolute(&source)? };
        let order = Order::new(kind, source, absolute(&destination)?, &options);
        Ok(Self {
            kind,
            start: RunStart { order, selector: selector.to_string() },
            run: cluster.run_id.unwrap_or_else(|| RunId::from_random(rand::random())),
            is_named: cluster.run_id.is_some(),
            resumes: cluster.resume,
            detaches: cluster.detach,
            patience: options.no_worker_timeout.duration().unwrap_or(Duration::MAX),
            display,
            selector,
            remotes,
        })
    }

    /// Directs the run in this process, with which it ends: for clusters whose control nodes may not read and write, and orders that are too
    /// large for them.
    async fn direct(self, cluster: Cluster, signals: StopSignals, why: &str, form: Form) -> Outcome {
        let what = format!("this command directs the run, which ends with it, as no control node does: {why}");
        show(&Told::Notice(what), &Display::new(false, form.is_json()), false, form);
        let remotes = super::remotes(self.remotes)?;
        let workers = Workers::new(cluster, self.selector);
        let summary = watched(&self.start.order, &workers, &remotes, &self.display, signals, form).await;
        tell(&summary, self.kind, form)
    }

    /// Starts the run, or finds it, and follows it to its end.
    pub(crate) async fn follow(self, cluster: Cluster, form: Form) -> Outcome {
        let mut signals = StopSignals::install().map_err(|error| Failure::io("cannot listen for signals", &error))?;
        let caller = Caller { cluster, run: self.run, patience: self.patience };
        let first = if self.resumes { RunMessage::Status { seen: None } } else { RunMessage::Start(Box::new(self.start.clone())) };
        let asked = tokio::select! {
            asked = caller.ask(&first) => asked,
            _ = signals.next() => {
                // It may have arrived.
                let _ = tokio::time::timeout(AGAIN * 5, caller.ask(&RunMessage::Cancel)).await;
                return Err(Failure::new("cancelled", format!("stopped before a control node answered; if it begins all the same: --resume --run-id {}", self.run)));
            }
        };
        if let Err(Failure::Told { code, message, .. }) = &asked
            && [ErrorCode::NotAllowed, ErrorCode::UnknownClass, ErrorCode::PayloadTooLarge].iter().any(|reason| *code == reason.to_string())
            && !self.resumes
            && !self.detaches
        {
            return self.direct(caller.cluster, signals, message, form).await;
        }
        let mut status = asked?;
        if self.is_named && !self.resumes && status.end.is_some() {
            let what = format!("the run {0} has ended already; give another --run-id, or --resume --run-id {0} to see its end", self.run);
            return Err(Failure::new(ErrorCode::AlreadyStarted, what).with_exit(exit::FATAL));
        }
        if self.detaches {
            return form.print(&json!({ "run": self.run }), || self.run.to_string());
        }
        if !form.is_json() {
            output::to_stderr(&format!(
                "run {0}; it goes on without this command, which can come back with --resume --run-id {0}",
                self.run
            ));
        }
        let screen = Display::new(self.display.progress, form.is_json());
        let pause = screen.pause(self.display.stats.duration());
        let mut tick = pause.map(|pause| tokio::time::interval_at(tokio::time::Instant::now() + pause, pause));
        let mut is_cancelled = false;
        let mut look_pause = FIRST_PAUSE;
        loop {
            self.tell_lines(&status, &screen, form);
            if let Some(summary) = &status.end
                && status.lines.is_empty()
            {
                screen.finish(&Snapshot { stats: summary.stats.clone(), ..status.snapshot });
                return tell(summary, self.kind, form);
            }
            let waits = if status.lines.is_empty() { look_pause } else { FIRST_PAUSE };
            look_pause = (look_pause * 2).min(LOOK_PAUSE);
            let next = next(&caller, status.seen, waits);
            tokio::pin!(next);
            status = loop {
                tokio::select! {
                    next = &mut next => break next?,
                    () = ticked(tick.as_mut()) => screen.show(&status.snapshot),
                    _ = signals.next() => {
                        if is_cancelled {
                            std::process::exit(exit::FAILED.into());
                        }
                        is_cancelled = true;
                        screen.tell("stopping; again to stop at once");
                        // Its answer has lines that were told already.
                        let cancel = caller.ask(&RunMessage::Cancel);
                        tokio::select! {
                            asked = cancel => drop(asked?),
                            _ = signals.next() => std::process::exit(exit::FAILED.into()),
                        }
                    }
                }
            };
        }
    }

    fn tell_lines(&self, status: &RunStatus, screen: &Display, form: Form) {
        if status.missed > 0 {
            let what = format!("{} earlier lines are not kept any more", status.missed);
            show(&Told::Notice(what), screen, self.display.verbose, form);
        }
        for told in &status.lines {
            show(told, screen, self.display.verbose, form);
        }
    }
}

async fn next(caller: &Caller, seen: Heard, waits: Duration) -> Outcome<Box<RunStatus>> {
    tokio::time::sleep(waits).await;
    caller.ask(&RunMessage::Status { seen: Some(seen) }).await
}

/// Asks a run, whichever control node has it.
struct Caller {
    cluster: Cluster,
    run: RunId,
    patience: Duration,
}

impl Caller {
    async fn ask(&self, message: &RunMessage) -> Outcome<Box<RunStatus>> {
        let asked = Instant::now();
        loop {
            let (failure, patience) = match self.cluster.placed::<SyncRun>(self.run.as_str(), message, ASK_TIMEOUT).await {
                Ok(RunReply::Known(status)) => return Ok(status),
                // The other answer is for whoever only looks.
                Ok(RunReply::Unknown | RunReply::Seen(_)) => (unknown(self.run), self.patience.min(UNKNOWN_PATIENCE)),
                Err(error) if is_on_the_way(&error) => (lost(&error, self.run), self.patience),
                Err(error) => return Err(refused(error)),
            };
            if asked.elapsed() >= patience {
                return Err(failure);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Whether the error is of the way to the run, and not an answer that will be the same again.
fn is_on_the_way(error: &Error) -> bool {
    use ErrorCode as Code;
    let answers = [
        Code::AlreadyStarted,
        Code::InvalidName,
        Code::InvalidPassword,
        Code::InvalidPayload,
        Code::InvalidSelector,
        Code::NotAllowed,
        Code::PayloadTooLarge,
        Code::UnknownClass,
        Code::UnknownRequest,
        Code::UnsupportedVersion,
    ];
    !answers.contains(error.code())
}

fn unknown(run: RunId) -> Failure {
    Failure::new("not_found", format!("no control node knows the run {run}; it was never started here, or has ended long ago"))
        .with_exit(exit::FATAL)
}

fn lost(error: &Error, run: RunId) -> Failure {
    let what = format!("{}; the run may go on without this command, which can come back with --resume --run-id {run}", error.message());
    Failure::new(error.code(), what).with_exit(exit::FATAL)
}

fn refused(error: Error) -> Failure {
    let is_wrong = matches!(error.code(), ErrorCode::InvalidPayload | ErrorCode::InvalidSelector | ErrorCode::PayloadTooLarge);
    Failure::from(error).with_exit(if is_wrong { exit::USAGE } else { exit::FATAL })
}

/// The remote as other machines find it, if it is local: relative paths begin here.
fn absolute(remote: &str) -> Outcome<String> {
    let wrong = |why: String| Failure::usage("invalid_usage", why);
    let spec = RemoteSpec::parse(remote).map_err(|error| wrong(error.to_string()))?;
    spec.absolute().map(|spec| spec.to_text()).map_err(|error| wrong(format!("no absolute path: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_are_absolute_and_other_remotes_stay_as_they_are() {
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(absolute("some/dir").ok(), here.join("some/dir").to_str().map(str::to_owned));
        for same in ["/data", "store:bucket/dir", ":s3,endpoint=\"http://10.0.0.9:9000\":bucket"] {
            assert_eq!(absolute(same).ok().as_deref(), Some(same));
        }
        assert!(absolute("").is_err());
    }
}
