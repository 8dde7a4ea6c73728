//! The original's task test (checklist A14, 12 to 22): labels, data, calls, files, tasks, status.

use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::job::{Classes, TypedCalls};
use nkcluster::transfer::{FileCalls as _, RelPath, TransferId};
use nkcluster::types::{ClassName, Meta, NodeStatus, TaskId, WantedStatus};
use nkcluster::{Error, ErrorCode};
use serde_json::json;

use crate::classes::{Ask, How, Probe, Spec, Tell};
use crate::harness::{MemoryCluster, TIMEOUT, eventually, eventually_eq, kind, node_id, once, soon, task_id};

async fn start(probe: &Probe) -> (MemoryCluster, nkcluster::node::NodeHandle) {
    let c = MemoryCluster::start(probe.classes()).await;
    let worker = c.worker("w1", probe.classes()).await;
    (c, worker)
}

async fn ask(cluster: &Cluster, request: Ask) -> nkcluster::Result<String> {
    cluster.ask::<Probe>(&node_id("w1"), &request, once()).await
}

async fn begin(cluster: &Cluster, id: &str, spec: Spec) -> nkcluster::Result<Option<String>> {
    let started = cluster.start::<Probe>(&node_id("w1"), &spec, once().with_task_id(task_id(id))).await?;
    assert_eq!(started.id.as_str(), id);
    Ok(started.reply)
}

async fn tell(cluster: &Cluster, id: &str, command: Tell) -> nkcluster::Result<String> {
    cluster.tell::<Probe>(&node_id("w1"), &task_id(id), &command, once()).await
}

async fn task_ids(cluster: &Cluster) -> Vec<String> {
    let class = ClassName::new("probe").expect("valid");
    let tasks = cluster.tasks(&node_id("w1"), Some(class), TIMEOUT).await.expect("listed");
    tasks.into_iter().map(|task| task.id.to_string()).collect()
}

fn failed<T: std::fmt::Debug>(result: nkcluster::Result<T>) -> Error {
    result.expect_err("refused")
}

#[tokio::test]
async fn labels_are_merged_by_name_and_removed_by_name() {
    let (c, _worker) = start(&Probe::new()).await;
    let w1 = node_id("w1");
    let meta = |text: &str| text.parse::<Meta>().expect("labels");
    assert_eq!(c.cluster.meta(&w1, TIMEOUT).await.expect("answered").to_string(), "");
    let all = c.cluster.update_meta(&w1, meta("name;a=1;b=2, other;flag"), TIMEOUT).await.expect("updated");
    assert_eq!(all.to_string(), "name;a=1;b=2, other;flag");
    let all = c.cluster.update_meta(&w1, meta("third, name;c=3"), TIMEOUT).await.expect("updated");
    assert_eq!(all.to_string(), "name;c=3, other;flag, third");
    eventually("the cluster sees it", async || c.info("w1").await.meta == all).await;
    let rest = c.cluster.remove_meta(&w1, vec!["other".to_owned(), "unknown".to_owned()], TIMEOUT).await.expect("removed");
    assert_eq!(rest.to_string(), "name;c=3, third");
    assert_eq!(c.cluster.meta(&w1, TIMEOUT).await.expect("answered"), rest);
}

#[tokio::test]
async fn data_that_is_missing_is_null_and_no_error() {
    let (c, _worker) = start(&Probe::new()).await;
    let w1 = node_id("w1");
    let data = async || c.cluster.data(&w1, "key", TIMEOUT).await.expect("answered");
    assert_eq!(data().await, json!(null));
    c.cluster.put_data(&w1, "key", json!({"a": [1, 2.5, "x"]}), TIMEOUT).await.expect("stored");
    assert_eq!(data().await, json!({"a": [1, 2.5, "x"]}));
    c.cluster.delete_data(&w1, "key", TIMEOUT).await.expect("deleted");
    assert_eq!(data().await, json!(null));
}

