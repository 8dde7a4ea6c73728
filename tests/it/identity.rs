//! Every call has an identity: whatever is lost on the way, nothing is done twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nkcluster::Error;
use nkcluster::cluster::{CallOptions, Cluster, random_incarnation};
use nkcluster::job::TypedCalls;
use nkcluster::node::NodeHandle;
use nkcluster::proto::identity::CallIdentity;
use nkcluster::transport::memory::Flow;
use nkcluster::types::{Incarnation, NodeStatus};
use tokio::task::JoinHandle;

use crate::classes::{Ask, How, Probe, Spec, Tell};
use crate::harness::{DEADLINE, MemoryCluster, TIMEOUT, eventually, eventually_eq, kind, node_id, once, soon, task_id, uri};
use crate::relay::{Passes, Relay};

async fn start(probe: &Probe) -> (MemoryCluster, NodeHandle) {
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    (c, worker)
}

/// An identity of an edge of its own.
fn identity() -> CallIdentity {
    CallIdentity { edge: random_incarnation(), number: 1 }
}

fn repeating(identity: CallIdentity, addressed: Option<Incarnation>) -> CallOptions {
    once().repeating(identity, addressed)
}

async fn ask(cluster: &Cluster, request: Ask, options: CallOptions) -> nkcluster::Result<String> {
    cluster.ask::<Probe>(&node_id("w1"), &request, options).await
}

fn spawn_ask(cluster: &Cluster, request: Ask, options: CallOptions) -> JoinHandle<nkcluster::Result<String>> {
    let cluster = cluster.clone();
    tokio::spawn(async move { ask(&cluster, request, options).await })
}

fn failed<T: std::fmt::Debug>(result: nkcluster::Result<T>) -> Error {
    result.expect_err("failed")
}

async fn executed(probe: &Probe, count: usize) {
    eventually_eq(|| probe.executed(), count).await;
}

/// Loses the replies from now on, waits until so many calls were carried out, and cuts.
async fn lose_the_reply(c: &MemoryCluster, probe: &Probe, count: usize) {
    executed(probe, count).await;
    c.net.cut("w1", "c1");
    c.net.set_flow("w1", "c1", Flow::Open);
}

#[tokio::test]
async fn a_call_whose_reply_was_lost_is_repeated_and_not_done_twice() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let mut done = 0;
    for cluster in [c.cluster.clone(), c.admin().await] {
        let identity = identity();
        c.net.set_flow("w1", "c1", Flow::Lost);
        done += 1;
        let (lost, ()) = tokio::join!(ask(&cluster, Ask::Count, repeating(identity, None)), lose_the_reply(&c, &probe, done));
        let lost = failed(lost);
        assert_eq!(kind(&lost), ("connection_failed", true));
        assert_eq!(lost.addressed(), c.info("w1").await.incarnation);
        c.wait_status("w1", NodeStatus::Ready).await;
        for _ in 0..2 {
            let repeated = ask(&cluster, Ask::Count, repeating(identity, lost.addressed())).await;
            assert_eq!(repeated.expect("answered"), done.to_string());
        }
        assert_eq!(probe.executed(), done);
    }
}

#[tokio::test]
async fn a_call_with_retry_gets_the_reply_that_was_lost() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let mut done = 0;
    for cluster in [c.cluster.clone(), c.admin().await] {
        c.net.set_flow("w1", "c1", Flow::Lost);
        done += 1;
        let (reply, ()) = tokio::join!(ask(&cluster, Ask::Count, once().with_retry()), lose_the_reply(&c, &probe, done));
        assert_eq!(reply.expect("answered"), done.to_string());
        assert_eq!(probe.executed(), done);
    }
}

