use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const MANY: u32 = 1_000_000;

fn ip(last: u8) -> Option<IpAddr> {
    Some(IpAddr::from([10, 0, 0, last]))
}

fn machine(untrusted: usize, rate: u32) -> (Admission, Instant) {
    let now = Instant::now();
    (Admission::new(Limits { untrusted, rate }, now), now)
}

fn admitted(decision: Decision) -> (Ticket, Option<Ticket>) {
    match decision {
        Decision::Admitted(ticket, evicted) => (ticket, evicted),
        other => panic!("expected to be admitted, got {other:?}"),
    }
}

#[test]
fn one_address_has_half_of_what_the_others_leave_free() {
    let (mut door, now) = machine(10, MANY);
    let own: Vec<_> = (0..5).map(|_| admitted(door.arrive(ip(1), now))).collect();
    assert!(own.iter().all(|(_, evicted)| evicted.is_none()));
    assert_eq!(admitted(door.arrive(ip(1), now)).1, Some(own[0].0), "its own oldest makes room");
    assert_eq!(admitted(door.arrive(ip(2), now)).1, None, "others still find a place");
    assert_eq!(door.untrusted(), 6);
}

#[test]
fn when_full_the_oldest_that_is_silent_is_closed() {
    let (mut door, now) = machine(4, MANY);
    let tickets: Vec<_> = (1..=4).map(|last| admitted(door.arrive(ip(last), now)).0).collect();
    door.proof_arrived(tickets[0]);
    assert_eq!(admitted(door.arrive(ip(5), now)).1, Some(tickets[1]));
    assert_eq!(door.untrusted(), 4);
}

#[test]
fn whoever_makes_progress_is_not_closed_for_a_newcomer() {
    let (mut door, now) = machine(8, MANY);
    // Behind one NAT: four is its share.
    let tickets: Vec<_> = (0..4).map(|_| admitted(door.arrive(ip(1), now)).0).collect();
    tickets.iter().for_each(|ticket| door.heard(*ticket, now));
    assert_eq!(door.arrive(ip(1), now), Decision::Full, "the oldest is the nearest to its end");
    door.release(tickets[2]);
    assert_eq!(admitted(door.arrive(ip(1), now)).1, None, "one has come in");
    assert_eq!(admitted(door.arrive(ip(2), now)).1, None, "others find a place");
}

#[test]
fn whoever_stops_half_way_is_closed_for_a_newcomer() {
    let (mut door, now) = machine(2, MANY);
    let tickets: Vec<_> = (1..=2).map(|last| admitted(door.arrive(ip(last), now)).0).collect();
    tickets.iter().for_each(|ticket| door.heard(*ticket, now));
    let later = now + STEP_MAX / 2;
    door.heard(tickets[0], later);
    assert_eq!(door.arrive(ip(3), later), Decision::Full);
    let late = now + STEP_MAX;
    assert_eq!(admitted(door.arrive(ip(3), late)).1, Some(tickets[1]), "the other one has spoken since");
}

#[test]
fn whoever_has_sent_a_proof_keeps_its_place() {
    let (mut door, now) = machine(2, MANY);
    let tickets: Vec<_> = (1..=2).map(|last| admitted(door.arrive(ip(last), now)).0).collect();
    tickets.iter().for_each(|ticket| door.proof_arrived(*ticket));
    assert_eq!(door.arrive(ip(3), now), Decision::Full);
    door.proof_failed(tickets[1]);
    assert_eq!(admitted(door.arrive(ip(3), now)).1, Some(tickets[1]), "a wrong proof gives it up");
}

#[test]
fn burst_of_a_second_passes_and_then_the_rate_holds() {
    let (mut door, now) = machine(1000, 10);
    for _ in 0..10 {
        let (ticket, _) = admitted(door.arrive(ip(1), now));
        door.release(ticket);
    }
    let Decision::Wait(until) = door.arrive(ip(1), now) else { panic!("the bucket is empty") };
    assert_eq!(until, now + Duration::from_millis(100));
    admitted(door.arrive(ip(1), until));
    assert!(matches!(door.arrive(ip(1), until), Decision::Wait(_)));
}

