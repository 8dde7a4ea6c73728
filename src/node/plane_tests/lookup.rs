//! Calls for workers that are not where they belong: what control nodes know of them, and for how long they are not sure.

use super::*;

/// How a call at a control node for a worker ends.
async fn outcome(plane: &Plane, entry: &str, worker: &str) -> Result<u64, ErrorCode> {
    let outcome = ask(&plane.cluster(entry), worker, &Ask::Add(1)).await;
    if let Err(error) = &outcome {
        assert!(!error.may_have_run(), "{error}");
    }
    outcome.map_err(|error| error.code().clone())
}

/// Nothing changes for so long that no control node takes its view for new.
async fn settle(plane: &Plane) {
    for node in &plane.nodes {
        eventually("the view was looked at", async || control(node).let_settle()).await;
    }
}

/// A worker that `from` owns among the control nodes `before`, and `to` among all that run, held by `from`. All but `from` see all control nodes.
async fn not_moved_yet(plane: &Plane, before: &[&str], from: &str, to: &str) -> NodeHandle {
    let all: Vec<&str> = plane.nodes.iter().map(|node| node.node_id().as_str()).collect();
    let name = (1..)
        .map(|number| format!("w{number}"))
        .find(|name| plane.owner_among(before, name) == id(from) && plane.owner_among(&all, name) == id(to))
        .expect("names do not run out");
    let controls: Vec<&Control> = plane.nodes.iter().map(control).collect();
    let old: Vec<&Control> = before.iter().map(|name| control(plane.node(&id(name)))).collect();
    for control in &controls {
        control.see(&old, false);
    }
    let worker = plane.worker(&name, from, |_| ()).await;
    plane.held_directly(&name, from).await;
    for node in plane.nodes.iter().filter(|node| *node.node_id() != id(from)) {
        control(node).see(&controls, false);
    }
    worker
}

#[tokio::test]
async fn a_call_that_crossed_another_node_is_passed_on_to_whoever_had_the_worker() {
    let plane = Plane::start(4).await;
    let worker = not_moved_yet(&plane, &["c1", "c2", "c4"], "c4", "c3").await;
    // A line: c1, c2, c3, c4.
    for (a, b) in [("c1", "c3"), ("c1", "c4"), ("c2", "c4")] {
        plane.part(a, b);
        for (one, other) in [(a, b), (b, a)] {
            eventually("it is noticed", async || !control(plane.node(&id(one))).is_linked(&id(other))).await;
        }
    }
    for (at, peer, next) in [("c1", "c3", "c2"), ("c1", "c4", "c2"), ("c2", "c4", "c3")] {
        control(plane.node(&id(at))).reach(&id(peer), &id(next));
    }
    for entry in ["c1", "c2", "c3"] {
        assert_eq!(outcome(&plane, entry, worker.node_id().as_str()).await, Ok(2), "{entry}");
    }
}

#[tokio::test]
async fn a_worker_that_takes_long_to_move_is_found_where_it_was() {
    let plane = Plane::start(3).await;
    let worker = not_moved_yet(&plane, &["c1", "c2"], "c2", "c3").await;
    settle(&plane).await;
    let stranger = (1..).map(|number| format!("x{number}")).find(|name| plane.owner(name) == id("c3")).expect("a name");
    for entry in ["c1", "c2", "c3"] {
        assert_eq!(outcome(&plane, entry, worker.node_id().as_str()).await, Ok(2), "{entry}");
        assert_eq!(outcome(&plane, entry, &stranger).await, Err(ErrorCode::NotFound), "{entry}");
    }
}

#[tokio::test]
async fn a_control_node_that_sees_nobody_is_unsure_for_a_while_and_not_for_ever() {
    let plane = Plane::start(2).await;
    let stranger = plane.owned_by("c2");
    let alone = control(plane.node(&id("c2")));
    alone.see(&[alone], false);
    assert_eq!(outcome(&plane, "c1", &stranger).await, Err(ErrorCode::NotConnected), "it may have seen nobody yet");
    settle(&plane).await;
    assert_eq!(outcome(&plane, "c1", &stranger).await, Err(ErrorCode::NotFound));
}

#[tokio::test]
async fn a_control_node_that_is_frozen_denies_no_worker() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c1");
    let _node = plane.worker(&worker, "c1", |_| ()).await;
    plane.held_directly(&worker, "c1").await;
    let frozen = control(plane.node(&id("c2")));
    frozen.see(&[frozen], true);
    for _ in 0..2 {
        assert_eq!(outcome(&plane, "c2", &worker).await, Err(ErrorCode::NotConnected), "it cannot know");
        settle(&plane).await;
    }
    plane.agree();
    assert_eq!(outcome(&plane, "c2", &worker).await, Ok(2));
}
