//! The class in a cluster: one control node and one worker on the memory network.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, EventBody, EventFilter, EventStream};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{
    Classes, CommandContext, EVENTS_AHEAD_MAX, EventContext, JobClass, JobEvent, JobEventKind, NoRequests, RequestContext, Started,
    TaskClass, TaskContext, TypedCalls, TypedTask,
};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::proto::message::BuiltinEvent;
use nkcluster::transfer::Checksum;
use nkcluster::transport::MemoryNet;
use nkcluster::types::{ClassName, NodeId, NodeStatus, Secret, WantedStatus};
use nkcluster::{Error, ErrorCode, Result};
use nkcluster_files::{Accepted, Command, Event, Files, Kind, Reply, Request, Spec, TASKS_MAX};
use tokio::sync::{mpsc, watch};

/// Far longer than anything here takes: reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(30);

struct Site {
    dir: tempfile::TempDir,
    cluster: Cluster,
    worker: NodeId,
    _nodes: [NodeHandle; 2],
}

impl Site {
    async fn start() -> Self {
        Self::start_with(Classes::new().with_tasks(Files::default()), |_| ()).await
    }

    /// With these classes on the control node, and a change of the worker's configuration.
    async fn start_with(on_control: Classes, change: impl FnOnce(&mut Config)) -> Self {
        let net = MemoryNet::new();
        let dir = tempfile::tempdir().expect("a directory");
        let common = |mut config: Config, id: &str| {
            config.node_id = Some(NodeId::new(id).expect("valid"));
            config.password = Secret::new("a secret of tests");
            config.pbkdf2_iters = 16;
            config.state_dir = dir.path().join(id);
            config.classes = ClassList::All;
            config.ping_time = Duration::from_millis(500);
            config
        };
        let address = "nkcluster://c1;transport=memory";
        let mut control = common(Config::control(), "c1");
        control.listen = vec![address.parse().expect("a URL")];
        let mut worker = common(Config::worker(), "w1");
        worker.cluster_addr = vec![address.parse().expect("a URL")];
        change(&mut worker);
        let classes = Classes::new().with_tasks(Files::default());
        let control = Node::start_in(&net, control, on_control).await.expect("starts");
        let worker = Node::start_in(&net, worker, classes).await.expect("starts");
        let cluster = control.cluster().expect("a control node");
        let id = worker.node_id().clone();
        cluster.wait_status(&id, NodeStatus::Ready, DEADLINE).await.expect("becomes ready");
        Self { dir, cluster, worker: id, _nodes: [control, worker] }
    }

    /// A path below the worker's file root, whose directory exists.
    fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = self.dir.path().join("w1/files").join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        path
    }

    async fn ask(&self, request: Request) -> Result<Reply> {
        self.cluster.ask::<Files>(&self.worker, &request, CallOptions::timeout(DEADLINE)).await
    }

    async fn events(&self) -> EventStream {
        let class = Some(ClassName::new("files").expect("valid"));
        self.cluster.events(EventFilter { class, node: None }).await.expect("subscribed")
    }

    async fn hash(&self, path: &str) -> Result<TypedTask<Accepted>> {
        self.cluster.start::<Files>(&self.worker, &Spec::Hash { path: path.into() }, CallOptions::timeout(DEADLINE)).await
    }

    async fn tell(&self, task: &TypedTask<Accepted>, command: Command) -> Result<nkcluster_files::Progress> {
        self.cluster.tell::<Files>(&self.worker, &task.id, &command, CallOptions::timeout(DEADLINE)).await
    }
}

