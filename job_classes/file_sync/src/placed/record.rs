//! What is known of a run wherever its next life may begin.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::view::RunFacts;
use crate::options::{OptionsJson, Rate, rate_in};
use crate::run::ledger::{Life, joined};
use crate::run::{End, Order, Summary};

/// How long the end of a run is known.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// A run of which nobody knew anything for so long is not resumed: whoever ordered it has forgotten it. It is half of [`KEPT`], so that no copy of a control node that
/// was away begins a run anew that has ended since.
const RESUMED_WITHIN: Duration = Duration::from_secs(12 * 3600);
/// Lives of a run; one that needs more kills whoever directs it.
const LIVES_MAX: usize = 64;

/// What is to be done, and by whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// What is to be done. Local paths are those of the control nodes and workers.
    pub order: Order,
    /// The workers, as in [`Selector`](nkcluster::types::Selector).
    pub selector: String,
}

impl RunStart {
    /// The same for the same order.
    fn fingerprint(&self) -> u64 {
        xxh3_64(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Bytes of it as it travels.
    pub(super) fn bytes(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX, |text| text.len())
    }
}

/// What outlives a life of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// Tells orders apart, also when they are over and their secrets forgotten.
    fingerprint: u64,
    /// None once the run is over.
    work: Option<RunStart>,
    pub(super) lives: Vec<Life>,
    pub(super) is_cancelled: bool,
    pub(super) is_paused: bool,
    /// Whether a life has seen something in the source.
    pub(super) has_source: bool,
    /// What it is, also when it is over.
    facts: Option<RunFacts>,
    /// The limit of bandwidth that somebody has set since it began.
    rate: Option<RateWish>,
    end: Option<Summary>,
    /// When it was heard of last, in milliseconds since 1970 by the clock of whoever directed it.
    heard_ms: u64,
}

/// A limit of bandwidth that was asked for. Of two the later one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct RateWish {
    /// When, by the clock of whoever directed the run; later than all before it.
    asked_ms: u64,
    /// Bytes per second; none is no limit.
    limit: Option<u64>,
}

impl RunRecord {
    pub(super) fn new(start: RunStart, now_ms: u64) -> Self {
        let facts = Some(RunFacts::of(&start, now_ms));
        Self { fingerprint: start.fingerprint(), work: Some(start), facts, heard_ms: now_ms, ..Self::default() }
    }

    /// What it is.
    pub(super) fn facts(&self) -> Option<RunFacts> {
        // One that an earlier build has written does not say when it was ordered.
        self.facts.clone().or_else(|| self.work.as_ref().map(|start| RunFacts::of(start, self.heard_ms)))
    }

    /// Bytes per second of each worker.
    pub(super) fn limit(&self) -> Option<u64> {
        match self.rate {
            Some(rate) => rate.limit,
            None => self.work.as_ref().and_then(|work| rate_in(&work.order.config).ok()?.bytes_per_second()),
        }
    }

    /// Sets it for this life and the next ones.
    pub(super) fn set_limit(&mut self, limit: Option<u64>, now_ms: u64) {
        let asked_ms = self.rate.map_or(now_ms, |before| now_ms.max(before.asked_ms + 1));
        self.rate = Some(RateWish { asked_ms, limit });
    }

    /// Whether it is of any run.
    pub(super) fn is_known(&self) -> bool {
        self.work.is_some() || self.end.is_some()
    }

    pub(super) fn is_of(&self, start: &RunStart) -> bool {
        self.fingerprint == start.fingerprint()
    }

    pub(super) fn work(&self) -> Option<&RunStart> {
        self.work.as_ref()
    }

    pub(super) fn end(&self) -> Option<&Summary> {
        self.end.as_ref()
    }

    /// The run lives at this time.
    pub(super) fn hear(&mut self, now_ms: u64) {
        self.heard_ms = self.heard_ms.max(now_ms);
    }

