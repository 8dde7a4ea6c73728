//! The cluster as a control node sees it: proxies by name, and the operations that it answers itself.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::exclusive::Lease;
use super::proxy::{Current, Proxy};
use super::shared::Shared;
use crate::cluster::{
    Backend, BoxFuture, EventFilter, EventStream, NodeCall, NodeInfo, NodesReply, Operation, OperationReply, StreamedCall, address,
};
use crate::connection::LinkParts;
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::Role;
use crate::proto::message::{Message, OutcomeAck};
use crate::proto::session::Side;
use crate::types::{NodeId, NodeStatus, Selector, SelectorInput};

/// How long a worker that was attached by hand may take until it is known.
const INTRODUCTION: Duration = Duration::from_secs(5);

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

    /// Where a call goes, with its header made ready: the main channel of its worker, and one of its own if it asks for that and there is one.
    async fn way(&self, call: &mut NodeCall) -> Result<Way> {
        let began = Instant::now();
        let (proxy, current) = self.route(call)?;
        let lease = match std::mem::take(&mut call.head.exclusive) {
            false => None,
            true => {
                let lease = proxy.exclusives.acquire(&self.shared()?, &current, call.timeout).await;
                call.timeout = call.timeout.saturating_sub(began.elapsed());
                call.head.timeout_ms = u32::try_from(call.timeout.as_millis()).unwrap_or(u32::MAX);
                lease
            }
        };
        Ok(Way { current, lease })
    }

    fn route(&self, call: &mut NodeCall) -> Result<(Arc<Proxy>, Arc<Current>)> {
        let shared = self.shared()?;
        let node = call.head.node.clone().ok_or_else(|| Error::new(ErrorCode::NotFound, "the call names no node"))?;
        let proxy = shared.directory.find(&node).ok_or_else(|| unknown(&node))?;
        let current = proxy.current().ok_or_else(|| {
            let what = format!("{node} is not connected now; nothing was done. Try again when it is back (see `nodes`)");
            Error::new(ErrorCode::NotConnected, what)
        })?;
        address(&mut call.head, current.incarnation)?;
        // The channel says it.
        call.head.node = None;
        Ok((proxy, current))
    }
}

struct Way {
    current: Arc<Current>,
    lease: Option<Lease>,
}

/// Whether a call has not left on its own connection, or was not taken in there: then the main one is left to it.
fn goes_over_main(error: &Error) -> bool {
    let unsent = !error.may_have_run() && matches!(error.code(), ErrorCode::ConnectionFailed | ErrorCode::Fenced);
    if unsent {
        tracing::debug!(%error, "a call that asked for a connection of its own goes over the main one");
    }
    unsent
}

fn unknown(node: &NodeId) -> Error {
    Error::new(ErrorCode::NotFound, format!("no node {node} is known; see `nodes`"))
}

/// What the caller is told of a failure on the way.
fn told(error: Error, current: &Current) -> Error {
    match error.code() {
        ErrorCode::Fenced => Error::new(ErrorCode::NotConnected, error.message().to_owned()),
        _ => error.addressed_to(current.incarnation),
    }
}