#[tokio::test]
async fn a_retry_of_a_call_that_still_runs_waits_for_its_outcome() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let identity = identity();
    let first = spawn_ask(&c.cluster, Ask::Hold, repeating(identity, None));
    let retrying = spawn_ask(&c.cluster, Ask::Hold, once().with_retry());
    executed(&probe, 2).await;
    c.net.cut("w1", "c1");
    let lost = failed(first.await.expect("no panic"));
    assert_eq!(kind(&lost), ("connection_failed", true));
    c.wait_status("w1", NodeStatus::Ready).await;
    let repeated: Vec<_> = (0..3).map(|_| spawn_ask(&c.cluster, Ask::Hold, repeating(identity, lost.addressed()))).collect();
    // A call that comes after them is answered before them: they wait.
    ask(&c.cluster, Ask::Echo(String::new()), once()).await.expect("answered");
    probe.work.open();
    let mut replies = vec![soon("the retry", retrying).await.expect("no panic").expect("answered")];
    for repeated in repeated {
        let reply = soon("a repetition", repeated).await.expect("no panic").expect("answered");
        if replies.len() == 1 {
            assert_ne!(reply, replies[0], "two calls");
            replies.push(reply);
        } else {
            assert_eq!(reply, replies[1], "one outcome");
        }
    }
    assert_eq!(probe.executed(), 2);
}

#[tokio::test]
async fn a_call_that_never_arrived_is_done_once_by_its_retry() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    c.net.set_flow("c1", "w1", Flow::Lost);
    let sent = c.net.bytes("c1", "w1");
    let asking = spawn_ask(&c.cluster, Ask::Count, once().with_retry());
    eventually("the call has left", async || c.net.bytes("c1", "w1") > sent).await;
    c.net.cut("w1", "c1");
    c.net.set_flow("c1", "w1", Flow::Open);
    assert_eq!(soon("the reply", asking).await.expect("no panic").expect("answered"), "1");
    assert_eq!(probe.executed(), 1);
}

#[tokio::test]
async fn wherever_the_link_is_cut_everything_is_done_once() {
    // The link is cut in front of its n-th frame, for every n that the script reaches.
    for cut_at in 1.. {
        let probe = Probe::<false>::new();
        let c = MemoryCluster::start(probe.classes()).await;
        let frames = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&frames);
        let _relay = Relay::start(&c.net, "between", "c1", move |_, frame| match frame.kind {
            // Of the handshake, and pings, whose number depends on the time that passes.
            ..=17 => Passes::Yes,
            _ if counted.fetch_add(1, Ordering::SeqCst) + 1 == cut_at => Passes::Cut,
            _ => Passes::Yes,
        });
        let between = |config: &mut nkcluster::config::Config| {
            config.cluster_addr = vec![uri("nkcluster://between;transport=memory")];
            config.stats_time = Duration::from_secs(3600);
        };
        let worker = c.worker_with("w1", probe.classes(), between).await;
        let w1 = node_id("w1");
        let retry = || once().with_retry();
        let started = c.cluster.start::<Probe>(&w1, &Spec::Replying("welcome".into()), retry().with_task_id(task_id("t1"))).await;
        assert_eq!(started.expect("started").reply.as_deref(), Some("welcome"), "cut at {cut_at}");
        assert_eq!(ask(&c.cluster, Ask::Count, retry()).await.expect("answered"), "2", "cut at {cut_at}");
        let told = c.cluster.tell::<Probe>(&w1, &task_id("t1"), &Tell::End(How::Normal), retry()).await;
        assert_eq!(told.expect("answered"), "it will end", "cut at {cut_at}");
        let task = |text: &String| text.starts_with("started") || text.starts_with("stopped");
        let own = || probe.told("w1").into_iter().filter(task).collect::<Vec<_>>();
        eventually_eq(own, vec!["started t1".to_owned(), "stopped t1 normal".to_owned()]).await;
        assert_eq!(probe.executed(), 2, "cut at {cut_at}");
        drop(worker);
        if frames.load(Ordering::SeqCst) < cut_at {
            assert!(cut_at > 10, "the script has more than {cut_at} frames");
            break;
        }
    }
}

