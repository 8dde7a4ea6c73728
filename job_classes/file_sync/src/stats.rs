//! What a run has done so far: counters that many threads add to, and the report that is written of them.
//!
//! The keys of a [`StatsReport`] are those of rclone's `core/stats`, so that its status files and ours are read alike. Reports of several workers are
//! added up.

mod report;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use self::report::{StatsReport, Transferring};

/// Files in transfer that a report names at most.
const TRANSFERRING_MAX: usize = 64;
/// Characters of the last error that a report repeats.
const LAST_ERROR_CHARS_MAX: usize = 1000;
/// Weight of the last second in the rate of a transfer.
const RATE_WEIGHT: f64 = 0.3;
/// Shortest time over which a rate is measured.
const RATE_INTERVAL: Duration = Duration::from_millis(250);

/// Counters of one run, or of one worker in it.
#[derive(Debug)]
pub struct Stats {
    started: Instant,
    counters: [AtomicU64; Counter::COUNT],
    is_fatal: AtomicBool,
    is_retryable: AtomicBool,
    text: Mutex<Texts>,
}

#[derive(Debug, Default)]
struct Texts {
    last_error: Option<String>,
    next: u64,
    transferring: BTreeMap<u64, Arc<TransferState>>,
    /// Time during which at least one file was in transfer.
    transfer_time: Duration,
    busy_since: Option<Instant>,
    rate: Rate,
}

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Bytes transferred.
    Bytes,
    /// Files compared, or found to need no transfer.
    Checks,
    /// Files deleted.
    Deletes,
    /// Directories deleted.
    DeletedDirs,
    /// Errors, each counted once.
    Errors,
    /// Entries listed.
    Listed,
    /// Files renamed.
    Renames,
    /// Files copied within a storage.
    ServerSideCopies,
    /// Their bytes.
    ServerSideCopyBytes,
    /// Files moved within a storage.
    ServerSideMoves,
    /// Their bytes.
    ServerSideMoveBytes,
    /// Bytes planned so far.
    TotalBytes,
    /// Files planned to be compared so far.
    TotalChecks,
    /// Files planned to be transferred so far.
    TotalTransfers,
    /// Files transferred.
    Transfers,
}

