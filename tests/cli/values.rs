//! `meta` and `data`.

use serde_json::json;

use crate::cli;
use crate::support::{Cli, Daemon, wait_for};

#[test]
fn labels_are_set_replaced_and_unset() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let _worker = Daemon::start(
        &dir.path().join("w1"),
        &["--worker", "--node-id", "w1", "--cluster-addr", &control.uri(), "--meta", "core;group=g1"],
    );
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let core = json!({ "name": "core", "values": { "group": "g1" } });
    assert_eq!(cli.json(&["meta", "w1"]), json!([core]));
    let disk = json!({ "name": "disk", "values": { "size": "big", "ssd": null } });
    assert_eq!(cli.json(&["meta", "w1", "set", "disk;size=big;ssd"]), json!([core, disk]));
    wait_for("the labels in the list", || (cli.json(&["nodes", "--select", "ssd"])[0]["meta"] == json!([core, disk])).then_some(()));
    let ran = cli.run(&["meta", "w1", "set", "core;group=g2"]);
    assert_eq!(ran.text(), "LABEL  VALUES\ncore   group=g2\ndisk   size=big, ssd\n");
    assert_eq!(cli.json(&["meta", "w1", "unset", "core,disk"]), json!([]));
    assert_eq!(cli.run(&["meta", "w1"]).text(), "no labels\n");
    cli.script(&["meta", "w1", "set", "a;b;b"]).fails(2, "invalid_usage");
    cli.script(&["meta", "nobody"]).fails(4, "not_found");
}

#[test]
fn values_are_put_got_and_deleted() {
    assert_eq!(cli().json(&["data", "w1", "get", "v1"]), json!({ "value": null }));
    cli().json(&["data", "w1", "put", "v1", "{\"a\": [1, -2.5]}"]);
    assert_eq!(cli().json(&["data", "w1", "get", "v1"]), json!({ "value": { "a": [1, -2.5] } }));
    assert_eq!(cli().run(&["data", "w1", "get", "v1"]).text(), "{\"a\":[1,-2.5]}\n");
    assert_eq!(cli().run(&["data", "w1", "put", "v1", "a text"]).text(), "v1 is stored on w1\n");
    assert_eq!(cli().json(&["data", "w1", "get", "v1"]), json!({ "value": "a text" }));
    cli().json(&["data", "w1", "put", "v1", "-7"]);
    assert_eq!(cli().json(&["data", "w1", "get", "v1"]), json!({ "value": -7 }));
    assert_eq!(cli().run(&["data", "w1", "del", "v1"]).text(), "v1 is deleted on w1\n");
    assert_eq!(cli().run(&["data", "w1", "get", "v1"]).text(), "null\n");
}
