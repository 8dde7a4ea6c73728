use nkcluster::cluster::CallOptions;
use nkcluster::job::{Classes, JobClass, RequestContext, TypedCalls};

use crate::harness::{MemoryCluster, TIMEOUT, node_id};

struct Hello;

impl JobClass for Hello {
    const NAME: &'static str = "hello";
    type Request = String;
    type Reply = String;

    async fn request(&self, _: RequestContext, name: String) -> nkcluster::Result<String> {
        Ok(format!("hello, {name}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_answers_a_request() {
    let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::DEBUG).try_init();
    let cluster = MemoryCluster::start(Classes::new()).await;
    let worker = cluster.worker("w1", Classes::new().with(Hello)).await;
    let reply = cluster.cluster.ask::<Hello>(&node_id("w1"), &"world".to_owned(), CallOptions::timeout(TIMEOUT)).await;
    assert_eq!(reply.expect("answered"), "hello, world");
    let admin = cluster.admin().await;
    let reply = admin.ask::<Hello>(&node_id("w1"), &"admin".to_owned(), CallOptions::timeout(TIMEOUT)).await;
    assert_eq!(reply.expect("answered"), "hello, admin");
    let nodes = admin.nodes(None, TIMEOUT).await.expect("nodes");
    assert_eq!(nodes.nodes.len(), 2, "{nodes:?}");
    worker.stop().await;
    cluster.control.stop().await;
}
