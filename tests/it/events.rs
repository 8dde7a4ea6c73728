//! Events from the worker to the class and to those who follow: who is told what, when something is missing, slow or hangs.

use std::sync::{Arc, Mutex};

use nkcluster::Result;
use nkcluster::cluster::{EventBody, EventFilter, EventRecord, EventStream};
use nkcluster::job::{
    Classes, CommandContext, EventContext, JobClass, JobEvent, JobEventKind, NoRequests, RequestContext, Started, TaskClass, TaskContext,
    TypedCalls,
};
use nkcluster::proto::message::BuiltinEvent;
use nkcluster::types::{ClassName, NodeStatus, Payload};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use crate::harness::{MemoryCluster, eventually_eq, node_id, once, soon, task_id};

/// A class without tasks: a request that emits so many events of so many letters.
#[derive(Clone)]
struct Bell {
    heard: Arc<Mutex<Vec<String>>>,
    /// A permit for each event that the class takes in.
    pass: Arc<Semaphore>,
}

impl Bell {
    fn new(permits: usize) -> Self {
        Self { heard: Arc::default(), pass: Arc::new(Semaphore::new(permits)) }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic").clone()
    }
}

impl JobClass for Bell {
    const NAME: &'static str = "bell";
    type Request = (u64, usize);
    type Reply = ();

    async fn request(&self, ctx: RequestContext, (count, letters): (u64, usize)) -> Result<()> {
        for number in 0..count {
            ctx.emit(&format!("{number}{}", "x".repeat(letters)))?;
        }
        Ok(())
    }

    async fn event(&self, _: EventContext, event: JobEvent<Payload>) {
        self.pass.acquire().await.expect("never closed").forget();
        let text = match event.kind {
            JobEventKind::Class(payload) => payload.decode::<String>().expect("text"),
            JobEventKind::NodeStatus(_) => return,
            other => format!("{other:?}"),
        };
        self.heard.lock().expect("no panic").push(format!("{} {text}", event.seq));
    }
}

/// The task that an event was of, and its text.
type Heard = (Option<String>, String);

/// A class whose task emits what it is told to by this process.
#[derive(Clone)]
struct Parrot {
    words: Arc<Mutex<Option<mpsc::UnboundedReceiver<String>>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl JobClass for Parrot {
    const NAME: &'static str = "parrot";
    type Request = NoRequests;
    type Reply = ();

    async fn request(&self, _: RequestContext, request: NoRequests) -> Result<()> {
        match request {}
    }
}

impl TaskClass for Parrot {
    type Spec = ();
    type Accepted = ();
    type Command = ();
    type Answer = ();
    type Event = String;
    type Task = ();

    async fn task(&self, ctx: TaskContext<Self>, (): ()) -> Result<Started<Self>> {
        let words = self.words.lock().expect("no panic").take();
        Ok(Started::future((), async move {
            let Some(mut words) = words else { return Ok(()) };
            while let Some(word) = words.recv().await {
                ctx.emit(&word)?;
            }
            Ok(())
        }))
    }

    async fn command(&self, _: CommandContext<Self>, (): &(), (): ()) -> Result<()> {
        Ok(())
    }

