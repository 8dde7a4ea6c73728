//! What membership promises, one story each.

use super::*;
use crate::control::membership::machine::{HEARTBEAT, OUT, REDIAL, REENTER, SUSPECT};
use crate::error::ErrorCode;

const SLACK: Duration = Duration::from_millis(1500);

fn joined(count: usize) -> Simulation {
    let mut simulation = Simulation::with_nodes(count, 7);
    let names: Vec<Name> = (1..=count).collect();
    simulation.until("they find each other", Duration::from_secs(10), |simulation| simulation.agree(&names));
    simulation.seconds(12);
    simulation.changes();
    simulation
}

#[test]
fn nodes_that_start_together_agree_at_once_and_then_nothing_changes() {
    let mut simulation = Simulation::with_nodes(5, 3);
    let took = simulation.until("they find each other", Duration::from_secs(10), |simulation| simulation.agree(&[1, 2, 3, 4, 5]));
    assert!(took < Duration::from_secs(2), "{took:?}");
    simulation.seconds(2);
    simulation.changes();
    simulation.seconds(120);
    assert!(simulation.changes().values().all(|changes| *changes == 0));
}

#[test]
fn a_seed_that_did_not_answer_at_first_is_not_linked_a_second_time() {
    // The seeds of both are the first two. Whoever starts alone goes on dialling the other, which has dialled meanwhile.
    for (first, second) in [(1, 2), (2, 1)] {
        let mut simulation = Simulation::new(11);
        simulation.start_node(first);
        simulation.seconds(30);
        simulation.start_node(second);
        simulation.until("they find each other", Duration::from_secs(2), |simulation| simulation.agree(&[1, 2]));
        simulation.seconds(30);
        assert_eq!(simulation.twice, 0, "a session of {first} and {second} was cut by another one");
        assert!(simulation.found_again > 0, "{first} has looked who is at the address");
        assert!(simulation.agree(&[1, 2]));
    }
}

#[test]
fn nodes_behind_one_name_find_each_other_though_each_found_itself_first() {
    let mut simulation = Simulation::new(5);
    simulation.change = |setup| setup.seeds = vec![shared_uri()];
    for name in [1, 2] {
        simulation.behind = Some(name);
        simulation.start_node(name);
        simulation.seconds(1);
    }
    assert!(simulation.agree(&[1]) && simulation.agree(&[2]), "each has found itself");
    // From now on the name leads to one of them only.
    let took = simulation.until("they find each other", Duration::from_secs(40), |simulation| simulation.agree(&[1, 2]));
    assert!(took > Duration::from_secs(1), "{took:?}");
}

#[test]
fn everybody_reaches_everybody_directly_in_a_full_mesh() {
    let simulation = joined(4);
    for name in 1..=4 {
        for (other, member) in &simulation.view(name).live {
            assert_eq!(member.next_hop.as_ref(), (*other != id(name)).then_some(other));
        }
    }
}

#[test]
fn a_silent_node_is_suspected_and_then_out_within_the_bounds() {
    let mut simulation = joined(3);
    simulation.kill(3, true);
    simulation.run(SUSPECT + SLACK / 4);
    assert!(simulation.sees(1, 3) && simulation.sees(2, 3), "not before it is out");
    assert_eq!(simulation.states(1)["n003"], "suspected");
    let took = simulation.until("it is out", OUT, |simulation| simulation.agree(&[1, 2]));
    assert!(SUSPECT + SLACK / 4 + took <= OUT + HEARTBEAT, "{took:?}");
    assert_eq!(simulation.states(1)["n003"], "unreachable");
    let changes = simulation.changes();
    // The first who loses it may still reach it by way of the other.
    assert!(changes.values().all(|changes| *changes <= 2), "{changes:?}");
}

#[test]
fn a_node_whose_process_dies_is_out_when_it_had_time_to_dial_again() {
    let mut simulation = joined(3);
    simulation.kill(2, false);
    let took = simulation.until("it is out", OUT, |simulation| simulation.agree(&[1, 3]));
    assert!(took <= REDIAL + SLACK / 4, "{took:?}");
}

#[test]
fn a_session_that_ends_and_is_made_again_changes_nothing() {
    let mut simulation = joined(3);
    simulation.cut(1, 2);
    simulation.seconds(20);
    assert!(simulation.agree(&[1, 2, 3]));
    assert!(simulation.changes().values().all(|changes| *changes == 0));
}

