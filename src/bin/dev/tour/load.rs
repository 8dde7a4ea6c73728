//! A small constant load through the public API, in which every single request counts.

use std::time::Duration;

use nkcluster::cluster::{CallOptions, Cluster, ConnectOptions};
use nkcluster::config::Config;
use nkcluster::types::{NodeId, NodeUri, Secret};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use super::unexpected;
use crate::arguments::uris;
use crate::failure::{Failure, Outcome};

/// Pause between two requests.
const PACE: Duration = Duration::from_millis(20);
/// Far longer than any of them needs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A load that runs, until [`finish`](Self::finish).
pub(super) struct Load {
    stop: oneshot::Sender<()>,
    work: JoinHandle<Outcome<usize>>,
}

impl Load {
    /// Connects to any of the control nodes and begins to call these workers in turn.
    pub(super) async fn start(connect: &str, workers: Vec<NodeId>) -> Outcome<Self> {
        let controls: Vec<NodeUri> = uris(connect).map_err(|error| Failure::new("internal", error.to_string()))?.0;
        let options = ConnectOptions::new(controls, Config::control().cluster_name, Secret::new(Config::DEFAULT_PASSWORD));
        let cluster = Cluster::connect(options).await?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, work: tokio::spawn(work(cluster, workers, stopped)) })
    }

    /// Ends it and returns how many requests were answered; fails if any was not.
    pub(super) async fn finish(self) -> Outcome<usize> {
        // It may have ended by a failure, which it tells below.
        let _ = self.stop.send(());
        self.work.await.map_err(|error| Failure::new("internal", error.to_string()))?
    }
}

async fn work(cluster: Cluster, workers: Vec<NodeId>, mut stopped: oneshot::Receiver<()>) -> Outcome<usize> {
    let mut calls: JoinSet<Outcome> = JoinSet::new();
    let mut pace = tokio::time::interval(PACE);
    let mut answered = 0;
    for (number, worker) in workers.iter().cycle().enumerate() {
        tokio::select! {
            _ = &mut stopped => break,
            _ = pace.tick() => {}
        }
        let (cluster, worker) = (cluster.clone(), worker.clone());
        calls.spawn(async move { call(&cluster, &worker, number).await });
        while let Some(done) = calls.try_join_next() {
            done.map_err(|error| Failure::new("internal", error.to_string()))??;
            answered += 1;
        }
    }
    while let Some(done) = calls.join_next().await {
        done.map_err(|error| Failure::new("internal", error.to_string()))??;
        answered += 1;
    }
    cluster.close().await;
    Ok(answered)
}

async fn call(cluster: &Cluster, worker: &NodeId, number: usize) -> Outcome {
    let reply = cluster.call_function(worker, "echo", vec![json!(number)], CallOptions::timeout(TIMEOUT)).await;
    let reply = reply.map_err(|error| Failure::from(error).context(format_args!("request {number} of the load, to {worker}")))?;
    match reply == json!([number]) {
        true => Ok(()),
        false => Err(unexpected(format!("request {number} of the load should be answered by its number, but the answer is {reply}"))),
    }
}
