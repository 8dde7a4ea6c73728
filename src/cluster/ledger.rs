//! Identities that a handle gives, and when it needs the outcomes of its calls no more.
//!
//! A worker remembers what became of a call for a retry. Once the call has been answered here, or given up, nobody will ask again, and the worker may
//! forget. To say so call by call would double the frames, so it is said for many at once, as the ledger of open numbers allows:
//!
//! ```text
//!   numbers   1 2 3 4 5 6 7 8 9        below = 4, ranges = 5..=6, 8..=9
//!   open            4     7            a call that runs for hours holds up nobody but itself
//! ```
//!
//! What is said is cumulative. An acknowledgement that is lost is made good by the next one, over whichever control node that goes.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::NodeId;

/// Calls of one worker after which it is told at once.
pub(super) const CALLS_BEFORE_ACK: usize = 64;
/// Bytes of replies of one worker after which it is told at once.
pub(super) const BYTES_BEFORE_ACK: usize = 256 * 1024;
/// Ranges that are said; a handle with more open calls says the others when the older ones have ended.
const RANGES_MAX: usize = 64;
/// Workers that wait to be told. What is owed to further ones they forget by themselves, a minute after the deadline.
const OWED_MAX: usize = 16_384;

/// What a worker may forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Every number below it.
    pub(crate) below: u64,
    /// Further ones, first and last.
    pub(crate) ranges: Vec<(u64, u64)>,
}

/// The numbers of one edge.
#[derive(Debug)]
pub(crate) struct Ledger {
    next: u64,
    open: BTreeSet<u64>,
    owed: BTreeMap<NodeId, Owed>,
}

/// What has ended since a worker was told.
#[derive(Debug, Default)]
struct Owed {
    calls: usize,
    bytes: usize,
}

impl Ledger {
    /// Numbers begin at 1.
    pub(crate) fn new() -> Self {
        Self { next: 1, open: BTreeSet::new(), owed: BTreeMap::new() }
    }

    /// A new call begins; returns its number.
    pub(crate) fn begin(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number);
        number
    }

    /// A call has been answered, with so many bytes, or was given up. True if its worker should be told [now](Self::take).
    pub(crate) fn end(&mut self, number: u64, node: &NodeId, bytes: usize) -> bool {
        self.open.remove(&number);
        if !self.owed.contains_key(node) {
            if self.owed.len() >= OWED_MAX {
                return false;
            }
            self.owed.insert(node.clone(), Owed::default());
        }
        let Some(owed) = self.owed.get_mut(node) else { return false };
        owed.calls += 1;
        owed.bytes = owed.bytes.saturating_add(bytes);
        owed.calls >= CALLS_BEFORE_ACK || owed.bytes >= BYTES_BEFORE_ACK
    }

    /// What to tell one worker.
    pub(crate) fn take(&mut self, node: &NodeId) -> Settled {
        self.owed.remove(node);
        self.settled()
    }

    /// What to tell, and whom.
    pub(crate) fn take_all(&mut self) -> (Settled, Vec<NodeId>) {
        (self.settled(), std::mem::take(&mut self.owed).into_keys().collect())
    }

    fn settled(&self) -> Settled {
        let below = self.open.first().copied().unwrap_or(self.next);
        let behind = self.open.iter().skip(1).copied().chain([self.next]);
        let between = self.open.iter().zip(behind).map(|(open, next)| (open + 1, next - 1));
        Settled { below, ranges: between.filter(|(from, to)| from <= to).take(RANGES_MAX).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("a valid name")
    }

    #[test]
    fn what_is_between_open_calls_is_settled() {
        let mut ledger = Ledger::new();
        for number in 1..=9 {
            assert_eq!(ledger.begin(), number);
        }
        for number in [1, 2, 3, 5, 6, 8, 9] {
            assert!(!ledger.end(number, &node("w1"), 10));
        }
        let settled = Settled { below: 4, ranges: vec![(5, 6), (8, 9)] };
        assert_eq!(ledger.take_all(), (settled, vec![node("w1")]));
        assert!(ledger.owed.is_empty());
        ledger.end(4, &node("w1"), 10);
        ledger.end(7, &node("w2"), 10);
        assert_eq!(ledger.take(&node("w2")), Settled { below: 10, ranges: vec![] });
        assert_eq!(ledger.take_all().1, [node("w1")], "the other worker");
    }

    #[test]
    fn a_worker_is_told_after_many_calls_or_many_bytes() {
        let mut ledger = Ledger::new();
        for count in 1..=CALLS_BEFORE_ACK {
            let number = ledger.begin();
            assert_eq!(ledger.end(number, &node("w1"), 0), count == CALLS_BEFORE_ACK);
        }
        let number = ledger.begin();
        assert!(ledger.end(number, &node("w2"), BYTES_BEFORE_ACK));
        ledger.take(&node("w2"));
        let number = ledger.begin();
        assert!(!ledger.end(number, &node("w2"), 0), "it begins anew");
    }

    proptest! {
        #[test]
        fn exactly_the_calls_that_have_ended_are_settled(ends in prop::collection::vec(any::<prop::sample::Index>(), 0..100), begun in 1u64..130) {
            let mut ledger = Ledger::new();
            let mut open: BTreeSet<u64> = (0..begun).map(|_| ledger.begin()).collect();
            for end in ends {
                let Some(number) = (!open.is_empty()).then(|| *open.iter().nth(end.index(open.len())).expect("within")) else { break };
                open.remove(&number);
                ledger.end(number, &node("w1"), 0);
            }
            let Settled { below, ranges } = ledger.take(&node("w1"));
            let said = |number: u64| number < below || ranges.iter().any(|(from, to)| (*from..=*to).contains(&number));
            let all_said = ranges.len() < RANGES_MAX;
            for number in 1..=begun {
                prop_assert!(!said(number) || !open.contains(&number), "{} is open", number);
                prop_assert!(said(number) || open.contains(&number) || !all_said, "{} has ended", number);
            }
            prop_assert!(!said(begun + 1), "the next call is none that has ended");
        }
    }
}
