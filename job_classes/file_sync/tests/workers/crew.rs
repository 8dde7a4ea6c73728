//! Workers of a cluster that work for a queue, in one process with its controller.

use nkcluster_file_sync::queue::RunStart;
use nkcluster_file_sync::{Crew, Queue};

use super::*;

fn run_id() -> RunId {
    RunId::from_random([5; 20])
}

/// Files of the queue that say something about a run or a worker.
fn left(room: &Room) -> Vec<String> {
    let mut left = Vec::new();
    let mut directories = vec![room.dir.path().join("work/run")];
    for name in ["pending", "processing", "done", "claims", "wanted", "status"] {
        directories.push(room.dir.path().join("work/queue").join(name));
    }
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => directories.push(path),
                false => left.push(path.to_str().expect("text").to_owned()),
            }
        }
    }
    left
}

impl Room {
    async fn queue_with(&self, start: RunStart, options: Options, control: &Control) -> (Summary, Vec<Told>) {
        let path = |name: &str| self.dir.path().join(name).to_str().expect("text").to_owned();
        let order = Order::new(Task::Copy, path("source"), path("destination"), &options);
        let remotes = Arc::new(Remotes::new(RemoteConfig::default()));
        let remote = path("work");
        let store = remotes.open(&remote).expect("opened").open_queue().await.expect("a queue");
        let crew = Some(Crew::new(self.cluster(), "copier".parse().expect("a selector")));
        let queue = Queue { store, remote, run: run_id(), start, lease: Duration::from_secs(4), crew };
        follow(&order, &queue, &remotes, control).await
    }

    /// Nothing of the crew is at a worker any more.
    async fn is_left(&self, worker: &str) {
        let watch = Request::Watch { run: run_id(), seen: 0, millis: 10 };
        let node = NodeId::new(worker).expect("an id");
        let reply = self.cluster().ask::<FileSync>(&node, &watch, CallOptions::timeout(PATIENCE)).await.expect("it answers");
        assert_eq!(reply, Reply::Unknown);
    }
}

fn options() -> Options {
    Options { cluster_batch_files: 5, retries: 1, ..Options::default() }
}

fn tells(told: &[Told], parts: &[&str]) -> bool {
    told.iter().any(|told| matches!(told, Told::Notice(what) if parts.iter().all(|part| what.contains(part))))
}

#[tokio::test]
async fn workers_of_a_cluster_empty_a_queue_and_nothing_stays_of_them() {
    let mut room = Room::new().await;
    for id in ["w1", "w2"] {
        room.worker(id, Classes::new().with_tasks(FileSync::new(RemoteConfig::default(), 2))).await;
    }
    let (summary, told) = room.queue_with(RunStart::New, options(), &Control::default()).await;
    assert_eq!((summary.end, summary.stats.transfers, summary.stats.errors), (End::Success, FILES as u64, 0), "{summary:?} {told:?}");
    room.is_copied();
    assert!(["w1", "w2"].iter().all(|id| tells(&told, &[id, "takes part"])), "{told:?}");
    assert!(!tells(&told, &["lost"]) && !tells(&told, &["silent"]), "{told:?}");
    assert_eq!(left(&room), Vec::<String>::new());
    for id in ["w1", "w2"] {
        room.is_left(id).await;
    }
    // The numbers of a worker have the name of its node.
    let again = room.queue_with(RunStart::New, options(), &Control::default()).await.0;
    assert_eq!((again.end, again.stats.transfers), (End::Success, 0), "{again:?}");
}

