//! A run as those see it who watch and steer it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::engine::{Cancel, Engine};
use crate::gate::Gate;
use crate::plan::PlanCounts;
use crate::stats::{Stats, StatsReport};

/// The numbers of a run at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Of the run.
    pub stats: StatsReport,
    /// Of each worker that has taken part in it; none if there are no workers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub workers: BTreeMap<String, StatsReport>,
    /// Workers that have taken part and are not told one by one, as there are many.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more_workers: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Snapshot {
    /// The same with at most so many workers and files in transfer.
    pub(crate) fn bounded(mut self, most: usize) -> Self {
        self.stats.transferring.truncate(most);
        while self.workers.len() > most {
            self.workers.pop_last();
            self.more_workers += 1;
        }
        self.workers.values_mut().for_each(|worker| worker.transferring.clear());
        self
    }
}

/// Watches and steers a run, from anywhere. Clones belong together.
#[derive(Clone, Debug, Default)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    cancel: Cancel,
    /// The run goes on elsewhere.
    leave: Cancel,
    gate: Gate,
    stats: Arc<Stats>,
    plan: Mutex<Plans>,
    workers: Mutex<BTreeMap<String, WorkerNumbers>>,
    /// Set by somebody who steers; the inner none is no limit.
    bandwidth: Mutex<Option<Option<u64>>>,
    engine: Mutex<Option<Engine>>,
    /// What holds it up.
    waits_for: Mutex<Option<String>>,
}

/// What the tries of a run have planned.
#[derive(Debug, Default)]
struct Plans {
    current: Option<Arc<PlanCounts>>,
    /// Bytes and files of the tries before.
    earlier: (u64, u64),
    listed: u64,
    compared: u64,
}

/// What a worker has done, and what it is doing.
#[derive(Debug, Default)]
struct WorkerNumbers {
    done: StatsReport,
    /// By batch.
    doing: BTreeMap<u64, StatsReport>,
}

impl Control {
    /// Ends the run soon: what has begun is given up, nothing else begins.
    pub fn cancel(&self) {
        self.inner.cancel.cancel();
    }

    /// Whether it is to end.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancel.is_cancelled()
    }

    /// Lets it rest and go on.
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Limits the bytes per second of each process that copies for the run: of this one, or of each of its workers. None is no limit. What goes through a queue keeps
    /// the limit that it was planned with.
    pub fn set_bandwidth(&self, limit: Option<u64>) {
        *lock(&self.inner.bandwidth) = Some(limit);
        if let Some(engine) = &*lock(&self.inner.engine) {
            engine.bandwidth().set_limit(limit);
        }
    }

    /// The limit that was set last, if any was.
    pub(crate) fn bandwidth(&self) -> Option<Option<u64>> {
        *lock(&self.inner.bandwidth)
    }

    /// The numbers of now.
    pub fn snapshot(&self) -> Snapshot {
        let mut stats = self.inner.stats.report();
        let workers: BTreeMap<String, StatsReport> = {
            let workers = lock(&self.inner.workers);
            let mut shown = BTreeMap::new();
            for (name, numbers) in &*workers {
                let mut worker = numbers.done.clone();
                worker.speed = 0.0;
                for doing in numbers.doing.values() {
                    // What was done is counted when its batch ends; what is being done, only here.
                    stats.bytes = stats.bytes.saturating_add(doing.bytes);
                    stats.transfers = stats.transfers.saturating_add(doing.transfers);
                    stats.transferring.extend_from_slice(&doing.transferring);
                    worker += doing;
                }
                shown.insert(name.clone(), worker);
            }
            shown
        };
        let plans = lock(&self.inner.plan);
        if let Some(plan) = &plans.current {
            stats.total_bytes = plans.earlier.0.saturating_add(plan.transfer_bytes());
            stats.total_transfers = plans.earlier.1.saturating_add(plan.transfers());
            stats.listed = plans.listed + plan.listed();
            stats.checks = plans.compared + plan.compared();
            stats.total_checks = stats.checks;
        }
        if !workers.is_empty() {
            stats.speed = if stats.elapsed_time > 0.0 { stats.bytes as f64 / stats.elapsed_time } else { 0.0 };
            let left = stats.total_bytes.saturating_sub(stats.bytes) as f64;
            stats.eta = (stats.speed > 0.0).then(|| (left / stats.speed).ceil() as u64);
        }
        Snapshot { stats, workers, more_workers: 0 }
    }

    pub(crate) fn cancelling(&self) -> &Cancel {
        &self.inner.cancel
    }

    /// Ends the work here soon, and leaves what is under way to whoever goes on with the run.
    pub(crate) fn leave(&self) {
        self.inner.leave.cancel();
    }

    pub(crate) fn leaving(&self) -> &Cancel {
        &self.inner.leave
    }

    pub(crate) fn stats(&self) -> &Arc<Stats> {
        &self.inner.stats
    }

    /// The run waits for something, or for nothing any more.
    pub(crate) fn wait_for(&self, what: Option<String>) {
        *lock(&self.inner.waits_for) = what;
    }

    pub(crate) fn waits_for(&self) -> Option<String> {
        lock(&self.inner.waits_for).clone()
    }

    /// Workers that have something to do at this moment.
    pub(crate) fn workers_in_use(&self) -> u64 {
        lock(&self.inner.workers).values().filter(|worker| !worker.doing.is_empty()).count() as u64
    }

    /// A try begins; what it plans is added to what the ones before have done.
    pub(crate) fn begin_try(&self, plan: Arc<PlanCounts>) {
        let done = self.inner.stats.report();
        let mut plans = lock(&self.inner.plan);
        if let Some(before) = plans.current.replace(plan) {
            plans.earlier = (done.bytes, done.transfers);
            plans.listed += before.listed();
            plans.compared += before.compared();
        }
    }

    /// The engine that works here obeys whoever steers.
    pub(crate) fn steer(&self, engine: &Engine) {
        *lock(&self.inner.engine) = Some(engine.clone());
        if let Some(limit) = *lock(&self.inner.bandwidth) {
            engine.bandwidth().set_limit(limit);
        }
    }

    /// What the workers do at the moment; whoever is not named does nothing.
    pub(crate) fn doing(&self, mut numbers: BTreeMap<String, StatsReport>) {
        let mut workers = lock(&self.inner.workers);
        for (name, known) in workers.iter_mut() {
            known.doing = numbers.remove(name).map(|numbers| (0, numbers)).into_iter().collect();
        }
        let new =
            numbers.into_iter().map(|(name, doing)| (name, WorkerNumbers { doing: BTreeMap::from([(0, doing)]), ..Default::default() }));
        workers.extend(new);
    }

    /// How far a worker is with a batch.
    pub(crate) fn does(&self, worker: &str, batch: u64, numbers: StatsReport) {
        lock(&self.inner.workers).entry(worker.to_owned()).or_default().doing.insert(batch, numbers);
    }

    /// A worker has done something, which is counted now; what it does at the moment it will tell.
    pub(crate) fn done(&self, worker: &str, batch: Option<u64>, numbers: &StatsReport) {
        let mut workers = lock(&self.inner.workers);
        let known = workers.entry(worker.to_owned()).or_default();
        known.done += numbers;
        match batch {
            Some(batch) => drop(known.doing.remove(&batch)),
            None => known.doing.clear(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
