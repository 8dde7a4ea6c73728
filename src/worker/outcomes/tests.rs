use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::ErrorCode;

const TIMEOUT: Duration = Duration::from_secs(30);

fn call(edge: u8, number: u64) -> CallIdentity {
    CallIdentity { edge: Incarnation::from_bytes([edge; 16]), number }
}

fn reply(bytes: usize) -> Outcome {
    Ok(Bytes::from(vec![7; bytes]))
}

/// A memory with room for this many outcomes of 100 bytes.
fn room_for(outcomes: usize) -> Outcomes {
    Outcomes::new(outcomes * (OUTCOME_BYTES + 100))
}

/// Acknowledges one call.
fn settle(outcomes: &mut Outcomes, call: CallIdentity) {
    outcomes.settle(call.edge, 0, &[(call.number, call.number)]);
}

/// Begins and finishes calls of edge 1.
fn finished(outcomes: &mut Outcomes, numbers: impl IntoIterator<Item = u64>, now: Instant) {
    for number in numbers {
        assert_eq!(outcomes.begin(call(1, number), false, now + TIMEOUT, now), Begin::Execute);
        outcomes.finish(call(1, number), reply(100), now);
    }
}

#[test]
fn a_retry_gets_the_same_outcome() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    let begin = |outcomes: &mut Outcomes, retry| outcomes.begin(call(1, 5), retry, now + TIMEOUT, now);
    assert_eq!(begin(&mut outcomes, false), Begin::Execute);
    assert_eq!(begin(&mut outcomes, true), Begin::Running);
    assert_eq!(outcomes.running(), 1);
    let error = Err(Error::new(ErrorCode::ClassError, "no"));
    outcomes.finish(call(1, 5), error.clone(), now);
    assert_eq!(begin(&mut outcomes, true), Begin::Done(error));
    assert_eq!(outcomes.running(), 0);
}

#[test]
fn a_retry_of_an_unseen_call_is_executed() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    finished(&mut outcomes, [6, 7], now);
    settle(&mut outcomes, call(1, 7));
    assert_eq!(outcomes.begin(call(1, 5), true, now + TIMEOUT, now), Begin::Execute);
    assert_eq!(outcomes.begin(call(2, 7), true, now + TIMEOUT, now), Begin::Execute);
}

#[test]
fn a_first_attempt_with_a_known_number_is_a_retry() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    outcomes.begin(call(1, 5), false, now + TIMEOUT, now);
    assert_eq!(outcomes.begin(call(1, 5), false, now + TIMEOUT, now), Begin::Running);
    outcomes.finish(call(1, 5), reply(1), now);
    assert_eq!(outcomes.begin(call(1, 5), false, now + TIMEOUT, now), Begin::Done(reply(1)));
    settle(&mut outcomes, call(1, 5));
    assert_eq!(outcomes.begin(call(1, 5), false, now + TIMEOUT, now), Begin::Unknown, "a late copy");
}

#[test]
fn an_acknowledged_outcome_frees_its_bytes() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    finished(&mut outcomes, [1, 2], now);
    settle(&mut outcomes, call(1, 1));
    settle(&mut outcomes, call(1, 1));
    settle(&mut outcomes, call(9, 9));
    assert_eq!(outcomes.bytes(), OUTCOME_BYTES + 100);
    settle(&mut outcomes, call(1, 2));
    assert_eq!((outcomes.bytes(), outcomes.next_deadline()), (0, None));
}

#[test]
fn everything_below_a_mark_is_acknowledged_at_once() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    finished(&mut outcomes, [1, 2, 4, 5, 7, 8], now);
    outcomes.begin(call(1, 3), false, now + TIMEOUT, now);
    outcomes.settle(call(1, 0).edge, 5, &[(7, 7), (9, 8), (20, u64::MAX)]);
    assert_eq!(outcomes.bytes(), 2 * (OUTCOME_BYTES + 100), "of 5 and 8");
    for late_copy in [1, 2, 4, 7] {
        assert_eq!(outcomes.begin(call(1, late_copy), false, now + TIMEOUT, now), Begin::Unknown);
    }
    for kept in [5, 8] {
        assert_eq!(outcomes.begin(call(1, kept), true, now + TIMEOUT, now), Begin::Done(reply(100)));
    }
    outcomes.finish(call(1, 3), reply(100), now);
    assert_eq!(outcomes.begin(call(1, 3), true, now + TIMEOUT, now), Begin::Unknown, "nobody waited for it");
    assert_eq!(outcomes.begin(call(1, 0), false, now + TIMEOUT, now), Begin::Unknown, "even if it never came");
    assert_eq!(outcomes.begin(call(1, 30), false, now + TIMEOUT, now), Begin::Execute, "of what has not come nothing is noted");
    assert_eq!(outcomes.edges[&call(1, 0).edge].numbers.keys().copied().collect::<Vec<_>>(), [7], "the mark stands for the others");
}

