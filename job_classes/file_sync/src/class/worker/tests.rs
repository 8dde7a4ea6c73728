//! The worker of a queue over a storage in memory whose clock tests move.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::*;
use crate::attempt::Attempt;
use crate::operation::Operation;
use crate::queue::memory::{Client, Memory};
use crate::queue::{Fence, Fenced, Honours, RunHandle, RunOptions, RunStart, Work, start_run};

/// Longer than anything that a worker waits for.
const LONG: Duration = Duration::from_secs(3_600);

struct NoEffects;

impl Fence for NoEffects {
    fn revoke(&self, _: Attempt) -> BoxFuture<'_, std::result::Result<Fenced, String>> {
        std::future::ready(Ok(Fenced::Firmly)).boxed()
    }
}

/// Does what it takes at once.
struct Does;

impl Execute for Does {
    fn execute(&self, work: Arc<Work>) -> BoxFuture<'static, ()> {
        async move {
            while let Some(taken) = work.take() {
                work.report(taken, Ok(()));
            }
        }
        .boxed()
    }
}

/// A queue, its run and one worker.
struct Desk {
    memory: Arc<Memory>,
    worker: Arc<Client>,
    run: RunId,
}

impl Desk {
    fn new() -> Self {
        let memory = Memory::new(Honours { creates_once: true, renames: true });
        Self { worker: memory.client(), memory, run: RunId::from_random([5; 20]) }
    }

    async fn control(&self, start: RunStart) -> RunHandle {
        let options = RunOptions { batch_files: 1, ..RunOptions::default() };
        start_run(self.memory.client(), Arc::new(NoEffects), self.run, start, options, Arc::new(|_| ())).await.expect("it starts")
    }

    /// A worker that tells when it has ended.
    fn work(&self) -> (WorkTask, tokio::task::JoinHandle<WorkerEnd>) {
        let (store, run): (SharedStore, _) = (self.worker.clone(), self.run);
        let node = NodeId::new("w1").expect("an id");
        let (task, worker) = WorkTask::begin(store.clone(), Arc::new(Does), worker_id(&node, run).expect("an id"));
        let serving = task.clone();
        (task, tokio::spawn(async move { serving.serve(&store, run, worker).await }))
    }
}

fn delete(file: &str) -> Operation {
    Operation::DeleteFile { fs: "/nowhere".into(), remote: file.into(), planned: None }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_told_works_and_without_work_it_only_looks_now_and_then() {
    let desk = Desk::new();
    let run = desk.control(RunStart::New).await;
    let (task, ended) = desk.work();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(run.add(delete("a")).await && run.add(delete("b")).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(desk.memory.names("queue/done/").len(), 0, "nobody has told it");
    task.look();
    assert!(run.settle().await);
    assert_eq!(task.log.borrow().ended, 2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, looks) = (desk.worker.calls(), 10);
    for _ in 0..looks {
        // Its controller lives.
        task.hear();
        tokio::time::sleep(LOOK_UNASKED).await;
    }
    // It lists what waits, and says again that it wants work.
    let calls = desk.worker.calls() - before;
    assert!((looks..=2 * looks + 2).contains(&calls), "{calls} calls in {looks} looks");
    assert!(!ended.is_finished() && run.finish().await.is_success());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_not_told_finds_work_all_the_same() {
    let desk = Desk::new();
    let run = desk.control(RunStart::New).await;
    let (_task, _ended) = desk.work();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(run.add(delete("a")).await);
    assert!(tokio::time::timeout(LONG, run.settle()).await.expect("it is done"));
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_controller_is_gone_ends_when_the_run_is_over_or_nobody_comes_for_it() {
    // Nobody ends the run.
    let desk = Desk::new();
    desk.control(RunStart::New).await.kill();
    let start = Instant::now();
    let (_task, ended) = desk.work();
    assert_eq!(tokio::time::timeout(LONG, ended).await.expect("it ends").expect("no panic"), WorkerEnd::Stopped);
    assert!(start.elapsed() >= FORGOTTEN_AFTER, "another controller may have come");
    // Another controller has ended it.
    let desk = Desk::new();
    let run = desk.control(RunStart::New).await;
    let start = Instant::now();
    let (_task, ended) = desk.work();
    assert!(run.finish().await.is_success());
    assert_eq!(tokio::time::timeout(LONG, ended).await.expect("it ends").expect("no panic"), WorkerEnd::Stopped);
    assert!(start.elapsed() < FORGOTTEN_AFTER);
    // It leaves nothing.
    assert_eq!(desk.memory.names(""), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_worker_stays_for_the_controller_that_comes_again() {
    let desk = Desk::new();
    desk.control(RunStart::New).await.kill();
    let (task, ended) = desk.work();
    for _ in 0..4 {
        tokio::time::sleep(FORGOTTEN_AFTER / 2).await;
        task.look();
    }
    let run = desk.control(RunStart::Resume).await;
    assert!(run.add(delete("a")).await);
    task.look();
    assert!(run.finish().await.is_success() && !ended.is_finished());
}

#[test]
fn whoever_asks_hears_what_happened_since_and_after_a_restart_everything() {
    let job = || JobName::parse("2025-11-26T22-52-10.120000000Z-aaaaaaaaaaaaaaaaaaaa-000000000003-0000.json").expect("a job");
    let mut happened = Happened { count: 0, held: BTreeSet::new(), ended: 0, idle: Instant::now(), recent: VecDeque::new() };
    happened.take(WorkerEvent::Claimed(job()));
    happened.take(WorkerEvent::Warning("odd".to_owned()));
    happened.take(WorkerEvent::Split { job: job(), child: job(), files: 3, asked: Some("other".to_owned()) });
    let all = WorkReport { seen: 3, held: 1, ended: 0, gave: vec![Some("other".to_owned())], lines: vec!["odd".to_owned()] };
    assert_eq!(happened.since(0), all);
    assert_eq!(happened.since(2), WorkReport { lines: Vec::new(), ..all.clone() });
    assert_eq!(happened.since(1_000), all, "it was another life of which they have heard");
    happened.take(WorkerEvent::Finished(job()));
    assert_eq!(happened.since(3), WorkReport { seen: 4, ended: 1, ..WorkReport::default() });
    (0..1_000).for_each(|_| happened.take(WorkerEvent::Warning("odd".to_owned())));
    assert_eq!(happened.since(0).lines.len(), HAPPENED_MAX);
}

#[test]
fn every_node_has_a_name_of_its_own_in_a_queue() {
    let run = RunId::from_random([5; 20]);
    let long = "x".repeat(NodeId::MAX_BYTES);
    let nodes = ["w1", "a:b", "a+b", "a.b", ".a", ":a", "a", long.as_str()];
    let nodes: Vec<NodeId> = nodes.into_iter().filter_map(|name| NodeId::new(name).ok()).collect();
    assert_eq!(nodes.len(), 7, "a node has no `+`");
    let names: BTreeSet<WorkerId> = nodes.iter().map(|node| worker_id(node, run).expect("a name")).collect();
    assert_eq!(names.len(), nodes.len());
}