#[test]
fn a_node_that_restarts_under_its_name_is_back_at_once() {
    let mut simulation = joined(3);
    simulation.kill(3, false);
    simulation.run(Duration::from_millis(300));
    simulation.start_node(3);
    let took = simulation.until("it is back", OUT, |simulation| simulation.agree(&[1, 2, 3]));
    assert!(took < SUSPECT, "{took:?}");
    assert!((1..=3).all(|name| simulation.alarms(name).is_empty()));
}

#[test]
fn a_stale_session_of_a_dead_life_never_beats_its_successor() {
    let mut simulation = joined(3);
    // Nobody tells that the sessions have ended.
    simulation.kill(3, true);
    simulation.start_node(3);
    let took = simulation.until("it is back", OUT + SLACK, |simulation| {
        simulation.agree(&[1, 2, 3])
            && (1..=3).all(|name| simulation.view(name).live[&id(3)].incarnation == simulation.view(3).live[&id(3)].incarnation)
    });
    assert!(took <= SUSPECT + SLACK, "{took:?}");
    simulation.seconds(20);
    assert!(simulation.agree(&[1, 2, 3]));
    assert!((1..=3).all(|name| simulation.alarms(name).is_empty()));
}

#[test]
fn a_lost_node_is_back_only_after_it_was_heard_steadily() {
    let mut simulation = joined(3);
    simulation.split(&[3], &[1, 2], true);
    simulation.until("it is out", OUT + SLACK, |simulation| simulation.agree(&[1, 2]) && simulation.agree(&[3]));
    simulation.split(&[3], &[1, 2], false);
    simulation.run(REENTER - SLACK / 2);
    assert!(simulation.agree(&[1, 2]), "too early");
    let took = simulation.until("it is back", REENTER * 3, |simulation| simulation.agree(&[1, 2, 3]));
    assert!(took <= OUT + SLACK * 2, "{took:?}");
    // Both of its peers may take it back at their own moment, as they lost it.
    let changes = simulation.changes();
    assert!(changes.values().all(|changes| *changes <= 6), "{changes:?}");
}

/// Its timer would be due for ever if it still planned to dial.
#[test]
fn a_node_that_has_stopped_looks_for_nobody_and_waits_for_its_end() {
    let mut simulation = joined(3);
    let now = simulation.now();
    simulation.act(3, |machine| machine.become_state(STOPPED, now));
    simulation.split(&[3], &[1, 2], true);
    simulation.cut(3, 1);
    simulation.cut(3, 2);
    simulation.seconds(60);
    assert!(simulation.agree(&[1, 2]));
}

#[test]
fn halves_of_a_split_serve_by_themselves_and_become_one_again() {
    let mut simulation = joined(5);
    simulation.split(&[1, 2], &[3, 4, 5], true);
    simulation.until("two halves", OUT + SLACK, |simulation| simulation.agree(&[1, 2]) && simulation.agree(&[3, 4, 5]));
    simulation.seconds(60);
    simulation.split(&[1, 2], &[3, 4, 5], false);
    let took = simulation.until("one again", Duration::from_secs(20), |simulation| simulation.agree(&[1, 2, 3, 4, 5]));
    assert!(took <= Duration::from_secs(12), "{took:?}");
}

#[test]
fn the_minority_of_a_split_freezes_if_it_was_told_to() {
    let mut simulation = Simulation::new(5);
    simulation.change = |setup| setup.split = Split::Majority;
    (1..=5).for_each(|name| simulation.start_node(name));
    simulation.until("they find each other", Duration::from_secs(10), |simulation| simulation.agree(&[1, 2, 3, 4, 5]));
    simulation.split(&[1, 2], &[3, 4, 5], true);
    simulation.until("the majority goes on", OUT + SLACK, |simulation| simulation.agree(&[3, 4, 5]));
    simulation.until("the minority freezes", SLACK, |simulation| simulation.view(1).frozen && simulation.view(2).frozen);
    // Also after a restart: whom it belongs to is written down.
    simulation.kill(1, false);
    simulation.start_node(1);
    simulation.seconds(5);
    assert!(simulation.view(1).frozen);
    simulation.split(&[1, 2], &[3, 4, 5], false);
    simulation.until("one again", Duration::from_secs(20), |simulation| simulation.agree(&[1, 2, 3, 4, 5]));
}

#[test]
fn a_wire_that_carries_one_way_joins_nobody_and_others_are_gone_around() {
    let mut simulation = joined(3);
    simulation.block(1, 2, true);
    simulation.seconds(30);
    assert!(simulation.agree(&[1, 2, 3]), "by way of the third");
    assert_eq!(simulation.view(1).live[&id(2)].next_hop, Some(id(3)));
    assert_eq!(simulation.view(2).live[&id(1)].next_hop, Some(id(3)));
    simulation.block(1, 2, false);
    simulation.until("directly again", Duration::from_secs(20), |simulation| simulation.view(1).live[&id(2)].next_hop == Some(id(2)));
}

