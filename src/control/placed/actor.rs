//! The task of one placed actor.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::super::messages::PeerRequest;
use super::super::shared::Shared;
use super::{ARRIVE_TIMEOUT, Belongings, COPIES, RECORD_BYTES_MAX, Record, Stamp, find, moved};
use crate::cluster::PlacedKey;
use crate::error::{Error, Result};
use crate::job::{ActorMaker, ErasedActor, PlacedContext};
use crate::ring::KeyHash;
use crate::types::Payload;

/// Messages that may wait for one actor.
pub(super) const MAILBOX_MAX: usize = 1024;

/// What an actor is asked.
pub(super) enum Ask {
    /// By a caller.
    Handle { message: Payload, deadline: Instant, answer: oneshot::Sender<Result<Bytes>> },
    /// By another node that had one of the same key.
    Join { record: Record, answer: oneshot::Sender<Result<()>> },
    /// To end, as it belongs elsewhere.
    HandOver { answer: oneshot::Sender<()> },
}

/// What an actor is made of.
pub(super) struct Birth {
    pub(super) shared: Arc<Shared>,
    pub(super) key: PlacedKey,
    pub(super) hash: u64,
    pub(super) number: u64,
    pub(super) maker: ActorMaker,
    /// What another node handed over.
    pub(super) arrived: Option<Record>,
}

/// Removes the actor from the map however its task ends, a panic of a handler included: the next message starts another one from the last record.
struct Gone<'a>(&'a Birth);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.shared.placed.remove(&self.0.key, self.0.number);
    }
}

pub(super) async fn run(mut birth: Birth, mut asks: mpsc::Receiver<Ask>) {
    let arrived = birth.arrived.take();
    let birth = birth;
    let gone = Gone(&birth);
    let (mut actor, mut stamp) = match start(&birth, arrived).await {
        Ok(started) => started,
        Err(error) => {
            tracing::warn!(actor = %birth.key, %error, "a placed actor did not start");
            drop(gone);
            asks.close();
            while let Some(ask) = asks.recv().await {
                refuse(ask, &error);
            }
            return;
        }
    };
    let (records, latest) = watch::channel(None);
    let keeper = tokio::spawn(replicate(Arc::clone(&birth.shared), birth.key.clone(), birth.hash, latest));
    let mut handed_to = None;
    let mut kept: Option<Payload> = None;
    while let Some(ask) = asks.recv().await {
        match ask {
            // Nobody waits any more: it is not done behind the caller's back.
            Ask::Handle { deadline, .. } if deadline <= Instant::now() => continue,
            Ask::Handle { message, answer, .. } => {
                let outcome = actor.handle(message).await;
                let _ = answer.send(outcome.map_err(Error::after_sending));
            }
            Ask::Join { record, answer } => {
                stamp.life = stamp.life.max(record.stamp.life);
                let joined = actor.join(Payload::from_bytes(record.bytes)).await;
                let _ = answer.send(joined);
            }
            Ask::HandOver { answer } => {
                handed_to = Some(answer);
                break;
            }
        }
        // A record that is as before is not sent again. What waits is handled before the record is made: under load there is one record for many messages.
        if asks.is_empty() {
            stamp.version += 1;
            match actor.record() {
                Ok(Some(record)) if kept.as_ref() == Some(&record) => {}
                Ok(Some(record)) if record.len() <= RECORD_BYTES_MAX => {
                    kept = Some(record.clone());
                    records.send_replace(Some((stamp, record)));
                }
                Ok(Some(record)) => tracing::error!(actor = %birth.key, bytes = record.len(), "a record is too large to be kept"),
                Ok(None) => {}
                Err(error) => tracing::error!(actor = %birth.key, %error, "a record cannot be encoded"),
            }
            if actor.is_over() {
                asks.close();
                break;
            }
        }
    }
    drop(records);
    let Some(answer) = handed_to else {
        // It is over: what came in this moment starts another one.
        while let Some(ask) = asks.recv().await {
            refuse(ask, &moved(&birth.key));
        }
        return;
    };
    keeper.abort();
    // Whoever asks from now on is sent on; what came before is still handled here.
    asks.close();
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Handle { message, deadline, answer } if deadline > Instant::now() => {
                let _ = answer.send(actor.handle(message).await.map_err(Error::after_sending));
            }
            Ask::Handle { .. } => {}
            other => refuse(other, &moved(&birth.key)),
        }
    }
    stamp.version += 1;
    match actor.hand_over().await {
        Ok(record) if record.len() <= RECORD_BYTES_MAX => {
            let record = Record { stamp, bytes: record.into_bytes().into() };
            let belongings = Belongings { key: birth.key.clone(), hash: birth.hash, record };
            // In one step: at no moment is nothing known of it here.
            birth.shared.placed.packed(belongings, birth.number);
        }
        Ok(record) => tracing::error!(actor = %birth.key, bytes = record.len(), "a placed actor is lost: what it hands over is too large"),
        Err(error) => tracing::error!(actor = %birth.key, %error, "a placed actor is lost: what it hands over cannot be encoded"),
    }
    drop(gone);
    let _ = answer.send(());
}

fn refuse(ask: Ask, error: &Error) {
    match ask {
        Ask::Handle { answer, .. } => drop(answer.send(Err(error.clone()))),
        Ask::Join { answer, .. } => drop(answer.send(Err(error.clone()))),
        Ask::HandOver { answer } => drop(answer),
    }
}

async fn start(birth: &Birth, arrived: Option<Record>) -> Result<(Box<dyn ErasedActor>, Stamp)> {
    let known = match arrived {
        Some(record) => Some(record),
        None => find(&birth.shared, &birth.key, birth.hash).await?,
    };
    let ctx = PlacedContext { key: birth.key.key.as_str().into(), node: birth.shared.id.clone(), cluster: birth.shared.cluster() };
    let life = known.as_ref().map_or(0, |record| record.stamp.life) + 1;
    let record = known.map(|record| Payload::from_bytes(record.bytes));
    tracing::debug!(actor = %birth.key, resumed = record.is_some(), life, "a placed actor starts");
    let actor = (birth.maker)(ctx, record).await?;
    Ok((actor, Stamp { life, version: 0 }))
}

/// Sends the newest record to the nodes that keep copies: again when they change, never more than one at a time.
async fn replicate(shared: Arc<Shared>, key: PlacedKey, hash: u64, mut records: watch::Receiver<Option<(Stamp, Payload)>>) {
    let mut views = shared.view.subscribe();
    loop {
        let latest = records.borrow_and_update().clone();
        let view = Arc::clone(&views.borrow_and_update());
        if let Some((stamp, record)) = latest {
            let partition = view.ring.size().partition_of(KeyHash::from_bits(hash));
            let record = Record { stamp, bytes: record.into_bytes().into() };
            let request = PeerRequest::Keep(Box::new(Belongings { key: key.clone(), hash, record }));
            for node in view.ring.successors(partition, COPIES) {
                if let Err(error) = shared.peers.ask(&view, node, &request, ARRIVE_TIMEOUT).await {
                    tracing::debug!(actor = %key, %node, %error, "a record was not kept");
                }
            }
        }
        tokio::select! {
            changed = records.changed() => if changed.is_err() { return },
            changed = views.changed() => if changed.is_err() { return },
        }
    }
}
