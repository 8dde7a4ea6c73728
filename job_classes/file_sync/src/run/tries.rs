//! The tries of a run, and the steps of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::carrier::{Carrier, Outcome, carrier};
use super::control::Control;
use super::here::{self, engine_options};
use super::order::Order;
use super::places::{Places, Refused};
use crate::engine::{Engine, EngineOptions, OperationError};
use crate::fence::{Fence, FenceStrength};
use crate::filter::Filter;
use crate::listing::Side;
use crate::operation::Operation;
use crate::options::Options;
use crate::plan::{PlanRequest, Planner, Problem, ProblemKind, Step, Task};
use crate::remote::Remotes;
use crate::stats::{Counter, StatsReport};
use crate::storage::{ErrorKind, StorageError};

/// Directories, times and backups that are worked on at the same time, of each kind.
const CHORES_MAX: usize = 16;
/// Errors that a summary repeats.
const ERRORS_KEPT_MAX: usize = 20;

/// Something that people may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// A file, or a part of the plan, failed.
    Failed {
        /// Its path; empty if it concerns the run.
        path: String,
        /// Why.
        error: String,
    },
    /// Something was left out, or is done in another way than it seems.
    Notice(String),
    /// With `--dry-run`: what would be done.
    Would(String),
    /// It was done.
    Did(String),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Everything is done.
    #[default]
    Success,
    /// Something failed, and another run is not expected to help by itself.
    Failed,
    /// The source does not exist.
    SourceMissing,
    /// What failed may succeed at another time.
    Temporary,
    /// It had to end before its end.
    Fatal,
    /// It was cancelled.
    Cancelled,
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How it ended.
    pub end: End,
    /// Its numbers; `errors` are those of the last try.
    pub stats: StatsReport,
    /// The first errors of the last try, with their files.
    pub errors: Vec<String>,
}

/// How operations get to those who carry them out.
pub trait Way: Send + Sync {
    /// Whether another process carries them out.
    fn is_remote(&self) -> bool {
        true
    }

    /// What of the trees is no content, as it belongs to the way: a remote, in rclone's syntax.
    fn excluded(&self) -> Option<&str> {
        None
    }

    /// Begins to carry for a run.
    #[doc(hidden)]
    fn start<'a>(&'a self, journey: Journey<'a>) -> BoxFuture<'a, Result<Carrying, String>>;
}

/// What a [`Way`] needs to know of a run.
#[doc(hidden)]
pub struct Journey<'a> {
    pub(crate) options: &'a Options,
    pub(crate) remotes: &'a Arc<Remotes>,
    pub(crate) control: &'a Control,
    /// The remotes that operations change.
    pub(crate) changed: Vec<String>,
    /// How well effects must be fenced for a late one to be impossible: deletes need more than writes.
    pub(crate) firm: FenceStrength,
    pub(crate) told: mpsc::Sender<Told>,
}

/// Operations on their way.
#[doc(hidden)]
pub struct Carrying(pub(crate) Carrier);

/// Everything is done in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

impl Way for Here {
    fn is_remote(&self) -> bool {
        false
    }

    fn start<'a>(&'a self, journey: Journey<'a>) -> BoxFuture<'a, Result<Carrying, String>> {
        let engine_options = EngineOptions { transfers: 1, ..engine_options(journey.options) };
        let engine = Engine::new(engine_options, journey.remotes.clone());
        journey.control.steer(&engine);
        let (transfers, control) = (journey.options.transfers as usize, journey.control.clone());
        async move { Ok(Carrying(carrier(move |sink| here::carry(sink, engine, transfers, control)))) }.boxed()
    }
}

