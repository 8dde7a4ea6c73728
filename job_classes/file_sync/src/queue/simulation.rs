//! Runs in which workers die, sleep and wake up late, controllers die and are resumed, and the storage fails, drawn from a seed. Everything but the storage, the target
//! and the clock is the real thing. What is promised is checked at the target, where a late effect would do its damage, and at the end of the run.
//!
//! A failure names its seed: `NKCLUSTER_MODEL_SEED=<seed>` runs that one alone, `NKCLUSTER_MODEL_SEEDS=<count>` that many.

mod mutants;
mod stories;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::*;
use crate::attempt::{Attempt, RunId};
use crate::operation::Operation;
use crate::queue::pacing::random;
use crate::queue::store::memory::{Client, Memory};

/// One of so many files can never be copied.
const BROKEN_ONE_OF: usize = 23;
/// Longest time until a run has ended once nobody disturbs it any more.
const QUIET: Duration = Duration::from_secs(600);

/// Where effects take place.
#[derive(Debug, Default)]
struct Target {
    inner: Mutex<Effects>,
}

#[derive(Debug, Default)]
struct Effects {
    /// Which attempt at which batch has done a file.
    done: BTreeMap<String, (u64, u32)>,
    started: BTreeSet<(u64, u32)>,
    revoked: BTreeSet<(u64, u32)>,
    wrong: Vec<String>,
}

impl Target {
    fn lock(&self) -> std::sync::MutexGuard<'_, Effects> {
        self.inner.lock().expect("a lock")
    }

    fn start(&self, attempt: Attempt) {
        let mut effects = self.lock();
        if !effects.started.insert((attempt.batch, attempt.attempt)) {
            effects.wrong.push(format!("{attempt} is carried out twice"));
        }
    }

    fn commit(&self, file: &str, attempt: Attempt) -> Result<(), String> {
        let mut effects = self.lock();
        let (batch, number) = (attempt.batch, attempt.attempt);
        if effects.revoked.contains(&(batch, number)) {
            return Err("the attempt was revoked".to_owned());
        }
        if effects.started.iter().any(|(other, later)| *other == batch && *later > number) {
            effects.wrong.push(format!("{attempt} changes {file} after a later attempt has begun"));
        }
        if is_broken(file) {
            return Err("it cannot be read".to_owned());
        }
        // What an attempt has done that was revoked since is done again, maybe by a part of its batch.
        let other = effects.done.insert(file.to_owned(), (batch, number));
        if let Some(other) = other.filter(|other| other.0 != batch && !effects.revoked.contains(other)) {
            effects.wrong.push(format!("{file} was done by the batches {:x} and {batch:x}", other.0));
        }
        Ok(())
    }
}

fn is_broken(file: &str) -> bool {
    file.parse::<usize>().is_ok_and(|number| number.is_multiple_of(BROKEN_ONE_OF))
}

/// Fences effects as well as a real one, and as unreliably as the way there.
struct SimulatedFence(Arc<Target>, Arc<Client>);

impl Fence for SimulatedFence {
    fn revoke(&self, attempt: Attempt) -> BoxFuture<'_, Result<Fenced, String>> {
        Box::pin(async move {
            self.1.way().await;
            if self.1.is_unlucky() {
                return Err("a failure of the simulation".to_owned());
            }
            self.0.lock().revoked.insert((attempt.batch, attempt.attempt));
            Ok(Fenced::Firmly)
        })
    }
}

/// Carries batches out, two files at one time.
struct Copier(Arc<Target>, Arc<Client>);

impl Execute for Copier {
    fn execute(&self, work: Arc<Work>) -> BoxFuture<'static, ()> {
        let (target, client) = (Arc::clone(&self.0), Arc::clone(&self.1));
        target.start(work.attempt());
        let copy = move || {
            let (work, target, client) = (Arc::clone(&work), Arc::clone(&target), Arc::clone(&client));
            async move {
                while let Some(taken) = work.take() {
                    tokio::time::sleep(Duration::from_millis(random() % 400)).await;
                    client.way().await;
                    let Operation::CopyFile { src_remote, .. } = &taken.operation else { continue };
                    let done = target.commit(src_remote, work.attempt());
                    let done = done.map_err(|error| Failure::of(&taken.operation, error));
                    work.report(taken, done);
                }
            }
        };
        Box::pin(async move {
            futures_util::future::join(copy(), copy()).await;
        })
    }
}

fn copy(file: usize) -> Operation {
    let (name, planned) = (file.to_string(), None);
    Operation::CopyFile { src_fs: "/a".into(), src_remote: name.clone(), dst_fs: "/b".into(), dst_remote: name, planned }
}

/// A worker and its way to the files.
struct Node {
    client: Arc<Client>,
    handle: WorkerHandle,
}

/// A queue, its workers and the target of a run.
struct World {
    memory: Arc<Memory>,
    target: Arc<Target>,
    workers: BTreeMap<u64, Node>,
    run: RunId,
    files: usize,
    options: RunOptions,
    /// The clients of controllers, the newest last.
    controllers: Vec<Arc<Client>>,
    events: Arc<Mutex<Vec<RunEvent>>>,
}

