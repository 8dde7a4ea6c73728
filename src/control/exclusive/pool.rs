//! Which connection a call gets, as a machine.
//!
//! A connection is good for one **adoption**, in other words one term of the worker. It serves one call at a time, then waits [`IDLE_MAX`] for another one. There are at most
//! [`EXCLUSIVE_MAX`]; whoever finds none, and whoever comes soon after one could not be made, uses the main connection.

use std::time::{Duration, Instant};

/// Exclusive connections to one worker, those included that are being made.
pub(super) const EXCLUSIVE_MAX: usize = 8;
/// How long a connection that nobody uses is kept.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(5);
/// After a connection could not be made, no other is tried for so long: each try delays its call.
const PAUSE: Duration = Duration::from_secs(5);

/// What a call may use.
#[derive(Debug, PartialEq)]
pub(super) enum Take<C> {
    /// This one, from now on.
    Idle(C),
    /// One that is to be made: a place for it is taken.
    Make,
    /// The main connection.
    Main,
}

/// The connections of one worker. `A` names an adoption, `C` a connection.
#[derive(Debug)]
pub(super) struct Pool<A, C> {
    places: usize,
    idle: Vec<Idle<A, C>>,
    again_at: Option<Instant>,
    is_closed: bool,
}

#[derive(Debug)]
struct Idle<A, C> {
    adoption: A,
    connection: C,
    since: Instant,
}

impl<A: PartialEq, C> Pool<A, C> {
    pub(super) fn new() -> Self {
        Self { places: 0, idle: Vec::new(), again_at: None, is_closed: false }
    }

    /// A call wants a connection.
    pub(super) fn take(&mut self, adoption: &A, now: Instant) -> Take<C> {
        // The last one: those that are not needed grow old.
        if let Some(at) = self.idle.iter().rposition(|idle| idle.adoption == *adoption) {
            return Take::Idle(self.idle.remove(at).connection);
        }
        if self.is_closed || self.places >= EXCLUSIVE_MAX || self.again_at.is_some_and(|at| now < at) {
            return Take::Main;
        }
        self.places += 1;
        Take::Make
    }

    /// The connection for which a place was taken could not be made.
    pub(super) fn failed(&mut self, now: Instant) {
        self.places -= 1;
        self.again_at = Some(now + PAUSE);
    }

    /// One was made, for whoever took its place.
    pub(super) fn made(&mut self) {
        self.again_at = None;
    }

    /// A call is over; its connection waits for the next one. Given back if nobody wants it any more, which gives up its place.
    pub(super) fn returned(&mut self, adoption: A, connection: C, now: Instant) -> Option<C> {
        if self.is_closed {
            self.places -= 1;
            return Some(connection);
        }
        self.idle.push(Idle { adoption, connection, since: now });
        None
    }

    /// A connection has ended in the hands of its call.
    pub(super) fn lost(&mut self) {
        self.places -= 1;
    }

