//! Whole runs with an object store at one end, and a queue in it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use nkcluster_file_sync::queue::{RunStart, WorkerOptions, run_worker};
use nkcluster_file_sync::{Control, End, Executor, Here, Options, Order, Queue, RemoteConfig, Remotes, RunId, Summary, Task, Way, run};
use tokio::sync::mpsc;

use crate::server::Server;
use crate::{Bench, content};

fn remotes() -> Arc<Remotes> {
    Arc::new(Remotes::new(RemoteConfig::default()))
}

async fn follow(task: Task, from: &str, to: &str, way: &dyn Way, remotes: &Arc<Remotes>) -> Summary {
    let order = Order::new(task, from, to, &Options::default());
    // Nobody listens.
    let (told, _) = mpsc::channel(1);
    run(&order, way, remotes, &Control::default(), told).await
}

fn tree(bench: &Bench) {
    for (name, size) in [("a", 10), ("d/b", 5_000), ("d/e/c", 300_000), ("d/empty", 0)] {
        bench.write(&format!("source/{name}"), &content(size));
    }
}

#[tokio::test]
async fn a_tree_goes_to_a_store_and_back_and_a_second_run_does_nothing() {
    let (server, bench, remotes) = (Server::start().await, Bench::new(), remotes());
    tree(&bench);
    let (source, store, back) = (bench.root("source"), server.remote("tree"), bench.root("back"));
    let there = follow(Task::Copy, &source, &store, &Here, &remotes).await;
    assert_eq!((there.end, there.stats.transfers), (End::Success, 4), "{there:?}");
    let again = follow(Task::Copy, &source, &store, &Here, &remotes).await;
    assert_eq!((again.end, again.stats.transfers), (End::Success, 0), "{again:?}");
    let returned = follow(Task::Copy, &store, &back, &Here, &remotes).await;
    assert_eq!((returned.end, returned.stats.transfers), (End::Success, 4), "{returned:?}");
    assert!(bench.read("back/d/e/c") == Some(content(300_000)));
    // A sync deletes there what is gone here.
    fs::remove_file(bench.local.path().join("source/d/b")).expect("removed");
    let synced = follow(Task::Sync, &source, &store, &Here, &remotes).await;
    assert_eq!((synced.end, synced.stats.deletes), (End::Success, 1), "{synced:?}");
    let one_file = follow(Task::Move, &format!("{store}/a"), &bench.root("moved"), &Here, &remotes).await;
    assert_eq!((one_file.end, one_file.stats.transfers), (End::Success, 1), "{one_file:?}");
    assert!(bench.read("moved/a") == Some(content(10)));
    let gone = follow(Task::Copy, &store, &bench.root("rest"), &Here, &remotes).await;
    assert_eq!(gone.stats.transfers, 2, "{gone:?}");
}

#[tokio::test]
async fn a_source_that_is_gone_or_cannot_be_looked_at_makes_a_sync_delete_nothing() {
    let (server, bench, remotes) = (Server::start().await, Bench::new(), remotes());
    bench.write("source/dump", &content(10));
    bench.write("kept/precious", &content(20));
    let (store, kept) = (server.remote("dumps"), bench.root("kept"));
    let there = follow(Task::Copy, &bench.root("source"), &store, &Here, &remotes).await;
    assert_eq!(there.end, End::Success, "{there:?}");
    let gone = follow(Task::Sync, &format!("{store}/other"), &kept, &Here, &remotes).await;
    assert_eq!((gone.end, gone.stats.deletes), (End::SourceMissing, 0), "{gone:?}");
    server.faults.unavailable.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
    let unknown = follow(Task::Sync, &format!("{store}/dump"), &kept, &Here, &remotes).await;
    assert_eq!((unknown.end, unknown.stats.deletes), (End::Temporary, 0), "{unknown:?}");
    server.faults.unavailable.store(0, std::sync::atomic::Ordering::SeqCst);
    assert!(bench.read("kept/precious") == Some(content(20)));
    let one = follow(Task::Sync, &format!("{store}/dump"), &kept, &Here, &remotes).await;
    assert_eq!((one.end, one.stats.transfers, one.stats.deletes), (End::Success, 1, 0), "{one:?}");
    assert!(bench.read("kept/precious") == Some(content(20)));
}

#[tokio::test]
async fn workers_share_a_queue_in_a_store() {
    let (server, bench, remotes) = (Server::start().await, Bench::new(), remotes());
    for number in 0..40 {
        bench.write(&format!("source/{number}"), &content(1_000 + number));
    }
    let work = server.remote("work");
    let open = async || remotes.open(&work).expect("opened").open_queue().await.expect("a queue");
    let mut workers = Vec::new();
    for id in ["pod-1", "pod-2"] {
        let executor = Executor::new(remotes.clone(), 2);
        workers.push(run_worker(open().await, Arc::new(executor), WorkerOptions::new(id.parse().expect("an id")), Arc::new(|_| ())));
    }
    let queue = Queue {
        store: open().await,
        remote: work.clone(),
        run: RunId::from_random([7; 20]),
        start: RunStart::New,
        lease: Duration::from_secs(10),
        crew: None,
    };
    let summary = follow(Task::Copy, &bench.root("source"), &server.remote("tree"), &queue, &remotes).await;
    assert_eq!((summary.end, summary.stats.transfers), (End::Success, 40), "{summary:?}");
    for worker in workers {
        worker.stop();
        worker.ended().await;
    }
    let back = follow(Task::Copy, &server.remote("tree"), &bench.root("back"), &Here, &remotes).await;
    assert_eq!(back.stats.transfers, 40, "{back:?}");
    assert!(bench.read("back/39") == Some(content(1_039)));
}
