//! How long nobody must have heard of something before it is given up.
//!
//! No clock of another machine is looked at. Whoever waits reads a marker again and again, and counts by its own monotonic clock how long it was seen unchanged.
//! One read counts for a part of the lease at most, so nothing is given up by a few reads that happen to come together; a read that fails counts for nothing, nor does
//! the time around it; and after a pause of the observer, who may have slept as the whole machine did, the first read counts for nothing.

use std::time::{Duration, Instant};

/// Reads that a lease needs at least.
const READS: u32 = 5;
/// A gap of so many parts of the lease is a pause.
const PAUSE_PARTS: u32 = 3;

/// Time that passes only while something is seen and does not change.
#[derive(Clone, Debug)]
pub struct Lease {
    length: Duration,
    marker: u64,
    /// The last successful read.
    read: Option<Instant>,
    unchanged: Duration,
    /// The last gap was a pause. A second one in a row is no pause: then the storage is that slow.
    paused: bool,
}

impl Lease {
    /// One that begins now.
    pub fn new(length: Duration) -> Self {
        Self { length, marker: 0, read: None, unchanged: Duration::ZERO, paused: false }
    }

    /// A read succeeded and saw this; returns whether the lease has expired.
    pub fn read(&mut self, marker: u64, now: Instant) -> bool {
        let part = self.length / READS;
        let gap = self.read.map_or(Duration::ZERO, |read| now.saturating_duration_since(read));
        let is_pause = gap > part * PAUSE_PARTS && !self.paused;
        if self.marker != marker {
            (self.marker, self.unchanged) = (marker, Duration::ZERO);
        } else if !is_pause {
            self.unchanged += gap.min(part);
        }
        (self.read, self.paused) = (Some(now), gap > part * PAUSE_PARTS);
        self.unchanged >= self.length
    }

    /// A read failed.
    pub fn failed(&mut self) {
        self.read = None;
    }

    /// How long it was seen unchanged.
    pub fn unchanged(&self) -> Duration {
        self.unchanged
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);

    /// Seconds until it expires when it is read every `gap` milliseconds and nothing changes.
    fn expires_after(gap: u64) -> f64 {
        let (mut lease, start) = (Lease::new(LENGTH), Instant::now());
        let gap = Duration::from_millis(gap);
        (0..100_000).find(|read| lease.read(7, start + gap * *read)).map(|read| gap.as_secs_f64() * f64::from(read)).expect("it expires")
    }

    #[test]
    fn it_expires_when_nothing_changed_for_its_length_and_not_by_few_reads() {
        assert!((10.0..10.2).contains(&expires_after(100)), "{}", expires_after(100));
        assert!((10.0..12.1).contains(&expires_after(2_000)));
        // A storage that takes long for each read is slow, not asleep: it expires all the same.
        assert!(expires_after(60_000) >= 300.0);
    }

    #[test]
    fn a_pause_of_the_observer_and_reads_that_fail_do_not_count() {
        let (mut lease, start) = (Lease::new(LENGTH), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        (0..=8).for_each(|second| assert!(!lease.read(7, at(second))));
        assert!(!lease.read(7, at(3_600)), "the observer has slept for an hour");
        assert_eq!(lease.unchanged(), Duration::from_secs(8));
        lease.failed();
        assert!(!lease.read(7, at(3_602)));
        assert_eq!(lease.unchanged(), Duration::from_secs(8));
        assert!(!lease.read(7, at(3_603)) && lease.read(7, at(3_604)));
    }

    proptest! {
        #[test]
        fn it_never_expires_before_its_length_nor_with_fewer_reads(gaps in proptest::collection::vec(0_u64..20_000, 1..60)) {
            let (mut lease, mut now) = (Lease::new(LENGTH), Instant::now());
            let start = now;
            for (reads, gap) in gaps.into_iter().enumerate() {
                now += Duration::from_millis(gap);
                if lease.read(7, now) {
                    prop_assert!(now - start >= LENGTH && reads >= READS as usize);
                    break;
                }
            }
        }

        #[test]
        fn it_never_expires_while_changes_come_within_half_of_it(gaps in proptest::collection::vec(0_u64..5_000, 1..200)) {
            let (mut lease, mut now) = (Lease::new(LENGTH), Instant::now());
            for (marker, gap) in gaps.into_iter().enumerate() {
                now += Duration::from_millis(gap);
                prop_assert!(!lease.read(marker as u64 / 2, now));
            }
        }
    }
}
