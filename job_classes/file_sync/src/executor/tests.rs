//! Who has which place, and under which limit.

use std::fs;

use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::attempt::Attempt;
use crate::fence;
use crate::queue::{Batch, BatchResult};
use crate::remote::RemoteConfig;

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(30);

/// A worker with a tree of files and an empty one.
struct Bench {
    directory: tempfile::TempDir,
    executor: Executor,
}

impl Bench {
    fn new(transfers: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["source", "target"] {
            fs::create_dir(directory.path().join(name)).expect("made");
        }
        Self { directory, executor: Executor::new(Arc::new(Remotes::new(RemoteConfig::default())), transfers) }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("text").to_owned()
    }

    /// The batch of a run that copies so many files.
    async fn batch(&self, number: u8, files: usize, config: Value) -> Arc<Work> {
        let (source, target) = (self.path("source"), self.path("target"));
        let copy = |file: usize| {
            let name = format!("{number}.{file}");
            fs::write(self.directory.path().join("source").join(&name), [number; 16 * 1024]).expect("written");
            Operation::CopyFile {
                src_fs: source.clone(),
                src_remote: name.clone(),
                dst_fs: target.clone(),
                dst_remote: name,
                planned: None,
            }
        };
        let inputs = (0..files).map(copy).collect();
        fence::prepare(&self.executor.inner.remotes.open(&target).expect("a remote"), run(number)).await.expect("prepared");
        let Value::Object(config) = config else { panic!("an object") };
        let attempt = Attempt { run: run(number), batch: 0, attempt: 0 };
        Arc::new(Work::new(attempt, Batch { config, inputs, ..Batch::default() }))
    }

    /// Begins a batch; returns when it has asked for a place.
    async fn begin(&self, work: &Arc<Work>) -> JoinHandle<()> {
        self.begin_with(work, self.executor.share(work)).await
    }

    async fn begin_with(&self, work: &Arc<Work>, share: Arc<RunShare>) -> JoinHandle<()> {
        let task = tokio::spawn(self.executor.clone().carry_out(work.clone(), share));
        // It is told from when on pieces are cut.
        until("it to have begun", || work.progress().as_object().is_some_and(|progress| !progress.is_empty())).await;
        task
    }

    /// Waits until a batch has ended, with all of its files copied.
    async fn ends(&self, work: &Work, task: JoinHandle<()>) {
        tokio::time::timeout(DEADLINE, task).await.expect("it has places").expect("no panic");
        assert!(failures(work).iter().all(Option::is_none), "{:?}", failures(work));
    }
}

/// Why the inputs of a batch have failed.
fn failures(work: &Work) -> Vec<Option<String>> {
    let BatchResult::Inputs(results) = work.result() else { panic!("one for each input") };
    results.into_iter().map(|failure| failure.map(|failure| failure.error)).collect()
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let reached = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, reached).await.unwrap_or_else(|_| panic!("waited too long for {what}"));
}

fn run(number: u8) -> RunId {
    RunId::from_random([number; 20])
}

#[test]
fn the_batches_of_a_run_share_its_limit_which_is_what_the_last_of_them_says() {
    let mut limits = Limits::new(3);
    let (first, other) = (limits.of_batch(run(1), Some(10)), limits.of_batch(run(2), None));
    let second = limits.of_batch(run(1), Some(30));
    assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
    assert_eq!((first.bandwidth.limit(), other.bandwidth.limit()), (Some(30), None));
    // Whoever has to wait for its limit takes no place from others.
    assert_eq!((first.places().map(|places| places.available_permits()), other.places().is_some()), (Some(3), false));
    first.set_limit(None);
    assert!(second.places().is_none());
}

#[test]
fn the_limit_of_a_worker_holds_for_all_runs_together() {
    let mut limits = Limits::new(3);
    let before = limits.of_batch(run(1), Some(10));
    limits.set_own(Some(5));
    let (one, other) = (limits.of_batch(run(1), Some(10)), limits.of_batch(run(2), None));
    assert!(Arc::ptr_eq(&one, &other) && one.places().is_none());
    assert_eq!((before.bandwidth.limit(), one.bandwidth.limit()), (Some(5), Some(5)));
    limits.set_own(None);
    assert_eq!((one.bandwidth.limit(), limits.of_batch(run(1), Some(10)).bandwidth.limit()), (None, None), "no limit is one too");
}

