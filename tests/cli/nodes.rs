//! `nodes`, `info`, `status`, `connect`, `forget`, `ping`.

use std::collections::BTreeSet;

use serde_json::json;

use crate::cli;
use crate::support::{Cli, Daemon};

#[test]
fn nodes_are_listed_with_everything_that_scripts_read() {
    let nodes = cli().json(&["nodes"]);
    let ids: Vec<_> = nodes.as_array().expect("an array").iter().map(|node| node["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["c1", "w1"]);
    for node in nodes.as_array().expect("an array") {
        let keys: BTreeSet<_> = node.as_object().expect("an object").keys().map(String::as_str).collect();
        for key in ["id", "status", "owner", "remote", "listen", "meta", "latency_ms", "tasks", "version", "classes", "stats"] {
            assert!(keys.contains(key), "{key} is not in {node}");
        }
        assert!(!keys.contains("proxies"), "{node}");
        assert_eq!(node["owner"], "c1");
    }
    let worker = &nodes[1];
    assert!(worker["remote"].as_str().is_some_and(|remote| remote.starts_with("tcp:127.0.0.1:")), "{worker}");
    assert_eq!(worker["status"], "ready");
}

#[test]
fn people_get_a_table_of_nodes() {
    let ran = cli().run(&["nodes"]);
    let lines: Vec<_> = ran.text().lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["ID", "STATUS", "OWNER", "REMOTE", "META", "LATENCY", "TASKS", "LOAD", "VERSION"]
    );
    assert!(lines[2].starts_with("w1  ready"), "{ran:?}");
    assert!(!ran.stdout.contains('\u{1b}'), "no colour in a pipe");
}

#[test]
fn a_selector_selects() {
    assert_eq!(cli().json(&["nodes", "--select", "id=w1 && status=ready"]).as_array().map(Vec::len), Some(1));
    assert_eq!(cli().json(&["nodes", "--select", "id=nobody"]), json!([]));
    assert_eq!(cli().run(&["nodes", "--select", "id=nobody"]).text(), "no nodes\n");
    cli().script(&["nodes", "--select", "a &&"]).fails(2, "invalid_usage");
}

#[test]
fn info_shows_one_node_and_its_proxies() {
    let info = cli().json(&["info", "w1"]);
    assert_eq!(info["id"], "w1");
    let [proxy] = &info["proxies"].as_array().expect("an array")[..] else { panic!("one proxy: {info}") };
    assert_eq!((&proxy["owner"], &proxy["active"]), (&json!("c1"), &json!(true)));
    assert!(proxy["term"].is_u64() && proxy["incarnation"].is_string() && proxy["rank"].is_object(), "{proxy}");
    let text = cli().run(&["info", "w1"]);
    assert!(text.text().contains("status       ready") && text.text().contains("proxy        at c1"), "{text:?}");
}

#[test]
fn a_status_is_changed_and_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let _worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    assert_eq!(cli.json(&["status", "w1", "standby"]), json!({ "status": "standby" }));
    cli.wait_status("w1", "standby");
    cli.script(&["task", "start", "w1", "files", "{\"hash\":{\"path\":\"x\"}}"]).fails(1, "node_not_ready").naming(&["standby"]);
    assert_eq!(cli.run(&["status", "w1", "ready"]).text(), "w1 is ready\n");
    cli.wait_status("w1", "ready");
    cli.script(&["status", "w1", "asleep"]).fails(2, "invalid_usage").naming(&["asleep", "standby"]);
}

#[test]
fn ping_counts_and_measures() {
    let pinged = cli().json(&["ping", "w1", "-c", "3", "--interval", "1ms"]);
    assert_eq!((&pinged["count"], &pinged["lost"]), (&json!(3), &json!(0)));
    let times: Vec<_> = ["min_us", "p50_us", "p99_us", "max_us"].iter().map(|name| pinged[name].as_u64().expect("a number")).collect();
    assert!(times.is_sorted(), "{pinged}");
    let ran = cli().run(&["ping", "w1", "-c", "2", "--interval", "1ms"]);
    assert_eq!(ran.text().lines().count(), 3, "each round trip and a summary: {ran:?}");
    cli().script(&["ping", "nobody"]).fails(4, "not_found");
}

#[test]
fn forget_needs_a_node() {
    cli().script(&["forget", "nobody"]).fails(4, "not_found");
    cli().run(&["forget", "nobody"]).fails(4, "not_found").naming(&["nobody"]);
}

#[test]
fn an_address_where_nobody_listens_is_not_attached() {
    let refused = cli().script(&["--timeout", "10s", "connect", "nkcluster://127.0.0.1:1;transport=tcp"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    refused.naming(&["127.0.0.1:1"]);
    cli().script(&["connect", "nkcluster://127.0.0.1:1;transport=hola"]).fails(2, "invalid_usage").naming(&["hola"]);
}
