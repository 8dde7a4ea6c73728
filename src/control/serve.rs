//! What a control node does with the frames of a client's link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::backend::Local;
use super::proxy::state::LinkKey;
use super::shared::Shared;
use crate::cluster::{Backend as _, NodeCall, Operation, write_events};
use crate::connection::{ByteStream, Channel, IncomingCall, Link, LinkHandler};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::Role;
use crate::proto::head::{CallHead, EventHead, Outcome, Rank, Verb};
use crate::proto::message::{GoAway, Message};
use crate::types::Payload;

/// Buffer of a relayed stream, each way.
const RELAY_BYTES: usize = 128 * 1024;

pub(super) fn handler(shared: Arc<Shared>, link: &Link) -> Arc<dyn LinkHandler> {
    let key = shared.add_link(link);
    let peer = link.peer();
    tracing::info!(target: "nkcluster::audit", client = %peer.id, incarnation = %peer.incarnation, remote = link.remote(), "client connected");
    Arc::new(Handler { backend: Arc::new(Local::new(&shared)), shared, key })
}

struct Handler {
    shared: Arc<Shared>,
    backend: Arc<Local>,
    key: LinkKey,
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        if self.shared.is_stopping() {
            let what = format!("control node {} is stopping; ask another one", self.shared.id);
            let reason = Error::new(ErrorCode::ShuttingDown, what);
            // Before the refusal: a client that hears it now knows that this is of us, not of the worker, and asks another one.
            let away = Message::GoAway(GoAway { reason: reason.clone(), reconnect_after_ms: None });
            call.channel().link().channel_zero().message(&away);
            call.reply(&Err(reason));
            return;
        }
        tokio::spawn(serve(Arc::clone(&self.backend), call));
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        // Only of its own calls: what others need is not for it to say.
        if let Message::OutcomeAck(ack) = message
            && ack.edge == channel.link().peer().incarnation
        {
            self.backend.acknowledge(ack);
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {
        self.shared.remove_link(self.key);
    }
}

/// What changes the cluster leaves a line in the log.
fn audited(operation: &Operation) -> Option<String> {
    match operation {
        Operation::Connect { uri } => Some(match uri.parse() {
            Ok(uri) => format!("connect {uri}"),
            Err(_) => "connect to what is no URL".to_owned(),
        }),
        Operation::Forget { node } => Some(format!("forget {node}")),
        Operation::Join { uri } => Some(match uri.parse() {
            Ok(uri) => format!("join {uri}"),
            Err(_) => "join what is no URL".to_owned(),
        }),
        Operation::Leave { node } => Some(format!("leave {node}")),
        Operation::Commit => Some("commit".to_owned()),
        Operation::Members | Operation::Ring | Operation::Plan => None,
        Operation::Nodes { .. } | Operation::Info { .. } | Operation::Subscribe(_) => None,
        Operation::Placed(_) | Operation::PlacedKeys(_) | Operation::Leader { .. } => None,
    }
}

pub(super) async fn serve(backend: Arc<Local>, mut call: IncomingCall) {
    let stream = call.stream.take();
    let cancellation = call.cancellation();
    let outcome = tokio::select! {
        outcome = answer(&backend, &call, stream) => outcome,
        // Nobody waits any more: the call is given up on the way to its worker too.
        () = cancellation.cancelled() => Err(Error::new(ErrorCode::Timeout, "the caller no longer waits").after_sending()),
    };
    call.reply(&outcome);
}

async fn answer(backend: &Local, call: &IncomingCall, stream: Option<ByteStream>) -> Outcome {
    let timeout = Duration::from_millis(u64::from(call.head.timeout_ms));
    if call.head.verb == Verb::Peer {
        // Those of control nodes are answered elsewhere. Passed on, it would come out of a control link, as if we had asked.
        return Err(Error::new(ErrorCode::NotAllowed, "only control nodes ask this of each other"));
    }
    if call.head.verb == Verb::Cluster {
        let operation: Operation = Payload::from_bytes(call.payload.clone()).decode()?;
        if let Some(what) = audited(&operation) {
            let peer = call.channel().link().peer();
            tracing::info!(target: "nkcluster::audit", client = %peer.id, incarnation = %peer.incarnation, what, "operation");
        }
        return operate(backend, operation, stream, timeout).await;
    }
    let peer = call.channel().link().peer();
    let from = (peer.role != Role::Admin).then(|| peer.id.clone());
    // A client is where a call begins, whatever it says.
    let head = CallHead { hops: if from.is_some() { call.head.hops } else { 0 }, ..call.head.clone() };
    let node_call = NodeCall { head, payload: Payload::from_bytes(call.payload.clone()), timeout };
    match stream {
        None => backend.call_from(from, node_call).await,
        Some(client) => {
            let streamed = backend.call_with_stream_from(from, node_call).await?;
            join(client, streamed.stream);
            streamed.answer.await
        }
    }
}

/// Passes on what comes on either stream. Ends when both directions have ended, or with the first error, which resets both.
pub(super) fn join(mut a: ByteStream, mut b: ByteStream) {
    tokio::spawn(async move {
        if let Err(error) = tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, RELAY_BYTES, RELAY_BYTES).await {
            tracing::debug!(%error, "a relayed stream was cut");
        }
    });
}

async fn operate(backend: &Local, operation: Operation, stream: Option<ByteStream>, timeout: Duration) -> Result<Bytes> {
    match (operation, stream) {
        (Operation::Subscribe(filter), Some(stream)) => {
            let events = backend.subscribe(filter).await?;
            tokio::spawn(async move {
                if let Err(error) = write_events(events, stream).await {
                    tracing::debug!(%error, "a subscriber has gone");
                }
            });
            Ok(Payload::nil().into_bytes())
        }
        (operation, _) => Ok(Payload::encode(&backend.operate(operation, timeout).await?)?.into_bytes()),
    }
}
