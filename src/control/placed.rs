//! Hosts the actors that the ring places on this control node.
//!
//! ```text
//!   call ─► owner by the view? ── no ──► the owner's control node (one hop; `moved` if it disagrees: again after a pause)
//!               │ yes
//!               ▼
//!        mailbox of the actor ◄── none yet: a task is started, whose first act is to find out what is known of the key:
//!                                 the copy kept here, a live one or a copy on those that owned the key in the last views
//!   view changes ─► actors that belong elsewhere hand over and arrive there
//!   after messages ─► the record goes to the next two nodes by weight; of a durable kind also into a file, here and there
//!   a record of a durable kind whose key is ours ─► its actor is started
//! ```
//!
//! A record carries a [`Stamp`]: how often the actor was resumed, and how many records it has written since. The higher one is newer, so a copy that was kept by
//! a node which has been away is never preferred. A key is started blank only if everybody who might know of it has answered. Of an actor of a durable kind that is over a
//! mark stays, so that such a copy does not bring it back.

mod actor;
mod copies;
mod durable;
mod listing;
mod marks;
mod shelf;
#[cfg(test)]
mod tests;
mod troubles;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::actor::{Ask, Cause, MAILBOX_MAX};
use self::copies::{Copies, Given};
use self::durable::keep_living;
pub(super) use self::durable::{discard, keep, resume};
pub(super) use self::listing::local_keys;
pub(super) use self::marks::{HandOvers, Over};
use self::shelf::Shelf;
use self::troubles::Troubles;
use super::messages::{PeerReply, PeerRequest};
use super::shared::Shared;
use super::view::View;
use crate::cluster::{PlacedCall, PlacedKey};
use crate::error::{Error, ErrorCode, Result};
use crate::ring::{KeyHash, Ring};
use crate::types::{NodeId, Payload};

/// Actors of one control node.
const ACTORS_MAX: usize = 65_536;
/// Bytes of one record.
const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Nodes behind the owner that keep copies.
const COPIES: usize = 2;
/// Views that are looked back upon when somebody must know of a key, the present one included.
const RINGS_MAX: usize = 5;
/// Pause before a call is tried at the next owner.
const MOVED_PAUSE_MS: std::ops::Range<u64> = 20..200;
/// How long another control node may take to say what it knows of a key.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one hand-over may take until it is tried again.
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Actors that make themselves ready to be handed over at the same time.
const LEAVING_MAX: usize = 64;
/// Pause between two attempts to hand over what does not belong here.
const ARRIVE_AGAIN: Duration = Duration::from_millis(500);

/// Pause between two looks at what a leaving node still hosts.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Age of a record: how often its actor was resumed, and the records since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Stamp {
    life: u64,
    version: u64,
}

impl Stamp {
    /// The age of an actor that lives, above that of one of its key which is over. The version stays: callers wait for it.
    fn above(self, over: Self) -> Self {
        Self { life: self.life.max(over.life.saturating_add(1)), ..self }
    }
}

/// What an actor was, at some moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) stamp: Stamp,
    /// Those that its actor goes back to. Of what is handed over, the last one is this hand-over itself.
    #[serde(default)]
    hand_overs: HandOvers,
    #[serde(with = "serde_bytes")]
    pub(super) bytes: Vec<u8>,
}

/// A record with the actor that it is of, as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Belongings {
    pub(super) key: PlacedKey,
    pub(super) hash: u64,
    pub(super) record: Record,
}

#[derive(Default)]
struct State {
    actors: BTreeMap<PlacedKey, Host>,
    copies: Copies,
    troubles: Troubles,
    /// Of the views that were seen, the latest first.
    rings: VecDeque<Ring>,
    next: u64,
}

struct Host {
    hash: u64,
    mailbox: mpsc::Sender<Ask>,
    /// Tells this actor from others that had its key before.
    number: u64,
    /// Whether it lives: until then nobody can say that it will.
    has_started: bool,
}

