//! What keeps the actors of durable kinds going when their nodes have gone.
//!
//! ```text
//!   a record ──► a copy and a file here ──► copies and files on the next two nodes ──► it is kept
//!   a copy whose key is ours, and no actor ──► the actor is started, and finds the newest record as with a message
//!   a copy whose key is another node's      ──► that node gets it once after each change; without a reason to keep it, it goes here
//!   an actor that is over                   ──► its copies and files go everywhere; a mark stays, so that a copy which comes late does not bring it back
//! ```
//!
//! Nothing is started while the control plane changes: nodes that start one after the other would each take what belongs to one of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::messages::{PeerReply, PeerRequest};
use super::super::shared::Shared;
use super::super::view::View;
use super::actor::Cause;
use super::shelf::{Found, Mark};
use super::{ARRIVE_TIMEOUT, Belongings, COPIES, HandOvers, Over, Record, Stamp, State, host, place};
use crate::cluster::PlacedKey;
use crate::job::Kept;
use crate::ring::KeyHash;
use crate::types::{NodeId, Payload};

/// Times that a record is sent again at once, under a higher age, because somebody has a mark that is not older.
const RAISES_MAX: usize = 4;
/// How long the view must have been the same before actors are started from records.
pub(super) const SETTLED: Duration = Duration::from_secs(2);
/// The same for a node that sees none of those with which it is to be: it may only not have found them yet, and what it has records of may live there. Longer than a
/// split takes to be noticed, and than the pauses between two dials.
const ALONE: Duration = Duration::from_secs(30);
/// Pause before a record is sent again to a node that did not take it.
const AGAIN: Duration = Duration::from_secs(3);
/// Pause between two looks at records without an actor.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Actors that are started at one look; each asks other nodes what they know of it.
const STARTS_MAX: usize = 64;

/// Who has the records of an actor kept, and what for.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) key: PlacedKey,
    pub(super) hash: u64,
    /// The life of the actor: raised here if one of its key was over elsewhere, in a life that is not older.
    pub(super) life: Arc<AtomicU64>,
    /// To which life that was; none yet if it is 0.
    pub(super) raised: u64,
    /// Whoever waits for a record hears from it.
    pub(super) keeping: Arc<watch::Sender<Kept>>,
}

/// How far a record has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    /// All that are to keep a copy have taken it.
    Everywhere,
    /// Somebody did not answer.
    NotYet,
    /// Somebody has a mark that is not older, and refuses it: the newest of them.
    Refused(Stamp),
}

/// The newest record of an actor, with the number of the last wish that it fulfils.
#[derive(Clone)]
pub(super) struct Latest {
    pub(super) stamp: Stamp,
    pub(super) hand_overs: HandOvers,
    pub(super) record: Payload,
    pub(super) asked: u64,
}

impl Shared {
    fn is_durable(&self, key: &PlacedKey) -> bool {
        self.classes.placed(&key.kind).is_some_and(|kind| kind.is_durable)
    }
}

/// Keeps a copy for another node, or for the case that this one dies; returns when it is in its file, if its kind is durable.
///
/// # Errors
/// The mark of an actor that is over, and has not begun anew since.
pub(in super::super) async fn keep(shared: &Arc<Shared>, belongings: Belongings) -> Result<(), Stamp> {
    let key = belongings.key.clone();
    let dropped = shared.placed.lock().copies.keep(belongings)?;
    for key in dropped.iter().filter(|key| shared.is_durable(key)) {
        shelve(shared, key).await;
    }
    if shared.is_durable(&key) {
        shelve(shared, &key).await;
    }
    Ok(())
}

/// Keeps what an actor that lives, or lived until just now, goes on from: above the mark of another one of its key that was over meanwhile. Tells what it goes on from.
pub(super) async fn keep_living(shared: &Arc<Shared>, mut belongings: Belongings) -> Belongings {
    if let Err(over) = keep(shared, belongings.clone()).await {
        belongings.record.stamp = belongings.record.stamp.above(over);
        // Refused again only if another mark has come in this moment; then whoever keeps its records raises it.
        let _ = keep(shared, belongings.clone()).await;
    }
    belongings
}