#[test]
fn a_partial_mesh_has_one_ring_and_shortest_ways() {
    let mut simulation = Simulation::new(9);
    // A chain: 1 – 2 – 3 – 4.
    for (a, b) in [(1, 3), (1, 4), (2, 4)] {
        simulation.split(&[a], &[b], true);
    }
    (1..=4).for_each(|name| simulation.start_node(name));
    // The fourth knows nobody that it can reach, so an operator helps.
    let now = simulation.now();
    simulation.act(4, |machine| machine.add_seed(uri(3), None, now));
    simulation.until("one ring", Duration::from_secs(20), |simulation| simulation.agree(&[1, 2, 3, 4]));
    assert_eq!(simulation.view(1).live[&id(4)].next_hop, Some(id(2)));
    assert_eq!(simulation.view(4).live[&id(1)].next_hop, Some(id(3)));
}

#[test]
fn a_node_that_slept_freezes_before_it_acts_and_is_taken_back() {
    let mut simulation = joined(3);
    // So short that nobody has lost it: it asks, and goes on.
    simulation.sleep(3, true);
    simulation.seconds(3);
    simulation.sleep(3, false);
    simulation.seconds(4);
    assert!(simulation.agree(&[1, 2, 3]));
    assert_eq!(simulation.changes()[&3], 2, "frozen, and not any more");
    // Out for everybody: it waits until it is taken back.
    simulation.sleep(3, true);
    simulation.seconds(20);
    assert!(simulation.agree(&[1, 2]));
    simulation.sleep(3, false);
    simulation.run(REENTER - SLACK);
    assert!(simulation.view(3).frozen && simulation.agree(&[1, 2]));
    simulation.until("it is back", REENTER * 2, |simulation| simulation.agree(&[1, 2, 3]));
}

#[test]
fn a_node_whose_links_were_closed_while_it_slept_is_heard_steadily_first() {
    let mut simulation = joined(3);
    simulation.sleep(3, true);
    simulation.seconds(3);
    simulation.cut(1, 3);
    simulation.cut(2, 3);
    simulation.until("it is out", OUT, |simulation| simulation.agree(&[1, 2]));
    simulation.sleep(3, false);
    simulation.run(REENTER - SLACK);
    assert!(simulation.view(3).frozen && simulation.agree(&[1, 2]));
    simulation.until("it is back", REENTER * 2, |simulation| simulation.agree(&[1, 2, 3]));
}

#[test]
fn a_short_sleep_freezes_nobody() {
    let mut simulation = joined(3);
    simulation.sleep(3, true);
    simulation.seconds(2);
    simulation.sleep(3, false);
    simulation.seconds(5);
    assert!(simulation.changes().values().all(|changes| *changes == 0));
}

#[test]
fn of_two_live_nodes_with_one_name_the_second_stands_back_and_everybody_is_told() {
    let mut simulation = joined(3);
    let before = simulation.view(1).live[&id(3)].incarnation;
    simulation.start_twin(9, 3);
    simulation.seconds(10);
    assert!(simulation.agree(&[1, 2, 3]));
    assert_eq!(simulation.view(1).live[&id(3)].incarnation, before);
    assert!(simulation.view(9).frozen);
    for name in [1, 2, 9] {
        assert!(simulation.alarms(name).contains(&"node_id_in_use"), "{name}: {:?}", simulation.alarms(name));
    }
    simulation.seconds(60);
    assert!(simulation.agree(&[1, 2, 3]) && simulation.view(9).frozen, "for as long as both live");
    // The first one goes, so the second one may have the name.
    simulation.kill(3, false);
    simulation.until("the second is in", Duration::from_secs(40), |simulation| {
        let live = &simulation.view(1).live;
        live.get(&id(3)).is_some_and(|member| member.incarnation != before) && !simulation.view(9).frozen
    });
}

#[test]
fn two_nodes_with_one_name_on_two_sides_of_a_split_are_found_out() {
    let mut simulation = joined(4);
    simulation.split(&[1, 2], &[3, 4, 9], true);
    simulation.kill(4, false);
    simulation.start_twin(9, 2);
    let now = simulation.now();
    simulation.act(9, |machine| machine.add_seed(uri(3), None, now));
    simulation
        .until("two halves", Duration::from_secs(20), |simulation| simulation.live(3) == ["n002", "n003"] && simulation.agree(&[1, 2]));
    simulation.split(&[1, 2], &[3, 4, 9], false);
    simulation.until("one again, without the younger", Duration::from_secs(40), |simulation| {
        simulation.agree(&[1, 2, 3]) && simulation.view(9).frozen
    });
}

