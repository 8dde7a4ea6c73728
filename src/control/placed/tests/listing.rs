//! Which actors are known, asked of any node; and those that cannot be started.

use super::durable::{Account, until};
use super::*;
use crate::cluster::PlacedInfo;

/// Which are named, with their nodes and whether they live there.
fn named(actors: &[PlacedInfo]) -> Vec<(String, NodeId, bool)> {
    actors.iter().map(|info| (info.key.clone(), info.node.clone(), info.is_alive)).collect()
}

#[tokio::test]
async fn the_actors_of_a_kind_are_named_by_every_node_with_those_that_host_them() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let mut expected = Vec::new();
    for name in keys() {
        plane.say("c1", &name, durable::Say::Add(1)).await;
        let owner = plane.node("c1").shared.view().ring.owner(&name).expect("somebody").clone();
        expected.push((name, owner, true));
        // Of another kind.
        plane.add("c1", "other", 1).await;
    }
    expected.sort();
    for asked in ALL {
        let found = plane.cluster(asked).placed_keys::<Account>(None, DEADLINE).await.expect("answered");
        assert_eq!((named(&found.actors), found.has_more, found.silent), (expected.clone(), false, Vec::new()), "{asked}");
        let behind = plane.cluster(asked).placed_keys::<Account>(Some(&expected[9].0), DEADLINE).await.expect("answered");
        assert_eq!(named(&behind.actors), expected[10..]);
    }
    let others = plane.cluster("c2").placed_keys::<Counter>(None, DEADLINE).await.expect("answered");
    assert_eq!(others.actors.len(), 1, "of a kind that is not durable copies are no actors: {others:?}");
}

#[tokio::test]
async fn what_a_node_hosts_that_does_not_answer_is_known_from_its_records_and_the_node_is_named() {
    let plane = Plane::start(&ALL).await;
    plane.see(&ALL);
    let (gone, there) = (plane.name_of("c3"), plane.name_of("c2"));
    for name in [&gone, &there] {
        plane.say("c1", name, durable::Say::Add(1)).await;
    }
    plane.node("c3").cut();
    for link in plane.node("c3").shared.links() {
        link.close(Error::new(ErrorCode::ConnectionFailed, "cut by the test"));
        link.ended().await;
    }
    let mut expected = vec![(gone, id("c3"), false), (there, id("c2"), true)];
    expected.sort();
    for asked in &ALL[..2] {
        let found = plane.cluster(asked).placed_keys::<Account>(None, DEADLINE).await.expect("answered");
        assert_eq!((named(&found.actors), found.silent), (expected.clone(), vec![id("c3")]));
    }
}

#[tokio::test]
async fn an_actor_that_is_still_being_started_does_not_count_as_alive() {
    let plane = Plane::start(&ALL[..1]).await;
    plane.see(&ALL[..1]);
    let bytes = Payload::encode(&durable::Balance::default()).expect("encoded").into_bytes().into();
    let record = Record { stamp: Stamp { life: 1, version: 1 }, hand_overs: HandOvers::default(), bytes };
    let belongings = Belongings { key: durable::key("stuck"), hash: KeyHash::of("stuck").bits(), record };
    keep(&plane.node("c1").shared, belongings).await.expect("kept");
    // Of the other one nobody knows whether it is anything.
    for name in ["stuck", "stuck too"] {
        let asked = plane.cluster("c1").placed::<Account>(name, &durable::Say::Add(1), Duration::from_millis(300)).await;
        assert_eq!(asked.expect_err("it does not start").code(), &ErrorCode::Timeout);
        assert!(plane.node("c1").shared.placed.lock().actors.contains_key(&durable::key(name)));
    }
    plane.say("c1", "other", durable::Say::Add(1)).await;
    let found = plane.cluster("c1").placed_keys::<Account>(None, DEADLINE).await.expect("answered");
    assert_eq!(named(&found.actors), [("other".to_owned(), id("c1"), true), ("stuck".to_owned(), id("c1"), false)]);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_cannot_start_is_tried_less_and_less_often_and_at_once_under_another_view() {
    let plane = Plane::start(&ALL[..1]).await;
    plane.see(&ALL[..1]);
    let name = "broken";
    let bytes = Payload::encode(&durable::Balance::default()).expect("encoded").into_bytes().into();
    let record = Record { stamp: Stamp { life: 1, version: 1 }, hand_overs: HandOvers::default(), bytes };
    let belongings = Belongings { key: durable::key(name), hash: KeyHash::of(name).bits(), record };
    keep(&plane.node("c1").shared, belongings).await.expect("kept");
    // The clock is the test's: it jumps to the next thing that happens.
    let tried = |begun: Instant| async move {
        let before = durable::broken_starts();
        tokio::time::sleep_until(begun + Duration::from_secs(600)).await;
        durable::broken_starts() - before
    };
    let tries = tried(Instant::now()).await;
    assert!((10..30).contains(&tries), "{tries} tries in ten minutes");
    let found = plane.cluster("c1").placed_keys::<Account>(None, DEADLINE).await.expect("answered");
    let problem = found.actors[0].problem.as_ref().expect("it is told why");
    assert!(!found.actors[0].is_alive && problem.message().contains("as asked"), "{found:?}");
    // More tries in twenty seconds than the longest pause would allow in minutes.
    let before = durable::broken_starts();
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        plane.see(&ALL[..1]);
        tokio::time::sleep(durable::SETTLED + Duration::from_secs(1)).await;
    }
    let tries = durable::broken_starts() - before;
    assert!(tries >= 5, "{tries} tries in twenty seconds");
    let tries = tried(Instant::now()).await;
    assert!((10..30).contains(&tries), "{tries} tries in ten minutes");
    until("it to be known still", || plane.node("c1").shared.placed.lock().troubles.of(&durable::key(name)).is_some()).await;
}
