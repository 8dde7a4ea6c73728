//! `--bwlimit`: one bucket of tokens that all transfers of a run share in one process.
//!
//! Whoever wants to move bytes takes as many tokens as there are and waits for more, so that a changed limit is obeyed at once and nobody waits for a
//! promise that was made under the old one.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tokens gather for at most this long while nobody takes any.
const BURST: Duration = Duration::from_millis(100);
/// Longest wait before the bucket is asked again.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Fewest bytes that are worth a step, unless fewer are wanted.
const STEP_BYTES_MIN: u64 = 4096;

/// A limit of bytes per second, changeable while it is in use.
#[derive(Debug)]
pub struct Bandwidth {
    /// The limit; 0 is none. Read without the lock by everybody, as there is mostly none.
    limit: AtomicU64,
    bucket: Mutex<Bucket>,
}

impl Bandwidth {
    /// A limit in bytes per second, or none.
    pub fn new(limit: Option<u64>) -> Self {
        Self { limit: AtomicU64::new(limit.unwrap_or(0)), bucket: Mutex::new(Bucket { tokens: 0.0, filled: Instant::now() }) }
    }

    /// Changes the limit for everybody, at once. None, or 0, is no limit.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// The limit in bytes per second.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Takes tokens for up to `wanted` bytes: how many may pass now, or how long to wait before asking again.
    pub(crate) fn take(&self, wanted: usize) -> Result<usize, Duration> {
        let Some(limit) = self.limit() else { return Ok(wanted) };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(Instant::now(), limit, wanted as u64).map(|granted| granted as usize)
    }

    /// Waits until all of the bytes may pass.
    pub(crate) async fn pass(&self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            match self.take(left) {
                Ok(granted) => left -= granted,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }
}

/// The bucket itself, without a clock.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, limit: u64, wanted: u64) -> Result<u64, Duration> {
        let rate = limit as f64;
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        // A limit so small that a burst is less than a step still lets whole steps pass, only rarely.
        let capacity = (rate * BURST.as_secs_f64()).max(STEP_BYTES_MIN as f64);
        self.tokens = (self.tokens + passed * rate).min(capacity);
        self.filled = now;
        let step = wanted.min(STEP_BYTES_MIN);
        if self.tokens >= step as f64 {
            let granted = wanted.min(self.tokens as u64);
            self.tokens -= granted as f64;
            return Ok(granted);
        }
        let wait = Duration::from_secs_f64((step as f64 - self.tokens) / rate);
        Err(wait.clamp(Duration::from_millis(1), WAIT_MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_limit_everything_passes() {
        let bandwidth = Bandwidth::new(None);
        assert_eq!(bandwidth.take(1 << 30), Ok(1 << 30));
        bandwidth.set_limit(Some(1));
        assert!(bandwidth.take(1 << 30).is_err());
        bandwidth.set_limit(Some(0));
        assert_eq!(bandwidth.take(1 << 30), Ok(1 << 30));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_limit_and_one_burst(
            limit in 1_u64..1_000_000_000,
            wishes in proptest::collection::vec((0_u64..200, 1_u64..10_000_000), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket { tokens: 0.0, filled: start };
            let (mut now, mut passed) = (start, 0);
            for (pause_ms, wanted) in wishes {
                now += Duration::from_millis(pause_ms);
                passed += bucket.take(now, limit, wanted).unwrap_or(0);
            }
            let allowed = limit as f64 * (now - start + BURST).as_secs_f64() + STEP_BYTES_MIN as f64;
            prop_assert!(passed as f64 <= allowed + 1.0, "{passed} > {allowed}");
        }

        #[test]
        fn whoever_waits_gets_through(limit in 1_u64..1_000_000, wanted in 1_u64..100_000) {
            let mut now = Instant::now();
            let mut bucket = Bucket { tokens: 0.0, filled: now };
            let (mut left, start) = (wanted, now);
            while left > 0 {
                match bucket.take(now, limit, left) {
                    Ok(granted) => left -= granted,
                    Err(wait) => now += wait,
                }
            }
            let needed = wanted as f64 / limit as f64;
            prop_assert!((now - start).as_secs_f64() <= needed + 0.3, "{:?} for {needed}", now - start);
        }
    }
}
