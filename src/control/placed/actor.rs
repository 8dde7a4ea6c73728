//! The task of one placed actor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use rand::RngExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::shared::Shared;
use super::durable::{Keeper, Latest, discard, discard_everywhere, keep_living, replicate};
use super::{Belongings, HandOvers, Known, Over, RECORD_BYTES_MAX, Record, Stamp, find, moved};
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
    /// Raised by whoever has the records kept, too: see [`Keeper`].
    life: Arc<AtomicU64>,
    version: u64,
    hand_overs: HandOvers,
    latest: watch::Sender<Option<Latest>>,
    keeping: Arc<watch::Sender<Kept>>,
}

impl Records {
    fn stamp(&self) -> Stamp {
        Stamp { life: self.life.load(Ordering::SeqCst), version: self.version }
    }

    /// Asks an actor for its record, and lets it be kept if it is another one. A record that is as before is not sent again.
    fn take(&mut self, birth: &Birth, actor: &dyn ErasedActor, asked: u64) {
        self.version += 1;
        let before = self.latest.borrow().clone();
        let latest = match actor.record() {
            Ok(Some(record)) => match before {
                Some(before) if before.record == record && before.asked == asked => return,
                Some(before) if before.record == record => Latest { asked, ..before },
                _ if record.len() <= RECORD_BYTES_MAX => Latest { stamp: self.stamp(), hand_overs: self.hand_overs.clone(), record, asked },
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
    fn joined(&mut self, other: Stamp, hand_overs: &HandOvers) {
        self.hand_overs.add(hand_overs);
        self.life.fetch_max(other.life, Ordering::SeqCst);
        // It never falls: answers wait for it.
        self.version = self.version.max(other.version);
        self.latest.send_if_modified(|latest| {
            latest.take();
            false
        });
    }

    /// Version of the last one.
    fn recorded_version(&self) -> Option<u64> {
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
    let Started { mut actor, life, hand_overs, is_resumed } = match start(&birth, cause, recording).await {
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
    let life = Arc::new(AtomicU64::new(life));
    let keeper = Keeper {
        shared: Arc::clone(&birth.shared),
        key: birth.key.clone(),
        hash: birth.hash,
        life: Arc::clone(&life),
        raised: 0,
        keeping: Arc::clone(&keeping),
    };
    let keeper = tokio::spawn(replicate(keeper, newest));
    let mut records = Records { life, version: 0, hand_overs, latest, keeping };
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
                    let before = records.recorded_version();
                    records.take(&birth, &*actor, *wishes.borrow_and_update());
                    match records.recorded_version() {
                        Some(version) if records.recorded_version() != before => records.answer_when_kept(version, answer, outcome),
                        _ => drop(answer.send(outcome)),
                    }
                } else {
                    let _ = answer.send(outcome);
                }
            }
            Some(Ask::Join { record, answer }) => {
                let Record { stamp, hand_overs, bytes } = record;
                let joined = match records.hand_overs.have_last_of(&hand_overs) {
                    // Tried again, as the answer was late: what has become of it since stays.
                    true => Ok(()),
                    false => actor.join(Payload::from_bytes(bytes)).await,
                };
                if joined.is_ok() {
                    records.joined(stamp, &hand_overs);
                    records.take(&birth, &*actor, *wishes.borrow_and_update());
                }
                // Whoever hands over drops its own when it has the answer.
                match records.recorded_version().filter(|_| is_durable && joined.is_ok()) {
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
        if is_over && is_durable && (is_resumed || records.recorded_version().is_some()) {
            let over = Over { stamp: last_stamp(&records, keeper).await, hand_overs: records.hand_overs.clone() };
            // Answers that wait for a record to be kept wait no longer.
            drop(records);
            drop(gone);
            discard_everywhere(&birth.shared, &birth.key, birth.hash, over).await;
        }
        // It is over: what came in this moment starts another one.
        while let Some(ask) = asks.recv().await {
            refuse(ask, &moved(&birth.key));
        }
        return;
    };
    // Whoever asks from now on is sent on; what came before is still handled here.
    asks.close();
    let mut stamp = last_stamp(&records, keeper).await;
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
            let mut hand_overs = records.hand_overs.clone();
            hand_overs.push(rand::rng().random());
            let record = Record { stamp, hand_overs, bytes: record.into_bytes().into() };
            let mut belongings = Belongings { key: birth.key.clone(), hash: birth.hash, record };
            if is_durable {
                // Should all nodes stop at once, it is not lost on its way.
                belongings = keep_living(&birth.shared, belongings).await;
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

/// The age of an actor that ends: no record of it will be sent any more that is younger.
async fn last_stamp(records: &Records, keeper: JoinHandle<()>) -> Stamp {
    keeper.abort();
    let _ = keeper.await;
    records.stamp()
}

fn refuse(ask: Ask, error: &Error) {
    match ask {
        Ask::Handle { answer, .. } => drop(answer.send(Err(error.clone()))),
        Ask::Join { answer, .. } => drop(answer.send(Err(error.clone()))),
        Ask::HandOver { answer } => drop(answer),
    }
}

/// An actor at its beginning.
struct Started {
    actor: Box<dyn ErasedActor>,
    life: u64,
    /// Those that it goes back to, or that one of its key did which is over: what is tried again of them is no news.
    hand_overs: HandOvers,
    /// Whether it goes on from a record.
    is_resumed: bool,
}

/// Starts the actor. None if it was to go on from a record, and is over.
async fn start(birth: &Birth, cause: Cause, recording: Recording) -> Result<Option<Started>> {
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
                    discard(&birth.shared, &birth.key, Over { stamp: over, hand_overs: HandOvers::default() }).await;
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
    let (hand_overs, record) = match known {
        Some(Record { hand_overs, bytes, .. }) => (hand_overs, Some(Payload::from_bytes(bytes))),
        None => (birth.shared.placed.lock().copies.mark(&birth.key).map(|over| over.hand_overs.clone()).unwrap_or_default(), None),
    };
    tracing::debug!(actor = %birth.key, resumed = record.is_some(), life, "a placed actor starts");
    let actor = (birth.kind.make)(ctx, record).await?;
    Ok(Some(Started { actor, life, hand_overs, is_resumed }))
}
