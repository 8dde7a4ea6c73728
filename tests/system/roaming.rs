//! Workers whose way to the control nodes changes under them: a router forgets their connections, or they get another address.

use std::net::SocketAddrV4;

use serde_json::Value;

use crate::machines::{CONTROLS, Plane, number};
use crate::namespace;
use crate::sockets::connected;
use crate::support::wait_for;

/// The hub hides the address of `w1`.
const MASQUERADE: &str = "table inet translation {
    chain out {
        type nat hook postrouting priority srcnat;
        ip saddr 10.78.4.0/24 masquerade
    }
}";

/// What a router does that lost its memory of these connections: their packets vanish in both directions, and nobody is told.
fn forgotten(ends: &[SocketAddrV4]) -> String {
    let rule = |end: &SocketAddrV4| {
        let (ip, port) = (end.ip(), end.port());
        format!("ip saddr {ip} tcp sport {port} drop\nip daddr {ip} tcp dport {port} drop")
    };
    let rules: Vec<String> = ends.iter().map(rule).collect();
    format!("table inet loss {{ chain pass {{ type filter hook forward priority filter\n{}\n }}\n }}", rules.join("\n"))
}

/// What a control node knows of a worker.
fn info(plane: &Plane, control: &str, worker: &str) -> Value {
    plane.ask(control, |cli| cli.json(&["info", worker]))
}

#[test]
fn a_worker_whose_router_forgets_its_connections_is_back_at_one_of_several_control_nodes() {
    if !namespace::is_possible() {
        return;
    }
    let mut plane = Plane::controls();
    plane.hub.filter(MASQUERADE);
    plane.workers(&CONTROLS);
    let task = plane.start_task("w1");
    let incarnation = info(&plane, "c1", "w1")["incarnation"].clone();
    for _ in 0..2 {
        let home = plane.settled_one("w1", &CONTROLS);
        let remote = info(&plane, &home, "w1")["remote"].as_str().expect("connected").to_owned();
        assert!(remote.starts_with(&format!("tls:10.78.{}.1:", number(&home))), "translated: {remote}");
        plane.hub.filter(&forgotten(&connected(&plane.machine("w1").daemon)));
        wait_for("another connection", || {
            let node = plane.ask(&home, |cli| cli.node("w1"))?;
            (node["status"] == "ready" && node["remote"] != remote.as_str()).then_some(())
        });
        plane.settled_one("w1", &CONTROLS);
        plane.serves(&CONTROLS, "w1", &task);
        assert_eq!(info(&plane, "c1", "w1")["incarnation"], incarnation);
    }
}

#[test]
fn a_worker_that_gets_another_address_is_back_at_one_of_several_control_nodes() {
    if !namespace::is_possible() {
        return;
    }
    let plane = Plane::start(&CONTROLS);
    let task = plane.start_task("w2");
    let incarnation = info(&plane, "c1", "w2")["incarnation"].clone();
    for host in [77, 78] {
        let machine = plane.machine("w2");
        machine.place.ip(&format!("address flush dev {}", machine.cable));
        machine.place.ip(&format!("address add 10.78.5.{host}/24 dev {}", machine.cable));
        machine.place.ip("route add default via 10.78.5.1");
        let from = format!("tls:10.78.5.{host}:");
        wait_for("it to come from there", || {
            let node = plane.ask("c1", |cli| cli.node("w2"))?;
            (node["status"] == "ready" && node["remote"].as_str()?.starts_with(&from)).then_some(())
        });
        plane.settled_one("w2", &CONTROLS);
        plane.serves(&CONTROLS, "w2", &task);
        assert_eq!(info(&plane, "c1", "w2")["incarnation"], incarnation);
    }
}
