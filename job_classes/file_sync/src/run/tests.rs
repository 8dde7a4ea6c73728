//! Runs over real directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::mpsc;

use futures_util::future::BoxFuture;

use super::carrier::{Failed, Outcome, Sent, Sink, carrier};
use super::tries::{Carrying, Journey};
use super::{Control, End, Here, Order, Summary, Told, Way, run};
use crate::operation::Operation;
use crate::options::{DeleteMode, Options};
use crate::plan::Task;
use crate::remote::{RemoteConfig, Remotes};
use crate::stats::Counter;

/// A source with some files, and a destination beside it.
struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let room = Self { dir };
        for (path, content) in [("a", "1"), ("d/b", "22"), ("d/e/c", "333"), ("empty-file", "")] {
            room.write("source", path, content);
        }
        fs::create_dir(room.at("source").join("hollow")).expect("made");
        room
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, root: &str, path: &str, content: &str) {
        let path = self.at(root).join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, content).expect("written");
    }

    /// Runs from `source` to `destination`, and what was told.
    async fn run(&self, task: Task, options: Options) -> (Summary, Vec<Told>) {
        self.run_from(task, "source", options).await
    }

    async fn run_from(&self, task: Task, source: &str, options: Options) -> (Summary, Vec<Told>) {
        let text = |name: &str| self.at(name).to_str().expect("text").to_owned();
        let order = Order::new(task, text(source), text("destination"), &options);
        let (told, mut hears) = mpsc::channel(16);
        let remotes = Arc::new(Remotes::new(RemoteConfig::default()));
        let hearing = tokio::spawn(async move {
            let mut heard = Vec::new();
            while let Some(told) = hears.recv().await {
                heard.push(told);
            }
            heard
        });
        let summary = run(&order, &Here, &remotes, &Control::default(), told).await;
        (summary, hearing.await.expect("no panic"))
    }
}

