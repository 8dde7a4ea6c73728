//! What we write is carried out by a real rclone, and what it answers is read.

use std::process::Command;

use nkcluster_file_sync::queue::{Batch, BatchResult};
use nkcluster_file_sync::{Operation, Planned, Seen};

/// Skipped where no `rclone` is installed, unless `NKCLUSTER_TEST_ALL` is set.
fn has_rclone() -> bool {
    let found = Command::new("rclone").arg("version").output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var_os("NKCLUSTER_TEST_ALL").is_none(), "no rclone to carry a batch out");
        eprintln!("skipped: no rclone to carry a batch out");
    }
    found
}

#[test]
fn rclone_carries_our_batches_out_and_answers_in_the_shape_that_we_write() {
    if !has_rclone() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    for name in ["a/copied", "a/moved", "b/deleted"] {
        let file = path(name);
        std::fs::create_dir_all(std::path::Path::new(&file).parent().expect("a parent")).expect("made");
        std::fs::write(file, name).expect("written");
    }
    let planned = || Some(Planned { size: 8, tag: Some("1-2-3".into()), destination: Some(Seen::Nothing) });
    let (src_fs, dst_fs) = (path("a"), path("b"));
    let copy = |name: &str| Operation::CopyFile {
        src_fs: src_fs.clone(),
        src_remote: name.to_owned(),
        dst_fs: dst_fs.clone(),
        dst_remote: name.to_owned(),
        planned: planned(),
    };
    let (moved, deleted) = ("moved".to_owned(), "deleted".to_owned());
    let inputs = vec![
        copy("copied"),
        copy("missing"),
        Operation::MoveFile {
            src_fs: src_fs.clone(),
            src_remote: moved.clone(),
            dst_fs: dst_fs.clone(),
            dst_remote: moved,
            planned: planned(),
        },
        Operation::DeleteFile { fs: dst_fs.clone(), remote: deleted, planned: planned() },
    ];
    let mut batch = Batch { inputs, ..Batch::default() };
    batch.config.insert("CheckSum".into(), true.into());
    let json = String::from_utf8(batch.to_json()).expect("text");
    let output = Command::new("rclone")
        .args(["rc", "--loopback", "job/batch", "--json", &json])
        .env("RCLONE_CONFIG", "")
        .output()
        .expect("rclone runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let BatchResult::Inputs(results) = BatchResult::from_json(&output.stdout, 4).expect("a result") else { panic!("the batch failed") };
    assert_eq!(results.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, false]);
    let theirs = results[1].clone().expect("a failure");
    let ours = nkcluster_file_sync::queue::Failure::of(&batch.inputs[1], "object not found");
    assert_eq!((theirs.file(), &theirs.path), ("missing", &ours.path));
    assert!(theirs.status >= 400 && !theirs.error.is_empty());
    // rclone says in which group of its statistics it counted the input; all else is the input as we wrote it.
    let mut input = theirs.input.clone();
    input.as_object_mut().expect("a map").remove("_group");
    assert_eq!(input, ours.input);
    assert_eq!(std::fs::read(path("b/copied")).expect("copied"), b"a/copied");
    assert_eq!(std::fs::read(path("b/moved")).expect("moved"), b"a/moved");
    assert!(!std::path::Path::new(&path("a/moved")).exists() && !std::path::Path::new(&path("b/deleted")).exists());
}