impl Counter {
    const COUNT: usize = Self::Transfers as usize + 1;
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl Stats {
    /// All at zero, from now on.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            counters: Default::default(),
            is_fatal: AtomicBool::new(false),
            is_retryable: AtomicBool::new(false),
            text: Mutex::default(),
        }
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, amount: u64) {
        self.counters[counter as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// The value of a counter.
    pub fn count(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Takes back what was counted of a try that failed.
    pub(crate) fn take_back(&self, counter: Counter, amount: u64) {
        self.counters[counter as usize].fetch_sub(amount, Ordering::Relaxed);
    }

    /// Counts an error and remembers its text; `is_retryable` if another run may succeed.
    pub fn error(&self, text: &str, is_retryable: bool) {
        self.add(Counter::Errors, 1);
        self.is_retryable.fetch_or(is_retryable, Ordering::Relaxed);
        self.lock().last_error = Some(text.chars().take(LAST_ERROR_CHARS_MAX).collect());
    }

    /// A new try begins: what failed before counts no more.
    pub(crate) fn forget_errors(&self) {
        self.counters[Counter::Errors as usize].store(0, Ordering::Relaxed);
        self.is_retryable.store(false, Ordering::Relaxed);
        self.lock().last_error = None;
    }

    /// Remembers that the run cannot go on.
    pub fn fatal(&self) {
        self.is_fatal.store(true, Ordering::Relaxed);
    }

    /// Begins to show a file as in transfer, until the returned value is dropped.
    pub fn transfer(self: &Arc<Self>, name: &str, size: u64) -> TransferGuard {
        let now = Instant::now();
        let state = Arc::new(TransferState { name: name.to_owned(), size, bytes: AtomicU64::new(0), started: now });
        let mut text = self.lock();
        let id = text.next;
        text.next += 1;
        text.busy_since.get_or_insert(now);
        text.transferring.insert(id, state.clone());
        drop(text);
        TransferGuard { stats: self.clone(), id, state }
    }

    /// What has been counted so far.
    pub fn report(&self) -> StatsReport {
        let now = Instant::now();
        let count = |counter| self.count(counter);
        let mut text = self.lock();
        let bytes = count(Counter::Bytes);
        let speed = text.rate.observe(now, self.started, bytes);
        let busy = text.busy_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let transferring = text.transferring.values().take(TRANSFERRING_MAX).map(|state| state.report(now)).collect();
        let total_bytes = count(Counter::TotalBytes).max(bytes);
        StatsReport {
            bytes,
            checks: count(Counter::Checks),
            deletes: count(Counter::Deletes),
            deleted_dirs: count(Counter::DeletedDirs),
            elapsed_time: now.saturating_duration_since(self.started).as_secs_f64(),
            errors: count(Counter::Errors),
            eta: report::eta(total_bytes - bytes, speed),
            fatal_error: self.is_fatal.load(Ordering::Relaxed),
            last_error: text.last_error.clone(),
            listed: count(Counter::Listed),
            renames: count(Counter::Renames),
            retry_error: self.is_retryable.load(Ordering::Relaxed),
            server_side_copies: count(Counter::ServerSideCopies),
            server_side_copy_bytes: count(Counter::ServerSideCopyBytes),
            server_side_moves: count(Counter::ServerSideMoves),
            server_side_move_bytes: count(Counter::ServerSideMoveBytes),
            speed,
            total_bytes,
            total_checks: count(Counter::TotalChecks).max(count(Counter::Checks)),
            total_transfers: count(Counter::TotalTransfers).max(count(Counter::Transfers)),
            transfer_time: (text.transfer_time + busy).as_secs_f64(),
            transfers: count(Counter::Transfers),
            transferring,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Texts> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct TransferState {
    name: String,
    size: u64,
    bytes: AtomicU64,
    started: Instant,
}

impl TransferState {
    fn report(&self, now: Instant) -> Transferring {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let seconds = now.saturating_duration_since(self.started).as_secs_f64();
        let speed = if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
        Transferring {
            name: self.name.clone(),
            size: self.size,
            bytes,
            percentage: if self.size == 0 { 100 } else { (bytes.min(self.size) as f64 / self.size as f64 * 100.0) as u8 },
            eta: report::eta(self.size.saturating_sub(bytes), speed),
            speed,
        }
    }
}

/// A file that is shown as in transfer.
#[derive(Debug)]
pub struct TransferGuard {
    stats: Arc<Stats>,
    id: u64,
    state: Arc<TransferState>,
}

impl TransferGuard {
    /// Counts bytes, of this file and of the run.
    pub fn advance(&self, bytes: u64) {
        self.state.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.stats.add(Counter::Bytes, bytes);
    }

    /// Takes back all that was counted, since the transfer begins anew or has failed.
    pub fn restart(&self) {
        self.stats.take_back(Counter::Bytes, self.state.bytes.swap(0, Ordering::Relaxed));
    }
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        let mut text = self.stats.lock();
        text.transferring.remove(&self.id);
        if text.transferring.is_empty()
            && let Some(since) = text.busy_since.take()
        {
            text.transfer_time += since.elapsed();
        }
    }
}

/// A rate that forgets: what counts is the last seconds.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(Instant, u64)>,
    value: f64,
}

impl Rate {
    fn observe(&mut self, now: Instant, started: Instant, bytes: u64) -> f64 {
        let (since, before) = self.last.unwrap_or((started, 0));
        let passed = now.saturating_duration_since(since);
        if passed >= RATE_INTERVAL {
            let current = bytes.saturating_sub(before) as f64 / passed.as_secs_f64();
            self.value = if self.last.is_some() { self.value + RATE_WEIGHT * (current - self.value) } else { current };
            self.last = Some((now, bytes));
        }
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_shown_while_it_is_in_transfer_and_what_failed_is_taken_back() {
        let stats = Arc::new(Stats::new());
        let transfer = stats.transfer("a/b", 100);
        transfer.advance(40);
        let report = stats.report();
        assert_eq!((report.bytes, report.transferring[0].bytes, report.transferring[0].percentage), (40, 40, 40));
        transfer.restart();
        drop(transfer);
        let report = stats.report();
        assert_eq!((report.bytes, report.transferring.len()), (0, 0));
    }

    #[test]
    fn errors_are_counted_and_the_last_one_is_told() {
        let stats = Stats::new();
        stats.error("first", true);
        stats.error("second", false);
        let report = stats.report();
        assert_eq!((report.errors, report.last_error.as_deref(), report.retry_error, report.fatal_error), (2, Some("second"), true, false));
    }

    #[test]
    fn a_rate_follows_what_happens_now() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.observe(start + Duration::from_secs(1), start, 1000), 1000.0);
        for second in 2..40 {
            rate.observe(start + Duration::from_secs(second), start, 1000);
        }
        assert!(rate.observe(start + Duration::from_secs(40), start, 1000) < 1.0);
    }
}
