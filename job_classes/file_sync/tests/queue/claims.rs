//! Many workers race for few batches: nobody may have one that another has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nkcluster_file_sync::queue::{
    Batch, Execute, Honours, JobName, LocalStore, ObjectStore, QueueStore, SharedStore, Waits, Work, WorkerOptions, run_worker,
};
use nkcluster_file_sync::{Attempt, Operation, RunId};
use opendal::Operator;
use opendal::services::S3;

use crate::server::{BUCKET, Server};

const RACERS: usize = 64;
const BATCHES: u64 = 6;
const DEADLINE: Duration = Duration::from_secs(240);

/// Counts how often each batch is carried out.
#[derive(Default)]
struct Counter(Mutex<BTreeMap<u64, usize>>);

impl Execute for Counter {
    fn execute(&self, work: Arc<Work>) -> BoxFuture<'static, ()> {
        *self.0.lock().expect("a lock").entry(work.attempt().batch).or_default() += 1;
        while let Some(taken) = work.take() {
            work.report(taken, Ok(()));
        }
        std::future::ready(()).boxed()
    }
}

fn operator(server: &Server) -> Operator {
    opendal::install_default();
    let remote = server.remote("");
    let endpoint = remote.split('"').nth(1).expect("an endpoint");
    let builder = S3::default().bucket(BUCKET).endpoint(endpoint).region("us-east-1").access_key_id("ak").secret_access_key("sk");
    Operator::new(builder.disable_config_load().disable_ec2_metadata()).expect("an operator")
}

async fn race(store: SharedStore) {
    let run = RunId::from_random([3; 20]);
    for batch in 0..BATCHES {
        let job = JobName::new(SystemTime::now(), Attempt { run, batch, attempt: 0 });
        let delete = Operation::DeleteFile { fs: "/nowhere".into(), remote: "x".into(), planned: None };
        let content = Batch { inputs: vec![delete], ..Batch::default() }.to_json();
        assert!(store.create(&job.pending(), content.into()).await.expect("offered"));
    }
    let counter = Arc::new(Counter::default());
    let workers: Vec<_> = (0..RACERS)
        .map(|number| {
            let id = format!("racer-{number}").parse().expect("an id");
            let options = WorkerOptions { batches: 1, waits: Waits::Looks(Duration::from_millis(200)), ..WorkerOptions::new(id) };
            run_worker(Arc::clone(&store), Arc::clone(&counter) as Arc<dyn Execute>, options, Arc::new(|_| {}))
        })
        .collect();
    let done = async {
        while store.list("queue/done").await.expect("listed").len() < BATCHES as usize {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Whoever stops has finished what it has: a second one that has a batch would have begun by then.
        for worker in workers {
            worker.stop();
            worker.ended().await;
        }
    };
    tokio::time::timeout(DEADLINE, done).await.expect("all batches are done in time");
    let counts = counter.0.lock().expect("a lock");
    assert_eq!(*counts, (0..BATCHES).map(|batch| (batch, 1)).collect::<BTreeMap<_, _>>());
    assert_eq!(counts.len(), BATCHES as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_workers_race_on_a_local_disk_and_each_batch_is_claimed_once() {
    for _ in 0..3 {
        let directory = tempfile::tempdir().expect("a directory");
        race(Arc::new(LocalStore::open(directory.path()).await.expect("a store"))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_workers_race_on_s3_and_each_batch_is_claimed_once() {
    let server = Server::start().await;
    let store = ObjectStore::open(operator(&server)).await.expect("a store");
    assert_eq!(store.honours(), Honours { creates_once: true, renames: false });
    race(Arc::new(store)).await;
}

#[tokio::test]
async fn a_store_of_objects_that_takes_conditions_and_ignores_them_is_found_out() {
    opendal::install_default();
    let server = Server::start_open().await;
    server.faults.ignores_conditions.store(true, std::sync::atomic::Ordering::SeqCst);
    let remote = server.remote("");
    let endpoint = remote.split('"').nth(1).expect("an endpoint");
    let builder = S3::default().bucket(BUCKET).endpoint(endpoint).region("us-east-1").skip_signature();
    let operator = Operator::new(builder.disable_config_load().disable_ec2_metadata()).expect("an operator");
    let store = ObjectStore::open(operator).await.expect("a store");
    assert_eq!(store.honours(), Honours { creates_once: false, renames: false });
}

#[tokio::test]
async fn objects_are_listed_read_and_written_and_what_is_missing_is_no_error() {
    use nkcluster_file_sync::queue::StoredContent::{Bytes as Whole, Missing, TooLong};
    let server = Server::start().await;
    let store = ObjectStore::open(operator(&server)).await.expect("a store");
    assert_eq!(store.list("queue/pending").await, Ok(Vec::new()));
    assert_eq!(store.read("queue/pending/x", 10).await, Ok(Missing));
    assert_eq!(store.delete("queue/pending/x").await, Ok(()));
    assert_eq!(store.rename("queue/pending/x", "queue/done/x").await, Ok(false));
    for name in ["b", "a"] {
        assert_eq!(store.create(&format!("queue/pending/{name}"), Bytes::from_static(b"12345")).await, Ok(true));
    }
    assert_eq!(store.create("queue/pending/a", Bytes::from_static(b"other")).await, Ok(false));
    let before = store.list("queue/pending").await.expect("listed");
    assert_eq!(before.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(store.read("queue/pending/a", 5).await, Ok(Whole(Bytes::from_static(b"12345"))));
    assert_eq!(store.read("queue/pending/a", 4).await, Ok(TooLong));
    store.replace("queue/pending/a", Bytes::from_static(b"54321")).await.expect("written");
    let after = store.list("queue/pending").await.expect("listed");
    assert!(after[0].marker != before[0].marker && after[1].marker == before[1].marker);
    assert_eq!(store.rename("queue/pending/a", "queue/finished/input-ok/a").await, Ok(true));
    assert_eq!(store.list("queue/pending").await.expect("listed").len(), 1);
}