#[test]
fn limits_of_runs_that_have_gone_are_dropped_and_others_are_kept() {
    let mut limits = Limits::new(3);
    let kept = limits.of_batch(run(1), Some(10));
    for number in 2..=200 {
        let name = std::array::from_fn(|at| if at == 0 { number / 32 } else { number % 32 });
        limits.of_batch(RunId::from_random(name), None);
    }
    assert_eq!(limits.runs.len(), LIMITS_MAX);
    assert!(Arc::ptr_eq(&kept, &limits.of_batch(run(1), Some(20))));
    assert_eq!(kept.bandwidth.limit(), Some(20));
}

#[tokio::test]
async fn runs_that_rest_take_no_places_from_others() {
    let bench = Bench::new(2);
    let mut resting = Vec::new();
    for number in [1, 2] {
        let work = bench.batch(number, 3, json!({})).await;
        work.gate().close();
        let task = bench.begin(&work).await;
        resting.push((work, task));
    }
    let other = bench.batch(3, 10, json!({})).await;
    let task = bench.begin(&other).await;
    bench.ends(&other, task).await;
    for (work, task) in resting {
        assert_eq!(work.waiting(), 3);
        work.gate().open();
        bench.ends(&work, task).await;
    }
}

#[tokio::test]
async fn a_run_that_rests_since_it_waits_for_a_place_begins_nothing_with_it_and_gives_it_back() {
    let bench = Bench::new(1);
    let place = bench.executor.inner.places.clone().acquire_owned().await.expect("a place");
    let resting = bench.batch(1, 3, json!({})).await;
    let waits = bench.begin(&resting).await;
    resting.gate().close();
    drop(place);
    let other = bench.batch(2, 3, json!({})).await;
    let task = bench.begin(&other).await;
    bench.ends(&other, task).await;
    assert_eq!(resting.waiting(), 3);
    resting.gate().open();
    bench.ends(&resting, waits).await;
}

#[tokio::test]
async fn a_run_that_gets_a_limit_gives_the_places_back_that_its_files_had() {
    let bench = Bench::new(2);
    let slow = bench.batch(1, 5, json!({})).await;
    let share = bench.executor.share(&slow);
    // Its files are so large, or its storage so slow, that what has begun does not end.
    share.bandwidth.set_limit(Some(1));
    let task = bench.begin_with(&slow, share.clone()).await;
    until("it to have all places", || slow.waiting() == 3).await;
    assert_eq!(bench.executor.inner.places.available_permits(), 0);
    share.set_limit(Some(1));
    let other = bench.batch(2, 10, json!({})).await;
    let others = bench.begin(&other).await;
    bench.ends(&other, others).await;
    // They count among its own now.
    assert_eq!((slow.waiting(), share.places().map(|places| places.available_permits())), (3, Some(0)));
    share.set_limit(None);
    bench.ends(&slow, task).await;
    let free = [&bench.executor.inner.places, share.places.as_ref().expect("its own")].map(|places| places.available_permits());
    assert_eq!(free, [2, 2]);
}

#[tokio::test]
async fn a_run_that_gets_a_limit_while_it_waits_for_places_of_others_takes_its_own() {
    let bench = Bench::new(1);
    let _place = bench.executor.inner.places.clone().acquire_owned().await.expect("a place");
    let work = bench.batch(1, 3, json!({})).await;
    let task = bench.begin(&work).await;
    assert_eq!(work.waiting(), 3);
    bench.executor.share(&work).set_limit(Some(1 << 30));
    bench.ends(&work, task).await;
}

#[tokio::test]
async fn a_batch_whose_limit_cannot_be_read_is_refused_and_changes_no_limit() {
    let bench = Bench::new(2);
    let share = bench.executor.share(&*bench.batch(1, 0, json!({ "BwLimit": "1Mi" })).await);
    for limit in ["08:00,512k 19:00,off", "1M:2M"] {
        let work = bench.batch(1, 2, json!({ "BwLimit": limit })).await;
        bench.executor.execute(work.clone()).await;
        let named = |failure: &Option<String>| failure.as_ref().is_some_and(|why| why.contains("BwLimit") && why.contains(limit));
        assert!(failures(&work).len() == 2 && failures(&work).iter().all(named), "{:?}", failures(&work));
    }
    assert_eq!(share.bandwidth.limit(), Some(1 << 20));
    assert_eq!(fs::read_dir(bench.directory.path().join("target")).expect("listed").filter(is_file).count(), 0);
}

fn is_file(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.path().is_file())
}