    /// Milliseconds since it was heard of.
    pub(super) fn silence_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms)
    }

    /// It is over. What it was asked to do is kept no longer, as it may have secrets.
    pub(super) fn finish(&mut self, summary: Summary, now_ms: u64) {
        self.hear(now_ms);
        self.work = None;
        self.lives.iter_mut().for_each(Life::forget);
        self.end = Some(summary);
    }

    /// Why it does not go on, though it has not ended.
    pub(super) fn obstacle(&self, now_ms: u64) -> Option<String> {
        let hours = RESUMED_WITHIN.as_secs() / 3600;
        match () {
            () if u128::from(self.silence_ms(now_ms)) > RESUMED_WITHIN.as_millis() => {
                Some(format!("nobody has directed the run for more than {hours} hours; it is not resumed after so long"))
            }
            () if self.lives.len() >= LIVES_MAX => {
                Some(format!("the control nodes that directed the run were lost or left {LIVES_MAX} times"))
            }
            () => None,
        }
    }

    /// How long its end is still known; none if it has not ended.
    pub(super) fn kept_for(&self, now_ms: u64) -> Option<Duration> {
        self.end.as_ref().map(|_| KEPT.saturating_sub(Duration::from_millis(self.silence_ms(now_ms))))
    }

    /// The order of the next life: files that were deleted are deleted no second time, but count; and what was set since it began holds.
    pub(super) fn order(&self, deleted: u64) -> Option<Order> {
        let order = self.work.as_ref()?.order.clone();
        if self.rate.is_none() && deleted == 0 {
            return Some(order);
        }
        let Ok(mut options) = order.options() else { return Some(order) };
        if let Some(most) = &mut options.max_delete {
            *most = most.saturating_sub(deleted);
        }
        if let Some(rate) = self.rate {
            options.bwlimit = Rate::from_bytes_per_second(rate.limit);
        }
        let OptionsJson { config, filter } = options.to_json(crate::options::Audience::Controller);
        Some(Order { config, filter, ..order })
    }

    /// Takes in what another one knows that has directed the same run. Success is success, whoever had it; failure of one of two counts only if the other one has ended
    /// too: it may have failed since the other took the run over.
    pub(super) fn join(&mut self, other: &Self) {
        if !other.is_known() || (self.is_known() && self.fingerprint != other.fingerprint) {
            return;
        }
        if !self.is_known() {
            *self = other.clone();
            return;
        }
        let heard_ms = self.heard_ms.max(other.heard_ms);
        let facts = [self.facts.take(), other.facts.clone()].into_iter().flatten().min_by_key(|facts| facts.begun_ms);
        let end = match (self.end.take(), other.end.clone()) {
            (Some(one), Some(other)) => Some(better(one, other)),
            (one, other) => one.or(other).filter(|summary| summary.end == End::Success),
        };
        let work = self.work.take().or_else(|| other.work.clone()).filter(|_| end.is_none());
        let mut lives = joined(&self.lives, &other.lives);
        if end.is_some() {
            lives.iter_mut().for_each(Life::forget);
        }
        *self = Self {
            fingerprint: other.fingerprint,
            work,
            lives,
            is_cancelled: self.is_cancelled || other.is_cancelled,
            is_paused: self.is_paused && other.is_paused,
            has_source: self.has_source || other.has_source,
            facts,
            rate: self.rate.max(other.rate),
            end,
            heard_ms,
        };
    }
}

