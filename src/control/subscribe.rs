//! Live events of the whole cluster: each control node tells those of the workers whose proxies it has, and one stream has them all.
//!
//! A control node that joins is asked too. When one is lost, what its workers sent meanwhile is lost for subscribers, and they are told so: by a gap without
//! numbers, in the name of that control node.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::messages::PeerRequest;
use super::shared::Shared;
use crate::cluster::{EventBody, EventFilter, EventRecord, EventSink, EventStream, core_class, event_queue, read_events_to_end};
use crate::connection::unix_time_ms;
use crate::error::Result;
use crate::proto::message::BuiltinEvent;
use crate::types::{Incarnation, NodeId};

/// Pause before a control node is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Events of all control nodes. Returns when all that are known have begun to tell, or could not be asked.
pub(super) async fn everywhere(shared: &Arc<Shared>, filter: EventFilter) -> EventStream {
    let (sink, stream) = event_queue(filter.clone());
    let inflow = sink.another();
    shared.hub.add(sink);
    let (asking, mut asked) = mpsc::channel(1);
    tokio::spawn(follow(Arc::downgrade(shared), filter, inflow, asking));
    // Nothing is ever sent: it ends when the last of them is dropped.
    let _ = tokio::time::timeout(super::fan_out::PATIENCE, asked.recv()).await;
    stream
}

/// Follows the view until nobody reads any more.
async fn follow(shared: Weak<Shared>, filter: EventFilter, mut sink: EventSink, asking: mpsc::Sender<()>) {
    let mut asking = Some(asking);
    let mut peers: BTreeMap<NodeId, (Incarnation, JoinHandle<()>)> = BTreeMap::new();
    let Some(mut views) = shared.upgrade().map(|shared| shared.view.subscribe()) else { return };
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        peers.retain(|peer, (incarnation, task)| {
            let stays = match view.live.get(peer) {
                Some(member) => member.incarnation == *incarnation,
                // It leaves, and tells of its workers until they have moved.
                None => linked(&shared, peer, *incarnation),
            };
            if !stays && !task.is_finished() {
                task.abort();
                // It may have told something that did not arrive.
                lost(&mut sink, peer, *incarnation);
            }
            // One that had left is followed anew if it is back.
            stays && !task.is_finished()
        });
        for (peer, member) in view.live.iter().filter(|(peer, _)| **peer != view.me) {
            peers.entry(peer.clone()).or_insert_with(|| {
                let inflow = Inflow {
                    peer: peer.clone(),
                    incarnation: member.incarnation,
                    filter: filter.clone(),
                    sink: sink.another(),
                    asking: asking.clone(),
                };
                (member.incarnation, tokio::spawn(inflow.run(Weak::clone(&shared))))
            });
        }
        asking = None;
        tokio::select! {
            changed = views.changed() => if changed.is_err() { break },
            () = sink.closed() => break,
        }
    }
    for (_, task) in peers.into_values() {
        task.abort();
    }
}

/// The events of one other control node.
struct Inflow {
    peer: NodeId,
    incarnation: Incarnation,
    filter: EventFilter,
    sink: EventSink,
    /// Dropped after the first attempt.
    asking: Option<mpsc::Sender<()>>,
}

impl Inflow {
    async fn run(mut self, shared: Weak<Shared>) {
        loop {
            let Some(asked) = shared.upgrade() else { return };
            let opened = self.open(&asked).await;
            drop(asked);
            self.asking = None;
            match opened {
                Ok(mut events) => {
                    let mut next = events.next().await;
                    while let Some(Ok(record)) = next {
                        if !self.sink.offer(&record) {
                            return;
                        }
                        next = events.next().await;
                    }
                    // One that has left ends in peace when its workers have moved.
                    let has_left = shared.upgrade().is_none_or(|shared| !shared.view().live.contains_key(&self.peer));
                    if next.is_none() && has_left {
                        // It tells nothing more: asked again before it is gone, it would seem to be cut off.
                        return;
                    }
                    lost(&mut self.sink, &self.peer, self.incarnation);
                }
                Err(error) => tracing::debug!(peer = %self.peer, %error, "a control node tells no events"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn open(&self, shared: &Shared) -> Result<EventStream> {
        let request = PeerRequest::Subscribe(self.filter.clone());
        let (answer, stream) = shared.peers.ask_with_stream(&shared.view(), &self.peer, &request, PATIENCE)?;
        answer.wait(PATIENCE).await?;
        Ok(read_events_to_end(stream))
    }
}

/// Tells that something of a control node may be missing.
fn lost(sink: &mut EventSink, peer: &NodeId, incarnation: Incarnation) {
    sink.tell(EventRecord {
        node: peer.clone(),
        incarnation,
        class: core_class(),
        seq: 0,
        time_ms: unix_time_ms(),
        task: None,
        event: EventBody::Nkcluster(BuiltinEvent::Gap { from: 0, to: 0 }),
    });
}

/// Whether there is a link with this life of a control node.
fn linked(shared: &Weak<Shared>, peer: &NodeId, incarnation: Incarnation) -> bool {
    shared.upgrade().and_then(|shared| shared.peers.find(peer)).is_some_and(|link| link.peer().incarnation == incarnation)
}