/// What a task told until its end, and the reason of it.
async fn until_end(events: &mut EventStream, task: &TypedTask<Accepted>) -> (Vec<Event>, String) {
    let mut told = Vec::new();
    let end = async {
        loop {
            match events.next().await.expect("open").expect("no error").event {
                EventBody::Class(payload) => told.push(payload.decode().expect("an event of the class")),
                EventBody::Nkcluster(BuiltinEvent::TaskStopped { id, reason }) if id == task.id => break reason,
                EventBody::Nkcluster(_) => {}
            }
        }
    };
    let reason = tokio::time::timeout(DEADLINE, end).await.expect("the task ends");
    (told, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_tell_what_is_there() {
    let site = Site::start().await;
    fs::write(site.file("logs/today.txt"), "four").expect("written");
    match site.ask(Request::Stat { path: "logs/today.txt".into() }).await.expect("answered") {
        Reply::Stat(stat) => assert_eq!((stat.size, stat.kind), (4, Kind::File)),
        other => panic!("{other:?}"),
    }
    match site.ask(Request::List { path: "logs".into(), after: None, limit: None }).await.expect("answered") {
        Reply::List(page) => assert_eq!((page.entries[0].name.as_str(), page.entries[0].stat.size, page.next), ("today.txt", 4, None)),
        other => panic!("{other:?}"),
    }
    for path in ["../secret", "/etc/passwd"] {
        let error = site.ask(Request::List { path: path.into(), after: None, limit: None }).await.expect_err("refused");
        assert_eq!(error.code(), &ErrorCode::InvalidPath);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_tells_every_file_in_order_and_then_the_summary() {
    let site = Site::start().await;
    fs::write(site.file("tour/a/one"), "one").expect("written");
    fs::write(site.file("tour/a.txt"), "").expect("written");
    fs::write(site.file("tour/z"), "zett").expect("written");
    fs::write(site.file(Path::new("tour").join(OsStr::from_bytes(b"bad\xff"))), "x").expect("written");
    symlink("z", site.file("tour/link")).expect("linked");
    fs::write(site.file("elsewhere"), "not of the tour").expect("written");

    let mut events = site.events().await;
    let task = site.hash("tour/").await.expect("started");
    assert_eq!(task.reply, Some(Accepted { path: "tour".into() }));
    let (told, reason) = until_end(&mut events, &task).await;

    assert_eq!(reason, "normal");
    let hashed = |path: &str, raw: Option<&str>, content: &str| Event::Hashed {
        task: task.id.to_string(),
        path: path.into(),
        raw: raw.map(str::to_owned),
        bytes: content.len() as u64,
        xxh3: Checksum::of(content.as_bytes()),
    };
    let expected = [
        hashed("a/one", None, "one"),
        hashed("a.txt", None, ""),
        hashed("bad\u{fffd}", Some("626164ff"), "x"),
        hashed("z", None, "zett"),
        Event::Summary { task: task.id.to_string(), files: 4, bytes: 8, errors: 0 },
    ];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_is_a_tree_of_its_own() {
    let site = Site::start().await;
    fs::write(site.file("d/only"), "x").expect("written");
    let mut events = site.events().await;
    let task = site.hash("d/only").await.expect("started");
    let (told, _) = until_end(&mut events, &task).await;
    assert!(matches!(&told[..], [Event::Hashed { path, .. }, Event::Summary { files: 1, .. }] if path == "only"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_hashed_at_all_is_refused_at_the_start() {
    let site = Site::start().await;
    symlink("/etc", site.file("out")).expect("linked");
    for (path, code) in [("missing", ErrorCode::InvalidFile), ("out", ErrorCode::InvalidPath), ("../w1", ErrorCode::InvalidPath)] {
        assert_eq!(site.hash(path).await.expect_err("refused").code(), &code, "{path}");
    }
}

/// A sparse file that takes a debug build long enough to be found at work.
fn large_file(site: &Site) {
    let file = fs::File::create(site.file("large/file")).expect("made");
    file.set_len(64 << 30).expect("sparse");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_can_be_paused_and_cancelled() {
    let site = Site::start().await;
    large_file(&site);
    let mut events = site.events().await;
    let task = site.hash("large").await.expect("started");
    assert!(!site.tell(&task, Command::Progress).await.expect("answered").paused);
    assert!(site.tell(&task, Command::Pause).await.expect("answered").paused);
    assert!(!site.tell(&task, Command::Resume).await.expect("answered").paused);
    assert!(site.tell(&task, Command::Pause).await.expect("answered").paused);
    assert!(!site.tell(&task, Command::Cancel).await.expect("answered").paused);
    let (told, reason) = until_end(&mut events, &task).await;
    assert_eq!(reason, "normal");
    assert_eq!(told, [Event::Progress { task: task.id.to_string(), files: 0, bytes: 0 }]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_ends_when_its_worker_drains() {
    let site = Site::start().await;
    large_file(&site);
    let mut events = site.events().await;
    let task = site.hash("large").await.expect("started");
    site.cluster.set_status(&site.worker, WantedStatus::Stopped, DEADLINE).await.expect("drains");
    let (told, reason) = until_end(&mut events, &task).await;
    assert_eq!(reason, "normal");
    assert!(!told.iter().any(|event| matches!(event, Event::Summary { .. })), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_files_are_all_told_without_a_gap() {
    const FILES: u64 = 1500;
    let site = Site::start().await;
    for number in 0..FILES {
        fs::write(site.file(format!("many/{number:04}")), number.to_string()).expect("written");
    }
    let mut events = site.events().await;
    let task = site.hash("many").await.expect("started");
    let (told, reason) = until_end(&mut events, &task).await;
    assert_eq!(reason, "normal");
    let hashed = told.iter().filter(|event| matches!(event, Event::Hashed { .. })).count();
    let progress: Vec<u64> =
        told.iter().filter_map(|event| if let Event::Progress { files, .. } = event { Some(*files) } else { None }).collect();
    assert_eq!((hashed as u64, progress), (FILES, vec![256, 512, 768, 1024, 1280]));
    assert!(matches!(told.last(), Some(Event::Summary { files: FILES, errors: 0, .. })), "{:?}", told.last());
}

/// Takes the events of the class in on the control node, once it may.
struct Gate {
    open: watch::Receiver<bool>,
    taken: mpsc::UnboundedSender<JobEventKind<Event>>,
}

impl JobClass for Gate {
    const NAME: &'static str = "files";
    type Request = NoRequests;
    type Reply = ();

    async fn request(&self, _: RequestContext, request: NoRequests) -> Result<()> {
        match request {}
    }
}

impl TaskClass for Gate {
    type Spec = Spec;
    type Accepted = ();
    type Command = Command;
    type Answer = ();
    type Event = Event;
    type Task = ();

    async fn task(&self, _: TaskContext<Self>, _: Spec) -> Result<Started<Self>> {
        Err(Error::new(ErrorCode::UnknownTask, "only for events"))
    }

    async fn command(&self, _: CommandContext<Self>, _: &(), _: Command) -> Result<()> {
        Ok(())
    }

    async fn event(&self, _: EventContext, event: JobEvent<Event>) {
        let mut open = self.open.clone();
        open.wait_for(|open| *open).await.expect("the test runs");
        self.taken.send(event.kind).expect("the test runs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_waits_while_its_events_are_not_taken_in_and_none_is_lost() {
    const FILES: u64 = 2000;
    let (open, opened) = watch::channel(false);
    let (taken, mut taking) = mpsc::unbounded_channel();
    let gate = Classes::new().with_tasks(Gate { open: opened, taken });
    // Not nearly enough for all events.
    let site = Site::start_with(gate, |worker| worker.journal_bytes = 160 * 1024).await;
    for number in 0..FILES {
        fs::write(site.file(format!("many/{number:04}")), "x").expect("written");
    }
    let task = site.hash("many").await.expect("started");
    let window_is_full = async {
        while site.tell(&task, Command::Progress).await.expect("it runs").files < 250 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, window_is_full).await.expect("a window of events");
    assert!(site.tell(&task, Command::Progress).await.expect("it runs").files <= EVENTS_AHEAD_MAX);
    open.send(true).expect("the gate is there");

    let mut hashed = 0;
    loop {
        match tokio::time::timeout(DEADLINE, taking.recv()).await.expect("in time").expect("open") {
            JobEventKind::Class(Event::Hashed { .. }) => hashed += 1,
            JobEventKind::Gap { from, to } | JobEventKind::Resync { gap: Some((from, to)), .. } => panic!("{from} to {to} are lost"),
            JobEventKind::TaskStopped { reason, .. } => break assert_eq!(reason, "normal"),
            _ => {}
        }
    }
    assert_eq!(hashed, FILES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_tasks_than_the_bound_are_refused_until_one_has_ended() {
    let site = Site::start().await;
    large_file(&site);
    let mut events = site.events().await;
    let first = site.hash("large").await.expect("started");
    for _ in 1..TASKS_MAX {
        site.hash("large").await.expect("started");
    }
    assert_eq!(site.hash("large").await.expect_err("refused").code(), &ErrorCode::Busy);
    site.tell(&first, Command::Cancel).await.expect("answered");
    until_end(&mut events, &first).await;
    site.hash("large").await.expect("there is room again");
}