/// Of two ends the better one, and of two alike the one that has done more.
fn better(one: Summary, other: Summary) -> Summary {
    let rank = |summary: &Summary| {
        let order = match summary.end {
            End::Success => 5,
            End::Cancelled => 4,
            End::Failed => 3,
            End::SourceMissing => 2,
            End::Temporary => 1,
            End::Fatal => 0,
        };
        (order, summary.stats.transfers, summary.stats.deletes, summary.errors.clone())
    };
    if rank(&other) > rank(&one) { other } else { one }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attempt::RunId;
    use crate::fence::FenceStrength;
    use crate::options::Options;
    use crate::plan::Task;
    use crate::run::ledger::Ledger;
    use crate::stats::StatsReport;

    const HOUR_MS: u64 = 3_600_000;

    fn start() -> RunStart {
        let options = Options { max_delete: Some(10), ..Options::default() };
        let order = Order::new(Task::Sync, ":s3,secret_access_key=hidden:bucket", "/backup", &options);
        RunStart { order, selector: "storage".to_owned() }
    }

    fn summary(end: End, transfers: u64) -> Summary {
        Summary { end, stats: StatsReport { transfers, ..StatsReport::default() }, errors: Vec::new() }
    }

    #[test]
    fn the_end_is_known_for_longer_than_a_run_is_resumed_and_without_its_secrets() {
        let mut record = RunRecord::new(start(), HOUR_MS);
        assert!(record.is_of(&start()) && record.obstacle(13 * HOUR_MS).is_none());
        assert!(record.obstacle(13 * HOUR_MS + 1).is_some_and(|why| why.contains("12 hours")));
        record.finish(summary(End::Success, 3), 2 * HOUR_MS);
        assert_eq!(record.kept_for(3 * HOUR_MS), Some(Duration::from_secs(23 * 3600)));
        assert_eq!(record.kept_for(99 * HOUR_MS), Some(Duration::ZERO));
        assert!(record.is_of(&start()), "the same order is the same run, also now");
        assert!(!serde_json::to_string(&record).expect("text").contains("hidden"));
    }

    #[test]
    fn a_run_that_kills_whoever_directs_it_ends() {
        let mut record = RunRecord::new(start(), 0);
        let ledger = Ledger::default();
        for number in 0..LIVES_MAX {
            assert!(record.obstacle(0).is_none());
            ledger.open(RunId::from_random([number as u8; 20]), Vec::new(), FenceStrength::Staged);
            record.lives = ledger.lives();
        }
        assert!(record.obstacle(0).is_some());
    }

    #[test]
    fn what_earlier_lives_have_deleted_counts() {
        let record = RunRecord::new(start(), 0);
        let most = |deleted| record.order(deleted).expect("it goes on").options().expect("options").max_delete;
        assert_eq!([0, 4, 10, 99].map(most), [Some(10), Some(6), Some(0), Some(0)]);
    }

    #[test]
    fn a_limit_that_was_set_holds_in_the_next_life_and_the_later_one_counts_everywhere() {
        let begun = RunRecord::new(start(), 0);
        let limit = |record: &RunRecord| record.order(0).expect("it goes on").options().expect("options").bwlimit.bytes_per_second();
        let (mut one, mut other) = (begun.clone(), begun.clone());
        assert_eq!((one.limit(), limit(&one)), (None, None));
        one.set_limit(Some(5_000), 7);
        assert_eq!((one.limit(), limit(&one)), (Some(5_000), Some(5_000)));
        other.join(&one);
        // By a clock that is behind.
        other.set_limit(None, 2);
        for _ in 0..2 {
            one.join(&other);
            assert_eq!((one.limit(), limit(&one)), (None, None));
        }
        assert_eq!(other.order(4).expect("it goes on").options().expect("options").max_delete, Some(6));
    }

    #[test]
    fn what_a_run_is_stays_known_when_it_is_over_and_of_records_of_earlier_builds() {
        let mut record = RunRecord::new(start(), HOUR_MS);
        let facts = record.facts().expect("known");
        assert_eq!((facts.kind, facts.destination.as_str(), facts.begun_ms), (Task::Sync, "/backup", HOUR_MS));
        assert!(!facts.source.contains("hidden"), "{}", facts.source);
        let mut old = RunRecord { facts: None, ..record.clone() };
        assert_eq!(old.facts().as_ref(), Some(&facts));
        record.finish(summary(End::Success, 3), 2 * HOUR_MS);
        assert_eq!(record.facts(), Some(facts));
        old.finish(summary(End::Success, 3), 2 * HOUR_MS);
        assert_eq!(old.facts(), None);
    }

    fn records() -> impl Strategy<Value = RunRecord> {
        let ends = prop_oneof![Just(None), (0..6_usize, 0..4_u64).prop_map(Some)];
        let rates = proptest::option::of((0..3_u64, proptest::option::of(0..3_u64)));
        (ends, any::<bool>(), 0..9_u64, any::<bool>(), rates).prop_map(|(end, is_cancelled, heard, is_known, rate)| {
            if !is_known {
                return RunRecord::default();
            }
            let mut record = RunRecord { is_cancelled, ..RunRecord::new(start(), heard) };
            if let Some((asked_ms, limit)) = rate {
                record.set_limit(limit, asked_ms);
            }
            if let Some((end, transfers)) = end {
                let ends = [End::Success, End::Failed, End::SourceMissing, End::Temporary, End::Fatal, End::Cancelled];
                record.finish(summary(ends[end], transfers), heard);
            }
            record
        })
    }

    proptest! {
        #[test]
        fn two_that_directed_one_run_agree_whoever_joins_whom(one in records(), other in records()) {
            let join = |one: &RunRecord, other: &RunRecord| { let mut joined = one.clone(); joined.join(other); joined };
            let both = join(&one, &other);
            prop_assert_eq!(&join(&other, &one), &both);
            prop_assert_eq!(&join(&both, &other), &both);
            prop_assert_eq!(join(&one, &one), one.clone());
            // It goes on, or has ended; and says success only if one of them has.
            prop_assert!(!(both.work.is_some() && both.end.is_some()));
            let is_success = |record: &RunRecord| record.end().is_some_and(|summary| summary.end == End::Success);
            prop_assert_eq!(is_success(&both), is_success(&one) || is_success(&other));
            let goes_on = |record: &RunRecord| record.work().is_some();
            if (goes_on(&one) || goes_on(&other)) && !is_success(&both) {
                prop_assert!(goes_on(&both), "whoever goes on is stopped by no failure of another one");
            }
        }
    }
}
