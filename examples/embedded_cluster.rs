//! A cluster inside an application, over TLS: an operator's link, a file, a worker that dies and returns.
//!
//! ```sh
//! cargo run --example embedded_cluster
//! ```
//!
//! A node is a value in a program, not a program: this application has three of them, and the daemon is nothing else. Each makes itself a certificate at its first start.
//! It needs no authority behind it: the handshake proves on both sides that the secret is known, bound to this very TLS session, so nobody in between can play either.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use nkcluster::Result;
use nkcluster::cluster::{Cluster, ConnectOptions};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::Classes;
use nkcluster::node::{Node, NodeHandle};
use nkcluster::transfer::{FileCalls, RelPath, TransferId};
use nkcluster::types::{NodeId, NodeStatus, NodeUri, Secret};

const PATIENCE: Duration = Duration::from_secs(20);

/// What all nodes of the application have in common.
struct App {
    dir: tempfile::TempDir,
    secret: Secret,
}

impl App {
    fn common(&self, mut config: Config, id: &str) -> Result<Config> {
        config.node_id = Some(NodeId::new(id)?);
        config.cluster_name = "our-application".to_owned();
        config.password = self.secret.clone();
        config.state_dir = self.dir.path().join(id);
        config.classes = ClassList::All;
        // Short times, so that the example sees a death in seconds. A cluster across the world keeps the defaults.
        config.ping_time = Duration::from_secs(1);
        Ok(config)
    }

    async fn control(&self) -> Result<NodeHandle, Box<dyn Error>> {
        let mut config = self.common(Config::control(), "c1")?;
        config.listen = vec!["nkcluster://127.0.0.1:0;transport=tls".parse()?];
        Ok(Node::start(config, Classes::new()).await?)
    }

    /// A worker listens nowhere: it dials, and so works behind any firewall that lets it out.
    async fn worker(&self, id: &str, cluster_addr: &[NodeUri]) -> Result<NodeHandle, Box<dyn Error>> {
        let mut config = self.common(Config::worker(), id)?;
        config.cluster_addr = cluster_addr.to_vec();
        Ok(Node::start(config, Classes::new()).await?)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // 256 random bits: the handshake is safe with a weaker secret only as long as nobody can try guesses.
    let secret = Secret::new(format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>()));
    let app = App { dir: tempfile::tempdir()?, secret };
    let control = app.control().await?;
    let w1 = app.worker("w1", control.listen()).await?;
    let w2 = app.worker("w2", control.listen()).await?;

    // An operator, or another program, needs an address and the secret. What it gets is the same handle that a control node has.
    let options = ConnectOptions::new(control.listen().to_vec(), "our-application", app.secret.clone());
    let cluster = Cluster::connect(options).await?;
    let (id1, id2) = (w1.node_id().clone(), w2.node_id().clone());
    for id in [&id1, &id2] {
        let info = cluster.wait_status(id, NodeStatus::Ready, PATIENCE).await?;
        println!("{id} is {} at {}", info.status, info.remote.as_deref().unwrap_or("?"));
    }

    let local = app.dir.path().join("model.bin");
    std::fs::write(&local, vec![42; 3_000_000])?;
    let remote = RelPath::parse("models/model.bin")?;
    // The same id again would resume a transfer that was cut. It ends with `timeout` when nothing moves for so long.
    let sent = cluster.send_file(&id1, &local, &remote, TransferId::random(), PATIENCE, |_| ()).await?;
    println!("sent {} bytes to {id1}, xxh3 {}", sent.bytes, sent.xxh3);

    let before = cluster.info(&id1, PATIENCE).await?.incarnation;
    // Not stopped: dropped in the middle of whatever it does, as if its machine had lost power.
    drop(w1);
    cluster.wait_status(&id1, NodeStatus::NotConnected, PATIENCE).await?;
    let error = cluster.ping(&id1, PATIENCE).await.expect_err("nobody is there");
    println!("{id1} is gone: {} ({})", error, error.code());
    println!("{id2} is not: it answers in {:?}", cluster.ping(&id2, PATIENCE).await?);

    // It returns under its id, as a new incarnation: calls and tasks of the old one are never mistaken for its own.
    let w1 = app.worker("w1", control.listen()).await?;
    let after = cluster.wait_status(&id1, NodeStatus::Ready, PATIENCE).await?.incarnation;
    assert_ne!(before, after);
    let back = app.dir.path().join("back.bin");
    let fetched = cluster.fetch_file(&id1, &remote, &back, TransferId::random(), PATIENCE, |_| ()).await?;
    println!("{id1} is back, and its file has still xxh3 {}", fetched.xxh3);
    assert_eq!(fetched.xxh3, sent.xxh3);
    assert!(same(&local, &back)?);

    for node in [w1, w2, control] {
        node.stop().await;
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> std::io::Result<bool> {
    Ok(std::fs::read(one)? == std::fs::read(other)?)
}
