//! What becomes of workers when one of their three control nodes dies, freezes, or comes twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nkcluster::Error;
use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::types::NodeId;
use rustix::process::Signal;
use serde_json::Value;

use crate::several::{NAMES, Plane, WORKERS, index, without};
use crate::support::{Cli, wait_for};

#[test]
fn when_a_control_node_is_killed_its_workers_are_served_elsewhere_with_their_tasks_and_again_when_it_is_back() {
    let mut plane = Plane::start();
    let tasks = plane.start_tasks();
    let victim = plane.settled(&NAMES).remove(0);
    let others = without(&victim);
    plane.kill(&victim);
    plane.settled(&others);
    plane.agree(&others);
    plane.settled(&others);
    plane.unharmed(&others, &tasks);
    plane.restart(&victim);
    plane.agree(&NAMES);
    plane.settled(&NAMES);
    plane.unharmed(&NAMES, &tasks);
}

#[test]
fn when_a_control_node_is_frozen_its_workers_are_served_elsewhere_and_it_joins_again_without_acting_twice() {
    let plane = Plane::start();
    let tasks = plane.start_tasks();
    let victim = plane.settled(&NAMES).remove(0);
    let others = without(&victim);
    plane.controls[index(&victim)].signal(Signal::STOP);
    plane.agree(&others);
    plane.settled(&others);
    plane.unharmed(&others, &tasks);
    plane.controls[index(&victim)].signal(Signal::CONT);
    plane.agree(&NAMES);
    plane.settled(&NAMES);
    plane.unharmed(&NAMES, &tasks);
}

#[test]
fn of_a_frozen_control_node_and_its_successor_of_the_same_name_only_one_acts() {
    let plane = Plane::start();
    let tasks = plane.start_tasks();
    let victim = plane.settled(&NAMES).remove(0);
    let others = without(&victim);
    let frozen = &plane.controls[index(&victim)];
    frozen.signal(Signal::STOP);
    plane.agree(&others);
    // Its port is taken, and its directory in use.
    let successor = plane.start_as(&victim, &plane.dir.path().join("successor"), "nkcluster://127.0.0.1:0;transport=tcp");
    plane.ring(&others, &NAMES);
    plane.settled_at(&others, &NAMES);
    frozen.signal(Signal::CONT);
    wait_for("somebody to be told of two lives", || {
        let warned = others.iter().any(|name| plane.controls[index(name)].log().contains("has the node_id"));
        warned.then_some(())
    });
    plane.ring(&others, &NAMES);
    plane.settled_at(&others, &NAMES);
    plane.unharmed(&others, &tasks);
    let member = plane.at(others[0]).json(&["members"])[index(&victim)]["incarnation"].clone();
    let lives = [frozen, &successor].map(|daemon| Cli::to(daemon).json(&["members"])[index(&victim)]["incarnation"].clone());
    eprintln!("of {lives:?} (the frozen one, its successor) {member} is a member");
}

/// Clients, each with a connection of its own.
const CLIENTS: usize = 4;
/// Callers of each of them.
const CALLERS: usize = 16;
/// Pause between two calls of a caller: together they call as often as the machine can, or six thousand times in a second.
const PAUSE: Duration = Duration::from_millis(10);

/// What became of calls.
#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    errors: Mutex<Vec<Error>>,
}

/// Calls both workers all the time until it is told to stop. No call is tried twice: whatever fails is kept.
async fn keep_calling(cluster: Cluster, stop: Arc<AtomicBool>, counts: Arc<Counts>) {
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let worker = NodeId::new(WORKERS[usize::from(number % 2 == 0)]).expect("a name");
        match cluster.call_function(&worker, "echo", vec![Value::from(number)], CallOptions::timeout(Duration::from_secs(40))).await {
            Ok(reply) => {
                assert_eq!(reply, Value::from(vec![number]), "the answer of another call");
                counts.answered.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => counts.errors.lock().expect("nobody panics with it").push(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[test]
fn a_rolling_restart_of_all_control_nodes_loses_no_call_and_no_task() {
    let mut plane = Plane::start();
    let tasks = plane.start_tasks();
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut callers = Vec::new();
    for _ in 0..CLIENTS {
        let cluster = runtime.block_on(plane.connect());
        callers.extend((0..CALLERS).map(|_| runtime.spawn(keep_calling(cluster.clone(), Arc::clone(&stop), Arc::clone(&counts)))));
    }
    let begun = Instant::now();
    for name in NAMES {
        let before = counts.answered.load(Ordering::SeqCst);
        wait_for("calls before", || (counts.answered.load(Ordering::SeqCst) > before + 1000).then_some(()));
        plane.stop(name);
        plane.agree(&without(name));
        plane.settled(&without(name));
        plane.restart(name);
        plane.agree(&NAMES);
        plane.settled(&NAMES);
    }
    let took = begun.elapsed();
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        runtime.block_on(caller).expect("no panic");
    }
    let answered = counts.answered.load(Ordering::SeqCst);
    eprintln!("{answered} calls were answered during a rolling restart, {:.0} in a second", answered as f64 / took.as_secs_f64());
    let errors = counts.errors.lock().expect("nobody panics with it");
    assert!(errors.is_empty(), "{} calls were lost: {:?}", errors.len(), errors.iter().take(10).collect::<Vec<_>>());
    plane.unharmed(&NAMES, &tasks);
}
