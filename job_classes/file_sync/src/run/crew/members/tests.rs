//! Whom a crew starts, asks, tells and leaves out.

use super::*;

fn run() -> RunId {
    RunId::from_random([7; 20])
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("an id")
}

fn nodes<const N: usize>(names: [&str; N]) -> BTreeSet<NodeId> {
    names.into_iter().map(node).collect()
}

fn job(batch: u8) -> JobName {
    attempt(batch, 0)
}

fn attempt(batch: u8, attempt: u8) -> JobName {
    JobName::parse(&format!("2025-11-26T22-52-10.120000000Z-{}-0000000000{batch:02x}-{attempt:04}.json", run())).expect("a job")
}

fn holds(held: u64) -> Result<Reply, Error> {
    Ok(Reply::Working(WorkReport { seen: held + 1, held, ..WorkReport::default() }))
}

/// What is told and asked, without the watching that goes on and on.
fn actions(members: &mut Members) -> Vec<Action> {
    members.actions().into_iter().filter(|action| !matches!(action, Action::Watch { .. } | Action::Tell(_))).collect()
}

/// Workers that have begun, and have nothing to do.
fn crew<const N: usize>(names: [&str; N], now: Instant) -> Members {
    let mut members = Members::new(run());
    members.handle_nodes(nodes(names), now);
    assert_eq!(members.actions(), names.map(|name| Action::Start(node(name))));
    for name in names {
        members.handle_started(&node(name), Ok(()), now);
        members.handle_watched(&node(name), holds(0), now);
    }
    assert_eq!(actions(&mut members), []);
    members
}

#[test]
fn of_those_without_work_one_is_told_for_each_batch_and_not_always_the_same() {
    let now = Instant::now();
    let mut members = crew(["w1", "w2", "w3"], now);
    members.handle_watched(&node("w1"), holds(1), now);
    members.handle_offered(&job(1));
    assert_eq!(actions(&mut members), [Action::Look(node("w2"))]);
    members.handle_offered(&job(2));
    assert_eq!(actions(&mut members), [Action::Look(node("w3"))], "w2 is being told");
    // Both are being told; as soon as one was, it is told again.
    members.handle_offered(&job(3));
    assert_eq!(actions(&mut members), []);
    members.handle_looked(&node("w3"));
    assert_eq!(actions(&mut members), [Action::Look(node("w3"))]);
    for name in ["w2", "w3"] {
        members.handle_looked(&node(name));
        members.handle_watched(&node(name), holds(1), now);
    }
    // Whoever is at work looks by itself.
    members.handle_offered(&job(4));
    assert_eq!(actions(&mut members), []);
    members.handle_watched(&node("w2"), holds(0), now);
    assert_eq!(actions(&mut members), [Action::Look(node("w2"))], "it may have looked before the batch was offered");
}

#[test]
fn what_nobody_has_taken_is_told_again_and_what_somebody_has_is_not() {
    let now = Instant::now();
    let mut members = crew(["w1", "w2"], now);
    members.handle_offered(&job(1));
    assert_eq!(actions(&mut members), [Action::Look(node("w1"))]);
    members.handle_looked(&node("w1"));
    assert_eq!(actions(&mut members), []);
    members.handle_tick(now);
    assert_eq!(actions(&mut members), [Action::Look(node("w2"))], "w1 was told, and did not take it");
    members.handle_looked(&node("w2"));
    members.handle_taken(&job(1));
    members.handle_tick(now);
    assert_eq!(actions(&mut members), []);
}

#[test]
fn of_a_batch_that_is_offered_again_only_the_last_attempt_waits_for_somebody() {
    let now = Instant::now();
    let mut members = crew(["w1"], now);
    // Its offer was lost before anybody had it, which nobody tells.
    members.handle_offered(&attempt(1, 0));
    members.handle_offered(&attempt(1, 1));
    assert_eq!(actions(&mut members), [Action::Look(node("w1"))]);
    members.handle_looked(&node("w1"));
    members.handle_tick(now);
    assert_eq!(actions(&mut members), [Action::Look(node("w1"))]);
    members.handle_looked(&node("w1"));
    members.handle_taken(&attempt(1, 1));
    members.handle_tick(now);
    assert_eq!(actions(&mut members), []);
}