/// The placed actors of a control node.
pub(super) struct Placed {
    state: Mutex<State>,
    shelf: Arc<tokio::sync::Mutex<Shelf>>,
    /// Whether the last write to it failed: that is told once.
    shelf_has_failed: AtomicBool,
    /// Whether the records of an earlier life of this node are known: before, nobody can say that there are none.
    is_loaded: watch::Sender<bool>,
}

impl State {
    /// Remembers the ring of a view: whoever owned a key in it may know of it.
    fn saw(&mut self, view: &View) {
        if self.rings.front() != Some(&view.ring) {
            self.rings.push_front(view.ring.clone());
            self.rings.truncate(RINGS_MAX);
        }
    }
}

impl Placed {
    /// None yet; records of an earlier life may be in the state directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        let shelf = Arc::new(tokio::sync::Mutex::new(Shelf::new(state_dir)));
        Self { state: Mutex::default(), shelf, shelf_has_failed: AtomicBool::new(false), is_loaded: watch::Sender::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing lives here any more that would have to move.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.actors.is_empty() && state.copies.is_empty_handed()
    }

    /// An actor has ended, and waits to be handed over.
    fn packed(&self, belongings: Belongings, number: u64) {
        let mut state = self.lock();
        if state.actors.get(&belongings.key).is_some_and(|host| host.number == number) {
            state.actors.remove(&belongings.key);
        }
        state.copies.pack(belongings);
    }

    /// An actor lives from now on.
    fn started(&self, key: &PlacedKey, number: u64) {
        let mut state = self.lock();
        state.troubles.over(key);
        if let Some(host) = state.actors.get_mut(key).filter(|host| host.number == number) {
            host.has_started = true;
        }
    }

    /// An actor has not started. Whether that is news to somebody who reads the log.
    fn is_news(&self, key: &PlacedKey, why: &Error) -> bool {
        let mut state = self.lock();
        // Of one that nobody has a record of only its caller wants to know, who is told.
        !state.copies.contains(key) || state.troubles.failed(key, why, Instant::now(), rand::rng().random())
    }

    /// Ends every actor, without a word to anybody.
    pub(super) fn cut(&self) {
        self.lock().actors.clear();
    }

    fn remove(&self, key: &PlacedKey, number: u64) {
        let mut state = self.lock();
        if state.actors.get(key).is_some_and(|host| host.number == number) {
            state.actors.remove(key);
        }
    }
}

fn place(view: &View, hash: u64) -> Option<&NodeId> {
    view.ring.owner_of(view.ring.size().partition_of(KeyHash::from_bits(hash)))
}

/// The node that owns a name, as the leader for it.
pub(super) fn leader(shared: &Shared, name: &str) -> Result<NodeId> {
    let view = shared.view();
    view.ring.owner(name).cloned().ok_or_else(|| Error::new(ErrorCode::ShuttingDown, "no control node is left that could lead"))
}

/// Brings a message to its actor, wherever that lives.
pub(super) async fn call(shared: &Arc<Shared>, call: PlacedCall, timeout: Duration) -> Result<Bytes> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let view = shared.view();
        let error = match place(&view, call.hash) {
            None => return Err(Error::new(ErrorCode::ShuttingDown, "no control node is left that could host the actor")),
            Some(owner) if *owner == shared.id => match handle(shared, &call, left).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            },
            Some(owner) => match shared.peers.ask(&view, owner, &PeerRequest::Placed(Box::new(call.clone())), left).await {
                Ok(PeerReply::Placed(answer)) => return Ok(answer.into()),
                Ok(_) => return Err(Error::new(ErrorCode::ProtocolError, "the control node answered something else than was asked")),
                Err(error) => error,
            },
        };
        let elsewhere = matches!(error.code(), ErrorCode::Moved | ErrorCode::NotConnected) && !error.may_have_run();
        let pause = Duration::from_millis(rand::rng().random_range(MOVED_PAUSE_MS));
        if !elsewhere || Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Brings a message to its actor on this node.
