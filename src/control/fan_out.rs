//! Questions that every control node answers for what it has: workers, and placed actors. The answers are put together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backend::local_nodes;
use super::messages::{PeerReply, PeerRequest};
use super::placed::local_keys;
use super::shared::Shared;
use crate::cluster::{NodeInfo, NodesReply, PlacedKeys, PlacedSearch};
use crate::error::Result;
use crate::types::{NodeId, NodeStatus};

/// How long a control node may take to answer; the others are not held up by it for longer.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// How long the others may still take once the holder of a worker has answered.
const AFTER_HOLDER: Duration = Duration::from_millis(250);

/// Asks all other control nodes at once.
fn ask(shared: &Arc<Shared>, request: &PeerRequest, timeout: Duration) -> JoinSet<(NodeId, Result<PeerReply>)> {
    let view = shared.view();
    let mut asked = JoinSet::new();
    // Also those that leave, which have workers until these have moved.
    let peers: BTreeSet<NodeId> = view.live.keys().cloned().chain(shared.peers.names()).filter(|peer| *peer != view.me).collect();
    for peer in peers {
        let (shared, view, request) = (Arc::clone(shared), Arc::clone(&view), request.clone());
        asked.spawn(async move {
            let answer = shared.peers.ask(&view, &peer, &request, timeout.min(PATIENCE)).await;
            (peer, answer)
        });
    }
    asked
}

/// Every node that matches, by id, and the control nodes that did not answer.
pub(super) async fn nodes(shared: &Arc<Shared>, select: Option<String>, timeout: Duration) -> Result<NodesReply> {
    let local = local_nodes(shared, select.as_deref())?;
    let mut found = BTreeMap::new();
    merge(&mut found, local.nodes);
    let mut silent = Vec::new();
    let mut asked = ask(shared, &PeerRequest::Nodes { select }, timeout);
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((_, Ok(PeerReply::Nodes(reply)))) => merge(&mut found, reply.nodes),
            Ok((peer, answer)) => {
                tracing::debug!(%peer, ?answer, "a control node did not name its workers");
                silent.push(peer);
            }
            Err(error) => tracing::error!(%error, "a question to a control node was lost"),
        }
    }
    silent.sort();
    let nodes = found.into_values().map(|info| NodeInfo { proxies: Vec::new(), ..info }).collect();
    Ok(NodesReply { nodes, silent })
}

/// The placed actors of a kind, and the control nodes that did not answer.
pub(super) async fn placed_keys(shared: &Arc<Shared>, search: PlacedSearch, timeout: Duration) -> PlacedKeys {
    let mut found = local_keys(shared, search.clone());
    let mut asked = ask(shared, &PeerRequest::PlacedKeys(search), timeout);
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((_, Ok(PeerReply::PlacedKeys(known)))) => found.join(known),
            Ok((peer, answer)) => {
                tracing::debug!(%peer, ?answer, "a control node did not name its placed actors");
                found.silent.push(peer);
            }
            Err(error) => tracing::error!(%error, "a question to a control node was lost"),
        }
    }
    found.silent.sort();
    found
}

/// Everything that is known of one node anywhere, with all of its proxies.
pub(super) async fn info(shared: &Arc<Shared>, node: &NodeId, timeout: Duration) -> Option<NodeInfo> {
    let mut known: Option<NodeInfo> = None;
    let mut take = |info: NodeInfo| {
        let held = info.status != NodeStatus::NotConnected;
        known = Some(match known.take() {
            Some(other) => better(other, info),
            None => info,
        });
        held
    };
    let mut held = shared.directory.find(node).is_some_and(|proxy| take(proxy.info()));
    let mut asked = ask(shared, &PeerRequest::Info { node: node.clone() }, timeout);
    let late = Instant::now() + timeout.min(PATIENCE);
    let mut until = if held { late.min(Instant::now() + AFTER_HOLDER) } else { late };
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, asked.join_next()).await {
        if let Ok((_, Ok(PeerReply::Info(Some(info))))) = answer
            && take(*info)
            && !std::mem::replace(&mut held, true)
        {
            until = late.min(Instant::now() + AFTER_HOLDER);
        }
    }
    known
}

/// Drops every proxy of a node; whether there was one.
pub(super) async fn forget(shared: &Arc<Shared>, node: &NodeId, timeout: Duration) -> bool {
    let mut known = forget_here(shared, node);
    let mut asked = ask(shared, &PeerRequest::Forget { node: node.clone() }, timeout);
    while let Some(answer) = asked.join_next().await {
        known |= matches!(answer, Ok((_, Ok(PeerReply::Done))));
    }
    known
}

/// Drops the proxy of a node that is here; whether there was one.
pub(super) fn forget_here(shared: &Shared, node: &NodeId) -> bool {
    let known = shared.records.forget(node);
    match shared.directory.remove(node) {
        Some(proxy) => {
            proxy.forget();
            true
        }
        None => known,
    }
}

fn merge(found: &mut BTreeMap<NodeId, NodeInfo>, nodes: Vec<NodeInfo>) {
    for info in nodes {
        let info = match found.remove(&info.id) {
            Some(other) => better(other, info),
            None => info,
        };
        found.insert(info.id.clone(), info);
    }
}

/// Of two words about one node that of the proxy which it obeys, under the newest term; with the proxies of both.
fn better(a: NodeInfo, b: NodeInfo) -> NodeInfo {
    let claim = |info: &NodeInfo| {
        let term = info.proxies.iter().filter(|proxy| proxy.active).map(|proxy| proxy.term).max();
        (info.status != NodeStatus::NotConnected, term, info.incarnation.is_some())
    };
    let (mut better, mut worse) = if claim(&a) >= claim(&b) { (a, b) } else { (b, a) };
    better.proxies.append(&mut worse.proxies);
    better.proxies.sort_by(|a, b| (&a.owner, a.incarnation).cmp(&(&b.owner, b.incarnation)));
    better.proxies.dedup_by(|a, b| a.owner == b.owner && a.incarnation == b.incarnation);
    better
}
