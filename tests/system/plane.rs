//! Several control nodes, and networks that fail between them and their workers.

use std::fs;
use std::path::Path;

use crate::cluster::open;
use crate::machines::{CONTROLS, Plane, WORKERS, address};
use crate::namespace;
use crate::support::{Daemon, wait_for};

/// Sends a small file to a worker and sees it there.
fn sends_a_file(plane: &Plane, by: &str, worker: &str, local: &Path, name: &str) {
    let content = vec![7; 300_000];
    fs::write(local, &content).expect("written");
    let sent = plane.ask(by, |cli| cli.json(&["send", worker, &local.display().to_string(), name]));
    assert_eq!(sent["bytes"], 300_000, "{sent}");
    let there = plane.machine(worker).daemon.dir().join("files").join(name);
    assert!(fs::read(there).expect("it is there") == content);
}

#[test]
fn a_pair_of_control_nodes_that_is_cut_reaches_each_other_by_way_of_the_third() {
    if !namespace::is_possible() {
        return;
    }
    let plane = Plane::start(&CONTROLS);
    let tasks = WORKERS.map(|worker| plane.start_task(worker));
    for ways in [&[("c1", "c2")][..], &[("c1", "c2"), ("c2", "c1")]] {
        plane.drop_packets(ways);
        wait_for("the pair to notice", || {
            let lost = ["c1", "c2"].iter().any(|name| plane.machine(name).daemon.log().contains("has been silent"));
            lost.then_some(())
        });
        plane.ring(&CONTROLS, &CONTROLS);
        plane.settled(&CONTROLS);
        for (worker, task) in WORKERS.iter().zip(&tasks) {
            plane.serves(&CONTROLS, worker, task);
        }
    }
    plane.drop_packets(&[]);
    plane.ring(&CONTROLS, &CONTROLS);
    plane.settled(&CONTROLS);
}

#[test]
fn after_a_split_with_workers_on_both_sides_each_has_one_acting_proxy_again() {
    if !namespace::is_possible() {
        return;
    }
    let plane = Plane::start(&CONTROLS);
    let tasks = WORKERS.map(|worker| plane.start_task(worker));
    let (left, right) = (["c1", "c2", "w1"], ["c3", "w2"]);
    let ways: Vec<_> = left.iter().flat_map(|a| right.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect();
    plane.drop_packets(&ways);
    plane.ring(&["c1", "c2"], &["c1", "c2"]);
    plane.ring(&["c3"], &["c3"]);
    plane.settled_one("w1", &["c1", "c2"]);
    plane.settled_one("w2", &["c3"]);
    plane.serves(&["c1", "c2"], "w1", &tasks[0]);
    plane.serves(&["c3"], "w2", &tasks[1]);
    plane.drop_packets(&[]);
    plane.ring(&CONTROLS, &CONTROLS);
    plane.settled(&CONTROLS);
    for (worker, task) in WORKERS.iter().zip(&tasks) {
        plane.serves(&CONTROLS, worker, task);
    }
}

#[test]
fn a_worker_that_nobody_can_dial_moves_between_control_nodes_as_they_go_and_come() {
    if !namespace::is_possible() {
        return;
    }
    let mut plane = Plane::start(&CONTROLS);
    let task = plane.start_task("w1");
    let local = plane.dir.path().join("local");
    let home = plane.settled_one("w1", &CONTROLS);
    sends_a_file(&plane, "c1", "w1", &local, "first");
    let others: Vec<&str> = CONTROLS.into_iter().filter(|name| *name != home).collect();
    let machine = plane.machine_mut(&home);
    machine.daemon.signal(rustix::process::Signal::TERM);
    assert!(machine.daemon.wait().success());
    plane.ring(&others, &others);
    plane.settled(&others);
    plane.serves(&others, "w1", &task);
    sends_a_file(&plane, others[0], "w1", &local, "second");
    let machine = plane.machine_mut(&home);
    machine.daemon = machine.place.inside(|| {
        let known = others.iter().map(|name| address(name)).collect::<Vec<_>>().join(",");
        let dir = machine.daemon.dir().to_owned();
        Daemon::start_with(&dir, &["--control", "--node-id", &home, "--listen", &address(&home), "--cluster-addr", &known], open)
    });
    plane.ring(&CONTROLS, &CONTROLS);
    wait_for("the worker to be at home again", || (plane.settled_one("w1", &CONTROLS) == home).then_some(()));
    plane.serves(&CONTROLS, "w1", &task);
    sends_a_file(&plane, others[0], "w1", &local, "third");
}