#[test]
fn an_older_acknowledgement_changes_nothing() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    finished(&mut outcomes, [1], now);
    outcomes.settle(call(1, 0).edge, 3, &[]);
    outcomes.settle(call(1, 0).edge, 2, &[]);
    assert_eq!(outcomes.begin(call(1, 2), true, now + TIMEOUT, now), Begin::Unknown);
    assert_eq!(outcomes.begin(call(1, 3), true, now + TIMEOUT, now), Begin::Execute);
}

#[test]
fn clients_that_say_goodbye_spoil_nothing_however_many_they_are() {
    let now = Instant::now();
    let mut outcomes = Outcomes::new(usize::MAX);
    outcomes.edges_max = 16;
    let client = |number: u64| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        CallIdentity { edge: Incarnation::from_bytes(bytes), number: 1 }
    };
    let patient = client(0);
    outcomes.begin(patient, false, now + TIMEOUT, now);
    outcomes.finish(patient, reply(1), now);
    for number in 1..500 {
        assert_eq!(outcomes.begin(client(number), false, now + TIMEOUT, now), Begin::Execute);
        outcomes.finish(client(number), reply(1), now);
        outcomes.settle(client(number).edge, 2, &[]);
    }
    assert_eq!(outcomes.edges(), 16);
    assert_eq!(outcomes.begin(patient, true, now + TIMEOUT, now), Begin::Done(reply(1)));
    let lost = client(u64::MAX);
    assert_eq!(outcomes.begin(lost, true, now + TIMEOUT, now), Begin::Execute, "a retry whose first attempt never came");
}

#[test]
fn an_outcome_that_expired_without_an_acknowledgement_is_never_repeated() {
    let now = Instant::now();
    let mut outcomes = room_for(NUMBERS_MAX + 10);
    finished(&mut outcomes, 1..=NUMBERS_MAX as u64 + 5, now);
    let end = now + TIMEOUT + REMEMBER_AFTER_DEADLINE;
    outcomes.expire(end);
    assert_eq!(outcomes.bytes(), 0);
    assert_eq!(outcomes.begin(call(1, 1), true, end + TIMEOUT, end), Begin::Unknown, "its number made room for others");
}

#[test]
fn a_running_call_cannot_be_acknowledged_away() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    outcomes.begin(call(1, 5), false, now + TIMEOUT, now);
    settle(&mut outcomes, call(1, 5));
    assert_eq!(outcomes.begin(call(1, 5), true, now + TIMEOUT, now), Begin::Running);
}

#[test]
fn an_outcome_is_remembered_for_a_minute_after_the_deadline() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    finished(&mut outcomes, [1], now);
    let end = now + TIMEOUT + REMEMBER_AFTER_DEADLINE;
    assert_eq!(outcomes.next_deadline(), Some(end));
    outcomes.expire(end - Duration::from_nanos(1));
    assert_eq!(outcomes.begin(call(1, 1), true, end, end - Duration::from_nanos(1)), Begin::Done(reply(100)));
    outcomes.expire(end);
    assert_eq!((outcomes.bytes(), outcomes.next_deadline()), (0, None));
    assert_eq!(outcomes.begin(call(1, 1), true, end + TIMEOUT, end), Begin::Unknown);
}