#[tokio::test]
async fn a_call_of_a_worker_that_was_restarted_is_not_tried_again() {
    let probe = Probe::<false>::new();
    let (c, worker) = start(&probe).await;
    // An hour of retries, if nobody noticed that they are pointless.
    let patient = CallOptions::timeout(Duration::from_secs(3600)).with_retry();
    let held = [spawn_ask(&c.cluster, Ask::Hold, patient.clone()), spawn_ask(&c.admin().await, Ask::Hold, patient)];
    executed(&probe, 2).await;
    let before = c.info("w1").await.incarnation;
    drop(worker);
    let _again = c.start_worker("w1", probe.classes(), |_| ()).await;
    for held in held {
        let error = failed(soon("the held call", held).await.expect("no panic"));
        assert_eq!(kind(&error), ("connection_failed", true));
    }
    c.wait_status("w1", NodeStatus::Ready).await;
    assert_ne!(c.info("w1").await.incarnation, before);
    let error = failed(ask(&c.cluster, Ask::Count, repeating(identity(), before)).await);
    assert_eq!(kind(&error), ("connection_failed", true));
    assert_eq!(probe.executed(), 2, "nothing was done again");
    // A first attempt goes to whoever is there.
    assert_eq!(ask(&c.cluster, Ask::Count, once()).await.expect("answered"), "3");
}

#[tokio::test]
async fn a_client_that_lost_its_own_link_does_nothing_twice_on_a_restarted_worker() {
    let probe = Probe::<false>::new();
    let (c, worker) = start(&probe).await;
    let admin = c.admin().await;
    c.net.set_flow("w1", "c1", Flow::Lost);
    let asking = spawn_ask(&admin, Ask::Count, CallOptions::timeout(DEADLINE).with_retry());
    executed(&probe, 1).await;
    // The client loses the control node, and before it is back the worker has begun another life.
    c.net.set_refused("admin", "c1", true);
    c.net.cut("admin", "c1");
    drop(worker);
    c.net.set_flow("w1", "c1", Flow::Open);
    let _again = c.worker("w1", probe.classes()).await;
    c.net.set_refused("admin", "c1", false);
    let error = failed(soon("the call", asking).await.expect("no panic"));
    assert_eq!(kind(&error), ("connection_failed", true));
    assert_eq!(probe.executed(), 1);
    assert_eq!(ask(&admin, Ask::Count, once().with_retry()).await.expect("answered"), "2");
}

#[tokio::test]
async fn a_client_that_lost_its_own_link_gets_the_reply_that_was_lost() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let admin = c.admin().await;
    let asking = spawn_ask(&admin, Ask::Hold, once().with_retry());
    executed(&probe, 1).await;
    c.net.cut("admin", "c1");
    probe.work.open();
    assert_eq!(soon("the call", asking).await.expect("no panic").expect("answered"), "1");
    assert_eq!(probe.executed(), 1);
}

#[tokio::test]
async fn a_call_that_was_refused_may_be_done_by_the_next_incarnation() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = c.worker_with("w1", probe.classes(), |config| config.max_calls = 1).await;
    let holding = spawn_ask(&c.cluster, Ask::Hold, once());
    executed(&probe, 1).await;
    assert_eq!(kind(&failed(ask(&c.cluster, Ask::Count, once()).await)), ("busy", false));
    let patient = spawn_ask(&c.cluster, Ask::Count, CallOptions::timeout(DEADLINE).with_retry());
    // Refused at least once, as it has no room.
    let sent = c.net.bytes("c1", "w1");
    eventually("it was tried", async || c.net.bytes("c1", "w1") > sent + 100).await;
    drop(worker);
    assert!(failed(holding.await.expect("no panic")).may_have_run());
    let _again = c.worker("w1", probe.classes()).await;
    assert_eq!(soon("the patient call", patient).await.expect("no panic").expect("answered"), "2");
}

