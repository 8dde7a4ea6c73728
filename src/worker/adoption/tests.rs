use proptest::prelude::*;

use super::*;

const PING_TIME: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(10);
const ME: Incarnation = Incarnation::from_bytes([1; 16]);

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid name")
}

fn ticket(number: u8) -> Ticket {
    Ticket::from_bytes([number; 16])
}

fn rank(view: u32, hash: u64) -> Rank {
    Rank { view, hash }
}

/// A request of incarnation 1 of `owner` on `channel`, which has seen `term`.
fn request(owner: &str, channel: u64, term: u64) -> AdoptRequest {
    AdoptRequest {
        channel: ChannelKey(channel),
        worker_incarnation: ME,
        seen_term: term,
        owner: node(owner),
        owner_incarnation: Incarnation::from_bytes([10; 16]),
        rank: rank(2, 50),
        ticket: None,
    }
}

fn refused(term: u64, holder: Option<&str>, reason: RefusedReason) -> AdoptAnswer {
    AdoptAnswer::Refused { term, holder: holder.map(node), reason }
}

fn granted(term: u64, number: u8, previous: Option<u64>) -> AdoptAnswer {
    AdoptAnswer::Granted { term, ticket: ticket(number), previous: previous.map(ChannelKey) }
}

fn fenced(term: u64, holder: Option<&str>) -> Standing {
    Standing::Fenced { term, holder: holder.map(node) }
}

/// `c1` holds the worker over channel 1 with rank (2, 50), term 1 and ticket 1.
fn held(now: Instant) -> Adoption {
    let mut adoption = Adoption::new(ME, PING_TIME);
    assert_eq!(adoption.adopt(request("c1", 1, 0), ticket(1), now), granted(1, 1, None));
    adoption
}

#[test]
fn nobody_is_current_before_the_first_adoption() {
    let adoption = Adoption::new(ME, PING_TIME);
    assert_eq!((adoption.term(), adoption.holder(), adoption.next_deadline()), (0, None, None));
    assert_eq!(adoption.check(ChannelKey(1)), fenced(0, None));
    assert!(adoption.silent(Instant::now()));
}

#[test]
fn first_adoption_is_granted_and_current() {
    let now = Instant::now();
    let adoption = held(now);
    assert_eq!(adoption.check(ChannelKey(1)), Standing::Current);
    assert_eq!(adoption.check(ChannelKey(2)), fenced(1, Some("c1")));
    assert_eq!(adoption.holder().map(|holder| (&holder.owner, holder.rank)), Some((&node("c1"), rank(2, 50))));
}

#[test]
fn request_for_another_incarnation_is_refused_whatever_else_it_says() {
    let now = Instant::now();
    let mut adoption = held(now);
    let other = Incarnation::from_bytes([9; 16]);
    let request = AdoptRequest { worker_incarnation: other, ticket: Some(ticket(1)), rank: rank(9, 9), ..request("c2", 2, 1) };
    assert_eq!(adoption.adopt(request, ticket(2), now + SILENCE), refused(1, Some("c1"), RefusedReason::OtherIncarnation));
}

#[test]
fn request_on_another_term_is_refused_whatever_else_it_says() {
    let now = Instant::now();
    for seen in [0, 2, u64::MAX] {
        let mut adoption = held(now);
        let request = AdoptRequest { ticket: Some(ticket(1)), rank: rank(9, 9), ..request("c1", 2, seen) };
        assert_eq!(adoption.adopt(request, ticket(2), now + SILENCE), refused(1, Some("c1"), RefusedReason::OtherTerm));
        assert_eq!(adoption.check(ChannelKey(1)), Standing::Current);
    }
}

#[test]
fn rule_a_a_closed_channel_leaves_the_worker_free() {
    let now = Instant::now();
    let mut adoption = held(now);
    adoption.channel_closed(ChannelKey(7));
    assert_eq!(adoption.check(ChannelKey(1)), Standing::Current, "another channel was closed");
    adoption.channel_closed(ChannelKey(1));
    assert_eq!(adoption.check(ChannelKey(1)), fenced(1, None));
    assert_eq!(adoption.next_deadline(), None);
    let weaker = AdoptRequest { rank: rank(0, 0), ..request("c2", 2, 1) };
    assert_eq!(adoption.adopt(weaker, ticket(2), now), granted(2, 2, None));
}

