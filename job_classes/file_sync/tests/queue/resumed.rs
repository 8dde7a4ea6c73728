//! What a resumed run takes for queued.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nkcluster_file_sync::queue::{
    Execute, Failure, Fence, Fenced, LocalStore, RunOptions, RunStart, SharedStore, Work, WorkerOptions, run_worker, start_run,
};
use nkcluster_file_sync::{Attempt, Operation, RunId};

/// Nothing needs to be fenced here.
struct NoEffects;

impl Fence for NoEffects {
    fn revoke(&self, _: Attempt) -> BoxFuture<'_, Result<Fenced, String>> {
        Box::pin(async { Ok(Fenced::Firmly) })
    }
}

/// Whatever it takes fails.
struct Fails;

impl Execute for Fails {
    fn execute(&self, work: Arc<Work>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Some(taken) = work.take() {
                let failure = Failure::of(&taken.operation, "it changed since the plan was made");
                work.report(taken, Err(failure));
            }
        })
    }
}

#[tokio::test]
async fn what_failed_in_a_resumed_run_is_new_work_when_it_is_planned_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let store: SharedStore = Arc::new(LocalStore::open(dir.path()).await.expect("a store"));
    let run = RunId::from_random([3; 20]);
    let start = async |start| {
        let options = RunOptions { batch_files: 1, ..RunOptions::default() };
        start_run(store.clone(), Arc::new(NoEffects), run, start, options, Arc::new(|_| ())).await.expect("it starts")
    };
    let operation = Operation::DeleteFile { fs: "/nowhere".into(), remote: "x".into(), planned: None };
    let first = start(RunStart::New).await;
    assert!(first.add(operation.clone()).await);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while store.list("queue/pending").await.expect("listed").is_empty() {
        assert!(std::time::Instant::now() < deadline, "the batch is not offered");
        tokio::task::yield_now().await;
    }
    first.kill();
    let resumed = start(RunStart::Resume).await;
    assert!(resumed.is_queued(&operation), "it is in a batch already");
    let worker = run_worker(store.clone(), Arc::new(Fails), WorkerOptions::new("w1".parse().expect("an id")), Arc::new(|_| ()));
    assert!(resumed.settle().await);
    assert!(!resumed.is_queued(&operation), "its batch has failed");
    assert!(resumed.add(operation).await);
    let end = resumed.finish().await;
    assert_eq!((end.totals.files, end.totals.files_failed), (2, 2), "{end:?}");
    worker.stop();
    worker.ended().await;
}
