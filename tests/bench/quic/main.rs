//! Links over QUIC, beside tls and a bare copy loop of quinn in the same run.
//!
//! `cargo bench --bench quic`; rows and variables as those of `--bench link`.

#[path = "../link/report.rs"]
#[expect(dead_code, reason = "the baselines of TLS over TCP are for the other bench")]
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{Classes, JobClass, RequestContext};
use nkcluster::node::{Node, NodeHandle};
use nkcluster::types::{ClassName, NodeId, NodeStatus, Payload, Secret};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::report::{Budget, Report, Row};

const TIMEOUT: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 64 * 1024;

/// Throws away what a stream brings, and says how much it was; else answers at once.
struct Sink;

impl JobClass for Sink {
    const NAME: &'static str = "sink";
    type Request = ();
    type Reply = u64;

    async fn request(&self, mut ctx: RequestContext, (): ()) -> nkcluster::Result<u64> {
        let Some(mut stream) = ctx.open_stream() else { return Ok(0) };
        let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return Ok(total),
                Ok(count) => total += count as u64,
                Err(error) => return Err(nkcluster::Error::class("stream", error.to_string())),
            }
        }
    }
}

struct Bed {
    _dir: tempfile::TempDir,
    _nodes: [NodeHandle; 2],
    cluster: Cluster,
    worker: NodeId,
}

impl Bed {
    async fn start(transport: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = |mut config: Config, id: &str| {
            config.node_id = Some(NodeId::new(id).expect("valid"));
            config.password = Secret::new("a secret of benches");
            config.pbkdf2_iters = 1000;
            config.state_dir = dir.path().join(id);
            config.classes = ClassList::All;
            config
        };
        let mut control = config(Config::control(), "c1");
        control.listen = vec![format!("nkcluster://127.0.0.1:0;transport={transport}").parse().expect("valid")];
        let control = Node::start(control, Classes::new()).await.expect("the control node starts");
        let mut worker = config(Config::worker(), "w1");
        worker.cluster_addr = control.listen().to_vec();
        let worker = Node::start(worker, Classes::new().with(Sink)).await.expect("the worker starts");
        let cluster = control.cluster().expect("a control node");
        let id = worker.node_id().clone();
        let deadline = Instant::now() + TIMEOUT;
        while !cluster.info(&id, TIMEOUT).await.is_ok_and(|info| info.status == NodeStatus::Ready) {
            assert!(Instant::now() < deadline, "the worker is not ready in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { _dir: dir, _nodes: [control, worker], cluster, worker: id }
    }

    /// MiB/s of a stream to the worker, and round trips of requests meanwhile, in microseconds.
    async fn stream(&self) -> (f64, Vec<f64>) {
        let class = ClassName::new("sink").expect("valid");
        let payload = Payload::encode(&()).expect("encodes");
        let options = CallOptions::timeout(TIMEOUT + seconds());
        let opened = self.cluster.request_with_stream(&self.worker, &class, payload, options).await;
        let (pending, mut stream) = opened.expect("the stream opens");
        let busy = {
            let (cluster, worker) = (self.cluster.clone(), self.worker.clone());
            tokio::spawn(async move { round_trips(&cluster, &worker).await })
        };
        let (chunk, started, mut total) = (vec![7; CHUNK_BYTES], Instant::now(), 0_u64);
        while started.elapsed() < seconds() {
            stream.write_all(&chunk).await.expect("writes");
            total += CHUNK_BYTES as u64;
        }
        stream.shutdown().await.expect("shuts down");
        let reply: u64 = pending.wait().await.expect("answered").decode().expect("a count");
        assert_eq!(reply, total, "every byte arrived");
        let rate = total as f64 / started.elapsed().as_secs_f64() / 1_048_576.0;
        (rate, busy.await.expect("no panic"))
    }
}

async fn round_trips(cluster: &Cluster, worker: &NodeId) -> Vec<f64> {
    let (class, payload) = (ClassName::new("sink").expect("valid"), Payload::encode(&()).expect("encodes"));
    let (mut samples, end) = (Vec::new(), Instant::now() + seconds());
    while Instant::now() < end {
        let sent = Instant::now();
        cluster.request(worker, &class, payload.clone(), CallOptions::timeout(TIMEOUT)).await.expect("answered");
        samples.push(sent.elapsed().as_secs_f64() * 1e6);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    samples
}

fn at(mut samples: Vec<f64>, percent: usize) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() * percent / 100]
}

/// To be watched: over UDP in user space the system's own figures set no measure.
const ROWS: &[(&str, Budget)] = &[("rtt_quic", Budget::None), ("stream_quic", Budget::None), ("busy_p99_quic", Budget::None)];

fn seconds() -> Duration {
    let seconds = std::env::var("NKCLUSTER_BENCH_SECONDS").ok().and_then(|text| text.parse::<f64>().ok());
    Duration::from_secs_f64(seconds.unwrap_or(2.0))
}

/// MiB/s over one stream of quinn as it is.
async fn bare_quinn() -> f64 {
    let made = rcgen::generate_simple_self_signed(vec!["nkcluster".to_owned()]).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&rustls::version::TLS13]);
    let server = server.expect("versions").with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).expect("a pair");
    let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).expect("fit for QUIC")));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let client = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let client = client.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).expect("fit for QUIC")));
    let local = ([127, 0, 0, 1], 0).into();
    let (server, dialler) = (quinn::Endpoint::server(server, local).expect("binds"), quinn::Endpoint::client(local).expect("binds"));
    let connecting = dialler.connect_with(client, server.local_addr().expect("bound"), "nkcluster").expect("starts");
    let accept = async { server.accept().await.expect("a connection").await.expect("accepts") };
    let (near, far) = tokio::join!(connecting, accept);
    let near = near.expect("connects");
    let reading = tokio::spawn(async move {
        let (mut stream, mut buffer, mut total) = (far.accept_uni().await.expect("a stream"), vec![0; 256 * 1024], 0);
        while let Some(count) = stream.read(&mut buffer).await.expect("reads") {
            total += count;
        }
        total
    });
    let mut stream = near.open_uni().await.expect("opens");
    let (chunk, started) = (vec![7; CHUNK_BYTES], Instant::now());
    while started.elapsed() < seconds() {
        stream.write_all(&chunk).await.expect("writes");
    }
    stream.finish().expect("finishes");
    reading.await.expect("no panic") as f64 / started.elapsed().as_secs_f64() / 1_048_576.0
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut report = Report::new(ROWS, None);
    runtime.block_on(async {
        let bare = bare_quinn().await;
        let bed = Bed::start("tls").await;
        let tls_idle = at(round_trips(&bed.cluster, &bed.worker).await, 50);
        let (_, tls_busy) = bed.stream().await;
        drop(bed);
        let bed = Bed::start("quic").await;
        report.row(Row { name: "rtt_quic", value: at(round_trips(&bed.cluster, &bed.worker).await, 50), unit: "us", baseline: tls_idle });
        let (rate, busy) = bed.stream().await;
        report.row(Row { name: "stream_quic", value: rate, unit: "MiB/s", baseline: bare });
        report.row(Row { name: "busy_p99_quic", value: at(busy, 99), unit: "us", baseline: at(tls_busy, 99) });
    });
    if report.finish(false) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
