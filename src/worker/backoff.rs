//! How long to wait before the next attempt to connect.
//!
//! Thousands of workers lose the same control node in the same millisecond, so even the first attempt after a loss is spread ([`after_loss`]). The wait doubles
//! with every failure up to a cap, so that a cluster which is down is not hammered, and half of every
//! wait is random, so that the workers do not return in step. A peer that is overloaded or is
//! leaving may ask for a longer wait (`reconnect_after`). It is honoured, with the usual spread on
//! top, because everybody else was told the same number. Before the peer has proved itself its
//! word is worth at most [`RECONNECT_AFTER_UNTRUSTED_MAX`]: a false listener must not silence a
//! worker.
//!
//! The value is pure: the caller draws the random fraction and keeps the timer.

use std::time::Duration;

/// The longest wait that a peer may ask for before it is trusted.
pub const RECONNECT_AFTER_UNTRUSTED_MAX: Duration = Duration::from_secs(60);

/// The longest wait that a trusted peer may ask for.
pub const RECONNECT_AFTER_TRUSTED_MAX: Duration = Duration::from_secs(3600);

/// The longest wait before the first attempt after a loss.
pub const AFTER_LOSS_MAX: Duration = Duration::from_secs(1);

/// The part of `ping_time` that it may take.
const AFTER_LOSS_OF_PING_TIME: u32 = 5;

/// How long to wait before the first attempt after a loss: anything from nothing to a fifth of `ping_time`, at most [`AFTER_LOSS_MAX`]. The loss itself was
/// noticed within 2 × `ping_time`, so it hardly takes longer for one worker, and a whole fleet does not arrive in one millisecond.
///
/// `fraction` is a random number in `[0, 1)`; anything outside is brought into the range.
pub fn after_loss(ping_time: Duration, fraction: f64) -> Duration {
    let longest = (ping_time / AFTER_LOSS_OF_PING_TIME).min(AFTER_LOSS_MAX);
    longest.mul_f64(in_range(fraction)).min(longest)
}

/// Whether the peer had proved that it knows the secret when it asked for a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The handshake was not complete.
    Untrusted,
    /// The peer is authenticated.
    Trusted,
}

/// Jittered exponential back-off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
    asked: Option<Duration>,
}

impl Backoff {
    /// Waits around `first` after the first failure, and never more than `cap` by itself.
    /// A cap below `first` is raised to it.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap: cap.max(first), failures: 0, asked: None }
    }

    /// Starts again from the first wait; to be called once a control node has adopted the worker.
    ///
    /// A connection alone is no success: a peer that accepts and closes would be dialled in a
    /// tight loop.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.asked = None;
    }

    /// Takes a wait that a peer asked for; it holds for the next delay only.
    ///
    /// Of several wishes the longest one wins.
    pub fn reconnect_after(&mut self, wait: Duration, trust: Trust) {
        let max = match trust {
            Trust::Untrusted => RECONNECT_AFTER_UNTRUSTED_MAX,
            Trust::Trusted => RECONNECT_AFTER_TRUSTED_MAX,
        };
        self.asked = self.asked.max(Some(wait.min(max)));
    }

    /// Notes a failure and tells how long to wait before the next attempt.
    ///
    /// `fraction` is a random number in `[0, 1)`; anything outside is brought into the range.
    /// Without a wish of the peer the result lies in `[base / 2, base]`, where `base` is
    /// `first × 2^failures`, at most the cap. With a wish it is the wish plus that.
    pub fn next_delay(&mut self, fraction: f64) -> Duration {
        let doubled = 2u32.checked_pow(self.failures);
        let base = doubled.map_or(self.cap, |factor| self.first.saturating_mul(factor));
        let half = base.min(self.cap) / 2;
        self.failures = self.failures.saturating_add(1);
        // A fraction of a duration is not longer than the duration, so this cannot overflow.
        let spread = half + half.mul_f64(in_range(fraction)).min(half);
        self.asked.take().unwrap_or_default().saturating_add(spread)
    }

    /// Failures since the last [`reset`](Self::reset).
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

