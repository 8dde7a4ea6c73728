//! Streams under pressure (design §3): far away, stalled, too fast, too slow, too many. What they may not do is hold up anything else.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::config::Config;
use nkcluster::connection::ByteStream;
use nkcluster::job::{Classes, JobClass, RequestContext};
use nkcluster::node::Node;
use nkcluster::proto::session::STREAM_WINDOW_BYTES;
use nkcluster::transfer::{FileCalls as _, RelPath, TransferId};
use nkcluster::transport::MemoryNet;
use nkcluster::types::{NodeStatus, Payload, Transport};
use nkcluster::{Error, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::classes::Gate;
use crate::harness::{
    MemoryCluster, SocketCluster, TIMEOUT, connect_options, control_config, eventually, node_id, soon, wait_status, worker_config,
};

/// Does something with the stream of its call.
#[derive(Clone)]
pub(crate) struct Flows {
    /// `Stall` reads nothing before it is open.
    pub(crate) gate: Gate,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Flow {
    /// Reads everything; answers how much, and whether it was what it should be.
    Sink,
    /// The same, but not before the gate opens.
    Stall,
    /// Sends so much, then ends its direction.
    Source(usize),
    /// Sends back what comes.
    Mirror,
    /// Writes what comes to a file, which may be a slow one.
    File(std::path::PathBuf),
}

impl Flows {
    pub(crate) fn new() -> Self {
        Self { gate: Gate::new(false) }
    }

    pub(crate) fn classes(&self) -> Classes {
        Classes::new().with(self.clone())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::class("flow", error.to_string())
}

async fn sink(mut stream: ByteStream) -> Result<(u64, bool)> {
    let (mut count, mut intact, mut buffer) = (0, true, vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut buffer).await.map_err(failed)? {
            0 => return Ok((count as u64, intact)),
            read => {
                intact &= is_intact(count, &buffer[..read]);
                count += read;
            }
        }
    }
}

impl JobClass for Flows {
    const NAME: &'static str = "flows";
    type Request = Flow;
    type Reply = (u64, bool);

    async fn request(&self, mut ctx: RequestContext, flow: Flow) -> Result<(u64, bool)> {
        let mut stream = ctx.open_stream().ok_or_else(|| Error::class("flow", "no stream"))?;
        match flow {
            Flow::Sink => sink(stream).await,
            Flow::Stall => {
                self.gate.pass().await;
                sink(stream).await
            }
            Flow::Source(count) => {
                stream.write_all(&content(count)).await.map_err(failed)?;
                stream.shutdown().await.map_err(failed)?;
                Ok((count as u64, true))
            }
            Flow::Mirror => {
                let (mut reads, mut writes) = tokio::io::split(stream);
                let count = tokio::io::copy(&mut reads, &mut writes).await.map_err(failed)?;
                writes.shutdown().await.map_err(failed)?;
                Ok((count, true))
            }
            Flow::File(path) => {
                let mut file = tokio::fs::File::options().write(true).open(path).await.map_err(failed)?;
                let count = tokio::io::copy(&mut stream, &mut file).await.map_err(failed)?;
                file.flush().await.map_err(failed)?;
                Ok((count, true))
            }
        }
    }
}

/// What streams carry, over and over; its length is prime, so that no piece looks like the one beside it.
static BLOCK: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(65_521).collect());

fn content(count: usize) -> Vec<u8> {
    let mut content = BLOCK.repeat(count / BLOCK.len() + 1);
    content.truncate(count);
    content
}

/// Whether these are the bytes of [`content`] from a place on.
fn is_intact(mut at: usize, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let expected = &BLOCK[at % BLOCK.len()..];
        let (piece, rest) = bytes.split_at(bytes.len().min(expected.len()));
        if piece != &expected[..piece.len()] {
            return false;
        }
        (at, bytes) = (at + piece.len(), rest);
    }
    true
}

/// Starts a call with a stream.
pub(crate) async fn open(cluster: &Cluster, node: &str, flow: &Flow) -> (tokio::task::JoinHandle<Result<(u64, bool)>>, ByteStream) {
    let class = Flows::NAME.parse().expect("a name");
    let request = Payload::encode(flow).expect("encodes");
    let options = CallOptions::timeout(Duration::from_secs(600));
    let (answer, stream) = cluster.request_with_stream(&node_id(node), &class, request, options).await.expect("open");
    (tokio::spawn(async move { answer.wait().await?.decode() }), stream)
}

/// Pings and calls are answered, and the worker is still held under the same term.
pub(crate) async fn is_served(cluster: &Cluster, node: &str) {
    let before = cluster.info(&node_id(node), TIMEOUT).await.expect("known");
    for _ in 0..50 {
        cluster.ping(&node_id(node), TIMEOUT).await.expect("answered");
    }
    let after = cluster.info(&node_id(node), TIMEOUT).await.expect("known");
    assert_eq!((after.status, after.proxies[0].term), (NodeStatus::Ready, before.proxies[0].term));
}

