//! `request`, `call`, `task`.

use serde_json::json;

use crate::support::Ran;
use crate::{cli, shared, start_slow_task};

#[test]
fn a_request_is_answered() {
    assert_eq!(cli().json(&["request", "w1", "core", "\"status\""]), json!({ "reply": { "status": "ready" } }));
    assert!(cli().run(&["request", "w1", "core", "\"status\""]).text().contains("\"status\": \"ready\""));
}

#[test]
fn a_request_may_come_from_standard_input() {
    let ran = Ran::of(cli().command(&["--json", "request", "w1", "core", "-"]), "\"status\"\n");
    assert_eq!(ran.json(), json!({ "reply": { "status": "ready" } }));
}

#[test]
fn a_function_is_called_with_its_arguments() {
    assert_eq!(cli().json(&["call", "w1", "echo"]), json!({ "reply": [] }));
    assert_eq!(cli().json(&["call", "w1", "echo", "-1", "\"two\"", "[3]"]), json!({ "reply": [-1, "two", [3]] }));
    assert_eq!(cli().run(&["call", "w1", "echo", "1"]).text(), "[\n  1\n]\n");
    cli().script(&["call", "w1", "no-such-function"]).fails(1, "unknown_function");
    cli().script(&["call", "w1", "echo", "two"]).fails(2, "invalid_payload").naming(&["argument 1", "double quotes"]);
}

#[test]
fn a_task_is_started_listed_and_stopped() {
    let id = start_slow_task(cli(), &shared().worker);
    let listed = cli().json(&["task", "list", "w1", "files"]);
    let task = listed.as_array().expect("an array").iter().find(|task| task["id"] == id).expect("it runs");
    assert!(task["class"] == "files" && task["started"].is_u64() && task["state"].is_string(), "{task}");
    assert!(cli().run(&["task", "list", "w1"]).text().contains(&id));
    let again = ["task", "start", "w1", "files", "{\"hash\":{\"path\":\"slow\"}}", "--id", &id];
    cli().script(&again).fails(1, "already_started");
    assert_eq!(cli().json(&["task", "stop", "w1", "files", &id]), json!({ "task_id": id }));
    cli().script(&["task", "stop", "w1", "files", &id]).fails(4, "task_not_found");
    cli().script(&["task", "command", "w1", "files", &id, "{}"]).fails(4, "task_not_found");
    assert_eq!(cli().json(&["task", "list", "w1", "no-such-class"]), json!([]));
}

#[test]
fn a_task_without_an_id_gets_one() {
    std::fs::create_dir_all(shared().worker.dir().join("files/nothing")).expect("a directory");
    let started = cli().json(&["task", "start", "w1", "files", "{\"hash\":{\"path\":\"nothing\"}}"]);
    assert!(started["task_id"].as_str().is_some_and(|id| !id.is_empty()), "{started}");
    assert!(started.as_object().is_some_and(|fields| fields.contains_key("reply")), "{started}");
    assert!(
        cli()
            .run(&["task", "start", "w1", "files", "{\"hash\":{\"path\":\"nothing\"}}", "--id", "t-7"])
            .text()
            .starts_with("task t-7 runs on w1")
    );
}
