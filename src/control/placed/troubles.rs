//! Actors that could not be started from their records: when that is tried again, and why it failed.
//!
//! What keeps an actor from starting may be another control node that does not answer, or a record that nobody can read: it may go on for days. So the pause grows, and a
//! reason is told once. Another view may change everything, so nobody waits then.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::PlacedKey;
use crate::error::Error;

/// Pause after the first failure; it doubles with each other one.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The actors of a control node that could not be started.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    of: BTreeMap<PlacedKey, Trouble>,
}

#[derive(Debug)]
struct Trouble {
    why: Error,
    pause: Duration,
    again: Instant,
}

impl Troubles {
    /// A start has failed; whether the reason is news. The pause is between half of what it would be and the whole, by `jitter` from 0 to 1: many that failed together
    /// do not return together.
    pub(super) fn failed(&mut self, key: &PlacedKey, why: &Error, now: Instant, jitter: f64) -> bool {
        let until = |pause: Duration| now + pause.mul_f64(0.5 + 0.5 * jitter);
        match self.of.get_mut(key) {
            None => {
                self.of.insert(key.clone(), Trouble { why: why.clone(), pause: PAUSE, again: until(PAUSE) });
                true
            }
            Some(known) => {
                // Whoever asks for the actor tries at once, and makes nobody else wait for longer.
                if known.again <= now {
                    known.pause = if known.pause.is_zero() { PAUSE } else { (2 * known.pause).min(PAUSE_MAX) };
                    known.again = until(known.pause);
                }
                let is_news = known.why.code() != why.code() || known.why.message() != why.message();
                known.why = why.clone();
                is_news
            }
        }
    }

    /// It has started, or nothing is known of it any more.
    pub(super) fn over(&mut self, key: &PlacedKey) {
        self.of.remove(key);
    }

    /// Keeps those that a test wants.
    pub(super) fn retain(&mut self, wants: impl Fn(&PlacedKey) -> bool) {
        self.of.retain(|key, _| wants(key));
    }

    /// Everything may be otherwise now: each is tried at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        for trouble in self.of.values_mut() {
            (trouble.pause, trouble.again) = (Duration::ZERO, now);
        }
    }

    /// Whether it is to be tried now.
    pub(super) fn may_start(&self, key: &PlacedKey, now: Instant) -> bool {
        self.of.get(key).is_none_or(|trouble| trouble.again <= now)
    }

    /// Why it could not be started the last time.
    pub(super) fn of(&self, key: &PlacedKey) -> Option<&Error> {
        self.of.get(key).map(|trouble| &trouble.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::types::ClassName;

    fn key(name: &str) -> PlacedKey {
        PlacedKey { kind: ClassName::new("counter").expect("valid"), key: name.to_owned() }
    }

    fn why(what: &str) -> Error {
        Error::new(ErrorCode::NotConnected, what)
    }

    #[test]
    fn the_pause_grows_to_its_longest_and_a_reason_is_news_once() {
        let (mut troubles, mut now, begun) = (Troubles::default(), Instant::now(), Instant::now());
        let (mut tries, mut told) = (0, 0);
        while now < begun + Duration::from_secs(3600) {
            if troubles.may_start(&key("a"), now) {
                tries += 1;
                told += u32::from(troubles.failed(&key("a"), &why("nobody answers"), now, f64::from(tries % 2)));
            }
            now += Duration::from_millis(500);
        }
        assert!((60..140).contains(&tries), "{tries} tries in an hour");
        assert_eq!(told, 1);
        assert!(troubles.failed(&key("a"), &why("it cannot be read"), now, 0.5), "another reason is news");
        assert_eq!(troubles.of(&key("a")).map(Error::message), Some("it cannot be read"));
    }

    #[test]
    fn another_view_is_no_time_to_wait_and_no_news() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        for second in 0..100 {
            troubles.failed(&key("a"), &why("x"), now + Duration::from_secs(100 * second), 1.0);
        }
        let later = now + Duration::from_secs(9_901);
        assert!(!troubles.may_start(&key("a"), later));
        troubles.hurry(later);
        assert!(troubles.may_start(&key("a"), later));
        assert!(!troubles.failed(&key("a"), &why("x"), later, 1.0));
        assert!(troubles.may_start(&key("a"), later + PAUSE), "it begins with the shortest pause again");
    }

    #[test]
    fn whoever_asks_for_an_actor_again_and_again_makes_nobody_wait_longer() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        for _ in 0..1_000 {
            troubles.failed(&key("a"), &why("x"), now, 1.0);
        }
        assert!(troubles.may_start(&key("a"), now + PAUSE));
        assert!(troubles.may_start(&key("b"), now));
        troubles.over(&key("a"));
        assert!(troubles.may_start(&key("a"), now) && troubles.of(&key("a")).is_none());
    }
}
