//! Control nodes as real processes: membership travels between their actors, over ractor_cluster.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::sockets::listening;
use crate::support::{Cli, Daemon, wait_for};

/// Far more than the five seconds after which a silent node is out, and far less than what the kernel needs to notice.
const NOTICED: Duration = Duration::from_secs(30);

fn control(dir: &Path, id: &str, first: &Daemon) -> Daemon {
    let listen = "nkcluster://127.0.0.1:0;transport=tls";
    Daemon::start(&dir.join(id), &["--control", "--node-id", id, "--listen", listen, "--cluster-addr", &first.uri()])
}

fn states(cli: &Cli) -> Vec<(String, String)> {
    let members = cli.json(&["members"]);
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    members.as_array().expect("an array").iter().map(|member| (text(member, "id"), text(member, "state"))).collect()
}

/// Waits until each of these sees the same ring of exactly these owners.
fn agree(daemons: &[&Daemon], names: &[&str]) {
    wait_for(&format!("a ring of {names:?}"), || {
        let rings: Vec<Value> = daemons.iter().map(|daemon| Cli::to(daemon).json(&["ring"])).collect();
        let same = rings.windows(2).all(|pair| pair[0] == pair[1]);
        let owners = rings[0]["owners"].as_array().expect("an array");
        let mut owners: Vec<_> = owners.iter().map(|owner| owner.as_str().expect("a name")).collect();
        owners.sort_unstable();
        owners.dedup();
        (same && owners == names).then_some(())
    });
}

fn uses_actors(daemon: &Daemon) -> bool {
    daemon.log().contains("membership travels between actors")
}

#[test]
fn three_control_nodes_find_each_other_and_notice_what_becomes_of_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Daemon::control(dir.path(), "c1");
    let second = control(dir.path(), "c2", &first);
    let mut third = control(dir.path(), "c3", &first);
    agree(&[&first, &second, &third], &["c1", "c2", "c3"]);
    for daemon in [&first, &second, &third] {
        wait_for("sessions of ractor_cluster", || uses_actors(daemon).then_some(()));
    }
    let cli = Cli::to(&first);
    let before = cli.json(&["members"])[2]["incarnation"].clone();

    // Killed: out soon, and back under the same name as somebody new.
    third.signal(Signal::KILL);
    third.wait();
    let killed = Instant::now();
    agree(&[&first, &second], &["c1", "c2"]);
    assert!(killed.elapsed() < NOTICED, "{:?}", killed.elapsed());
    eprintln!("a killed control node was out after {:?}", killed.elapsed());
    assert_eq!(states(&cli)[2], ("c3".to_owned(), "unreachable".to_owned()));
    let started = Instant::now();
    let third = third.again();
    agree(&[&first, &second, &third], &["c1", "c2", "c3"]);
    eprintln!("a restarted control node was back after {:?}", started.elapsed());
    assert_ne!(cli.json(&["members"])[2]["incarnation"], before);

    // Frozen: ractor_cluster would never notice.
    third.signal(Signal::STOP);
    let frozen = Instant::now();
    agree(&[&first, &second], &["c1", "c2"]);
    assert!(frozen.elapsed() < NOTICED, "{:?}", frozen.elapsed());
    eprintln!("a frozen control node was out after {:?}", frozen.elapsed());
    third.signal(Signal::CONT);
    agree(&[&first, &second, &third], &["c1", "c2", "c3"]);
    eprintln!("a frozen control node was back after {:?}", frozen.elapsed());
}

#[test]
fn a_control_node_that_is_stopped_is_out_at_once_and_expected_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Daemon::control(dir.path(), "c1");
    let mut second = control(dir.path(), "c2", &first);
    agree(&[&first, &second], &["c1", "c2"]);
    second.signal(Signal::TERM);
    assert!(second.wait().success());
    let cli = Cli::to(&first);
    agree(&[&first], &["c1"]);
    assert_eq!(states(&cli), [("c1".to_owned(), "joined".to_owned()), ("c2".to_owned(), "stopped".to_owned())]);
    cli.script(&["forget", "c1"]).fails(1, "not_allowed");
    assert_eq!(cli.json(&["forget", "c2"]), serde_json::json!({ "node": "c2" }));
    assert_eq!(states(&cli).len(), 1);
    // Forgotten, not banned: a new life of it may join.
    let second = second.again();
    agree(&[&first, &second], &["c1", "c2"]);
}

#[test]
fn a_cluster_that_was_killed_as_a_whole_finds_itself_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut first = Daemon::control(dir.path(), "c1");
    let mut second = control(dir.path(), "c2", &first);
    agree(&[&first, &second], &["c1", "c2"]);
    let listen = second.uri();
    for daemon in [&mut first, &mut second] {
        daemon.signal(Signal::KILL);
        daemon.wait();
    }
    // Nobody is told an address: the first knows the second from its list of members.
    let arguments = ["--control", "--node-id", "c2", "--listen", &listen];
    let second = Daemon::start(&dir.path().join("c2"), &arguments);
    let first = first.again();
    agree(&[&first, &second], &["c1", "c2"]);
}

#[test]
fn the_server_of_the_actors_listens_on_loopback_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Daemon::control(dir.path(), "c1");
    let second = control(dir.path(), "c2", &first);
    agree(&[&first, &second], &["c1", "c2"]);
    wait_for("a session of ractor_cluster", || uses_actors(&second).then_some(()));
    for daemon in [&first, &second] {
        // Its own listener, and that of ractor_cluster.
        let (addresses, of_ipv6) = listening(daemon);
        let hosts: Vec<Ipv4Addr> = addresses.iter().map(|address| *address.ip()).collect();
        assert_eq!((hosts, of_ipv6), (vec![Ipv4Addr::LOCALHOST; 2], 0));
    }
}
