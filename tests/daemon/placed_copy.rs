//! The distributed copy by the workers of a cluster, with real processes: what becomes of a run whose command, workers and control nodes are killed.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nkcluster::cluster::Cluster;
use nkcluster::job::PlacedCalls as _;
use nkcluster_file_sync::{End, RunMessage, RunReply, RunStatus, SyncRun};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::copy::{FILES, Process, Room, names, stats};
use crate::several::{NAMES, Plane, index, without};
use crate::support::{Cli, DEADLINE, Daemon, Ran, wait_for};

/// Names every run here; each has a cluster of its own.
pub(crate) const RUN: &str = "abcdefghijklmnopqrst";
/// The workers, and no control node.
pub(crate) const WORKERS: &str = "id=w1 || id=w2";

pub(crate) fn may_copy(command: &mut Command) {
    command.env("NKCLUSTER_GRANTS", "file_sync");
}

/// Three control nodes and two workers that may copy, and what they are to copy.
pub(crate) struct Stage {
    pub(crate) plane: Plane,
    pub(crate) room: Room,
    runtime: Runtime,
    cluster: Cluster,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let plane = Plane::start_with(|_, command| may_copy(command));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let cluster = runtime.block_on(plane.connect());
        Self { plane, room: Room::new(), runtime, cluster }
    }

    /// The command, which knows all control nodes; so slow that much can happen meanwhile.
    fn copy(&self, rate: &str, more: &[&str]) -> Command {
        self.copy_by(&Cli::at(self.plane.everywhere()), rate, more)
    }

    /// The same at one control node.
    fn copy_by(&self, by: &Cli, rate: &str, more: &[&str]) -> Command {
        self.run_by(by, "copy", rate, more)
    }

    fn run_by(&self, by: &Cli, kind: &str, rate: &str, more: &[&str]) -> Command {
        let (source, destination) = (self.room.text("source"), self.room.text("destination"));
        let copy =
            ["--json", kind, &source, &destination, "--on", WORKERS, "--run-id", RUN, "--cluster-batch-files", "10", "--bwlimit", rate];
        by.command(&[&copy, more].concat())
    }

    pub(crate) fn start(&self, rate: &str) -> Process {
        Process(self.copy(rate, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts"))
    }

    /// Another command that follows the run to its end.
    pub(crate) fn follow(&self) -> Ran {
        Ran::of(self.copy("off", &["--resume"]), "")
    }

    /// What the run says of itself, if anybody knows it now.
    fn status(&self) -> Option<RunStatus> {
        self.say(&RunMessage::Status { seen: None })
    }

    fn say(&self, message: &RunMessage) -> Option<RunStatus> {
        match self.runtime.block_on(self.cluster.placed::<SyncRun>(RUN, message, DEADLINE)) {
            Ok(RunReply::Known(status)) => Some(*status),
            _ => None,
        }
    }

    /// Waits until batches have been done, and others are under way; tells who directs the run.
    pub(crate) fn until_under_way(&self) -> String {
        wait_for("the run to be under way", || {
            let status = self.status()?;
            assert_eq!(status.end, None, "it has ended before anything could happen");
            let stats = status.snapshot.stats;
            (stats.transfers >= 20 && stats.transfers < FILES as u64 / 2).then(|| status.node.to_string())
        })
    }

    /// That everything is there, once, and nothing else.
    #[track_caller]
    pub(crate) fn is_done_once(&self) {
        self.room.is_copied();
        let ran = self.follow();
        assert_eq!(stats(&ran)["transfers"], FILES, "each file is counted once: {ran:?}");
    }
}

/// Waits until a command has ended with this code.
#[track_caller]
pub(crate) fn ends_with(mut command: Process, code: i32) {
    let ended = wait_for("the command to end", || command.has_ended());
    let mut said = String::new();
    if let Some(stderr) = &mut command.0.stderr {
        stderr.read_to_string(&mut said).expect("text");
    }
    assert_eq!(ended, code, "{said}");
}

/// Files that are there under their names: what is unfinished lies elsewhere, and comes and goes.
pub(crate) fn files_below(root: &Path) -> usize {
    (0..7).map(|directory| names(&root.join(directory.to_string())).len()).sum()
}

#[test]
fn a_run_goes_on_when_its_command_is_killed_and_another_one_tells_its_end() {
    let stage = Stage::new();
    let mut command = stage.start("200k");
    stage.until_under_way();
    command.signal(Signal::KILL);
    wait_for("the command to end", || command.has_ended());
    let followed = stage.follow();
    assert_eq!(stats(&followed)["transfers"], FILES, "{followed:?}");
    stage.is_done_once();
    // It is over, so the same order under the same id would do nothing; and another one is refused.
    Ran::of(stage.copy("200k", &[]), "").fails(7, "already_started").naming(&["has ended", "--resume"]);
    Ran::of(stage.copy("1M", &[]), "").fails(7, "already_started");
}

#[test]
fn when_the_control_node_that_directs_a_run_is_killed_another_one_goes_on_and_each_file_is_counted_once() {
    let mut stage = Stage::new();
    let command = stage.start("200k");
    let host = stage.until_under_way();
    stage.plane.kill(&host);
    ends_with(command, 0);
    stage.is_done_once();
    // It comes back with the record that it had then, and begins nothing anew.
    stage.plane.restart(&host);
    stage.plane.agree(&NAMES);
    stage.is_done_once();
}

#[test]
fn a_control_node_that_wakes_up_when_another_one_has_gone_on_with_its_run_changes_nothing() {
    let stage = Stage::new();
    let command = stage.start("200k");
    let host = stage.until_under_way();
    let frozen = &stage.plane.controls[index(&host)];
    frozen.signal(Signal::STOP);
    ends_with(command, 0);
    stage.room.is_copied();
    // Whoever wrote it again would show.
    let (newer, old) = (stage.room.path("destination/0/0"), vec![0; 4096]);
    fs::write(&newer, "written since").expect("written");
    frozen.signal(Signal::CONT);
    stage.plane.agree(&NAMES);
    wait_for("the run to have one end, for everybody", || {
        let ends = NAMES.map(|name| Ran::of(stage.copy_by(&stage.plane.at(name), "off", &["--resume"]), ""));
        ends.iter().all(|ran| ran.code == Some(0) && stats(ran)["transfers"] == FILES).then_some(())
    });
    assert_eq!(fs::read(&newer).expect("readable"), b"written since");
    fs::write(&newer, old).expect("written");
    stage.is_done_once();
}

#[test]
fn a_control_node_that_sees_nothing_where_the_trees_were_deletes_nothing_and_tells_no_success() {
    // As if it were mounted on the other one alone.
    for (verb, unmounted) in [("sync", "source"), ("move", "source"), ("copy", "destination")] {
        let mut stage = Stage::new();
        let run = &mut stage.run_by(&Cli::at(stage.plane.everywhere()), verb, "200k", &[]);
        let command = Process(run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts"));
        let host = stage.until_under_way();
        stage.plane.kill(&host);
        fs::rename(stage.room.path(unmounted), stage.room.path("elsewhere")).expect("renamed");
        fs::create_dir(stage.room.path(unmounted)).expect("made");
        ends_with(command, 7);
        let destination = if unmounted == "destination" { "elsewhere" } else { "destination" };
        assert!(files_below(&stage.room.path(destination)) >= 20, "what was copied is there");
        let ended = stage.status().and_then(|status| status.end).expect("it has ended");
        assert!(ended.end == End::Fatal && ended.errors[0].contains("is it mounted there?"), "{verb}: {ended:?}");
    }
}

#[test]
fn a_run_that_rests_still_rests_when_another_control_node_goes_on_with_it() {
    let mut stage = Stage::new();
    let command = stage.start("200k");
    let host = stage.until_under_way();
    stage.say(&RunMessage::Pause).expect("it is there");
    stage.plane.kill(&host);
    let status = wait_for("another control node to have the run", || stage.status().filter(|status| status.node.as_str() != host));
    assert!(status.is_paused && status.end.is_none(), "{status:?}");
    stage.say(&RunMessage::Resume).expect("it is there");
    ends_with(command, 0);
    stage.is_done_once();
}

#[test]
fn a_run_outlives_a_rolling_restart_of_all_control_nodes() {
    let mut stage = Stage::new();
    let command = stage.start("60k");
    stage.until_under_way();
    for name in NAMES {
        stage.plane.stop(name);
        stage.plane.agree(&without(name));
        stage.plane.restart(name);
        stage.plane.agree(&NAMES);
    }
    ends_with(command, 0);
    stage.is_done_once();
}

#[test]
fn when_all_control_nodes_die_at_once_the_command_ends_and_the_run_goes_on_with_the_first_that_come_back() {
    let mut stage = Stage::new();
    let command = &mut stage.copy("200k", &["--no-worker-timeout", "10s"]);
    let command = Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts"));
    stage.until_under_way();
    for name in NAMES {
        stage.plane.kill(name);
    }
    ends_with(command, 7);
    for name in NAMES {
        stage.plane.restart(name);
    }
    // Nobody asks for it.
    wait_for("everything to be there", || (files_below(&stage.room.path("destination")) == FILES).then_some(()));
    let followed = stage.follow();
    assert_eq!(followed.json()["end"], "success", "{followed:?}");
    stage.is_done_once();
}

#[test]
fn a_run_that_is_cancelled_ends_and_leaves_nothing_unfinished() {
    let stage = Stage::new();
    let command = stage.start("100k");
    stage.until_under_way();
    command.signal(Signal::INT);
    ends_with(command, 1);
    assert_eq!(stage.status().and_then(|status| status.end).map(|summary| summary.end), Some(End::Cancelled));
    let left: Vec<_> = names(&stage.room.path("destination")).into_iter().filter(|name| name.starts_with(".nkcluster-")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_run_can_be_started_and_left_alone() {
    let stage = Stage::new();
    let started = Ran::of(stage.copy("off", &["--detach"]), "").json();
    assert_eq!(started["run"], RUN);
    assert_eq!(stage.follow().json()["end"], "success");
    stage.is_done_once();
    // A run that nobody has started cannot be followed.
    let (source, destination) = (stage.room.text("source"), stage.room.text("destination"));
    let unknown =
        ["copy", &source, &destination, "--on", WORKERS, "--resume", "--run-id", "zzzzzzzzzzzzzzzzzzzz", "--no-worker-timeout", "1s"];
    stage.plane.at("c1").run(&unknown).fails(7, "not_found");
}

#[test]
fn workers_of_a_cluster_do_the_work_and_one_that_is_killed_loses_nothing() {
    let room = Room::new();
    let nodes = room.path("nodes");
    let arguments = ["--control", "--node-id", "c1", "--listen", "nkcluster://127.0.0.1:0;transport=tcp"];
    let control = Daemon::start_with(&nodes.join("c1"), &arguments, may_copy);
    let worker = |id: &str| {
        let addr = control.uri();
        let arguments = ["--worker", "--node-id", id, "--cluster-addr", &addr, "--meta", "storage"];
        Daemon::start_with(&nodes.join(id), &arguments, may_copy)
    };
    let (first, _second) = (worker("w1"), worker("w2"));
    // It matches too, and is passed over, as it may not touch the machine.
    let _ungranted =
        Daemon::start(&nodes.join("w3"), &["--worker", "--node-id", "w3", "--cluster-addr", &control.uri(), "--meta", "storage"]);
    let cli = Cli::to(&control);
    for id in ["w1", "w2", "w3"] {
        cli.wait_status(id, "ready");
    }
    let (source, destination) = (room.text("source"), room.text("destination"));
    let copy = ["--json", "copy", &source, &destination, "--on", "storage", "--cluster-batch-files", "10", "--bwlimit", "200k"];
    let mut running = Process(cli.command(&copy).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    wait_for("w1 to have a task", || {
        let tasks = cli.json(&["task", "list", "w1", "file_sync"]);
        tasks.as_array().filter(|tasks| !tasks.is_empty()).map(|_| ())
    });
    first.signal(Signal::KILL);
    assert_eq!(wait_for("the run to end", || running.has_ended()), 0);
    room.is_copied();
    let again = cli.script(&["copy", &source, &destination, "--on", "storage"]);
    assert_eq!(stats(&again)["transfers"], 0, "{again:?}");
}

#[test]
fn a_control_node_without_the_grant_directs_no_run_and_the_command_does_it_itself() {
    let (room, nodes) = (Room::new(), tempfile::tempdir().expect("a directory"));
    let control = Daemon::control(nodes.path(), "c1");
    let arguments = ["--worker", "--node-id", "w1", "--cluster-addr", &control.uri()];
    let _worker = Daemon::start_with(&nodes.path().join("w1"), &arguments, may_copy);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let (source, destination) = (room.text("source"), room.text("destination"));
    let copy = ["copy", &source, &destination, "--on", "id=w1"];
    let ran = cli.run(&[&copy[..], &["--detach"]].concat());
    ran.fails(7, "not_allowed").naming(&["c1", "grants"]);
    assert!(!room.path("destination").exists());
    let ran = cli.script(&copy);
    assert_eq!(stats(&ran)["transfers"], FILES, "{ran:?}");
    ran.naming(&["this command directs the run", "grants"]);
    room.is_copied();
}

#[test]
fn lists_of_files_and_relative_paths_are_those_of_the_command_and_a_dry_run_tells_every_file() {
    let stage = Stage::new();
    let all: Vec<String> = (0..FILES).map(|number| format!("{}/{number}", number % 7)).collect();
    let list = |name: &str, lines: &[String]| fs::write(stage.room.path(name), lines.join("\n")).expect("written");
    list("some", &all[..5]);
    list("all", &all);
    let copy = |more: &[&str]| {
        let arguments = [&["--json", "copy", "source", "destination", "--on", WORKERS], more].concat();
        let mut command = Cli::at(stage.plane.everywhere()).command(&arguments);
        command.current_dir(stage.room.path(""));
        Ran::of(command, "")
    };
    let dry = copy(&["--files-from", "all", "--dry-run"]);
    assert_eq!(stats(&dry)["transfers"], 0);
    assert_eq!(
        dry.stderr.lines().filter(|line| line.contains("\"would\":\"copy ")).count(),
        FILES,
        "more than one answer has: {}",
        dry.stderr
    );
    assert_eq!(files_below(&stage.room.path("destination")), 0);
    assert_eq!(stats(&copy(&["--files-from", "some"]))["transfers"], 5);
    assert_eq!(files_below(&stage.room.path("destination")), 5);
    // The remotes are those of the control nodes.
    let unknown = Cli::at(stage.plane.everywhere()).run(&["copy", "nowhere:bucket", &stage.room.text("destination"), "--on", WORKERS]);
    assert!(unknown.code == Some(1) && unknown.stderr.contains("no remote \"nowhere\""), "{unknown:?}");
}
