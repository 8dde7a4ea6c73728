//! A task that tells how far it is, and the two who listen: the class on the control node, and a live subscriber.
//!
//! ```sh
//! cargo run --example events
//! ```
//!
//! They differ in what they are promised. The class's `event` gets **every** event, in order and at least once: the worker keeps each until `event` has returned, over
//! broken links and other control nodes. A live subscriber gets what passes by: who reads too slowly is told of a gap, and delays nobody.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nkcluster::Result;
use nkcluster::cluster::{CallOptions, EventBody, EventFilter};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{
    Classes, CommandContext, EventContext, JobClass, JobEvent, JobEventKind, NoRequests, RequestContext, Started, TaskClass, TaskContext,
    TypedCalls,
};
use nkcluster::node::Node;
use nkcluster::proto::message::BuiltinEvent;
use nkcluster::types::{ClassName, Incarnation, NodeId, NodeStatus};

/// Counts down, and ends at zero.
#[derive(Clone, Default)]
struct Countdown {
    /// On the control node: what came, each event once.
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Default)]
struct Ledger {
    last: Option<(Incarnation, u64)>,
    counted: Vec<u32>,
    ended: Option<String>,
}

impl JobClass for Countdown {
    const NAME: &'static str = "countdown";
    type Request = NoRequests;
    type Reply = ();

    async fn request(&self, _: RequestContext, request: NoRequests) -> Result<()> {
        // There is no such request, and the compiler knows it.
        match request {}
    }
}

impl TaskClass for Countdown {
    type Spec = u32;
    type Accepted = ();
    type Command = ();
    type Answer = ();
    type Event = u32;
    type Task = ();

    async fn task(&self, ctx: TaskContext<Self>, from: u32) -> Result<Started<Self>> {
        // The worker supervises this future: its end, an error or a panic in it become the event `task_stopped`.
        let count = async move {
            for left in (0..from).rev() {
                // Waits if events are not taken in as fast as they come; `emit` would never wait.
                ctx.emit_paced(&left).await?;
            }
            Ok(())
        };
        Ok(Started::future((), count))
    }

    async fn command(&self, _: CommandContext<Self>, (): &(), (): ()) -> Result<()> {
        Ok(())
    }

    async fn event(&self, _: EventContext, event: JobEvent<u32>) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        // At least once means that an event may come again, after a control node failed between taking it in and saying so. Incarnation and number
        // tell; 0 is what the control node says itself. An application that stores events stores this key with them. This example has one worker.
        let key = (event.incarnation, event.seq);
        if event.seq != 0 && ledger.last.is_some_and(|(incarnation, seq)| incarnation == key.0 && seq >= key.1) {
            return;
        }
        ledger.last = Some(key);
        match event.kind {
            JobEventKind::Class(left) => ledger.counted.push(left),
            JobEventKind::TaskStopped { reason, .. } => ledger.ended = Some(reason),
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    // The same value on both sides: its `task` runs on the worker, its `event` on the control node.
    let countdown = Countdown::default();
    let classes = Classes::new().with_tasks(countdown.clone());

    let mut config = Config::control();
    config.listen = vec!["nkcluster://127.0.0.1:0;transport=tcp".parse()?];
    config.state_dir = dir.path().join("c1");
    let control = Node::start(config, classes.clone()).await?;

    let mut config = Config::worker();
    config.node_id = Some(NodeId::new("w1")?);
    config.cluster_addr = control.listen().to_vec();
    config.state_dir = dir.path().join("w1");
    config.classes = ClassList::All;
    let worker = Node::start(config, classes).await?;

    let cluster = control.cluster().ok_or("a control node has the cluster")?;
    cluster.wait_status(worker.node_id(), NodeStatus::Ready, Duration::from_secs(10)).await?;

    // Subscribed before the start, to see it from its first event on.
    let filter = EventFilter { class: Some(ClassName::new(Countdown::NAME)?), node: None };
    let mut live = cluster.events(filter).await?;
    let task = cluster.start::<Countdown>(worker.node_id(), &3, CallOptions::default()).await?;

    let mut heard = Vec::new();
    let reason = loop {
        let record = tokio::time::timeout(Duration::from_secs(10), live.next()).await?.ok_or("the subscription ended")??;
        match record.event {
            EventBody::Class(payload) => {
                let left: u32 = payload.decode()?;
                println!("{} {}: {left}", record.node, record.seq);
                heard.push(left);
            }
            EventBody::Nkcluster(BuiltinEvent::TaskStopped { id, reason }) if id == task.id => break reason,
            EventBody::Nkcluster(other) => println!("{} {}: {other:?}", record.node, record.seq),
        }
    };
    println!("the task ended: {reason}");
    assert_eq!((heard, reason.as_str()), (vec![2, 1, 0], "normal"));

    // A stopping worker waits until its events were taken in: after it nothing is missing in the ledger.
    worker.stop().await;
    control.stop().await;
    let ledger = countdown.ledger.lock().unwrap_or_else(PoisonError::into_inner);
    println!("the ledger: {:?}, {}", ledger.counted, ledger.ended.as_deref().unwrap_or("not ended"));
    assert_eq!((&ledger.counted[..], ledger.ended.as_deref()), (&[2, 1, 0][..], Some("normal")));
    Ok(())
}