/// Follows an order to its end. What people may want to know goes to `told`, which must be read meanwhile, or dropped.
pub async fn run(order: &Order, way: &dyn Way, remotes: &Arc<Remotes>, control: &Control, told: mpsc::Sender<Told>) -> Summary {
    let opened = tokio::select! {
        opened = Run::open(order, way, remotes, control, told.clone()) => opened,
        () = control.cancelling().cancelled() => Err(Refused { end: End::Cancelled, what: "cancelled".to_owned() }),
    };
    let ended = match opened {
        Ok(run) => run.tries().await,
        Err(refused) => {
            let _ = told.send(Told::Failed { path: String::new(), error: refused.what.clone() }).await;
            control.stats().error(&refused.what, false);
            Ended { end: refused.end, errors: vec![refused.what] }
        }
    };
    // What workers were doing when they were given up counts for nobody.
    control.doing(BTreeMap::new());
    Summary { end: ended.end, stats: control.snapshot().stats, errors: ended.errors }
}

struct Ended {
    end: End,
    errors: Vec<String>,
}

struct Run<'a> {
    way: &'a dyn Way,
    remotes: &'a Arc<Remotes>,
    control: &'a Control,
    told: mpsc::Sender<Told>,
    options: Options,
    filter: Arc<Filter>,
    places: Places,
}

impl<'a> Run<'a> {
    async fn open(
        order: &Order,
        way: &'a dyn Way,
        remotes: &'a Arc<Remotes>,
        control: &'a Control,
        told: mpsc::Sender<Told>,
    ) -> Result<Self, Refused> {
        let options = order.options().map_err(|error| Refused::failed(error.to_string()))?;
        let filters = options.filter.clone();
        // It may read files, and standard input.
        let filter = tokio::task::spawn_blocking(move || Filter::load(&filters, SystemTime::now())).await;
        let filter = filter.map_err(|_| Refused::failed("the process ends"))?.map_err(|error| Refused::failed(error.to_string()))?;
        let places = Places::open(order, &options, &filter, remotes, way.excluded()).await?;
        Ok(Self { way, remotes, control, told, options, filter: Arc::new(filter), places })
    }

    async fn tries(self) -> Ended {
        let journey = Journey {
            options: &self.options,
            remotes: self.remotes,
            control: self.control,
            changed: self.places.changed(),
            firm: if self.places.task == Task::Copy { FenceStrength::ConditionalWrites } else { FenceStrength::Conditional },
            told: self.told.clone(),
        };
        let mut carrier = match self.options.dry_run {
            true => None,
            false => match self.way.start(journey).await {
                Ok(Carrying(carrier)) => Some(carrier),
                Err(why) => return self.fatal(why).await,
            },
        };
        let tries = self.options.retries.max(1);
        let mut last = None;
        for number in 1..=tries {
            let mut one = Try::new(&self);
            let result = one.follow(carrier.as_mut()).await;
            let failures = one.failures;
            let is_over = failures.count == 0 || failures.is_fatal || !failures.is_retryable || number == tries || result.is_err();
            if let Err(why) = result {
                let mut ended = self.fatal(why).await;
                ended.errors.extend(failures.errors);
                ended.errors.truncate(ERRORS_KEPT_MAX);
                return ended;
            }
            last = Some(failures);
            if is_over || self.control.cancelling().is_cancelled() {
                break;
            }
            let what = format!("try {number} of {tries} had {} errors; trying again", last.as_ref().map_or(0, |last| last.count));
            let _ = self.told.send(Told::Notice(what)).await;
            self.control.stats().forget_errors();
            let pause = self.options.retries_sleep.duration().unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.control.cancelling().cancelled() => break,
            }
        }
        let mut failures = last.unwrap_or_default();
        if let Some(carrier) = carrier {
            let mut late = Vec::new();
            let finished = carrier.finish(&mut |outcome| late.push(outcome)).await;
            for Outcome { path, failure } in late {
                if let Some(failed) = failure {
                    failures.add(&path, &failed.error, failed.is_retryable);
                    let _ = self.told.send(Told::Failed { path, error: failed.error }).await;
                }
            }
            if let Err(why) = finished {
                return self.fatal(why).await;
            }
        }
        Ended { end: failures.end(self.control), errors: failures.errors }
    }

    async fn fatal(&self, why: String) -> Ended {
        self.control.stats().error(&why, false);
        self.control.stats().fatal();
        let _ = self.told.send(Told::Failed { path: String::new(), error: why.clone() }).await;
        let end = if self.control.cancelling().is_cancelled() { End::Cancelled } else { End::Fatal };
        Ended { end, errors: vec![why] }
    }
}

