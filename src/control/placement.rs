//! Follows the view: after each change every proxy looks whether its worker is still ours, and workers that became ours get a proxy.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::proxy::{Msg, Proxy};
use super::records;
use super::shared::Shared;
use crate::types::NodeId;

/// How often workers that are not where they belong are looked at again.
const TICK: Duration = Duration::from_secs(1);
/// Pause between two looks whether all workers have moved.
const LEAVE_PAUSE: Duration = Duration::from_millis(20);

/// Pause between two writes of the records.
const SAVE_PAUSE: Duration = Duration::from_secs(5);

/// Runs until the control node has gone.
pub(super) async fn run(shared: Weak<Shared>) {
    let Some(mut views) = shared.upgrade().map(|shared| shared.view.subscribe()) else { return };
    // Also what was published before.
    views.mark_changed();
    if let Some(shared) = shared.upgrade() {
        records::load(&shared).await;
    }
    let mut saved = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_new = tokio::select! {
            changed = views.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            _ = tick.tick() => false,
        };
        let Some(shared) = shared.upgrade() else { return };
        // Of a tick and a change at the same moment, the tick may have come first.
        let is_new = is_new || views.has_changed().unwrap_or(false);
        let view = Arc::clone(&views.borrow_and_update());
        if is_new {
            shared.has_changed(&view);
            tracing::debug!(node = %shared.id, live = view.live.len(), epoch = view.epoch(), frozen = view.frozen, "the view has changed");
        }
        for proxy in shared.directory.all() {
            if is_new || !view.owns(&proxy.id) {
                proxy.cast(Msg::View);
            }
        }
        if is_new && !view.frozen {
            take_over(&shared);
        }
        if saved.elapsed() >= SAVE_PAUSE {
            records::save(&shared).await;
            saved = Instant::now();
        }
    }
}

/// Workers that are known from others, and that became ours.
fn take_over(shared: &Arc<Shared>) {
    for record in shared.records.of(|worker| shared.owns(worker) && *worker != shared.id) {
        if shared.directory.find(&record.worker).is_none() {
            wanted(shared, &record.worker);
        }
    }
}

/// Makes the proxy of a worker that is known by a record.
pub(super) fn wanted(shared: &Arc<Shared>, worker: &NodeId) {
    if let Some(record) = shared.records.find(worker).filter(|record| !record.forgotten)
        && let Some(proxy) = shared.directory.find_or_insert(worker, || Proxy::start(shared, worker.clone()))
    {
        proxy.cast(Msg::Known(Box::new(record)));
    }
}

/// Waits until every worker has moved that belongs to somebody else, and their old channels have ended. Ends at once on a node that owns them all: then there is
/// nobody to go to.
pub(super) async fn all_moved(shared: &Shared) {
    while shared.is_draining() || shared.directory.all().iter().any(|proxy| !shared.owns(&proxy.id)) {
        tokio::time::sleep(LEAVE_PAUSE).await;
    }
}

/// Waits until no other control node uses a link of this one: their owners look for direct ones.
pub(super) async fn none_lent(shared: &Shared) {
    while shared.is_lending() {
        tokio::time::sleep(LEAVE_PAUSE).await;
    }
}
