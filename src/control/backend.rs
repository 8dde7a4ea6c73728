//! The cluster as a control node sees it: proxies by name, and the operations that it answers itself.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::messages::{PeerReply, PeerRequest};
use super::placed;
use super::shared::Shared;
use super::{fan_out, route, subscribe};
use crate::cluster::{
    Backend, BoxFuture, EventFilter, EventStream, NodeCall, NodeInfo, NodesReply, Operation, OperationReply, StreamedCall,
};
use crate::connection::LinkParts;
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::Role;
use crate::proto::message::{Message, OutcomeAck};
use crate::proto::session::Side;
use crate::types::{Incarnation, NodeId, NodeStatus, Selector, SelectorInput};

/// How long a worker that was attached by hand may take until it is known.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// Pause between two looks whether it is.
const ATTACH_PAUSE: Duration = Duration::from_millis(10);

/// The backend of a control node's own handle, and of the links of its clients.
pub(super) struct Local {
    shared: Weak<Shared>,
}

impl Local {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::downgrade(shared) }
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        self.shared.upgrade().ok_or_else(|| Error::new(ErrorCode::ShuttingDown, "the control node has stopped"))
    }

    /// A call that another control node has passed on, or that begins here.
    pub(super) async fn call_from(&self, from: Option<NodeId>, call: NodeCall) -> Result<Bytes> {
        route::call(&self.shared()?, call, from).await
    }

    /// The same with a stream.
    pub(super) async fn call_with_stream_from(&self, from: Option<NodeId>, call: NodeCall) -> Result<StreamedCall> {
        route::call_with_stream(&self.shared()?, call, from).await
    }
}

impl Backend for Local {
    fn call(&self, call: NodeCall) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.call_from(None, call))
    }

    fn call_with_stream(&self, call: NodeCall) -> BoxFuture<'_, Result<StreamedCall>> {
        Box::pin(self.call_with_stream_from(None, call))
    }

    fn acknowledge(&self, ack: OutcomeAck) {
        let (Ok(shared), Some(node)) = (self.shared(), ack.node.clone()) else { return };
        if acknowledge_here(&shared, &node, &ack) {
            return;
        }
        let view = shared.view();
        if let Some(owner) = view.owner(&node).filter(|owner| **owner != view.me)
            && let Some(link) = shared.peers.towards(&view, owner)
        {
            link.channel_zero().message(&Message::OutcomeAck(ack));
        }
    }

    fn operate(&self, operation: Operation, timeout: Duration) -> BoxFuture<'_, Result<OperationReply>> {
        Box::pin(async move {
            let shared = self.shared()?;
            let done = operate(shared, operation, timeout);
            let late = |_| Error::new(ErrorCode::Timeout, format!("the control node did not finish within {timeout:?}")).after_sending();
            tokio::time::timeout(timeout, done).await.map_err(late)?
        })
    }

    fn incarnation<'a>(&'a self, node: &'a NodeId, timeout: Duration) -> BoxFuture<'a, Option<Incarnation>> {
        Box::pin(async move {
            let shared = self.shared().ok()?;
            // A failure on a channel of ours tells which incarnation it was sent to; one on the way to another control node does not.
            if shared.directory.find(node).is_some_and(|proxy| proxy.current().is_some()) {
                return None;
            }
            let view = shared.view();
            let owner = view.owner(node).filter(|owner| **owner != view.me)?;
            let timeout = timeout.min(fan_out::PATIENCE);
            match shared.peers.ask(&view, owner, &PeerRequest::Info { node: node.clone() }, timeout).await {
                Ok(PeerReply::Info(info)) => info.and_then(|info| info.incarnation),
                _ => None,
            }
        })
    }

    fn subscribe(&self, filter: EventFilter) -> BoxFuture<'_, Result<EventStream>> {
        Box::pin(async move { Ok(subscribe::everywhere(&self.shared()?, filter).await) })
    }
}