#[tokio::test]
async fn workers_that_are_to_stop_with_the_run_do_so_and_leave_no_word_of_it() {
    let mut room = Room::new().await;
    room.honest().await;
    let options = Options { cluster_quit_workers: true, ..options() };
    let (summary, told) = room.queue_with(RunStart::New, options, &Control::default()).await;
    assert_eq!((summary.end, summary.stats.transfers), (End::Success, FILES as u64), "{summary:?} {told:?}");
    assert!(!tells(&told, &["lost"]) && !tells(&told, &["not used"]), "{told:?}");
    assert_eq!(left(&room), Vec::<String>::new());
    room.is_left("honest").await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_takes_its_workers_away_and_can_be_resumed() {
    let mut room = Room::new().await;
    room.honest().await;
    let control = Control::default();
    let cancel = async {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while control.snapshot().stats.transfers == 0 {
            assert!(tokio::time::Instant::now() < deadline, "nothing is copied");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        control.cancel();
    };
    let slow = Options { bwlimit: "5k".parse().expect("a rate"), ..options() };
    let ((summary, told), ()) = tokio::join!(room.queue_with(RunStart::New, slow, &control), cancel);
    assert_eq!(summary.end, End::Cancelled, "{summary:?} {told:?}");
    room.is_left("honest").await;
    let held = left(&room).into_iter().filter(|path| path.contains("/status/") || path.contains("/wanted/")).count();
    assert_eq!(held, 0, "its worker has gone: {:?}", left(&room));
    let (summary, told) = room.queue_with(RunStart::Resume, options(), &Control::default()).await;
    assert_eq!((summary.end, summary.stats.errors), (End::Success, 0), "{summary:?} {told:?}");
    room.is_copied();
    assert_eq!(left(&room), Vec::<String>::new());
}

#[tokio::test]
async fn a_run_whose_only_workers_refuse_ends_with_their_reason() {
    let mut room = Room::new().await;
    room.odd(Oddity::Hangs).await;
    let options = Options { no_worker_timeout: "2s".parse().expect("a time"), ..options() };
    let (summary, told) = room.queue_with(RunStart::New, options, &Control::default()).await;
    assert!(summary.end != End::Success && summary.errors.iter().any(|error| error.contains("odd: it takes nothing")), "{summary:?}");
    assert!(tells(&told, &["odd", "is not used", "it takes nothing"]), "{told:?}");
    assert!((0..4).all(|directory| !room.dir.path().join(format!("destination/{directory}")).exists()));
}

#[tokio::test]
async fn a_run_that_ends_while_a_worker_still_starts_leaves_nothing_of_it() {
    let mut room = Room::new().await;
    let odd = room.odd(Oddity::NeverStarts).await;
    // As an earlier life of it may have left them.
    let names =
        [format!("status/odd.{}.json", run_id()), format!("wanted/odd.{}", run_id()), format!("pending/QUIT-odd.{}.json", run_id())];
    for name in names {
        let path = room.dir.path().join("work/queue").join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, "{}").expect("written");
    }
    let control = Control::default();
    let cancel = async {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while odd.starts.load(Ordering::Relaxed) == 0 {
            assert!(tokio::time::Instant::now() < deadline, "it is not started");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        control.cancel();
    };
    let ((summary, told), ()) = tokio::join!(room.queue_with(RunStart::New, options(), &control), cancel);
    assert_eq!(summary.end, End::Cancelled, "{summary:?} {told:?}");
    assert_eq!(room.tasks("odd").await, 0);
    let left: Vec<_> = left(&room).into_iter().filter(|path| path.contains("odd.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_worker_whose_task_is_killed_is_known_until_it_has_ended() {
    let mut room = Room::new().await;
    room.honest().await;
    let (cluster, worker) = (room.cluster(), NodeId::new("honest").expect("an id"));
    let queue = room.dir.path().join("elsewhere");
    begin_run(&queue);
    let spec = Spec::Work { cluster: queue.to_str().expect("text").to_owned(), run: run_id() };
    let id = TaskId::new("kept").expect("an id");
    let options = CallOptions { task_id: Some(id.clone()), ..CallOptions::timeout(PATIENCE) };
    cluster.start::<FileSync>(&worker, &spec, options).await.expect("it begins");
    let wanted = queue.join(format!("queue/wanted/honest.{}", run_id()));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !wanted.exists() {
        assert!(tokio::time::Instant::now() < deadline, "it does not look");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.stop_task(&worker, &ClassName::new(FileSync::NAME).expect("a name"), &id, PATIENCE).await.expect("it is stopped");
    let watch = Request::Watch { run: run_id(), seen: 0, millis: 10 };
    while cluster.ask::<FileSync>(&worker, &watch, CallOptions::timeout(PATIENCE)).await.expect("it answers") != Reply::Unknown {
        assert!(tokio::time::Instant::now() < deadline, "it does not end");
    }
    assert!(!wanted.exists(), "it is still there");
}

/// As if a controller had begun the run in a queue.
fn begin_run(queue: &Path) {
    let controller = queue.join(format!("run/{}/controller.000000", run_id()));
    fs::create_dir_all(controller.parent().expect("a parent")).expect("made");
    fs::write(&controller, "{}").expect("written");
}

#[tokio::test]
async fn a_worker_takes_a_run_once_and_only_where_it_is_under_way() {
    let mut room = Room::new().await;
    room.honest().await;
    let elsewhere = room.dir.path().join("elsewhere");
    let (cluster, worker) = (room.cluster(), NodeId::new("honest").expect("an id"));
    let start = async |cluster_remote: &str| {
        let spec = Spec::Work { cluster: cluster_remote.to_owned(), run: run_id() };
        cluster.start::<FileSync>(&worker, &spec, CallOptions::timeout(PATIENCE)).await.map(drop)
    };
    let error = start(elsewhere.to_str().expect("text")).await.expect_err("there is no run");
    assert!(error.code().name() == "no_such_run" && error.message().contains("same storage"), "{error:?}");
    assert!(!elsewhere.exists(), "it has made what it was to find");
    assert_eq!(start("nowhere:work").await.expect_err("no remote").code().name(), "no_queue");
    begin_run(&elsewhere);
    start(elsewhere.to_str().expect("text")).await.expect("it begins");
    let twice = start(elsewhere.to_str().expect("text")).await.expect_err("it has begun");
    assert_eq!(twice.code(), &ErrorCode::AlreadyStarted);
    // Another run of that id is another run.
    let other = room.dir.path().join("other");
    begin_run(&other);
    let other = start(other.to_str().expect("text")).await.expect_err("it works elsewhere");
    assert!(other.code() == &ErrorCode::Busy && other.message().contains("another queue"), "{other:?}");
}