impl Backend for Local {
    fn call(&self, mut call: NodeCall) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            let Way { current, lease } = self.way(&mut call).await?;
            let payload = call.payload.into_bytes();
            if let Some(lease) = lease {
                match lease.channel().call(&call.head, &payload, call.timeout).await {
                    Err(error) if goes_over_main(&error) => {}
                    outcome => return outcome.map_err(|error| told(error, &current)),
                }
            }
            current.channel.call(&call.head, &payload, call.timeout).await.map_err(|error| told(error, &current))
        })
    }

    fn call_with_stream(&self, mut call: NodeCall) -> BoxFuture<'_, Result<StreamedCall>> {
        Box::pin(async move {
            let Way { current, lease } = self.way(&mut call).await?;
            let payload = call.payload.into_bytes();
            let own = match lease.map(Arc::new) {
                None => None,
                Some(lease) => match lease.channel().call_with_stream(&call.head, &payload) {
                    Ok((answer, stream)) => Some((answer, stream.keeping(Arc::clone(&lease) as _), Some(lease))),
                    Err(error) if goes_over_main(&error) => None,
                    Err(error) => return Err(error),
                },
            };
            let (answer, stream, lease) = match own {
                Some(own) => own,
                None => {
                    let (answer, stream) = current.channel.call_with_stream(&call.head, &payload)?;
                    (answer, stream, None)
                }
            };
            let answer = async move {
                let outcome = answer.wait(call.timeout).await.map_err(|error| told(error, &current));
                drop(lease);
                outcome
            };
            Ok(StreamedCall { answer: Box::pin(answer), stream })
        })
    }

    fn acknowledge(&self, ack: OutcomeAck) {
        let current = ack.node.as_ref().and_then(|node| self.shared().ok()?.directory.find(node)?.current());
        if let Some(current) = current {
            current.channel.message(&Message::OutcomeAck(OutcomeAck { node: None, ..ack }));
        }
    }

    fn operate(&self, operation: Operation, timeout: Duration) -> BoxFuture<'_, Result<OperationReply>> {
        Box::pin(async move {
            let shared = self.shared()?;
            let done = operate(shared, operation);
            let late = |_| Error::new(ErrorCode::Timeout, format!("the control node did not finish within {timeout:?}")).after_sending();
            tokio::time::timeout(timeout, done).await.map_err(late)?
        })
    }

    fn subscribe(&self, filter: EventFilter) -> BoxFuture<'_, Result<EventStream>> {
        Box::pin(async move { Ok(self.shared()?.hub.subscribe(filter)) })
    }
}

async fn operate(shared: Arc<Shared>, operation: Operation) -> Result<OperationReply> {
    match operation {
        Operation::Nodes { select } => Ok(OperationReply::Nodes(local_nodes(&shared, select.as_deref())?)),
        Operation::Info { node } => {
            let proxy = shared.directory.find(&node).ok_or_else(|| unknown(&node))?;
            Ok(OperationReply::Info(Box::new(proxy.info())))
        }
        Operation::Connect { uri } => {
            let uri = uri.parse()?;
            let expect = Expect { role: Role::Worker, id: None };
            let established =
                dial_and_establish(&[uri], &shared.party, &expect, Order::AsGiven, &shared.dial).await.map_err(Error::from)?;
            let (node, dialled) = (established.peer.id.clone(), established.uri.clone());
            let link = super::workers::start(&shared, LinkParts { established, side: Side::Dialler }, dialled);
            // Known when it has introduced itself and obeys.
            let ready = async {
                loop {
                    if shared.directory.find(&node).is_some_and(|proxy| proxy.info().status != NodeStatus::NotConnected) {
                        return Ok(());
                    }
                    tokio::select! {
                        reason = link.ended() => return Err(reason),
                        () = tokio::time::sleep(Duration::from_millis(5)) => {}
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
            if super::membership::operations::forget(&shared, &node).await? {
                shared.directory.remove(&node).inspect(|proxy| proxy.forget());
                return Ok(OperationReply::Done);
            }
            let proxy = shared.directory.remove(&node).ok_or_else(|| unknown(&node))?;
            proxy.forget();
            Ok(OperationReply::Done)
        }
        Operation::Subscribe(_) => Err(Error::new(ErrorCode::NotAllowed, "a subscription needs a call with a stream")),
    }
}

/// The workers whose proxies are here.
pub(super) fn local_nodes(shared: &Shared, select: Option<&str>) -> Result<NodesReply> {
    let select: Option<Selector> = select.map(str::parse).transpose()?;
    let nodes = shared.directory.all().into_iter().map(|proxy| NodeInfo { proxies: Vec::new(), ..proxy.info() });
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
