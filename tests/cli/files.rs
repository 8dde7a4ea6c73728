//! `send` and `fetch`.

use std::path::Path;

use serde_json::json;

use crate::support::{Cli, Daemon};
use crate::{cli, shared};

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_file_goes_there_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    for count in [0, 500, 2 * 1024 * 1024 + 1] {
        let (local, back, remote) = (dir.path().join("local"), dir.path().join("back"), format!("there/{count}"));
        std::fs::write(&local, bytes(count)).expect("writes");
        let sent = cli().json(&["send", "w1", &text(&local), &remote]);
        assert_eq!((&sent["bytes"], &sent["resumed_from"]), (&json!(count), &json!(0)), "{sent}");
        assert_eq!(std::fs::read(shared().worker.dir().join("files").join(&remote)).expect("it is there"), bytes(count));
        let fetched = cli().json(&["fetch", "w1", &remote, &text(&back)]);
        assert_eq!(fetched["xxh3"], sent["xxh3"]);
        assert_eq!(std::fs::read(&back).expect("it is here"), bytes(count));
    }
}

#[test]
fn directories_keep_the_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let local = dir.path().join("name.bin");
    std::fs::write(&local, "content").expect("writes");
    let ran = cli().run(&["send", "w1", &text(&local), "kept/"]);
    assert!(ran.text().starts_with("kept/name.bin of w1: 7 B, xxh3 "), "{ran:?}");
    std::fs::remove_file(&local).expect("is there");
    let ran = cli().run(&["fetch", "w1", "kept/name.bin", &text(dir.path())]);
    assert!(ran.text().contains("name.bin: 7 B"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&local).expect("is back"), "content");
}

#[test]
fn a_tree_is_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
    for (name, count) in [("one", 1), ("a/two", 70_000), ("a/b/three", 0)] {
        std::fs::write(dir.path().join(name), bytes(count)).expect("writes");
    }
    let sent = cli().json(&["send", "-r", "w1", &text(dir.path()), "tree"]);
    assert_eq!(sent, json!({ "files": 3, "bytes": 70_001 }));
    assert_eq!(std::fs::read(shared().worker.dir().join("files/tree/a/two")).expect("it is there"), bytes(70_000));
}

#[test]
fn nothing_outside_of_the_root_can_be_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let local = dir.path().join("local");
    std::fs::write(&local, "content").expect("writes");
    for remote in ["../outside", "/etc/passwd", "a/../../outside", ""] {
        cli().script(&["send", "w1", &text(&local), remote]).fails(1, "invalid_path");
        cli().script(&["fetch", "w1", remote, &text(&local)]).fails(1, "invalid_path");
    }
    let root = shared().worker.dir().join("files");
    std::fs::create_dir_all(&root).expect("made");
    std::os::unix::fs::symlink("/etc", root.join("out")).expect("linked");
    cli().script(&["fetch", "w1", "out/passwd", &text(&local)]).fails(1, "invalid_path");
    cli().script(&["send", "w1", &text(&local), "out/nkcluster-test"]).fails(1, "invalid_path");
    assert_eq!(std::fs::read_to_string(&local).expect("untouched"), "content");
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    cli().script(&["send", "w1", &text(dir.path()), "x"]).fails(1, "invalid_file");
    cli().script(&["send", "w1", "/no/such/file", "x"]).fails(1, "invalid_file");
    cli().script(&["fetch", "w1", "no/such/file", &text(&dir.path().join("x"))]).fails(1, "invalid_file");
    let local = dir.path().join("local");
    std::fs::write(&local, "content").expect("writes");
    cli().script(&["send", "nobody", &text(&local), "x"]).fails(4, "not_found");
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Daemon::control(dir.path(), "c1");
    let mut worker = Daemon::worker(dir.path(), "w1", &control);
    let cli = Cli::to(&control);
    cli.wait_status("w1", "ready");
    let local = dir.path().join("local");
    // Sparse, so that it is large and costs little; long enough on the way to be cut.
    let file = std::fs::File::create(&local).expect("made");
    let length: u64 = 256 * 1024 * 1024;
    file.set_len(length).expect("set");
    let mut command = cli.command(&["--json", "send", "w1", &text(&local), "large"]);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("starts");
    let root = worker.dir().join("files");
    let partial = crate::support::wait_for("some megabytes at the worker", || {
        let entries = std::fs::read_dir(&root).ok()?.flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).find(|length| *length > 8 * 1024 * 1024)
    });
    assert!(partial < length, "it was too fast to be cut");
    worker.signal(rustix::process::Signal::KILL);
    worker.wait();
    let _worker = worker.again();
    let output = child.wait_with_output().expect("ends");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout} {stderr}");
    let sent: serde_json::Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(sent["bytes"], json!(length));
    assert!(sent["resumed_from"].as_u64().is_some_and(|from| from > 0), "{sent}");
    assert_eq!(std::fs::metadata(root.join("large")).expect("it is there").len(), length);
}