#[tokio::test]
async fn a_registered_function_is_called_with_its_arguments() {
    let probe = Probe::<false>::new();
    let c = MemoryCluster::start(Classes::new()).await;
    let sum = |args: Vec<serde_json::Value>| async move { Ok(json!(args.iter().filter_map(serde_json::Value::as_i64).sum::<i64>())) };
    let _worker = c.worker("w1", probe.classes().with_function("sum", sum)).await;
    let w1 = node_id("w1");
    let reply = c.cluster.call_function(&w1, "sum", vec![json!(1), json!(41)], once()).await;
    assert_eq!(reply.expect("called"), json!(42));
    let error = failed(c.cluster.call_function(&w1, "product", vec![], once()).await);
    assert_eq!(error.code(), &ErrorCode::UnknownFunction);
    assert!(error.message().contains("sum"), "it says what there is: {error}");
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_the_next_call_gets_its_own() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    for _ in 0..3 {
        let short = CallOptions::timeout(Duration::from_millis(50));
        let error = failed(c.cluster.ask::<Probe>(&node_id("w1"), &Ask::Hold, short).await);
        assert_eq!(kind(&error), ("timeout", true));
    }
    probe.work.entered(3).await;
    probe.work.open();
    for number in 0..20 {
        let text = format!("answer {number}");
        assert_eq!(ask(&c.cluster, Ask::Echo(text.clone())).await.expect("answered"), text);
    }
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
}

#[tokio::test]
async fn files_arrive_whole_in_a_directory_that_is_made() {
    let (c, _worker) = start(&Probe::new()).await;
    for (name, bytes) in [("small", 500), ("large", 2 * 1024 * 1024)] {
        let content: Vec<u8> = (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(bytes).collect();
        let local = c.dir.path().join(name);
        std::fs::write(&local, &content).expect("written");
        let remote = RelPath::parse(&format!("made/{name}/copy")).expect("a path");
        let sent = c.cluster.send_file(&node_id("w1"), &local, &remote, TransferId::random(), TIMEOUT, |_| ()).await.expect("sent");
        assert_eq!(sent.bytes, bytes as u64);
        let copy = std::fs::read(c.dir.path().join("w1/files/made").join(name).join("copy")).expect("the copy is there");
        assert!(copy == content, "the copy of {name} differs");
    }
}

#[tokio::test]
async fn answers_and_errors_of_a_class_pass_through_unchanged() {
    let (c, _worker) = start(&Probe::new()).await;
    assert_eq!(ask(&c.cluster, Ask::Echo("héllo\0".to_owned())).await.expect("answered"), "héllo\0");
    assert_eq!(ask(&c.cluster, Ask::Bytes(3 << 20)).await.expect("answered").len(), 3 << 20);
    let error = failed(ask(&c.cluster, Ask::Fail("my_error".to_owned())).await);
    assert_eq!((error.code(), error.message()), (&ErrorCode::Class("my_error".into()), "as told"));
    assert_eq!(kind(&failed(ask(&c.cluster, Ask::Panic).await)), ("handler_panicked", true));
    assert_eq!(ask(&c.cluster, Ask::Echo("still here".to_owned())).await.expect("answered"), "still here");
    assert_eq!(c.net.links("w1", "c1"), 1, "neither connection nor worker is hurt");
    let nobody = c.cluster.ask::<Probe>(&node_id("w9"), &Ask::Count, once()).await;
    assert_eq!(kind(&failed(nobody)), ("not_found", false));
}

#[tokio::test]
async fn what_a_class_does_not_know_is_named() {
    let (c, _worker) = start(&Probe::new()).await;
    let w1 = node_id("w1");
    let probe = ClassName::new("probe").expect("valid");
    let odd = || nkcluster::types::Payload::from_json(r#"{"somersault": 1}"#).expect("JSON");
    assert_eq!(kind(&failed(c.cluster.request(&w1, &probe, odd(), once()).await)), ("unknown_request", false));
    assert_eq!(kind(&failed(c.cluster.start_task(&w1, &probe, odd(), once()).await)), ("unknown_task", false));
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    assert_eq!(kind(&failed(c.cluster.command(&w1, &probe, &task_id("t1"), odd(), once()).await)), ("unknown_command", false));
    let nothing = ClassName::new("nothing").expect("valid");
    assert_eq!(kind(&failed(c.cluster.request(&w1, &nothing, odd(), once()).await)), ("unknown_class", false));
}

#[tokio::test]
async fn a_task_is_started_listed_and_told() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let first = c.cluster.start::<Probe>(&node_id("w1"), &Spec::Future, once()).await.expect("started");
    let second = c.cluster.start::<Probe>(&node_id("w1"), &Spec::Replying("welcome".to_owned()), once()).await.expect("started");
    assert_eq!((first.reply, second.reply), (None, Some("welcome".to_owned())));
    assert_ne!(first.id, second.id);
    probe.wait_told("w1", &[&format!("started {}", first.id), &format!("started {}", second.id)]).await;
    let mut expected = [first.id.to_string(), second.id.to_string()];
    expected.sort();
    assert_eq!(task_ids(&c.cluster).await, expected);
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
    eventually("the cluster counts them", async || c.info("w1").await.tasks == 2).await;
}

#[tokio::test]
async fn a_task_that_does_not_start_leaves_nothing_behind() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let refused = begin(&c.cluster, "t1", Spec::Refused("no_room".to_owned())).await;
    assert_eq!(kind(&failed(refused)), ("no_room", false));
    assert_eq!(kind(&failed(begin(&c.cluster, "t1", Spec::Panicking).await)), ("handler_panicked", true));
    assert_eq!(task_ids(&c.cluster).await, Vec::<String>::new());
    // The id is free again, and nobody was told of what never ran.
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    probe.wait_told("w1", &["started t1"]).await;
}

