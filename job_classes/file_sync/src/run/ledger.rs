//! What the lives of a run have done.
//!
//! A run may outlive the process that directs it: then another one takes it over, lists and compares again, and goes on. Each of these lives has a run id of its own for
//! its attempts, so that those of a life that is over can be made impossible at once. What a life has done is counted by batches, each once: a batch of which its
//! life did not hear any more is counted by the next one, which asks the worker.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nkcluster::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::attempt::RunId;
use crate::fence::FenceStrength;
use crate::stats::StatsReport;

/// Workers of a life that are named. If there are more, each that runs the class may have had a batch.
pub(crate) const WORKERS_MAX: usize = 4096;

/// Numbers of batches, in ranges: they end nearly in order, so these are few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batches(Vec<(u64, u64)>);

impl Batches {
    /// Adds a number; whether it is new.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        if self.contains(number) {
            return false;
        }
        // Each range begins with its first number and ends before its second.
        let at = self.0.partition_point(|(begin, _)| *begin < number);
        let touches_before = at > 0 && self.0[at - 1].1 == number;
        let touches_next = self.0.get(at).is_some_and(|(begin, _)| *begin == number + 1);
        match (touches_before, touches_next) {
            (true, true) => self.0[at - 1].1 = self.0.remove(at).1,
            (true, false) => self.0[at - 1].1 += 1,
            (false, true) => self.0[at].0 = number,
            (false, false) => self.0.insert(at, (number, number + 1)),
        }
        true
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|(_, end)| *end <= number);
        self.0.get(at).is_some_and(|(begin, _)| *begin <= number)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(begin, end)| end - begin).sum()
    }
}

/// Amounts that add up over the lives of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Done {
    pub(crate) bytes: u64,
    pub(crate) transfers: u64,
    pub(crate) deletes: u64,
    pub(crate) deleted_dirs: u64,
    pub(crate) renames: u64,
    pub(crate) server_side_copies: u64,
    pub(crate) server_side_copy_bytes: u64,
    pub(crate) server_side_moves: u64,
    pub(crate) server_side_move_bytes: u64,
    pub(crate) elapsed_ms: u64,
}

impl Done {
    pub(crate) fn of(stats: &StatsReport) -> Self {
        Self {
            bytes: stats.bytes,
            transfers: stats.transfers,
            deletes: stats.deletes,
            deleted_dirs: stats.deleted_dirs,
            renames: stats.renames,
            server_side_copies: stats.server_side_copies,
            server_side_copy_bytes: stats.server_side_copy_bytes,
            server_side_moves: stats.server_side_moves,
            server_side_move_bytes: stats.server_side_move_bytes,
            elapsed_ms: (stats.elapsed_time * 1000.0) as u64,
        }
    }

    /// Adds what a batch has done, which has no time of its own.
    fn add(&mut self, batch: &Done) {
        for (sum, part) in [
            (&mut self.bytes, batch.bytes),
            (&mut self.transfers, batch.transfers),
            (&mut self.deletes, batch.deletes),
            (&mut self.deleted_dirs, batch.deleted_dirs),
            (&mut self.renames, batch.renames),
            (&mut self.server_side_copies, batch.server_side_copies),
            (&mut self.server_side_copy_bytes, batch.server_side_copy_bytes),
            (&mut self.server_side_moves, batch.server_side_moves),
            (&mut self.server_side_move_bytes, batch.server_side_move_bytes),
        ] {
            // A worker may tell any number; it must not stop us.
            *sum = sum.saturating_add(part);
        }
    }

    /// Adds it to the numbers of the present life: what an earlier one has transferred was planned, too.
    pub(crate) fn add_to(&self, stats: &mut StatsReport) {
        let earlier = StatsReport {
            bytes: self.bytes,
            total_bytes: self.bytes,
            transfers: self.transfers,
            total_transfers: self.transfers,
            deletes: self.deletes,
            deleted_dirs: self.deleted_dirs,
            renames: self.renames,
            server_side_copies: self.server_side_copies,
            server_side_copy_bytes: self.server_side_copy_bytes,
            server_side_moves: self.server_side_moves,
            server_side_move_bytes: self.server_side_move_bytes,
            ..StatsReport::default()
        };
        let (eta, elapsed) = (stats.eta, stats.elapsed_time + self.elapsed_ms as f64 / 1000.0);
        *stats += &earlier;
        (stats.eta, stats.elapsed_time) = (eta, elapsed);
    }
}

