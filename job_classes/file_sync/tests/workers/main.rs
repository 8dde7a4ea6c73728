//! A run over workers of which one is not as it should be: real nodes on the memory network, and a class of the same name that lies, is silent, or has heard it before.

mod crew;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{Classes, CommandContext, JobClass, RequestContext, Started, TaskClass, TaskContext, TypedCalls as _};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{ClassName, NodeId, NodeStatus, TaskId};
use nkcluster::{Error, ErrorCode};
use nkcluster_file_sync::queue::Batch;
use nkcluster_file_sync::{
    Attempt, BatchEnd, Command, Control, End, Event, FileSync, Operation, Options, Order, RemoteConfig, Remotes, Reply, Request, RunId,
    Snapshot, Spec, StatsReport, Summary, SyncTask, Task, Told, Way, Workers, run,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

const FILES: usize = 60;
const PATIENCE: Duration = Duration::from_secs(30);

/// How a worker is odd.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Oddity {
    /// It does nothing, and claims more than it was given.
    Overcounts,
    /// It does nothing, and gives back what it was never given.
    GivesBackOther,
    /// It never ends a batch.
    Hangs,
    /// It does what it is asked, and says of each batch that it was started before, as if an answer had been lost.
    StartedBefore,
    /// It takes a batch, and then knows nothing of it, like one that was restarted.
    Forgets,
    /// It begins to start what it is told to, and never comes to an end with that.
    NeverStarts,
}

#[derive(Clone)]
struct Odd {
    oddity: Oddity,
    ends: Arc<Mutex<BTreeMap<Attempt, BatchEnd>>>,
    commands: Arc<Mutex<Vec<Command>>>,
    /// The limits of bandwidth that batches said, in their order.
    limits: Arc<Mutex<Vec<Option<String>>>>,
    /// Whether it ends its batches all the same.
    lets_go: Arc<AtomicBool>,
    starts: Arc<AtomicUsize>,
}

impl Odd {
    fn new(oddity: Oddity) -> Self {
        Self {
            oddity,
            ends: Arc::default(),
            commands: Arc::default(),
            limits: Arc::default(),
            lets_go: Arc::default(),
            starts: Arc::default(),
        }
    }

    /// Batches that it was given.
    fn batches(&self) -> usize {
        self.ends.lock().expect("no panic").len()
    }

    fn limits(&self) -> Vec<Option<String>> {
        self.limits.lock().expect("no panic").clone()
    }

    /// Ends what it has, as if it had given it back.
    fn let_go(&self) {
        self.lets_go.store(true, Ordering::SeqCst);
    }

    fn end_of(&self, operations: Vec<Operation>) -> BatchEnd {
        let count = operations.len() as u64;
        match self.oddity {
            Oddity::Overcounts => BatchEnd { done: count + 1, ..BatchEnd::default() },
            Oddity::GivesBackOther => {
                let other = Operation::DeleteFile { fs: "/".to_owned(), remote: "etc".to_owned(), planned: None };
                BatchEnd { done: count - 1, rest: vec![other], ..BatchEnd::default() }
            }
            Oddity::Hangs => BatchEnd { rest: operations, ..BatchEnd::default() },
            Oddity::Forgets | Oddity::NeverStarts => BatchEnd::default(),
            Oddity::StartedBefore => {
                operations.iter().for_each(copied);
                BatchEnd { done: count, stats: StatsReport { transfers: count, ..StatsReport::default() }, ..BatchEnd::default() }
            }
        }
    }
}

fn copied(operation: &Operation) {
    let Operation::CopyFile { src_fs, src_remote, dst_fs, dst_remote, .. } = operation else { panic!("only copies: {operation:?}") };
    let to = Path::new(dst_fs).join(dst_remote);
    fs::create_dir_all(to.parent().expect("a parent")).expect("made");
    fs::copy(Path::new(src_fs).join(src_remote), to).expect("copied");
}

impl JobClass for Odd {
    const NAME: &'static str = FileSync::NAME;
    type Request = Request;
    type Reply = Reply;

