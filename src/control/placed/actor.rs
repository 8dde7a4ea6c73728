//! The task of one placed actor.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::super::shared::Shared;
use super::durable::{Latest, discard, discard_everywhere, keep, replicate};
use super::{Belongings, Known, RECORD_BYTES_MAX, Record, Stamp, find, moved};
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
    pub(super) cause: Cause,
}

/// Why an actor starts.
pub(super) enum Cause {
    /// Somebody has something to say to it.
    Message,
    /// There is a record of it.
    Record,
    /// Another node handed it over.
    Arrived(Record),
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
                _ => {
                    tracing::error!(actor = %birth.key, bytes = record.len(), "a record is too large to be kept");
                    return self.waits_no_longer(asked);
                }
            },
            Ok(None) => return self.waits_no_longer(asked),
            Err(error) => {
                tracing::error!(actor = %birth.key, %error, "a record cannot be encoded");
                return self.waits_no_longer(asked);
            }
        };
        self.latest.send_replace(Some(latest));
    }

    /// There is nothing that could be kept, and so nothing to wait for.
    fn waits_no_longer(&self, asked: u64) {
        self.keeping.send_modify(|kept| kept.asked = asked);
    }

    /// Another record of the actor was taken in: what is recorded next is newer than both, also if nothing has changed here.
    fn joined(&mut self, other: Stamp) {
        self.stamp = self.stamp.max(other);
        self.latest.send_if_modified(|latest| {
            latest.take();
            false
        });
    }

    /// Version of the last one.
    fn version(&self) -> Option<u64> {
        self.latest.borrow().as_ref().map(|latest| latest.stamp.version)
    }

    /// Gives an answer once the record of this version is kept.
    fn answer_when_kept<T: Send + 'static>(&self, version: u64, answer: oneshot::Sender<Result<T>>, outcome: Result<T>) {
        let mut kept = self.keeping.subscribe();
        tokio::spawn(async move {
            // An error: the actor has moved on, and its record with it.
            let _ = kept.wait_for(|kept| kept.version >= version).await;
            let _ = answer.send(outcome);
        });
    }
}

pub(super) async fn run(mut birth: Birth, mut asks: mpsc::Receiver<Ask>) {
    let cause = std::mem::replace(&mut birth.cause, Cause::Message);
    let birth = birth;
    let gone = Gone(&birth);
    let (recording, mut wishes, keeping) = Recording::new();
    let (mut actor, stamp, is_resumed) = match start(&birth, cause, recording).await {
        Ok(Some(started)) => {
            birth.shared.placed.started(&birth.key, birth.number);
            started
        }
        Ok(None) => {
            tracing::info!(actor = %birth.key, "a placed actor is over already; what was left of it here is dropped");
            drop(gone);
            asks.close();
            // What came in this moment starts another one.
            while let Some(ask) = asks.recv().await {
                refuse(ask, &moved(&birth.key));
            }
            return;
        }
        Err(error) => {
            match birth.shared.placed.is_news(&birth.key, &error) {
                true => {
                    tracing::warn!(actor = %birth.key, %error, "a placed actor did not start; if there is a record of it, that is tried again and again")
                }
                false => tracing::debug!(actor = %birth.key, %error, "a placed actor did not start, as before"),
            }
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
                let stamp = record.stamp;
                let joined = actor.join(Payload::from_bytes(record.bytes)).await;
                if joined.is_ok() {
                    records.joined(stamp);
                    records.take(&birth, &*actor, *wishes.borrow_and_update());
                }
                // Whoever hands over drops its own when it has the answer.
                match records.version().filter(|_| is_durable && joined.is_ok()) {
                    Some(version) => records.answer_when_kept(version, answer, joined),
                    None => drop(answer.send(joined)),
                }
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
        if is_over && is_durable && (is_resumed || records.version().is_some()) {
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
            if is_durable {
                // Should all nodes stop at once, it is not lost on its way.
                let _ = keep(&birth.shared, belongings.clone()).await;
            }
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

/// The actor, its first stamp, and whether it goes on from a record. None if it was to, and is over.
async fn start(birth: &Birth, cause: Cause, recording: Recording) -> Result<Option<(Box<dyn ErasedActor>, Stamp, bool)>> {
    // The newest record may be in the state directory.
    let _ = birth.shared.placed.is_loaded.subscribe().wait_for(|is_loaded| *is_loaded).await;
    let (known, over) = match cause {
        Cause::Arrived(record) => (Some(record), None),
        Cause::Message | Cause::Record => {
            let Known { record, over } = find(&birth.shared, &birth.key, birth.hash).await?;
            if let Some(over) = over.filter(|_| record.is_none()) {
                let is_known = {
                    let copies = &birth.shared.placed.lock().copies;
                    copies.over(&birth.key) == Some(over) && !copies.contains(&birth.key)
                };
                if !is_known {
                    discard(&birth.shared, &birth.key, over).await;
                }
                if matches!(cause, Cause::Record) {
                    return Ok(None);
                }
            }
            (record, over)
        }
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
    // A first life is younger than whatever may still be kept somewhere of an actor of this key that was over long ago.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs().max(1));
    let first = over.map_or(now, |over| now.max(over.life.saturating_add(1)));
    let life = known.as_ref().map_or(first, |record| record.stamp.life.saturating_add(1));
    let is_resumed = known.is_some();
    let record = known.map(|record| Payload::from_bytes(record.bytes));
    tracing::debug!(actor = %birth.key, resumed = record.is_some(), life, "a placed actor starts");
    let actor = (birth.kind.make)(ctx, record).await?;
    Ok(Some((actor, Stamp { life, version: 0 }, is_resumed)))
}
