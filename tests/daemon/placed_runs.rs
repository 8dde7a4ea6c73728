//! The runs of a cluster as an operator sees and steers them, with real processes: from any control node, whichever directs them.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::copy::{FILES, stats};
use crate::placed_copy::{RUN, Stage, WORKERS, ends_with, files_below};
use crate::several::{NAMES, index, without};
use crate::support::{Ran, wait_for};

/// A run that nobody has started.
const UNKNOWN: &str = "zzzzzzzzzzzzzzzzzzzz";

/// Some times as long as whoever directs a run waits for one answer of a worker, before it tells it anything else.
const HEARD: Duration = Duration::from_secs(2);

impl Stage {
    /// The runs, for one control node.
    fn runs(&self, at: &str) -> Vec<Value> {
        self.plane.at(at).json(&["queue"]).as_array().expect("a list").clone()
    }

    /// The run of the stage, in the list of one control node.
    fn listed(&self, at: &str) -> Option<Value> {
        self.runs(at).into_iter().find(|run| run["run"] == RUN)
    }

    /// Says something to the run at one control node; how it is then.
    #[track_caller]
    fn steer(&self, at: &str, words: &[&str]) -> Value {
        self.plane.at(at).json(&[&["queue"], words].concat())
    }

    /// Copies everything to somewhere else by the same workers: what another run does in that time, it has had the time to do.
    #[track_caller]
    fn copy_beside(&self, at: &str, name: &str) {
        let (source, destination) = (self.room.text("source"), self.room.text(name));
        let copy = ["copy", &source, &destination, "--on", WORKERS, "--cluster-batch-files", "10"];
        assert_eq!(stats(&self.plane.at(at).script(&copy))["transfers"], FILES);
        assert_eq!(files_below(&self.room.path(name)), FILES);
    }

    /// Waits until no file comes any more, for longer than a worker with a batch takes to hear of a pause; how many there are then.
    #[track_caller]
    fn until_at_rest(&self) -> usize {
        let (mut last, mut since) = (None, Instant::now());
        wait_for("the run to rest", || {
            let now = files_below(&self.room.path("destination"));
            if last.replace(now) != Some(now) {
                since = Instant::now();
            }
            (since.elapsed() >= HEARD).then_some(now)
        })
    }
}

#[test]
fn a_run_is_listed_by_every_control_node_while_it_goes_on_and_when_it_has_ended() {
    let stage = Stage::new();
    assert_eq!(stage.plane.at("c1").run(&["queue"]).text(), "no runs\n");
    let command = stage.start("60k");
    let host = stage.until_under_way();
    for name in NAMES {
        let run = wait_for("workers to have batches", || stage.listed(name).filter(|run| run["workers"].as_u64() > Some(0)));
        for (field, value) in [
            ("kind", "copy"),
            ("source", &*stage.room.text("source")),
            ("destination", &*stage.room.text("destination")),
            ("on", WORKERS),
            ("node", &*host),
            ("state", "running"),
        ] {
            assert_eq!(run[field], value, "{name}: {field} of {run}");
        }
        let is_between = |field: &str, most: u64| run[field].as_u64().is_some_and(|number| number > 0 && number <= most);
        assert!(is_between("files", FILES as u64) && is_between("bytes", 4096 * FILES as u64), "{run}");
        assert_eq!((&run["bwlimit"], &run["exit"], &run["errors"]), (&Value::from(60 * 1024), &Value::Null, &Value::from(0)), "{run}");
        assert!(run["begun"].as_str().is_some_and(|begun| begun.starts_with("20")), "{run}");
        assert_eq!(stage.runs(name).len(), 1);
    }
    let text = stage.plane.at(without(&host)[0]).run(&["queue"]);
    assert!(text.text().starts_with("RUN ") && text.text().contains("running"), "{text:?}");
    stage.steer("c1", &["bwlimit", RUN, "off"]);
    ends_with(command, 0);
    for name in NAMES {
        let run = stage.listed(name).expect("an end is known for a day");
        assert_eq!((&run["state"], &run["exit"], &run["files"]), (&"ended".into(), &0.into(), &FILES.into()), "{run}");
    }
    assert_eq!(stage.steer("c2", &["show", RUN])["end"], "success");
    // A page behind the last one.
    assert_eq!(stage.plane.at("c1").json(&["queue", "--after", RUN]), Value::Array(Vec::new()));
    stage.is_done_once();
}

