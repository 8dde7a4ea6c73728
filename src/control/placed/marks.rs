//! Actors of durable kinds that are over: marks that a record of them which comes late is not to bring back.
//!
//! A control node that was away when an actor ended has a copy of it still. Whoever gets that copy, or is asked what is known of its key, has a mark that is not older,
//! and says so; the copy goes then. An actor of the same key that begins anew is younger than the mark, and takes its place.

use std::collections::{BTreeMap, VecDeque};

use super::Stamp;
use crate::cluster::PlacedKey;

/// Marks of one control node; the oldest go first.
const MARKS_MAX: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Marks {
    of: BTreeMap<PlacedKey, (u64, Stamp)>,
    order: VecDeque<(u64, PlacedKey)>,
    next: u64,
}

impl Marks {
    /// The stamp of the last record of an actor that is over.
    pub(super) fn of(&self, key: &PlacedKey) -> Option<Stamp> {
        self.of.get(key).map(|(_, stamp)| *stamp)
    }

    /// Leaves a mark. Tells which had to go for it.
    pub(super) fn leave(&mut self, key: &PlacedKey, stamp: Stamp) -> Vec<PlacedKey> {
        let stamp = self.of(key).map_or(stamp, |known| known.max(stamp));
        self.next += 1;
        self.of.insert(key.clone(), (self.next, stamp));
        self.order.push_back((self.next, key.clone()));
        let mut dropped = Vec::new();
        while self.of.len() > MARKS_MAX || self.order.len() > 2 * self.of.len() + 16 {
            let Some((number, key)) = self.order.pop_front() else { break };
            match self.of.get(&key) {
                Some((current, _)) if *current != number => {}
                Some(_) if self.of.len() > MARKS_MAX => {
                    self.of.remove(&key);
                    dropped.push(key);
                }
                Some(_) => self.order.push_back((number, key)),
                None => {}
            }
        }
        dropped
    }

    /// An actor of the key lives anew.
    pub(super) fn take_away(&mut self, key: &PlacedKey) {
        self.of.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClassName;

    fn key(number: usize) -> PlacedKey {
        PlacedKey { kind: ClassName::new("counter").expect("valid"), key: number.to_string() }
    }

    fn stamp(version: u64) -> Stamp {
        Stamp { life: 1, version }
    }

    #[test]
    fn the_newest_mark_of_a_key_counts_and_goes_when_its_actor_lives_anew() {
        let mut marks = Marks::default();
        for version in [2, 5, 3] {
            assert_eq!(marks.leave(&key(1), stamp(version)), []);
        }
        assert_eq!((marks.of(&key(1)), marks.of(&key(2))), (Some(stamp(5)), None));
        marks.take_away(&key(1));
        assert_eq!(marks.of(&key(1)), None);
    }

    #[test]
    fn marks_are_bounded_and_the_latest_remain() {
        let mut marks = Marks::default();
        let mut dropped = Vec::new();
        for number in 0..MARKS_MAX + 10 {
            dropped.extend(marks.leave(&key(number), stamp(1)));
            // Again and again the same one.
            dropped.extend(marks.leave(&key(0), stamp(1)));
        }
        assert_eq!(dropped, (1..=10).map(key).collect::<Vec<_>>());
        assert!(marks.of.len() == MARKS_MAX && marks.order.len() <= 2 * MARKS_MAX + 16);
    }
}
