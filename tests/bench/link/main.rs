//! The link and what stands on it, beside a bare tokio baseline measured in the same run.
//!
//! `cargo bench --bench link`. Rows are described in `src/docs/benches.md`; with `NKCLUSTER_BENCH_JSON=FILE` they are appended there as NDJSON, a relative path
//! counts from the root of the workspace. `NKCLUSTER_BENCH_SECONDS` bounds each measurement (default 2).

mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nkcluster::cluster::{CallOptions, Cluster, random_incarnation};
use nkcluster::config::{ClassList, Config};
use nkcluster::connection::establish::{Expect, Order, Party, dial_and_establish};
use nkcluster::job::{Classes, JobClass, RequestContext};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::proto::auth::{Identity, KeyringInput, Role, VERSIONS};
use nkcluster::transport::DialOptions;
use nkcluster::types::{ClassName, NodeId, NodeStatus, Payload, Secret};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use self::report::Report;

/// Payload of a small request, before its encoding.
const SMALL_BYTES: usize = 64;
/// Header of frame and call around it: the baseline echoes as many bytes.
const SMALL_FRAME_BYTES: usize = SMALL_BYTES + 80;
/// One write of the stream baseline.
const CHUNK_BYTES: usize = 64 * 1024;
const TIMEOUT: Duration = Duration::from_secs(30);

struct Echo;

impl JobClass for Echo {
    const NAME: &'static str = "echo";
    type Request = serde_bytes::ByteBuf;
    type Reply = serde_bytes::ByteBuf;

    async fn request(&self, mut ctx: RequestContext, request: serde_bytes::ByteBuf) -> nkcluster::Result<serde_bytes::ByteBuf> {
        if let Some(mut stream) = ctx.open_stream() {
            // A sink: counts what comes until the end.
            let mut buffer = vec![0; 256 * 1024];
            let mut total = 0_u64;
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) => break,
                    Ok(count) => total += count as u64,
                    Err(error) => return Err(nkcluster::Error::class("stream", error.to_string())),
                }
            }
            return Ok(serde_bytes::ByteBuf::from(total.to_be_bytes()));
        }
        Ok(request)
    }
}

struct Bed {
    _dir: tempfile::TempDir,
    control: NodeHandle,
    _worker: NodeHandle,
    cluster: Cluster,
    worker: NodeId,
}

fn config(mut config: Config, id: &str, dir: &std::path::Path) -> Config {
    config.node_id = Some(NodeId::new(id).expect("valid"));
    config.password = Secret::new("a secret of benches");
    config.pbkdf2_iters = 1000;
    config.state_dir = dir.join(id);
    config.classes = ClassList::All;
    config.accept_rate = 1_000_000;
    config.max_connections = 100_000;
    config
}

