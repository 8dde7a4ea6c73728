//! Where a call goes: to a proxy of this node, or to the control node that owns the worker.
//!
//! ```text
//!   call ─► proxy here, obeyed? ── yes ─► its channel                             (hot: one look into the directory)
//!              │ no
//!              ├─ it moves just now ──► wait until it has, look again
//!              ├─ another one owns it ─► the link towards that one, hops + 1
//!              ├─ ours, unknown here ──► whoever had it before, hops + 1, unless that one has just sent it to us; then not_found
//!              └─ ours, not connected ─► while the view is new: the same, or `moved`; else not_connected
//! ```
//!
//! Views differ for a moment after each change, so a call may meet a node that has the worker no more, or not yet: that one passes it on, at most
//! [`HOPS_MAX`] times, and then says `moved`: nothing was done. Only the node where the call came in tries again, a few times, after a pause.
//!
//! `not_found` is said only by an owner that knows nothing of the worker and has heard as much from whoever would have had it before, or cannot ask that one
//! although nothing has changed for a while: of thousands of workers that move, the last ones take longer than that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use tokio::time::Instant;

use super::exclusive::Lease;
use super::proxy::{Current, Proxy};
use super::shared::Shared;
use super::view::View;
use crate::cluster::{BoxFuture, NodeCall, StreamedCall, address};
use crate::connection::Channel;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::{CallHead, HOPS_MAX};
use crate::types::{Incarnation, NodeId};

/// How often a call is tried again because its worker has moved, and the pauses in between: about a second, which a control node that joins needs for its links.
const TRIES_MAX: u32 = 8;
const PAUSE_MS: std::ops::Range<u64> = 20..200;
/// How long after a change of the view a worker that should be here is looked for where it was before.
pub(super) const SETTLING: Duration = Duration::from_secs(5);
/// How long a call waits for a worker that moves.
const MOVE_MAX: Duration = Duration::from_secs(5);

/// One look.
enum Step {
    /// The worker obeys this node.
    Here(Arc<Proxy>, Arc<Current>),
    /// Somebody else knows more.
    There(Channel),
    /// It moves just now.
    Wait(Arc<Proxy>),
}

fn look(shared: &Shared, search: &Search) -> Result<Step> {
    let (node, hops) = (&search.node, search.hops);
    let proxy = shared.directory.find(node);
    if let Some(proxy) = &proxy {
        if let Some(current) = proxy.current() {
            return Ok(Step::Here(Arc::clone(proxy), current));
        }
        if proxy.is_moving() {
            return Ok(Step::Wait(Arc::clone(proxy)));
        }
    }
    let view = shared.view();
    let target = match view.owner(node) {
        Some(owner) if *owner != view.me => Some(owner.clone()),
        // It has lost touch with the others, and so believes to own everything.
        _ if view.frozen => return Err(moved(node)),
        // Whoever sent it here sees us, and we do not see anybody yet.
        Some(_) if hops > 0 && view.live.len() == 1 && shared.is_settling(&view) => return Err(moved(node)),
        Some(_) => earlier(shared, &view, search, proxy.is_some())?,
        None => None,
    };
    match target {
        Some(_) if hops >= HOPS_MAX => Err(moved(node)),
        Some(target) => match shared.peers.towards(&view, &target) {
            Some(link) => Ok(Step::There(link.channel_zero())),
            None => {
                let what = format!("control node {target}, which owns {node}, cannot be reached now; nothing was done. Try again");
                Err(Error::new(ErrorCode::NotConnected, what))
            }
        },
        None if proxy.is_some() => {
            let what = format!("{node} is not connected now; nothing was done. Try again when it is back (see `nodes`)");
            Err(Error::new(ErrorCode::NotConnected, what))
        }
        None => Err(unknown(node)),
    }
}