/// What failed in one try.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    errors: Vec<String>,
    /// Another try may succeed.
    is_retryable: bool,
    is_fatal: bool,
    is_source_missing: bool,
}

impl Failures {
    fn add(&mut self, path: &str, error: &str, is_retryable: bool) {
        self.count += 1;
        self.is_retryable |= is_retryable;
        if self.errors.len() < ERRORS_KEPT_MAX {
            self.errors.push(if path.is_empty() { error.to_owned() } else { format!("{path}: {error}") });
        }
    }

    fn end(&self, control: &Control) -> End {
        match () {
            () if control.cancelling().is_cancelled() => End::Cancelled,
            () if self.count == 0 => End::Success,
            () if self.is_fatal => End::Fatal,
            () if self.is_source_missing => End::SourceMissing,
            () if self.is_retryable => End::Temporary,
            () => End::Failed,
        }
    }
}

/// One try.
struct Try<'a> {
    run: &'a Run<'a>,
    failures: Failures,
    /// Errors that nobody was told yet, since the way to whoever is told may be full.
    untold: Vec<Told>,
    chores: JoinSet<Result<(), (String, StorageError)>>,
    /// For backups, which come before what they make room for.
    engine: Engine,
    /// Those under way, each with what follows.
    backups: JoinSet<BackedUp>,
}

/// What follows a backup, and how that went.
type BackedUp = (Operation, Result<(), OperationError>);

impl<'a> Try<'a> {
    fn new(run: &'a Run<'a>) -> Self {
        let engine = Engine::new(engine_options(&run.options), run.remotes.clone());
        Self { run, failures: Failures::default(), untold: Vec::new(), chores: JoinSet::new(), engine, backups: JoinSet::new() }
    }

    /// Plans and carries out. Failures of files are counted; an error ends the run.
    async fn follow(&mut self, mut carrier: Option<&mut Carrier>) -> Result<(), String> {
        let run = self.run;
        let mut planner = Planner::start(PlanRequest {
            task: run.places.task,
            source: run.places.source.clone(),
            destination: run.places.destination.clone(),
            backup_fs: run.places.backup_fs.clone(),
            folds_names: run.places.folds_names,
            deleted: run.control.stats().report().deletes,
            options: run.options.clone(),
            filter: run.filter.clone(),
        });
        run.control.begin_try(planner.counts());
        loop {
            self.tell(&planner).await;
            if run.control.cancelling().is_cancelled() {
                break;
            }
            let step = match planner.next().now_or_never() {
                Some(step) => step,
                None => {
                    if let Some(carrier) = carrier.as_deref_mut() {
                        carrier.flush(&mut |outcome| self.hear(outcome)).await?;
                    }
                    tokio::select! {
                        step = planner.next() => step,
                        outcome = outcome_of(carrier.as_deref_mut()) => {
                            self.hear(outcome?);
                            continue;
                        }
                        Some(joined) = self.backups.join_next() => {
                            if let Some(carrier) = carrier.as_deref_mut() {
                                self.backed_up(joined, carrier).await?;
                            }
                            continue;
                        }
                        () = run.control.cancelling().cancelled() => break,
                    }
                }
            };
            let Some(step) = step else { break };
            match carrier.as_deref_mut() {
                Some(carrier) => self.step(step, carrier, &planner).await?,
                None => self.would(step),
            }
        }
        if let Some(carrier) = carrier {
            self.settle(carrier, &planner).await?;
        }
        self.tell(&planner).await;
        Ok(())
    }

