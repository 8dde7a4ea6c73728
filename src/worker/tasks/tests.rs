use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn class(name: &str) -> ClassName {
    ClassName::new(name).expect("a valid name")
}

fn id(name: &str) -> TaskId {
    TaskId::new(name).expect("a valid name")
}

/// A ready worker on which these tasks of class `a` run.
fn running(ids: &[&str]) -> Tasks {
    let mut tasks = Tasks::new();
    for name in ids {
        tasks.start(&class("a"), &id(name), 7).expect("a ready worker takes tasks");
        tasks.started(&class("a"), &id(name));
    }
    tasks
}

fn stopped(name: &str, reason: EndReason) -> Action {
    Action::EmitStopped { class: class("a"), id: id(name), reason }
}

fn code(result: Result<()>) -> Option<ErrorCode> {
    result.err().map(|error| error.code().clone())
}

#[test]
fn a_fresh_worker_is_ready_and_has_no_tasks() {
    let tasks = Tasks::new();
    assert_eq!((tasks.status(), tasks.len(), tasks.is_empty()), (NodeStatus::Ready, 0, true));
}

#[test]
fn a_task_is_told_once_when_it_starts_and_once_when_it_ends() {
    let mut tasks = Tasks::new();
    tasks.start(&class("a"), &id("t"), 7).expect("starts");
    assert_eq!(tasks.started(&class("a"), &id("t")), [Action::EmitStarted { class: class("a"), id: id("t") }]);
    assert_eq!(tasks.started(&class("a"), &id("t")), []);
    assert_eq!(tasks.row(&class("a"), &id("t")).map(|row| (row.started_ms, row.state)), Some((7, TaskState::Running)));
    assert_eq!(tasks.ended(&class("a"), &id("t"), EndReason::Killed), [stopped("t", EndReason::Killed)]);
    assert_eq!(tasks.ended(&class("a"), &id("t"), EndReason::Killed), []);
    assert_eq!(tasks.row(&class("a"), &id("t")), None);
}

#[test]
fn a_task_that_its_class_refuses_is_never_mentioned() {
    let mut tasks = Tasks::new();
    tasks.start(&class("a"), &id("t"), 0).expect("starts");
    assert_eq!(tasks.ended(&class("a"), &id("t"), EndReason::error("no")), []);
    assert_eq!(tasks.started(&class("a"), &id("t")), []);
    tasks.start(&class("a"), &id("t"), 0).expect("the id is free again");
}

#[test]
fn the_same_id_is_taken_only_within_its_class() {
    let mut tasks = running(&["t"]);
    assert_eq!(code(tasks.start(&class("a"), &id("t"), 0)), Some(ErrorCode::AlreadyStarted));
    assert_eq!(code(tasks.start(&class("b"), &id("t"), 0)), None);
    assert_eq!((tasks.len(), tasks.len_of_class(&class("a")), tasks.len_of_class(&class("c"))), (2, 1, 0));
    let all: Vec<_> = tasks.iter().map(|(class, id, _)| (class.as_str(), id.as_str())).collect();
    assert_eq!(all, [("a", "t"), ("b", "t")]);
    assert_eq!(tasks.of_class(&class("b")).map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["t"]);
}

#[test]
fn the_table_is_bounded() {
    let mut tasks = Tasks::new();
    for number in 0..TASKS_MAX {
        tasks.start(&class("a"), &id(&format!("t{number}")), 0).expect("there is room");
    }
    assert_eq!(code(tasks.start(&class("a"), &id("more"), 0)), Some(ErrorCode::Busy));
    tasks.ended(&class("a"), &id("t0"), EndReason::Normal);
    assert_eq!(code(tasks.start(&class("a"), &id("more"), 0)), None);
}

