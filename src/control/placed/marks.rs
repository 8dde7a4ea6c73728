//! Actors of durable kinds that are over: marks that a record of them which comes late is not to bring back.
//!
//! A control node that was away when an actor ended has a copy of it still. Whoever gets that copy, or is asked what is known of its key, has a mark that is not older,
//! and says so; the copy goes then. An actor of the same key that begins anew is younger than the mark, and takes its place.
//!
//! One that lives is no copy. If it was cut off while another one of its key was over, it has something that the other one has not, acknowledged to its callers: it goes on
//! above the mark. What is handed over is such a one, too, unless it is tried again because the answer was lost, and had arrived: then its actor went on from it, and the
//! mark knows. For that, a hand-over has a number, and a record and a mark name the latest that their actor goes back to. What remains: the end of an actor is undone by
//! one that lived on elsewhere in a split; and by a hand-over that is tried again at a node whose mark is lost, or came from an answer, which names no numbers.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::Stamp;
use crate::cluster::PlacedKey;

/// Marks of one control node; the oldest go first.
const MARKS_MAX: usize = 16_384;

/// Hand-overs that an actor goes back to; the oldest go first.
const HAND_OVERS_MAX: usize = 16;

/// Hand-overs that an actor goes back to, by the numbers that were drawn for them, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub(in super::super) struct HandOvers(Vec<u64>);

/// What is known of an actor that is over.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Over {
    /// Of its last record.
    pub(in super::super) stamp: Stamp,
    pub(in super::super) hand_overs: HandOvers,
}

#[derive(Debug, Default)]
pub(super) struct Marks {
    of: BTreeMap<PlacedKey, (u64, Over)>,
    order: VecDeque<(u64, PlacedKey)>,
    next: u64,
}

impl From<Vec<u64>> for HandOvers {
    fn from(mut numbers: Vec<u64>) -> Self {
        numbers.drain(..numbers.len().saturating_sub(HAND_OVERS_MAX));
        Self(numbers)
    }
}

impl From<HandOvers> for Vec<u64> {
    fn from(HandOvers(numbers): HandOvers) -> Self {
        numbers
    }
}

impl HandOvers {
    /// One more.
    pub(super) fn push(&mut self, number: u64) {
        self.add(&Self(vec![number]));
    }

    /// Those of another one that was taken in.
    pub(super) fn add(&mut self, other: &Self) {
        let mut numbers = std::mem::take(&mut self.0);
        numbers.retain(|number| !other.0.contains(number));
        numbers.extend(&other.0);
        *self = numbers.into();
    }

    /// Whether the latest of the others is among these.
    pub(super) fn have_last_of(&self, others: &Self) -> bool {
        others.0.last().is_some_and(|last| self.0.contains(last))
    }
}

impl Marks {
    /// The mark of an actor that is over.
    pub(super) fn of(&self, key: &PlacedKey) -> Option<&Over> {
        self.of.get(key).map(|(_, over)| over)
    }

    /// Leaves a mark. Tells which had to go for it.
    pub(super) fn leave(&mut self, key: &PlacedKey, mut over: Over) -> Vec<PlacedKey> {
        if let Some(known) = self.of(key) {
            let mut hand_overs = known.hand_overs.clone();
            hand_overs.add(&over.hand_overs);
            over = Over { stamp: over.stamp.max(known.stamp), hand_overs };
        }
        self.next += 1;
        self.of.insert(key.clone(), (self.next, over));
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

    fn over(version: u64, hand_overs: &[u64]) -> Over {
        Over { stamp: Stamp { life: 1, version }, hand_overs: hand_overs.to_vec().into() }
    }

    #[test]
    fn the_newest_mark_of_a_key_counts_and_goes_when_its_actor_lives_anew() {
        let mut marks = Marks::default();
        for (version, hand_overs) in [(2, &[7][..]), (5, &[8, 9]), (3, &[])] {
            assert_eq!(marks.leave(&key(1), over(version, hand_overs)), []);
        }
        assert_eq!((marks.of(&key(1)), marks.of(&key(2))), (Some(&over(5, &[7, 8, 9])), None));
        marks.take_away(&key(1));
        assert_eq!(marks.of(&key(1)), None);
    }

    #[test]
    fn marks_are_bounded_and_the_latest_remain() {
        let mut marks = Marks::default();
        let mut dropped = Vec::new();
        for number in 0..MARKS_MAX + 10 {
            dropped.extend(marks.leave(&key(number), over(1, &[])));
            // Again and again the same one.
            dropped.extend(marks.leave(&key(0), over(1, &[number as u64])));
        }
        assert_eq!(dropped, (1..=10).map(key).collect::<Vec<_>>());
        assert!(marks.of.len() == MARKS_MAX && marks.order.len() <= 2 * MARKS_MAX + 16);
        let latest: Vec<_> = (MARKS_MAX as u64 - 6..MARKS_MAX as u64 + 10).collect();
        assert_eq!(marks.of(&key(0)), Some(&over(1, &latest)));
    }
}
