//! The distributed copy with real processes: workers and controllers that are killed, frozen and resumed while they hold a claim.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::support::{Ran, command, pid, wait_for};

pub(crate) const FILES: usize = 300;

/// A source, a destination and a place for the queue.
pub(crate) struct Room {
    dir: TempDir,
}

/// A process that ends with the test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(&self.0), signal).expect("it runs");
    }

    pub(crate) fn has_ended(&mut self) -> Option<i32> {
        self.0.try_wait().expect("it is ours").map(|status| status.code().unwrap_or(-1))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nkcluster(arguments: &[&str]) -> Command {
    let mut nkcluster = command(env!("CARGO_BIN_EXE_nkcluster"));
    nkcluster.args(arguments);
    nkcluster
}

impl Room {
    pub(crate) fn new() -> Self {
        let room = Self { dir: tempfile::tempdir().expect("a directory") };
        for number in 0..FILES {
            let path = room.path("source").join(format!("{}/{number}", number % 7));
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, vec![number as u8; 4096]).expect("written");
        }
        room
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    /// A worker of the queue, once it waits for batches.
    pub(crate) fn worker(&self, id: &str, more: &[&str]) -> Process {
        let work = self.text("work");
        let arguments = [&["rcd", "--cluster", &work, "--cluster-id", id], more].concat();
        let mut child = nkcluster(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("text");
        assert!(line.contains(id), "{line}");
        Process(child)
    }

    pub(crate) fn controller(&self, more: &[&str]) -> Command {
        let (source, destination, work) = (self.text("source"), self.text("destination"), self.text("work"));
        let arguments =
            ["--json", "copy", &source, &destination, "--cluster", &work, "--cluster-batch-files", "50", "--cluster-lease", "4s"];
        nkcluster(&[&arguments, more].concat())
    }

    /// Waits until a worker holds a claim.
    fn until_claimed_by(&self, worker: &str) {
        let suffix = format!("-{worker}.json");
        wait_for(&format!("{worker} to hold a claim"), || {
            names(&self.path("work/queue/processing")).into_iter().find(|name| name.ends_with(&suffix))
        });
    }

    #[track_caller]
    pub(crate) fn is_copied(&self) {
        let (source, destination) = (tree(&self.path("source")), tree(&self.path("destination")));
        assert_eq!(source.len(), FILES);
        assert!(source == destination, "the trees differ; only at the destination: {:?}", only(&destination, &source));
        for directory in ["pending", "processing", "done"] {
            assert_eq!(names(&self.path("work/queue").join(directory)), Vec::<String>::new(), "something is left in {directory}");
        }
    }
}

fn only(one: &BTreeMap<PathBuf, Vec<u8>>, other: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    one.keys().filter(|path| !other.contains_key(*path)).cloned().collect()
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Every file below a directory with its content; what is staged counts too.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut directories) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => directories.push(path),
                false => drop(found.insert(path.strip_prefix(root).expect("below").to_owned(), fs::read(&path).expect("readable"))),
            }
        }
    }
    found
}

/// The statistics of a run that succeeded.
#[track_caller]
pub(crate) fn stats(ran: &Ran) -> serde_json::Value {
    let summary = ran.json();
    assert_eq!(summary["end"], "success", "{ran:?}");
    summary["stats"].clone()
}

#[test]
fn workers_share_the_files_of_a_run_and_stop_when_they_are_told() {
    let room = Room::new();
    let mut workers = ["pod-1", "pod-2"].map(|id| room.worker(id, &[]));
    let ran = Ran::of(room.controller(&["--cluster-quit-workers"]), "");
    assert_eq!(stats(&ran)["transfers"], FILES, "each file is counted once: {ran:?}");
    for worker in &mut workers {
        assert_eq!(wait_for("a worker to stop", || worker.has_ended()), 0);
    }
    room.is_copied();
    // Nobody is told to stop who begins later.
    let _later = room.worker("pod-1", &[]);
    let ran = Ran::of(room.controller(&[]), "");
    assert_eq!(stats(&ran)["transfers"], 0, "{ran:?}");
}

