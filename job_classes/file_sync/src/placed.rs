//! A run that outlives whoever started it: a placed actor on the control node that owns its id.
//!
//! ```text
//!   start ──► record ──► life ─┬─ ends what earlier lives had under way, and counts it
//!               ▲              ├─ lists, compares, and sends batches to workers, as any run
//!               └─ each second ┤
//!                              └─ the end ──► record, for a day
//! ```
//!
//! The record is in the state directories of the control node and of the next two, so another one goes on when this one has gone, whoever asks. What the runs of its
//! attempts are called is kept before the first batch is sent: nothing of a life can have effects of which the next one does not know. A control node reads and writes
//! where its orders say, so it needs the class in its `grants`, as workers do.

mod life;
mod lines;
mod record;
mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use nkcluster::job::{JobClass as _, PlacedActor, PlacedContext};
use nkcluster::types::{NodeId, Selector};
use nkcluster::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::lines::Heard;
use self::lines::{Answer, Lines};
pub use self::record::{RunRecord, RunStart};
use self::view::FAILURES_MAX;
pub use self::view::{FailedFile, RunFacts, RunState, RunView};
use crate::attempt::RunId;
use crate::class::FileSync;
use crate::options::Rate;
use crate::remote::{RemoteConfig, Remotes};
use crate::run::closing::{Closing, Patience};
use crate::run::ledger::{Ledger, Life};
use crate::run::{Control, Snapshot, Summary, Told};

/// Bytes of an order with its lists of files and rules, in JSON.
pub const ORDER_BYTES_MAX: usize = 384 * 1024;
/// Runs that one control node directs at the same time; others wait.
const RUNS_MAX: usize = 32;
/// How often it is noted that the run lives, if nothing else is.
const HEARD_PAUSE_MS: u64 = 60_000;
/// How long a life may take to let go of the run, before it is cut.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a run that moves may take to end what its workers have begun.
const CLOSE_PATIENCE: Duration = Duration::from_secs(4);
/// Workers, and files in transfer, that an answer names.
const NAMED_MAX: usize = 64;

/// What can be said to a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunMessage {
    /// Begin. Said again with the same order, it begins nothing.
    Start(Box<RunStart>),
    /// How is it, for whoever follows it?
    Status {
        /// What was heard of it before.
        seen: Option<Heard>,
    },
    /// Send no batches, and begin no files of those that were sent.
    Pause,
    /// Go on.
    Resume,
    /// End soon.
    Cancel,
    /// Bytes per second of each worker from now on, in this life and the next ones, such as `10M`; `off` is no limit.
    SetBandwidth(String),
    /// How is it, for whoever follows nothing? Answered with [`RunReply::Seen`].
    Look {
        /// With the files that failed, as far as they are known.
        failures: bool,
    },
}

/// What a run answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunReply {
    /// Nobody knows of such a run: it was never started, or has ended long ago.
    Unknown,
    /// This is how it is.
    Known(Box<RunStatus>),
    /// This is how it looks.
    Seen(Box<RunView>),
}

/// A run at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The control node that directs it.
    pub node: NodeId,
    /// Its numbers, over all lives.
    pub snapshot: Snapshot,
    /// What it has told since.
    pub lines: Vec<Told>,
    /// How far these lines reach.
    pub seen: Heard,
    /// Lines before them that are not kept any more.
    pub missed: u64,
    /// Whether it rests.
    pub is_paused: bool,
    /// How it has ended, if it has.
    pub end: Option<Box<Summary>>,
}

/// The actor; its key is the id of the run.
pub struct SyncRun {
    inner: Arc<Inner>,
    /// The life that directs the run now, or waits until nobody needs to know of it any more.
    life: JoinSet<()>,
}

struct Inner {
    ctx: PlacedContext,
    remotes: Arc<Remotes>,
    places: Arc<Semaphore>,
    ledger: Ledger,
    state: Mutex<State>,
    lines: Mutex<Lines>,
    /// A follower has heard something.
    heard: Notify,
}