/// Every file below a directory with its content; directories have none.
fn tree(root: &Path) -> BTreeMap<String, Option<String>> {
    fn walk(root: &Path, at: &Path, tree: &mut BTreeMap<String, Option<String>>) {
        for entry in fs::read_dir(at).into_iter().flatten() {
            let path = entry.expect("readable").path();
            let name = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
            if path.is_dir() {
                tree.insert(name, None);
                walk(root, &path, tree);
            } else {
                tree.insert(name, Some(fs::read_to_string(&path).expect("text")));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

#[tokio::test]
async fn a_copy_is_the_same_and_a_second_one_does_nothing() {
    let room = Room::new();
    let options = Options { create_empty_src_dirs: true, ..Options::default() };
    let (summary, told) = room.run(Task::Copy, options.clone()).await;
    assert_eq!((summary.end, summary.stats.transfers, summary.stats.errors), (End::Success, 4, 0), "{told:?}");
    assert_eq!(tree(&room.at("source")), tree(&room.at("destination")));
    let modified = |name: &str| fs::metadata(room.at(name)).expect("there").modified().expect("a time");
    assert_eq!(modified("source/d/b"), modified("destination/d/b"));
    let (summary, _) = room.run(Task::Copy, options).await;
    assert_eq!((summary.end, summary.stats.transfers, summary.stats.checks), (End::Success, 0, 4));
}

#[tokio::test]
async fn a_sync_deletes_what_is_not_at_the_source() {
    let room = Room::new();
    room.write("destination", "old/x", "x");
    room.write("destination", "a", "another");
    let (summary, told) = room.run(Task::Sync, Options { create_empty_src_dirs: true, ..Options::default() }).await;
    assert_eq!((summary.end, summary.stats.deletes), (End::Success, 1), "{told:?}");
    assert_eq!(tree(&room.at("source")), tree(&room.at("destination")));
}

#[tokio::test]
async fn a_move_leaves_nothing_behind() {
    let room = Room::new();
    let before = tree(&room.at("source"));
    let options = Options { create_empty_src_dirs: true, delete_empty_src_dirs: true, ..Options::default() };
    let (summary, told) = room.run(Task::Move, options).await;
    assert_eq!(summary.end, End::Success, "{told:?}");
    assert_eq!(tree(&room.at("destination")), before);
    assert_eq!(tree(&room.at("source")), BTreeMap::new());
}

#[tokio::test]
async fn one_file_is_a_source_too() {
    let room = Room::new();
    let (summary, told) = room.run_from(Task::Copy, "source/d/b", Options::default()).await;
    assert_eq!((summary.end, summary.stats.transfers), (End::Success, 1), "{told:?}");
    assert_eq!(tree(&room.at("destination")), BTreeMap::from([("b".to_owned(), Some("22".to_owned()))]));
}

#[tokio::test]
async fn nothing_is_done_by_a_dry_run() {
    let room = Room::new();
    room.write("destination", "old", "x");
    let (summary, told) = room.run(Task::Sync, Options { dry_run: true, ..Options::default() }).await;
    assert_eq!(summary.end, End::Success);
    assert!(
        told.contains(&Told::Would("copy d/b (2 bytes)".to_owned())) && told.contains(&Told::Would("delete old".to_owned())),
        "{told:?}"
    );
    assert_eq!(tree(&room.at("destination")), BTreeMap::from([("old".to_owned(), Some("x".to_owned()))]));
}

#[tokio::test]
async fn a_source_that_is_missing_deletes_nothing() {
    let room = Room::new();
    room.write("destination", "old", "x");
    let (summary, _) = room.run_from(Task::Sync, "no-such", Options { retries: 1, ..Options::default() }).await;
    assert_eq!(summary.end, End::SourceMissing);
    assert!(room.at("destination/old").exists());
}

#[tokio::test]
async fn a_destination_within_the_source_is_refused() {
    let room = Room::new();
    symlink(room.at("source/d"), room.at("destination")).expect("made");
    let before = tree(&room.at("source"));
    let (summary, _) = room.run(Task::Copy, Options::default()).await;
    assert_eq!(summary.end, End::Failed);
    assert!(summary.errors[0].contains("inside the source"), "{:?}", summary.errors);
    assert_eq!(tree(&room.at("source")), before);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_fails_and_the_rest_is_done() {
    let room = Room::new();
    // A directory that is not empty stands where a file belongs.
    room.write("destination", "a/in-the-way", "x");
    let (summary, told) = room.run(Task::Copy, Options::default()).await;
    assert_ne!(summary.end, End::Success, "{told:?}");
    assert!(summary.stats.errors >= 1 && summary.errors.iter().any(|error| error.starts_with("a: ")), "{summary:?}");
    assert_eq!(fs::read_to_string(room.at("destination/d/e/c")).expect("copied"), "333");
}

#[tokio::test]
async fn no_more_is_deleted_than_allowed() {
    let room = Room::new();
    for name in ["x", "y", "z"] {
        room.write("destination", name, "x");
    }
    let (summary, _) = room.run(Task::Sync, Options { max_delete: Some(2), ..Options::default() }).await;
    assert_eq!((summary.end, summary.stats.deletes), (End::Fatal, 2));
}

/// Deletes, and fails to copy; after the first failure somebody else puts more files there.
struct Unlucky(std::path::PathBuf);

impl Way for Unlucky {
    fn start<'a>(&'a self, journey: Journey<'a>) -> BoxFuture<'a, Result<Carrying, String>> {
        let (destination, control) = (self.0.clone(), journey.control.clone());
        let carry = move |mut sink: Sink| async move {
            let teller = sink.teller();
            while let Some(sent) = sink.next().await {
                match sent {
                    Sent::Operation(Operation::DeleteFile { remote, .. }) => {
                        fs::remove_file(destination.join(remote)).expect("removed");
                        control.stats().add(Counter::Deletes, 1);
                    }
                    Sent::Operation(operation) => {
                        for name in ["p", "q"] {
                            fs::write(destination.join(name), "new").expect("written");
                        }
                        let failure = Some(Failed { error: "unlucky".to_owned(), is_retryable: true });
                        let _ = teller.send(Outcome { path: operation.file().to_owned(), failure }).await;
                    }
                    Sent::Flush => {}
                    Sent::Settle(waiting) => drop(waiting.send(())),
                }
            }
            Ok(())
        };
        Box::pin(async move { Ok(Carrying(carrier(carry))) })
    }
}

#[tokio::test]
async fn all_tries_together_delete_no_more_than_allowed() {
    let room = Room::new();
    for name in ["x", "y"] {
        room.write("destination", name, "x");
    }
    let options = Options { max_delete: Some(3), delete_mode: DeleteMode::Before, retries: 2, ..Options::default() };
    let text = |name: &str| room.at(name).to_str().expect("text").to_owned();
    let order = Order::new(Task::Sync, text("source"), text("destination"), &options);
    let (told, _) = mpsc::channel(1);
    let remotes = Arc::new(Remotes::new(RemoteConfig::default()));
    let summary = run(&order, &Unlucky(room.at("destination")), &remotes, &Control::default(), told).await;
    assert!(summary.end == End::Fatal && (2..=3).contains(&summary.stats.deletes), "{summary:?}");
    assert!(summary.errors.iter().any(|error| error.contains("no more than 3")), "{summary:?}");
}

#[tokio::test]
async fn a_file_is_not_its_own_backup() {
    let room = Room::new();
    room.write("destination", "a", "the old one");
    let backup = || Some(room.at("destination").to_str().expect("text").to_owned());
    let (summary, told) = room.run_from(Task::Copy, "source/a", Options { backup_dir: backup(), ..Options::default() }).await;
    assert_eq!(summary.end, End::Failed, "{told:?}");
    assert_eq!(fs::read_to_string(room.at("destination/a")).expect("there"), "the old one");
    let options = Options { backup_dir: backup(), suffix: Some(".old".to_owned()), ..Options::default() };
    let (summary, told) = room.run_from(Task::Copy, "source/a", options).await;
    assert_eq!(summary.end, End::Success, "{told:?}");
    let kept = ["destination/a", "destination/a.old"].map(|path| fs::read_to_string(room.at(path)).expect("there"));
    assert_eq!(kept, ["1", "the old one"]);
}

#[tokio::test]
async fn what_is_replaced_goes_to_the_directory_of_backups() {
    let room = Room::new();
    room.write("destination", "a", "the old one");
    let backup = room.at("kept").to_str().expect("text").to_owned();
    let (summary, told) = room.run(Task::Copy, Options { backup_dir: Some(backup), ..Options::default() }).await;
    assert_eq!(summary.end, End::Success, "{told:?}");
    assert_eq!(fs::read_to_string(room.at("kept/a")).expect("kept"), "the old one");
    assert_eq!(fs::read_to_string(room.at("destination/a")).expect("copied"), "1");
}

#[tokio::test]
async fn a_file_that_cannot_be_kept_is_not_replaced_and_the_others_are() {
    let room = Room::new();
    for number in 0..100 {
        room.write("source", &format!("many/{number}"), "new");
        room.write("destination", &format!("many/{number}"), "older");
    }
    room.write("destination", "a", "the old one");
    // A directory that is not empty stands where the backup belongs.
    room.write("kept", "a/in-the-way", "x");
    let backup = room.at("kept").to_str().expect("text").to_owned();
    let (summary, told) = room.run(Task::Sync, Options { backup_dir: Some(backup), retries: 1, ..Options::default() }).await;
    assert_ne!(summary.end, End::Success, "{told:?}");
    assert!(summary.errors.iter().any(|error| error.starts_with("a: ") && error.contains("not kept")), "{summary:?}");
    assert_eq!(fs::read_to_string(room.at("destination/a")).expect("left"), "the old one");
    for number in 0..100 {
        let read = |root: &str| fs::read_to_string(room.at(root).join(format!("many/{number}"))).expect("there");
        assert_eq!((read("destination"), read("kept")), ("new".to_owned(), "older".to_owned()));
    }
}

#[tokio::test]
async fn a_cancelled_run_says_so() {
    let room = Room::new();
    let control = Control::default();
    control.cancel();
    let order = Order::new(
        Task::Copy,
        room.at("source").to_str().expect("text"),
        room.at("destination").to_str().expect("text"),
        &Options::default(),
    );
    let (told, _) = mpsc::channel(1);
    let summary = run(&order, &Here, &Arc::new(Remotes::new(RemoteConfig::default())), &control, told).await;
    assert_eq!(summary.end, End::Cancelled);
}

#[tokio::test]
async fn a_run_that_rests_ends_when_it_is_cancelled() {
    let room = Room::new();
    let control = Control::default();
    control.gate().close();
    let text = |name: &str| room.at(name).to_str().expect("text").to_owned();
    let order = Order::new(Task::Copy, text("source"), text("destination"), &Options::default());
    let (told, _) = mpsc::channel(1);
    let remotes = Arc::new(Remotes::new(RemoteConfig::default()));
    let running = run(&order, &Here, &remotes, &control, told);
    let cancelled = async {
        // Everything is planned, and nothing begins.
        while control.snapshot().stats.total_transfers < 4 {
            tokio::task::yield_now().await;
        }
        control.cancel();
    };
    let (summary, ()) = tokio::join!(running, cancelled);
    assert_eq!((summary.end, summary.stats.transfers), (End::Cancelled, 0));
}

#[tokio::test]
async fn what_is_missing_is_told_and_not_made() {
    let room = Room::new();
    for task in [Task::Copy, Task::Move, Task::Sync] {
        let (summary, told) = room.run_from(task, "no-such", Options::default()).await;
        assert_eq!(summary.end, End::SourceMissing, "{task:?}: {told:?}");
        assert!(!room.at("no-such").exists() && !room.at("destination").exists());
    }
    let (summary, _) = room.run(Task::Delete, Options::default()).await;
    assert_eq!(summary.end, End::SourceMissing);
}

#[tokio::test]
async fn one_file_is_deleted_and_no_other() {
    let room = Room::new();
    room.write("destination", "x", "x");
    room.write("destination", "y", "y");
    let order = Order::new(Task::Delete, "", room.at("destination/x").to_str().expect("text"), &Options::default());
    let (told, _) = mpsc::channel(1);
    let summary = run(&order, &Here, &Arc::new(Remotes::new(RemoteConfig::default())), &Control::default(), told).await;
    assert_eq!((summary.end, summary.stats.deletes), (End::Success, 1), "{summary:?}");
    assert_eq!(tree(&room.at("destination")), BTreeMap::from([("y".to_owned(), Some("y".to_owned()))]));
}
