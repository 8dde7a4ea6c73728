//! The agent: finds a control node, and another one when that is gone.
//!
//! Addresses are those that the holder prefers, then `cluster_addr`, resolved afresh each time; one attempt at a time, with a jittered pause in between. A worker
//! without addresses never dials. A holder that reaches the worker through another control node may ask for a link of its own (`redirect`): the old one stays until the
//! worker is adopted over the new one. A holder that is silent for 2 × `ping_time` is taken for gone. A control node that is about to stop says so (`goaway`): the worker
//! looks for another one after the pause that it was given, while the old link goes on until it ends, unless somebody else adopts it meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::{Backoff, Trust, after_loss};
use super::handler;
use super::shared::{Held, Redirected, Shared};
use crate::cluster::BoxFuture;
use crate::connection::{Link, LinkOptions, LinkParts};
use crate::error::Error;
use crate::types::{NodeId, NodeUri};

/// First and longest pause between attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Dials a control node for the agent.
pub(crate) trait Connector: Send + Sync + 'static {
    /// Tries these addresses first, then those that it knows itself; that of a control node which has just turned us away comes last.
    fn connect(&self, preferred: Vec<NodeUri>, turned_away: Option<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>>;
    /// Tries these addresses and no others.
    fn redirected(&self, addresses: Vec<NodeUri>) -> BoxFuture<'_, Result<Dialled, DialFailure>>;
    /// Dials this control node once more, at an address where it was found.
    fn connect_again(&self, at: NodeUri, control: NodeId) -> BoxFuture<'_, Result<Dialled, Error>>;
}

/// Why no control node was reached.
#[derive(Debug)]
pub(crate) struct DialFailure {
    pub(crate) error: Error,
    /// The pause that one of them asked for. Nobody has proved anything, so it is bounded.
    pub(crate) retry_after: Option<Duration>,
}

/// A link that a [`Connector`] made.
pub(crate) struct Dialled {
    pub(crate) parts: LinkParts,
    pub(crate) options: LinkOptions,
}

pub(super) async fn run(shared: Arc<Shared>, connector: Arc<dyn Connector>) {
    let mut dials = shared.dials.subscribe();
    tokio::select! {
        () = look(&shared, &*connector) => {}
        () = follow_redirects(&shared, &*connector) => {}
        // The links that it has made live on.
        _ = dials.wait_for(|dials| !dials) => tracing::info!(node = %shared.id, "looks for no control node any more"),
    }
}

async fn look(shared: &Arc<Shared>, connector: &dyn Connector) {
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    let mut told = false;
    let mut was_held = false;
    let mut turned_away = None;
    loop {
        lost(shared).await;
        let (wait, was_lost) = (shared.lock().reconnect_after.take(), std::mem::take(&mut was_held));
        let pause = match wait {
            Some(wait) => {
                backoff.reconnect_after(wait, Trust::Trusted);
                Some(backoff.next_delay(rand::random()))
            }
            None => was_lost.then(|| after_loss(shared.config.ping_time, rand::random())),
        };
        if let Some(pause) = pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Somebody else dialled us meanwhile: one more link would only take the place of theirs, with the calls on it.
                () = held(shared) => {
                    backoff.reset();
                    (told, was_held) = (false, true);
                    continue;
                }
            }
        }
        // After the pause: whoever holds us may have told other addresses meanwhile.
        let preferred = shared.lock().preferred.clone();
        let dialled = tokio::select! {
            dialled = connector.connect(preferred, turned_away.take()) => dialled,
            // As above; that the node at the other end may have let us in changes nothing.
            () = held(shared) => {
                backoff.reset();
                (told, was_held) = (false, true);
                continue;
            }
        };
        match dialled {
            // Nothing wakes us when a holder that was silent speaks again.
            Ok(_) if is_held(shared) => {
                backoff.reset();
                (told, was_held) = (false, true);
                continue;
            }
            Ok(dialled) => {
                let way = dialled.parts.established.uri.clone();
                let link = Link::start(dialled.parts, dialled.options, |link| handler::new(Arc::clone(shared), link, way.clone()));
                tracing::info!(node = %shared.id, control = %link.peer().id, remote = link.remote(), "connected");
                shared.introduce(&link);
                if adopted(shared, &link).await {
                    backoff.reset();
                    (told, was_held) = (false, true);
                    continue;
                }
                tracing::warn!(node = %shared.id, control = %link.peer().id, "the control node did not adopt us");
                link.close(Error::new(crate::ErrorCode::Timeout, "not adopted in time"));
                turned_away = way;
                // Whoever told these addresses is of no use now: those of the configuration come first again.
                shared.lock().preferred.clear();
            }
            Err(DialFailure { error, retry_after }) => {
                if let Some(wait) = retry_after {
                    backoff.reconnect_after(wait, Trust::Untrusted);
                }
                if std::mem::replace(&mut told, true) {
                    tracing::debug!(node = %shared.id, %error, "no control node reached");
                } else {
                    // Once at this level: it may last for days.
                    tracing::warn!(node = %shared.id, %error, "no control node reached; trying again for ever");
                }
            }
        }
        let pause = backoff.next_delay(rand::random());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Somebody else dialled us meanwhile.
            () = held(shared) => {
                backoff.reset();
                (told, was_held) = (false, true);
            }
        }
    }
}