impl World {
    fn new(seed: u64, honours: Honours) -> Self {
        pacing::seed::plant(Some(seed));
        let patience =
            ControllerOptions { no_worker_timeout: Duration::from_secs(120), attempts_max: 1_000, ..ControllerOptions::default() };
        let options = RunOptions { batch_files: 4 + (random() % 20) as usize, patience, ..RunOptions::default() };
        let (memory, target, run) = (Memory::new(honours), Arc::default(), RunId::from_random([9; 20]));
        let files = 40 + (random() % 120) as usize;
        Self { memory, target, workers: BTreeMap::new(), run, files, options, controllers: Vec::new(), events: Arc::default() }
    }

    fn start_worker(&mut self, name: u64) {
        let batches = 1 + (random() % 2) as usize;
        self.start_worker_with(name, |options| WorkerOptions { batches, split_inputs_min: 2, ..options });
    }

    fn start_worker_with(&mut self, name: u64, change: impl FnOnce(WorkerOptions) -> WorkerOptions) {
        let client = self.memory.client();
        let options = change(WorkerOptions::new(format!("worker-{name}").parse().expect("an id")));
        let copier = Arc::new(Copier(Arc::clone(&self.target), Arc::clone(&client)));
        let handle = run_worker(Arc::clone(&client) as SharedStore, copier, options, Arc::new(|_| {}));
        if let Some(old) = self.workers.insert(name, Node { client, handle }) {
            old.handle.kill();
        }
    }

    /// Starts the run or resumes it, and plans whatever the target lacks.
    async fn start_controller(&mut self, start: RunStart) -> RunHandle {
        let client = self.memory.client();
        let fence = Arc::new(SimulatedFence(Arc::clone(&self.target), Arc::clone(&client)));
        let events = Arc::clone(&self.events);
        let listener: RunListener = Arc::new(move |event| events.lock().expect("a lock").push(event));
        let store = Arc::clone(&client) as SharedStore;
        let handle = start_run(store, fence, self.run, start, self.options.clone(), listener).await.expect("the storage does not fail yet");
        self.controllers.push(client);
        handle
    }

    async fn plan(&self, handle: &RunHandle) {
        for file in 0..self.files {
            let is_done = self.target.lock().done.contains_key(&file.to_string());
            if !is_done && !handle.add(copy(file)).await {
                return;
            }
        }
    }

    /// Nobody sleeps, nothing fails, and there is a worker.
    fn heal(&mut self) {
        let workers = self.workers.values().map(|node| &node.client);
        for client in workers.chain(&self.controllers) {
            client.sleep(false);
            client.fail_one_of(0);
        }
        self.memory.damage_one_of(0);
        // The others may be about to stop.
        self.start_worker(99);
    }

    /// What must be so at the end of a run that was never resumed.
    fn check_end(&self, end: &RunEnd, was_resumed: bool) -> Result<(), String> {
        self.check_effects()?;
        let effects = self.target.lock();
        let (done, broken) = (effects.done.len() as u64, (0..self.files).filter(|file| is_broken(&file.to_string())).count() as u64);
        if let Some(error) = &end.error {
            return Err(format!("the run ended with an error: {error}"));
        }
        let damaged = self.memory.damaged();
        let events = self.events.lock().expect("a lock");
        let counted: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                RunEvent::Counted { job, totals, .. } => Some((job, totals)),
                _ => None,
            })
            .collect();
        for (job, totals) in &counted {
            if damaged.contains(&job.done()) && totals.batches_failed == 0 {
                return Err(format!("the result of {job} is damaged, and was counted as a success"));
            }
        }
        let mut over = BTreeSet::new();
        for event in events.iter() {
            match event {
                RunEvent::Counted { job, .. } | RunEvent::Revoked { job, .. } => drop(over.insert(job.to_string())),
                // Two controllers do not know what the other has heard.
                RunEvent::Running(running) if !was_resumed => {
                    if let Some((worker, job, _)) = running.iter().find(|(_, job, _)| over.contains(job)) {
                        return Err(format!("what {worker} tells of {job} is counted, and the batch was counted or given up before"));
                    }
                }
                _ => {}
            }
        }
        let missing = self.files as u64 - broken - done;
        if end.is_success() && missing + broken > 0 {
            return Err(format!("success, with {missing} files missing and {broken} that cannot be done"));
        }
        if missing > 0 && end.totals.batches_failed == 0 {
            return Err(format!("{missing} files are missing, and no batch has failed"));
        }
        let Totals { files, files_failed, batches_failed, .. } = end.totals;
        if !was_resumed && files != self.files as u64 {
            return Err(format!("{files} files were counted of {}", self.files));
        }
        if !was_resumed && batches_failed == 0 && files_failed != broken {
            return Err(format!("{files_failed} files were counted as failed, and {broken} cannot be done"));
        }
        let left: Vec<_> = ["run/", "queue/pending/", "queue/claims/"].iter().flat_map(|prefix| self.memory.names(prefix)).collect();
        match left.is_empty() || was_resumed {
            true => Ok(()),
            false => Err(format!("files are left: {left:?}")),
        }
    }

    fn check_effects(&self) -> Result<(), String> {
        match self.target.lock().wrong.first() {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        }
    }
}

/// Waits for the end of a run, which must come.
async fn end_of(handle: RunHandle, limit: Duration) -> Result<RunEnd, String> {
    tokio::time::timeout(limit, handle.finish()).await.map_err(|_| format!("the run does not end within {limit:?}"))
}

/// Runs a story by a clock of its own.
fn simulate<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let told = runtime.block_on(story);
    pacing::seed::plant(None);
    told
}
