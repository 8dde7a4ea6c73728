//! The distributed copy through a queue for which workers of a cluster work, with real processes: whoever is killed, the files of the queue tell how to go on.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;

use crate::copy::{FILES, Process, Room, names, stats, tree};
use crate::placed_copy::{ends_with, files_below, may_copy};
use crate::several::{NAMES, Plane};
use crate::support::{Cli, Daemon, Ran, wait_for};

const RUN: &str = "abcdefghijklmnopqrst";

/// A control node, workers that may copy, and what they are to copy.
pub(crate) struct Stage {
    control: Daemon,
    pub(crate) workers: Vec<Daemon>,
    pub(crate) room: Room,
}

impl Stage {
    fn new() -> Self {
        let room = Room::new();
        let control = Daemon::control(&room.path("nodes/c1"), "c1");
        Self { control, workers: Vec::new(), room }
    }

    /// Kills the control node; another life of it is at the same address.
    pub(crate) fn restart_control(&mut self) {
        let address = self.control.uri();
        self.control.signal(Signal::KILL);
        self.control.wait();
        let arguments = ["--control", "--node-id", "c1", "--listen", &address];
        self.control = Daemon::start(self.control.dir(), &arguments);
    }

    /// A worker, which works in a directory.
    pub(crate) fn worker(&mut self, id: &str, directory: &Path) -> usize {
        let arguments = ["--worker", "--node-id", id, "--cluster-addr", &self.control.uri(), "--meta", "storage"];
        let worker = Daemon::start_with(&self.room.path("nodes").join(id), &arguments, |command| {
            may_copy(command);
            command.current_dir(directory);
        });
        self.workers.push(worker);
        self.cli().wait_status(id, "ready");
        self.workers.len() - 1
    }

    pub(crate) fn with_workers<const N: usize>(ids: [&str; N]) -> Self {
        let mut stage = Self::new();
        for id in ids {
            stage.worker(id, &stage.room.path(""));
        }
        stage
    }

    pub(crate) fn cli(&self) -> Cli {
        Cli::to(&self.control)
    }

    fn start(&self, rate: &str, more: &[&str]) -> Process {
        start(&self.room, &self.cli(), "storage", rate, more)
    }

    fn resume(&self) -> Ran {
        Ran::of(copy(&self.room, &self.cli(), "storage", "off", &["--resume"]), "")
    }

    /// That a worker has no task any more.
    pub(crate) fn has_left(&self, worker: &str) {
        // The command has waited for it; the list of tasks follows.
        wait_for(&format!("{worker} to have no task"), || {
            self.cli().json(&["task", "list", worker, "file_sync"]).as_array().filter(|tasks| tasks.is_empty()).map(|_| ())
        });
    }
}

/// Through a queue in `work`, by workers of a cluster.
pub(crate) fn copy(room: &Room, cli: &Cli, on: &str, rate: &str, more: &[&str]) -> std::process::Command {
    let [source, destination, work] = ["source", "destination", "work"].map(|name| room.text(name));
    let copy = ["--json", "copy", &source, &destination, "--cluster", &work, "--on", on, "--run-id", RUN];
    let how = ["--cluster-batch-files", "10", "--cluster-lease", "4s", "--bwlimit", rate];
    cli.command(&[&copy[..], &how, more].concat())
}

fn start(room: &Room, cli: &Cli, on: &str, rate: &str, more: &[&str]) -> Process {
    let mut command = copy(room, cli, on, rate, more);
    Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts"))
}

/// Claims of the worker of a node.
fn claims(room: &Room, node: &str) -> Vec<String> {
    let end = format!("-{node}.{RUN}.json");
    names(&room.path("work/queue/processing")).into_iter().filter(|name| name.ends_with(&end)).collect()
}

/// Waits until a worker has a claim, and some files are copied.
fn until_under_way(room: &Room, node: &str) {
    wait_for(&format!("{node} to hold a claim while the run is under way"), || {
        let copied = files_below(&room.path("destination"));
        assert!(copied < FILES, "it is over already");
        (copied >= 20 && !claims(room, node).is_empty()).then_some(())
    });
}

/// That everything is there, and nothing of the run or its workers is left in the queue.
#[track_caller]
fn is_done(room: &Room) {
    room.is_copied();
    let left: Vec<_> = tree(&room.path("work")).into_keys().filter(|path| path.to_string_lossy().contains(RUN)).collect();
    assert!(left.is_empty(), "something is left in the queue: {left:?}");
}

#[test]
fn workers_of_a_cluster_and_others_share_the_queue_of_a_run() {
    let stage = Stage::with_workers(["w1", "w2"]);
    let _other = stage.room.worker("rcd-1", &[]);
    let ran = Ran::of(copy(&stage.room, &stage.cli(), "storage", "off", &[]), "");
    assert_eq!(stats(&ran)["transfers"], FILES, "each file is counted once: {ran:?}");
    is_done(&stage.room);
    ["w1", "w2"].into_iter().for_each(|worker| stage.has_left(worker));
    assert_eq!(names(&stage.room.path("work/queue/status")), ["rcd-1.json"], "who was not started by the run goes on");
}

