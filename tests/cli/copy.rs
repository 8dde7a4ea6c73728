//! `copy`, `sync`, `move`, `delete`, `check` and `queue` in one process.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Ran, command};

struct Room(TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempfile::tempdir().expect("a directory"));
        for (path, content) in [("source/a.txt", "one"), ("source/d/b.txt", "two"), ("source/d/c.tmp", "three")] {
            room.write(path, content);
        }
        room
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs it in the room, so that remotes are relative paths.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(&[], arguments)
    }

    /// The same with variables of the environment.
    fn run_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
        let mut nkcluster = command(env!("CARGO_BIN_EXE_nkcluster"));
        nkcluster.env_remove("RCLONE_CLUSTER").env_remove("RCLONE_CLUSTER_ID").envs(variables.iter().copied());
        nkcluster.args(arguments).current_dir(self.0.path());
        Ran::of(nkcluster, "")
    }

    /// Whether the source is as it was, and nothing else was made.
    fn is_untouched(&self) -> bool {
        let has_source = ["source/a.txt", "source/d/b.txt", "source/d/c.tmp"].iter().all(|path| self.path(path).exists());
        has_source && fs::read_dir(self.0.path()).expect("it lists").count() == 1
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_tree_is_copied_and_people_see_the_numbers() {
    let room = Room::new();
    let ran = room.run(&["copy", "source", "destination", "-v"]);
    assert_eq!(ran.text(), "", "standard output is for what was asked: {ran:?}");
    assert!(ran.stderr.contains("3 / 3, 100%") && ran.stderr.contains("INFO: d/b.txt"), "{ran:?}");
    assert_eq!(read(&room.path("destination/d/b.txt")), "two");
    let again = room.run(&["--json", "copy", "source", "destination"]).json();
    assert_eq!((&again["end"], &again["stats"]["transfers"], &again["stats"]["checks"]), (&json!("success"), &json!(0), &json!(3)));
}

#[test]
fn a_sync_shows_what_it_would_do_and_does_it() {
    let room = Room::new();
    room.write("destination/old", "x");
    let would = room.run(&["sync", "source", "destination", "--dry-run", "--exclude", "*.tmp"]);
    assert!(would.stderr.contains("would copy a.txt (3 bytes)") && would.stderr.contains("would delete old"), "{would:?}");
    assert!(!would.stderr.contains("c.tmp") && !room.path("destination/a.txt").exists());
    room.run(&["sync", "source", "destination", "--exclude", "*.tmp"]).text();
    assert!(!room.path("destination/old").exists() && !room.path("destination/d/c.tmp").exists());
    assert_eq!(read(&room.path("destination/a.txt")), "one");
}

#[test]
fn a_move_and_a_delete_take_what_the_filters_say() {
    let room = Room::new();
    room.run(&["move", "source", "destination", "--include", "*.txt", "--delete-empty-src-dirs"]).text();
    assert!(!room.path("source/a.txt").exists() && room.path("source/d/c.tmp").exists());
    assert_eq!(read(&room.path("destination/d/b.txt")), "two");
    let ran = room.run(&["--json", "delete", "destination", "--include", "b.*"]).json();
    assert_eq!(ran["stats"]["deletes"], 1);
    assert!(!room.path("destination/d/b.txt").exists() && room.path("destination/a.txt").exists());
}

#[test]
fn a_check_tells_what_differs_and_ends_with_1() {
    let room = Room::new();
    room.run(&["copy", "source", "destination"]).text();
    assert!(room.run(&["check", "source", "destination"]).text().contains("3 files are the same"));
    room.write("destination/a.txt", "ONE");
    room.write("destination/new", "x");
    let ran = room.run(&["check", "source", "destination", "--download"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("* a.txt\n") && ran.stdout.contains("- new\n") && !ran.stdout.contains("b.txt"), "{ran:?}");
    assert!(ran.stderr.starts_with("error[differences_found]: 2 files differ"), "{ran:?}");
}

#[test]
fn failures_have_the_codes_of_rclone() {
    let room = Room::new();
    let missing = room.run(&["copy", "no-such", "destination", "--stats", "0"]);
    assert_eq!(missing.code, Some(3), "{missing:?}");
    assert!(missing.stderr.contains("error[directory_not_found]: copy failed"), "{missing:?}");
    room.run(&["copy", "source", "--json"]).fails(2, "invalid_usage");
    room.run(&["copy", "source", "destination", "--bwlimit", "08:00,512k"]).fails(2, "invalid_usage").naming(&["timetable"]);
    room.write("destination/x", "x");
    room.write("destination/y", "x");
    let limited = room.run(&["sync", "source", "destination", "--max-delete", "1"]);
    assert_eq!(limited.code, Some(7), "{limited:?}");
    let unknown = room.run(&["copy", "nothing-configured:bucket", "destination"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("nothing-configured"), "{unknown:?}");
}

#[test]
fn a_secret_in_a_remote_is_never_told() {
    let room = Room::new();
    let remote = ":s3,provider=Other,endpoint=\"http://127.0.0.1:1\",access_key_id=user,secret_access_key=hunter2:bucket";
    let ran = room.run(&["copy", "source", remote, "--retries", "1", "--low-level-retries", "1"]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert!(!ran.stderr.contains("hunter2") && !ran.stdout.contains("hunter2"), "{ran:?}");
}

#[test]
fn help_never_shows_the_storage_of_the_queue() {
    let room = Room::new();
    let queue = ("RCLONE_CLUSTER", ":s3,provider=Other,endpoint=\"http://127.0.0.1:1\",secret_access_key=hunter2:bucket");
    for command in ["copy", "sync", "move", "delete", "queue", "rcd"] {
        for help in ["--help", "-h"] {
            let ran = room.run_with(&[queue], &[command, help]);
            assert!(ran.text().contains("RCLONE_CLUSTER") && !ran.stdout.contains("hunter2"), "{command}: {ran:?}");
        }
    }
}

#[test]
fn a_worker_without_a_queue_is_refused_and_does_nothing() {
    let room = Room::new();
    let lines: [&[&str]; 4] =
        [&["copy", "source", "destination"], &["sync", "source", "destination"], &["move", "source", "destination"], &["delete", "source"]];
    for line in lines {
        room.run(&[line, &["--cluster-id", "3"]].concat()).fails(2, "invalid_usage").naming(&["--cluster-id", "RCLONE_CLUSTER"]);
        room.run_with(&[("RCLONE_CLUSTER_ID", "3")], line).fails(2, "invalid_usage");
        room.run_with(&[("RCLONE_CLUSTER_ID", "3"), ("RCLONE_CLUSTER", "")], line).fails(2, "invalid_usage");
    }
    assert!(room.is_untouched());
    // The controller may be alone.
    room.run(&["copy", "source", "destination", "--cluster-id", "0"]).text();
    assert_eq!(read(&room.path("destination/a.txt")), "one");
}

#[test]
fn a_flag_that_would_change_nothing_is_refused() {
    let room = Room::new();
    let deletes = ["--delete-before", "--delete-during", "--delete-after", "--delete-excluded", "--ignore-errors", "--max-delete=1"];
    let compares = ["--checksum", "--update", "--ignore-existing", "--ignore-times", "--immutable", "--modify-window=1s"];
    let copies = ["--backup-dir=old", "--suffix=.old", "--create-empty-src-dirs", "--copy-links", "--no-verify", "--delete-excluded"];
    let refused = |line: &[&str], flags: &[&str]| {
        for flag in flags {
            let name = flag.split('=').next().unwrap_or_default();
            room.run(&[line, &[*flag]].concat()).fails(2, "invalid_usage").naming(&[name]);
        }
    };
    for command in ["copy", "move"] {
        refused(&[command, "source", "destination"], &deletes);
        refused(&[command, "source", "destination"], &["--multi-thread-streams=4", "--multi-thread-cutoff=1M"]);
    }
    refused(&["delete", "source"], &compares);
    refused(&["delete", "source"], &copies);
    refused(&["check", "source", "source"], &compares);
    refused(&["check", "source", "source"], &copies);
    assert!(room.is_untouched());
}

#[test]
fn a_delete_ends_at_its_limit() {
    let room = Room::new();
    let ran = room.run(&["delete", "source", "--max-delete", "1"]);
    assert_eq!(ran.code, Some(7), "{ran:?}");
    let left = ["source/a.txt", "source/d/b.txt", "source/d/c.tmp"].iter().filter(|path| room.path(path).exists()).count();
    assert_eq!(left, 2, "{ran:?}");
}

#[test]
fn workers_of_a_cluster_have_no_queue_to_speak_of() {
    let room = Room::new();
    let on = ["copy", "source", "destination", "--on", "storage"];
    let run = "aaaaaaaaaaaaaaaaaaaa";
    let others: [&[&str]; 4] =
        [&["--cluster-lease", "5s"], &["--cluster-quit-workers"], &["--cluster-cleanup", "none"], &["--cluster-id", "0"]];
    for other in others {
        room.run(&[&on[..], other].concat()).fails(2, "invalid_usage").naming(&["--on", other[0]]);
    }
    // With a queue they are told when there is work in it. Its controller is this process, which cannot be left alone, nor be a worker.
    let queue = [&on[..], &["--cluster", "work"]].concat();
    room.run(&[&queue[..], &["--cluster-id", "w1"]].concat()).fails(2, "invalid_usage").naming(&["--on", "--cluster-id"]);
    room.run(&[&queue[..], &["--detach"]].concat()).fails(2, "invalid_usage").naming(&["--cluster", "--detach"]);
    // A run is found again where it is, and by its id; and nobody follows one that is left alone.
    let copy = ["copy", "source", "destination"];
    room.run(&[&copy[..], &["--resume", "--run-id", run]].concat()).fails(2, "invalid_usage").naming(&["--on"]);
    room.run(&[&on[..], &["--resume"]].concat()).fails(2, "invalid_usage").naming(&["--run-id"]);
    room.run(&[&copy[..], &["--detach"]].concat()).fails(2, "invalid_usage").naming(&["--on"]);
    room.run(&[&on[..], &["--detach", "--progress"]].concat()).fails(2, "invalid_usage").naming(&["--progress"]);
    // What is only a default is no contradiction. 3 would say that there is no source.
    let nobody = ["--connect", "nkcluster://127.0.0.1:1;transport=tcp", "--timeout", "10s"];
    room.run(&[&nobody[..], &on].concat()).fails(7, "no_connections");
    room.run(&[&nobody[..], &queue].concat()).fails(7, "no_connections");
    assert!(!room.path("work").exists());
    assert!(room.is_untouched());
}

#[test]
fn a_name_commands_no_terminal() {
    let room = Room::new();
    room.write("source/red\u{1b}[31m", "x");
    let copied = room.run(&["copy", "source", "destination", "-v"]);
    assert!(copied.stderr.contains("[31m") && !copied.stderr.contains('\u{1b}'), "{copied:?}");
    let checked = room.run(&["check", "source", "destination", "--combined"]);
    assert!(checked.text().contains("[31m") && !checked.stdout.contains('\u{1b}'), "{checked:?}");
}

#[test]
fn an_empty_queue_is_shown() {
    let room = Room::new();
    assert!(room.run(&["queue", "--cluster", "work"]).text().contains("no worker has told its status"));
    let queue = room.run(&["--json", "queue", "--cluster", "work"]).json();
    assert_eq!((&queue["queue"][0]["name"], &queue["queue"][0]["batches"]), (&json!("pending"), &json!(0)));
}