#[test]
fn a_call_that_ends_long_after_its_deadline_is_not_remembered() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    outcomes.begin(call(1, 1), false, now, now);
    let late = now + REMEMBER_AFTER_DEADLINE;
    outcomes.expire(late);
    assert_eq!(outcomes.begin(call(1, 1), true, late, late), Begin::Running, "it runs as long as it runs");
    outcomes.finish(call(1, 1), reply(1), late);
    assert_eq!((outcomes.bytes(), outcomes.next_deadline(), outcomes.running()), (0, None, 0));
    assert_eq!(outcomes.begin(call(1, 1), true, late, late), Begin::Unknown);
}

#[test]
fn the_oldest_outcomes_are_evicted_and_never_repeated() {
    let now = Instant::now();
    let mut outcomes = room_for(3);
    finished(&mut outcomes, 1..=5, now);
    let begin = |outcomes: &mut Outcomes, number| outcomes.begin(call(1, number), true, now + TIMEOUT, now);
    for evicted in [1, 2] {
        assert_eq!(begin(&mut outcomes, evicted), Begin::Unknown);
    }
    for kept in [3, 4, 5] {
        assert_eq!(begin(&mut outcomes, kept), Begin::Done(reply(100)));
    }
}

#[test]
fn an_outcome_larger_than_the_memory_evicts_only_itself() {
    let now = Instant::now();
    let mut outcomes = room_for(3);
    finished(&mut outcomes, [1], now);
    outcomes.begin(call(1, 2), false, now + TIMEOUT, now);
    outcomes.finish(call(1, 2), reply(1_000_000), now);
    assert_eq!(outcomes.begin(call(1, 2), true, now + TIMEOUT, now), Begin::Unknown);
    assert_eq!(outcomes.begin(call(1, 1), true, now + TIMEOUT, now), Begin::Done(reply(100)));
}

#[test]
fn evicted_numbers_leave_a_floor_for_retries_only() {
    let now = Instant::now();
    let mut outcomes = room_for(0);
    let last = NUMBERS_MAX as u64 + 10;
    finished(&mut outcomes, (1..=last).map(|number| 2 * number), now);
    assert_eq!(outcomes.edges[&call(1, 0).edge].numbers.len(), NUMBERS_MAX);
    for number in 1..=last {
        assert_eq!(outcomes.begin(call(1, 2 * number), true, now + TIMEOUT, now), Begin::Unknown);
    }
    assert_eq!(outcomes.begin(call(1, 3), false, now + TIMEOUT, now), Begin::Execute, "below the floor, first attempt");
    assert_eq!(outcomes.begin(call(1, 5), true, now + TIMEOUT, now), Begin::Unknown, "below the floor, retry");
    assert_eq!(outcomes.begin(call(1, 23), true, now + TIMEOUT, now), Begin::Execute, "above the floor");
}

#[test]
fn acknowledged_numbers_leave_no_floor() {
    let now = Instant::now();
    let mut outcomes = room_for(3);
    for number in 10..NUMBERS_MAX as u64 + 100 {
        finished(&mut outcomes, [number], now);
        settle(&mut outcomes, call(1, number));
    }
    assert_eq!(outcomes.begin(call(1, 5), true, now + TIMEOUT, now), Begin::Execute);
}

#[test]
fn an_abandoned_call_never_came() {
    let now = Instant::now();
    let mut outcomes = room_for(3);
    outcomes.begin(call(1, 1), false, now + TIMEOUT, now);
    outcomes.abandon(call(1, 1));
    assert_eq!(outcomes.running(), 0);
    assert_eq!(outcomes.begin(call(1, 1), true, now + TIMEOUT, now), Begin::Execute);
    outcomes.finish(call(1, 1), reply(1), now);
    outcomes.abandon(call(1, 1));
    assert_eq!(outcomes.begin(call(1, 1), true, now + TIMEOUT, now), Begin::Done(reply(1)));
}

