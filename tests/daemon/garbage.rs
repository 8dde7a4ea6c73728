//! Peers without trust that send anything to every port of a cluster at work.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::several::{Caller, NAMES, Plane, index};
use crate::sockets::{connected, listening};
use crate::support::{DEADLINE, Daemon, wait_for};

/// Connections that say nothing at all, for each port.
const SILENT: usize = 20;

/// What no peer of ours would say.
fn garbage(random: &mut StdRng) -> Vec<(&'static str, Vec<u8>)> {
    let mut noise = |bytes: usize| (0..bytes).map(|_| random.random()).collect::<Vec<u8>>();
    let frame = |length: u32, kind: u8, body: &[u8]| [&length.to_be_bytes()[..], &[kind, 0, 0], body].concat();
    vec![
        ("noise", noise(64 * 1024)),
        ("a little noise", noise(9)),
        ("a request of the web", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("the beginning of TLS", [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &noise(200)].concat()),
        ("an empty frame", frame(0, 0, &[])),
        ("a frame that is too large", frame(u32::MAX, 1, &noise(100))),
        ("a first message of noise", frame(3 + 500, 1, &noise(500))),
        ("a proof without a first message", frame(3 + 200, 3, &noise(200))),
        ("a call before trust", frame(3 + 100, 8, &noise(100))),
        // An array of arrays, deeper than anybody reads.
        ("a first message without a bottom", frame(3 + 2000, 1, &[0x91; 2000])),
    ]
}

/// Says it, and waits until the other side has had enough; whatever it answers does not matter here.
fn say(to: SocketAddrV4, what: &[u8]) {
    let mut peer = TcpStream::connect(to).expect("it listens");
    peer.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    // It may be closed before all of it has left.
    let _ = peer.write_all(what);
    let _ = peer.shutdown(std::net::Shutdown::Write);
    let mut answer = [0; 1024];
    while matches!(peer.read(&mut answer), Ok(1..)) {}
}

#[test]
fn garbage_for_every_port_of_every_control_node_disturbs_nobody() {
    let plane = Plane::start();
    let tasks = plane.start_tasks();
    let (homes, terms) = (plane.settled(&NAMES), plane.terms());
    let ring = plane.at("c1").json(&["ring"]);
    let members = plane.at("c1").json(&["members"]);
    let connections = || NAMES.map(|name| connected(&plane.controls[index(name)]).len());
    let before = connections();
    let caller = Caller::start(&plane);

    // Their own listeners, over which data links, sessions of membership and workers come, and those of ractor_cluster.
    let ports: Vec<SocketAddrV4> = plane.controls.iter().flat_map(|daemon| listening(daemon).0).collect();
    assert_eq!(ports.len(), 2 * NAMES.len());
    let silent: Vec<TcpStream> =
        ports.iter().flat_map(|port| (0..SILENT).map(move |_| TcpStream::connect(port).expect("it listens"))).collect();
    let mut random = StdRng::seed_from_u64(4);
    for round in 0..3 {
        for (what, bytes) in garbage(&mut random) {
            eprintln!("round {round}: {what}");
            std::thread::scope(|scope| {
                for port in &ports {
                    scope.spawn(|| say(*port, &bytes));
                }
            });
        }
        caller.wait_for(100);
    }
    // One that plays a control node, without the secret.
    let stranger =
        ["--control", "--node-id", "c4", "--listen", "nkcluster://127.0.0.1:0;transport=tcp", "--cluster-addr", &plane.everywhere()];
    let stranger = Daemon::start_with(&plane.dir.path().join("stranger"), &stranger, |command| {
        command.env("NKCLUSTER_PASSWORD", "another secret");
    });
    wait_for("the stranger to be turned away", || {
        plane.controls.iter().any(|daemon| daemon.log().contains("invalid_password")).then_some(())
    });
    caller.finish();
    assert_eq!(plane.settled(&NAMES), homes);
    assert_eq!(plane.terms(), terms, "no worker was adopted anew");
    assert_eq!(plane.at("c1").json(&["ring"]), ring);
    assert_eq!(plane.at("c1").json(&["members"]), members);
    plane.unharmed(&NAMES, &tasks);
    drop((silent, stranger));
    wait_for("what strangers had opened to be closed", || (connections() == before).then_some(()));
}
