//! Connections of their own, for calls that ask for one.
//!
//! ```text
//!   call ─► acquire ─┬─ idle one ──────────────────────────────┐
//!                    ├─ dial the worker ─► trusted link ───────┼─► channel ─► bind(term, ticket) ─► the call, its stream
//!                    ├─ ask it to dial ──► `ExclusiveHere` ────┘
//!                    └─ nothing of it works: the main connection
//! ```
//!
//! The way that led to the main connection is tried first: where the worker came to us, it is asked to come once more.
//! Nobody waits for an answer to `bind`: a call behind it that is not welcome is answered `fenced`, which means that nothing was done, and goes over the main
//! connection. Such a link is no adoption: the proxy's state does not know of it, so its end is felt by its own calls only, and the end of the main one not at all.

mod pool;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::pool::{Pool, Take};
use super::proxy::Current;
use super::proxy::state::LinkKey;
use super::shared::Shared;
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::connection::{Channel, IncomingCall, Link, LinkHandler, LinkParts};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::auth::Role;
use crate::proto::head::{EventHead, Rank};
use crate::proto::message::{ExclusiveBind, ExclusiveDial, Message};
use crate::proto::session::Side;
use crate::types::{Incarnation, NodeId};

/// How long a call waits for its connection before it uses the main one.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a worker that was asked may take, so that it can still be dialled.
const ASK_PATIENCE: Duration = Duration::from_millis(1500);

/// One life of a worker, and the term under which it obeys us.
type Adoption = (Incarnation, u64);

/// The exclusive connections of one worker.
pub(super) struct Exclusives {
    worker: NodeId,
    state: Mutex<State>,
}

struct State {
    pool: Pool<Adoption, Channel>,
    /// What the worker was asked for and has not brought.
    asked: HashMap<u64, oneshot::Sender<Result<Brought>>>,
    /// Every one that is open, to be closed with the proxy.
    links: Vec<Link>,
    /// Whether a task waits for idle ones to grow old.
    ages: bool,
}