    async fn request(&self, _: RequestContext, request: Request) -> nkcluster::Result<Reply> {
        let attempt = match request {
            Request::Wait { attempt, .. } => attempt,
            Request::Close { .. } => return Ok(Reply::Closed { batches: Vec::new() }),
            Request::Watch { .. } => return Ok(Reply::Unknown),
        };
        let end = self.ends.lock().expect("no panic").get(&attempt).cloned();
        Ok(match (self.oddity, end) {
            (Oddity::Hangs, Some(_)) if !self.lets_go.load(Ordering::SeqCst) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Reply::Running { stats: Box::default() }
            }
            (Oddity::Forgets, _) | (_, None) => Reply::Unknown,
            (_, Some(end)) => Reply::Ended(Box::new(end)),
        })
    }
}

impl TaskClass for Odd {
    type Spec = Spec;
    type Accepted = ();
    type Command = Command;
    type Answer = Snapshot;
    type Event = Event;
    type Task = SyncTask;

    async fn task(&self, _: TaskContext<Self>, spec: Spec) -> nkcluster::Result<Started<Self>> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        if self.oddity == Oddity::NeverStarts {
            std::future::pending::<()>().await;
        }
        let Spec::Batch { attempt, batch } = spec else { return Err(Error::new(ErrorCode::NotAllowed, "it takes nothing")) };
        let batch = Batch::from_json(&serde_json::to_vec(&batch).expect("encodes")).expect("a batch");
        let limit = batch.config.get("BwLimit").and_then(|limit| limit.as_str().map(str::to_owned));
        self.limits.lock().expect("no panic").push(limit);
        let end = self.end_of(batch.inputs);
        self.ends.lock().expect("no panic").insert(attempt, end);
        match self.oddity {
            Oddity::StartedBefore => Err(Error::new(ErrorCode::AlreadyStarted, "it is here already")),
            _ => Ok(Started::future(SyncTask::Run(Control::default()), std::future::pending())),
        }
    }

    async fn command(&self, _: CommandContext<Self>, _: &SyncTask, command: Command) -> nkcluster::Result<Snapshot> {
        self.commands.lock().expect("no panic").push(command);
        Ok(Snapshot::default())
    }
}

/// Follows an order to its end; what was told as well.
async fn follow(order: &Order, way: &dyn Way, remotes: &Arc<Remotes>, control: &Control) -> (Summary, Vec<Told>) {
    let (told, mut hears) = mpsc::channel(16);
    let hearing = tokio::spawn(async move {
        let mut heard = Vec::new();
        while let Some(told) = hears.recv().await {
            heard.push(told);
        }
        heard
    });
    let summary = tokio::time::timeout(2 * PATIENCE, run(order, way, remotes, control, told)).await.expect("the run ends");
    (summary, hearing.await.expect("no panic"))
}

/// A control node, workers, and two trees.
struct Room {
    net: MemoryNet,
    dir: TempDir,
    nodes: VecDeque<NodeHandle>,
}

