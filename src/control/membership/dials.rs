//! Whom to dial, and when.
//!
//! There are two reasons: an address of the configuration or of an operator, behind which nobody knows who is, and a member that is known without a session. Of a known
//! pair only the one with the smaller name dials; the other waits for a while and then tries as well, since the way may be open in its direction only. Pauses
//! double up to a cap, and half of each is random.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::{NodeId, NodeUri};

/// Names an attempt.
pub(crate) type DialNumber = u64;

/// Pause after the first failure.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// Longest pause: after a split has healed it is found out within this time.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Pause after an address that led to ourselves, while nobody else is known: its name may stand for others as well.
const PAUSE_AT_HOME: Duration = Duration::from_secs(30);
/// How long the one with the larger name waits to be dialled.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses that an operator gave; more replace those that failed longest.
const SEEDS_MAX: usize = 256;

/// Who is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// Whoever is there.
    Seed(usize),
    /// One node.
    Member(NodeId),
}

#[derive(Debug)]
struct Plan {
    next: Instant,
    failures: u32,
    under_way: Option<DialNumber>,
}

impl Plan {
    fn at(next: Instant) -> Self {
        Self { next, failures: 0, under_way: None }
    }
}

/// The plan of all dials.
#[derive(Debug)]
pub(crate) struct Dials {
    me: NodeId,
    seeds: Vec<(NodeUri, Option<NodeId>)>,
    plans: BTreeMap<Target, Plan>,
    next_number: DialNumber,
    random: u64,
}

impl Dials {
    pub(crate) fn new(me: NodeId, seeds: Vec<NodeUri>, random: u64, now: Instant) -> Self {
        let mut dials = Self { me, seeds: Vec::new(), plans: BTreeMap::new(), next_number: 1, random };
        for seed in seeds {
            dials.add_seed(seed, None, now);
        }
        dials
    }

    /// An address, and who was found there, if anybody looked.
    pub(crate) fn add_seed(&mut self, uri: NodeUri, found: Option<NodeId>, now: Instant) {
        if let Some(known) = self.seeds.iter_mut().find(|(known, _)| *known == uri) {
            known.1 = found;
        } else if self.seeds.len() < SEEDS_MAX {
            self.plans.insert(Target::Seed(self.seeds.len()), Plan::at(now));
            self.seeds.push((uri, found));
        }
    }

    /// The address of a seed.
    pub(crate) fn seed(&self, index: usize) -> Option<&NodeUri> {
        self.seeds.get(index).map(|(uri, _)| uri)
    }

    /// Plans to dial a member that has no session, if nothing is planned yet.
    pub(crate) fn want(&mut self, id: &NodeId, now: Instant) {
        let first = if self.me < *id { now } else { now + PATIENCE };
        self.plans.entry(Target::Member(id.clone())).or_insert_with(|| Plan::at(first));
    }

