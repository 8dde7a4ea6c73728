//! A worker that freezes or dies while it moves from one control node to another.

use rustix::process::Signal;
use serde_json::json;

use crate::several::{NAMES, Plane, index, without};
use crate::support::wait_for;

/// Three control nodes that do not wait for long for what cannot move.
fn start() -> Plane {
    Plane::start_with(|_, command| {
        command.env("NKCLUSTER_DRAIN_TIMEOUT", "8000");
    })
}

#[test]
fn a_worker_that_is_frozen_while_it_moves_is_obeying_one_control_node_when_it_wakes() {
    let mut plane = start();
    let tasks = plane.start_tasks();
    let home = plane.settled(&NAMES).remove(0);
    let others = without(&home);
    // It is asked to obey its next owner, and cannot answer.
    plane.workers[0].signal(Signal::STOP);
    plane.stop(&home);
    plane.agree(&others);
    plane.workers[0].signal(Signal::CONT);
    plane.settled(&others);
    plane.unharmed(&others, &tasks);
    // And while it should move back.
    plane.restart(&home);
    plane.workers[0].signal(Signal::STOP);
    plane.agree(&NAMES);
    plane.workers[0].signal(Signal::CONT);
    plane.settled(&NAMES);
    plane.unharmed(&NAMES, &tasks);
}

#[test]
fn a_worker_that_is_killed_while_it_moves_is_back_at_one_control_node_without_its_tasks() {
    let mut plane = start();
    let mut lives = Vec::new();
    // The moment differs: before the control node tells anybody that it goes, and when its place in the ring is gone.
    for is_late in [false, true] {
        let (life, task) = plane.start_task(&plane.workers[0]);
        let home = plane.settled(&NAMES).remove(0);
        let others = without(&home);
        plane.controls[index(&home)].signal(Signal::TERM);
        if is_late {
            plane.ring(&others, &others);
        }
        plane.restart_worker(0);
        assert!(plane.controls[index(&home)].wait().success());
        plane.agree(&others);
        let at_another_life = |name: &&str| plane.at(name).json(&["info", "w1"])["incarnation"] != life;
        wait_for("the next life of the worker", || others.iter().all(at_another_life).then_some(()));
        plane.settled(&others);
        for name in &others {
            assert_eq!(plane.at(name).runs("w1", &task), Some(0), "a task ends with its worker");
            assert_eq!(plane.at(name).json(&["call", "w1", "echo", "1"]), json!({ "reply": [1] }));
        }
        plane.restart(&home);
        plane.agree(&NAMES);
        plane.settled(&NAMES);
        lives.push(life);
    }
    assert_ne!(lives[0], lives[1]);
}
