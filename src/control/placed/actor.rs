//! The task of one placed actor.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::super::shared::Shared;
use super::durable::{Latest, discard_everywhere, replicate};
use super::{Belongings, RECORD_BYTES_MAX, Record, Stamp, find, moved};
use crate::cluster::PlacedKey;
use crate::error::{Error, Result};
use crate::job::{ErasedActor, Kept, PlacedContext, PlacedKind, Recording};
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
    pub(super) kind: PlacedKind,
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

/// What was recorded of an actor, and who keeps it.
struct Records {
    stamp: Stamp,
    latest: watch::Sender<Option<Latest>>,
    keeping: Arc<watch::Sender<Kept>>,
}

impl Records {
    /// Asks an actor for its record, and lets it be kept if it is another one. A record that is as before is not sent again.
    fn take(&mut self, birth: &Birth, actor: &dyn ErasedActor, asked: u64) {
        self.stamp.version += 1;
        let before = self.latest.borrow().clone();
        let latest = match actor.record() {
            Ok(Some(record)) => match before {
                Some(before) if before.record == record && before.asked == asked => return,
                Some(before) if before.record == record => Latest { asked, ..before },
                _ if record.len() <= RECORD_BYTES_MAX => Latest { stamp: self.stamp, record, asked },
                _ => return tracing::error!(actor = %birth.key, bytes = record.len(), "a record is too large to be kept"),
            },
            // There is nothing to wait for.
            Ok(None) => return self.keeping.send_modify(|kept| kept.asked = asked),
            Err(error) => return tracing::error!(actor = %birth.key, %error, "a record cannot be encoded"),
        };
        self.latest.send_replace(Some(latest));
    }

    /// Version of the last one.
    fn version(&self) -> Option<u64> {
        self.latest.borrow().as_ref().map(|latest| latest.stamp.version)
    }

    /// Gives an answer once the record of this version is kept.
    fn answer_when_kept(&self, version: u64, answer: oneshot::Sender<Result<Bytes>>, outcome: Result<Bytes>) {
        let mut kept = self.keeping.subscribe();
        tokio::spawn(async move {
            // An error: the actor has moved on, and its record with it.
            let _ = kept.wait_for(|kept| kept.version >= version).await;
            let _ = answer.send(outcome);
        });
    }
}

pub(super) async fn run(mut birth: Birth, mut asks: mpsc::Receiver<Ask>) {
    let arrived = birth.arrived.take();
    let birth = birth;
    let gone = Gone(&birth);
    let (recording, mut wishes, keeping) = Recording::new();
    let (mut actor, stamp) = match start(&birth, arrived, recording).await {
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
    let (is_durable, keeping) = (birth.kind.is_durable, Arc::new(keeping));
    let (latest, newest) = watch::channel(None);
    let keeper = tokio::spawn(replicate(Arc::clone(&birth.shared), birth.key.clone(), birth.hash, newest, Arc::clone(&keeping)));
    let mut records = Records { stamp, latest, keeping };
    let (mut handed_to, mut is_over) = (None, false);
    if is_durable {
        // It may have nothing more to do; and what it goes on from is kept as its own.
        wishes.mark_changed();
    }
    loop {
        let ask = tokio::select! {
            biased;
            ask = asks.recv() => match ask {
                Some(ask) => Some(ask),
                None => break,
            },
            // None come of an actor that has not kept its context.
            Ok(()) = wishes.changed() => None,
        };
        match ask {
            // Nobody waits any more: it is not done behind the caller's back.
            Some(Ask::Handle { deadline, .. }) if deadline <= Instant::now() => continue,
            Some(Ask::Handle { message, answer, .. }) => {
                let outcome = actor.handle(message).await.map_err(Error::after_sending);
                if is_durable {
                    let before = records.version();
                    records.take(&birth, &*actor, *wishes.borrow_and_update());
                    match records.version() {
                        Some(version) if records.version() != before => records.answer_when_kept(version, answer, outcome),
                        _ => drop(answer.send(outcome)),
                    }
                } else {
                    let _ = answer.send(outcome);
                }
            }
            Some(Ask::Join { record, answer }) => {
                records.stamp.life = records.stamp.life.max(record.stamp.life);
                let joined = actor.join(Payload::from_bytes(record.bytes)).await;
                let _ = answer.send(joined);
            }
            Some(Ask::HandOver { answer }) => {
                handed_to = Some(answer);
                break;
            }
            None => {}
        }
        // What waits is handled before the record is made: under load there is one record for many messages.
        if asks.is_empty() {
            records.take(&birth, &*actor, *wishes.borrow_and_update());
            if actor.is_over() {
                asks.close();
                is_over = true;
                break;
            }
        }
    }
    let Some(answer) = handed_to else {
        // One that had no record, and has none, is known nowhere.
        if is_over && is_durable && (records.stamp.life > 1 || records.version().is_some()) {
            keeper.abort();
            let stamp = records.stamp;
            // Answers that wait for a record to be kept wait no longer.
            drop(records);
            drop(gone);
            discard_everywhere(&birth.shared, &birth.key, birth.hash, stamp).await;
        }
        // It is over: what came in this moment starts another one.
        while let Some(ask) = asks.recv().await {
            refuse(ask, &moved(&birth.key));
        }
        return;
    };
    let mut stamp = records.stamp;
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

async fn start(birth: &Birth, arrived: Option<Record>, recording: Recording) -> Result<(Box<dyn ErasedActor>, Stamp)> {
    // The newest record may be in the state directory.
    let _ = birth.shared.placed.is_loaded.subscribe().wait_for(|is_loaded| *is_loaded).await;
    let known = match arrived {
        Some(record) => Some(record),
        None => find(&birth.shared, &birth.key, birth.hash).await?,
    };
    let kind = birth.key.kind.clone();
    let ctx = PlacedContext {
        key: birth.key.key.as_str().into(),
        node: birth.shared.id.clone(),
        cluster: birth.shared.cluster(),
        granted: birth.shared.config.grants.contains(kind.as_str()),
        kind,
        recording,
    };
    let life = known.as_ref().map_or(0, |record| record.stamp.life) + 1;
    let record = known.map(|record| Payload::from_bytes(record.bytes));
    tracing::debug!(actor = %birth.key, resumed = record.is_some(), life, "a placed actor starts");
    let actor = (birth.kind.make)(ctx, record).await?;
    Ok((actor, Stamp { life, version: 0 }))
}