/// The actor is over: its copy goes, unless it is newer, and a mark stays.
pub(in super::super) async fn discard(shared: &Arc<Shared>, key: &PlacedKey, over: Over) {
    let dropped = shared.placed.lock().copies.discard(key, over);
    for key in dropped.iter().chain([key]).filter(|key| shared.is_durable(key)) {
        shelve(shared, key).await;
    }
}

/// A copy that others keep goes, unless it is newer.
async fn give_up(shared: &Arc<Shared>, key: &PlacedKey, stamp: Stamp) {
    shared.placed.lock().copies.give_up(key, stamp);
    // There may be a file without a copy, which had no room.
    shelve(shared, key).await;
}

/// Makes the file of a key say what is kept of it here.
async fn shelve(shared: &Arc<Shared>, key: &PlacedKey) {
    // One at a time, and what is written is what is there then: of two changes the later one stays.
    let mut shelf = Arc::clone(&shared.placed.shelf).lock_owned().await;
    let (kept, over, key) = {
        let State { copies, .. } = &*shared.placed.lock();
        (copies.belongings(key), copies.mark(key).cloned(), key.clone())
    };
    let written = tokio::task::spawn_blocking(move || match (kept, over) {
        (Some(belongings), _) => shelf.write(&belongings),
        (None, Some(Over { stamp, hand_overs })) => shelf.mark(&Mark { key, stamp, hand_overs }),
        (None, None) => shelf.remove(&key),
    });
    let written = written.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let had_failed = shared.placed.shelf_has_failed.swap(written.is_err(), Ordering::Relaxed);
    match written {
        Ok(()) if had_failed => tracing::info!("the records of placed actors are written again"),
        Err(error) if !had_failed => {
            tracing::warn!(%error, "the records of placed actors cannot be written; other control nodes have copies, but no restart of all of them is outlived");
        }
        _ => {}
    }
}

/// Sends the newest record of an actor to where it is kept: again when those change, never more than one at a time. Ends with the actor, or when it is told to.
pub(super) async fn replicate(mut keeper: Keeper, mut records: watch::Receiver<Option<Latest>>) {
    let mut views = keeper.shared.view.subscribe();
    let (mut done, mut sent) = (None, Sent::Everywhere);
    loop {
        let latest = records.borrow_and_update().clone();
        let view = Arc::clone(&views.borrow_and_update());
        if let Some(Latest { stamp, hand_overs, record, asked }) = latest {
            // A wish for what is kept already is fulfilled.
            if done != Some((stamp, view.epoch())) || sent != Sent::Everywhere {
                let record = Record { stamp, hand_overs, bytes: record.into_bytes().into() };
                sent = keeper.send_above(&view, Belongings { key: keeper.key.clone(), hash: keeper.hash, record }).await;
                done = Some((stamp, view.epoch()));
            }
            // What is refused is not kept: the next one that starts would know nothing of it.
            if !matches!(sent, Sent::Refused(_)) {
                keeper.keeping.send_replace(Kept { version: stamp.version, asked });
            }
        }
        tokio::select! {
            changed = records.changed() => if changed.is_err() { return },
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if sent != Sent::Everywhere => {}
        }
    }
}

impl Keeper {
    /// Sends a record, under a higher age as long as somebody refuses it: the actor lives, and is not what was over there.
    async fn send_above(&mut self, view: &View, mut belongings: Belongings) -> Sent {
        let mut sent = Sent::NotYet;
        for _ in 0..RAISES_MAX {
            // It may have been recorded before the actor heard of its new age.
            belongings.record.stamp.life = belongings.record.stamp.life.max(self.raised);
            sent = send(&self.shared, view, &belongings).await;
            let Sent::Refused(over) = sent else { break };
            self.raised = belongings.record.stamp.above(over).life;
            self.life.fetch_max(self.raised, Ordering::SeqCst);
            tracing::info!(actor = %self.key, life = self.raised, "a placed actor lives on that was over elsewhere");
        }
        sent
    }
}