#[test]
fn a_worker_that_is_killed_with_a_claim_loses_nothing() {
    let room = Room::new();
    let slow = room.worker("slow-1", &["--bwlimit", "100k", "--transfers", "1"]);
    let mut controller = Process(room.controller(&[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts"));
    room.until_claimed_by("slow-1");
    slow.signal(Signal::KILL);
    let _other = room.worker("other-2", &[]);
    assert_eq!(wait_for("the run to end", || controller.has_ended()), 0);
    room.is_copied();
}

#[test]
fn a_worker_that_wakes_up_late_changes_nothing() {
    let room = Room::new();
    let slow = room.worker("slow-1", &["--bwlimit", "100k"]);
    let mut controller = Process(room.controller(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    room.until_claimed_by("slow-1");
    slow.signal(Signal::STOP);
    let _other = room.worker("other-2", &[]);
    assert_eq!(wait_for("the run to end", || controller.has_ended()), 0);
    room.is_copied();
    // The file says since when: whoever wrote it again would show.
    let before = tree(&room.path("destination"));
    let newer = room.path("destination/0/0");
    fs::write(&newer, "written since").expect("written");
    slow.signal(Signal::CONT);
    // It tells its status as soon as it is awake, and has then given up what it had.
    let status = room.path("work/queue/status/slow-1.json");
    wait_for("the worker to be idle", || {
        let status: serde_json::Value = serde_json::from_slice(&fs::read(&status).ok()?).ok()?;
        status["running"].as_object().filter(|running| running.is_empty()).map(|_| ())
    });
    let mut after = tree(&room.path("destination"));
    assert_eq!(after.insert("0/0".into(), before[Path::new("0/0")].clone()), Some(b"written since".to_vec()));
    assert!(after == before, "the worker has changed something: {:?}", only(&after, &before));
}

#[test]
fn a_controller_that_is_killed_is_resumed() {
    let room = Room::new();
    let _worker = room.worker("slow-1", &["--bwlimit", "300k"]);
    let id = "abcdefghijklmnopqrst";
    let run = ["--run-id", id];
    let mut first = Process(room.controller(&run).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    room.until_claimed_by("slow-1");
    first.signal(Signal::KILL);
    wait_for("the controller to end", || first.has_ended());
    // A run of that name is there, so a new one cannot begin by mistake.
    let again = Ran::of(room.controller(&run), "");
    assert!(again.code != Some(0) && again.stderr.contains("resume"), "{again:?}");
    let resumed = Ran::of(room.controller(&[&run[..], &["--resume"]].concat()), "");
    stats(&resumed);
    room.is_copied();
}

#[test]
fn a_run_that_no_worker_takes_ends_with_an_error() {
    let room = Room::new();
    let ran = Ran::of(room.controller(&["--no-worker-timeout", "2s", "--retries", "1"]), "");
    assert!(ran.code != Some(0) && ran.stderr.contains("no worker"), "{ran:?}");
    assert_eq!(tree(&room.path("destination")), BTreeMap::new());
}

#[test]
fn one_command_line_serves_the_controller_and_its_workers() {
    let room = Room::new();
    // As in an indexed job: the pods differ in nothing but their number.
    let pod = |id: &str| {
        let command = &mut room.controller(&["--cluster-quit-workers", "--cluster-id", id]);
        Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    };
    let mut pods = vec![pod("2"), pod("1")];
    wait_for("both workers to be there", || (names(&room.path("work/queue/status")).len() == 2).then_some(()));
    pods.push(pod("0"));
    for pod in &mut pods {
        assert_eq!(wait_for("a pod to end", || pod.has_ended()), 0);
    }
    room.is_copied();
}

#[test]
fn runs_at_the_same_time_share_workers_and_nothing_else() {
    let room = Room::new();
    let _workers = ["w1", "w2"].map(|id| room.worker(id, &[]));
    let (source, work) = (room.text("source"), room.text("work"));
    let targets = ["destination", "second"].map(|name| room.text(name));
    let mut runs = targets.each_ref().map(|target| {
        let mut command = nkcluster(&["--json", "copy", &source, target, "--cluster", &work, "--cluster-batch-files", "20"]);
        Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    });
    for run in &mut runs {
        assert_eq!(wait_for("a run to end", || run.has_ended()), 0);
    }
    room.is_copied();
    assert!(tree(&room.path("source")) == tree(&room.path("second")));
}

#[test]
fn a_file_that_cannot_be_copied_fails_the_run() {
    let room = Room::new();
    let _worker = room.worker("w1", &[]);
    // Only the workers will find out: the plan sees a file, and nothing at the destination.
    fs::create_dir_all(room.path("destination")).expect("made");
    fs::write(room.path("destination/0"), "a file, where a directory must be").expect("written");
    let ran = Ran::of(room.controller(&["--retries", "1"]), "");
    assert!(ran.code.is_some_and(|code| code != 0), "{ran:?}");
    // What could be copied is there all the same.
    assert_eq!(fs::read(room.path("destination/1/1")).expect("copied"), vec![1; 4096]);
    assert_eq!(fs::read(room.path("destination/0")).expect("left"), b"a file, where a directory must be");
}

#[test]
fn what_is_kept_of_batches_is_as_asked() {
    for (cleanup, kept) in [("full", 0), ("completed", 0), ("none", FILES.div_ceil(50))] {
        let room = Room::new();
        let _worker = room.worker("w1", &[]);
        stats(&Ran::of(room.controller(&["--cluster-cleanup", cleanup]), ""));
        for kind in ["input-ok", "output-ok"] {
            assert_eq!(names(&room.path("work/queue/finished").join(kind)).len(), kept, "{kind} under {cleanup}");
        }
    }
}
