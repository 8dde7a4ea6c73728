//! A tree is synced by the workers of a cluster, over which its files are spread.
//!
//! ```sh
//! cargo run --example sync_tree
//! ```
//!
//! The application is the controller: it lists both trees, compares them and sends batches to the workers, which share its file system. A second sync finds nothing to do.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nkcluster::cluster::Cluster;
use nkcluster::config::{ClassList, Config};
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::types::{NodeId, NodeStatus};
use nkcluster_file_sync::{Control, End, FileSync, Options, Order, RemoteConfig, Remotes, Summary, Task, Told, Workers, run};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);
const FILES: usize = 1_000;

async fn start(config: Config, id: &str, dir: &Path) -> Result<NodeHandle, Box<dyn Error>> {
    let mut config = config;
    config.node_id = Some(NodeId::new(id)?);
    config.state_dir = dir.join(id);
    // A class that reads and writes anywhere must be enabled, and granted to.
    config.classes = ClassList::All;
    config.grants = ClassList::All;
    // So few rounds only because nobody else can reach this cluster.
    config.pbkdf2_iters = 1_000;
    Ok(Node::start(config, Classes::new().with_tasks(FileSync::new(RemoteConfig::default(), 4))).await?)
}

/// Syncs by all workers; prints what went wrong.
async fn sync(cluster: &Cluster, source: &Path, destination: &Path) -> Result<(Summary, Vec<String>), Box<dyn Error>> {
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or("the path is no text");
    let order = Order::new(Task::Sync, text(source)?, text(destination)?, &Options::default());
    let workers = Workers::new(cluster.clone(), "worker".parse()?);
    let (told, mut hears) = mpsc::channel(64);
    let hearing = tokio::spawn(async move {
        while let Some(told) = hears.recv().await {
            if let Told::Failed { path, error } = told {
                eprintln!("{path}: {error}");
            }
        }
    });
    let control = Control::default();
    let summary = run(&order, &workers, &Arc::new(Remotes::new(RemoteConfig::default())), &control, told).await;
    hearing.await?;
    Ok((summary, control.snapshot().workers.into_keys().collect()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut config = Config::control();
    config.listen = vec!["nkcluster://127.0.0.1:0;transport=tcp".parse()?];
    let control = start(config, "c1", dir.path()).await?;
    let mut workers = Vec::new();
    for id in ["w1", "w2"] {
        let mut config = Config::worker();
        config.cluster_addr = control.listen().to_vec();
        config.meta = "worker".parse()?;
        workers.push(start(config, id, dir.path()).await?);
    }
    let cluster = control.cluster().ok_or("a control node has a handle")?;
    for worker in &workers {
        cluster.wait_status(worker.node_id(), NodeStatus::Ready, PATIENCE).await?;
    }

    let (source, destination) = (dir.path().join("source"), dir.path().join("destination"));
    for number in 0..FILES {
        let directory = source.join(format!("{:02}", number % 20));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(number.to_string()), vec![b'x'; number])?;
    }
    let (summary, by) = sync(&cluster, &source, &destination).await?;
    assert_eq!(summary.end, End::Success, "{:?}", summary.errors);
    println!("{} files, {} bytes, by {}", summary.stats.transfers, summary.stats.bytes, by.join(" and "));
    let (again, _) = sync(&cluster, &source, &destination).await?;
    assert_eq!(again.end, End::Success, "{:?}", again.errors);
    println!("again: {} compared, {} copied", again.stats.checks, again.stats.transfers);

    for worker in workers {
        worker.stop().await;
    }
    control.stop().await;
    Ok(())
}