///
/// # Errors
/// `moved` if it belongs elsewhere: nothing was done.
pub(super) async fn handle(shared: &Arc<Shared>, call: &PlacedCall, timeout: Duration) -> Result<Bytes> {
    let mailbox = host(shared, &call.key, call.hash, Cause::Message)?;
    let (answer, answered) = oneshot::channel();
    let deadline = Instant::now() + timeout;
    let ask = Ask::Handle { message: Payload::from_bytes(call.message.clone()), deadline, answer };
    if let Err(refused) = mailbox.try_send(ask) {
        return Err(match refused {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(ErrorCode::Busy, format!("{MAILBOX_MAX} messages wait for {}; try again", call.key))
            }
            mpsc::error::TrySendError::Closed(_) => moved(&call.key),
        });
    }
    match tokio::time::timeout_at(deadline, answered).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Error::new(ErrorCode::ProcessFailed, format!("{} ended before it answered", call.key)).after_sending()),
        Err(_) => Err(Error::new(ErrorCode::Timeout, format!("{} did not answer in time", call.key)).after_sending()),
    }
}

fn moved(key: &PlacedKey) -> Error {
    Error::new(ErrorCode::Moved, format!("{key} lives on another control node now; nothing was done"))
}

/// The mailbox of an actor, which is started if it is not there.
fn host(shared: &Arc<Shared>, key: &PlacedKey, hash: u64, cause: Cause) -> Result<mpsc::Sender<Ask>> {
    let view = shared.view();
    if view.frozen || place(&view, hash) != Some(&shared.id) {
        return Err(moved(key));
    }
    let kind = shared.classes.placed(&key.kind).ok_or_else(|| {
        let what =
            format!("control node {} knows no placed actors of the kind {}; register it with `Classes::with_placed`", shared.id, key.kind);
        Error::new(ErrorCode::UnknownClass, what)
    })?;
    let mut state = shared.placed.lock();
    if shared.is_stopping() {
        // Nothing would end it: the actors of this node have been ended already.
        return Err(Error::new(ErrorCode::ShuttingDown, format!("control node {} is stopping", shared.id)));
    }
    match state.actors.get(key) {
        // It packs, or has just ended.
        Some(host) if host.mailbox.is_closed() => return Err(moved(key)),
        Some(host) => return Ok(host.mailbox.clone()),
        None => {}
    }
    if state.actors.len() >= ACTORS_MAX {
        return Err(Error::new(ErrorCode::Busy, format!("control node {} hosts {ACTORS_MAX} placed actors, the most it may", shared.id)));
    }
    state.next += 1;
    let number = state.next;
    let (mailbox, asks) = mpsc::channel(MAILBOX_MAX);
    state.actors.insert(key.clone(), Host { hash, mailbox: mailbox.clone(), number, has_started: false });
    drop(state);
    let birth = actor::Birth { shared: Arc::clone(shared), key: key.clone(), hash, number, kind, cause };
    tokio::spawn(actor::run(birth, asks));
    Ok(mailbox)
}

