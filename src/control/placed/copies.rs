//! Records that are kept for other nodes, and those of actors that wait to be handed over. In bounded room: what was kept longest goes first.

use std::collections::{BTreeMap, VecDeque};

use super::listing::of_kind;
use super::marks::{Marks, Over};
use super::{Belongings, RECORD_BYTES_MAX, Record, Stamp};
use crate::cluster::PlacedKey;
use crate::types::ClassName;

/// Bytes of all copies.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a copy costs beside its bytes.
const OVERHEAD_BYTES: usize = 256;

#[derive(Default)]
pub(super) struct Copies {
    marks: Marks,
    copies: BTreeMap<PlacedKey, (u64, Belongings)>,
    order: VecDeque<(u64, PlacedKey)>,
    next: u64,
    bytes: usize,
    /// Of actors that ended here and have no other place yet: nothing else knows of them.
    own: BTreeMap<PlacedKey, Packed>,
}

struct Packed {
    belongings: Belongings,
    /// Being handed over at this moment: whether it arrives is not known.
    on_its_way: bool,
}

/// What is known of an actor that was asked for.
#[derive(Debug, PartialEq)]
pub(super) enum Given {
    /// Nothing.
    Nothing,
    /// Its last record; if it ended here, it is given away.
    Record(Record),
    /// It is being handed over.
    OnItsWay,
}

impl Copies {
    /// Keeps a copy, unless a newer one is there. Tells what had to go for it.
    ///
    /// # Errors
    /// The mark of an actor that is over, and is not older than the copy.
    pub(super) fn keep(&mut self, belongings: Belongings) -> Result<Vec<PlacedKey>, Stamp> {
        let (key, record) = (belongings.key.clone(), &belongings.record);
        match self.over(&key) {
            Some(over) if over >= record.stamp => return Err(over),
            Some(_) => self.marks.take_away(&key),
            None => {}
        }
        let mut dropped = Vec::new();
        if record.bytes.len() > RECORD_BYTES_MAX || self.copies.get(&key).is_some_and(|(_, kept)| kept.record.stamp >= record.stamp) {
            return Ok(dropped);
        }
        self.forget(&key);
        self.next += 1;
        self.bytes += record.bytes.len() + OVERHEAD_BYTES;
        self.order.push_back((self.next, key.clone()));
        self.copies.insert(key, (self.next, belongings));
        while self.bytes > BYTES_MAX || self.order.len() > 2 * self.copies.len() + 16 {
            let Some((number, key)) = self.order.pop_front() else { break };
            match self.copies.get(&key) {
                // An entry of the order whose copy was replaced.
                Some((current, _)) if *current != number => {}
                Some(_) if self.bytes > BYTES_MAX => {
                    tracing::warn!(actor = %key, "the copy of a placed actor is dropped: too many are kept");
                    self.forget(&key);
                    dropped.push(key);
                }
                Some(_) => self.order.push_back((number, key)),
                None => {}
            }
        }
        Ok(dropped)
    }

    /// The actor is over: drops its copy and leaves a mark, unless the copy is newer than that. Tells which other marks had to go.
    pub(super) fn discard(&mut self, key: &PlacedKey, over: Over) -> Vec<PlacedKey> {
        if self.copies.get(key).is_some_and(|(_, kept)| kept.record.stamp > over.stamp) {
            return Vec::new();
        }
        self.forget(key);
        self.marks.leave(key, over)
    }

    /// Drops a copy that is kept elsewhere, unless it is newer than that.
    pub(super) fn give_up(&mut self, key: &PlacedKey, stamp: Stamp) {
        if self.copies.get(key).is_some_and(|(_, kept)| kept.record.stamp <= stamp) {
            self.forget(key);
        }
    }

    /// The stamp of the last record of an actor that is over.
    pub(super) fn over(&self, key: &PlacedKey) -> Option<Stamp> {
        self.mark(key).map(|over| over.stamp)
    }

    /// The mark of an actor that is over.
    pub(super) fn mark(&self, key: &PlacedKey) -> Option<&Over> {
        self.marks.of(key)
    }