/// One life of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    /// The run of its attempts.
    pub(crate) run: RunId,
    /// The remotes that it may change, secrets included; none once it is closed.
    pub(crate) changed: Vec<String>,
    /// How well they must be fenced for a late effect to be impossible.
    pub(crate) firm: FenceStrength,
    /// Those that were given batches; none once it is closed.
    pub(crate) workers: BTreeSet<NodeId>,
    /// Batches whose results are in `done`.
    pub(crate) counted: Batches,
    pub(crate) done: Done,
    /// Nothing of it takes effect any more.
    pub(crate) is_closed: bool,
}

impl Life {
    fn seal(&mut self) {
        self.is_closed = true;
        self.forget();
    }

    /// Keeps no more than numbers: what it may change has secrets.
    pub(crate) fn forget(&mut self) {
        (self.changed, self.workers) = (Vec::new(), BTreeSet::new());
    }
}

/// The lives of a run, the latest last. Clones belong together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    lives: Arc<Mutex<Vec<Life>>>,
}

impl Ledger {
    pub(crate) fn new(lives: Vec<Life>) -> Self {
        Self { lives: Arc::new(Mutex::new(lives)) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn replace(&self, lives: Vec<Life>) {
        *self.lock() = lives;
    }

    pub(crate) fn lives(&self) -> Vec<Life> {
        self.lock().clone()
    }

    /// A life begins.
    pub(crate) fn open(&self, run: RunId, changed: Vec<String>, firm: FenceStrength) {
        let (workers, counted, done) = (BTreeSet::new(), Batches::default(), Done::default());
        self.lock().push(Life { run, changed, firm, workers, counted, done, is_closed: false });
    }

    /// A worker is about to be given a batch of the present life; whether that is news.
    pub(crate) fn employ(&self, run: RunId, worker: &NodeId) -> bool {
        let mut lives = self.lock();
        let life = lives.iter_mut().find(|life| life.run == run);
        life.is_some_and(|life| life.workers.len() < WORKERS_MAX && life.workers.insert(worker.clone()))
    }

    /// Counts a batch of the present life by `count`, unless it was counted; nobody sees the one without the other.
    pub(crate) fn count(&self, run: RunId, batch: u64, count: impl FnOnce()) {
        let mut lives = self.lock();
        if lives.iter_mut().find(|life| life.run == run).is_none_or(|life| life.counted.insert(batch)) {
            count();
        }
    }

    /// Notes the numbers of the present life.
    pub(crate) fn note(&self, run: RunId, numbers: impl FnOnce() -> StatsReport) {
        let mut lives = self.lock();
        if let Some(life) = lives.iter_mut().find(|life| life.run == run) {
            life.done = Done::of(&numbers());
        }
    }

    /// Counts a batch of a life that is over; whether it was not counted yet.
    pub(crate) fn count_late(&self, run: RunId, batch: u64, stats: &StatsReport) -> bool {
        let mut lives = self.lock();
        let life = lives.iter_mut().find(|life| life.run == run).filter(|life| !life.is_closed);
        life.is_some_and(|life| {
            let is_new = life.counted.insert(batch);
            if is_new {
                life.done.add(&Done::of(stats));
            }
            is_new
        })
    }

    /// Nothing of a life takes effect any more.
    pub(crate) fn close(&self, run: RunId) {
        if let Some(life) = self.lock().iter_mut().find(|life| life.run == run) {
            life.seal();
        }
    }

    /// What all lives have done, but for one.
    pub(crate) fn done_without(&self, run: Option<RunId>) -> Done {
        let mut sum = Done::default();
        for life in self.lock().iter().filter(|life| Some(life.run) != run) {
            sum.add(&life.done);
            sum.elapsed_ms = sum.elapsed_ms.saturating_add(life.done.elapsed_ms);
        }
        sum
    }
}

/// What two that directed the same run know of its lives. Of a life that both know, whoever knows of more batches is right; it has come after the other.
pub(crate) fn joined(one: &[Life], other: &[Life]) -> Vec<Life> {
    let mut lives = one.to_vec();
    for life in other {
        match lives.iter_mut().find(|known| known.run == life.run) {
            Some(known) => {
                let is_closed = known.is_closed || life.is_closed;
                let workers: BTreeSet<NodeId> = known.workers.union(&life.workers).take(WORKERS_MAX).cloned().collect();
                if (life.counted.count(), life.done.transfers, life.done.elapsed_ms)
                    > (known.counted.count(), known.done.transfers, known.done.elapsed_ms)
                {
                    let changed = std::mem::take(&mut known.changed);
                    *known = Life { changed, ..life.clone() };
                }
                // Whose run has ended has forgotten them.
                if known.changed.is_empty() {
                    known.changed.clone_from(&life.changed);
                }
                known.workers = workers;
                if is_closed {
                    known.seal();
                }
            }
            None => lives.push(life.clone()),
        }
    }
    lives
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(number: u8) -> RunId {
        RunId::from_random([number; 20])
    }

    fn stats(transfers: u64) -> StatsReport {
        StatsReport { transfers, bytes: 10 * transfers, elapsed_time: 1.5, ..StatsReport::default() }
    }

    #[test]
    fn a_batch_is_counted_once_whoever_hears_of_it() {
        let ledger = Ledger::default();
        ledger.open(run(1), vec!["/data".to_owned()], FenceStrength::Staged);
        let mut counted = 0;
        for batch in [0, 1, 1] {
            ledger.count(run(1), batch, || counted += 1);
        }
        ledger.note(run(1), || stats(20));
        assert_eq!(counted, 2);
        // The next life asks the workers: they know batches that were counted, and one that was not.
        for (batch, is_new) in [(1, false), (2, true), (2, false)] {
            assert_eq!(ledger.count_late(run(1), batch, &stats(7)), is_new);
        }
        ledger.close(run(1));
        assert!(!ledger.count_late(run(1), 3, &stats(7)), "it is closed");
        let mut total = StatsReport { transfers: 3, total_transfers: 5, ..StatsReport::default() };
        ledger.done_without(None).add_to(&mut total);
        assert_eq!((total.transfers, total.total_transfers, total.bytes), (30, 32, 270));
        assert_eq!(ledger.done_without(Some(run(1))), Done::default());
        assert_eq!(ledger.lives()[0].changed, Vec::<String>::new(), "what may be secret is not kept longer than it is needed");
    }

    fn lives() -> impl Strategy<Value = Vec<Life>> {
        let life = (0..4_u8, proptest::collection::btree_set(0..9_u64, 0..5), 0..50_u64, any::<bool>());
        proptest::collection::vec(life, 0..4).prop_map(|lives| {
            let ledger = Ledger::default();
            for (number, batches, transfers, is_closed) in lives {
                if ledger.lives().iter().any(|life| life.run == run(number)) {
                    continue;
                }
                ledger.open(run(number), vec!["/data".to_owned()], FenceStrength::Staged);
                batches.into_iter().for_each(|batch| ledger.count(run(number), batch, || {}));
                ledger.note(run(number), || stats(transfers));
                if is_closed {
                    ledger.close(run(number));
                }
            }
            ledger.lives()
        })
    }

    fn by_run(mut lives: Vec<Life>) -> Vec<(RunId, u64, Done, bool)> {
        lives.sort_by_key(|life| life.run);
        lives.into_iter().map(|life| (life.run, life.counted.count(), life.done, life.is_closed)).collect()
    }

    proptest! {
        #[test]
        fn batches_are_a_set_of_numbers(numbers in proptest::collection::vec(0..40_u64, 0..60)) {
            let (mut batches, mut set) = (Batches::default(), BTreeSet::new());
            for number in numbers {
                prop_assert_eq!(batches.insert(number), set.insert(number));
                prop_assert_eq!(batches.count(), set.len() as u64);
                prop_assert!(batches.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?} are more ranges than needed", batches);
            }
            prop_assert!((0..45).all(|number| batches.contains(number) == set.contains(&number)));
        }

        #[test]
        fn who_joins_whom_and_how_often_changes_nothing(one in lives(), other in lives()) {
            let both = by_run(joined(&one, &other));
            prop_assert_eq!(&by_run(joined(&other, &one)), &both);
            prop_assert_eq!(&by_run(joined(&joined(&one, &other), &other)), &both);
            prop_assert_eq!(by_run(joined(&one, &one)), by_run(one));
        }
    }
}
