//! `members`, `ring`, `join`, `leave`, `plan`, `commit`, and what `connect` and `forget` mean to several control nodes.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Cli, Daemon, wait_for};

const LISTEN: &str = "nkcluster://127.0.0.1:0;transport=tcp";

/// A control node with more settings.
fn control(dir: &Path, id: &str, settings: &[(&str, &str)]) -> Daemon {
    Daemon::start_with(&dir.join(id), &["--control", "--node-id", id, "--listen", LISTEN], |command| {
        command.envs(settings.iter().copied());
    })
}

/// Three control nodes that found each other by `cluster_addr`.
fn three(dir: &Path) -> [Daemon; 3] {
    let first = Daemon::control(dir, "c1");
    let [second, third] = ["c2", "c3"].map(|id| control(dir, id, &[("NKCLUSTER_CLUSTER_ADDR", &first.uri())]));
    let daemons = [first, second, third];
    agree(&daemons.each_ref().map(Cli::to), &["c1", "c2", "c3"]);
    daemons
}

/// Waits until all of these see one ring of exactly these owners.
fn agree(clis: &[Cli], names: &[&str]) -> Value {
    wait_for(&format!("a ring of {names:?}"), || {
        let rings: Vec<Value> = clis.iter().map(|cli| cli.json(&["ring"])).collect();
        let owners: BTreeSet<&str> = rings[0]["owners"].as_array()?.iter().filter_map(Value::as_str).collect();
        (rings.iter().all(|ring| *ring == rings[0]) && owners.into_iter().eq(names.iter().copied())).then(|| rings[0].clone())
    })
}

fn states(cli: &Cli) -> Vec<Value> {
    let members = cli.json(&["members"]);
    members.as_array().expect("an array").iter().map(|member| json!([member["id"], member["state"]])).collect()
}

#[test]
fn three_control_nodes_are_shown_by_each_of_them_and_change_as_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let daemons = three(dir.path());
    let clis = daemons.each_ref().map(Cli::to);
    let ring = agree(&clis, &["c1", "c2", "c3"]);
    assert_eq!(ring["owners"].as_array().map(|owners| json!(owners.len())), Some(ring["size"].clone()));
    assert!(ring["epoch"].is_string(), "{ring}");
    for cli in &clis {
        let members = cli.json(&["members"]);
        let members = members.as_array().expect("an array");
        assert_eq!(members.len(), 3);
        for member in members {
            assert_eq!(member["state"], "joined", "{member}");
            assert!(member["incarnation"].is_string() && member["proxies"].is_u64() && member["listen"][0].is_string(), "{member}");
            let owned = ring["owners"].as_array().expect("an array").iter().filter(|owner| **owner == member["id"]).count();
            assert_eq!(member["partitions"], owned, "{member}");
        }
    }
    let text = clis[1].run(&["members"]);
    let lines: Vec<_> = text.text().lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["ID", "STATE", "PARTITIONS", "PROXIES", "LISTEN", "INCARNATION", "VERSION"]
    );
    assert!(lines.len() == 4 && lines[3].starts_with("c3  joined"), "{text:?}");
    let text = clis[2].run(&["ring"]);
    assert!(text.text().contains(&format!("{} partitions, epoch ", ring["size"])) && text.text().contains(" %"), "{text:?}");
    assert_eq!(clis[0].json(&["plan"]), json!({ "staged": [], "size": ring["size"], "moved": 0, "transfers": [] }));
    assert_eq!(clis[0].run(&["plan"]).text(), "nothing is staged\n");
    assert_eq!(clis[0].json(&["commit"]), json!({ "nodes": [] }));

    // A worker that listens is attached through any of them, and known to all.
    let worker = Daemon::start(&dir.path().join("w1"), &["--worker", "--node-id", "w1", "--listen", LISTEN]);
    assert_eq!(clis[1].json(&["connect", &worker.uri()]), json!({ "node": "w1" }));
    for cli in &clis {
        cli.wait_status("w1", "ready");
        assert_eq!(cli.json(&["request", "w1", "core", "\"status\""]), json!({ "reply": { "status": "ready" } }));
    }

    // Who lives is not forgotten, who is not there cannot leave, and one that leaves is asked through another.
    clis[0].script(&["forget", "c2"]).fails(1, "not_allowed").naming(&["c2"]);
    clis[0].script(&["leave", "nobody"]).fails(4, "not_found").naming(&["nobody"]);
    assert_eq!(clis[0].json(&["leave", "c3"]), json!({ "node": "c3" }));
    agree(&clis[..2], &["c1", "c2"]);
    clis[0].wait_status("w1", "ready");
    assert!(clis[1].run(&["leave", "c2"]).text().contains("c2 is leaving"));
    agree(&clis[..1], &["c1"]);
    clis[0].wait_status("w1", "ready");
}