#[tokio::test]
async fn every_end_of_a_task_is_told_once_with_its_reason() {
    for spec in [Spec::Future, Spec::Actor] {
        let probe = Probe::<false>::new();
        let (c, _worker) = start(&probe).await;
        let class = ClassName::new("probe").expect("valid");
        begin(&c.cluster, "killed", spec.clone()).await.expect("started");
        c.cluster.stop_task(&node_id("w1"), &class, &task_id("killed"), TIMEOUT).await.expect("stopped");
        let mut expected = vec!["started killed".to_owned(), "stopped killed killed".to_owned()];
        eventually_eq(|| probe.told("w1"), expected.clone()).await;
        let ends = [("normal", How::Normal), ("failed", How::Error("out_of_luck".to_owned())), ("panicked", How::Panic)];
        for (id, how) in ends {
            begin(&c.cluster, id, spec.clone()).await.expect("started");
            assert_eq!(tell(&c.cluster, id, Tell::End(how)).await.expect("answered"), "it will end");
            eventually("it has ended", async || task_ids(&c.cluster).await.is_empty()).await;
            expected.push(format!("started {id}"));
            eventually_eq(|| probe.told("w1").len(), expected.len() + 1).await;
            let told = probe.told("w1").pop().expect("an event");
            let reason = told.strip_prefix(&format!("stopped {id} ")).expect("its end").to_owned();
            match id {
                "normal" => assert_eq!(reason, "normal"),
                "failed" => assert!(reason.starts_with("error: ") && reason.contains("out_of_luck"), "{reason}"),
                _ => assert!(reason.contains("as told"), "{reason}"),
            }
            expected.push(told);
        }
        assert_eq!(probe.told("w1"), expected, "each is told once");
    }
}

#[tokio::test]
async fn a_task_that_runs_is_not_started_again() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    assert_eq!(kind(&failed(begin(&c.cluster, "t1", Spec::Actor).await)), ("already_started", false));
    assert_eq!(probe.executed(), 1);
    assert_eq!(task_ids(&c.cluster).await, ["t1"]);
}