    async fn step(&mut self, step: Step, carrier: &mut Carrier, planner: &Planner) -> Result<(), String> {
        let run = self.run;
        let destination = run.places.destination.storage.clone();
        match step {
            Step::Transfer { operation, backup } => {
                let Some(backup) = backup else { return self.submit(operation, carrier).await };
                if self.backups.len() >= CHORES_MAX
                    && let Some(joined) = self.backups.join_next().await
                {
                    self.backed_up(joined, carrier).await?;
                }
                let (engine, stats, cancel) = (self.engine.clone(), run.control.stats().clone(), run.control.cancelling().clone());
                self.backups.spawn(async move {
                    let done = engine.execute(&backup, &Arc::new(Fence::unfenced()), &stats, &cancel).await;
                    (operation, done.map(drop))
                });
            }
            Step::Delete { operation, .. } => self.submit(operation, carrier).await?,
            // Files may be written into it at once, so it is there before the next step.
            Step::MakeDirectory { path, mode } => {
                let made = async {
                    destination.make_directory(&path).await?;
                    match mode.filter(|_| destination.abilities().has_modes) {
                        Some(mode) => destination.set_attributes(&path, None, Some(mode)).await,
                        None => Ok(()),
                    }
                };
                self.chore_done(made.await.map_err(|error| (path.to_string(), error)));
            }
            Step::UpdateTimes { path, modified } | Step::SetDirectoryTimes { path, modified } => {
                self.chore(async move {
                    match destination.set_attributes(&path, Some(modified), None).await {
                        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
                        set => set.map_err(|error| (path.to_string(), error)),
                    }
                })
                .await;
            }
            Step::RemoveDirectory { side, path } => {
                let storage = match side {
                    Side::Source => run.places.source.as_ref().map(|place| place.storage.clone()).unwrap_or(destination),
                    Side::Destination => destination,
                };
                match storage.remove_directory(&path).await {
                    Ok(()) => run.control.stats().add(Counter::DeletedDirs, 1),
                    // It is not empty, or gone already.
                    Err(error) if matches!(error.kind, ErrorKind::WrongKind | ErrorKind::NotFound) => {}
                    Err(error) => self.chore_done(Err((path.to_string(), error))),
                }
            }
            Step::Barrier => self.settle(carrier, planner).await?,
            Step::Problem(problem) => self.problem(&problem),
            Step::Notice(notice) => self.untold.push(Told::Notice(notice.to_string())),
        }
        Ok(())
    }

    async fn submit(&mut self, operation: Operation, carrier: &mut Carrier) -> Result<(), String> {
        carrier.submit(operation, &mut |outcome| self.hear(outcome)).await
    }

