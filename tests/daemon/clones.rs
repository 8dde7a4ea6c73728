//! Two machines with one `node_id`, as after an image was cloned.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::several::{NAMES, Plane, index};
use crate::support::{Daemon, wait_for};

/// The incarnation of `w1`, as one control node knows it.
fn incarnation(plane: &Plane, control: &str) -> Value {
    plane.at(control).json(&["info", "w1"])["incarnation"].clone()
}

/// How often a daemon has said something.
fn said(daemon: &Daemon, what: &str) -> usize {
    daemon.log().matches(what).count()
}

#[test]
fn the_clone_of_a_worker_is_refused_with_an_alarm_and_taken_when_the_first_one_dies() {
    let mut plane = Plane::start();
    let tasks = plane.start_tasks();
    let first = tasks[0].0.clone();
    let home = plane.settled(&NAMES).remove(0);
    let terms = plane.terms();
    let clone = plane.worker("w1", &plane.dir.path().join("clone"));
    // It asks again and again; wherever it comes, the owner of its id refuses it.
    wait_for("the clone to be refused twice", || (said(&clone, "the id is in use by another live node") >= 2).then_some(()));
    let alarms = said(&plane.controls[index(&home)], "two live nodes use one node_id");
    assert!(alarms >= 2, "each time the operator is told: {alarms}");
    assert!(said(&plane.workers[0], "the id is in use") == 0, "the first one is left in peace");
    assert_eq!(plane.settled(&NAMES)[0], home);
    assert_eq!(plane.terms(), terms);
    plane.unharmed(&NAMES, &tasks);

    plane.workers[0].signal(Signal::KILL);
    plane.workers[0].wait();
    wait_for("the clone to be taken", || NAMES.iter().all(|name| incarnation(&plane, name) != first).then_some(()));
    plane.settled(&NAMES);
    let (second, task) = plane.start_task(&clone);
    assert_ne!(second, first);
    for name in NAMES {
        assert_eq!(incarnation(&plane, name), second);
        assert_eq!(plane.at(name).runs("w1", &task), Some(1), "by {name}");
        assert_eq!(plane.at(name).runs("w1", &tasks[0].1), Some(0), "what the first one did has ended with it");
        assert_eq!(plane.at(name).json(&["call", "w1", "echo", "1"]), json!({ "reply": [1] }));
    }
}