#[tokio::test]
async fn commands_are_answered_inline_by_the_task_and_by_a_dying_one() {
    for spec in [Spec::Future, Spec::Actor] {
        let (c, _worker) = start(&Probe::new()).await;
        assert_eq!(kind(&failed(tell(&c.cluster, "t1", Tell::Echo(String::new())).await)), ("task_not_found", false));
        begin(&c.cluster, "t1", spec.clone()).await.expect("started");
        assert_eq!(tell(&c.cluster, "t1", Tell::Echo("one".to_owned())).await.expect("answered"), "one");
        assert_eq!(tell(&c.cluster, "t1", Tell::AskTask("two".to_owned())).await.expect("answered"), "the task says two");
        let error = failed(tell(&c.cluster, "t1", Tell::Fail("no_way".to_owned())).await);
        assert_eq!((error.code(), error.message()), (&ErrorCode::Class("no_way".into()), "as told"));
        assert_eq!(kind(&failed(tell(&c.cluster, "t1", Tell::Panic).await)), ("handler_panicked", true));
        assert_eq!(task_ids(&c.cluster).await, ["t1"], "a panic of a command is not the end of its task");
        let last = tell(&c.cluster, "t1", Tell::EndAnswering(How::Error("tired".to_owned()))).await;
        assert_eq!(last.expect("answered"), "the task ends");
        eventually("it has ended", async || task_ids(&c.cluster).await.is_empty()).await;
        assert_eq!(kind(&failed(tell(&c.cluster, "t1", Tell::Echo(String::new())).await)), ("task_not_found", false));
    }
}

#[tokio::test]
async fn commands_of_a_task_are_answered_in_order() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    let held = tell(&c.cluster, "t1", Tell::Hold("first".to_owned()));
    let next = async {
        probe.work.entered(1).await;
        let next = tell(&c.cluster, "t1", Tell::AskTask("second".to_owned()));
        tokio::pin!(next);
        // It waits for the first one; a request does not.
        let raced = tokio::select! {
            biased;
            _ = &mut next => "the second command",
            _ = ask(&c.cluster, Ask::Count) => "a request",
        };
        assert_eq!(raced, "a request");
        probe.work.open();
        next.await
    };
    let (held, next) = soon("both", async { tokio::join!(held, next) }).await;
    assert_eq!((held.expect("answered").as_str(), next.expect("answered").as_str()), ("first", "the task says second"));
}

#[tokio::test]
async fn commands_that_wait_when_their_task_ends_are_answered() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    let class = ClassName::new("probe").expect("valid");
    let held = tell(&c.cluster, "t1", Tell::Hold("held".to_owned()));
    let waiting = async {
        probe.work.entered(1).await;
        let waiting = tell(&c.cluster, "t1", Tell::Echo("waiting".to_owned()));
        let kill = async {
            c.cluster.stop_task(&node_id("w1"), &class, &task_id("t1"), TIMEOUT).await.expect("stopped");
            eventually("it has ended", async || task_ids(&c.cluster).await.is_empty()).await;
            probe.work.open();
        };
        tokio::join!(waiting, kill).0
    };
    let (held, waiting) = soon("both", async { tokio::join!(held, waiting) }).await;
    assert_eq!(held.expect("its handler goes on"), "held");
    assert_eq!(kind(&failed(waiting)), ("task_not_found", false));
}

