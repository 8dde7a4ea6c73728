//! Local storage by itself, and the place where tests stop an attempt.

use std::cell::RefCell;
use std::fs;

use bytes::Bytes;
use futures_util::stream::StreamExt;

use super::{LinkView, LocalTree};
use crate::entry::EntryKind;
use crate::path::EntryPath;
use crate::storage::{Condition, ErrorKind, Storage, WriteOptions};

type Hook = Box<dyn FnMut()>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// What the work of this thread calls before each change.
pub(crate) fn on_step(hook: Option<Hook>) {
    HOOK.set(hook);
}

pub(super) fn step() {
    // Taken out meanwhile, as the hook may do work of its own.
    if let Some(mut hook) = HOOK.take() {
        hook();
        HOOK.set(Some(hook));
    }
}

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).expect("a path")
}

fn options(condition: Condition) -> WriteOptions {
    WriteOptions { condition, modified: None, mode: None, size: None }
}

#[tokio::test]
async fn a_listing_is_in_the_order_of_names_and_hides_what_belongs_to_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    for number in 0..1000 {
        fs::write(directory.path().join(format!("f{}", number * 7919 % 1000)), b"x").expect("written");
    }
    fs::create_dir(directory.path().join("d")).expect("made");
    fs::create_dir(directory.path().join(".nkcluster-aaaaaaaaaaaaaaaaaaaa")).expect("made");
    fs::write(directory.path().join(".nkcluster-own"), b"x").expect("written");
    std::os::unix::fs::symlink("nowhere", directory.path().join("l")).expect("linked");
    let tree = LocalTree::new(directory.path().to_path_buf(), LinkView::Told);
    let entries: Vec<_> = tree.list(&EntryPath::root()).map(|entry| entry.expect("listed")).collect().await;
    assert_eq!(entries.len(), 1003);
    assert!(entries.is_sorted_by(|a, b| a.path < b.path));
    assert_eq!(entries.iter().find(|entry| entry.path.as_str() == "l").expect("told").kind, EntryKind::Link("nowhere".into()));
    let missing: Vec<_> = tree.list(&path("missing")).collect().await;
    assert_eq!(missing[0].as_ref().expect_err("missing").kind, ErrorKind::NotFound);
    let followed = LocalTree::new(directory.path().to_path_buf(), LinkView::Followed);
    let errors = followed.list(&EntryPath::root()).filter(|entry| std::future::ready(entry.is_err())).count().await;
    assert_eq!(errors, 1, "a link that leads nowhere is told as an error");
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = LocalTree::new(directory.path().join("root"), LinkView::Told);
    let mut writer = tree.write(&path("a/f"), options(Condition::Always)).await.expect("begun");
    writer.write(Bytes::from(vec![7; 3 << 20])).await.expect("written");
    drop(writer);
    assert_eq!(fs::read_dir(directory.path().join("root/a")).expect("made").count(), 0);

    let mut writer = tree.write(&path("a/f"), options(Condition::Absent)).await.expect("begun");
    writer.write(Bytes::from_static(b"content")).await.expect("written");
    let entry = writer.finish().await.expect("finished");
    assert_eq!(entry, tree.stat(&path("a/f")).await.expect("looked").expect("there"));
    let writer = tree.write(&path("a/f"), options(Condition::Absent)).await.expect("begun");
    assert_eq!(writer.finish().await.expect_err("there").kind, ErrorKind::ConditionFailed);
    let content: Vec<_> = tree.read(&path("a/f"), 2..5).await.expect("opened").map(|bytes| bytes.expect("read")).collect().await;
    assert_eq!(content.concat(), b"nte");
}

#[tokio::test]
async fn attributes_renames_and_removes_obey_conditions() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = LocalTree::new(directory.path().to_path_buf(), LinkView::Told);
    fs::write(directory.path().join("a"), b"a").expect("written");
    fs::write(directory.path().join("b"), b"b").expect("written");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(5, 7);
    tree.set_attributes(&path("a"), Some(time), Some(0o600)).await.expect("set");
    let entry = tree.stat(&path("a")).await.expect("looked").expect("there");
    assert_eq!((entry.modified, entry.mode), (Some(time), Some(0o600)));
    let refused = tree.rename(&path("a"), &path("b"), Condition::Absent).await.expect_err("there");
    assert_eq!(refused.kind, ErrorKind::ConditionFailed);
    let tag = tree.stat(&path("b")).await.expect("looked").expect("there").tag.expect("a tag");
    tree.rename(&path("a"), &path("b"), Condition::Tag(tag.clone())).await.expect("renamed");
    assert_eq!(tree.remove(&path("b"), Condition::Tag(tag)).await.expect_err("another").kind, ErrorKind::ConditionFailed);
    tree.remove(&path("b"), Condition::Always).await.expect("removed");
    tree.make_directory(&path("x/y")).await.expect("made");
    assert_eq!(tree.remove_directory(&path("x")).await.expect_err("not empty").kind, ErrorKind::WrongKind);
    tree.remove_directory(&path("x/y")).await.expect("removed");
}