impl Exclusives {
    pub(super) fn new(worker: NodeId) -> Arc<Self> {
        let state = State { pool: Pool::new(), asked: HashMap::new(), links: Vec::new(), ages: false };
        Arc::new(Self { worker, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for one call. None if there is none to be had, for a reason that the log tells.
    pub(super) async fn acquire(self: &Arc<Self>, shared: &Arc<Shared>, current: &Current, patience: Duration) -> Option<Lease> {
        let adoption = (current.incarnation, current.term);
        loop {
            let take = self.lock().pool.take(&adoption, Instant::now().into_std());
            match take {
                Take::Idle(channel) => {
                    let lease = Lease { of: Arc::clone(self), adoption, channel };
                    if lease.channel.is_open() {
                        return Some(lease);
                    }
                    // It has ended while it waited: dropped, it gives its place back.
                }
                Take::Make => return self.make(shared, current, adoption, patience).await,
                Take::Main => {
                    tracing::debug!(worker = %self.worker, "no exclusive connection is free; the call goes over the main one");
                    return None;
                }
            }
        }
    }

    async fn make(self: &Arc<Self>, shared: &Arc<Shared>, current: &Current, adoption: Adoption, patience: Duration) -> Option<Lease> {
        // Given back if the caller gives up meanwhile.
        let place = Place { of: Arc::clone(self), is_open: false };
        let late = |_| Error::new(ErrorCode::Timeout, "it took too long");
        let made = tokio::time::timeout(patience.min(PATIENCE), self.connect(shared, current)).await.map_err(late).flatten();
        match made.and_then(|link| Ok((link.open_channel()?, link))) {
            Ok((channel, link)) => {
                channel.message(&Message::ExclusiveBind(ExclusiveBind { term: current.term, ticket: current.ticket }));
                tracing::debug!(worker = %self.worker, remote = link.remote(), "an exclusive connection");
                place.filled();
                let mut state = self.lock();
                state.links.retain(|link| !link.has_ended());
                state.links.push(link);
                drop(state);
                Some(Lease { of: Arc::clone(self), adoption, channel })
            }
            Err(error) => {
                tracing::debug!(worker = %self.worker, %error, "no exclusive connection can be had; the call goes over the main one");
                None
            }
        }
    }

    async fn connect(self: &Arc<Self>, shared: &Arc<Shared>, current: &Current) -> Result<Link> {
        let link = match current.channel.link().side() {
            Side::Dialler => self.dial(shared, current).await,
            Side::Listener => match tokio::time::timeout(ASK_PATIENCE, self.ask(&current.channel)).await {
                Ok(Ok(link)) => Ok(link),
                _ if !current.addresses.is_empty() => self.dial(shared, current).await,
                Ok(Err(refused)) => Err(refused),
                Err(_) => Err(Error::new(ErrorCode::Timeout, "the worker was asked to make a connection, and none came")),
            },
        }?;
        if link.peer().incarnation != current.incarnation {
            let error = Error::new(ErrorCode::ConnectionFailed, "another incarnation of the worker was reached");
            link.close(error.clone());
            return Err(error);
        }
        Ok(link)
    }

    async fn dial(&self, shared: &Arc<Shared>, current: &Current) -> Result<Link> {
        let expect = Expect::node(Role::Worker, self.worker.clone());
        let established = dial_and_establish(&current.addresses, &shared.party, &expect, Order::AsGiven, &shared.dial).await?;
        let parts = LinkParts { established, side: Side::Dialler };
        Ok(Link::start(parts, shared.link_options(), |link| {
            let key = shared.add_link(link);
            Arc::new(Handler { shared: Arc::clone(shared), key })
        }))
    }

    async fn ask(self: &Arc<Self>, main: &Channel) -> Result<Link> {
        let request = rand::rng().random();
        let (bring, brought) = oneshot::channel();
        self.lock().asked.insert(request, bring);
        let _asked = Asked { of: Arc::clone(self), request };
        main.message(&Message::ExclusiveDial(ExclusiveDial { request }));
        tokio::select! {
            brought = brought => brought.unwrap_or_else(|_| Err(given_up())).and_then(Brought::take),
            reason = main.link().ended() => Err(reason),
        }
    }

    /// The worker brings what it was asked for, or says why not; false if nobody waits for that.
    pub(super) fn answered(&self, request: u64, answer: Result<Link>) -> bool {
        let waiting = self.lock().asked.remove(&request);
        waiting.is_some_and(|bring| bring.send(answer.map(|link| Brought(Some(link)))).is_ok())
    }

    /// The worker is given up, and all of these with it.
    pub(super) fn close(&self, reason: &Error) {
        let mut state = self.lock();
        state.pool.close();
        state.asked.clear();
        let links = std::mem::take(&mut state.links);
        drop(state);
        links.iter().for_each(|link| link.close(reason.clone()));
    }

    fn returned(self: &Arc<Self>, adoption: Adoption, channel: Channel) {
        // Without a runtime nobody could close it later.
        let runtime = tokio::runtime::Handle::try_current();
        let mut state = self.lock();
        if !channel.is_open() || runtime.is_err() {
            state.pool.lost();
            drop(state);
            return close_idle(&channel);
        }
        if let Some(unwanted) = state.pool.returned(adoption, channel, Instant::now().into_std()) {
            drop(state);
            return close_idle(&unwanted);
        }
        if let Ok(runtime) = runtime
            && !std::mem::replace(&mut state.ages, true)
        {
            runtime.spawn(Arc::clone(self).age());
        }
    }

    /// Closes those that nobody uses, until there are none.
    async fn age(self: Arc<Self>) {
        loop {
            let deadline = {
                let mut state = self.lock();
                let deadline = state.pool.next_deadline();
                state.ages = deadline.is_some();
                deadline
            };
            let Some(deadline) = deadline else { return };
            tokio::time::sleep_until(Instant::from_std(deadline)).await;
            let over = self.lock().pool.expired(Instant::now().into_std(), |channel| channel.link().is_awaited());
            over.iter().for_each(close_idle);
        }
    }
}

fn close_idle(channel: &Channel) {
    channel.link().close(Error::new(ErrorCode::ConnectionFailed, "nobody uses this exclusive connection"));
}

/// A connection in the hands of one call, and of its stream.
pub(super) struct Lease {
    of: Arc<Exclusives>,
    adoption: Adoption,
    channel: Channel,
}

impl Lease {
    /// Where to send the call.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.returned(self.adoption, self.channel.clone());
    }
}

/// The place of a connection that is being made.
struct Place {
    of: Arc<Exclusives>,
    is_open: bool,
}

impl Place {
    fn filled(mut self) {
        self.is_open = true;
        self.of.lock().pool.made();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_open {
            self.of.lock().pool.failed(Instant::now().into_std());
        }
    }
}

/// A link on its way to whoever waits for it. If that one has just gone, nobody else would ever close it.
struct Brought(Option<Link>);

impl Brought {
    fn take(mut self) -> Result<Link> {
        self.0.take().ok_or_else(given_up)
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.close(Error::new(ErrorCode::Timeout, "nobody waits for this connection any more"));
        }
    }
}

fn given_up() -> Error {
    Error::new(ErrorCode::ConnectionFailed, "the worker is given up")
}

/// Something that the worker was asked for, until nobody waits for it.
struct Asked {
    of: Arc<Exclusives>,
    request: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.of.lock().asked.remove(&self.request);
    }
}

/// Nothing but answers is expected on a link that we have dialled for calls.
struct Handler {
    shared: Arc<Shared>,
    key: LinkKey,
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        call.reply(&Err(Error::new(ErrorCode::NotAllowed, "a worker makes no calls")));
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, _: &Channel, _: Message) {}

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, _: u16, _: &Error) {}

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {
        self.shared.remove_link(self.key);
    }
}