#[tokio::test]
async fn events_of_a_task_arrive_in_order() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    begin(&c.cluster, "t1", Spec::Actor).await.expect("started");
    let texts: Vec<String> = (0..2000).map(|number| format!("event {number}")).collect();
    tell(&c.cluster, "t1", Tell::Emit(texts.clone())).await.expect("answered before they come");
    tell(&c.cluster, "t1", Tell::EndAnswering(How::Normal)).await.expect("answered");
    let expected = [vec!["started t1".to_owned()], texts, vec!["stopped t1 normal".to_owned()]].concat();
    eventually_eq(|| probe.told("w1").len(), expected.len()).await;
    assert_eq!(probe.told("w1"), expected);
    let numbers: Vec<u64> = probe.events("w1").iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=expected.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_worker_on_standby_keeps_its_tasks_and_takes_no_others() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let w1 = node_id("w1");
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    begin(&c.cluster, "t2", Spec::Actor).await.expect("started");
    let status = c.cluster.set_status(&w1, WantedStatus::Standby, TIMEOUT).await.expect("set");
    assert_eq!(status, NodeStatus::Standby);
    probe.wait_told("w1", &["started t1", "started t2", "status standby"]).await;
    let mut told: Vec<(TaskId, NodeStatus)> = Vec::new();
    eventually("both tasks were told", async || {
        told = probe.statuses();
        told.len() == 2
    })
    .await;
    told.sort();
    assert_eq!(told, [(task_id("t1"), NodeStatus::Standby), (task_id("t2"), NodeStatus::Standby)]);
    c.wait_status("w1", NodeStatus::Standby).await;
    let error = failed(begin(&c.cluster, "t3", Spec::Future).await);
    assert_eq!(error.code(), &ErrorCode::NodeNotReady);
    assert!(error.message().contains("{node_not_ready, standby}"), "{error}");
    assert_eq!(ask(&c.cluster, Ask::Echo("requests pass".to_owned())).await.expect("answered"), "requests pass");
    // The same status again changes nothing and tells nobody.
    c.cluster.set_status(&w1, WantedStatus::Standby, TIMEOUT).await.expect("no change");
    c.cluster.set_status(&w1, WantedStatus::Ready, TIMEOUT).await.expect("set");
    probe.wait_told("w1", &["started t1", "started t2", "status standby", "status ready"]).await;
    begin(&c.cluster, "t3", Spec::Future).await.expect("ready again");
}

#[tokio::test]
async fn a_worker_that_is_to_stop_waits_for_its_last_task() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    let w1 = node_id("w1");
    begin(&c.cluster, "t1", Spec::Future).await.expect("started");
    let status = c.cluster.set_status(&w1, WantedStatus::Stopped, TIMEOUT).await.expect("set");
    assert_eq!(status, NodeStatus::Stopping);
    c.wait_status("w1", NodeStatus::Stopping).await;
    eventually_eq(|| probe.statuses(), vec![(task_id("t1"), NodeStatus::Stopping)]).await;
    assert_eq!(kind(&failed(begin(&c.cluster, "t2", Spec::Future).await)), ("node_not_ready", false));
    tell(&c.cluster, "t1", Tell::End(How::Normal)).await.expect("answered");
    c.wait_status("w1", NodeStatus::Stopped).await;
    let so_far = ["started t1", "status stopping", "stopped t1 normal", "status stopped"];
    probe.wait_told("w1", &so_far).await;
    c.cluster.set_status(&w1, WantedStatus::Ready, TIMEOUT).await.expect("back to work");
    probe.wait_told("w1", &[&so_far[..], &["status ready"]].concat()).await;
    c.wait_status("w1", NodeStatus::Ready).await;
    begin(&c.cluster, "t2", Spec::Future).await.expect("ready again");
}

#[tokio::test]
async fn a_worker_without_tasks_is_stopped_at_once_over_stopping() {
    let probe = Probe::<false>::new();
    let (c, _worker) = start(&probe).await;
    ask(&c.cluster, Ask::Emit(vec!["one".to_owned()])).await.expect("emitted");
    c.cluster.set_status(&node_id("w1"), WantedStatus::Stopped, TIMEOUT).await.expect("set");
    probe.wait_told("w1", &["one", "status stopping", "status stopped"]).await;
    assert_eq!(c.cluster.set_status(&node_id("w1"), WantedStatus::Standby, TIMEOUT).await.expect("set"), NodeStatus::Standby);
    probe.wait_told("w1", &["one", "status stopping", "status stopped", "status standby"]).await;
}

#[tokio::test]
async fn a_status_that_only_control_nodes_set_cannot_be_wished_for() {
    let (c, _worker) = start(&Probe::new()).await;
    for wish in ["not_connected", "launching", "connecting", "stopping"] {
        let request = nkcluster::types::Payload::from_json(&format!(r#"{{"set_status": "{wish}"}}"#)).expect("JSON");
        let refused = c.cluster.request(&node_id("w1"), &nkcluster::cluster::core_class(), request, once()).await;
        let error = failed(refused);
        assert!(!error.may_have_run(), "{error:?}");
        assert!(error.message().contains("expected one of `ready`, `standby`, `stopped`"), "{wish}: {error}");
    }
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
}
