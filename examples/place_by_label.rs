//! Three workers with labels, and requests to those that fit.
//!
//! ```sh
//! cargo run --example place_by_label
//! ```
//!
//! What a worker is good for stands in its labels: set in its configuration, changed while it runs. A selector is a boolean expression over labels and built-in
//! fields such as `status`; the control nodes evaluate it, so that asking ten thousand workers brings back only those that match.

use std::error::Error;
use std::time::Duration;

use nkcluster::Result;
use nkcluster::cluster::{CallOptions, Cluster};
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{Classes, JobClass, RequestContext, TypedCalls};
use nkcluster::node::Node;
use nkcluster::types::{NodeId, NodeStatus};
use serde::{Deserialize, Serialize};

const PATIENCE: Duration = Duration::from_secs(10);

struct Transcode;

#[derive(Serialize, Deserialize)]
struct Clip {
    name: String,
    seconds: u32,
}

impl JobClass for Transcode {
    const NAME: &'static str = "transcode";
    type Request = Clip;
    type Reply = String;

    async fn request(&self, ctx: RequestContext, clip: Clip) -> Result<String> {
        Ok(format!("{} transcoded {} s of {}", ctx.node_id(), clip.seconds, clip.name))
    }
}

/// The ids of the nodes that match.
async fn select(cluster: &Cluster, selector: &str) -> Result<Vec<NodeId>> {
    let found = cluster.nodes(Some(&selector.parse()?), PATIENCE).await?;
    Ok(found.nodes.into_iter().map(|node| node.id).collect())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut config = Config::control();
    config.node_id = Some(NodeId::new("c1")?);
    config.listen = vec!["nkcluster://127.0.0.1:0;transport=tcp".parse()?];
    config.state_dir = dir.path().join("c1");
    let control = Node::start(config, Classes::new()).await?;
    let cluster = control.cluster().ok_or("a control node has the cluster")?;

    let mut workers = Vec::new();
    for (id, labels) in [("paris", "media;gpu=2;region=eu"), ("madrid", "media;gpu=0;region=eu"), ("tokyo", "media;gpu=4;region=jp")] {
        let mut config = Config::worker();
        config.node_id = Some(NodeId::new(id)?);
        config.meta = labels.parse()?;
        config.cluster_addr = control.listen().to_vec();
        config.state_dir = dir.path().join(id);
        config.classes = ClassList::All;
        let worker = Node::start(config, Classes::new().with(Transcode)).await?;
        cluster.wait_status(worker.node_id(), NodeStatus::Ready, PATIENCE).await?;
        workers.push(worker);
    }

    // The control node is a worker too; it has no label `media`, so it is not among them.
    for selector in ["media", "region=eu", "media && gpu!=0 && region=eu", "media && !(region=eu) && status=ready"] {
        let names: Vec<String> = select(&cluster, selector).await?.iter().map(ToString::to_string).collect();
        println!("{selector:<40} {}", names.join(", "));
    }

    let fit = select(&cluster, "media && gpu!=0 && region=eu").await?;
    let [paris] = &fit[..] else { return Err(format!("one worker should fit, but these do: {fit:?}").into()) };
    let clip = Clip { name: "holiday.mov".to_owned(), seconds: 90 };
    let done = cluster.ask::<Transcode>(paris, &clip, CallOptions::default()).await?;
    println!("{done}");
    assert_eq!(done, "paris transcoded 90 s of holiday.mov");

    // Labels change while the worker runs: the new card in Madrid counts from now on.
    let madrid = NodeId::new("madrid")?;
    cluster.update_meta(&madrid, "media;gpu=8;region=eu".parse()?, PATIENCE).await?;
    // The worker has answered; its news are on their way to the nodes that evaluate selectors.
    let both = tokio::time::timeout(PATIENCE, async {
        loop {
            let fit = select(&cluster, "media && gpu!=0 && region=eu").await?;
            if fit.len() == 2 {
                return Ok::<_, nkcluster::Error>(fit);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    for worker in both.await?? {
        println!("{}", cluster.ask::<Transcode>(&worker, &clip, CallOptions::default()).await?);
    }

    for worker in workers {
        worker.stop().await;
    }
    control.stop().await;
    Ok(())
}
