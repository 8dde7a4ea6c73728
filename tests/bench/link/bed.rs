//! A cluster in this process: one control node, workers that dial it over real sockets, and a class whose jobs do next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nkcluster::Result;
use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{
    Classes, CommandContext, EventContext, JobClass, JobEvent, JobEventKind, RequestContext, Started, TaskClass, TaskContext,
};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::types::{ClassName, NodeId, NodeStatus, Payload, Secret};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::io::AsyncReadExt as _;

/// Payload of a small request, before its encoding.
pub(crate) const SMALL_BYTES: usize = 64;
/// What surrounds it in a frame; the baselines send as many bytes.
pub(crate) const SMALL_FRAME_BYTES: usize = SMALL_BYTES + 80;
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const SECRET: &str = "a secret of benches";

/// Time of one measurement, in seconds.
pub(crate) fn seconds() -> Duration {
    Duration::from_secs_f64(number("NKCLUSTER_BENCH_SECONDS").unwrap_or(2.0))
}

pub(crate) fn number(variable: &str) -> Option<f64> {
    std::env::var(variable).ok().and_then(|text| text.parse::<f64>().ok())
}

/// What a task of the class does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Runs until it is stopped.
    Wait,
    /// Ends at once.
    End,
    /// Tells events, as fast as they are taken in, until it is stopped.
    Tell,
}

/// Returns requests, swallows streams, counts events on the control node.
#[derive(Clone, Default)]
pub(crate) struct Echo {
    events: Arc<AtomicU64>,
}

impl JobClass for Echo {
    const NAME: &'static str = "echo";
    type Request = ByteBuf;
    type Reply = ByteBuf;

    async fn request(&self, mut ctx: RequestContext, request: ByteBuf) -> Result<ByteBuf> {
        let Some(mut stream) = ctx.open_stream() else { return Ok(request) };
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0_u64;
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return Ok(ByteBuf::from(total.to_be_bytes())),
                Ok(count) => total += count as u64,
                Err(error) => return Err(nkcluster::Error::class("stream", error.to_string())),
            }
        }
    }
}

impl TaskClass for Echo {
    type Spec = Job;
    type Accepted = ();
    type Command = ByteBuf;
    type Answer = ByteBuf;
    type Event = ByteBuf;
    type Task = ();

    async fn task(&self, ctx: TaskContext<Self>, job: Job) -> Result<Started<Self>> {
        let work = async move {
            match job {
                Job::End => Ok(()),
                Job::Wait => std::future::pending().await,
                Job::Tell => loop {
                    ctx.emit_paced(&ByteBuf::from(vec![7; SMALL_BYTES])).await?;
                },
            }
        };
        Ok(Started::future((), work))
    }

    async fn command(&self, _: CommandContext<Self>, (): &(), command: ByteBuf) -> Result<ByteBuf> {
        Ok(command)
    }

    async fn event(&self, _: EventContext, event: JobEvent<ByteBuf>) {
        if matches!(event.kind, JobEventKind::Class(_)) {
            self.events.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A configuration for benches: a cheap secret, no limits on newcomers.
pub(crate) fn config(mut config: Config, id: &str, dir: &std::path::Path) -> Config {
    config.node_id = Some(NodeId::new(id).expect("valid"));
    config.password = Secret::new(SECRET);
    config.pbkdf2_iters = 1000;
    config.state_dir = dir.join(id);
    config.classes = ClassList::All;
    config.accept_rate = 1_000_000;
    config.max_connections = 100_000;
    config
}

/// A control node and its workers.
pub(crate) struct Bed {
    _dir: tempfile::TempDir,
    pub(crate) control: NodeHandle,
    _workers: Vec<NodeHandle>,
    pub(crate) cluster: Cluster,
    pub(crate) workers: Vec<NodeId>,
    pub(crate) class: ClassName,
    echo: Echo,
}

impl Bed {
    /// Started, with every worker ready.
    pub(crate) async fn start(transport: &str, workers: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let echo = Echo::default();
        let classes = Classes::new().with_tasks(echo.clone());
        let mut control = config(Config::control(), "c1", dir.path());
        control.listen = vec![format!("nkcluster://127.0.0.1:0;transport={transport}").parse().expect("valid")];
        let control = Node::start(control, classes.clone()).await.expect("the control node starts");
        let cluster = control.cluster().expect("a control node");
        let (mut handles, mut ids) = (Vec::new(), Vec::new());
        for number in 1..=workers {
            let mut worker = config(Config::worker(), &format!("w{number}"), dir.path());
            worker.cluster_addr = control.listen().to_vec();
            let worker = Node::start(worker, classes.clone()).await.expect("the worker starts");
            ids.push(worker.node_id().clone());
            handles.push(worker);
        }
        for id in &ids {
            cluster.wait_status(id, NodeStatus::Ready, TIMEOUT).await.expect("the worker is ready in time");
        }
        let class = ClassName::new(Echo::NAME).expect("valid");
        Self { _dir: dir, control, _workers: handles, cluster, workers: ids, class, echo }
    }

    /// The first worker.
    pub(crate) fn worker(&self) -> &NodeId {
        &self.workers[0]
    }

    /// Events that the class has taken in.
    pub(crate) fn events(&self) -> u64 {
        self.echo.events.load(Ordering::Relaxed)
    }

    /// What a task of this bed needs to make calls.
    pub(crate) fn caller(&self, worker: &NodeId) -> Caller {
        Caller { cluster: self.cluster.clone(), worker: worker.clone(), class: self.class.clone(), payload: small() }
    }
}

/// Calls one worker.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) cluster: Cluster,
    pub(crate) worker: NodeId,
    pub(crate) class: ClassName,
    pub(crate) payload: Payload,
}

impl Caller {
    pub(crate) async fn call(&self) {
        let reply = self.cluster.request(&self.worker, &self.class, self.payload.clone(), CallOptions::timeout(TIMEOUT)).await;
        assert_eq!(reply.expect("answered").len(), self.payload.len());
    }
}

/// A small request.
pub(crate) fn small() -> Payload {
    Payload::encode(&ByteBuf::from(vec![7; SMALL_BYTES])).expect("encodes")
}

/// How often per second something happens: `make(n)` gives the n-th of `callers` tasks the future that it repeats.
pub(crate) async fn rate<F, W>(callers: usize, duration: Duration, make: impl Fn(usize) -> F) -> f64
where
    F: Fn() -> W + Send + 'static,
    W: Future<Output = ()> + Send,
{
    let counter = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|number| {
            let (act, counter) = (make(number), Arc::clone(&counter));
            tokio::spawn(async move {
                while started.elapsed() < duration {
                    act().await;
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    counter.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// The value in the middle.
pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    percentile(&mut samples, 50)
}

/// The value below which a share of the samples lies.
pub(crate) fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    assert!(!samples.is_empty(), "something was measured");
    samples.sort_unstable_by(f64::total_cmp);
    samples[((samples.len() * percent).div_ceil(100)).saturating_sub(1)]
}
