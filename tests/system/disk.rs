//! A control node whose state directory is on a disk that is full, and files there that are damaged.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Cli, Daemon, wait_for};

/// A disk of 256 KiB, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it on a new directory. Where everything must be tested, it may not be left out.
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).expect("made");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "nkcluster-test"]).arg(&at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "cannot mount a small file system");
        eprintln!("skipped: mounting a small file system needs root");
        None
    }

    fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }

    /// Leaves no room at all.
    fn fill(&self) {
        let mut file = File::create(self.filling()).expect("made");
        while file.write_all(&[7; 512]).is_ok() {}
    }

    /// Makes room again.
    fn free(&self) {
        fs::remove_file(self.filling()).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still uses it keeps it until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A worker that only listens: nobody but who has it written down finds it again.
fn listening(dir: &Path, id: &str) -> Daemon {
    Daemon::start(&dir.join(id), &["--worker", "--node-id", id, "--listen", "nkcluster://127.0.0.1:0;transport=tcp"])
}

/// Makes the worker known.
fn attach(cli: &Cli, worker: &Daemon) {
    assert_eq!(cli.json(&["connect", &worker.uri()]), json!({ "node": worker.id() }));
    cli.wait_status(worker.id(), "ready");
}

fn kill(daemon: &mut Daemon) {
    daemon.signal(Signal::KILL);
    daemon.wait();
}

/// Waits until a control node says something.
fn says(control: &Daemon, what: &str) {
    wait_for(what, || control.log().contains(what).then_some(()));
}

/// Waits until a file names somebody.
fn names(file: &Path, what: &str) {
    wait_for(&format!("{what} in {}", file.display()), || {
        let text = fs::read(file).unwrap_or_default();
        text.windows(what.len()).any(|part| part == what.as_bytes()).then_some(())
    });
}

fn serves(cli: &Cli, workers: &[&Daemon]) {
    for worker in workers {
        cli.wait_status(worker.id(), "ready");
        assert_eq!(cli.json(&["call", worker.id(), "echo", "1"]), json!({ "reply": [1] }));
    }
}

#[test]
fn a_control_node_on_a_full_disk_serves_says_so_and_writes_when_there_is_room_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(disk) = SmallDisk::mount(dir.path().join("c1")) else { return };
    let (records, members) = (disk.0.join("workers.records"), disk.0.join("members.json"));
    let mut control = Daemon::control(dir.path(), "c1");
    let (w1, w2) = (listening(dir.path(), "w1"), listening(dir.path(), "w2"));
    attach(&Cli::to(&control), &w1);
    names(&records, "w1");

    disk.fill();
    let cli = Cli::to(&control);
    attach(&cli, &w2);
    let arguments = ["--control", "--node-id", "c2", "--listen", "nkcluster://127.0.0.1:0;transport=tcp", "--cluster-addr", &control.uri()];
    let mut second = Daemon::start(&dir.path().join("c2"), &arguments);
    wait_for("two control nodes", || (cli.json(&["members"]).as_array()?.len() == 2).then_some(()));
    says(&control, "the records of workers cannot be written");
    says(&control, "the list of members cannot be written");
    serves(&cli, &[&w1, &w2]);
    serves(&Cli::to(&second), &[&w1, &w2]);
    names(&records, "w1");

    disk.free();
    says(&control, "the records of workers are written again");
    says(&control, "the list of members is written again");
    names(&records, "w2");
    names(&members, "c2");
    assert_eq!(control.log().matches("cannot be written").count(), 2, "each is told once");

    // What was written when there was room is what it knows when it starts on a full disk, alone.
    disk.fill();
    kill(&mut second);
    kill(&mut control);
    let control = control.again();
    serves(&Cli::to(&control), &[&w1, &w2]);
}

#[test]
fn a_control_node_starts_with_what_it_can_read_of_its_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut control = Daemon::control(dir.path(), "c1");
    let (w1, w2) = (listening(dir.path(), "w1"), listening(dir.path(), "w2"));
    let (records, members) = (control.dir().join("workers.records"), control.dir().join("members.json"));
    for worker in [&w1, &w2] {
        attach(&Cli::to(&control), worker);
    }
    names(&records, "w2");
    kill(&mut control);
    // The last record and the list of members end in the middle; beside them lies what was being written.
    for file in [&records, &members] {
        let length = fs::metadata(file).expect("it is there").len();
        OpenOptions::new().write(true).open(file).and_then(|open| open.set_len(length - 2)).expect("cut");
        fs::write(file.with_extension("new"), "half").expect("written");
    }
    let control = control.again();
    let cli = Cli::to(&control);
    says(&control, "the records of workers cannot be read to their end");
    says(&control, "the list of members cannot be read");
    serves(&cli, &[&w1]);
    assert_eq!(cli.node("w2"), None);
    attach(&cli, &w2);
    serves(&cli, &[&w1, &w2]);
    names(&records, "w2");
}