#[derive(Default)]
struct State {
    record: Option<RunRecord>,
    /// Of the present life.
    control: Control,
    /// What its attempts are called, once it may have some.
    attempts: Option<RunId>,
    /// Why this life may not begin, as the record said when it came: nothing that is noted since makes it younger.
    obstacle: Option<String>,
}

impl FileSync {
    /// Makes the runs that this control node directs, for [`Classes::with_placed_from`](nkcluster::job::Classes::with_placed_from). Their remotes are those of the class.
    pub fn runs(&self) -> impl Fn(PlacedContext, Option<RunRecord>) -> BoxFuture<'static, Result<SyncRun>> + Send + Sync + 'static {
        let (remotes, places) = (self.remotes().clone(), Arc::new(Semaphore::new(RUNS_MAX)));
        move |ctx, record| {
            let (remotes, places) = (remotes.clone(), places.clone());
            async move { Ok(SyncRun::begin(ctx, record, remotes, places)) }.boxed()
        }
    }
}

impl SyncRun {
    fn begin(ctx: PlacedContext, record: Option<RunRecord>, remotes: Arc<Remotes>, places: Arc<Semaphore>) -> Self {
        let record = record.filter(RunRecord::is_known);
        let ledger = Ledger::new(record.as_ref().map_or_else(Vec::new, |record| record.lives.clone()));
        let inner = Inner {
            ctx,
            remotes,
            places,
            ledger,
            state: Mutex::new(State { record, ..State::default() }),
            lines: Mutex::new(Lines::new(rand::random())),
            heard: Notify::new(),
        };
        let mut actor = Self { inner: Arc::new(inner), life: JoinSet::new() };
        actor.live();
        actor
    }

    /// Begins a life, if there is a run.
    fn live(&mut self) {
        let mut state = self.inner.state();
        let Some(record) = &state.record else { return };
        let (is_cancelled, is_paused, limit) = (record.is_cancelled, record.is_paused, record.limit());
        let obstacle = record.obstacle(now_ms());
        (state.control, state.attempts, state.obstacle) = (Control::default(), None, obstacle);
        state.control.set_bandwidth(limit);
        if is_cancelled {
            state.control.cancel();
        }
        if is_paused {
            state.control.gate().close();
        }
        drop(state);
        self.life.spawn(self.inner.clone().live());
    }

    /// Ends the life here; what it has under way at workers goes on for now.
    async fn leave(&mut self) {
        self.inner.control().leave();
        if tokio::time::timeout(LEAVE_PATIENCE, self.life.join_next()).await.is_err() {
            tracing::warn!(run = %self.inner.ctx.key, "a run that was to move was cut, as it did not end in time");
        }
        self.life.shutdown().await;
        self.inner.note();
        // From now on workers say what else was done.
        self.inner.state().attempts = None;
    }
}

impl PlacedActor for SyncRun {
    const NAME: &'static str = FileSync::NAME;
    type Message = RunMessage;
    type Reply = RunReply;
    type Record = RunRecord;
    const DURABLE: bool = true;

    async fn start(ctx: PlacedContext, record: Option<RunRecord>) -> Result<Self> {
        Ok(Self::begin(ctx, record, Arc::new(Remotes::new(RemoteConfig::default())), Arc::new(Semaphore::new(RUNS_MAX))))
    }

    async fn handle(&mut self, message: RunMessage) -> Result<RunReply> {
        let seen = match message {
            RunMessage::Start(start) => {
                if self.inner.accept(*start)? {
                    self.live();
                }
                None
            }
            RunMessage::Status { seen } => seen,
            RunMessage::Pause => self.inner.rest(true),
            RunMessage::Resume => self.inner.rest(false),
            RunMessage::Cancel => self.inner.cancel(),
            RunMessage::SetBandwidth(text) => self.inner.set_bandwidth(&text)?,
            RunMessage::Look { failures } => return Ok(self.inner.view(failures)),
        };
        Ok(self.inner.status(seen))
    }