#[test]
fn edges_are_bounded_and_the_quietest_makes_room() {
    let now = Instant::now();
    let mut outcomes = room_for(1000);
    outcomes.edges_max = 2;
    let begin = |outcomes: &mut Outcomes, edge, number, retry, at| outcomes.begin(call(edge, number), retry, at + TIMEOUT, at);
    finished(&mut outcomes, [1], now);
    begin(&mut outcomes, 2, 1, false, now);
    assert_eq!(begin(&mut outcomes, 1, 1, true, now), Begin::Done(reply(100)));
    assert_eq!(begin(&mut outcomes, 3, 1, false, now), Begin::Execute, "edge 1 goes: it has no running calls");
    assert_eq!((outcomes.edges(), outcomes.bytes(), outcomes.next_deadline()), (2, 0, None));
    assert_eq!(begin(&mut outcomes, 2, 1, true, now), Begin::Running);

    assert_eq!(begin(&mut outcomes, 1, 1, true, now), Begin::Unknown, "it may have been done");
    assert_eq!(begin(&mut outcomes, 1, 2, false, now), Begin::Execute, "a first attempt is new");
    assert_eq!(begin(&mut outcomes, 1, 1, true, now), Begin::Unknown, "even after the edge came back");
    let later = now + TIMEOUT + REMEMBER_AFTER_DEADLINE;
    assert_eq!(begin(&mut outcomes, 1, 3, true, later), Begin::Execute, "nothing of it could be remembered any more");
}

#[test]
fn of_two_idle_edges_the_one_used_last_stays() {
    let now = Instant::now();
    for (used, stays) in [(1, 1), (2, 2)] {
        let mut outcomes = room_for(10);
        outcomes.edges_max = 2;
        for edge in [1, 2, used] {
            outcomes.begin(call(edge, u64::from(edge)), false, now + TIMEOUT, now);
            outcomes.finish(call(edge, u64::from(edge)), reply(1), now);
        }
        outcomes.begin(call(3, 1), false, now + TIMEOUT, now);
        assert_eq!(outcomes.begin(call(stays, u64::from(stays)), true, now + TIMEOUT, now), Begin::Done(reply(1)));
    }
}

#[test]
fn a_call_of_a_forgotten_edge_may_still_end() {
    let now = Instant::now();
    let mut outcomes = room_for(10);
    outcomes.edges_max = 1;
    outcomes.begin(call(1, 1), false, now + TIMEOUT, now);
    outcomes.begin(call(2, 1), false, now + TIMEOUT, now);
    outcomes.finish(call(1, 1), reply(1), now);
    outcomes.finish(call(2, 1), reply(2), now);
    assert_eq!(outcomes.begin(call(1, 1), true, now + TIMEOUT, now), Begin::Unknown);
    assert_eq!(outcomes.begin(call(2, 1), true, now + TIMEOUT, now), Begin::Done(reply(2)));
}

#[test]
fn a_deadline_at_the_end_of_time_is_no_overflow() {
    let now = Instant::now();
    let mut far = now;
    for exponent in (0..64).rev() {
        far = far.checked_add(Duration::from_secs(1 << exponent)).unwrap_or(far);
    }
    let mut outcomes = room_for(10);
    assert_eq!(outcomes.begin(call(1, 1), false, far, now), Begin::Execute);
    outcomes.finish(call(1, 1), reply(1), now);
    assert_eq!(outcomes.begin(call(1, 1), true, far, now), Begin::Done(reply(1)));
}

