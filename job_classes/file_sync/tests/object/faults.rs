use std::sync::atomic::Ordering;
use std::time::Duration;

use nkcluster_file_sync::{EngineOptions, Failure, Verify};

use crate::server::Server;
use crate::{Bench, content, copy};

fn impatient() -> EngineOptions {
    EngineOptions { tries: 3, backoff: Duration::from_millis(1), backoff_max: Duration::from_millis(2), ..EngineOptions::default() }
}

#[tokio::test]
async fn an_overloaded_store_is_tried_again_and_then_given_up() {
    let server = Server::start().await;
    let bench = Bench::with(impatient());
    bench.write("source/f", b"content");
    let operation = copy(&bench.root("source"), &server.remote(""), "f");
    server.faults.unavailable.store(2, Ordering::SeqCst);
    bench.execute(&operation).await.expect("the third try");
    server.faults.unavailable.store(usize::MAX, Ordering::SeqCst);
    let error = bench.execute(&operation).await.expect_err("given up");
    assert_eq!(error.kind, Failure::Temporary);
    let report = bench.stats.report();
    assert_eq!((report.transfers, report.errors, report.bytes), (1, 1, 7), "what failed is not counted");
    assert!(report.retry_error);
}

#[tokio::test]
async fn a_store_that_stops_answering_ends_the_wait() {
    let server = Server::start().await;
    let bench = Bench::with(EngineOptions { tries: 1, ..EngineOptions::default() });
    bench.write("source/f", b"content");
    let store = server.remote_with("timeout=1s,", "");
    bench.execute(&copy(&bench.root("source"), &store, "f")).await.expect("copied");
    server.faults.hangs.store(true, Ordering::SeqCst);
    for operation in [copy(&bench.root("source"), &store, "f"), copy(&store, &bench.root("back"), "f")] {
        let error = bench.execute(&operation).await.expect_err("no answer");
        assert_eq!(error.kind, Failure::Temporary);
        assert!(error.what.contains("stopped answering"), "{error}");
    }
    assert!(bench.read("back/f").is_none());
}

#[tokio::test]
async fn refused_credentials_are_said_at_once_and_not_repeated() {
    let server = Server::start().await;
    let bench = Bench::with(impatient());
    bench.write("source/f", b"content");
    let store = server.remote("").replace("secret_access_key=sk", "secret_access_key=hush");
    server.requests();
    let error = bench.execute(&copy(&bench.root("source"), &store, "f")).await.expect_err("refused");
    assert_eq!(error.kind, Failure::Denied);
    assert!(!error.what.contains("hush"), "{error}");
    assert_eq!(server.requests().len(), 1, "no second try");
    let error = bench.execute(&copy(&store, &bench.root("back"), "f")).await.expect_err("refused");
    assert_eq!(error.kind, Failure::Denied);
}

#[tokio::test]
async fn nothing_listening_is_temporary() {
    let bench = Bench::with(impatient());
    bench.write("source/f", b"content");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let store = format!(":s3,provider=Other,access_key_id=a,secret_access_key=b,endpoint=\"http://127.0.0.1:{port}\":bucket");
    let error = bench.execute(&copy(&bench.root("source"), &store, "f")).await.expect_err("nobody there");
    assert_eq!(error.kind, Failure::Temporary, "{error}");
}

#[tokio::test]
async fn a_source_that_is_not_there_leaves_no_trace() {
    let server = Server::start().await;
    let bench = Bench::with(impatient());
    let error = bench.execute(&copy(&server.remote(""), &bench.root("back"), "missing")).await.expect_err("missing");
    assert_eq!(error.kind, Failure::SourceMissing);
    assert!(!bench.local.path().join("back").exists());
    let error = bench
        .execute(&copy(&server.remote("").replace("bucket/", "no-such-bucket/"), &bench.root("back"), "f"))
        .await
        .expect_err("missing");
    assert_eq!(error.kind, Failure::SourceMissing, "{error}");
}

#[tokio::test]
async fn an_object_that_is_replaced_while_it_is_read_gives_no_file() {
    let server = Server::start().await;
    let bench = Bench::with(EngineOptions { tries: 1, bandwidth: Some(32 << 20), verify: Verify::Off, ..EngineOptions::default() });
    // More than is read ahead, so that some of it is asked for only after it was replaced.
    let large = content(1 << 20).repeat(48);
    bench.write("source/f", &large);
    let store = server.remote("");
    bench.execute(&copy(&bench.root("source"), &store, "f")).await.expect("there");
    let operation = copy(&store, &bench.root("back"), "f");
    let read = bench.execute(&operation);
    let replace = async {
        // Some of it has arrived, and with the limit of the bandwidth not all.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let before = bench.stats.report().bytes;
        while bench.stats.report().bytes <= before {
            assert!(tokio::time::Instant::now() < deadline, "nothing arrives");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bench.engine.bandwidth().set_limit(Some(1));
        tokio::fs::write(server.on_disk("f"), content(1 << 20).repeat(49)).await.expect("replaced");
        bench.engine.bandwidth().set_limit(None);
    };
    let (result, ()) = tokio::join!(read, replace);
    let error = result.expect_err("changed");
    assert!(matches!(error.kind, Failure::SourceChanged | Failure::Corrupt | Failure::SourceMissing), "{error}");
    assert!(bench.read("back/f").is_none());
}

#[tokio::test]
async fn a_cancelled_transfer_ends_without_a_file() {
    let server = Server::start().await;
    let bench = Bench::with(EngineOptions { bandwidth: Some(1 << 20), ..EngineOptions::default() });
    bench.write("source/f", &content(9 << 20));
    let operation = copy(&bench.root("source"), &server.remote(""), "f");
    let cancel = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while bench.stats.report().transferring.is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "it never begins");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bench.cancel.cancel();
    };
    let (result, ()) = tokio::join!(bench.execute(&operation), cancel);
    assert_eq!(result.expect_err("cancelled").kind, Failure::Cancelled);
    assert!(!server.on_disk("f").exists());
    assert_eq!(bench.stats.report().bytes, 0);
}