    /// Whether this hand-over has arrived before: the actor that went on from it is over, or has left a newer record.
    pub(super) fn have_taken_in(&self, Belongings { key, record, .. }: &Belongings) -> bool {
        let newer = self.copies.get(key).map(|(_, kept)| &kept.record).filter(|kept| kept.stamp > record.stamp);
        let known = newer.map(|kept| &kept.hand_overs).into_iter().chain(self.mark(key).map(|over| &over.hand_overs));
        known.into_iter().any(|hand_overs| hand_overs.have_last_of(&record.hand_overs))
    }

    fn forget(&mut self, key: &PlacedKey) {
        if let Some((_, kept)) = self.copies.remove(key) {
            self.bytes -= kept.record.bytes.len() + OVERHEAD_BYTES;
        }
    }

    /// The newest that is kept for others.
    pub(super) fn find(&self, key: &PlacedKey) -> Option<Record> {
        self.belongings(key).map(|kept| kept.record)
    }

    pub(super) fn contains(&self, key: &PlacedKey) -> bool {
        self.copies.contains_key(key)
    }

    /// The same, as it is kept.
    pub(super) fn belongings(&self, key: &PlacedKey) -> Option<Belongings> {
        self.copies.get(key).map(|(_, kept)| kept.clone())
    }

    /// Those whose key a test wants, with their places and ages.
    pub(super) fn of(&self, wants: impl Fn(&PlacedKey) -> bool) -> Vec<(PlacedKey, u64, Stamp)> {
        let wanted = self.copies.iter().filter(|(key, _)| wants(key));
        wanted.map(|(key, (_, kept))| (key.clone(), kept.hash, kept.record.stamp)).collect()
    }

