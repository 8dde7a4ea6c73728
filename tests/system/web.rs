//! A worker whose only way out is an HTTP proxy.
//!
//! ```text
//!   office                        gate                               hall
//!   worker 10.77.1.2 ──── 10.77.1.1:443 tinyproxy 10.77.2.1 ──── 10.77.2.2:443 control node
//! ```
//!
//! No packet passes the gate; only the proxy reaches both sides.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use crate::cluster::{Control, start_worker};
use crate::http_proxy::HttpProxy;
use crate::namespace::{self, Namespace};

const PROXY: &str = "10.77.1.1:443";
const CONTROL: &str = "10.77.2.2:443";

#[test]
fn a_worker_behind_a_proxy_of_the_environment_is_used_fully_and_survives_its_restart() {
    let address = format!("nkcluster://{CONTROL};transport=wss");
    // Only port 443 gets through, and who asks for a name of this machine alone is not sent there.
    let environment = [("HTTPS_PROXY", format!("http://{PROXY}")), ("NO_PROXY", "localhost,127.0.0.1,10.77.1.0/24".to_owned())];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    works_behind_a_proxy(&address, &environment, None);
}

#[test]
fn a_worker_behind_a_proxy_of_its_url_is_used_fully_and_survives_its_restart() {
    let address = format!("nkcluster://{CONTROL};transport=wss;proxy=http://clerk:s3cret@{PROXY}");
    works_behind_a_proxy(&address, &[], Some(("clerk", "s3cret")));
}

fn works_behind_a_proxy(cluster_addr: &str, environment: &[(&str, &str)], credentials: Option<(&str, &str)>) {
    if !namespace::is_possible() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (office, gate, hall) = (Namespace::new("office"), Namespace::new("gate"), Namespace::new("hall"));
    office.link("10.77.1.2/24", &gate, "10.77.1.1/24");
    gate.link("10.77.2.1/24", &hall, "10.77.2.2/24");
    let (proxy_at, control_at): (SocketAddr, SocketAddr) = (PROXY.parse().expect("an address"), CONTROL.parse().expect("an address"));
    let mut proxy = HttpProxy::start(&gate, dir.path(), proxy_at, credentials);
    let control = Control::start(&hall, dir.path(), &format!("nkcluster://{CONTROL};transport=wss"));
    let around = office.inside(|| TcpStream::connect(control_at)).map_err(|error| error.kind());
    assert_eq!(around.err(), Some(ErrorKind::NetworkUnreachable), "there must be no other way");

    let worker = start_worker(&office, dir.path(), &["--cluster-addr", cluster_addr], environment);
    let remote = control.wait_status("ready");
    assert!(remote.starts_with("wss:10.77.2.1:"), "it came from {remote}");
    assert!(proxy.log().contains(&format!("CONNECT {CONTROL} ")), "{}", proxy.log());
    control.use_fully(&worker);

    let (incarnation, task) = (control.incarnation(), control.start_slow_task(&worker));
    drop(proxy);
    control.wait_status("not_connected");
    control.ask(|cli| cli.script(&["call", "w1", "echo", "1"]).fails(1, "not_connected").code);
    proxy = HttpProxy::start(&gate, dir.path(), proxy_at, credentials);
    control.wait_status("ready");
    assert_eq!(control.incarnation(), incarnation);
    assert!(control.runs(&task), "its tasks go on");
    assert_eq!(control.json(&["call", "w1", "echo", "1"]), serde_json::json!({ "reply": [1] }));
    assert!(!worker.log().contains("s3cret"), "{}", worker.log());
    drop(proxy);
}