#[test]
fn a_run_that_is_paused_does_not_move_while_another_one_does_and_goes_on_when_it_is_resumed() {
    let stage = Stage::new();
    let command = stage.start("60k");
    let host = stage.until_under_way();
    let elsewhere = without(&host)[0];
    assert_eq!(stage.steer(elsewhere, &["pause", RUN])["state"], "paused");
    stage.copy_beside("c1", "first");
    // What was begun ends.
    let before = stage.until_at_rest();
    assert!(before < FILES);
    stage.copy_beside("c1", "second");
    assert_eq!(files_below(&stage.room.path("destination")), before, "a run that rests has copied files");
    assert_eq!(stage.listed(elsewhere).map(|run| run["state"].clone()), Some("paused".into()));
    stage.steer(elsewhere, &["bwlimit", RUN, "off"]);
    assert_eq!(stage.steer(elsewhere, &["resume", RUN])["state"], "running");
    ends_with(command, 0);
    stage.is_done_once();
}

#[test]
fn a_run_is_cancelled_from_anywhere_and_one_that_nobody_knows_is_told() {
    let stage = Stage::new();
    let command = stage.start("60k");
    let host = stage.until_under_way();
    let elsewhere = stage.plane.at(without(&host)[0]);
    for words in [&["show", UNKNOWN][..], &["pause", UNKNOWN], &["resume", UNKNOWN], &["cancel", UNKNOWN], &["bwlimit", UNKNOWN, "1M"]] {
        elsewhere.run(&[&["queue"], words].concat()).fails(4, "not_found").naming(&[UNKNOWN]);
    }
    elsewhere.run(&["queue", "pause", "no run id"]).fails(2, "invalid_usage");
    elsewhere.run(&["queue", "bwlimit", RUN, "08:00,512k"]).fails(2, "invalid_usage");
    let state = elsewhere.json(&["queue", "cancel", RUN])["state"].clone();
    assert!(state == "ending" || state == "ended", "{state}");
    ends_with(command, 1);
    let run = elsewhere.json(&["queue", "show", RUN]);
    assert_eq!((&run["state"], &run["end"], &run["exit"]), (&"ended".into(), &"cancelled".into(), &1.into()), "{run}");
    // It is over: nothing brings it back.
    assert_eq!(elsewhere.json(&["queue", "resume", RUN])["state"], "ended");
    assert_eq!(stage.runs("c1").len(), 1);
}

#[test]
fn the_limit_of_a_run_is_its_own_and_changes_while_it_goes_on() {
    let stage = Stage::new();
    // So slow that it would not end within this test.
    let command = stage.start("1k");
    let run = wait_for("workers to have batches", || stage.listed("c1").filter(|run| run["workers"] == 2));
    assert_eq!(run["bwlimit"], 1024);
    // The same workers are as fast as ever for others.
    stage.copy_beside("c1", "first");
    let run = stage.listed("c2").expect("it goes on");
    assert!(run["state"] == "running" && run["files"].as_u64() < Some(FILES as u64 / 4), "{run}");
    assert_eq!(stage.steer("c3", &["bwlimit", RUN, "off"])["bwlimit"], Value::Null);
    ends_with(command, 0);
    stage.is_done_once();
}

#[test]
fn the_limit_that_a_run_was_given_holds_when_another_control_node_goes_on_with_it() {
    let mut stage = Stage::new();
    let command = stage.start("200k");
    let host = stage.until_under_way();
    assert_eq!(stage.steer(without(&host)[0], &["bwlimit", RUN, "4k"])["bwlimit"], 4096);
    stage.plane.kill(&host);
    let elsewhere = without(&host)[0];
    let run = wait_for("another control node to have the run", || {
        stage.listed(elsewhere).filter(|run| run["node"] != *host && run["state"] == "running" && run["workers"] == 2)
    });
    assert_eq!(run["bwlimit"], 4096);
    stage.copy_beside(elsewhere, "first");
    let run = stage.listed(elsewhere).expect("it goes on");
    assert!(run["state"] == "running" && run["files"].as_u64() < Some(FILES as u64), "{run}");
    stage.steer(elsewhere, &["bwlimit", RUN, "off"]);
    ends_with(command, 0);
    stage.is_done_once();
}