/// Who may still have a worker that is ours and not here, to be asked for it; none if nobody has it.
fn earlier(shared: &Shared, view: &View, search: &Search, is_known: bool) -> Result<Option<NodeId>> {
    let Search { node, hops, from, .. } = search;
    let is_settling = shared.is_settling(view);
    let unsure = || if is_settling { Err(moved(node)) } else { Ok(None) };
    match had_before(shared, view, node) {
        None => Ok(None),
        // It was asked, and knows as much as we do: the worker is on its way, or nobody knows it.
        Some(before) if from.as_ref() == Some(&before) => {
            if is_known {
                unsure()
            } else {
                Ok(None)
            }
        }
        // Only that one itself knows: whoever is asked to pass the call on to it sends it back to us.
        Some(before) if shared.peers.find(&before).is_none() => unsure(),
        Some(_) if *hops >= HOPS_MAX => unsure(),
        Some(_) if is_known && !is_settling => Ok(None),
        Some(before) => Ok(Some(before)),
    }
}

/// Who owned a worker before the last change: if we have joined, whoever would own it without us; if somebody leaves, that one, while it is still there.
fn had_before(shared: &Shared, view: &View, node: &NodeId) -> Option<NodeId> {
    let leaving = shared.peers.names().into_iter().filter(|peer| !view.live.contains_key(peer));
    for peer in leaving {
        if peer == *node || shared.earlier_ring(view, Some(&peer)).owner(node.as_str()) == Some(&peer) {
            return Some(peer);
        }
    }
    shared.earlier_ring(view, None).owner(node.as_str()).cloned()
}

fn moved(node: &NodeId) -> Error {
    Error::new(ErrorCode::Moved, format!("the control nodes do not agree yet who owns {node}; nothing was done. Try again"))
}

pub(super) fn unknown(node: &NodeId) -> Error {
    Error::new(ErrorCode::NotFound, format!("no node {node} is known; see `nodes`"))
}

/// The connection of its own that a call asks for, if there is one to be had. Over a lent link the worker is not near enough to make another one.
async fn exclusive(shared: &Arc<Shared>, head: &mut CallHead, proxy: &Proxy, current: &Current, left: Duration) -> Option<Lease> {
    match std::mem::take(&mut head.exclusive) {
        true if !current.is_lent => proxy.exclusives.acquire(shared, current, left).await,
        _ => None,
    }
}

/// Whether a call has not left on its own connection, or was not taken in there: then the main one is left to it.
fn goes_over_main(error: &Error) -> bool {
    let unsent = !error.may_have_run() && matches!(error.code(), ErrorCode::ConnectionFailed | ErrorCode::Fenced);
    if unsent {
        tracing::debug!(%error, "a call that asked for a connection of its own goes over the main one");
    }
    unsent
}

/// Makes the header ready for the worker itself.
fn for_worker(head: &mut CallHead, node: &NodeId, current: &Current) -> Result<()> {
    // Errors name it; to the worker the channel says it.
    head.node = Some(node.clone());
    address(head, current.incarnation)?;
    head.node = None;
    Ok(())
}

/// Makes the header ready for another control node.
fn pass_on(head: &mut CallHead, node: &NodeId, hops: u8, left: Duration) {
    head.node = Some(node.clone());
    head.hops = hops + 1;
    head.timeout_ms = millis(left);
}

fn millis(left: Duration) -> u32 {
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
}

/// What the caller is told of a failure on the way to the worker.
fn told(error: Error, incarnation: Incarnation) -> Error {
    match error.code() {
        ErrorCode::Fenced => Error::new(ErrorCode::Moved, error.message().to_owned()),
        _ => error.addressed_to(incarnation),
    }
}

/// What the one who called is told in the end.
fn last_word(error: Error, hops: u8) -> Error {
    if hops == 0 && *error.code() == ErrorCode::Moved { Error::new(ErrorCode::NotConnected, error.message().to_owned()) } else { error }
}

/// How long a call goes on looking.
struct Search {
    node: NodeId,
    /// Control nodes that it has crossed, and the last of them.
    hops: u8,
    from: Option<NodeId>,
    deadline: Instant,
    tries: u32,
}