#[test]
fn rule_a_a_silent_holder_is_replaced_after_twice_the_ping_time() {
    let now = Instant::now();
    let weaker = AdoptRequest { rank: rank(0, 0), ..request("c2", 2, 1) };
    let just_before = now + SILENCE - Duration::from_nanos(1);
    let mut adoption = held(now);
    assert_eq!(adoption.adopt(weaker.clone(), ticket(2), just_before), refused(1, Some("c1"), RefusedReason::Held));
    assert_eq!(adoption.adopt(weaker, ticket(2), now + SILENCE), granted(2, 2, Some(1)));
    assert_eq!(adoption.check(ChannelKey(1)), fenced(2, Some("c2")));
}

#[test]
fn rule_b_the_same_owner_incarnation_may_change_its_channel() {
    let now = Instant::now();
    let mut adoption = held(now);
    assert_eq!(adoption.adopt(request("c1", 2, 1), ticket(2), now), granted(2, 2, Some(1)));
    assert_eq!(adoption.check(ChannelKey(1)), fenced(2, Some("c1")));
    assert_eq!(adoption.check(ChannelKey(2)), Standing::Current);
}

#[test]
fn rule_b_the_same_channel_may_be_granted_again() {
    let now = Instant::now();
    let mut adoption = held(now);
    assert_eq!(adoption.adopt(request("c1", 1, 1), ticket(2), now), granted(2, 2, None));
    assert_eq!(adoption.check(ChannelKey(1)), Standing::Current);
}

#[test]
fn rule_b_needs_the_same_name_and_the_same_incarnation() {
    let now = Instant::now();
    let mut adoption = held(now);
    let restarted = AdoptRequest { owner_incarnation: Incarnation::from_bytes([11; 16]), ..request("c1", 2, 1) };
    for other in [restarted, request("c2", 2, 1)] {
        assert_eq!(adoption.adopt(other, ticket(2), now), refused(1, Some("c1"), RefusedReason::Held));
    }
}

#[test]
fn rule_c_the_ticket_of_the_holder_is_worth_one_adoption() {
    let now = Instant::now();
    let mut adoption = held(now);
    let with = |owner: &str, channel, term, number| AdoptRequest {
        ticket: Some(ticket(number)),
        rank: rank(0, 0),
        ..request(owner, channel, term)
    };
    assert_eq!(adoption.adopt(with("c2", 2, 1, 9), ticket(2), now), refused(1, Some("c1"), RefusedReason::Held));
    assert_eq!(adoption.adopt(with("c2", 2, 1, 1), ticket(2), now), granted(2, 2, Some(1)));
    assert_eq!(adoption.adopt(with("c3", 3, 2, 1), ticket(3), now), refused(2, Some("c2"), RefusedReason::Held));
}

#[test]
fn rule_d_only_a_higher_rank_displaces_a_living_holder() {
    let now = Instant::now();
    let ranked = |rank| AdoptRequest { rank, ..request("c2", 2, 1) };
    for (claim, wins) in [(rank(2, 49), false), (rank(2, 50), false), (rank(2, 51), true), (rank(3, 0), true)] {
        let mut adoption = held(now);
        let answer = adoption.adopt(ranked(claim), ticket(2), now);
        assert_eq!(matches!(answer, AdoptAnswer::Granted { .. }), wins, "{claim:?}");
    }
}

#[test]
fn pings_of_the_holder_refresh_its_rank_both_ways() {
    let now = Instant::now();
    let mut adoption = held(now);
    let claim = AdoptRequest { rank: rank(2, 51), ..request("c2", 2, 1) };
    assert_eq!(adoption.heard(ChannelKey(1), rank(3, 1), now), Standing::Current);
    assert_eq!(adoption.adopt(claim.clone(), ticket(2), now), refused(1, Some("c1"), RefusedReason::Held));
    assert_eq!(adoption.heard(ChannelKey(1), rank(1, 1), now), Standing::Current);
    assert_eq!(adoption.adopt(claim, ticket(2), now), granted(2, 2, Some(1)));
}

#[test]
fn pings_of_others_change_nothing() {
    let now = Instant::now();
    let mut adoption = held(now);
    assert_eq!(adoption.heard(ChannelKey(2), rank(9, 9), now + SILENCE), fenced(1, Some("c1")));
    assert_eq!(adoption.holder().map(|holder| holder.rank), Some(rank(2, 50)));
    assert!(adoption.silent(now + SILENCE));
}