#[test]
fn different_ring_sizes_are_refused_and_told() {
    let mut simulation = joined(2);
    simulation.ring_size = 128;
    simulation.start_node(3);
    simulation.seconds(10);
    assert!(simulation.agree(&[1, 2]) && simulation.live(3) == ["n003"]);
    assert!(simulation.alarms(1).contains(&"different_ring_sizes") && simulation.alarms(3).contains(&"different_ring_sizes"));
    assert_eq!(simulation.states(1)["n003"], "refused");
}

#[test]
fn a_staged_node_is_alone_until_it_is_let_in() {
    let mut simulation = joined(2);
    simulation.change = |setup| setup.staged_joins = true;
    simulation.start_node(3);
    simulation.seconds(10);
    assert!(simulation.agree(&[1, 2]) && simulation.live(3) == ["n003"]);
    assert_eq!(simulation.states(2)["n003"], "staged");
    let now = simulation.now();
    simulation.act(2, |machine| machine.commit(now).1);
    simulation.until("it is in", Duration::from_secs(2), |simulation| simulation.agree(&[1, 2, 3]));
    // Let in once, it need not wait again.
    simulation.kill(3, false);
    simulation.start_node(3);
    simulation.until("it is back", OUT, |simulation| simulation.agree(&[1, 2, 3]));
}

#[test]
fn a_node_that_is_asked_to_leave_owns_nothing_and_is_soon_no_member() {
    let mut simulation = joined(3);
    let now = simulation.now();
    simulation.act(1, |machine| machine.leave(&id(3), now).expect("it is there"));
    simulation.until("it is out", Duration::from_secs(1), |simulation| simulation.agree(&[1, 2]));
    assert_eq!(simulation.live(3), ["n001", "n002"], "it knows who owns what now");
    assert_eq!(simulation.states(2)["n003"], "leaving");
    let now = simulation.now();
    simulation.act(3, |machine| machine.become_state(RowState::Left, now));
    simulation.seconds(1);
    simulation.kill(3, false);
    simulation.seconds(5);
    assert!(!simulation.states(1).contains_key("n003"));
    // A new life of it may join again.
    simulation.start_node(3);
    simulation.until("it is back", OUT, |simulation| simulation.agree(&[1, 2, 3]));
}

#[test]
fn a_node_that_stops_is_out_at_once() {
    let mut simulation = joined(3);
    let now = simulation.now();
    simulation.act(3, |machine| machine.become_state(STOPPED, now));
    let took = simulation.until("it is out", OUT, |simulation| simulation.agree(&[1, 2]));
    assert!(took < Duration::from_millis(200), "{took:?}");
    simulation.kill(3, false);
    simulation.seconds(10);
    assert_eq!(simulation.states(1)["n003"], "stopped");
}

#[test]
fn a_dead_node_is_forgotten_by_all_and_does_not_come_back_by_hearsay() {
    let mut simulation = joined(4);
    // The fourth is away, and still knows the third.
    simulation.split(&[4], &[1, 2, 3], true);
    simulation.kill(3, false);
    simulation.until("they are two", OUT + SLACK, |simulation| simulation.agree(&[1, 2]));
    let now = simulation.now();
    simulation.act(1, |machine| machine.forget(&id(3), now).expect("it is dead"));
    simulation.split(&[4], &[1, 2], false);
    simulation.until("the fourth is back", Duration::from_secs(20), |simulation| simulation.agree(&[1, 2, 4]));
    simulation.seconds(5);
    for name in [1, 2, 4] {
        assert!(!simulation.states(name).contains_key("n003"), "{name}: {:?}", simulation.states(name));
    }
    simulation.start_node(3);
    simulation.split(&[4], &[3], false);
    simulation.until("a new life joins", Duration::from_secs(20), |simulation| simulation.agree(&[1, 2, 3, 4]));
}

#[test]
fn a_live_node_cannot_be_forgotten() {
    let mut simulation = joined(2);
    let now = simulation.now();
    simulation.act(1, |machine| {
        assert_eq!(machine.forget(&id(2), now).expect_err("it lives").code(), &ErrorCode::NotAllowed);
        assert_eq!(machine.forget(&id(7), now).expect_err("nobody knows it").code(), &ErrorCode::NotFound);
        Vec::new()
    });
}

#[test]
fn members_find_each_other_again_when_all_were_restarted_without_seeds() {
    let mut simulation = joined(4);
    (1..=4).for_each(|name| simulation.kill(name, false));
    simulation.change = |setup| setup.seeds.clear();
    (1..=4).for_each(|name| simulation.start_node(name));
    simulation.until("they find each other", Duration::from_secs(10), |simulation| simulation.agree(&[1, 2, 3, 4]));
}