fn in_range(fraction: f64) -> f64 {
    if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: Duration = Duration::from_millis(200);
    const CAP: Duration = Duration::from_secs(30);

    #[test]
    fn waits_double_up_to_the_cap() {
        let mut backoff = Backoff::new(FIRST, CAP);
        let waits: Vec<_> = (0..10).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn a_fleet_that_loses_its_control_node_spreads_its_first_attempts() {
        let ping_time = Duration::from_secs(4);
        assert_eq!(after_loss(ping_time, 0.0), Duration::ZERO);
        assert_eq!(after_loss(ping_time, 0.5), Duration::from_millis(400));
        for odd in [1.0, 7.0, f64::NAN, f64::INFINITY] {
            assert_eq!(after_loss(ping_time, odd), Duration::from_millis(800));
        }
        assert_eq!(after_loss(Duration::from_secs(3600), 1.0), AFTER_LOSS_MAX);
        assert_eq!(after_loss(Duration::ZERO, 0.5), Duration::ZERO);
    }

    #[test]
    fn half_of_a_wait_is_random() {
        let mut backoff = Backoff::new(FIRST, CAP);
        assert_eq!(backoff.clone().next_delay(0.0), FIRST / 2);
        assert_eq!(backoff.clone().next_delay(0.5), FIRST * 3 / 4);
        assert_eq!(backoff.next_delay(1.0), FIRST);
    }

    #[test]
    fn reset_returns_to_the_first_wait_and_forgets_the_wish() {
        let mut backoff = Backoff::new(FIRST, CAP);
        backoff.next_delay(1.0);
        backoff.next_delay(1.0);
        backoff.reconnect_after(Duration::from_secs(9), Trust::Trusted);
        backoff.reset();
        assert_eq!(backoff.failures(), 0);
        assert_eq!(backoff.next_delay(1.0), FIRST);
    }

    #[test]
    fn a_wish_is_honoured_once_and_spread() {
        let wish = Duration::from_secs(7);
        let mut backoff = Backoff::new(FIRST, CAP);
        backoff.reconnect_after(wish, Trust::Trusted);
        backoff.reconnect_after(Duration::from_secs(1), Trust::Trusted);
        assert_eq!(backoff.clone().next_delay(0.0), wish + FIRST / 2);
        assert_eq!(backoff.next_delay(1.0), wish + FIRST);
        assert_eq!(backoff.next_delay(1.0), FIRST * 2);
    }

    #[test]
    fn an_untrusted_peer_cannot_silence_a_worker() {
        let mut backoff = Backoff::new(FIRST, CAP);
        backoff.reconnect_after(Duration::MAX, Trust::Untrusted);
        assert_eq!(backoff.next_delay(1.0), RECONNECT_AFTER_UNTRUSTED_MAX + FIRST);
        backoff.reset();
        backoff.reconnect_after(Duration::MAX, Trust::Trusted);
        assert_eq!(backoff.next_delay(1.0), RECONNECT_AFTER_TRUSTED_MAX + FIRST);
    }

    proptest! {
        #[test]
        fn every_wait_lies_between_half_and_all_of_its_base(
            first_ms in 1u64..100_000,
            cap_ms in 1u64..10_000_000,
            fractions in prop::collection::vec(prop::num::f64::ANY, 1..80),
        ) {
            let first = Duration::from_millis(first_ms);
            let cap = Duration::from_millis(cap_ms).max(first);
            let mut backoff = Backoff::new(first, Duration::from_millis(cap_ms));
            let mut base = first;
            for fraction in fractions {
                let wait = backoff.next_delay(fraction);
                prop_assert!(wait >= base / 2 && wait <= base, "{wait:?} of {base:?}");
                base = (base * 2).min(cap);
            }
        }
    }
}