    /// Forgets the plans for members that are not wanted.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&NodeId) -> bool) {
        self.plans.retain(|target, plan| match target {
            Target::Member(id) => plan.under_way.is_some() || wanted(id),
            Target::Seed(_) => true,
        });
    }

    /// A dial led to a node, whoever that is.
    pub(crate) fn succeeded(&mut self, number: DialNumber, id: &NodeId, now: Instant) {
        let Some(target) = self.target(number) else { return };
        match target {
            Target::Seed(index) => {
                self.seeds[index].1 = Some(id.clone());
                // Whoever answers there may refuse us: until the session is good, each attempt counts.
                self.postpone(&Target::Seed(index), Some(now));
                if *id == self.me {
                    let pause = PAUSE_AT_HOME.mul_f64(0.5 + self.fraction() / 2.0);
                    if let Some(plan) = self.plans.get_mut(&Target::Seed(index)) {
                        (plan.failures, plan.next) = (0, now + pause);
                    }
                }
            }
            // The plan stays until the session is good: a node that accepts and closes is not dialled in a tight loop.
            member @ Target::Member(_) => self.postpone(&member, None),
        }
    }

    /// A dial led nowhere.
    pub(crate) fn failed(&mut self, number: DialNumber, now: Instant) {
        if let Some(target) = self.target(number) {
            self.postpone(&target, Some(now));
        }
    }

    /// The session to a member has ended, or was refused: dial again, with the pause that is due.
    pub(crate) fn lost(&mut self, id: &NodeId, now: Instant) {
        self.want(id, now);
        self.postpone(&Target::Member(id.clone()), Some(now));
    }

    /// The session to a member is good.
    pub(crate) fn established(&mut self, id: &NodeId) {
        self.plans.remove(&Target::Member(id.clone()));
        for (index, (_, found)) in self.seeds.iter().enumerate() {
            if found.as_ref() == Some(id)
                && let Some(plan) = self.plans.get_mut(&Target::Seed(index))
            {
                plan.failures = 0;
            }
        }
    }

    fn postpone(&mut self, target: &Target, now: Option<Instant>) {
        let random = self.fraction();
        let me = &self.me;
        if let Some(plan) = self.plans.get_mut(target) {
            plan.under_way = None;
            if let Some(now) = now {
                let pause = PAUSE_FIRST.saturating_mul(1 << plan.failures.min(8)).min(PAUSE_MAX);
                let patience = match target {
                    Target::Member(id) if me > id && plan.failures == 0 => PATIENCE,
                    _ => Duration::ZERO,
                };
                plan.failures += 1;
                plan.next = now + patience + pause.mul_f64(0.5 + random / 2.0);
            }
        }
    }

    fn target(&self, number: DialNumber) -> Option<Target> {
        self.plans.iter().find(|(_, plan)| plan.under_way == Some(number)).map(|(target, _)| target.clone())
    }

    /// Whether the seed need not be dialled: somebody was found there, who is planned for by name, or it was we.
    fn is_settled(&self, index: usize, is_alone: bool) -> bool {
        self.seeds.get(index).is_none_or(|(_, found)| found.is_some() && !is_alone)
    }

    /// What is due, each with the number of its attempt. Alone means that there is no session at all: then also addresses are tried behind which somebody was
    /// found once, also we ourselves, as a name may stand for somebody else by now.
    pub(crate) fn due(&mut self, is_alone: bool, now: Instant) -> Vec<(DialNumber, Target)> {
        let ready = |(target, plan): (&Target, &Plan)| {
            let settled = matches!(target, Target::Seed(index) if self.is_settled(*index, is_alone));
            (!settled && plan.under_way.is_none() && plan.next <= now).then(|| target.clone())
        };
        let ready: Vec<Target> = self.plans.iter().filter_map(ready).collect();
        let mut due = Vec::new();
        for target in ready {
            let number = self.next_number;
            self.next_number += 1;
            if let Some(plan) = self.plans.get_mut(&target) {
                plan.under_way = Some(number);
                due.push((number, target));
            }
        }
        due
    }

    /// When the next one is due.
    pub(crate) fn next_deadline(&self, is_alone: bool) -> Option<Instant> {
        let waiting = self.plans.iter().filter(|(target, plan)| {
            plan.under_way.is_none() && !matches!(target, Target::Seed(index) if self.is_settled(*index, is_alone))
        });
        waiting.map(|(_, plan)| plan.next).min()
    }

    /// A number in [0, 1): SplitMix64, which needs no more than to differ between nodes.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    /// A node with one seed, and what it dials within so many seconds if each attempt ends as told.
    fn attempts(seconds: u64, mut ends: impl FnMut(&mut Dials, DialNumber, Instant)) -> usize {
        let start = Instant::now();
        let seed = "nkcluster://c1;transport=memory".parse().expect("valid");
        let mut dials = Dials::new(id("c2"), vec![seed], 7, start);
        let (mut now, mut count) = (start, 0);
        while let Some(next) = dials.next_deadline(true) {
            now = now.max(next);
            if now >= start + Duration::from_secs(seconds) {
                break;
            }
            for (number, target) in dials.due(true, now) {
                assert!(matches!(target, Target::Seed(0)) || target == Target::Member(id("c1")), "{target:?}");
                count += 1;
                ends(&mut dials, number, now);
            }
            assert!(count < 10_000, "dialled in a tight loop");
        }
        count
    }

    #[test]
    fn a_seed_that_answers_and_refuses_is_dialled_less_and_less_often() {
        let silent = attempts(60, |dials, number, now| dials.failed(number, now));
        let refused = attempts(60, |dials, number, now| {
            dials.succeeded(number, &id("c1"), now);
            // What the machine does with a session that is refused.
            dials.lost(&id("c1"), now);
        });
        assert!((3..=20).contains(&silent), "{silent}");
        // By its address, and by its name.
        assert!(refused <= 2 * silent + 2, "{refused} attempts at one that refuses, {silent} at one that is silent");
    }

    #[test]
    fn a_seed_that_led_to_ourselves_is_tried_now_and_then_while_nobody_else_is_known() {
        let home = attempts(600, |dials, number, now| dials.succeeded(number, &id("c2"), now));
        assert!((20..=41).contains(&home), "{home}");
        let now = Instant::now();
        let mut dials = Dials::new(id("c2"), vec!["nkcluster://c1;transport=memory".parse().expect("valid")], 7, now);
        let (number, _) = dials.due(true, now)[0];
        dials.succeeded(number, &id("c2"), now);
        assert_eq!(dials.next_deadline(false), None, "there is somebody else");
    }

    #[test]
    fn a_seed_that_was_good_is_dialled_soon_when_it_is_lost() {
        let now = Instant::now();
        let seed = "nkcluster://c1;transport=memory".parse().expect("valid");
        let mut dials = Dials::new(id("c0"), vec![seed], 7, now);
        for _ in 0..8 {
            let at = dials.next_deadline(true).expect("planned");
            for (number, _) in dials.due(true, at) {
                dials.failed(number, at);
            }
        }
        let at = dials.next_deadline(true).expect("planned");
        let (number, _) = dials.due(true, at)[0];
        dials.succeeded(number, &id("c1"), at);
        dials.established(&id("c1"));
        dials.lost(&id("c1"), at);
        assert!(dials.next_deadline(true).expect("planned") <= at + PAUSE_FIRST, "its failures are forgotten");
    }
}