/// Bytes per second of virtual time, to a worker that is 100 ms away and back.
async fn rate_over_100_ms(bytes: usize, streams: usize) -> f64 {
    let (net, dir) = (MemoryNet::new(), tempfile::tempdir().expect("a directory"));
    for (from, to) in [("w1", "c1"), ("c1", "w1")] {
        net.set_delay(from, to, Duration::from_millis(50));
        net.set_buffer(from, to, 64 << 20);
    }
    let at = "nkcluster://c1;transport=memory";
    let flows = Flows::new();
    let slow = |config: &mut Config| config.ping_time = Duration::from_secs(5);
    let (mut control, mut worker) = (control_config(&dir, "c1", at), worker_config(&dir, "w1", at));
    slow(&mut control);
    slow(&mut worker);
    let control = Node::start_in(&net, control, flows.classes()).await.expect("starts");
    let _worker = Node::start_in(&net, worker, flows.classes()).await.expect("starts");
    let cluster = control.cluster().expect("a control node");
    wait_status(&cluster, "w1", NodeStatus::Ready).await;
    let began = Instant::now();
    let mut copies = JoinSet::new();
    let sent = Arc::new(content(bytes / streams));
    for _ in 0..streams {
        let (answer, mut stream) = open(&cluster, "w1", &Flow::Sink).await;
        let sent = Arc::clone(&sent);
        copies.spawn(async move {
            stream.write_all(&sent).await.expect("open");
            stream.shutdown().await.expect("ends");
            let received = answer.await.expect("runs").expect("answered");
            assert_eq!(received, (sent.len() as u64, true));
        });
    }
    copies.join_all().await;
    let rate = bytes as f64 / began.elapsed().as_secs_f64();
    println!("{streams} streams over 100 ms: {:.1} MB/s", rate / 1e6);
    rate
}

#[tokio::test(start_paused = true)]
async fn a_stream_to_a_worker_far_away_is_not_held_to_its_first_window() {
    let first_window = STREAM_WINDOW_BYTES as f64 / 0.1;
    let rate = rate_over_100_ms(64 << 20, 1).await;
    assert!(rate > 10.0 * first_window, "{:.1} MB/s", rate / 1e6);
}

#[tokio::test(start_paused = true)]
async fn many_streams_to_a_worker_far_away_are_all_intact() {
    let rate = rate_over_100_ms(32 << 20, 64).await;
    assert!(rate > 5.0 * STREAM_WINDOW_BYTES as f64 / 0.1, "{:.1} MB/s", rate / 1e6);
}

#[tokio::test]
async fn a_stalled_reader_holds_up_nobody_and_gets_everything_afterwards() {
    for transport in [Transport::Tcp, Transport::Tls] {
        let flows = Flows::new();
        let c = SocketCluster::start(flows.classes()).await;
        let _worker = c.worker("w1", transport, flows.classes()).await;
        let client = Cluster::connect(connect_options(vec![c.at(transport)])).await.expect("connects");
        let sent = Arc::new(content(6 << 20));
        let mut stuck = JoinSet::new();
        for cluster in [&c.cluster, &client] {
            for _ in 0..4 {
                let (answer, mut stream) = open(cluster, "w1", &Flow::Stall).await;
                let sent = Arc::clone(&sent);
                stuck.spawn(async move {
                    stream.write_all(&sent).await.expect("open");
                    stream.shutdown().await.expect("ends");
                    assert_eq!(answer.await.expect("runs").expect("answered"), (sent.len() as u64, true));
                });
            }
        }
        flows.gate.entered(8).await;
        is_served(&c.cluster, "w1").await;
        is_served(&client, "w1").await;
        assert!(stuck.try_join_next().is_none(), "nobody reads, so nothing can be over");
        flows.gate.open();
        soon("what was stalled", stuck.join_all()).await;
    }
}

#[tokio::test]
async fn a_slow_disk_holds_up_nobody_and_gets_everything() {
    let flows = Flows::new();
    let c = MemoryCluster::start(flows.classes()).await;
    let _worker = c.worker("w1", flows.classes()).await;
    let path = c.dir.path().join("disk");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).expect("a FIFO");
    let sent = content(3 << 20);
    // Opening waits for the other end, which is opened by the worker.
    let disk = tokio::spawn(tokio::fs::File::open(path.clone()));
    let (answer, mut stream) = open(&c.cluster, "w1", &Flow::File(path)).await;
    let mut disk = soon("the disk", disk).await.expect("runs").expect("opens");
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        stream.write_all(&copy).await.expect("open");
        stream.shutdown().await.expect("ends");
    });
    let mut written = Vec::new();
    // Each piece takes the disk as long as fifty calls take.
    for _ in 0..6 {
        is_served(&c.cluster, "w1").await;
        assert!(!writing.is_finished(), "the disk has taken {} bytes of {}", written.len(), sent.len());
        let mut piece = vec![0; 64 * 1024];
        soon("a piece", disk.read_exact(&mut piece)).await.expect("readable");
        written.extend(piece);
    }
    soon("the rest", disk.read_to_end(&mut written)).await.expect("readable");
    soon("the writer", writing).await.expect("all was taken");
    assert_eq!(soon("the answer", answer).await.expect("runs").expect("answered").0, sent.len() as u64);
    assert!(written == sent);
}

