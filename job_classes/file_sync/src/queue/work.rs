//! A batch in the hands of a worker.
//!
//! Whoever carries it out [takes](Work::take) one input after the other and [reports](Work::report) what became of it. What was not taken yet can be given away: to an
//! idle worker, or back to the queue when this one stops. So the two sides need to agree on nothing but who has which input.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::attempt::Attempt;
use crate::gate::Gate;
use crate::operation::Operation;
use crate::queue::batch::{Batch, BatchResult, Failure};

/// Carries batches out.
pub trait Execute: Send + Sync + 'static {
    /// Carries one batch out: takes its inputs until there are none, reports each, and returns. It may be called for several batches at one time. An input that was
    /// taken and not reported is counted as failed. When the work is [abandoned](Work::abandoned), nothing that it still does will count, so it ends at once.
    fn execute(&self, work: Arc<Work>) -> BoxFuture<'static, ()>;
}

/// One input of a batch, taken by whoever carries it out.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    index: usize,
    /// What is to be done.
    pub operation: Operation,
}

/// One attempt at a batch.
#[derive(Debug)]
pub struct Work {
    attempt: Attempt,
    config: Map<String, Value>,
    filter: Map<String, Value>,
    inputs: Vec<Operation>,
    gate: Gate,
    inner: Mutex<Inner>,
    abandoned: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Which inputs nobody has taken yet.
    waiting: VecDeque<usize>,
    /// One for each input of the batch as it was claimed.
    outcomes: Vec<Outcome>,
    width: u64,
    progress: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// It waits, or is being worked on.
    Open,
    Done,
    Failed(Failure),
    /// Belongs to another batch now.
    Given,
}

/// The inputs that are to be given away, with those that stay.
#[derive(Debug)]
pub(crate) struct Cut(Vec<usize>);

impl Cut {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Work {
    pub(crate) fn new(attempt: Attempt, batch: Batch) -> Self {
        let Batch { config, filter, inputs, note } = batch;
        let (waiting, outcomes) = ((0..inputs.len()).collect(), vec![Outcome::Open; inputs.len()]);
        let inner = Mutex::new(Inner { waiting, outcomes, width: note.width, progress: Value::Null });
        Self { attempt, config, filter, inputs, inner, gate: Gate::default(), abandoned: watch::Sender::new(false) }
    }

    /// Lets it rest: nothing more of it is begun. What is given away, or taken from the worker, rests no longer.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Which attempt it is, for fencing its effects. A job of rclone has one too, made up when it was claimed.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Options of rclone that differ from their defaults, as in `_config`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Filter options of rclone that differ from their defaults, as in `_filter`.
    pub fn filter(&self) -> &Map<String, Value> {
        &self.filter
    }

    /// The remotes that the inputs which nobody has taken yet change, each once.
    pub fn changed_remotes(&self) -> Vec<String> {
        let inner = self.lock();
        let operations = inner.waiting.iter().map(|index| &self.inputs[*index]);
        crate::fence::changed_remotes(operations).into_iter().map(str::to_owned).collect()
    }

    /// The next input; none if all were taken or given away, or if this worker is about to stop.
    pub fn take(&self) -> Option<Taken> {
        let index = self.lock().waiting.pop_front()?;
        Some(Taken { index, operation: self.inputs[index].clone() })
    }

    /// What became of an input.
    pub fn report(&self, taken: Taken, result: Result<(), Failure>) {
        self.lock().outcomes[taken.index] = result.map_or_else(Outcome::Failed, |()| Outcome::Done);
    }

    /// Progress for people, with the keys of rclone's `core/stats`; a map.
    pub fn set_progress(&self, stats: Value) {
        self.lock().progress = stats;
    }

    /// Resolves when the batch was taken from this worker: whatever it still does will not count.
    pub async fn abandoned(&self) {
        // The sender lives as long as this value.
        let _ = self.abandoned.subscribe().wait_for(|abandoned| *abandoned).await;
    }

    /// Whether the batch was taken from this worker.
    pub fn is_abandoned(&self) -> bool {
        *self.abandoned.borrow()
    }

    pub(crate) fn abandon(&self) {
        self.lock().waiting.clear();
        self.gate.open();
        self.abandoned.send_replace(true);
    }

    pub(crate) fn progress(&self) -> Value {
        let inner = self.lock();
        if inner.progress.is_null() { Value::Object(Map::new()) } else { inner.progress.clone() }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    pub(crate) fn width(&self) -> u64 {
        self.lock().width
    }

    /// Takes the last inputs out, half of those that wait or all; nobody can take them from now on.
    pub(crate) fn cut(&self, all: bool) -> Cut {
        let mut inner = self.lock();
        if all {
            self.gate.open();
        }
        let kept = if all { 0 } else { inner.waiting.len().div_ceil(2) };
        Cut(inner.waiting.split_off(kept).into())
    }

    /// The cut inputs belong to another batch from now on.
    pub(crate) fn gave(&self, cut: &Cut, width: u64) {
        let mut inner = self.lock();
        inner.width = width;
        for index in &cut.0 {
            inner.outcomes[*index] = Outcome::Given;
        }
    }

    /// The inputs that this batch keeps when the cut ones are given away, and the cut ones.
    pub(crate) fn parts(&self, cut: &Cut) -> (Vec<Operation>, Vec<Operation>) {
        let inner = self.lock();
        let is_kept = |index: &usize| inner.outcomes[*index] != Outcome::Given && cut.0.binary_search(index).is_err();
        let of = |index: usize| self.inputs[index].clone();
        ((0..self.inputs.len()).filter(is_kept).map(of).collect(), cut.0.iter().copied().map(of).collect())
    }

    /// What became of the inputs that this batch has kept. What nobody reported has failed.
    pub(crate) fn result(&self) -> BatchResult {
        let inner = self.lock();
        let entry = |(operation, outcome): (&Operation, &Outcome)| match outcome {
            Outcome::Given => None,
            Outcome::Done => Some(None),
            Outcome::Failed(failure) => Some(Some(failure.clone())),
            Outcome::Open => Some(Some(Failure::of(operation, "nobody reported what became of it"))),
        };
        BatchResult::Inputs(self.inputs.iter().zip(&inner.outcomes).filter_map(entry).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::RunId;

    fn work(files: usize) -> Work {
        let copy = |index: usize| Operation::DeleteFile { fs: "/a".into(), remote: index.to_string(), planned: None };
        let attempt = Attempt { run: RunId::from_random([1; 20]), batch: 0, attempt: 0 };
        Work::new(attempt, Batch { inputs: (0..files).map(copy).collect(), ..Batch::default() })
    }

    #[test]
    fn what_is_given_away_is_neither_taken_nor_in_the_result() {
        let work = work(5);
        let first = work.take().expect("an input");
        work.report(first, Ok(()));
        let cut = work.cut(false);
        let (kept, given) = work.parts(&cut);
        assert_eq!((given.len(), work.waiting(), kept.len()), (2, 2, 3));
        work.gave(&cut, 8);
        let second = work.take().expect("an input");
        work.report(second.clone(), Err(Failure::of(&second.operation, "broken")));
        let _unreported = work.take();
        assert!(work.take().is_none());
        let BatchResult::Inputs(results) = work.result() else { panic!("inputs") };
        assert_eq!(results.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(results[1].as_ref().map(Failure::file), Some("1"));
    }

    #[tokio::test]
    async fn abandoned_work_has_nothing_to_take() {
        let work = work(4);
        work.abandon();
        work.abandoned().await;
        assert!(work.take().is_none() && work.is_abandoned());
    }
}