#[test]
fn watchdog_barks_once_for_each_silence() {
    let now = Instant::now();
    let mut adoption = held(now);
    assert_eq!(adoption.next_deadline(), Some(now + SILENCE));
    assert!(!adoption.handle_timeout(now + SILENCE - Duration::from_nanos(1)));
    assert!(adoption.handle_timeout(now + SILENCE));
    assert!(!adoption.handle_timeout(now + SILENCE * 2));
    assert_eq!(adoption.next_deadline(), None, "a reported silence sets no timer");

    let later = now + SILENCE * 3;
    assert_eq!(adoption.heard(ChannelKey(1), rank(2, 50), later), Standing::Current);
    assert!(!adoption.silent(later));
    assert_eq!(adoption.next_deadline(), Some(later + SILENCE));
    assert!(adoption.handle_timeout(later + SILENCE));
}

/// One thing that happens to a worker with three possible owners. Indexes and choices are small, so that
/// collisions are frequent.
#[derive(Clone, Debug)]
enum Op {
    Adopt { owner: u8, incarnation: u8, view: u32, hash: u64, seen: Seen, ticket: Shown, right_worker: bool, reuse: bool },
    Ping { channel: u64, view: u32 },
    Close { channel: u64 },
    Wait { ms: u64 },
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Current,
    Before,
    After,
}