/// Another node hands over an actor that belongs here.
pub(super) async fn arrive(shared: &Arc<Shared>, belongings: Belongings) -> Result<()> {
    if belongings.record.bytes.len() > RECORD_BYTES_MAX {
        return Err(Error::new(ErrorCode::PayloadTooLarge, format!("a record has at most {RECORD_BYTES_MAX} bytes")));
    }
    if !*shared.placed.is_loaded.borrow() {
        // It may be over, and its mark in the state directory.
        return Err(moved(&belongings.key));
    }
    let deadline = Instant::now() + ARRIVE_TIMEOUT;
    let (before, is_taken_in) = {
        let State { actors, copies, .. } = &*shared.placed.lock();
        (actors.get(&belongings.key).map(|host| host.mailbox.clone()), copies.have_taken_in(&belongings))
    };
    match before {
        None if is_taken_in => {
            tracing::info!(actor = %belongings.key, "a placed actor was handed over once more; what has become of it since stays");
            Ok(())
        }
        None => {
            // Whoever hands over drops its own when it has the answer, and what starts here may fail to.
            let is_durable = shared.classes.placed(&belongings.key.kind).is_some_and(|kind| kind.is_durable);
            let Belongings { key, hash, record } = if is_durable { keep_living(shared, belongings).await } else { belongings };
            host(shared, &key, hash, Cause::Arrived(record)).map(drop)
        }
        Some(mailbox) => {
            let Belongings { key, record, .. } = belongings;
            let (answer, joined) = oneshot::channel();
            let sent = mailbox.send(Ask::Join { record, answer });
            let sent = tokio::time::timeout_at(deadline, sent).await;
            sent.map_err(|_| Error::new(ErrorCode::Busy, format!("{key} is busy")))?.map_err(|_| moved(&key))?;
            // Ended before it had joined: whoever hands over keeps it, and tries again.
            joined.await.map_err(|_| moved(&key))?
        }
    }
}

/// The newest that is known of a key.
#[derive(Debug, Default)]
struct Known {
    /// The last record of its actor.
    record: Option<Record>,
    /// The last one of an actor that is over; a record that is not newer is of that.
    over: Option<Stamp>,
}

/// What is known here of an actor that starts elsewhere: its last record, and whether it is over. A live one is ended, and handed over.
pub(super) async fn surrender(shared: &Arc<Shared>, key: &PlacedKey, hash: u64) -> Result<(Option<Record>, Option<Stamp>)> {
    if !*shared.placed.is_loaded.borrow() {
        return Err(moved(key));
    }
    let view = shared.view();
    let live = shared.placed.lock().actors.get(key).map(|host| host.mailbox.clone());
    match live {
        // Both believe to own it: they find out when their views meet.
        Some(_) if place(&view, hash) == Some(&shared.id) => return Err(moved(key)),
        Some(mailbox) => {
            let (answer, packed) = oneshot::channel();
            // Closed if it packs already; then it is not known yet what it hands over.
            let packing = async {
                mailbox.send(Ask::HandOver { answer }).await.map_err(|_| moved(key))?;
                packed.await.map_err(|_| moved(key))
            };
            tokio::time::timeout(ARRIVE_TIMEOUT, packing).await.map_err(|_| moved(key))??;
        }
        None => {}
    }
    let State { copies, .. } = &mut *shared.placed.lock();
    match copies.give(key) {
        Given::Nothing => Ok((None, copies.over(key))),
        Given::Record(record) => Ok((Some(record), copies.over(key))),
        Given::OnItsWay => Err(moved(key)),
    }
}