#[derive(Clone, Debug)]
enum Op {
    /// The edge sends a call for the first time; `lost` ones never arrive.
    First {
        edge: u8,
        timeout_s: u64,
        lost: bool,
    },
    /// The edge sends one of its calls again.
    Retry {
        edge: u8,
        pick: prop::sample::Index,
    },
    Finish {
        edge: u8,
        pick: prop::sample::Index,
        bytes: usize,
    },
    Ack {
        edge: u8,
        pick: prop::sample::Index,
    },
    Wait {
        seconds: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let edge = || 0u8..4;
    let pick = any::<prop::sample::Index>;
    let op = prop_oneof![
        5 => (edge(), 1u64..200, prop::bool::weighted(0.2)).prop_map(|(edge, timeout_s, lost)| Op::First { edge, timeout_s, lost }),
        6 => (edge(), pick()).prop_map(|(edge, pick)| Op::Retry { edge, pick }),
        5 => (edge(), pick(), 0usize..1500).prop_map(|(edge, pick, bytes)| Op::Finish { edge, pick, bytes }),
        2 => (edge(), pick()).prop_map(|(edge, pick)| Op::Ack { edge, pick }),
        1 => (0u64..100).prop_map(|seconds| Op::Wait { seconds }),
    ];
    prop::collection::vec(op, 1..200)
}

/// What the edge knows of one call.
struct Sent {
    deadline: Instant,
    acked: bool,
    executed: bool,
    outcome: Option<Outcome>,
}

proptest! {
    /// An honest edge retries only before the deadline and before its acknowledgement.
    #[test]
    fn no_call_is_executed_twice_and_no_outcome_changes(ops in ops()) {
        const BYTES_MAX: usize = 4 * (OUTCOME_BYTES + 1000);
        let mut now = Instant::now();
        let mut outcomes = Outcomes::new(BYTES_MAX);
        outcomes.edges_max = 3;
        outcomes.numbers_max = 3;
        let mut calls: HashMap<(u8, u64), Sent> = HashMap::new();
        let mut counts = [0u64; 4];
        for op in ops {
            match op {
                Op::Wait { seconds } => now += Duration::from_secs(seconds),
                Op::First { edge, timeout_s, lost } => {
                    let number = counts[usize::from(edge)];
                    counts[usize::from(edge)] += 1;
                    let deadline = now + Duration::from_secs(timeout_s);
                    if !lost {
                        let begin = outcomes.begin(call(edge, number), false, deadline, now);
                        prop_assert_eq!(begin, Begin::Execute, "a first attempt always executes");
                    }
                    calls.insert((edge, number), Sent { deadline, acked: false, executed: !lost, outcome: None });
                }
                Op::Retry { edge, pick } if counts[usize::from(edge)] > 0 => {
                    let number = pick.index(counts[usize::from(edge)] as usize) as u64;
                    let Some(sent) = calls.get_mut(&(edge, number)) else { continue };
                    if sent.acked || sent.deadline <= now {
                        continue;
                    }
                    match outcomes.begin(call(edge, number), true, sent.deadline, now) {
                        Begin::Execute => {
                            prop_assert!(!sent.executed, "call {} of edge {} is executed twice", number, edge);
                            sent.executed = true;
                        }
                        Begin::Running => prop_assert!(sent.executed && sent.outcome.is_none()),
                        Begin::Done(outcome) => prop_assert_eq!(Some(outcome), sent.outcome.clone()),
                        Begin::Unknown => {}
                    }
                }
                Op::Finish { edge, pick, bytes } if counts[usize::from(edge)] > 0 => {
                    let number = pick.index(counts[usize::from(edge)] as usize) as u64;
                    let Some(sent) = calls.get_mut(&(edge, number)) else { continue };
                    if sent.executed && sent.outcome.is_none() {
                        sent.outcome = Some(reply(bytes));
                        outcomes.finish(call(edge, number), reply(bytes), now);
                    }
                }
                Op::Ack { edge, pick } if counts[usize::from(edge)] > 0 => {
                    let number = pick.index(counts[usize::from(edge)] as usize) as u64;
                    let Some(sent) = calls.get_mut(&(edge, number)) else { continue };
                    if sent.outcome.is_some() {
                        sent.acked = true;
                        settle(&mut outcomes, call(edge, number));
                    }
                }
                Op::Retry { .. } | Op::Finish { .. } | Op::Ack { .. } => {}
            }
            prop_assert!(outcomes.bytes() <= BYTES_MAX);
            prop_assert!(outcomes.edges() <= 3);
            let mut bytes = 0;
            for (edge, memory) in &outcomes.edges {
                prop_assert!(memory.numbers.len() <= 3);
                let mut running = 0;
                for (number, call) in &memory.calls {
                    match call {
                        Call::Running { .. } => running += 1,
                        Call::Done { outcome, order, forget_at } => {
                            let identity = CallIdentity { edge: *edge, number: *number };
                            bytes += outcome_bytes(outcome);
                            prop_assert_eq!(outcomes.finished.get(order), Some(&identity));
                            prop_assert!(outcomes.expiry.contains(&(*forget_at, identity)));
                        }
                    }
                }
                prop_assert_eq!(running, memory.running);
            }
            prop_assert_eq!(bytes, outcomes.bytes());
            prop_assert_eq!(outcomes.finished.len(), outcomes.expiry.len());
        }
    }
}