#[derive(Clone, Copy, Debug)]
enum Shown {
    Nothing,
    OfHolder,
    OfTerm(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let seen = prop_oneof![8 => Just(Seen::Current), 1 => Just(Seen::Before), 1 => Just(Seen::After)];
    let shown = prop_oneof![6 => Just(Shown::Nothing), 1 => Just(Shown::OfHolder), 1 => (0u8..20).prop_map(Shown::OfTerm)];
    let right = prop::bool::weighted(0.9);
    let reuse = prop::bool::weighted(0.1);
    let adopt = (0u8..3, 0u8..2, 1u32..4, 0u64..3, seen, shown, right, reuse).prop_map(
        |(owner, incarnation, view, hash, seen, ticket, right_worker, reuse)| Op::Adopt {
            owner,
            incarnation,
            view,
            hash,
            seen,
            ticket,
            right_worker,
            reuse,
        },
    );
    let op = prop_oneof![
        4 => adopt,
        3 => (0u64..30, 1u32..4).prop_map(|(channel, view)| Op::Ping { channel, view }),
        1 => (0u64..30).prop_map(|channel| Op::Close { channel }),
        3 => (0u64..12_000).prop_map(|ms| Op::Wait { ms }),
    ];
    prop::collection::vec(op, 1..80)
}

/// What a bystander knows who has seen every message: the last grant and what came of it.
struct Bystander {
    owner: u8,
    incarnation: u8,
    channel: u64,
    rank: Rank,
    heard: Instant,
    open: bool,
}

proptest! {
    #[test]
    fn one_channel_is_current_and_each_grant_has_its_rule(ops in ops()) {
        let mut now = Instant::now();
        let mut adoption = Adoption::new(ME, PING_TIME);
        let mut last: Option<Bystander> = None;
        let mut term = 0u64;
        let mut channels = 0u64;
        for op in ops {
            match op {
                Op::Wait { ms } => now += Duration::from_millis(ms),
                Op::Close { channel } => {
                    adoption.channel_closed(ChannelKey(channel));
                    if let Some(last) = last.as_mut().filter(|last| last.channel == channel) {
                        last.open = false;
                    }
                }
                Op::Ping { channel, view } => {
                    let standing = adoption.heard(ChannelKey(channel), rank(view, 0), now);
                    let mut is_holder = false;
                    if let Some(last) = last.as_mut().filter(|last| last.open && last.channel == channel) {
                        (last.rank, last.heard, is_holder) = (rank(view, 0), now, true);
                    }
                    prop_assert_eq!(standing == Standing::Current, is_holder);
                }
                Op::Adopt { owner, incarnation, view, hash, seen, ticket: shown, right_worker, reuse } => {
                    let open = last.as_ref().filter(|last| last.open);
                    let channel = match open {
                        Some(open) if reuse && (open.owner, open.incarnation) == (owner, incarnation) => open.channel,
                        _ => {
                            channels += 1;
                            channels
                        }
                    };
                    let shown = match shown {
                        Shown::Nothing => None,
                        Shown::OfHolder => Some(term as u8),
                        Shown::OfTerm(number) => Some(number),
                    };
                    let seen_term = match seen {
                        Seen::Current => term,
                        Seen::Before => term.wrapping_sub(1),
                        Seen::After => term + 1,
                    };
                    let claim = rank(view, hash);
                    let expected = right_worker && seen_term == term && open.is_none_or(|holder| {
                        now - holder.heard >= SILENCE
                            || (holder.owner, holder.incarnation) == (owner, incarnation)
                            || shown == Some(term as u8)
                            || claim > holder.rank
                    });
                    // The ticket of term n consists of bytes n; 80 operations cannot wrap.
                    let answer = adoption.adopt(
                        AdoptRequest {
                            channel: ChannelKey(channel),
                            worker_incarnation: if right_worker { ME } else { Incarnation::default() },
                            seen_term,
                            owner: node(&format!("c{owner}")),
                            owner_incarnation: Incarnation::from_bytes([10 + incarnation; 16]),
                            rank: claim,
                            ticket: shown.map(ticket),
                        },
                        ticket((term + 1) as u8),
                        now,
                    );
                    match answer {
                        AdoptAnswer::Granted { term: new, ticket: given, previous } => {
                            prop_assert!(expected, "granted without a rule");
                            prop_assert_eq!(new, term + 1);
                            prop_assert_eq!(given, ticket(new as u8));
                            let old = open.map(|open| open.channel).filter(|old| *old != channel);
                            prop_assert_eq!(previous, old.map(ChannelKey));
                            term = new;
                            last = Some(Bystander { owner, incarnation, channel, rank: claim, heard: now, open: true });
                        }
                        AdoptAnswer::Refused { term: told, holder, .. } => {
                            prop_assert!(!expected, "refused against the rules");
                            prop_assert_eq!(told, term);
                            prop_assert_eq!(holder, open.map(|open| node(&format!("c{}", open.owner))));
                        }
                    }
                }
            }
            let expected: Vec<u64> = last.iter().filter(|last| last.open).map(|last| last.channel).collect();
            let current: Vec<u64> =
                (0..=channels + 1).filter(|key| adoption.check(ChannelKey(*key)) == Standing::Current).collect();
            prop_assert_eq!(current, expected, "the channels that are current");
            prop_assert_eq!(adoption.term(), term);
            prop_assert_eq!(adoption.next_deadline().is_some(), last.as_ref().is_some_and(|last| last.open));
        }
    }
}

#[test]
fn only_the_holder_binds_channels_and_only_for_calls() {
    let mut adoption = held(Instant::now());
    for (term, number) in [(0, 1), (2, 1), (1, 2)] {
        assert!(!adoption.bind(ChannelKey(7), term, &ticket(number)), "term {term}, ticket {number}");
    }
    assert_eq!(adoption.check_call(ChannelKey(7)), fenced(1, Some("c1")));
    assert!(adoption.bind(ChannelKey(7), 1, &ticket(1)));
    assert_eq!(adoption.check_call(ChannelKey(7)), Standing::Current);
    assert_eq!(adoption.check(ChannelKey(7)), fenced(1, Some("c1")), "nothing but calls");
    assert_eq!(adoption.check_call(ChannelKey(1)), Standing::Current);
    assert_eq!(adoption.check_call(ChannelKey(8)), fenced(1, Some("c1")));
}

#[test]
fn bound_channels_outlive_the_channel_of_the_holder_and_not_its_term() {
    let now = Instant::now();
    let mut adoption = held(now);
    assert!(adoption.bind(ChannelKey(7), 1, &ticket(1)));
    assert!(adoption.bind(ChannelKey(8), 1, &ticket(1)));
    adoption.channel_closed(ChannelKey(1));
    assert_eq!(adoption.check_call(ChannelKey(7)), Standing::Current);
    assert!(!adoption.bind(ChannelKey(9), 1, &ticket(1)), "nobody holds the worker");
    adoption.unbind(|channel| channel == ChannelKey(7));
    assert_eq!(adoption.check_call(ChannelKey(7)), fenced(1, None));
    assert_eq!(adoption.adopt(request("c1", 2, 1), ticket(2), now), granted(2, 2, None));
    assert_eq!(adoption.check_call(ChannelKey(8)), fenced(2, Some("c1")));
    assert!(!adoption.bind(ChannelKey(8), 1, &ticket(1)));
}

#[test]
fn bound_channels_are_few() {
    let mut adoption = held(Instant::now());
    let bound = (0..1000).filter(|channel| adoption.bind(ChannelKey(100 + channel), 1, &ticket(1))).count();
    assert_eq!(bound, BOUND_MAX);
    assert!(adoption.bind(ChannelKey(100), 1, &ticket(1)), "one that is bound already stays so");
}