#[test]
fn whoever_is_refused_counts_as_much_as_whoever_comes_in() {
    let (mut door, now) = machine(2, 10);
    let tickets: Vec<_> = (1..=2).map(|last| admitted(door.arrive(ip(last), now)).0).collect();
    tickets.iter().for_each(|ticket| door.proof_arrived(*ticket));
    for _ in 0..8 {
        assert_eq!(door.arrive(ip(3), now), Decision::Full);
    }
    assert!(matches!(door.arrive(ip(3), now), Decision::Wait(_)), "a refused flood waits as well");
}

#[test]
fn addresses_of_one_ipv6_host_are_one() {
    let (mut door, now) = machine(4, MANY);
    let addr = |last: u16| Some(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last)));
    let first = admitted(door.arrive(addr(1), now)).0;
    admitted(door.arrive(addr(2), now));
    assert_eq!(admitted(door.arrive(addr(3), now)).1, Some(first));
}

proptest! {
    #[test]
    fn bounds_hold_under_any_sequence(
        size in 2usize..8,
        steps in prop::collection::vec((0u8..7, 0u8..4, any::<prop::sample::Index>()), 1..200),
    ) {
        let (mut door, mut now) = machine(size, MANY);
        let mut open = BTreeMap::new();
        let mut proving = BTreeSet::new();
        let mut heard = BTreeMap::new();
        for (step, last, pick) in steps {
            let known: Vec<Ticket> = open.keys().copied().collect();
            let picked = (!known.is_empty()).then(|| known[pick.index(known.len())]);
            match (step, picked) {
                (0, Some(ticket)) => {
                    door.release(ticket);
                    open.remove(&ticket);
                    proving.remove(&ticket);
                }
                (1, Some(ticket)) => {
                    door.proof_arrived(ticket);
                    proving.insert(ticket);
                }
                (2, Some(ticket)) => {
                    door.proof_failed(ticket);
                    proving.remove(&ticket);
                    heard.remove(&ticket);
                }
                (3, Some(ticket)) => {
                    door.heard(ticket, now);
                    proving.remove(&ticket);
                    heard.insert(ticket, now);
                }
                (4, _) => now += STEP_MAX / 3,
                _ => match door.arrive(ip(last), now) {
                    Decision::Admitted(ticket, evicted) => {
                        if let Some(evicted) = evicted {
                            prop_assert!(open.remove(&evicted).is_some());
                            prop_assert!(!proving.contains(&evicted), "a proof was cut off");
                            let spoke = heard.get(&evicted);
                            prop_assert!(spoke.is_none_or(|at| now - *at >= STEP_MAX), "it made progress");
                        }
                        open.insert(ticket, last);
                    }
                    Decision::Full => {
                        let idle = |ticket: &Ticket| {
                            !proving.contains(ticket) && heard.get(ticket).is_none_or(|at| now - *at >= STEP_MAX)
                        };
                        let own = open.values().filter(|of| **of == last).count();
                        let has_its_share = own >= ((size + own - open.len()) / 2).max(1);
                        prop_assert!(has_its_share || open.len() == size);
                        prop_assert!(!open.iter().any(|(ticket, of)| idle(ticket) && (!has_its_share || *of == last)), "there was room");
                    }
                    Decision::Wait(_) => prop_assert!(false, "the bucket is large"),
                },
            }
            prop_assert!(door.untrusted() <= size);
            prop_assert_eq!(door.untrusted(), open.len());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn gate_closes_the_oldest_and_takes_places_back() {
    let gate = Gate::new(Limits { untrusted: 2, rate: 100 });
    let first = gate.admit(ip(1)).await.expect("admitted");
    let second = gate.admit(ip(2)).await.expect("admitted");
    let third = gate.admit(ip(3)).await.expect("admitted");
    first.evicted().await;
    drop(first);
    assert_eq!(gate.untrusted(), 2);
    drop((second, third));
    assert_eq!(gate.untrusted(), 0);
}

#[tokio::test(start_paused = true)]
async fn gate_makes_a_flood_wait() {
    let gate = Gate::new(Limits { untrusted: 1000, rate: 10 });
    let start = tokio::time::Instant::now();
    for _ in 0..30 {
        drop(gate.admit(ip(1)).await.expect("admitted"));
    }
    assert_eq!(start.elapsed().as_secs(), 2, "of the virtual clock");
}
