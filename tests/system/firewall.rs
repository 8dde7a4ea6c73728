//! A worker whom nobody can reach: its firewall lets nothing new in, and its addresses are translated.
//!
//! ```text
//!   home                     router                        hall
//!   worker 10.77.1.2 ──── 10.77.1.1 masquerade 10.77.2.1 ──── 10.77.2.2 control node
//!   drops what is new        forgets what it translated
//! ```

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::cluster::{Control, start_worker};
use crate::namespace::{self, Namespace};
use crate::support::wait_for;

/// Packets from outside that belong to no connection of the worker's own.
const FIREWALL: &str = "table inet firewall {
    chain in {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
    }
}";

const MASQUERADE: &str = "table inet translation {
    chain out {
        type nat hook postrouting priority srcnat;
        ip saddr 10.77.1.0/24 ip daddr 10.77.2.0/24 masquerade
    }
}";

/// What a router does that lost its memory of a connection: its packets vanish in both directions, and nobody is told.
fn forgotten(port: u16) -> String {
    format!(
        "table inet loss {{
            chain in {{ type filter hook prerouting priority raw; ip daddr 10.77.2.1 tcp dport {port} drop; }}
            chain out {{ type filter hook postrouting priority 200; ip saddr 10.77.2.1 tcp sport {port} drop; }}
        }}"
    )
}

#[test]
fn a_worker_that_nobody_can_reach_is_used_fully_and_comes_back_when_its_connection_vanishes() {
    if !namespace::is_possible() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (home, router, hall) = (Namespace::new("home"), Namespace::new("router"), Namespace::new("hall"));
    home.link("10.77.1.2/24", &router, "10.77.1.1/24");
    router.link("10.77.2.1/24", &hall, "10.77.2.2/24");
    home.ip("route add default via 10.77.1.1");
    home.filter(FIREWALL);
    router.forward();
    router.filter(MASQUERADE);
    let control = Control::start(&hall, dir.path(), "nkcluster://10.77.2.2:1973;transport=tls");
    let arguments = ["--listen", "nkcluster://10.77.1.2:1973;transport=tls", "--cluster-addr", "nkcluster://10.77.2.2:1973;transport=tls"];
    let worker = start_worker(&home, dir.path(), &arguments, &[]);
    let knock = |address: &str| TcpStream::connect_timeout(&address.parse().expect("an address"), Duration::from_secs(1));
    assert!(home.inside(|| knock("10.77.1.2:1973")).is_ok(), "it listens");
    assert!(router.inside(|| knock("10.77.1.2:1973")).is_err(), "nothing new may come in");
    assert!(hall.inside(|| knock("10.77.1.2:1973")).is_err(), "there is no way to it");

    let remote = control.wait_status("ready");
    let port = port_of(&remote);
    control.use_fully(&worker);
    assert_eq!(port_of(&control.wait_status("ready")), port, "one connection was enough");

    let (incarnation, task) = (control.incarnation(), control.start_slow_task(&worker));
    router.filter(&forgotten(port));
    let is_back = || Some(control.ask(|cli| cli.node("w1"))?).filter(|node| node["status"] == "ready" && node["remote"] != remote.as_str());
    wait_for("another connection", is_back);
    assert_eq!(control.incarnation(), incarnation);
    assert!(control.runs(&task), "its tasks go on");
    assert_eq!(control.json(&["call", "w1", "echo", "1"]), json!({ "reply": [1] }));
}

/// The port of the router from which a worker came.
fn port_of(remote: &str) -> u16 {
    let address: SocketAddr = remote.strip_prefix("tls:").and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{remote}"));
    assert_eq!(address.ip().to_string(), "10.77.2.1", "translated");
    address.port()
}
