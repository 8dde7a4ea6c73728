//! What a review of several control nodes found to be wrong: one story each, and calls that could go in circles.

use super::*;
use crate::cluster::EventStream;
use crate::proto::message::BuiltinEvent;

/// Reads events of one task until so many have come; they must follow each other without a gap.
async fn follow(events: &mut EventStream, worker: &str, last: &mut u64, count: u64) {
    let end = *last + count;
    let reading = async {
        while *last < end {
            let record = events.next().await.expect("open").expect("no error");
            match record.event {
                EventBody::Class(number) if record.node == id(worker) => {
                    let number: u64 = number.decode().expect("a number");
                    assert_eq!(number, *last + 1, "each event comes once, in order");
                    *last = number;
                }
                EventBody::Nkcluster(gap @ BuiltinEvent::Gap { .. }) => panic!("nothing is missing, but {gap:?} of {}", record.node),
                _ => {}
            }
        }
    };
    tokio::time::timeout(FOREVER, reading).await.unwrap_or_else(|_| panic!("no event after {last}"));
}

#[tokio::test]
async fn who_follows_misses_nothing_when_a_control_node_leaves() {
    let mut plane = Plane::start(3).await;
    let worker = plane.owned_by("c2");
    let _node = plane.worker(&worker, "c2", |config| config.cluster_addr.extend([at("c1"), at("c3")])).await;
    plane.held_directly(&worker, "c2").await;
    let mut events = plane.cluster("c1").events(EventFilter::default()).await.expect("subscribed");
    let options = CallOptions::timeout(FOREVER).with_task_id(TaskId::new("t1").expect("valid"));
    plane.cluster("c1").start_task(&id(&worker), &numbers(), Payload::encode(&()).expect("encodes"), options).await.expect("started");
    let mut last = 0;
    follow(&mut events, &worker, &mut last, 20).await;
    // The others know that c2 leaves, and it still has the worker.
    let rest = ["c1", "c3"].map(|name| control(plane.node(&id(name))).clone());
    for control in &rest {
        control.see(&[&rest[0], &rest[1]], false);
    }
    follow(&mut events, &worker, &mut last, 50).await;
    let listed = plane.cluster("c1").nodes(None, FOREVER).await.expect("answered");
    let shown = listed.nodes.iter().find(|info| info.id == id(&worker)).map(|info| (info.status, info.owner.clone()));
    assert_eq!(shown, Some((NodeStatus::Ready, Some(id("c2")))), "whoever leaves still answers for its workers");
    control(plane.node(&id("c2"))).see(&[&rest[0], &rest[1]], false);
    let next = plane.owner(&worker);
    plane.held_by(&worker, next.as_str()).await;
    follow(&mut events, &worker, &mut last, 50).await;
    plane.nodes.remove(1).stop().await;
    follow(&mut events, &worker, &mut last, 50).await;
}

#[tokio::test]
async fn a_frozen_control_node_turns_workers_away() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c2");
    // It sees nobody else, and so would own everything.
    let frozen = control(plane.node(&id("c2")));
    frozen.see(&[frozen], true);
    control(plane.node(&id("c1"))).see(&[control(plane.node(&id("c1")))], false);
    plane.net.set_refused(&worker, "c1", true);
    let before = frozen.links_made();
    let _node = plane.worker(&worker, "c2", |config| config.cluster_addr.push(at("c1"))).await;
    eventually("the worker was turned away, and came again", async || frozen.links_made() >= before + 2).await;
    assert_eq!(frozen.own_info(&id(&worker)), None, "no proxy of a frozen node may adopt it");
    // The next attempt goes there first, as c2 has turned it away; at random it could be c2 again and again, with longer and longer pauses.
    plane.net.set_refused(&worker, "c1", false);
    plane.held_by(&worker, "c1").await;
}

#[tokio::test]
async fn an_owner_that_refuses_a_worker_does_not_end_its_link() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c2");
    plane.net.set_refused(&worker, "c2", true);
    // The owner cannot say whether it is.
    let frozen = control(plane.node(&id("c2")));
    frozen.see(&[frozen], true);
    let before = control(plane.node(&id("c1"))).links_made();
    let _node = plane.worker(&worker, "c1", |_| ()).await;
    plane.held_by(&worker, "c1").await;
    assert_eq!(control(plane.node(&id("c1"))).links_made(), before + 1, "it came once, and is served where it came");
    assert_eq!(ask(&plane.cluster("c1"), &worker, &Ask::Add(1)).await, Ok(2));
}

#[tokio::test]
async fn the_record_of_a_worker_that_moved_is_the_newest() {
    let mut plane = Plane::start(2).await;
    let size = crate::ring::RingSize::new(plane.nodes[0].config.ring_size).expect("valid");
    let ring = crate::ring::Ring::new(size, ["c1", "c2", "c3"].map(id));
    let worker = (1..)
        .map(|number| format!("w{number}"))
        .find(|name| plane.owner(name) == id("c2") && ring.owner(name) == Some(&id("c3")))
        .expect("a name");
    let _node = plane.worker(&worker, "c2", |config| config.cluster_addr.push(at("c3"))).await;
    let version = |plane: &Plane, node: &str| control(plane.node(&id(node))).record_version(&id(&worker)).unwrap_or(0);
    // Each time it comes, its record is another one.
    for _ in 0..4 {
        plane.held_by(&worker, "c2").await;
        let before = version(&plane, "c2");
        plane.net.cut(&worker, "c2");
        eventually("its record has changed", async || version(&plane, "c2") > before).await;
    }
    plane.held_by(&worker, "c2").await;
    eventually("its copy is as new", async || version(&plane, "c1") >= version(&plane, "c2")).await;
    let before = version(&plane, "c1");
    plane.join("c3").await;
    plane.agree();
    plane.held_by(&worker, "c3").await;
    eventually("the new owner's record is newer than the copies of the old one", async || version(&plane, "c3") > before).await;
    eventually("and is copied", async || version(&plane, "c1") > before).await;
}

#[tokio::test]
async fn a_call_that_comes_back_to_where_it_began_ends_and_was_not_done() {
    let plane = Plane::start(2).await;
    let worker = plane.owned_by("c1");
    // Each takes the other for the owner of everything.
    let (one, other) = (control(plane.node(&id("c1"))), control(plane.node(&id("c2"))));
    one.see(&[other], false);
    other.see(&[one], false);
    let cluster = plane.cluster("c1");
    let error = tokio::time::timeout(FOREVER / 2, ask(&cluster, &worker, &Ask::Add(1)))
        .await
        .expect("it does not go on until its time is over")
        .expect_err("nobody has the worker");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::NotConnected, false), "{error}");
    assert_eq!(plane.class.asked.load(Ordering::SeqCst), 0);
    // A control node that asks its own worker does not go around.
    plane.cluster("c1").ping(&id("c1"), FOREVER).await.expect("answered");
}