/// Dials where the holder asks for it, beside the link that there is.
async fn follow_redirects(shared: &Arc<Shared>, connector: &dyn Connector) {
    let mut redirects = shared.redirects.subscribe();
    while redirects.changed().await.is_ok() {
        let Redirected { addresses, over } = redirects.borrow_and_update().clone();
        let dialled = match connector.redirected(addresses).await {
            // Whoever has asked for it has found a better way itself, or has lost us: this link would only take the place of another one, with the calls on it.
            Ok(_) if !shared.lock().is_held_over(over) => continue,
            Ok(dialled) => dialled,
            Err(DialFailure { error, .. }) => {
                tracing::debug!(node = %shared.id, %error, "the holder cannot be reached directly");
                continue;
            }
        };
        let way = dialled.parts.established.uri.clone();
        let link = Link::start(dialled.parts, dialled.options, |link| handler::new(Arc::clone(shared), link, way));
        shared.introduce(&link);
        if adopted(shared, &link).await {
            tracing::info!(node = %shared.id, control = %link.peer().id, remote = link.remote(), "redirected");
        } else {
            link.close(Error::new(crate::ErrorCode::Timeout, "not adopted in time"));
        }
    }
}

/// Waits until nobody holds the worker, the holder has been silent for too long, or the node at the other end is about to stop.
async fn lost(shared: &Shared) {
    let mut changes = shared.held.subscribe();
    loop {
        if *changes.borrow_and_update() == Held::No {
            return;
        }
        let deadline = {
            let state = shared.lock();
            if state.is_sent_away() {
                return;
            }
            // Told already, and still so after an attempt that led nowhere.
            if state.adoption.next_deadline().is_none() && state.adoption.silent(Instant::now().into_std()) {
                return;
            }
            state.adoption.next_deadline().map(Instant::from_std)
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(deadline) => {
                if shared.lock().adoption.handle_timeout(Instant::now().into_std()) {
                    tracing::warn!(node = %shared.id, "ping timeout: the holder is silent");
                    return;
                }
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until somebody holds the worker who is not silent, and does not go.
async fn held(shared: &Shared) {
    let mut changes = shared.held.subscribe();
    while !is_held(shared) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn is_held(shared: &Shared) -> bool {
    let state = shared.lock();
    !state.adoption.silent(Instant::now().into_std()) && !state.is_sent_away()
}

/// Whether the worker is adopted over `link` before it has been silent for too long.
async fn adopted(shared: &Shared, link: &Link) -> bool {
    let over_link = || {
        let state = shared.lock();
        state.current.as_ref().is_some_and(|channel| channel.link() == link)
    };
    let mut changes = shared.held.subscribe();
    let granted = async {
        loop {
            if over_link() {
                return true;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return false },
                _ = link.ended() => return false,
            }
        }
    };
    tokio::time::timeout(2 * shared.config.ping_time, granted).await.unwrap_or(false)
}