impl Search {
    fn new(call: &mut NodeCall, from: Option<NodeId>) -> Result<Self> {
        let node = call.head.node.take().ok_or_else(|| Error::new(ErrorCode::NotFound, "the call names no node"))?;
        Ok(Self { node, hops: call.head.hops, from, deadline: Instant::now() + call.timeout, tries: 0 })
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Waits before another look after `error`; false if it is final.
    async fn again(&mut self, error: &Error) -> bool {
        if self.hops > 0 || *error.code() != ErrorCode::Moved || self.tries >= TRIES_MAX {
            return false;
        }
        self.tries += 1;
        let pause = Duration::from_millis(rand::rng().random_range(PAUSE_MS));
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    /// Where to go, when no move is under way.
    async fn look(&self, shared: &Shared) -> Result<Step> {
        loop {
            match look(shared, self)? {
                Step::Wait(proxy) => proxy.moved(self.left().min(MOVE_MAX)).await?,
                found => return Ok(found),
            }
        }
    }
}

/// Brings a call to its worker, wherever that is. `from` is the control node that has passed it on.
pub(super) async fn call(shared: &Arc<Shared>, mut call: NodeCall, from: Option<NodeId>) -> Result<Bytes> {
    let mut search = Search::new(&mut call, from)?;
    let (mut head, first) = (call.head, call.payload.into_bytes());
    let (addressed, wants_own) = (head.incarnation, head.exclusive);
    loop {
        let outcome = match search.look(shared).await {
            Ok(Step::Here(proxy, current)) => {
                for_worker(&mut head, &search.node, &current)?;
                let own = match head.exclusive {
                    false => None,
                    true => match exclusive(shared, &mut head, &proxy, &current, search.left()).await {
                        None => None,
                        Some(lease) => {
                            head.timeout_ms = millis(search.left());
                            Some(lease.channel().call(&head, &first, search.left()).await)
                                .filter(|own| !own.as_ref().is_err_and(goes_over_main))
                        }
                    },
                };
                let outcome = match own {
                    Some(outcome) => outcome,
                    None => current.channel.call(&head, &first, search.left()).await,
                };
                outcome.map_err(|error| told(error, current.incarnation))
            }
            Ok(Step::There(channel)) => {
                let left = search.left();
                pass_on(&mut head, &search.node, search.hops, left);
                channel.call(&head, &first, left).await
            }
            Ok(Step::Wait(_)) => Err(moved(&search.node)),
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if search.again(&error).await => {
                (head.node, head.incarnation, head.hops, head.exclusive) = (None, addressed, search.hops, wants_own);
            }
            Err(error) => return Err(last_word(error, search.hops)),
            done => return done,
        }
    }
}

/// The same with a stream. Once it is open, the call is not tried again.
pub(super) async fn call_with_stream(shared: &Arc<Shared>, mut call: NodeCall, from: Option<NodeId>) -> Result<StreamedCall> {
    let mut search = Search::new(&mut call, from)?;
    let (mut head, payload) = (call.head, call.payload.into_bytes());
    loop {
        let error = match search.look(shared).await {
            Ok(Step::Here(proxy, current)) => {
                for_worker(&mut head, &search.node, &current)?;
                let lease = exclusive(shared, &mut head, &proxy, &current, search.left()).await;
                head.timeout_ms = millis(search.left());
                let own = match lease.map(Arc::new) {
                    None => None,
                    Some(lease) => match lease.channel().call_with_stream(&head, &payload) {
                        Ok((answer, stream)) => Some((answer, stream.keeping(Arc::clone(&lease) as _), Some(lease))),
                        Err(error) if goes_over_main(&error) => None,
                        Err(error) => return Err(error),
                    },
                };
                let (answer, stream, lease) = match own {
                    Some(own) => own,
                    None => {
                        let (answer, stream) = current.channel.call_with_stream(&head, &payload)?;
                        (answer, stream, None)
                    }
                };
                let (left, hops) = (search.left(), search.hops);
                let answer = async move {
                    let outcome = answer.wait(left).await.map_err(|error| told(error, current.incarnation));
                    drop(lease);
                    outcome.map_err(|error| last_word(error, hops))
                };
                return Ok(StreamedCall { answer: Box::pin(answer), stream });
            }
            Ok(Step::There(channel)) => {
                let (left, hops) = (search.left(), search.hops);
                pass_on(&mut head, &search.node, hops, left);
                let (answer, stream) = channel.call_with_stream(&head, &payload)?;
                let answer: BoxFuture<'static, Result<Bytes>> =
                    Box::pin(async move { answer.wait(left).await.map_err(|error| last_word(error, hops)) });
                return Ok(StreamedCall { answer, stream });
            }
            Ok(Step::Wait(_)) => moved(&search.node),
            Err(error) => error,
        };
        if !search.again(&error).await {
            return Err(last_word(error, search.hops));
        }
    }
}