#[test]
fn control_nodes_without_addresses_are_joined_by_hand_and_faults_have_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let [first, second] = ["c1", "c2"].map(|id| Daemon::control(dir.path(), id));
    let other = control(dir.path(), "c3", &[("NKCLUSTER_RING_SIZE", "8")]);
    let (cli, uri) = (Cli::to(&first), second.uri());
    cli.script(&["join", &first.uri()]).fails(1, "self_join").naming(&["c1"]);
    cli.script(&["--timeout", "10s", "join", "nkcluster://127.0.0.1:1;transport=tcp"]).fails(1, "not_reachable").naming(&["127.0.0.1:1"]);
    cli.script(&["join", "nkcluster://h;transport=hola"]).fails(2, "invalid_usage").naming(&["hola"]);
    cli.script(&["join", &other.uri()]).fails(1, "different_ring_sizes").naming(&["c3", "ring_size"]);
    assert_eq!(cli.json(&["join", &uri]), json!({ "node": "c2", "state": "joined" }));
    agree(&[cli.clone(), Cli::to(&second)], &["c1", "c2"]);
    assert_eq!(cli.run(&["join", &uri]).text(), "c2 is joined\n", "again, to no harm");

    // Two clusters of several are not made one by a join.
    let [third, fourth] = ["d1", "d2"].map(|id| Daemon::control(dir.path(), id));
    Cli::to(&third).json(&["join", &fourth.uri()]);
    agree(&[Cli::to(&third), Cli::to(&fourth)], &["d1", "d2"]);
    cli.script(&["join", &third.uri()]).fails(1, "not_single_node").naming(&["d1"]);
}

#[test]
fn a_staged_join_is_planned_and_committed() {
    let dir = tempfile::tempdir().expect("a directory");
    let [first, second] = ["c1", "c2"].map(|id| control(dir.path(), id, &[("NKCLUSTER_STAGED_JOINS", "true")]));
    let (cli, other) = (Cli::to(&first), Cli::to(&second));
    assert_eq!(other.json(&["join", &first.uri()])["node"], "c1");
    let plan = wait_for("a plan", || Some(cli.json(&["plan"])).filter(|plan| plan["staged"] != json!([])));
    assert_eq!(plan["staged"].as_array().map(Vec::len), Some(1), "{plan}");
    let moved: u64 = plan["transfers"].as_array().expect("an array").iter().filter_map(|transfer| transfer["partitions"].as_u64()).sum();
    assert!(moved > 0 && plan["moved"] == moved, "{plan}");
    let text = cli.run(&["plan"]);
    assert!(text.text().contains(&format!("moves {moved} of {} partitions", plan["size"])), "{text:?}");
    assert!(states(&cli).iter().any(|state| state[1] == "staged"), "{:?}", states(&cli));
    assert_eq!(cli.json(&["commit"]), json!({ "nodes": plan["staged"] }));
    agree(&[cli.clone(), other], &["c1", "c2"]);
    assert_eq!(cli.run(&["commit"]).text(), "nothing was staged\n");
}
