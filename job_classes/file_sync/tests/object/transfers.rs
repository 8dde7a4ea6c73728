use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use nkcluster_file_sync::{Attempt, Effect, Failure, Fence, Operation, Planned, RunId, Seen, changed_remotes, prepare};

use crate::server::Server;
use crate::{Bench, content, copy};

#[tokio::test]
async fn files_return_from_a_store_as_they_went() {
    let server = Server::start().await;
    let bench = Bench::new();
    let (source, store, back) = (bench.root("source"), server.remote("tree"), bench.root("back"));
    for (name, size) in [("empty", 0), ("small", 4096), ("a/large", 17 * 1024 * 1024 + 11)] {
        bench.write(&format!("source/{name}"), &content(size));
        let file = std::fs::File::options().write(true).open(bench.local.path().join("source").join(name)).expect("opened");
        let time = UNIX_EPOCH + Duration::new(1_600_000_000, 987_654_321);
        file.set_modified(time).expect("set");
        let done = bench.execute(&copy(&source, &store, name)).await.expect("there");
        assert_eq!((done.effect, done.bytes), (Effect::Copied, size as u64));
        let returned = bench.execute(&copy(&store, &back, name)).await.expect("back");
        assert_eq!(returned.hash, done.hash);
        assert!(bench.read(&format!("back/{name}")) == Some(content(size)), "{name}");
        let modified = std::fs::metadata(bench.local.path().join("back").join(name)).and_then(|found| found.modified()).expect("a time");
        assert_eq!(modified, time);
    }
    let parts = server.requests().iter().filter(|request| request.contains("partNumber=")).count();
    assert_eq!(parts, 3, "the large file went in parts");
    let report = bench.stats.report();
    assert_eq!((report.transfers, report.errors), (6, 0));
}

#[tokio::test]
async fn a_store_copies_within_itself() {
    let server = Server::start().await;
    let bench = Bench::new();
    bench.write("source/f", b"content");
    bench.execute(&copy(&bench.root("source"), &server.remote("one"), "f")).await.expect("there");
    server.requests();
    let done = bench.execute(&copy(&server.remote("one"), &server.remote("two"), "f")).await.expect("copied");
    assert_eq!(done.effect, Effect::CopiedWithin);
    let requests = server.requests();
    assert!(!requests.iter().any(|request| request.starts_with("GET")), "{requests:?}");
    let report = bench.stats.report();
    assert_eq!((report.server_side_copies, report.server_side_copy_bytes), (1, 7));
    assert_eq!(std::fs::read(server.on_disk("two/f")).expect("there"), b"content");
}

#[tokio::test]
async fn a_move_ends_its_source_and_a_delete_is_done_once() {
    let server = Server::start().await;
    let bench = Bench::new();
    bench.write("source/f", b"content");
    let (source, store) = (bench.root("source"), server.remote(""));
    let operation = Operation::MoveFile {
        src_fs: source.clone(),
        src_remote: "f".into(),
        dst_fs: store.clone(),
        dst_remote: "d/f".into(),
        planned: None,
    };
    assert_eq!(bench.execute(&operation).await.expect("moved").effect, Effect::Moved);
    assert!(bench.read("source/f").is_none() && server.on_disk("d/f").exists());
    let back =
        Operation::MoveFile { src_fs: store.clone(), src_remote: "d/f".into(), dst_fs: source, dst_remote: "f".into(), planned: None };
    assert_eq!(bench.execute(&back).await.expect("moved").effect, Effect::Moved);
    assert!(bench.read("source/f").is_some() && !server.on_disk("d/f").exists());
    let delete = Operation::DeleteFile { fs: store, remote: "d/f".into(), planned: None };
    assert_eq!(bench.execute(&delete).await.expect("gone").effect, Effect::AlreadyGone);
}

#[tokio::test]
async fn a_late_attempt_writes_over_nothing() {
    let server = Server::start().await;
    let bench = Bench::new();
    bench.write("source/f", b"from the source");
    let store = server.remote("");
    let planned = Some(Planned { size: 15, tag: None, destination: Some(Seen::Nothing) });
    let operation = Operation::CopyFile {
        src_fs: bench.root("source"),
        src_remote: "f".into(),
        dst_fs: store.clone(),
        dst_remote: "f".into(),
        planned,
    };
    let remotes = bench.engine.remotes();
    let run = RunId::from_random([9; 20]);
    prepare(&remotes.open(&store).expect("opened"), run).await.expect("prepared");
    let claim = |attempt| Fence::claim(Attempt { run, batch: 0, attempt }, remotes, changed_remotes([&operation]));
    let (first, second) = (Arc::new(claim(0).await.expect("claimed")), Arc::new(claim(1).await.expect("claimed")));
    assert_eq!(bench.execute_fenced(&operation, &second).await.expect("copied").effect, Effect::Copied);
    // The same content is no failure; other content is, and stays.
    assert_eq!(bench.execute_fenced(&operation, &first).await.expect("there").effect, Effect::AlreadyThere);
    std::fs::write(server.on_disk("f"), b"written by somebody").expect("written");
    assert_eq!(bench.execute_fenced(&operation, &first).await.expect_err("changed").kind, Failure::DestinationChanged);
    assert_eq!(std::fs::read(server.on_disk("f")).expect("there"), b"written by somebody");
}
