//! Round trips of pings to one worker, and what to show of them.
//!
//! The original kept every sample for as long as the connection lived (checklist A13, 9). Here a
//! fixed window of the last [`SAMPLES_MAX`] round trips is kept, in 260 bytes, because a control
//! node keeps one for each of its workers. The window is emptied when a worker connects anew, so
//! that a figure never mixes two paths.

use std::time::Duration;

/// Round trips kept for each worker; at one ping in five seconds they cover five minutes.
pub const SAMPLES_MAX: usize = 64;

/// The last round trips of one worker.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Microseconds; only the first `filled` are samples.
    samples: [u32; SAMPLES_MAX],
    filled: u8,
    next: u8,
}

/// What the window holds, for people and for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencySummary {
    /// Round trips in the window, at least one.
    pub samples: usize,
    /// Arithmetic mean, as in the original.
    pub mean: Duration,
    /// Shortest.
    pub min: Duration,
    /// Median, by nearest rank.
    pub p50: Duration,
    /// 99th percentile, by nearest rank; with fewer than 100 samples this is the longest one.
    pub p99: Duration,
    /// Longest.
    pub max: Duration,
}

impl Latency {
    /// An empty window.
    pub fn new() -> Self {
        Self { samples: [0; SAMPLES_MAX], filled: 0, next: 0 }
    }

    /// Adds a round trip, in the place of the oldest one when the window is full.
    ///
    /// The resolution is a microsecond; more than 71 minutes count as 71 minutes.
    pub fn record(&mut self, round_trip: Duration) {
        let micros = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
        self.samples[usize::from(self.next)] = micros;
        self.next = (self.next + 1) % SAMPLES_MAX as u8;
        self.filled = (self.filled + 1).min(SAMPLES_MAX as u8);
    }

    /// Forgets everything; for a new connection.
    pub fn clear(&mut self) {
        self.filled = 0;
        self.next = 0;
    }

    /// Summary of the window, or `None` before the first ping has returned.
    pub fn summary(&self) -> Option<LatencySummary> {
        let mut sorted = self.samples;
        let sorted = &mut sorted[..usize::from(self.filled)];
        sorted.sort_unstable();
        let (first, last) = (sorted.first()?, sorted.last()?);
        let sum: u64 = sorted.iter().copied().map(u64::from).sum();
        let rank = |percent: usize| (sorted.len() * percent).div_ceil(100) - 1;
        let micros = |value: u32| Duration::from_micros(value.into());
        Some(LatencySummary {
            samples: sorted.len(),
            mean: Duration::from_micros(sum / sorted.len() as u64),
            min: micros(*first),
            p50: micros(sorted[rank(50)]),
            p99: micros(sorted[rank(99)]),
            max: micros(*last),
        })
    }
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn empty_window_has_no_summary() {
        let mut latency = Latency::new();
        assert_eq!(latency.summary(), None);
        latency.record(ms(1));
        latency.clear();
        assert_eq!(latency.summary(), None);
    }

    #[test]
    fn summary_of_a_few_samples() {
        let mut latency = Latency::new();
        for value in [5, 1, 3, 11] {
            latency.record(ms(value));
        }
        let summary = LatencySummary { samples: 4, mean: ms(5), min: ms(1), p50: ms(3), p99: ms(11), max: ms(11) };
        assert_eq!(latency.summary(), Some(summary));
    }

    #[test]
    fn window_never_grows_and_forgets_the_oldest() {
        let mut latency = Latency::new();
        for value in 1..=10_000 {
            latency.record(ms(value));
        }
        let summary = latency.summary().expect("samples were recorded");
        assert_eq!(summary.samples, SAMPLES_MAX);
        assert_eq!((summary.min, summary.max), (ms(10_000 - SAMPLES_MAX as u64 + 1), ms(10_000)));
        assert!(size_of::<Latency>() <= 260);
    }

    #[test]
    fn an_absurd_round_trip_saturates() {
        let mut latency = Latency::new();
        for _ in 0..SAMPLES_MAX {
            latency.record(Duration::MAX);
        }
        let longest = Duration::from_micros(u32::MAX.into());
        assert_eq!(latency.summary().map(|s| (s.mean, s.max)), Some((longest, longest)));
    }

    proptest! {
        #[test]
        fn summary_agrees_with_a_sorted_list(values in prop::collection::vec(0u64..5_000_000, 1..200)) {
            let mut latency = Latency::new();
            for value in &values {
                latency.record(Duration::from_micros(*value));
            }
            let mut tail: Vec<u64> = values.iter().rev().take(SAMPLES_MAX).copied().collect();
            tail.sort_unstable();
            let at_least = |share: f64| {
                let needed = (share * tail.len() as f64).ceil() as usize;
                Duration::from_micros(tail[needed.max(1) - 1])
            };
            let mean = tail.iter().sum::<u64>() / tail.len() as u64;
            prop_assert_eq!(latency.summary(), Some(LatencySummary {
                samples: tail.len(),
                mean: Duration::from_micros(mean),
                min: Duration::from_micros(tail[0]),
                p50: at_least(0.50),
                p99: at_least(0.99),
                max: Duration::from_micros(tail[tail.len() - 1]),
            }));
        }
    }
}