#[test]
fn a_worker_of_a_cluster_that_is_killed_with_a_claim_loses_nothing_and_leaves_nothing() {
    let mut stage = Stage::with_workers(["w1", "w2"]);
    let run = stage.start("100k", &[]);
    until_under_way(&stage.room, "w1");
    stage.workers[0].signal(Signal::KILL);
    stage.workers[0].wait();
    assert!(!claims(&stage.room, "w1").is_empty(), "it was to be killed with a claim");
    ends_with(run, 0);
    is_done(&stage.room);
    stage.has_left("w2");
}

#[test]
fn a_worker_that_was_started_again_and_one_that_comes_late_take_part() {
    let mut stage = Stage::with_workers(["w1"]);
    let run = stage.start("40k", &[]);
    until_under_way(&stage.room, "w1");
    stage.workers[0].signal(Signal::KILL);
    stage.workers[0].wait();
    // Nobody else is there: what is claimed from now on is claimed by these.
    stage.worker("w2", &stage.room.path(""));
    wait_for("w2 to have a claim", || claims(&stage.room, "w2").pop());
    let again = stage.worker("w1", &stage.room.path(""));
    wait_for("w1 to be at work again", || {
        let tasks = stage.cli().json(&["task", "list", stage.workers[again].id(), "file_sync"]);
        tasks.as_array().filter(|tasks| !tasks.is_empty()).map(|_| ())
    });
    ends_with(run, 0);
    is_done(&stage.room);
}

#[test]
fn a_command_that_is_killed_is_resumed_by_another_one_with_the_same_workers() {
    let stage = Stage::with_workers(["w1", "w2"]);
    let mut first = stage.start("100k", &[]);
    until_under_way(&stage.room, "w1");
    first.signal(Signal::KILL);
    wait_for("the command to end", || first.has_ended());
    let task = |worker| stage.cli().json(&["task", "list", worker, "file_sync"])[0]["started"].clone();
    let before = ["w1", "w2"].map(task);
    let resumed = stage.resume();
    stats(&resumed);
    is_done(&stage.room);
    assert!(before.iter().all(|started| !started.is_null()), "they had gone: {before:?}");
    ["w1", "w2"].into_iter().for_each(|worker| stage.has_left(worker));
}

#[test]
fn a_command_that_is_stopped_takes_its_workers_away_and_the_run_can_be_resumed() {
    let stage = Stage::with_workers(["w1", "w2"]);
    let run = stage.start("100k", &[]);
    until_under_way(&stage.room, "w1");
    run.signal(Signal::INT);
    ends_with(run, 1);
    ["w1", "w2"].into_iter().for_each(|worker| stage.has_left(worker));
    for directory in ["status", "wanted"] {
        assert_eq!(names(&stage.room.path("work/queue").join(directory)), Vec::<String>::new());
    }
    stats(&stage.resume());
    is_done(&stage.room);
}

#[test]
fn a_worker_that_sees_another_directory_there_is_told_of_and_left_out() {
    // Each process finds its own directory under this path.
    let mut stage = Stage::new();
    let elsewhere = stage.room.path("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    stage.worker("w1", &elsewhere);
    let copy = |stage: &Stage, destination: &str, work: &str, more: &[&str]| {
        let [source, destination] = ["source", destination].map(|name| stage.room.text(name));
        let work = format!("/proc/self/cwd/{work}");
        let copy = ["--json", "copy", &source, &destination, "--cluster", &work, "--on", "storage"];
        let mut command = stage.cli().command(&[&copy[..], more].concat());
        command.current_dir(stage.room.path(""));
        Ran::of(command, "")
    };
    // With nobody else, the run says why.
    let ran = copy(&stage, "untouched", "first", &["--no-worker-timeout", "5s", "--retries", "1"]);
    assert!(ran.code.is_some_and(|code| code != 0), "{ran:?}");
    ran.naming(&["no worker was heard of", "w1: ", "same storage"]);
    assert_eq!(files_below(&stage.room.path("untouched")), 0);
    stage.worker("w2", &stage.room.path(""));
    let ran = copy(&stage, "destination", "work", &[]);
    assert_eq!(stats(&ran)["transfers"], FILES, "{ran:?}");
    ran.naming(&["w2 takes part"]);
    stage.room.is_copied();
    assert_eq!(names(&elsewhere), Vec::<String>::new(), "it has made what it was to find");
}

#[test]
fn a_run_goes_on_when_all_control_nodes_of_its_workers_die() {
    let mut plane = Plane::start_with(|_, command| may_copy(command));
    let room = Room::new();
    let run = start(&room, &Cli::at(plane.everywhere()), "id=w1 || id=w2", "100k", &[]);
    until_under_way(&room, "w1");
    for name in NAMES {
        plane.kill(name);
    }
    ends_with(run, 0);
    room.is_copied();
}