/// Tells a worker that obeys us which outcomes nobody needs any more. One that is lost is said again with the next.
pub(super) fn acknowledge_here(shared: &Shared, node: &NodeId, ack: &OutcomeAck) -> bool {
    let Some(current) = shared.directory.find(node).and_then(|proxy| proxy.current()) else { return false };
    current.channel.message(&Message::OutcomeAck(OutcomeAck { node: None, ..ack.clone() }));
    true
}

async fn operate(shared: Arc<Shared>, operation: Operation, timeout: Duration) -> Result<OperationReply> {
    match operation {
        Operation::Nodes { select } => Ok(OperationReply::Nodes(fan_out::nodes(&shared, select, timeout).await?)),
        Operation::Info { node } => {
            let info = fan_out::info(&shared, &node, timeout).await.ok_or_else(|| route::unknown(&node))?;
            Ok(OperationReply::Info(Box::new(info)))
        }
        Operation::Connect { uri } => {
            let uri = uri.parse()?;
            let expect = Expect::any(Role::Worker);
            let established =
                dial_and_establish(&[uri], &shared.party, &expect, Order::AsGiven, &shared.dial).await.map_err(Error::from)?;
            let (node, dialled) = (established.peer.id.clone(), established.uri.clone());
            let link = super::workers::start(&shared, LinkParts { established, side: Side::Dialler }, dialled);
            // Known when it has introduced itself and obeys.
            let ready = async {
                loop {
                    let info = fan_out::info(&shared, &node, timeout).await;
                    if info.is_some_and(|info| info.status != NodeStatus::NotConnected) {
                        return Ok(());
                    }
                    tokio::select! {
                        // Its owner may have found a better way to it meanwhile, and given this one up.
                        reason = link.ended(), if shared.owns(&node) => return Err(reason),
                        () = tokio::time::sleep(ATTACH_PAUSE) => {}
                    }
                }
            };
            let late = |_| Error::new(ErrorCode::Timeout, format!("{node} answered, but did not let itself be adopted"));
            tokio::time::timeout(INTRODUCTION, ready).await.map_err(late)??;
            Ok(OperationReply::Connected { node })
        }
        Operation::Members | Operation::Ring | Operation::Join { .. } | Operation::Leave { .. } | Operation::Plan | Operation::Commit => {
            super::membership::operations::operate(&shared, operation).await
        }
        Operation::Forget { node } => {
            let is_member = super::membership::operations::forget(&shared, &node).await?;
            let known = fan_out::forget(&shared, &node, timeout).await;
            if is_member || known { Ok(OperationReply::Done) } else { Err(route::unknown(&node)) }
        }
        Operation::Placed(call) => Ok(OperationReply::Placed(placed::call(&shared, *call, timeout).await?.into())),
        Operation::PlacedKeys(search) => Ok(OperationReply::PlacedKeys(fan_out::placed_keys(&shared, search, timeout).await)),
        Operation::Leader { class } => Ok(OperationReply::Leader { node: placed::leader(&shared, class.as_str())? }),
        Operation::Subscribe(_) => Err(Error::new(ErrorCode::NotAllowed, "a subscription needs a call with a stream")),
    }
}

/// The workers whose proxies are here, each with its proxy.
pub(super) fn local_nodes(shared: &Shared, select: Option<&str>) -> Result<NodesReply> {
    let select: Option<Selector> = select.map(str::parse).transpose()?;
    let nodes = shared.directory.all().into_iter().map(|proxy| proxy.info());
    let nodes = nodes.filter(|info| select.as_ref().is_none_or(|select| matches(select, info)));
    Ok(NodesReply { nodes: nodes.collect(), silent: Vec::new() })
}

fn matches(select: &Selector, info: &NodeInfo) -> bool {
    select.matches(&SelectorInput {
        id: &info.id,
        status: info.status,
        meta: &info.meta,
        owner: info.owner.as_ref(),
        classes: &info.classes,
    })
}