#[test]
fn standby_tells_tasks_and_class_and_refuses_new_tasks() {
    let mut tasks = running(&["t"]);
    let actions = tasks.set_status(WantedStatus::Standby).expect("allowed");
    assert_eq!(actions, [Action::NotifyTasks(NodeStatus::Standby), Action::EmitStatus(NodeStatus::Standby), Action::PublishUpdate]);
    let error = tasks.start(&class("a"), &id("u"), 0).expect_err("standby takes no tasks");
    assert_eq!(error.code(), &ErrorCode::NodeNotReady);
    assert!(error.message().contains("{node_not_ready, standby}"), "{error}");
    assert_eq!(code(tasks.start(&class("a"), &id("t"), 0)), Some(ErrorCode::AlreadyStarted), "a repeated start is told that the task runs");
}

#[test]
fn the_same_status_is_no_event() {
    let mut tasks = running(&["t"]);
    assert_eq!(tasks.set_status(WantedStatus::Ready), Ok(vec![]));
    tasks.set_status(WantedStatus::Stopped).expect("allowed");
    assert_eq!(tasks.status(), NodeStatus::Stopping);
    assert_eq!(tasks.set_status(WantedStatus::Stopped), Ok(vec![]), "it is stopping already");
}

#[test]
fn a_stopping_worker_is_stopped_by_its_last_task() {
    let mut tasks = running(&["t", "u"]);
    let actions = tasks.set_status(WantedStatus::Stopped).expect("allowed");
    assert_eq!(actions, [Action::NotifyTasks(NodeStatus::Stopping), Action::EmitStatus(NodeStatus::Stopping), Action::PublishUpdate]);
    assert_eq!(tasks.ended(&class("a"), &id("t"), EndReason::Normal), [stopped("t", EndReason::Normal)]);
    assert_eq!(
        tasks.ended(&class("a"), &id("u"), EndReason::Normal),
        [stopped("u", EndReason::Normal), Action::EmitStatus(NodeStatus::Stopped), Action::PublishUpdate]
    );
    assert_eq!(tasks.set_status(WantedStatus::Ready), Ok(vec![Action::EmitStatus(NodeStatus::Ready), Action::PublishUpdate]));
}

#[test]
fn an_idle_worker_stops_through_stopping_at_once() {
    let mut tasks = Tasks::new();
    assert_eq!(
        tasks.set_status(WantedStatus::Stopped),
        Ok(vec![Action::EmitStatus(NodeStatus::Stopping), Action::EmitStatus(NodeStatus::Stopped), Action::PublishUpdate])
    );
    assert_eq!(tasks.status(), NodeStatus::Stopped);
}

#[test]
fn a_worker_that_was_called_back_does_not_stop_with_its_last_task() {
    let mut tasks = running(&["t"]);
    tasks.set_status(WantedStatus::Stopped).expect("allowed");
    tasks.set_status(WantedStatus::Standby).expect("allowed");
    assert_eq!(tasks.ended(&class("a"), &id("t"), EndReason::Normal), [stopped("t", EndReason::Normal)]);
    assert_eq!(tasks.status(), NodeStatus::Standby);
}

#[test]
fn a_task_that_starts_during_a_change_is_told_late() {
    let mut tasks = Tasks::new();
    tasks.start(&class("a"), &id("t"), 0).expect("starts");
    let actions = tasks.set_status(WantedStatus::Stopped).expect("allowed");
    assert_eq!(actions, [Action::EmitStatus(NodeStatus::Stopping), Action::PublishUpdate]);
    assert_eq!(
        tasks.started(&class("a"), &id("t")),
        [
            Action::EmitStarted { class: class("a"), id: id("t") },
            Action::NotifyTask { class: class("a"), id: id("t"), status: NodeStatus::Stopping }
        ]
    );
}

#[test]
fn a_refused_task_can_be_the_last_one() {
    let mut tasks = Tasks::new();
    tasks.start(&class("a"), &id("t"), 0).expect("starts");
    tasks.set_status(WantedStatus::Stopped).expect("allowed");
    assert_eq!(
        tasks.ended(&class("a"), &id("t"), EndReason::error("no")),
        [Action::EmitStatus(NodeStatus::Stopped), Action::PublishUpdate]
    );
}