    /// The first `most` of one kind behind a key, with their places; and as many of those that are being handed over, which are mostly among them.
    pub(super) fn behind<'a>(
        &'a self,
        kind: &'a ClassName,
        after: Option<&'a PlacedKey>,
        most: usize,
    ) -> impl Iterator<Item = (&'a PlacedKey, u64)> {
        let kept = of_kind(&self.copies, kind, after).map(|(key, (_, kept))| (key, kept.hash));
        let packed = of_kind(&self.own, kind, after).map(|(key, packed)| (key, packed.belongings.hash));
        kept.take(most).chain(packed.take(most))
    }

    /// Gives away what is known here.
    pub(super) fn give(&mut self, key: &PlacedKey) -> Given {
        match self.own.get(key) {
            Some(packed) if packed.on_its_way => Given::OnItsWay,
            Some(_) => match self.own.remove(key) {
                Some(packed) => {
                    let record = packed.belongings.record.clone();
                    // Whoever asked may have stopped waiting. If not, its next record is newer.
                    let _ = self.keep(packed.belongings);
                    Given::Record(record)
                }
                None => Given::Nothing,
            },
            None => self.find(key).map_or(Given::Nothing, Given::Record),
        }
    }

    /// Keeps what must still be handed over.
    pub(super) fn pack(&mut self, belongings: Belongings) {
        self.own.insert(belongings.key.clone(), Packed { belongings, on_its_way: false });
    }

    /// Takes everything on its way that must be handed over.
    pub(super) fn send_off(&mut self) -> Vec<Belongings> {
        let waiting = self.own.values_mut().filter(|packed| !packed.on_its_way);
        waiting
            .map(|packed| {
                packed.on_its_way = true;
                packed.belongings.clone()
            })
            .collect()
    }

    /// It has arrived, or has not.
    pub(super) fn arrived(&mut self, key: &PlacedKey, arrived: bool) {
        match arrived {
            true => drop(self.own.remove(key)),
            false => self.own.get_mut(key).into_iter().for_each(|packed| packed.on_its_way = false),
        }
    }

    /// Whether nothing must be handed over any more.
    pub(super) fn is_empty_handed(&self) -> bool {
        self.own.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HandOvers, Stamp};
    use super::*;

    fn belongings(key: usize, version: u64, bytes: usize) -> Belongings {
        let key = PlacedKey { kind: ClassName::new("counter").expect("valid"), key: key.to_string() };
        Belongings {
            key,
            hash: 0,
            record: Record { stamp: Stamp { life: 1, version }, hand_overs: HandOvers::default(), bytes: vec![0; bytes] },
        }
    }

    #[test]
    fn an_older_record_replaces_no_newer_one() {
        let mut copies = Copies::default();
        for version in [2, 1, 3, 2] {
            copies.keep(belongings(1, version, 8)).expect("it is not over");
        }
        assert_eq!(copies.find(&belongings(1, 0, 0).key).map(|record| record.stamp.version), Some(3));
    }

    #[test]
    fn copies_stay_within_their_room_and_the_latest_remain() {
        let mut copies = Copies::default();
        for key in 0..100 {
            copies.keep(belongings(key, 1, RECORD_BYTES_MAX)).expect("it is not over");
        }
        assert!(copies.bytes <= BYTES_MAX);
        assert!(copies.find(&belongings(99, 0, 0).key).is_some());
        assert!(copies.find(&belongings(0, 0, 0).key).is_none());
    }

    #[test]
    fn what_is_on_its_way_is_given_to_nobody_else() {
        let mut copies = Copies::default();
        let packed = belongings(1, 4, 8);
        copies.pack(packed.clone());
        assert_eq!(copies.send_off().len(), 1);
        assert!(copies.send_off().is_empty());
        assert_eq!(copies.give(&packed.key), Given::OnItsWay);
        copies.arrived(&packed.key, false);
        assert_eq!(copies.give(&packed.key), Given::Record(packed.record.clone()));
        assert!(copies.is_empty_handed());
        // The answer may be lost: it can be asked for again.
        assert_eq!(copies.give(&packed.key), Given::Record(packed.record));
        assert_eq!(copies.give(&belongings(2, 0, 0).key), Given::Nothing);
    }

    #[test]
    fn what_comes_late_of_an_actor_that_is_over_is_refused_and_what_is_newer_takes_the_place_of_its_mark() {
        let mut copies = Copies::default();
        let stamp = |version| Stamp { life: 1, version };
        copies.keep(belongings(1, 3, 8)).expect("it is not over");
        let over = |version| Over { stamp: stamp(version), hand_overs: HandOvers::default() };
        copies.discard(&belongings(1, 0, 0).key, over(2));
        assert!(copies.contains(&belongings(1, 0, 0).key), "it has changed since");
        copies.discard(&belongings(1, 0, 0).key, over(5));
        for version in [1, 5] {
            assert_eq!(copies.keep(belongings(1, version, 8)), Err(stamp(5)));
        }
        assert_eq!((copies.find(&belongings(1, 0, 0).key), copies.bytes), (None, 0));
        copies.keep(belongings(1, 6, 8)).expect("it lives anew");
        assert_eq!(copies.over(&belongings(1, 0, 0).key), None);
    }

    #[test]
    fn a_hand_over_is_known_again_by_what_has_become_of_it() {
        let with = |version, hand_overs: &[u64]| {
            let mut belongings = belongings(1, version, 8);
            belongings.record.hand_overs = hand_overs.to_vec().into();
            belongings
        };
        let (mut copies, handed_over) = (Copies::default(), with(4, &[1, 2]));
        // An earlier copy of the same actor, and what is kept of the hand-over itself before its actor has started.
        for before in [with(3, &[1]), handed_over.clone()] {
            copies.keep(before).expect("it is not over");
            assert!(!copies.have_taken_in(&handed_over));
        }
        copies.keep(with(5, &[1, 2])).expect("it is not over");
        assert!(copies.have_taken_in(&handed_over));
        copies.discard(&handed_over.key, Over { stamp: Stamp { life: 1, version: 6 }, hand_overs: vec![1, 2].into() });
        assert!(copies.have_taken_in(&handed_over));
        // One that nobody has heard of, and one of a node that draws no number.
        for other in [with(4, &[1, 2, 3]), with(4, &[])] {
            assert!(!copies.have_taken_in(&other));
        }
    }

    #[test]
    fn records_of_one_actor_take_the_room_of_one() {
        let mut copies = Copies::default();
        for version in 1..10_000 {
            copies.keep(belongings(1, version, 8)).expect("it is not over");
        }
        assert_eq!(copies.bytes, 8 + OVERHEAD_BYTES);
        assert!(copies.order.len() < 100);
    }
}
