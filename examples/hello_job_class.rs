//! The smallest cluster: one job class, one control node, one worker.
//!
//! ```sh
//! cargo run --example hello_job_class
//! ```
//!
//! Both nodes run in this process, but they know nothing of each other: the worker dials the control node over tcp on loopback, both prove that they know the
//! secret of the cluster, and the request travels as it would across an ocean.

use std::error::Error;
use std::time::Duration;

use nkcluster::Result;
use nkcluster::cluster::CallOptions;
use nkcluster::config::{ClassList, Config};
use nkcluster::job::{Classes, JobClass, RequestContext, TypedCalls};
use nkcluster::node::Node;
use nkcluster::types::{NodeId, NodeStatus};

/// What our workers can do: greet.
struct Hello;

impl JobClass for Hello {
    const NAME: &'static str = "hello";
    // Any serde types will do. They are encoded once, here, and nobody on the way looks inside.
    type Request = String;
    type Reply = String;

    async fn request(&self, ctx: RequestContext, name: String) -> Result<String> {
        Ok(format!("hello, {name}, from worker {}", ctx.node_id()))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;

    // Port 0: the system chooses, and the handle knows. The default secret is accepted on loopback only.
    let mut config = Config::control();
    config.node_id = Some(NodeId::new("c1")?);
    config.listen = vec!["nkcluster://127.0.0.1:0;transport=tcp".parse()?];
    config.state_dir = dir.path().join("c1");
    let control = Node::start(config, Classes::new()).await?;

    let mut config = Config::worker();
    config.node_id = Some(NodeId::new("w1")?);
    config.cluster_addr = control.listen().to_vec();
    config.state_dir = dir.path().join("w1");
    // A worker runs only what its own configuration enables, whatever is in the program.
    config.classes = ClassList::All;
    let worker = Node::start(config, Classes::new().with(Hello)).await?;

    let cluster = control.cluster().ok_or("a control node has the cluster")?;
    cluster.wait_status(worker.node_id(), NodeStatus::Ready, Duration::from_secs(10)).await?;

    let greeting = cluster.ask::<Hello>(worker.node_id(), &"world".to_owned(), CallOptions::default()).await?;
    println!("{greeting}");
    assert_eq!(greeting, "hello, world, from worker w1");

    worker.stop().await;
    control.stop().await;
    Ok(())
}