    async fn event(&self, _: EventContext, event: JobEvent<String>) {
        let text = match event.kind {
            JobEventKind::Class(text) => text,
            JobEventKind::TaskStarted(_) => "started".to_owned(),
            JobEventKind::TaskStopped { reason, .. } => reason,
            _ => return,
        };
        self.heard.lock().expect("no panic").push((event.task.map(|task| task.to_string()), text));
    }
}

async fn follow(c: &MemoryCluster, class: &str) -> EventStream {
    let filter = EventFilter { class: Some(ClassName::new(class).expect("valid")), node: Some(node_id("w1")) };
    c.cluster.events(filter).await.expect("followed")
}

async fn next(events: &mut EventStream) -> EventRecord {
    loop {
        let record = soon("one more event", events.next()).await.expect("it goes on").expect("no error");
        if !matches!(record.event, EventBody::Nkcluster(BuiltinEvent::NodeStatus(_))) {
            return record;
        }
    }
}

#[tokio::test]
async fn a_class_without_tasks_is_told_of_its_events() {
    let bell = Bell::new(1000);
    let c = MemoryCluster::start(Classes::new().with(bell.clone())).await;
    let _worker = c.worker("w1", Classes::new().with(bell.clone())).await;
    c.cluster.ask::<Bell>(&node_id("w1"), &(3, 1), once()).await.expect("answered");
    eventually_eq(|| bell.heard(), vec!["1 0x".to_owned(), "2 1x".to_owned(), "3 2x".to_owned()]).await;
}

#[tokio::test]
async fn those_who_follow_see_everything_while_the_class_hangs() {
    const EVENTS: u64 = 1500;
    let bell = Bell::new(0);
    let c = MemoryCluster::start(Classes::new().with(bell.clone())).await;
    let _worker = c.worker("w1", Classes::new().with(bell.clone())).await;
    let mut live = follow(&c, "bell").await;
    c.cluster.ask::<Bell>(&node_id("w1"), &(EVENTS, 1), once()).await.expect("answered");
    for seq in 1..=EVENTS {
        let record = next(&mut live).await;
        assert_eq!((record.seq, record.task.as_ref()), (seq, None), "in order and once");
    }
    assert_eq!(bell.heard(), [""; 0], "the class hangs");
    // It gets everything all the same, and nothing is told twice to those who follow.
    bell.pass.add_permits(1_000_000);
    eventually_eq(|| bell.heard().len(), EVENTS as usize).await;
    assert!(bell.heard().iter().enumerate().all(|(index, text)| text.starts_with(&format!("{} ", index + 1))), "in order");
    c.cluster.ask::<Bell>(&node_id("w1"), &(1, 1), once()).await.expect("answered");
    assert_eq!(next(&mut live).await.seq, EVENTS + 1);
}

#[tokio::test]
async fn what_the_journal_dropped_while_nobody_was_there_is_told_as_a_gap() {
    let (say, words) = mpsc::unbounded_channel();
    let parrot = Parrot { words: Arc::new(Mutex::new(Some(words))), heard: Arc::default() };
    let classes = || Classes::new().with_tasks(parrot.clone());
    let c = MemoryCluster::start(classes()).await;
    let _worker = c.worker_with("w1", classes(), |config| config.journal_bytes = 64 * 1024).await;
    let admin = c.admin().await;
    let of_worker = EventFilter { class: None, node: Some(node_id("w1")) };
    let (mut live, mut admin_live) = (follow(&c, "parrot").await, admin.events(of_worker).await.expect("followed"));
    c.cluster.start::<Parrot>(&node_id("w1"), &(), once().with_task_id(task_id("t1"))).await.expect("started");
    say.send("before".to_owned()).expect("it runs");
    assert_eq!(next(&mut live).await.event, EventBody::Nkcluster(BuiltinEvent::TaskStarted(task_id("t1"))));
    assert_eq!(next(&mut live).await.seq, 2);
    let heard = || parrot.heard.lock().expect("no panic").clone();
    eventually_eq(|| heard().len(), 2).await;

    c.net.set_refused("w1", "c1", true);
    c.net.cut("w1", "c1");
    c.wait_status("w1", NodeStatus::NotConnected).await;
    for number in 0..100 {
        say.send(format!("{number} {}", "x".repeat(2000))).expect("it runs");
    }
    say.send("after".to_owned()).expect("it runs");
    drop(say);
    c.net.set_refused("w1", "c1", false);
    // The first ones were dropped, the last ones have come, and the end of the task is there.
    for live in [&mut live, &mut admin_live] {
        let gap = loop {
            let record = next(live).await;
            if let EventBody::Nkcluster(BuiltinEvent::Gap { from, to }) = record.event {
                assert_eq!(record.to_json().expect("JSON")["event"], json!({ "nkcluster": { "gap": { "from": from, "to": to } } }));
                break (from, to);
            }
            assert!(record.seq <= 2, "{record:?} before the gap");
        };
        assert_eq!(gap.0, 3);
        let mut seq = gap.1;
        let stopped = loop {
            let record = next(live).await;
            assert_eq!(record.seq, seq + 1, "nothing else is missing");
            seq = record.seq;
            assert_eq!(record.to_json().expect("JSON")["task"], json!("t1"), "each says of which task it is");
            if let EventBody::Nkcluster(event) = record.event {
                break event;
            }
        };
        assert_eq!(stopped, BuiltinEvent::TaskStopped { id: task_id("t1"), reason: "normal".to_owned() });
        assert_eq!(seq, 2 + 101 + 1);
    }
    let told = |text: &str| (Some("t1".to_owned()), text.to_owned());
    eventually_eq(|| heard().last().cloned(), Some(told("normal"))).await;
    assert_eq!(heard()[..2], [told("started"), told("before")]);
}