#[test]
fn a_control_node_that_hangs_is_named_and_holds_no_list_up() {
    let stage = Stage::new();
    let mut command = stage.start("60k");
    stage.until_under_way();
    stage.steer("c1", &["pause", RUN]);
    command.signal(Signal::KILL);
    wait_for("the command to end", || command.has_ended());
    wait_for("a list that names who does not answer", || {
        stage.plane.agree(&NAMES);
        let host = stage.listed("c1").and_then(|run| Some(run["node"].as_str()?.to_owned())).expect("it is known");
        let hangs = &stage.plane.controls[index(&host)];
        hangs.signal(Signal::STOP);
        // Nothing of it may take longer than this.
        let ran = stage.plane.at(without(&host)[0]).script(&["queue", "--timeout", "5s"]);
        hangs.signal(Signal::CONT);
        let runs = ran.json();
        assert_eq!((runs.as_array().map(Vec::len), &runs[0]["run"]), (Some(1), &RUN.into()), "it is known all the same: {ran:?}");
        // On a slow machine it may have been out of the ring already.
        let warning: Value = serde_json::from_str(ran.stderr.lines().next()?).expect("JSON");
        assert_eq!((&warning["warning"]["code"], &warning["warning"]["node"]), (&"not_connected".into(), &host.as_str().into()), "{ran:?}");
        let waits = runs[0]["state"] == "waiting" && runs[0]["why"].as_str().is_some_and(|why| why.contains(&host));
        assert!(waits, "{ran:?}");
        Some(())
    });
}

#[test]
fn a_control_node_that_has_only_a_record_of_a_run_lists_it_and_starts_nothing() {
    let mut stage = Stage::new();
    let mut command = stage.start("60k");
    stage.until_under_way();
    stage.steer("c1", &["pause", RUN]);
    command.signal(Signal::KILL);
    wait_for("the command to end", || command.has_ended());
    for name in NAMES {
        stage.plane.kill(name);
    }
    // It sees none of the others, with which the run may live.
    stage.plane.restart("c1");
    let known = wait_for("the record to be known", || stage.listed("c1"));
    for run in [known, stage.listed("c1").expect("it is known")] {
        assert!(run["state"] == "waiting" && run["why"].as_str().is_some_and(|why| why.contains("has not gone on with it yet")), "{run}");
    }
    for name in ["c2", "c3"] {
        stage.plane.restart(name);
    }
    wait_for("it to go on, and rest", || stage.listed("c2").filter(|run| run["state"] == "paused"));
    stage.steer("c2", &["bwlimit", RUN, "off"]);
    stage.steer("c3", &["resume", RUN]);
    wait_for("it to end", || stage.listed("c1").filter(|run| run["state"] == "ended"));
    stage.is_done_once();
}

#[test]
fn a_run_without_workers_waits_and_says_for_what_and_files_that_failed_are_shown() {
    let stage = Stage::new();
    let (source, destination) = (stage.room.text("source"), stage.room.text("destination"));
    let started = |more: &[&str]| {
        let copy = ["--json", "copy", &source, &destination, "--retries", "1", "--detach"];
        Ran::of(stage.plane.at("c1").command(&[&copy, more].concat()), "").json()["run"].as_str().expect("an id").to_owned()
    };
    let alone = started(&["--on", "nobody_has_this_label", "--no-worker-timeout", "1h"]);
    let waits = wait_for("it to wait", || Some(stage.steer("c2", &["show", &alone])).filter(|run| run["state"] == "waiting"));
    assert!(waits["why"].as_str().is_some_and(|why| why.contains("nobody_has_this_label")), "{waits}");
    stage.steer("c3", &["cancel", &alone]);
    wait_for("it to end", || Some(stage.steer("c2", &["show", &alone])).filter(|run| run["state"] == "ended"));
    std::fs::create_dir_all(stage.room.path("destination")).expect("made");
    std::fs::write(stage.room.path("destination/0"), "a file, where a directory must be").expect("written");
    let fails = started(&["--on", WORKERS]);
    let ended = wait_for("it to end", || Some(stage.steer("c1", &["show", &fails])).filter(|run| run["state"] == "ended"));
    assert_eq!((&ended["end"], &ended["exit"]), (&"failed".into(), &1.into()), "{ended}");
    let failed = ended["failed"].as_array().expect("a list");
    assert!(failed.len() == 1 && failed[0]["path"] == "0" && ended["more_failed"] == 0, "{ended}");
    let text = stage.plane.at("c2").run(&["queue", "show", &fails]);
    assert!(text.text().contains("ended (1)") && text.text().contains("failed   0: "), "{text:?}");
}