async fn send(shared: &Arc<Shared>, view: &View, belongings: &Belongings) -> Sent {
    let here = async {
        match shared.is_durable(&belongings.key) {
            true => keep(shared, belongings.clone()).await.map_or_else(Sent::Refused, |()| Sent::Everywhere),
            false => Sent::Everywhere,
        }
    };
    let request = PeerRequest::Keep(Box::new(belongings.clone()));
    let elsewhere = other_nodes(view, belongings.hash).map(|node| {
        let (request, key) = (&request, &belongings.key);
        async move {
            let kept = shared.peers.ask(view, &node, request, ARRIVE_TIMEOUT).await;
            match kept {
                Ok(PeerReply::Done) => Sent::Everywhere,
                Ok(PeerReply::Over { stamp }) => Sent::Refused(stamp),
                kept => {
                    tracing::debug!(actor = %key, %node, ?kept, "a record was not kept");
                    Sent::NotYet
                }
            }
        }
    });
    let (here, elsewhere) = tokio::join!(here, join_all(elsewhere));
    elsewhere.into_iter().fold(here, |one, other| match (one, other) {
        (Sent::Refused(one), Sent::Refused(other)) => Sent::Refused(one.max(other)),
        (Sent::Refused(over), _) | (_, Sent::Refused(over)) => Sent::Refused(over),
        (Sent::Everywhere, Sent::Everywhere) => Sent::Everywhere,
        _ => Sent::NotYet,
    })
}

/// Those that keep copies beside the owner; this node may be one of them.
fn next_nodes(view: &View, hash: u64) -> Vec<NodeId> {
    let partition = view.ring.size().partition_of(KeyHash::from_bits(hash));
    view.ring.successors(partition, COPIES).into_iter().cloned().collect()
}

/// The same, but for this node.
fn other_nodes(view: &View, hash: u64) -> impl Iterator<Item = NodeId> {
    next_nodes(view, hash).into_iter().filter(|node| *node != view.me)
}

/// An actor is over: nothing is kept of it any more.
pub(super) async fn discard_everywhere(shared: &Arc<Shared>, key: &PlacedKey, hash: u64, over: Over) {
    discard(shared, key, over.clone()).await;
    let view = shared.view();
    let Over { stamp, hand_overs } = over;
    let request = PeerRequest::Discard { key: key.clone(), stamp, hand_overs };
    join_all(other_nodes(&view, hash).map(|node| {
        let (request, view) = (&request, &view);
        async move {
            // Whoever is away offers its copy when it is back, or asks, and hears of the mark then.
            if let Err(error) = shared.peers.ask(view, &node, request, ARRIVE_TIMEOUT).await {
                tracing::debug!(actor = %key, %node, %error, "the copy of an actor that is over stays for now");
            }
        }
    }))
    .await;
}

