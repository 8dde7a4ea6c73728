//! Disks and people that do not behave.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Bench, tree, unfenced};
use crate::attempt::{Attempt, RunId};
use crate::engine::{Effect, EngineOptions, Failure};
use crate::fence::{Fence, changed_remotes, prepare, retire, revoke};
use crate::operation::{Operation, Seen};

fn once() -> EngineOptions {
    EngineOptions { tries: 1, ..EngineOptions::default() }
}

/// Says why a test did not run, unless all of them have to.
fn skipped(obstacle: &str) {
    assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "{obstacle}");
    eprintln!("skipped: {obstacle}");
}

/// A small file system in memory, mounted below a directory.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&path).expect("made");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_source_that_changes_or_vanishes_during_the_copy_gives_no_file() {
    for size in [1000, 1 << 20] {
        for vanishes in [false, true] {
            let bench = Rc::new(Bench::new(once()));
            bench.write("source/f", &vec![1; size]);
            let inner = bench.clone();
            let result = bench.carry_out(&bench.copy("f", None), &unfenced(), move || match vanishes {
                true => fs::remove_file(inner.path("source/f")).unwrap_or_default(),
                false => inner.write("source/f", &vec![2; size]),
            });
            assert_eq!(result.expect_err("changed"), Failure::SourceChanged);
            assert!(tree(&bench.path("target")).is_empty());
            assert_eq!(bench.stats.report().bytes, 0);
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_an_error_of_its_own() {
    let bench = Bench::new(once());
    let from_proc = |name: &str| Operation::CopyFile {
        src_fs: "/proc/self".into(),
        src_remote: name.into(),
        dst_fs: bench.root("target"),
        dst_remote: name.into(),
        planned: None,
    };
    // The first page of a process is not mapped, so the kernel answers with EIO.
    assert_eq!(bench.execute(&from_proc("mem"), &unfenced()).await.expect_err("unreadable").kind, Failure::Failed);
    assert_eq!(bench.execute(&from_proc("status"), &unfenced()).await.expect_err("no size").kind, Failure::SourceChanged);
    let made = Command::new("mkfifo").arg(bench.path("source/pipe")).status().expect("mkfifo");
    assert!(made.success());
    assert_eq!(bench.execute(&bench.copy("pipe", None), &unfenced()).await.expect_err("a pipe").kind, Failure::SourceKind);
    assert!(tree(&bench.path("target")).is_empty());
}

#[tokio::test]
async fn what_may_not_be_read_or_written_is_said() {
    if rustix::process::geteuid().is_root() {
        // Root may do everything; elsewhere this runs.
        eprintln!("skipped: root is refused nothing");
        return;
    }
    let bench = Bench::new(once());
    bench.write("source/f", b"x");
    fs::set_permissions(bench.path("target"), fs::Permissions::from_mode(0o500)).expect("set");
    assert_eq!(bench.execute(&bench.copy("f", None), &unfenced()).await.expect_err("refused").kind, Failure::Denied);
    fs::set_permissions(bench.path("source/f"), fs::Permissions::from_mode(0o000)).expect("set");
    assert_eq!(bench.execute(&bench.copy("f", None), &unfenced()).await.expect_err("refused").kind, Failure::Denied);
}

#[tokio::test]
async fn without_space_there_is_no_file() {
    let bench = Bench::new(once());
    let Some(_mounted) = Mounted::new(bench.path("target"), "1m") else { return skipped("no file system could be mounted") };
    bench.write("source/large", &vec![1; 3 << 20]);
    bench.write("source/small", &vec![1; 1000]);
    assert_eq!(bench.execute(&bench.copy("large", None), &unfenced()).await.expect_err("full").kind, Failure::NoSpace);
    assert!(tree(&bench.path("target")).is_empty());
    bench.execute(&bench.copy("small", None), &unfenced()).await.expect("there is space again");
}

#[tokio::test]
async fn on_another_file_system_below_the_root_an_attempt_looks_before_it_acts() {
    let bench = Bench::new(once());
    let Some(_mounted) = Mounted::new(bench.path("target/mounted"), "4m") else { return skipped("no file system could be mounted") };
    bench.write("source/mounted/d/f", b"content");
    bench.write("source/mounted/g", b"content");
    bench.write("target/mounted/h", b"content");
    let copy = bench.copy("mounted/d/f", bench.planned("source/mounted/d/f", Some(Seen::Nothing)));
    let move_file = bench.move_file("mounted/g", bench.planned("source/mounted/g", Some(Seen::Nothing)));
    let delete = bench.delete("mounted/h", bench.planned("target/mounted/h", None));
    let operations = [copy, move_file, delete];
    let run = RunId::from_random([8; 20]);
    for name in ["source", "target"] {
        prepare(&bench.engine.remotes().open(&bench.root(name)).expect("opened"), run).await.expect("prepared");
    }
    let claim = |attempt| Fence::claim(Attempt { run, batch: 0, attempt }, bench.engine.remotes(), changed_remotes(&operations));
    let (late, current) = (Arc::new(claim(0).await.expect("claimed")), Arc::new(claim(1).await.expect("claimed")));
    for name in ["source", "target"] {
        let remote = bench.engine.remotes().open(&bench.root(name)).expect("opened");
        revoke(&remote, Attempt { run, batch: 0, attempt: 0 }).await.expect("revoked");
    }
    for operation in &operations {
        assert_eq!(bench.execute(operation, &late).await.expect_err("revoked").kind, Failure::Revoked, "{operation:?}");
    }
    assert_eq!(tree(&bench.path("target/mounted")), ["h"]);
    let mut effects = Vec::new();
    for operation in &operations {
        effects.push(bench.execute(operation, &current).await.expect("done").effect);
    }
    assert_eq!(effects, [Effect::Copied, Effect::Moved, Effect::Deleted]);
    assert_eq!(tree(&bench.path("target/mounted")), ["d", "d/f", "g"]);
    assert!(bench.read("source/mounted/g").is_none());
    for name in ["source", "target"] {
        let kept = retire(&bench.engine.remotes().open(&bench.root(name)).expect("opened"), run).await.expect("ended");
        assert!(kept.is_empty());
    }
}

#[tokio::test]
async fn a_move_to_another_file_system_copies_and_then_removes() {
    let bench = Bench::new(once());
    let Some(_mounted) = Mounted::new(bench.path("target"), "4m") else { return skipped("no file system could be mounted") };
    bench.write("source/f", &vec![3; 300_000]);
    let operation = bench.move_file("f", bench.planned("source/f", Some(Seen::Nothing)));
    assert_eq!(bench.execute(&operation, &unfenced()).await.expect("moved").effect, Effect::Moved);
    assert!(bench.read("source/f").is_none());
    assert_eq!(bench.read("target/f"), Some(vec![3; 300_000]));
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again() {
    let bench = Bench::new(EngineOptions { backoff: Duration::from_millis(1), ..EngineOptions::default() });
    bench.write("source/f", b"content");
    let before = fs::metadata(bench.path("source/f")).expect("there").mtime_nsec();
    // A source that changes during the first try only.
    let bench = Rc::new(bench);
    let inner = bench.clone();
    let first = bench.carry_out(&bench.copy("f", None), &unfenced(), move || inner.write("source/f", b"changed!"));
    assert_eq!(first.expect_err("changed"), Failure::SourceChanged);
    assert_eq!(bench.execute(&bench.copy("f", None), &unfenced()).await.expect("quiet now").effect, Effect::Copied);
    assert_eq!(bench.read("target/f"), Some(b"changed!".to_vec()));
    assert_ne!(fs::metadata(bench.path("target/f")).expect("there").mtime_nsec(), before);
}