#[derive(Clone, Debug)]
enum Op {
    Start(u8, u8),
    Started(u8, u8),
    Ended(u8, u8),
    Set(WantedStatus),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let wanted = prop_oneof![Just(WantedStatus::Ready), Just(WantedStatus::Standby), Just(WantedStatus::Stopped)];
    let key = || (0u8..2, 0u8..3);
    let op = prop_oneof![
        3 => key().prop_map(|(class, id)| Op::Start(class, id)),
        3 => key().prop_map(|(class, id)| Op::Started(class, id)),
        3 => key().prop_map(|(class, id)| Op::Ended(class, id)),
        2 => wanted.prop_map(Op::Set),
    ];
    prop::collection::vec(op, 1..100)
}

proptest! {
    /// The shell's view, built from actions alone, agrees with the table; every task that runs has heard the last status.
    #[test]
    fn actions_tell_the_whole_story(ops in ops()) {
        let key = |c: u8, t: u8| (class(&format!("c{c}")), id(&format!("t{t}")));
        let mut tasks = Tasks::new();
        let mut pending = BTreeSet::new();
        let mut alive: BTreeMap<(ClassName, TaskId), NodeStatus> = BTreeMap::new();
        let mut status = NodeStatus::Ready;
        for op in ops {
            let before = status;
            let actions = match op {
                Op::Start(c, t) => {
                    let key = key(c, t);
                    let known = pending.contains(&key) || alive.contains_key(&key);
                    let result = tasks.start(&key.0, &key.1, 0);
                    prop_assert_eq!(result.is_ok(), !known && status == NodeStatus::Ready);
                    if result.is_ok() {
                        pending.insert(key);
                    }
                    vec![]
                }
                Op::Started(c, t) => {
                    let key = key(c, t);
                    let actions = tasks.started(&key.0, &key.1);
                    prop_assert_eq!(pending.remove(&key), !actions.is_empty());
                    actions
                }
                Op::Ended(c, t) => {
                    let key = key(c, t);
                    let was = pending.remove(&key) || alive.contains_key(&key);
                    let actions = tasks.ended(&key.0, &key.1, EndReason::Normal);
                    prop_assert!(was || actions.is_empty());
                    actions
                }
                Op::Set(wanted) => tasks.set_status(wanted).map_err(|e| TestCaseError::fail(e.to_string()))?,
            };
            let published = actions.iter().filter(|action| **action == Action::PublishUpdate).count();
            for action in actions {
                match action {
                    Action::EmitStarted { class, id } => {
                        prop_assert_eq!(alive.insert((class, id), NodeStatus::Ready), None);
                    }
                    Action::EmitStopped { class, id, .. } => {
                        prop_assert!(alive.remove(&(class, id)).is_some());
                    }
                    Action::NotifyTask { class, id, status } => {
                        prop_assert!(alive.insert((class, id), status).is_some());
                    }
                    Action::NotifyTasks(status) => alive.values_mut().for_each(|told| *told = status),
                    Action::EmitStatus(new) => {
                        prop_assert_ne!(new, status, "an event without a change");
                        prop_assert!(new != NodeStatus::Stopped || status == NodeStatus::Stopping);
                        status = new;
                    }
                    Action::PublishUpdate => {}
                }
            }
            prop_assert_eq!(published, usize::from(status != before));
            prop_assert_eq!(tasks.status(), status);
            prop_assert_eq!(tasks.len(), pending.len() + alive.len());
            prop_assert_eq!(tasks.iter().count(), tasks.len());
            prop_assert!(alive.values().all(|told| *told == status), "a task missed a status");
            prop_assert!(status != NodeStatus::Stopping || !tasks.is_empty());
            prop_assert!(status != NodeStatus::Stopped || tasks.is_empty());
        }
    }
}