impl Room {
    async fn new() -> Self {
        let mut room = Self { net: MemoryNet::new(), dir: tempfile::tempdir().expect("a directory"), nodes: VecDeque::new() };
        for number in 0..FILES {
            let path = room.dir.path().join(format!("source/{}/{number}", number % 4));
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, vec![number as u8; 500]).expect("written");
        }
        let mut config = Config::control();
        config.listen = vec!["nkcluster://c1;transport=memory".parse().expect("a URL")];
        room.start(config, "c1", Classes::new()).await;
        room
    }

    async fn start(&mut self, mut config: Config, id: &str, classes: Classes) {
        config.node_id = Some(NodeId::new(id).expect("an id"));
        config.state_dir = self.dir.path().join(id);
        (config.classes, config.grants) = (ClassList::All, ClassList::All);
        config.pbkdf2_iters = 16;
        self.nodes.push_back(Node::start_in(&self.net, config, classes).await.expect("starts"));
    }

    async fn worker(&mut self, id: &str, classes: Classes) {
        let mut config = Config::worker();
        config.cluster_addr = vec!["nkcluster://c1;transport=memory".parse().expect("a URL")];
        config.meta = "copier".parse().expect("labels");
        self.start(config, id, classes).await;
        let id = NodeId::new(id).expect("an id");
        self.cluster().wait_status(&id, NodeStatus::Ready, PATIENCE).await.expect("ready");
    }

    async fn odd(&mut self, oddity: Oddity) -> Odd {
        let odd = Odd::new(oddity);
        self.worker("odd", Classes::new().with_tasks(odd.clone())).await;
        odd
    }

    async fn honest(&mut self) {
        self.worker("honest", Classes::new().with_tasks(FileSync::new(RemoteConfig::default(), 2))).await;
    }

    /// Tasks of a worker.
    async fn tasks(&self, worker: &str) -> usize {
        let (node, class) = (NodeId::new(worker).expect("an id"), ClassName::new(FileSync::NAME).expect("a name"));
        self.cluster().tasks(&node, Some(class), PATIENCE).await.expect("it answers").len()
    }

    fn cluster(&self) -> Cluster {
        self.nodes[0].cluster().expect("a control node")
    }

    /// Copies by all workers; what was told as well.
    async fn copy(&self, control: &Control) -> (Summary, Vec<Told>) {
        let path = |name: &str| self.dir.path().join(name).to_str().expect("text").to_owned();
        let options = Options { cluster_batch_files: 5, retries: 1, ..Options::default() };
        let order = Order::new(Task::Copy, path("source"), path("destination"), &options);
        let workers = Workers::new(self.cluster(), "copier".parse().expect("a selector"));
        follow(&order, &workers, &Arc::new(Remotes::new(RemoteConfig::default())), control).await
    }

    #[track_caller]
    fn is_copied(&self) {
        for number in 0..FILES {
            let path = self.dir.path().join(format!("destination/{}/{number}", number % 4));
            assert_eq!(fs::read(&path).expect("copied"), vec![number as u8; 500], "{path:?}");
        }
        let left: Vec<_> =
            fs::read_dir(self.dir.path().join("destination")).expect("a directory").map(|entry| entry.expect("readable")).collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }
}

#[tokio::test]
async fn a_worker_whose_results_do_not_fit_is_not_believed_and_not_used_again() {
    for oddity in [Oddity::Overcounts, Oddity::GivesBackOther] {
        let mut room = Room::new().await;
        let odd = room.odd(oddity).await;
        room.honest().await;
        let (summary, told) = room.copy(&Control::default()).await;
        assert_eq!(
            (summary.end, summary.stats.transfers, summary.stats.errors),
            (End::Success, FILES as u64, 0),
            "{oddity:?}: {summary:?}"
        );
        room.is_copied();
        // As many as it has at one time.
        assert!((1..=2).contains(&odd.batches()), "{oddity:?}: it was given {} batches", odd.batches());
        let is_told = told.iter().any(|told| matches!(told, Told::Notice(what) if what.contains("odd") && what.contains("not used")));
        assert!(is_told, "{oddity:?}: {told:?}");
    }
}

#[tokio::test]
async fn a_batch_whose_answer_was_lost_is_waited_for_and_not_given_to_another() {
    let mut room = Room::new().await;
    let odd = room.odd(Oddity::StartedBefore).await;
    let (summary, _) = room.copy(&Control::default()).await;
    assert_eq!((summary.end, summary.stats.transfers), (End::Success, FILES as u64), "{summary:?}");
    room.is_copied();
    let attempts: Vec<Attempt> = odd.ends.lock().expect("no panic").keys().copied().collect();
    assert!(attempts.iter().all(|attempt| attempt.attempt == 0), "{attempts:?}");
}

#[tokio::test]
async fn a_worker_that_forgets_its_batches_is_passed_over_while_another_does_them() {
    let mut room = Room::new().await;
    let odd = room.odd(Oddity::Forgets).await;
    room.honest().await;
    let (summary, told) = room.copy(&Control::default()).await;
    assert_eq!((summary.end, summary.stats.transfers, summary.stats.errors), (End::Success, FILES as u64, 0), "{summary:?}");
    room.is_copied();
    assert!(odd.batches() > 0);
    assert!(told.iter().any(|told| matches!(told, Told::Notice(what) if what.contains("offered again"))), "{told:?}");
}

