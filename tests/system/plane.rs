//! Three control nodes and two workers on machines of their own, with networks that fail between them.
//!
//! ```text
//!   c1 10.78.1.2 ──┐
//!   c2 10.78.2.2 ──┤           ┌── w1 10.78.4.2, whose firewall lets nothing new in
//!   c3 10.78.3.2 ──┴── hub ────┴── w2 10.78.5.2
//! ```
//!
//! The hub passes packets on, and drops those of the pairs that are cut, in one direction or both.

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::open;
use crate::namespace::{self, Namespace};
use crate::support::{Cli, Daemon, wait_for};

const CONTROLS: [&str; 3] = ["c1", "c2", "c3"];
const WORKERS: [&str; 2] = ["w1", "w2"];

/// Nothing that belongs to no connection of the machine's own.
const FIREWALL: &str = "table inet firewall {
    chain in {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
    }
}";

struct Machine {
    daemon: Daemon,
    place: Namespace,
}

struct Plane {
    machines: Vec<Machine>,
    hub: Namespace,
    dir: tempfile::TempDir,
}

fn number(name: &str) -> usize {
    CONTROLS.iter().chain(&WORKERS).position(|known| *known == name).expect("one of ours") + 1
}

fn address(name: &str) -> String {
    format!("nkcluster://10.78.{}.2:1973;transport=tls", number(name))
}

impl Plane {
    /// Starts all of them; the workers know these control nodes.
    fn start(known: &[&str]) -> Self {
        let hub = Namespace::new("hub");
        hub.forward();
        let mut plane = Self { machines: Vec::new(), hub, dir: tempfile::tempdir().expect("a directory") };
        for id in CONTROLS {
            let others: Vec<String> = CONTROLS.iter().filter(|other| **other != id).map(|other| address(other)).collect();
            plane.add(id, &["--control", "--node-id", id, "--listen", &address(id), "--cluster-addr", &others.join(",")]);
        }
        let known: Vec<String> = known.iter().map(|control| address(control)).collect();
        for id in WORKERS {
            plane.add(id, &["--worker", "--node-id", id, "--cluster-addr", &known.join(",")]);
        }
        plane.machines[number("w1") - 1].place.filter(FIREWALL);
        plane.ring(&CONTROLS, &CONTROLS);
        plane.settled(&CONTROLS);
        plane
    }

    fn add(&mut self, id: &str, arguments: &[&str]) {
        let place = Namespace::new(id);
        let net = number(id);
        place.link(&format!("10.78.{net}.2/24"), &self.hub, &format!("10.78.{net}.1/24"));
        place.ip(&format!("route add default via 10.78.{net}.1"));
        let dir = self.dir.path().join(id);
        let daemon = place.inside(|| Daemon::start_with(&dir, arguments, open));
        self.machines.push(Machine { daemon, place });
    }

    /// Drops what goes from one to another, instead of what was dropped before.
    fn drop_packets(&self, ways: &[(&str, &str)]) {
        let rules: Vec<String> =
            ways.iter().map(|(from, to)| format!("ip saddr 10.78.{}.2 ip daddr 10.78.{}.2 drop;", number(from), number(to))).collect();
        let chain = format!("chain pass {{ type filter hook forward priority filter; {}\n }}", rules.join("\n"));
        self.hub.filter(&format!("table inet cut\ndelete table inet cut\ntable inet cut {{ {chain}\n }}"));
    }

    /// Uses the command on the machine of a control node.
    fn ask<T: Send>(&self, control: &str, ask: impl FnOnce(&Cli) -> T + Send) -> T {
        let Machine { daemon, place } = &self.machines[number(control) - 1];
        let cli = Cli::to(daemon);
        place.inside(|| ask(&cli))
    }

    /// Waits until each of `seers` has the same ring of exactly these owners.
    fn ring(&self, seers: &[&str], names: &[&str]) {
        wait_for(&format!("a ring of {names:?} for {seers:?}"), || {
            let rings: Vec<Value> = seers.iter().map(|name| self.ask(name, |cli| cli.json(&["ring"]))).collect();
            let mut owners: Vec<_> = rings[0]["owners"].as_array()?.iter().filter_map(Value::as_str).collect();
            owners.sort_unstable();
            owners.dedup();
            (rings.windows(2).all(|pair| pair[0] == pair[1]) && owners == names).then_some(())
        });
    }

    /// Waits until each worker is ready for each of these control nodes, by the same acting proxy at one of them, and no other; returns where.
    fn settled(&self, names: &[&str]) -> Vec<String> {
        WORKERS.iter().map(|worker| self.settled_one(worker, names)).collect()
    }

    fn settled_one(&self, worker: &str, names: &[&str]) -> String {
        wait_for(&format!("one acting proxy of {worker} for {names:?}"), || {
            let seen: Vec<_> = names.iter().map(|name| self.ask(name, |cli| cli.acting(worker))).collect();
            let first = seen[0].first()?;
            let is_ready = |name: &&str| self.ask(name, |cli| cli.node(worker)).is_some_and(|node| node["status"] == "ready");
            let is_one = names.contains(&first.as_str()) && seen.iter().all(|acting| acting.len() == 1 && acting == &seen[0]);
            (is_one && names.iter().all(is_ready)).then(|| first.clone())
        })
    }

    /// Starts a task that takes longer than any test.
    fn start_task(&self, worker: &str) -> String {
        let root = self.machines[number(worker) - 1].daemon.dir().join("files");
        fs::create_dir_all(&root).expect("made");
        File::create(root.join("slow")).and_then(|file| file.set_len(1 << 40)).expect("made");
        let started = self.ask("c1", |cli| cli.json(&["task", "start", worker, "files", "{\"hash\":{\"path\":\"slow\"}}"]));
        started["task_id"].as_str().expect("an id").to_owned()
    }

    /// That each of these control nodes can call a worker, which runs its task once.
    fn serves(&self, names: &[&str], worker: &str, task: &str) {
        for name in names {
            assert_eq!(self.ask(name, |cli| cli.json(&["call", worker, "echo", "1"])), json!({ "reply": [1] }), "{worker} by {name}");
            assert_eq!(self.ask(name, |cli| cli.runs(worker, task)), Some(1), "{task} of {worker} by {name}");
        }
    }
}

/// Sends a small file to a worker and sees it there.
fn sends_a_file(plane: &Plane, by: &str, worker: &str, local: &Path, name: &str) {
    let content = vec![7; 300_000];
    fs::write(local, &content).expect("written");
    let sent = plane.ask(by, |cli| cli.json(&["send", worker, &local.display().to_string(), name]));
    assert_eq!(sent["bytes"], 300_000, "{sent}");
    let there = plane.machines[number(worker) - 1].daemon.dir().join("files").join(name);
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
            let lost = ["c1", "c2"].iter().any(|name| plane.machines[number(name) - 1].daemon.log().contains("has been silent"));
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
    let at = number(&home) - 1;
    let machine = &mut plane.machines[at];
    machine.daemon.signal(rustix::process::Signal::TERM);
    assert!(machine.daemon.wait().success());
    plane.ring(&others, &others);
    plane.settled(&others);
    plane.serves(&others, "w1", &task);
    sends_a_file(&plane, others[0], "w1", &local, "second");
    let machine = &mut plane.machines[at];
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