#[test]
fn whoever_asked_for_a_part_of_a_batch_is_told_that_it_is_there() {
    let now = Instant::now();
    let mut members = crew(["w1", "w2", "w3"], now);
    let asked = worker_id(&node("w3"), run()).expect("an id").to_string();
    let report = WorkReport { seen: 5, held: 1, gave: vec![Some(asked)], ..WorkReport::default() };
    members.handle_watched(&node("w1"), Ok(Reply::Working(report)), now);
    assert_eq!(actions(&mut members), [Action::WakeController, Action::Look(node("w3"))]);
    // One that stops gives to anybody.
    let report = WorkReport { seen: 6, held: 1, gave: vec![None], ..WorkReport::default() };
    members.handle_watched(&node("w1"), Ok(Reply::Working(report)), now);
    assert_eq!(actions(&mut members), [Action::WakeController, Action::Look(node("w2"))]);
    // The end of a batch is worth a look of the controller.
    let report = WorkReport { seen: 7, ended: 1, ..WorkReport::default() };
    members.handle_watched(&node("w1"), Ok(Reply::Working(report)), now);
    assert_eq!(actions(&mut members), [Action::WakeController]);
}

#[test]
fn a_worker_that_refuses_is_told_of_once_and_asked_again_when_its_node_has_been_away() {
    let now = Instant::now();
    let mut members = Members::new(run());
    members.handle_nodes(nodes(["w1"]), now);
    assert_eq!(members.actions(), [Action::Start(node("w1"))]);
    members.handle_started(&node("w1"), Err(Error::new(ErrorCode::NotAllowed, "no grant")), now);
    assert_eq!(members.actions(), [Action::Tell("worker w1 is not used: no grant".to_owned())]);
    members.handle_nodes(nodes(["w1"]), now + START_PAUSE);
    assert_eq!(members.actions(), []);
    assert_eq!(members.unused().collect::<Vec<_>>(), [(&node("w1"), "no grant")]);
    assert_eq!(members.employed().count(), 0, "it has left nothing");
    members.handle_nodes(nodes([]), now + START_PAUSE);
    members.handle_nodes(nodes(["w1"]), now + START_PAUSE);
    assert_eq!(members.actions(), [Action::Start(node("w1"))]);
}

#[test]
fn a_worker_that_does_not_see_the_run_is_asked_a_few_times_as_a_file_system_may_be_late() {
    let mut now = Instant::now();
    let mut members = Members::new(run());
    members.handle_nodes(nodes(["w1"]), now);
    for _ in 0..NO_RUN_MAX {
        assert_eq!(members.actions(), [Action::Start(node("w1"))]);
        members.handle_started(&node("w1"), Err(Error::class(NO_RUN, "none here")), now);
        members.handle_tick(now);
        assert!(members.actions().iter().all(|action| matches!(action, Action::Tell(_))), "it rests");
        assert_eq!(members.unused().collect::<Vec<_>>(), [(&node("w1"), "none here")]);
        now += START_PAUSE;
        members.handle_tick(now);
    }
    assert_eq!(members.actions(), [], "it is left out");
}