    /// When [`Pool::expired`] has something to give.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.idle.iter().map(|idle| idle.since + IDLE_MAX).min()
    }

    /// Connections that have waited long enough, to be closed. One that is still `busy` with what was said last waits again.
    pub(super) fn expired(&mut self, now: Instant, busy: impl Fn(&C) -> bool) -> Vec<C> {
        let over = self.idle.extract_if(.., |idle| {
            let is_over = idle.since + IDLE_MAX <= now;
            if is_over && busy(&idle.connection) {
                idle.since = now;
                return false;
            }
            is_over
        });
        let over: Vec<C> = over.map(|idle| idle.connection).collect();
        self.places -= over.len();
        over
    }

    /// The worker is given up: nothing is kept from now on. Those that waited are given back, to be closed.
    pub(super) fn close(&mut self) -> Vec<C> {
        self.is_closed = true;
        self.places -= self.idle.len();
        self.idle.drain(..).map(|idle| idle.connection).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_connection_is_used_again_within_its_adoption_only() {
        let (mut pool, now) = (Pool::new(), Instant::now());
        assert_eq!(pool.take(&1, now), Take::Make);
        pool.made();
        assert_eq!(pool.take(&1, now), Take::Make, "the first one is in use");
        pool.made();
        assert_eq!(pool.returned(1, "a", now), None);
        assert_eq!(pool.take(&2, now), Take::Make, "of another term");
        assert_eq!(pool.take(&1, now), Take::Idle("a"));
    }

    #[test]
    fn a_connection_that_nobody_uses_is_closed_unless_it_has_something_to_say() {
        let (mut pool, now) = (Pool::new(), Instant::now());
        for _ in 0..2 {
            assert_eq!(pool.take(&1, now), Take::Make);
            pool.made();
        }
        pool.returned(1, "a", now);
        pool.returned(1, "b", now);
        assert_eq!(pool.next_deadline(), Some(now + IDLE_MAX));
        assert!(pool.expired(now + IDLE_MAX / 2, |_| false).is_empty());
        assert_eq!(pool.expired(now + IDLE_MAX, |connection| *connection == "b"), ["a"]);
        assert_eq!(pool.next_deadline(), Some(now + 2 * IDLE_MAX));
        assert_eq!(pool.expired(now + 2 * IDLE_MAX, |_| false), ["b"]);
        assert_eq!((pool.places, pool.next_deadline()), (0, None));
    }

    #[test]
    fn after_a_failure_calls_do_not_wait_for_another_one() {
        let (mut pool, now) = (Pool::<_, ()>::new(), Instant::now());
        assert_eq!(pool.take(&1, now), Take::Make);
        pool.failed(now);
        assert_eq!(pool.take(&1, now + PAUSE / 2), Take::Main);
        assert_eq!(pool.take(&1, now + PAUSE), Take::Make);
    }

    #[test]
    fn what_is_given_up_is_closed_as_soon_as_nobody_uses_it() {
        let (mut pool, now) = (Pool::new(), Instant::now());
        for _ in 0..2 {
            assert_eq!(pool.take(&1, now), Take::Make);
            pool.made();
        }
        pool.returned(1, "a", now);
        assert_eq!(pool.close(), ["a"]);
        assert_eq!(pool.take(&1, now), Take::Main);
        assert_eq!(pool.returned(1, "b", now), Some("b"));
        assert_eq!(pool.places, 0);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(u8),
        Return(bool),
        Made(bool),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..3).prop_map(Step::Take),
            any::<bool>().prop_map(Step::Return),
            any::<bool>().prop_map(Step::Made),
            (0_u64..4000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn places_are_those_in_use_being_made_and_idle(steps in proptest::collection::vec(step(), 0..300)) {
            let (mut pool, mut now) = (Pool::new(), Instant::now());
            let (mut making, mut used, mut next) = (Vec::new(), Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Take(adoption) => match pool.take(&adoption, now) {
                        Take::Idle((of, number)) => {
                            prop_assert_eq!(of, adoption);
                            used.push((of, number));
                        }
                        Take::Make => making.push(adoption),
                        Take::Main => {}
                    },
                    Step::Made(well) => {
                        if let Some(adoption) = making.pop() {
                            if well {
                                pool.made();
                                next += 1;
                                used.push((adoption, next));
                            } else {
                                pool.failed(now);
                            }
                        }
                    }
                    Step::Return(open) => {
                        if let Some((adoption, number)) = used.pop() {
                            if open {
                                prop_assert_eq!(pool.returned(adoption, (adoption, number), now), None);
                            } else {
                                pool.lost();
                            }
                        }
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        pool.expired(now, |_| false);
                        prop_assert!(pool.next_deadline().is_none_or(|at| at > now));
                    }
                }
                prop_assert_eq!(pool.places, making.len() + used.len() + pool.idle.len());
                prop_assert!(pool.places <= EXCLUSIVE_MAX);
            }
        }
    }
}