    async fn hand_over(mut self) -> RunRecord {
        self.leave().await;
        if self.inner.has_work() {
            let closing = self.inner.closing(None, Patience::OF_LEAVER);
            // Whoever goes on ends what is left; others wait behind this one.
            match tokio::time::timeout(CLOSE_PATIENCE, closing.close_all()).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::debug!(run = %self.inner.ctx.key, why, "a run moves while its workers are busy"),
                Err(_) => tracing::debug!(run = %self.inner.ctx.key, "a run moves while its workers or its storage do not answer"),
            }
        }
        self.inner.note();
        self.inner.state().record.take().unwrap_or_default()
    }

    async fn join(&mut self, other: RunRecord) {
        self.leave().await;
        let lives = {
            let mut state = self.inner.state();
            let record = state.record.get_or_insert_default();
            record.join(&other);
            record.lives.clone()
        };
        self.inner.ledger.replace(lives);
        self.live();
    }

    fn record(&self) -> Option<RunRecord> {
        self.inner.state().record.clone().filter(RunRecord::is_known)
    }

    fn is_over(&self) -> bool {
        let state = self.inner.state();
        state.record.as_ref().is_none_or(|record| !record.is_known() || record.kept_for(now_ms()) == Some(Duration::ZERO))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> Control {
        self.state().control.clone()
    }

    fn has_work(&self) -> bool {
        self.state().record.as_ref().is_some_and(|record| record.work().is_some())
    }

    /// Takes an order; whether it is new.
    fn accept(&self, start: RunStart) -> Result<bool> {
        let run = &self.ctx.key;
        let mut state = self.state();
        match &state.record {
            Some(record) if record.is_of(&start) => return Ok(false),
            Some(_) => return Err(Error::new(ErrorCode::AlreadyStarted, format!("the run {run} was started with another order"))),
            None => {}
        }
        let invalid = |why: String| Error::new(ErrorCode::InvalidPayload, why);
        run.parse::<RunId>().map_err(|error| invalid(error.to_string()))?;
        let selector: Selector = start.selector.parse()?;
        let options = start.order.options().map_err(|error| invalid(error.to_string()))?;
        if options.filter.reads_standard_input() {
            return Err(invalid("`-` as a file of filters is the standard input, which a control node does not have".to_owned()));
        }
        if start.bytes() > ORDER_BYTES_MAX {
            return Err(Error::new(ErrorCode::PayloadTooLarge, format!("an order has at most {ORDER_BYTES_MAX} bytes")));
        }
        let (from, to) = (start.order.shown_source(), start.order.shown_destination());
        self.ctx.require_grant(&format!("{:?} from {from:?} to {to:?} by the workers {selector}", start.order.kind))?;
        tracing::info!(%run, node = %self.ctx.node, "a run begins");
        state.record = Some(RunRecord::new(start, now_ms()));
        Ok(true)
    }

    fn rest(&self, is_paused: bool) -> Option<Heard> {
        let state = &mut *self.state();
        if let Some(record) = state.record.as_mut().filter(|record| record.work().is_some()) {
            record.is_paused = is_paused;
            match is_paused {
                true => state.control.gate().close(),
                false => state.control.gate().open(),
            }
        }
        None
    }

    fn cancel(&self) -> Option<Heard> {
        let state = &mut *self.state();
        if let Some(record) = state.record.as_mut().filter(|record| record.work().is_some()) {
            record.is_cancelled = true;
            state.control.cancel();
        }
        None
    }

    fn set_bandwidth(&self, text: &str) -> Result<Option<Heard>> {
        let rate = text.parse::<Rate>().map_err(|error| Error::new(ErrorCode::InvalidPayload, error.to_string()))?;
        let state = &mut *self.state();
        if let Some(record) = state.record.as_mut().filter(|record| record.work().is_some()) {
            record.set_limit(rate.bytes_per_second(), now_ms());
            state.control.set_bandwidth(rate.bytes_per_second());
        }
        Ok(None)
    }

    /// How the run looks to somebody who does not follow it.
    fn view(&self, with_failures: bool) -> RunReply {
        let state = self.state();
        let Some(record) = &state.record else { return RunReply::Unknown };
        let (control, attempts, end) = (state.control.clone(), state.attempts, record.end().cloned());
        let waits_for = control.waits_for().filter(|_| end.is_none());
        let place = match () {
            () if end.is_some() => RunState::Ended,
            () if record.is_cancelled => RunState::Ending,
            () if record.is_paused => RunState::Paused,
            () if waits_for.is_some() => RunState::Waiting,
            () => RunState::Running,
        };
        let (facts, bandwidth) = (record.facts(), record.limit().filter(|_| end.is_none()));
        drop(state);
        let mut stats = match &end {
            Some(summary) => summary.stats.clone(),
            None => {
                let mut stats = control.snapshot().stats;
                self.ledger.done_without(attempts).add_to(&mut stats);
                stats
            }
        };
        stats.transferring.clear();
        let (mut failures, mut more_failures) = (Vec::new(), 0);
        if with_failures {
            let lines = self.lines();
            let known = lines.failures().count();
            let latest = lines.failures().skip(known.saturating_sub(FAILURES_MAX));
            failures = latest.map(|(path, error)| FailedFile { path: path.to_owned(), error: error.to_owned() }).collect();
            more_failures = (known - failures.len()) as u64;
        }
        RunReply::Seen(Box::new(RunView {
            node: self.ctx.node.clone(),
            facts,
            state: place,
            waits_for,
            stats,
            workers: control.workers_in_use(),
            bandwidth,
            end: end.as_ref().map(|summary| summary.end),
            errors: end.map(|summary| summary.errors).filter(|_| with_failures).unwrap_or_default(),
            failures,
            more_failures,
        }))
    }

    fn status(&self, seen: Option<Heard>) -> RunReply {
        let state = self.state();
        let Some(record) = &state.record else { return RunReply::Unknown };
        let (is_paused, end) = (record.is_paused, record.end().cloned().map(Box::new));
        let (control, attempts) = (state.control.clone(), state.attempts);
        drop(state);
        let mut snapshot = control.snapshot();
        match &end {
            Some(summary) => snapshot.stats = summary.stats.clone(),
            None => self.ledger.done_without(attempts).add_to(&mut snapshot.stats),
        }
        let Answer { lines, seen, missed } = self.lines().after(seen, Instant::now());
        self.heard.notify_one();
        let (node, snapshot) = (self.ctx.node.clone(), snapshot.bounded(NAMED_MAX));
        RunReply::Known(Box::new(RunStatus { node, snapshot, lines, seen, missed, is_paused, end }))
    }

    fn closing<'a>(&'a self, told: Option<&'a mpsc::Sender<Told>>, patience: Patience) -> Closing<'a> {
        Closing { cluster: &self.ctx.cluster, remotes: &self.remotes, ledger: &self.ledger, told, patience }
    }

    /// Puts into the record what was done so far; whether that is new.
    fn note(&self) -> bool {
        let mut state = self.state();
        if state.obstacle.is_some() {
            return false;
        }
        let report = state.control.stats().report();
        if report.transfers + report.checks > 0
            && let Some(record) = &mut state.record
        {
            record.has_source = true;
        }
        if let Some(attempts) = state.attempts {
            self.ledger.note(attempts, || report);
        }
        let (now, lives) = (now_ms(), self.ledger.lives());
        let Some(record) = state.record.as_mut().filter(|record| record.work().is_some()) else { return false };
        // Time passes by itself, and is noted with what happens.
        let timeless = |lives: &[Life]| {
            let mut lives = lives.to_vec();
            lives.iter_mut().for_each(|life| life.done.elapsed_ms = 0);
            lives
        };
        let is_new = timeless(&record.lives) != timeless(&lives) || record.silence_ms(now) >= HEARD_PAUSE_MS;
        if is_new {
            record.lives = lives;
            record.hear(now);
        }
        is_new
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
