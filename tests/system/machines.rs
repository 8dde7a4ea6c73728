//! Three control nodes and two workers on machines of their own, and a network between them that fails as it is told to.
//!
//! ```text
//!   c1 10.78.1.2 ──┐
//!   c2 10.78.2.2 ──┤           ┌── w1 10.78.4.2, whose firewall lets nothing new in
//!   c3 10.78.3.2 ──┴── hub ────┴── w2 10.78.5.2
//! ```
//!
//! The hub passes packets on, and drops those of the pairs that are cut, in one direction or both.

use serde_json::{Value, json};

use crate::cluster::open;
use crate::namespace::Namespace;
use crate::support::{Cli, Daemon, wait_for};

pub(crate) const CONTROLS: [&str; 3] = ["c1", "c2", "c3"];
pub(crate) const WORKERS: [&str; 2] = ["w1", "w2"];

/// Nothing that belongs to no connection of the machine's own.
const FIREWALL: &str = "table inet firewall {
    chain in {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
    }
}";

pub(crate) struct Machine {
    pub(crate) daemon: Daemon,
    pub(crate) place: Namespace,
    /// The cable to the hub.
    pub(crate) cable: String,
}

pub(crate) struct Plane {
    machines: Vec<Machine>,
    pub(crate) hub: Namespace,
    pub(crate) dir: tempfile::TempDir,
}

/// Its place in the addresses.
pub(crate) fn number(name: &str) -> usize {
    CONTROLS.iter().chain(&WORKERS).position(|known| *known == name).expect("one of ours") + 1
}

pub(crate) fn address(name: &str) -> String {
    format!("nkcluster://10.78.{}.2:1973;transport=tls", number(name))
}

impl Plane {
    /// Starts all of them; the workers know these control nodes.
    pub(crate) fn start(known: &[&str]) -> Self {
        let mut plane = Self::controls();
        plane.workers(known);
        plane
    }

    /// Starts the control nodes.
    pub(crate) fn controls() -> Self {
        let hub = Namespace::new("hub");
        hub.forward();
        let mut plane = Self { machines: Vec::new(), hub, dir: tempfile::tempdir().expect("a directory") };
        for id in CONTROLS {
            let others: Vec<String> = CONTROLS.iter().filter(|other| **other != id).map(|other| address(other)).collect();
            plane.add(id, &["--control", "--node-id", id, "--listen", &address(id), "--cluster-addr", &others.join(",")]);
        }
        plane
    }

    /// Starts the workers, which know these control nodes, and waits until all is quiet.
    pub(crate) fn workers(&mut self, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|control| address(control)).collect();
        for id in WORKERS {
            self.add(id, &["--worker", "--node-id", id, "--cluster-addr", &known.join(",")]);
        }
        self.machine("w1").place.filter(FIREWALL);
        self.ring(&CONTROLS, &CONTROLS);
        self.settled(&CONTROLS);
    }

    /// The machine of a node.
    pub(crate) fn machine(&self, name: &str) -> &Machine {
        &self.machines[number(name) - 1]
    }

    pub(crate) fn machine_mut(&mut self, name: &str) -> &mut Machine {
        &mut self.machines[number(name) - 1]
    }

    fn add(&mut self, id: &str, arguments: &[&str]) {
        let place = Namespace::new(id);
        let net = number(id);
        let cable = place.link(&format!("10.78.{net}.2/24"), &self.hub, &format!("10.78.{net}.1/24"));
        place.ip(&format!("route add default via 10.78.{net}.1"));
        let dir = self.dir.path().join(id);
        let daemon = place.inside(|| Daemon::start_with(&dir, arguments, open));
        self.machines.push(Machine { daemon, place, cable });
    }

    /// Drops what goes from one to another, instead of what was dropped before.
    pub(crate) fn drop_packets(&self, ways: &[(&str, &str)]) {
        let rules: Vec<String> =
            ways.iter().map(|(from, to)| format!("ip saddr 10.78.{}.2 ip daddr 10.78.{}.2 drop;", number(from), number(to))).collect();
        let chain = format!("chain pass {{ type filter hook forward priority filter; {}\n }}", rules.join("\n"));
        self.hub.filter(&format!("table inet cut\ndelete table inet cut\ntable inet cut {{ {chain}\n }}"));
    }

    /// Uses the command on the machine of a control node.
    pub(crate) fn ask<T: Send>(&self, control: &str, ask: impl FnOnce(&Cli) -> T + Send) -> T {
        let Machine { daemon, place, .. } = self.machine(control);
        let cli = Cli::to(daemon);
        place.inside(|| ask(&cli))
    }

    /// Waits until each of `seers` has the same ring of exactly these owners.
    pub(crate) fn ring(&self, seers: &[&str], names: &[&str]) {
        wait_for(&format!("a ring of {names:?} for {seers:?}"), || {
            let rings: Vec<Value> = seers.iter().map(|name| self.ask(name, |cli| cli.json(&["ring"]))).collect();
            let mut owners: Vec<_> = rings[0]["owners"].as_array()?.iter().filter_map(Value::as_str).collect();
            owners.sort_unstable();
            owners.dedup();
            (rings.windows(2).all(|pair| pair[0] == pair[1]) && owners == names).then_some(())
        });
    }

    /// Waits until each worker is ready for each of these control nodes, by the same acting proxy at one of them, and no other; returns where.
    pub(crate) fn settled(&self, names: &[&str]) -> Vec<String> {
        WORKERS.iter().map(|worker| self.settled_one(worker, names)).collect()
    }

    pub(crate) fn settled_one(&self, worker: &str, names: &[&str]) -> String {
        wait_for(&format!("one acting proxy of {worker} for {names:?}"), || {
            let seen: Vec<_> = names.iter().map(|name| self.ask(name, |cli| cli.acting(worker))).collect();
            let first = seen[0].first()?;
            let is_ready = |name: &&str| self.ask(name, |cli| cli.node(worker)).is_some_and(|node| node["status"] == "ready");
            let is_one = names.contains(&first.as_str()) && seen.iter().all(|acting| acting.len() == 1 && acting == &seen[0]);
            (is_one && names.iter().all(is_ready)).then(|| first.clone())
        })
    }

    /// Starts a task that takes longer than any test.
    pub(crate) fn start_task(&self, worker: &str) -> String {
        let daemon = &self.machine(worker).daemon;
        self.ask("c1", |cli| cli.start_long_task(daemon))
    }

    /// That each of these control nodes can call a worker, which runs its task once.
    pub(crate) fn serves(&self, names: &[&str], worker: &str, task: &str) {
        for name in names {
            assert_eq!(self.ask(name, |cli| cli.json(&["call", worker, "echo", "1"])), json!({ "reply": [1] }), "{worker} by {name}");
            assert_eq!(self.ask(name, |cli| cli.runs(worker, task)), Some(1), "{task} of {worker} by {name}");
        }
    }
}
