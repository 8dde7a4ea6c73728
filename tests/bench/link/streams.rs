//! One stream to a worker that throws the bytes away, and pings while it takes all that it can get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::types::{ClassName, NodeId};
use serde_bytes::ByteBuf;
use tokio::io::AsyncWriteExt as _;

use crate::bare::{self, CHUNK_BYTES, mebibytes};
use crate::bed::{Bed, TIMEOUT, median, percentile, seconds, small};
use crate::report::{Report, Row};

/// Ours and the baseline in turns: many, as both are as fast as the machine lets them be in that moment.
const TURNS: u32 = 8;
/// Pause between two pings.
const PING_PAUSE: Duration = Duration::from_millis(2);

/// Throughput of one stream over the transport of this bed.
pub(crate) async fn throughput(name: &'static str, transport: &str, bed: &Bed, report: &mut Report) {
    if !report.wants(name) {
        return;
    }
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.push(bare::copy_rate(transport, seconds() / TURNS).await);
        let end = Instant::now() + seconds() / TURNS;
        ours.push(Pour::new(bed).run(move || Instant::now() < end).await);
    }
    report.row(Row { name, value: median(ours), unit: "MiB/s", baseline: median(bare) });
}

/// Pings of a worker whose only connection is full of a stream; the baseline is a bare echo over a connection of its own beside a bare copy.
pub(crate) async fn busy_pings(bed: &Bed, report: &mut Report) {
    if !report.wants("ping_p99_busy") {
        return;
    }
    let addr = bare::echo_server().await;
    let copying = tokio::spawn(bare::copy_rate("tcp", seconds()));
    let mut bare = tokio::spawn(async move {
        let mut echo = bare::Echo::connect(addr).await;
        let (mut samples, end) = (Vec::new(), Instant::now() + seconds());
        while Instant::now() < end {
            tokio::time::sleep(PING_PAUSE).await;
            let sent = Instant::now();
            echo.round_trip().await;
            samples.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        samples
    })
    .await
    .expect("no panic");
    copying.await.expect("no panic");

    let pouring = Arc::new(AtomicBool::new(true));
    let goes_on = Arc::clone(&pouring);
    let pour = tokio::spawn(Pour::new(bed).run(move || goes_on.load(Ordering::Relaxed)));
    let (cluster, worker) = (bed.cluster.clone(), bed.worker().clone());
    let mut ours = tokio::spawn(async move {
        let (mut samples, end) = (Vec::new(), Instant::now() + seconds());
        while Instant::now() < end {
            tokio::time::sleep(PING_PAUSE).await;
            samples.push(cluster.ping(&worker, TIMEOUT).await.expect("answered").as_secs_f64() * 1e6);
        }
        samples
    })
    .await
    .expect("no panic");
    pouring.store(false, Ordering::Relaxed);
    pour.await.expect("no panic");
    report.row(Row { name: "ping_p99_busy", value: percentile(&mut ours, 99), unit: "us", baseline: percentile(&mut bare, 99) });
}

/// Pours bytes into a stream.
struct Pour {
    cluster: Cluster,
    worker: NodeId,
    class: ClassName,
}

impl Pour {
    fn new(bed: &Bed) -> Self {
        Self { cluster: bed.cluster.clone(), worker: bed.worker().clone(), class: bed.class.clone() }
    }

    /// In a task of its own; returns MiB/s, up to the answer that every byte has arrived.
    async fn run(self, goes_on: impl Fn() -> bool + Send + 'static) -> f64 {
        tokio::spawn(async move {
            let options = CallOptions::timeout(TIMEOUT + seconds());
            let opened = self.cluster.request_with_stream(&self.worker, &self.class, small(), options).await;
            let (pending, mut stream) = opened.expect("the stream opens");
            let chunk = vec![7; CHUNK_BYTES];
            let started = Instant::now();
            let mut total = 0_u64;
            while goes_on() {
                stream.write_all(&chunk).await.expect("writes");
                total += CHUNK_BYTES as u64;
            }
            stream.shutdown().await.expect("shuts down");
            let reply: ByteBuf = pending.wait().await.expect("answered").decode().expect("a count");
            assert_eq!(reply.as_ref(), total.to_be_bytes(), "every byte arrived");
            mebibytes(total, started)
        })
        .await
        .expect("no panic")
    }
}