#[tokio::test]
async fn a_task_is_known_by_its_id_and_its_start_by_its_identity() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let (w1, identity) = (node_id("w1"), identity());
    let named = || once().with_task_id(task_id("t1"));
    let welcome = Spec::Replying("welcome".into());
    for _ in 0..3 {
        let started = c.cluster.start::<Probe>(&w1, &welcome, named().repeating(identity, None)).await.expect("started");
        assert_eq!(started.reply.as_deref(), Some("welcome"));
    }
    let other = c.cluster.start::<Probe>(&w1, &welcome, named()).await;
    assert_eq!(kind(&failed(other)), ("already_started", false));
    assert_eq!(probe.executed(), 1);
    // Even when the task has ended: the same start is not another one.
    c.cluster.tell::<Probe>(&w1, &task_id("t1"), &Tell::End(How::Normal), once()).await.expect("answered");
    probe.wait_told("w1", &["started t1", "stopped t1 normal"]).await;
    c.cluster.start::<Probe>(&w1, &welcome, named().repeating(identity, None)).await.expect("the old answer");
    assert_eq!(probe.executed(), 1);
    assert_eq!(c.cluster.tasks(&w1, None, TIMEOUT).await.expect("listed").len(), 0);
}

#[tokio::test]
async fn a_reply_that_came_after_its_timeout_can_be_asked_for() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let identity = identity();
    let short = CallOptions::timeout(Duration::from_millis(50)).repeating(identity, None);
    let late = failed(ask(&c.cluster, Ask::Hold, short).await);
    assert_eq!(kind(&late), ("timeout", true));
    probe.work.open();
    let repeated = ask(&c.cluster, Ask::Hold, repeating(identity, late.addressed())).await;
    assert_eq!(repeated.expect("answered"), "1");
    assert_eq!(probe.executed(), 1);
}

#[tokio::test]
async fn a_worker_forgets_what_its_callers_have_and_nothing_else() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker_with("w1", probe.classes(), |config| config.outcome_bytes = 256 * 1024).await;
    for cluster in [c.cluster.clone(), c.admin().await] {
        // Nobody but its application knows when this one is needed no more.
        let kept = identity();
        let first = ask(&cluster, Ask::Count, repeating(kept, None)).await.expect("answered");
        // Ten times what the worker can remember, if it had to.
        for _ in 0..2000 {
            ask(&cluster, Ask::Bytes(1024), once()).await.expect("answered");
        }
        assert_eq!(ask(&cluster, Ask::Count, repeating(kept, None)).await.expect("still known"), first);
    }
}

#[tokio::test]
async fn a_client_that_says_goodbye_leaves_nothing_at_the_worker() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker_with("w1", probe.classes(), |config| config.outcome_bytes = 256 * 1024).await;
    let kept = identity();
    let first = ask(&c.cluster, Ask::Count, repeating(kept, None)).await.expect("answered");
    for client in 0..20 {
        let cluster = c.admin().await;
        ask(&cluster, Ask::Bytes(40 * 1024), once()).await.expect("answered");
        // Either way it says what it needs no more.
        if client % 2 == 0 {
            cluster.close().await
        } else {
            drop(cluster)
        }
        // Its last words come before those of whoever asks next.
        c.cluster.ping(&node_id("w1"), TIMEOUT).await.expect("answered");
    }
    assert_eq!(ask(&c.cluster, Ask::Count, repeating(kept, None)).await.expect("still known"), first);
}

#[tokio::test]
async fn an_outcome_that_is_no_longer_known_is_told_as_unknown() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(probe.classes()).await;
    let _worker = c.worker_with("w1", probe.classes(), |config| config.outcome_bytes = 64 * 1024).await;
    let first = identity();
    ask(&c.cluster, Ask::Count, repeating(first, None)).await.expect("answered");
    for number in 2..=3 {
        let large = CallIdentity { number, ..first };
        ask(&c.cluster, Ask::Bytes(40 * 1024), repeating(large, None)).await.expect("answered");
    }
    let error = failed(ask(&c.cluster, Ask::Count, repeating(first, None)).await);
    assert_eq!(kind(&error), ("outcome_unknown", true));
    assert_eq!(probe.executed(), 1);
}