/// Finds out what is known of a key: the newest record of those that may have one.
///
/// # Errors
/// `not_connected` if one of them, alive by our view, does not answer: it may host the actor at this moment.
async fn find(shared: &Arc<Shared>, key: &PlacedKey, hash: u64) -> Result<Known> {
    let view = shared.view();
    let asked: BTreeSet<NodeId> = {
        let mut state = shared.placed.lock();
        // Here too: the first message may come before the change was followed.
        state.saw(&view);
        // A node that has just joined remembers nothing: whoever would own the key without it has the actor.
        let before = shared.earlier_ring(&view, None);
        let rings = state.rings.iter().chain([&*before]);
        let named = rings.flat_map(|ring| {
            let partition = ring.size().partition_of(KeyHash::from_bits(hash));
            ring.owner_of(partition).into_iter().chain(ring.successors(partition, COPIES)).cloned().collect::<Vec<_>>()
        });
        // Also one that is leaving: it is not in the view any more, but still there.
        let is_there = |node: &NodeId| view.live.contains_key(node) || shared.peers.find(node).is_some();
        named.filter(|node| *node != shared.id && is_there(node)).collect()
    };
    let mut questions = tokio::task::JoinSet::new();
    for node in asked {
        let (shared, request) = (Arc::clone(shared), PeerRequest::Surrender { key: key.clone(), hash });
        questions.spawn(async move {
            let view = shared.view();
            match shared.peers.ask(&view, &node, &request, FIND_TIMEOUT).await {
                Ok(reply) => Ok(reply),
                // Whatever it had is lost, but for the copies of others.
                Err(error) if *error.code() != ErrorCode::Moved && !view.live.contains_key(&node) => {
                    Ok(PeerReply::Surrendered { record: None, over: None })
                }
                Err(error) => {
                    let what = format!("control node {node}, which may know of it, does not answer: {}", error.message());
                    Err(Error::new(ErrorCode::NotConnected, what))
                }
            }
        });
    }
    let mut newest = {
        let State { copies, .. } = &*shared.placed.lock();
        Known { record: copies.find(key), over: copies.over(key) }
    };
    while let Some(reply) = questions.join_next().await {
        let reply = reply.map_err(|_| Error::new(ErrorCode::Internal, "a question to another control node panicked"))??;
        if let PeerReply::Surrendered { record, over } = reply {
            newest.over = newest.over.max(over);
            if let Some(record) = record
                && newest.record.as_ref().is_none_or(|newest| newest.stamp < record.stamp)
            {
                newest.record = Some(record);
            }
        }
    }
    let over = newest.over;
    newest.record = newest.record.filter(|record| over.is_none_or(|over| record.stamp > over));
    Ok(newest)
}

/// Waits until nothing lives here any more, on a node that leaves; the last one of all has nobody to hand over to.
pub(super) async fn all_moved(shared: &Shared) {
    while !shared.placed.is_empty() && !shared.view().ring.nodes().is_empty() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Follows the view: what belongs elsewhere moves there. Ends with the node.
pub(super) async fn follow(shared: Weak<Shared>) {
    let Some(mut views) = shared.upgrade().map(|shared| shared.view.subscribe()) else { return };
    loop {
        let again = {
            let Some(shared) = shared.upgrade() else { return };
            let view = Arc::clone(&views.borrow_and_update());
            shared.placed.lock().saw(&view);
            !view.frozen && move_out(&shared, &view).await
        };
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ARRIVE_AGAIN), if again => {}
        }
    }
}

/// Hands over what belongs elsewhere; true if something could not be.
async fn move_out(shared: &Arc<Shared>, view: &View) -> bool {
    let leaving: Vec<mpsc::Sender<Ask>> = {
        let state = shared.placed.lock();
        let leaves = |host: &&Host| place(view, host.hash).is_some_and(|owner| *owner != shared.id);
        state.actors.values().filter(leaves).map(|host| host.mailbox.clone()).collect()
    };
    let mut failed = false;
    // Each may have something to put away first.
    for some in leaving.chunks(LEAVING_MAX) {
        let packing = some.iter().map(|mailbox| async {
            let (answer, packed) = oneshot::channel();
            let packing = async {
                if mailbox.send(Ask::HandOver { answer }).await.is_ok() {
                    // Dropped by one that has ended otherwise.
                    let _ = packed.await;
                }
            };
            // One that hangs holds up no other.
            tokio::time::timeout(ARRIVE_TIMEOUT, packing).await.is_err()
        });
        failed |= futures_util::future::join_all(packing).await.contains(&true);
    }
    let packed = shared.placed.lock().copies.send_off();
    for belongings in packed {
        let key = belongings.key.clone();
        let moved = match place(view, belongings.hash) {
            Some(owner) if *owner == shared.id => arrive(shared, belongings).await,
            Some(owner) => shared.peers.ask(view, owner, &PeerRequest::Arrive(Box::new(belongings)), ARRIVE_TIMEOUT).await.map(drop),
            None => Err(moved(&key)),
        };
        if let Err(error) = &moved {
            tracing::warn!(actor = %key, %error, "a placed actor could not be handed over; it is tried again");
            failed = true;
        }
        shared.placed.lock().copies.arrived(&key, moved.is_ok());
    }
    failed
}