#[test]
fn a_worker_that_is_lost_is_started_again_and_one_that_has_gone_on_is_told_to_look() {
    let now = Instant::now();
    let mut members = crew(["w1"], now);
    let error = || Err(Error::new(ErrorCode::NotConnected, "no link"));
    // For some time it may only be the way there.
    members.handle_watched(&node("w1"), error(), now);
    assert_eq!(members.actions(), [Action::Watch { node: node("w1"), seen: 1, pause: ASK_PAUSE }]);
    members.handle_watched(&node("w1"), error(), now + SILENCE);
    assert_eq!(members.actions(), [Action::Tell("worker w1 is lost: no link".to_owned())]);
    assert_eq!(members.employed().count(), 1, "its status may have stayed");
    members.handle_nodes(nodes(["w1"]), now + SILENCE + START_PAUSE);
    assert_eq!(members.actions(), [Action::Start(node("w1"))]);
    members.handle_started(&node("w1"), Err(Error::new(ErrorCode::AlreadyStarted, "it runs")), now + SILENCE);
    assert_eq!(members.actions(), [Action::Watch { node: node("w1"), seen: EVERYTHING, pause: Duration::ZERO }]);
    members.handle_watched(&node("w1"), holds(0), now + SILENCE);
    let begun = [Action::Tell("worker w1 takes part".to_owned()), Action::Look(node("w1"))];
    assert_eq!(members.actions(), [&begun[..], &[Action::Watch { node: node("w1"), seen: 1, pause: Duration::ZERO }]].concat());
    // It has ended by itself.
    members.handle_watched(&node("w1"), Ok(Reply::Unknown), now + SILENCE);
    assert_eq!(members.actions(), [Action::Tell("worker w1 is lost: it has ended, or was restarted".to_owned())]);
}

#[test]
fn a_worker_that_takes_long_to_start_is_told_of_when_it_has_begun_and_not_before() {
    let mut now = Instant::now();
    let mut members = Members::new(run());
    members.handle_nodes(nodes(["w1"]), now);
    assert_eq!(members.actions(), [Action::Start(node("w1"))]);
    members.handle_started(&node("w1"), Err(Error::new(ErrorCode::Timeout, "it takes long").after_sending()), now);
    let watch = |seen| Action::Watch { node: node("w1"), seen, pause: Duration::ZERO };
    for _ in 0..5 {
        now += START_PAUSE;
        members.handle_tick(now);
        assert_eq!(members.actions(), [Action::Start(node("w1"))]);
        // Its class is still at it.
        members.handle_started(&node("w1"), Err(Error::new(ErrorCode::AlreadyStarted, "it starts")), now);
        assert_eq!(members.actions(), [watch(EVERYTHING)]);
        members.handle_watched(&node("w1"), Ok(Reply::Unknown), now);
        assert_eq!(members.actions(), [], "it rests");
        assert_eq!(members.unused().collect::<Vec<_>>(), [(&node("w1"), "it takes long")]);
    }
    now += START_PAUSE;
    members.handle_tick(now);
    assert_eq!(members.actions(), [Action::Start(node("w1"))]);
    members.handle_started(&node("w1"), Err(Error::new(ErrorCode::AlreadyStarted, "it runs")), now);
    members.handle_watched(&node("w1"), holds(0), now);
    let begun = [Action::Tell("worker w1 takes part".to_owned()), Action::Look(node("w1")), watch(1)];
    assert_eq!(members.actions(), [&[watch(EVERYTHING)][..], &begun].concat());
    assert_eq!(members.unused().count(), 0);
}

#[test]
fn a_worker_that_stops_as_it_was_told_at_the_end_is_not_lost_and_not_started_again() {
    let now = Instant::now();
    let mut members = crew(["w1"], now);
    members.handle_told_to_stop(&worker_id(&node("w1"), run()).expect("an id"));
    assert_eq!(members.actions(), [Action::Look(node("w1"))]);
    members.handle_watched(&node("w1"), Ok(Reply::Unknown), now);
    members.handle_nodes(nodes(["w1"]), now + START_PAUSE);
    assert_eq!(members.actions(), []);
}

#[test]
fn a_worker_of_the_cluster_is_shown_by_the_name_of_its_node() {
    for name in ["w1", "a:b", ".a", "a.b"] {
        assert_eq!(node_of(&worker_id(&node(name), run()).expect("an id"), run()).as_deref(), Some(name));
    }
    assert_eq!(node_of(&"rcd-1".parse().expect("an id"), run()), None);
    assert_eq!(node_of(&worker_id(&node("w1"), RunId::from_random([8; 20])).expect("an id"), run()), None);
}