#[tokio::test]
async fn a_transfer_and_its_slow_neighbours_do_not_hold_up_each_other() {
    let flows = Flows::new();
    let c = MemoryCluster::start(flows.classes()).await;
    let _worker = c.worker("w1", flows.classes()).await;
    let (_answer, mut stalled) = open(&c.cluster, "w1", &Flow::Stall).await;
    let stuck = tokio::spawn(async move { stalled.write_all(&content(4 << 20)).await });
    let file = c.dir.path().join("file");
    std::fs::write(&file, content(5 << 20)).expect("written");
    let remote = RelPath::parse("copy").expect("a path");
    let w1 = node_id("w1");
    let sent = c.cluster.send_file(&w1, &file, &remote, TransferId::random(), TIMEOUT, |_| ());
    soon("the transfer", sent).await.expect("sent");
    assert!(std::fs::read(c.dir.path().join("w1/files/copy")).expect("there") == content(5 << 20));
    assert!(!stuck.is_finished());
    stuck.abort();
}

#[tokio::test]
async fn a_thousand_streams_at_once_are_intact_and_leave_pings_and_calls_untouched() {
    const STREAMS: usize = 1000;
    let flows = Flows::new();
    // Client, control node and worker share one thread here, so that a ping waits for the work of them all.
    let slow = |config: &mut Config| config.ping_time = Duration::from_secs(5);
    let many = |config: &mut Config| {
        slow(config);
        config.max_calls = 2 * STREAMS;
    };
    let c = MemoryCluster::start_with(flows.classes(), slow).await;
    let _worker = c.worker_with("w1", flows.classes(), many).await;
    let common = Arc::new(content(40_000 + STREAMS));
    let half_way = Arc::new(Barrier::new(STREAMS + 1));
    let mut copies = JoinSet::new();
    for number in 0..STREAMS {
        let (answer, stream) = open(&c.cluster, "w1", &Flow::Mirror).await;
        let (half_way, common) = (Arc::clone(&half_way), Arc::clone(&common));
        copies.spawn(async move {
            let sent = &common[number..number + 40_000];
            let (mut reads, mut writes) = tokio::io::split(stream);
            let mut received = vec![0; 20_000];
            writes.write_all(&sent[..20_000]).await.expect("open");
            reads.read_exact(&mut received).await.expect("readable");
            half_way.wait().await;
            half_way.wait().await;
            writes.write_all(&sent[20_000..]).await.expect("open");
            writes.shutdown().await.expect("ends");
            reads.read_to_end(&mut received).await.expect("readable");
            assert!(received == sent, "stream {number}");
            assert_eq!(answer.await.expect("runs").expect("answered").0, sent.len() as u64);
        });
    }
    soon("half of everything", half_way.wait()).await;
    // All of them are open now, and go on while others are served.
    is_served(&c.cluster, "w1").await;
    half_way.wait().await;
    is_served(&c.cluster, "w1").await;
    soon("all of them", copies.join_all()).await;
    assert_eq!(c.info("w1").await.status, NodeStatus::Ready);
}

#[tokio::test]
async fn a_client_that_leaves_frees_what_its_streams_held() {
    let flows = Flows::new();
    let c = MemoryCluster::start(flows.classes()).await;
    let _worker = c.worker_with("w1", flows.classes(), |config| config.max_calls = 64).await;
    let client = c.admin().await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(open(&client, "w1", &Flow::Source(4 << 20)).await);
    }
    c.net.cut("admin", "c1");
    for (answer, mut stream) in held {
        let mut rest = Vec::new();
        assert!(soon("the end", stream.read_to_end(&mut rest)).await.is_err());
        assert!(soon("the answer", answer).await.expect("runs").is_err());
    }
    // Their handlers end on the worker, so that there is room for as many again.
    let again = async || {
        let mut others = Vec::new();
        for _ in 0..50 {
            let (answer, mut stream) = open(&c.cluster, "w1", &Flow::Sink).await;
            others.push(async move { stream.shutdown().await.is_ok() && answer.await.is_ok_and(|answer| answer.is_ok()) });
        }
        let mut fine = true;
        for other in others {
            fine &= other.await;
        }
        fine
    };
    eventually("room for all of them", again).await;
}