#[tokio::test]
async fn a_run_that_is_cancelled_tells_its_workers_to_abandon_what_they_have() {
    let mut room = Room::new().await;
    let odd = room.odd(Oddity::Hangs).await;
    let control = Control::default();
    let cancel = async {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while odd.batches() < 2 {
            assert!(tokio::time::Instant::now() < deadline, "it was given no batches");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        control.cancel();
    };
    let ((summary, _), ()) = tokio::join!(room.copy(&control), cancel);
    assert_eq!((summary.end, summary.stats.transfers), (End::Cancelled, 0), "{summary:?}");
    let commands = odd.commands.lock().expect("no panic");
    assert!(commands.len() == 2 && commands.iter().all(|command| matches!(command, Command::Abandon)), "{commands:?}");
    let left: Vec<_> = fs::read_dir(room.dir.path().join("destination")).into_iter().flatten().filter_map(Result::ok).collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(".nkcluster-")), "{left:?}");
}

#[tokio::test]
async fn a_worker_begins_nothing_of_a_run_that_was_closed_and_tells_what_it_had_of_it() {
    let mut room = Room::new().await;
    room.honest().await;
    let (cluster, worker, options) = (room.cluster(), NodeId::new("honest").expect("an id"), || CallOptions::timeout(PATIENCE));
    let attempt = |run: u8, batch| Attempt { run: RunId::from_random([run; 20]), batch, attempt: 0 };
    // A batch without a file ends at once.
    let spec = |attempt| Spec::Batch { attempt, batch: serde_json::json!({ "_path": "job/batch", "inputs": [] }) };
    for attempt in [attempt(1, 0), attempt(1, 1), attempt(2, 0)] {
        cluster.start::<FileSync>(&worker, &spec(attempt), options()).await.expect("it begins");
    }
    let close = Request::Close { run: attempt(1, 0).run };
    for _ in 0..2 {
        let closed = cluster.ask::<FileSync>(&worker, &close, options()).await.expect("it answers");
        assert_eq!(closed, Reply::Closed { batches: vec![attempt(1, 0), attempt(1, 1)] });
    }
    let refused = cluster.start::<FileSync>(&worker, &spec(attempt(1, 2)), options()).await.map(drop);
    assert_eq!(refused.expect_err("the run was closed").code(), &ErrorCode::NotAllowed);
    cluster.start::<FileSync>(&worker, &spec(attempt(2, 1)), options()).await.expect("another run goes on");
    // How the others ended is still known.
    let wait = Request::Wait { attempt: attempt(1, 1), millis: 10_000 };
    let ended = cluster.ask::<FileSync>(&worker, &wait, options()).await.expect("it answers");
    assert!(matches!(ended, Reply::Ended(_)), "{ended:?}");
}

#[tokio::test]
async fn a_limit_that_is_set_while_a_run_goes_on_is_told_to_the_batches_under_way_and_said_by_later_ones() {
    let mut room = Room::new().await;
    let odd = room.odd(Oddity::Hangs).await;
    let control = Control::default();
    let until = async |what: &str, is_true: &dyn Fn() -> bool| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_true() {
            assert!(tokio::time::Instant::now() < deadline, "waited too long for {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let told = |limit: &'static str| {
        let odd = odd.clone();
        move || {
            let is_it = |command: &&Command| matches!(command, Command::SetBandwidth(text) if text == limit);
            odd.commands.lock().expect("no panic").iter().filter(is_it).count() == 2
        }
    };
    let steer = async {
        until("two batches", &|| odd.batches() == 2).await;
        assert!(odd.limits().iter().all(Option::is_none), "nothing limits them at first");
        control.set_bandwidth(Some(5 << 20));
        until("both to be told", &told("5Mi")).await;
        control.set_bandwidth(None);
        until("both to be told again", &told("off")).await;
        control.set_bandwidth(Some(3 << 20));
        until("both to be told once more", &told("3Mi")).await;
        odd.let_go();
        until("later batches", &|| odd.batches() > 4).await;
        control.cancel();
    };
    let ((summary, _), ()) = tokio::join!(room.copy(&control), steer);
    assert_eq!(summary.end, End::Cancelled, "{summary:?}");
    assert!(odd.limits()[2..].iter().all(|limit| limit.as_deref() == Some("3Mi")), "{:?}", odd.limits());
}
