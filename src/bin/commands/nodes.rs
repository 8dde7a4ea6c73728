//! Nodes: list, details, attach, forget, status.

use std::time::Duration;

use comfy_table::Cell;
use nkcluster::cluster::NodeInfo;
use nkcluster::types::{NodeId, NodeUri, Selector, WantedStatus};
use serde_json::{Value, json};

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::output::{self, or_dash};

pub(super) async fn list(session: &Session, select: Option<Selector>) -> Outcome {
    let reply = session.cluster.nodes(select.as_ref(), session.timeout).await?;
    if session.form.is_json() {
        let nodes = reply.nodes.iter().map(|node| document(node, false)).collect::<Outcome<Vec<_>>>()?;
        session.form.document(&nodes)?;
    } else {
        session.form.line(table(&reply.nodes))?;
    }
    for node in &reply.silent {
        let message = format!("control node {node} did not answer; its workers may be missing");
        output::to_stderr(&match session.form.is_json() {
            true => json!({ "warning": { "code": "not_connected", "node": node, "message": message } }).to_string(),
            false => format!("warning[not_connected]: {message}"),
        });
    }
    Ok(())
}

/// The nodes for people.
pub(crate) fn table(nodes: &[NodeInfo]) -> String {
    if nodes.is_empty() {
        return "no nodes".to_owned();
    }
    let mut table = output::table(["id", "status", "owner", "remote", "meta", "latency", "tasks", "load", "version"]);
    for node in nodes {
        table.add_row([
            Cell::new(&node.id),
            output::status_cell(node.status),
            Cell::new(or_dash(node.owner.as_ref())),
            Cell::new(or_dash(node.remote.as_ref())),
            Cell::new(&node.meta),
            Cell::new(or_dash(node.latency_ms.map(|ms| format!("{ms:.2} ms")))),
            Cell::new(node.tasks),
            Cell::new(or_dash(node.stats.as_ref().map(|stats| format!("{:.2}", stats.load1)))),
            Cell::new(&node.version),
        ]);
    }
    output::text_of(&table)
}

/// A node as JSON; its proxies only where they are asked for, and then also if there are none.
fn document(node: &NodeInfo, with_proxies: bool) -> Outcome<Value> {
    let mut value = serde_json::to_value(node).map_err(|error| Failure::new("internal", format!("the node is not JSON: {error}")))?;
    if let Value::Object(fields) = &mut value {
        if with_proxies {
            fields.entry("proxies").or_insert_with(|| json!([]));
        } else {
            fields.remove("proxies");
        }
    }
    Ok(value)
}

pub(super) async fn info(session: &Session, node: &NodeId) -> Outcome {
    let info = session.cluster.info(node, session.timeout).await?;
    match session.form.is_json() {
        true => session.form.document(&document(&info, true)?),
        false => session.form.line(details(&info)),
    }
}

fn details(node: &NodeInfo) -> String {
    let mut lines: Vec<(&str, String)> = vec![
        ("id", node.id.to_string()),
        ("status", node.status.to_string()),
        ("owner", or_dash(node.owner.as_ref())),
        ("remote", or_dash(node.remote.as_ref())),
        ("listen", joined(&node.listen)),
        ("meta", node.meta.to_string()),
        ("classes", joined(&node.classes)),
        ("tasks", node.tasks.to_string()),
        ("version", node.version.clone()),
        ("incarnation", or_dash(node.incarnation.as_ref())),
        ("latency", or_dash(node.latency_ms.map(|ms| format!("{ms:.2} ms")))),
    ];
    if let Some(latency) = &node.latency {
        let (min, p50, p99, max) = (latency.min, latency.p50, latency.p99, latency.max);
        lines.push(("round trips", format!("min {min:.2}, p50 {p50:.2}, p99 {p99:.2}, max {max:.2} ms of the last {}", latency.count)));
    }
    if let Some(skew) = node.clock_skew_ms {
        lines.push(("clock skew", format!("{skew} ms")));
    }
    if let Some(stats) = &node.stats {
        lines.push(("machine", format!("{} processors, {}", stats.cpus, stats.os)));
        lines.push(("load", format!("{:.2} {:.2} {:.2}", stats.load1, stats.load5, stats.load15)));
        lines.push(("memory", format!("{} of {} in use", output::bytes(stats.memory_used), output::bytes(stats.memory_total))));
        for disk in &stats.disks {
            lines.push(("disk", format!("{} {}, {:.0} % in use", disk.path, output::bytes(disk.size), disk.used_percent)));
        }
    }
    for proxy in &node.proxies {
        let state = if proxy.active { "obeyed" } else { "passive" };
        let (owner, incarnation, term, rank) = (&proxy.owner, proxy.incarnation, proxy.term, &proxy.rank);
        let rank = format!("{}/{:016x}", rank.view, rank.hash);
        lines.push(("proxy", format!("at {owner} (incarnation {incarnation}), term {term}, rank {rank}, {state}")));
    }
    let lines = lines.iter().map(|(name, value)| format!("{name:<12} {value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn joined<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "-".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

pub(super) async fn connect(session: &Session, uri: &NodeUri) -> Outcome {
    let node = session.cluster.attach(uri, session.timeout).await?;
    session.form.print(&json!({ "node": node }), || format!("{node} is attached"))
}

pub(super) async fn forget(session: &Session, node: &NodeId) -> Outcome {
    session.cluster.forget(node, session.timeout).await?;
    session.form.print(&json!({ "node": node }), || format!("{node} is forgotten"))
}

pub(super) async fn status(session: &Session, node: &NodeId, wanted: WantedStatus) -> Outcome {
    let status = session.cluster.set_status(node, wanted, session.timeout).await?;
    session.form.print(&json!({ "status": status }), || format!("{node} is {status}"))
}

/// Round trips are short: what is shorter than a second is told in milliseconds.
pub(crate) fn short(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}