impl Bed {
    async fn start(transport: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut control = config(Config::control(), "c1", dir.path());
        control.listen = vec![format!("nkcluster://127.0.0.1:0;transport={transport}").parse().expect("valid")];
        let control = Node::start(control, Classes::new()).await.expect("the control node starts");
        let mut worker = config(Config::worker(), "w1", dir.path());
        worker.cluster_addr = control.listen().to_vec();
        let worker = Node::start(worker, Classes::new().with(Echo)).await.expect("the worker starts");
        let cluster = control.cluster().expect("a control node");
        let id = worker.node_id().clone();
        let deadline = Instant::now() + TIMEOUT;
        while !cluster.info(&id, TIMEOUT).await.is_ok_and(|info| info.status == NodeStatus::Ready) {
            assert!(Instant::now() < deadline, "the worker is not ready in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { _dir: dir, control, _worker: worker, cluster, worker: id }
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut report = Report::new();
    runtime.block_on(async {
        let bed = Bed::start("tcp").await;
        round_trips(&bed, &mut report).await;
        rates(&bed, &mut report).await;
        streams("stream_tcp", &bed, &mut report, stream_baseline_tcp().await).await;
        drop(bed);
        let bed = Bed::start("tls").await;
        streams("stream_tls", &bed, &mut report, stream_baseline_tls().await).await;
        accepts(&bed, &mut report).await;
    });
    report.finish(&["rtt_p50", "rps_1", "rps_16", "rps_64", "rps_256", "stream_tcp", "stream_tls", "accepts"]);
}

fn seconds() -> Duration {
    let seconds = std::env::var("NKCLUSTER_BENCH_SECONDS").ok().and_then(|text| text.parse::<f64>().ok());
    Duration::from_secs_f64(seconds.unwrap_or(2.0))
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// A server that returns what it gets, in pieces of the size of a small request's frame.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true).expect("a TCP socket");
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count) = stream.read(&mut buffer).await {
                    if count == 0 || stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

async fn bare_round_trips(duration: Duration) -> Vec<Duration> {
    let addr = echo_server().await;
    // In a task of its own, as the callers of the cluster are.
    tokio::spawn(async move {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        stream.set_nodelay(true).expect("a TCP socket");
        let request = [7; SMALL_FRAME_BYTES];
        let mut reply = [0; SMALL_FRAME_BYTES];
        let mut samples = Vec::new();
        let end = Instant::now() + duration;
        while Instant::now() < end {
            let sent = Instant::now();
            stream.write_all(&request).await.expect("writes");
            stream.read_exact(&mut reply).await.expect("reads");
            samples.push(sent.elapsed());
        }
        samples
    })
    .await
    .expect("no panic")
}

fn small() -> Payload {
    Payload::encode(&serde_bytes::ByteBuf::from(vec![7; SMALL_BYTES])).expect("encodes")
}

async fn call(cluster: &Cluster, worker: &NodeId, class: &ClassName, payload: &Payload) {
    let reply = cluster.request(worker, class, payload.clone(), CallOptions::timeout(TIMEOUT)).await;
    assert_eq!(reply.expect("answered").len(), payload.len());
}

async fn round_trips(bed: &Bed, report: &mut Report) {
    let duration = seconds();
    // Alternating, so that the machine's noise falls on both.
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        bare.extend(bare_round_trips(duration / 4).await);
        let (cluster, worker) = (bed.cluster.clone(), bed.worker.clone());
        let part = tokio::spawn(async move {
            let (class, payload) = (ClassName::new("echo").expect("valid"), small());
            let mut samples = Vec::new();
            let end = Instant::now() + duration / 4;
            while Instant::now() < end {
                let sent = Instant::now();
                call(&cluster, &worker, &class, &payload).await;
                samples.push(sent.elapsed());
            }
            samples
        });
        ours.extend(part.await.expect("no panic"));
    }
    let micros = |samples| median(samples).as_secs_f64() * 1e6;
    report.row("rtt_p50", micros(ours), "us", micros(bare));
}

async fn rates(bed: &Bed, report: &mut Report) {
    for callers in [1_usize, 16, 64, 256] {
        let bare = bare_rate(callers, seconds()).await;
        let counter = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (cluster, worker) = (bed.cluster.clone(), bed.worker.clone());
                let (counter, stop) = (Arc::clone(&counter), Arc::clone(&stop));
                tokio::spawn(async move {
                    let (class, payload) = (ClassName::new("echo").expect("valid"), small());
                    while !stop.load(Ordering::Relaxed) {
                        call(&cluster, &worker, &class, &payload).await;
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        tokio::time::sleep(seconds()).await;
        stop.store(true, Ordering::Relaxed);
        let elapsed = started.elapsed();
        let count = counter.load(Ordering::Relaxed);
        for task in tasks {
            task.await.expect("no panic");
        }
        report.row(&format!("rps_{callers}"), count as f64 / elapsed.as_secs_f64(), "1/s", bare);
    }
}

/// As many callers as connections, each with one message under way: what the same sockets do without any protocol.
async fn bare_rate(callers: usize, duration: Duration) -> f64 {
    let addr = echo_server().await;
    let counter = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(addr).await.expect("connects");
                stream.set_nodelay(true).expect("a TCP socket");
                let request = [7; SMALL_FRAME_BYTES];
                let mut reply = [0; SMALL_FRAME_BYTES];
                while started.elapsed() < duration {
                    stream.write_all(&request).await.expect("writes");
                    stream.read_exact(&mut reply).await.expect("reads");
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

/// MiB/s of a stream from the handle to the worker, which throws the bytes away.
async fn streams(name: &str, bed: &Bed, report: &mut Report, baseline: f64) {
    let class = ClassName::new("echo").expect("valid");
    let (pending, mut stream) = bed
        .cluster
        .request_with_stream(&bed.worker, &class, small(), CallOptions::timeout(TIMEOUT + seconds()))
        .await
        .expect("the stream opens");
    let chunk = vec![7; CHUNK_BYTES];
    let started = Instant::now();
    let mut total = 0_u64;
    while started.elapsed() < seconds() {
        stream.write_all(&chunk).await.expect("writes");
        total += CHUNK_BYTES as u64;
    }
    stream.shutdown().await.expect("shuts down");
    let reply: serde_bytes::ByteBuf = pending.wait().await.expect("answered").decode().expect("a count");
    assert_eq!(reply.as_ref(), total.to_be_bytes(), "every byte arrived");
    report.row(name, total as f64 / started.elapsed().as_secs_f64() / 1_048_576.0, "MiB/s", baseline);
}

async fn copy_rate(mut writer: impl AsyncWriteExt + Unpin + Send + 'static, mut reader: impl AsyncReadExt + Unpin + Send + 'static) -> f64 {
    let started = Instant::now();
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0_u64;
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => return total,
                Ok(count) => total += count as u64,
            }
        }
    });
    let duration = seconds();
    let chunk = vec![7; CHUNK_BYTES];
    while started.elapsed() < duration {
        writer.write_all(&chunk).await.expect("writes");
    }
    writer.shutdown().await.expect("shuts down");
    drop(writer);
    let total = reading.await.expect("no panic");
    total as f64 / started.elapsed().as_secs_f64() / 1_048_576.0
}

async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, far) = (near.expect("connects"), far.expect("accepts").0);
    near.set_nodelay(true).expect("a TCP socket");
    (near, far)
}

async fn stream_baseline_tcp() -> f64 {
    let (near, far) = socket_pair().await;
    copy_rate(near, far).await
}

async fn stream_baseline_tls() -> f64 {
    let (near, far) = socket_pair().await;
    let (client, server) = report::bare_tls(near, far).await;
    copy_rate(client, server).await
}

/// Handshakes per second over TLS, both ends in this process: dial, TLS, four messages, trust.
async fn accepts(bed: &Bed, report: &mut Report) {
    let bare = bare_accepts().await;
    let uri = bed.control.listen()[0].clone();
    let identity = Identity {
        cluster: "nkcluster".to_owned(),
        role: Role::Admin,
        id: NodeId::new("bench").expect("valid"),
        incarnation: random_incarnation(),
        versions: VERSIONS.to_vec(),
        features: Vec::new(),
    };
    let input = KeyringInput {
        cluster: "nkcluster".to_owned(),
        iterations: 1000,
        password: Some(Secret::new("a secret of benches")),
        ..KeyringInput::default()
    };
    let party = Party::prepare(identity, input).await.expect("keys");
    let counter = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let duration = seconds();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (uri, party, counter) = (uri.clone(), party.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                let expect = Expect { role: Role::Control, id: None };
                while started.elapsed() < duration {
                    dial_and_establish(std::slice::from_ref(&uri), &party, &expect, Order::AsGiven, &DialOptions::default())
                        .await
                        .expect("let in");
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    report.row("accepts", counter.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64(), "1/s", bare);
}

/// The same TCP and TLS handshakes without ours.
async fn bare_accepts() -> f64 {
    let (listener, acceptor, connector) = report::bare_tls_listener().await;
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.read_u8().await;
                }
            });
        }
    });
    let counter = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let duration = seconds();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (connector, counter) = (connector.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                while started.elapsed() < duration {
                    let stream = TcpStream::connect(addr).await.expect("connects");
                    let name = "nkcluster".try_into().expect("a valid name");
                    let stream = connector.connect(name, stream).await.expect("TLS");
                    counter.fetch_add(1, Ordering::Relaxed);
                    drop(stream);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    counter.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}