#[test]
fn envelopes_of_a_session_that_was_given_up_change_nothing() {
    let mut simulation = joined(2);
    let late =
        Envelope { from: id(2), incarnation: simulation.view(1).live[&id(2)].incarnation, to: 12345, body: Body::Heartbeat { digest: 0 } };
    simulation.kill(2, true);
    let now = simulation.now();
    let keys: Vec<SessionKey> = simulation.wires.keys().filter(|end| end.0 == 1).map(|end| end.2).collect();
    assert!(!keys.is_empty());
    // It talks on, but not on what we have agreed upon.
    for second in 0..8 {
        for key in &keys {
            simulation.act(1, |machine| machine.envelope(*key, late.clone(), now + Duration::from_secs(second)));
        }
        simulation.seconds(1);
    }
    assert_eq!(simulation.live(1), ["n001"]);
}

#[test]
fn forty_nodes_agree_and_lose_one_quickly() {
    let mut simulation = Simulation::with_nodes(40, 11);
    let names: Vec<Name> = (1..=40).collect();
    let took = simulation.until("they find each other", Duration::from_secs(30), |simulation| simulation.agree(&names));
    assert!(took < Duration::from_secs(10), "{took:?}");
    simulation.seconds(3);
    simulation.changes();
    simulation.kill(20, true);
    let rest: Vec<Name> = names.into_iter().filter(|name| *name != 20).collect();
    let took = simulation.until("it is out", OUT + SLACK, |simulation| simulation.agree(&rest));
    assert!(took <= OUT + HEARTBEAT, "{took:?}");
    let changes = simulation.changes();
    assert!(changes.values().all(|changes| *changes <= 2), "{changes:?}");
}

/// What a change costs: `(envelopes, bytes, changes of a view at most)` of a cluster that loses one node and gets it back.
fn change(count: usize) -> [(&'static str, u64, u64, usize); 3] {
    let mut simulation = Simulation::with_nodes(count, 11);
    let names: Vec<Name> = (1..=count).collect();
    simulation.until("they find each other", Duration::from_secs(60), |simulation| simulation.agree(&names));
    simulation.seconds(12);
    let most = |simulation: &mut Simulation| simulation.changes().into_values().max().unwrap_or(0);
    // Of how they found each other.
    simulation.sent();
    most(&mut simulation);
    simulation.seconds(10);
    let quiet = simulation.sent();
    assert_eq!(most(&mut simulation), 0);
    simulation.kill(count / 2, false);
    let rest: Vec<Name> = names.iter().copied().filter(|name| *name != count / 2).collect();
    simulation.until("it is out", OUT + SLACK, |simulation| simulation.agree(&rest));
    simulation.seconds(10);
    let (lost, changes_lost) = (simulation.sent(), most(&mut simulation));
    simulation.start_node(count / 2);
    simulation.until("it is back", Duration::from_secs(30), |simulation| simulation.agree(&names));
    simulation.seconds(10);
    let (back, changes_back) = (simulation.sent(), most(&mut simulation));
    [("quiet", quiet.0, quiet.1, 0), ("lost", lost.0, lost.1, changes_lost), ("back", back.0, back.1, changes_back)]
}

/// A node that comes back sees the others one after the other, and its own views count too.
const VIEWS_MAX: usize = 6;

#[test]
fn a_change_costs_few_envelopes_and_few_views() {
    for (what, envelopes, bytes, changes) in change(12) {
        // Pairs of nodes, each with a heartbeat per second and side, for twenty seconds at most; the change itself is a share of that.
        let heartbeats = 12 * 11 * 20;
        assert!(
            envelopes < 2 * heartbeats && bytes < 2 * heartbeats * 1024 && changes <= VIEWS_MAX,
            "{what}: {envelopes} {bytes} {changes}"
        );
    }
}

/// Minutes without optimisation: `NKCLUSTER_TEST_LARGE=1 cargo test --release --lib a_hundred_control_nodes -- --nocapture`
#[test]
fn a_hundred_control_nodes_agree_on_each_change() {
    if std::env::var_os("NKCLUSTER_TEST_LARGE").is_none() {
        println!("skipped: it takes minutes; NKCLUSTER_TEST_LARGE=1 runs it");
        return;
    }
    for (what, envelopes, bytes, changes) in change(100) {
        println!("{what}: {envelopes} envelopes, {bytes} bytes, {changes} views at most");
        assert!(changes <= VIEWS_MAX);
    }
}