    /// A backup is over: what follows it may go.
    async fn backed_up(&mut self, joined: Result<BackedUp, JoinError>, carrier: &mut Carrier) -> Result<(), String> {
        match joined {
            Ok((operation, Ok(()))) => self.submit(operation, carrier).await,
            Ok((operation, Err(error))) => {
                let what = format!("the file to be replaced was not kept: {error}");
                self.fail(operation.file().to_owned(), what, error.kind.is_retryable());
                Ok(())
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Ok(()),
        }
    }

    /// Everything before is done when this returns.
    async fn settle(&mut self, carrier: &mut Carrier, planner: &Planner) -> Result<(), String> {
        while let Some(joined) = self.backups.join_next().await {
            self.backed_up(joined, carrier).await?;
        }
        let (cancelling, is_remote) = (self.run.control.cancelling().clone(), self.run.way.is_remote());
        let mut is_settled = carrier.begin_settling(&mut |outcome| self.hear(outcome)).await?;
        loop {
            // It may take hours: what fails is told as it does.
            self.tell(planner).await;
            tokio::select! {
                // What was told before is heard before.
                biased;
                outcome = carrier.outcome() => self.hear(outcome?),
                settled = &mut is_settled => match settled {
                    Ok(()) => break,
                    Err(_) => return Err(carrier.given_up().await),
                },
                // What is under way is given up when the carrier is.
                () = cancelling.cancelled(), if is_remote => break,
            }
        }
        while let Some(outcome) = carrier.left() {
            self.hear(outcome);
        }
        while let Some(done) = self.chores.join_next().await {
            self.chore_joined(done);
        }
        self.tell(planner).await;
        Ok(())
    }

    async fn chore(&mut self, chore: impl Future<Output = Result<(), (String, StorageError)>> + Send + 'static) {
        while self.chores.len() >= CHORES_MAX
            && let Some(done) = self.chores.join_next().await
        {
            self.chore_joined(done);
        }
        self.chores.spawn(chore);
    }

    fn chore_joined(&mut self, done: Result<Result<(), (String, StorageError)>, tokio::task::JoinError>) {
        match done {
            Ok(done) => self.chore_done(done),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }

    fn chore_done(&mut self, done: Result<(), (String, StorageError)>) {
        if let Err((path, error)) = done {
            self.run.control.stats().error(&error.what, error.kind.is_temporary());
            self.fail(path, error.what, error.kind.is_temporary());
        }
    }

    fn hear(&mut self, outcome: Outcome) {
        match outcome.failure {
            Some(failed) => self.fail(outcome.path, failed.error, failed.is_retryable),
            None => self.untold.push(Told::Did(outcome.path)),
        }
    }

    fn fail(&mut self, path: String, error: String, is_retryable: bool) {
        self.failures.add(&path, &error, is_retryable);
        self.untold.push(Told::Failed { path, error });
    }

    fn problem(&mut self, problem: &Problem) {
        let is_retryable = matches!(problem.kind, ProblemKind::Unreadable(kind) if kind.is_temporary());
        self.failures.is_fatal |= problem.kind == ProblemKind::MaxDelete;
        let is_missing = problem.kind == ProblemKind::Unreadable(ErrorKind::NotFound);
        self.failures.is_source_missing |= is_missing && problem.side == Side::Source && problem.path.is_root();
        self.run.control.stats().error(&problem.what, is_retryable);
        self.fail(problem.path.to_string(), problem.what.clone(), is_retryable);
    }

    /// Tells what has gathered, and the planner that something failed.
    async fn tell(&mut self, planner: &Planner) {
        for told in std::mem::take(&mut self.untold) {
            if matches!(told, Told::Failed { .. }) {
                planner.tell_failure();
            }
            // Whoever does not listen any more need not be told.
            let _ = self.run.told.send(told).await;
        }
    }

    /// With `--dry-run`.
    fn would(&mut self, step: Step) {
        let what = match step {
            Step::Transfer { operation, backup } => {
                let verb = if matches!(operation, Operation::MoveFile { .. }) { "move" } else { "copy" };
                let kept = if backup.is_some() { ", keeping what is replaced" } else { "" };
                format!("{verb} {} ({} bytes){kept}", operation.file(), operation.size())
            }
            Step::Delete { operation, .. } => format!("delete {}", operation.file()),
            Step::MakeDirectory { path, .. } => format!("make directory {path}"),
            Step::RemoveDirectory { path, .. } => format!("remove directory {path}"),
            Step::UpdateTimes { path, .. } => format!("update the time of {path}"),
            Step::SetDirectoryTimes { .. } | Step::Barrier => return,
            Step::Problem(problem) => return self.problem(&problem),
            Step::Notice(notice) => return self.untold.push(Told::Notice(notice.to_string())),
        };
        self.untold.push(Told::Would(what));
    }
}

/// The next outcome; pending if nothing is carried.
async fn outcome_of(carrier: Option<&mut Carrier>) -> Result<Outcome, String> {
    match carrier {
        Some(carrier) => carrier.outcome().await,
        None => std::future::pending().await,
    }
}