/// Reads the records of an earlier life of this node, and from then on starts what belongs here and has no actor. Ends with the node.
pub(in super::super) async fn resume(shared: Weak<Shared>) {
    let Some(mut views) = shared.upgrade().map(|shared| shared.view.subscribe()) else { return };
    if let Some(shared) = shared.upgrade() {
        load(&shared).await;
    }
    let mut known = Arc::clone(&views.borrow_and_update());
    let (mut changed_at, mut is_offered) = (Instant::now(), false);
    loop {
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_PAUSE) => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        let view = Arc::clone(&views.borrow_and_update());
        // Also if it has changed in the moment in which the pause was over.
        if !Arc::ptr_eq(&view, &known) {
            (changed_at, is_offered) = (Instant::now(), false);
            shared.placed.lock().troubles.hurry(changed_at);
            known = Arc::clone(&view);
        }
        let is_alone = view.live.len() <= 1 && !shared.config.cluster_addr.is_empty();
        if view.frozen || shared.will_stop() || changed_at.elapsed() < if is_alone { ALONE } else { SETTLED } {
            continue;
        }
        let kept = {
            let State { copies, troubles, .. } = &mut *shared.placed.lock();
            troubles.retain(|key| copies.contains(key));
            copies.of(|key| shared.is_durable(key))
        };
        let (mut left, mut are_taken) = (STARTS_MAX, true);
        for (key, hash, stamp) in kept {
            match place(&view, hash) {
                Some(owner) if *owner == shared.id => left -= usize::from(left > 0 && start(&shared, &key, hash)),
                Some(owner) => are_taken &= offer(&shared, &view, owner, (&key, hash, stamp), is_offered).await,
                None => {}
            }
        }
        is_offered |= are_taken;
    }
}

async fn load(shared: &Arc<Shared>) {
    let mut shelf = Arc::clone(&shared.placed.shelf).lock_owned().await;
    let read = tokio::task::spawn_blocking(move || shelf.load()).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    match read {
        Ok(found) => {
            let State { copies, .. } = &mut *shared.placed.lock();
            for found in found {
                match found {
                    Found::Record(belongings) => drop(copies.keep(belongings)),
                    Found::Over(Mark { key, stamp, hand_overs }) => drop(copies.discard(&key, Over { stamp, hand_overs })),
                }
            }
        }
        Err(error) => tracing::error!(%error, "the records of placed actors in the state directory cannot be read"),
    }
    shared.placed.is_loaded.send_replace(true);
}

/// Starts an actor that is known by a record alone; false if it is there already, or was tried just before.
fn start(shared: &Arc<Shared>, key: &PlacedKey, hash: u64) -> bool {
    let is_tried_before = {
        let state = shared.placed.lock();
        if state.actors.contains_key(key) || !state.troubles.may_start(key, Instant::now()) {
            return false;
        }
        state.troubles.of(key).is_some()
    };
    match host(shared, key, hash, Cause::Record) {
        Ok(_) if is_tried_before => tracing::debug!(actor = %key, node = %shared.id, "a placed actor is tried again here"),
        Ok(_) => tracing::info!(actor = %key, node = %shared.id, "a placed actor goes on here"),
        Err(error) if shared.placed.is_news(key, &error) => {
            tracing::warn!(actor = %key, %error, "a placed actor that belongs here was not started; it is tried again");
        }
        Err(error) => tracing::debug!(actor = %key, %error, "a placed actor that belongs here was not started, as before"),
    }
    true
}

/// Another node owns the key; false if it did not answer. It may know nothing of it, if those that should have had a copy were lost; and a copy that has no business here goes there.
async fn offer(shared: &Arc<Shared>, view: &View, owner: &NodeId, (key, hash, stamp): (&PlacedKey, u64, Stamp), is_offered: bool) -> bool {
    let is_ours_to_keep = next_nodes(view, hash).contains(&shared.id);
    if is_ours_to_keep && is_offered {
        return true;
    }
    let Some(belongings) = shared.placed.lock().copies.belongings(key) else { return true };
    let taken = shared.peers.ask(view, owner, &PeerRequest::Keep(Box::new(belongings)), ARRIVE_TIMEOUT).await;
    match &taken {
        Ok(PeerReply::Over { stamp }) => {
            tracing::info!(actor = %key, %owner, "a placed actor is over already; what was left of it here is dropped");
            discard(shared, key, Over { stamp: *stamp, hand_overs: HandOvers::default() }).await;
        }
        Ok(_) if !is_ours_to_keep => give_up(shared, key, stamp).await,
        Ok(_) => {}
        Err(error) => tracing::debug!(actor = %key, %owner, %error, "a record was not taken by the owner of its key"),
    }
    taken.is_ok()
}
