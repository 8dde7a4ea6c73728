//! The handle of a link. Its reader is in `drive`, its writer in `output`, calls under way in `calls`.

mod bulk;
mod calls;
mod drive;
mod output;
mod pace;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use self::bulk::Bulk;
pub use self::calls::{Cancellation, IncomingCall, PendingAnswer};
use self::drive::ReadLoop;
use self::output::{Company, Output, write_loop};
use self::pace::Pace;
use super::establish::Established;
use super::stream::ByteStream;
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Peer;
use crate::proto::frame::{Frame, Kind, LINK_CHANNEL};
use crate::proto::head::{CallHead, EventHead, Outcome, Ping, Rank};
use crate::proto::message::Message;
use crate::proto::session::{ClosedChannel, Session, Side, StreamKey};
use crate::types::Transport;

/// What a link does with what arrives. Methods are called by the reader in order of arrival and must not block.
pub trait LinkHandler: Send + Sync + 'static {
    /// A call to be answered, now or later.
    fn call(&self, call: IncomingCall);
    /// An entry of the peer's journal.
    fn event(&self, channel: &Channel, head: EventHead, payload: Bytes);
    /// A control message.
    fn message(&self, channel: &Channel, message: Message);
    /// A frame came on a channel that was opened by [`Link::open_relayed_channel`].
    fn relayed(&self, _frame: Frame) {}
    /// The peer opened a channel.
    fn channel_opened(&self, channel: &Channel);
    /// A channel has ended.
    fn channel_closed(&self, channel: u16, reason: &Error);
    /// A ping came on a channel; it is answered by the link.
    fn pinged(&self, channel: u16, rank: Rank);
    /// The link has ended; called once, as the last.
    fn closed(&self, reason: &Error);
}

/// What a link is made of, once both sides trust each other.
#[derive(Debug)]
pub struct LinkParts {
    /// Bytes both ways, and who proved what.
    pub established: Established,
    /// Which end this is.
    pub side: Side,
}

/// Times of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// After this silence the peer is pinged; after three times it the link ends. None: never.
    pub keepalive: Option<Duration>,
}

/// Proxies and firewalls forget connections that are silent for a minute, some for half of it.
const KEEPALIVE_MAX: Duration = Duration::from_secs(20);

impl LinkOptions {
    /// For nodes that ping their workers so often: as patient as they are, and never silent for so long that something on the way takes the link for dead.
    pub fn of_ping_time(ping_time: Duration) -> Self {
        Self { keepalive: Some(ping_time.min(KEEPALIVE_MAX)) }
    }
}

/// How a call of ours ended, with whether a late answer may still come to nobody.
pub type CallAnswer = Outcome;

type Token = oneshot::Sender<CallAnswer>;

struct State {
    session: Session<Token>,
    readers: HashMap<StreamKey, Waker>,
    writers: HashMap<StreamKey, Waker>,
    pings: HashMap<u64, oneshot::Sender<PongReceived>>,
    /// Dropped when nobody waits for the call any more, which ends the other half.
    cancels: HashMap<(u16, u32), Vec<oneshot::Sender<()>>>,
    next_ping: u64,
    /// When the link itself has sent its last ping, until that is answered.
    probed: Option<Instant>,
    /// Why it is to end.
    closing: Option<Error>,
    ended: Option<Error>,
    /// Its place among the connections of its node.
    place: Option<OwnedSemaphorePermit>,
}

struct PongReceived {
    at: Instant,
    time_ms: u64,
}

struct Inner {
    peer: Peer,
    side: Side,
    transport: Transport,
    remote: String,
    state: Mutex<State>,
    output: Mutex<Output>,
    /// The task that reads, for when the link is to end.
    reader: AtomicWaker,
    /// The task that writes.
    writer: AtomicWaker,
    /// Whether much is being queued in this moment.
    is_crowded: AtomicBool,
    /// Whether `closing` of the state is set.
    is_closing: AtomicBool,
    /// Something has left while channels are relayed.
    relayed: Notify,
    /// There if streams have ways of their own beside the socket.
    bulk: Option<Bulk>,
    /// `ended` of the state was set.
    over: Notify,
    /// Has no permits; it is closed when the writer has ended.
    flushed: Semaphore,
    /// Bytes of the reader's buffer while it waits.
    #[cfg(test)]
    kept: std::sync::atomic::AtomicUsize,
}

/// One authenticated link; cheap to clone. It lives until the socket ends, [`Link::close`] is called, or the peer breaks the protocol.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.inner.peer.id).field("remote", &self.inner.remote).finish_non_exhaustive()
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Link {
    /// Starts the two tasks of a link. `handler` is made first, so that it sees every frame.
    pub fn start(parts: LinkParts, options: LinkOptions, handler: impl FnOnce(&Link) -> Arc<dyn LinkHandler>) -> Link {
        let Established { wire, peer, .. } = parts.established;
        let (transport, remote) = (wire.facts().transport, wire.facts().remote.clone());
        let bulk = wire.side_streams().map(Bulk::new);
        // Elsewhere bytes cost less than it takes to wake a thread for them.
        let burst_max = if wire.is_enciphering() { pace::BURST_BYTES } else { usize::MAX };
        let (reader, writer) = wire.into_split();
        let mut session = Session::new(parts.side, peer.role);
        if bulk.is_some() {
            session.set_streams_apart();
        }
        let state = State {
            session,
            readers: HashMap::new(),
            writers: HashMap::new(),
            pings: HashMap::new(),
            cancels: HashMap::new(),
            next_ping: 1,
            probed: None,
            closing: None,
            ended: None,
            place: None,
        };
        let inner = Inner {
            peer,
            side: parts.side,
            transport,
            remote,
            state: Mutex::new(state),
            output: Mutex::new(Output::new(writer, burst_max)),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            is_crowded: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            relayed: Notify::new(),
            bulk,
            over: Notify::new(),
            flushed: Semaphore::new(0),
            #[cfg(test)]
            kept: Default::default(),
        };
        let link = Link { inner: Arc::new(inner) };
        let handler = handler(&link);
        let writer = tokio::spawn(write_loop(link.clone()));
        let reader = ReadLoop::new(link.clone(), reader, Pace::new(burst_max), Arc::clone(&handler), options);
        let driven = link.clone();
        let beside = bulk::start(&link, &handler);
        tokio::spawn(async move {
            let reason = reader.run().await;
            bulk::read_rest(&driven, &handler).await;
            driven.end(&reason);
            handler.closed(&reason);
            // The writer ends by itself: `end` closes it, with a bound on what it may still flush.
            let _ = writer.await;
            driven.inner.flushed.close();
            drop(beside);
            driven.lock().session.discard_output();
        });
        link
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    /// Which end this is.
    pub fn side(&self) -> Side {
        self.inner.side
    }

    /// Kind of transport.
    pub fn transport(&self) -> Transport {
        self.inner.transport
    }

    /// The peer's address, as `tcp:127.0.0.1:15004`.
    pub fn remote(&self) -> &str {
        &self.inner.remote
    }

    /// The channel of the link itself, for messages that concern no adoption.
    pub fn channel_zero(&self) -> Channel {
        self.channel(LINK_CHANNEL)
    }

    /// A handle of a channel that is open already.
    pub fn channel(&self, id: u16) -> Channel {
        Channel { link: self.clone(), id }
    }

    /// Opens a channel of our own.
    ///
    /// # Errors
    /// `busy` if the link has too many, `connection_failed` if it has ended.
    pub fn open_channel(&self) -> Result<Channel, Error> {
        let mut state = self.lock();
        if let Some(reason) = &state.ended {
            return Err(reason.clone());
        }
        let id = state.session.open_channel()?;
        drop(state);
        self.wake_writer();
        Ok(self.channel(id))
    }

    /// Opens a channel for a session that is elsewhere: its frames come out as [`LinkHandler::relayed`], and go in by [`Link::relay`].
    ///
    /// # Errors
    /// As [`Link::open_channel`].
    pub fn open_relayed_channel(&self) -> Result<u16, Error> {
        let mut state = self.lock();
        if let Some(reason) = &state.ended {
            return Err(reason.clone());
        }
        let id = state.session.open_relayed_channel()?;
        drop(state);
        self.wake_writer();
        Ok(id)
    }

    /// Sends a frame of such a session, after a wait for room. On a channel or link that has ended it is lost.
    pub async fn relay(&self, channel: u16, kind: Kind, body: Bytes) {
        loop {
            let left = self.inner.relayed.notified();
            tokio::pin!(left);
            // Registered before the look, so that no room is missed.
            left.as_mut().enable();
            let room = {
                let state = self.lock();
                state.ended.is_some() || state.session.has_room_to_relay()
            };
            if room {
                break;
            }
            left.await;
        }
        self.with_session(|session| session.relay(channel, kind, body));
    }

    /// Closes a channel; calls that wait on it fail with `reason`.
    pub fn close_channel(&self, channel: u16, reason: &Error) {
        self.channel(channel).close(reason);
    }

    /// Calls of the peer that are being answered.
    pub fn calls_being_answered(&self) -> usize {
        self.lock().session.calls_being_answered()
    }

    /// Whether the peer waits for an answer, or for bytes that have not left yet.
    pub(crate) fn is_awaited(&self) -> bool {
        let state = self.lock();
        state.ended.is_none() && (state.session.answers_awaited() || state.session.has_output() || state.session.has_stream_output())
    }

    /// Ends the link after what is queued has left, within a second.
    pub fn close(&self, reason: Error) {
        self.lock().closing.get_or_insert(reason);
        if !self.inner.is_closing.swap(true, Ordering::AcqRel) {
            self.inner.reader.wake();
            self.inner.writer.wake();
            self.inner.bulk.iter().for_each(Bulk::close);
        }
    }

    /// Whether this side ends it.
    pub(crate) fn is_closing(&self) -> bool {
        self.inner.is_closing.load(Ordering::Acquire)
    }

    /// Keeps a place among the connections of a node until the link has ended.
    pub(crate) fn occupy(&self, place: OwnedSemaphorePermit) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.place = Some(place);
        }
    }

    /// Waits until the link has ended; returns why.
    pub async fn ended(&self) -> Error {
        loop {
            let over = self.inner.over.notified();
            tokio::pin!(over);
            // Registered before the look, so that no end is missed.
            over.as_mut().enable();
            if let Some(reason) = &self.lock().ended {
                return reason.clone();
            }
            over.await;
        }
    }

    /// Waits until the link has ended and its last words have left, or could not.
    pub async fn flushed(&self) {
        // It never has a permit, so this ends with the error that says that it was closed.
        let _ = self.inner.flushed.acquire().await;
    }

    /// Whether the link has ended.
    pub fn has_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held would be a bug of the session; its state is still a value that can be closed.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with_session<R>(&self, act: impl FnOnce(&mut Session<Token>) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state.session);
        let has_output = state.session.has_output();
        drop(state);
        if has_output {
            self.wake_writer();
        }
        result
    }

    pub(super) fn wait_readable(&self, key: StreamKey, waker: &Waker) {
        self.lock().readers.insert(key, waker.clone());
    }

    pub(super) fn wait_writable(&self, key: StreamKey, waker: &Waker) {
        self.lock().writers.insert(key, waker.clone());
    }

    pub(super) fn release_stream(&self, key: StreamKey) {
        let mut state = self.lock();
        state.readers.remove(&key);
        state.writers.remove(&key);
        state.session.stream_reset(key);
        drop(state);
        self.wake_writer();
    }

    fn end(&self, reason: &Error) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(reason.clone());
        let ClosedChannel { tokens, .. } = state.session.close(reason);
        let wakers: Vec<Waker> = state.readers.drain().map(|(_, waker)| waker).collect();
        let writers: Vec<Waker> = state.writers.drain().map(|(_, waker)| waker).collect();
        state.pings.clear();
        state.cancels.clear();
        state.place = None;
        drop(state);
        let lost = Error::new(
            ErrorCode::ConnectionFailed,
            format!("the connection to {} ({}) ended before the answer came: {}", self.peer().id, self.remote(), reason.message()),
        )
        .after_sending();
        for token in tokens {
            // The caller may have gone: then nobody is left to be told.
            let _ = token.send(Err(lost.clone()));
        }
        wakers.into_iter().chain(writers).for_each(Waker::wake);
        self.inner.relayed.notify_waiters();
        self.inner.over.notify_waiters();
        self.close(reason.clone());
        self.wake_writer();
    }
}

/// A channel of a link; cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    link: Link,
    id: u16,
}

impl Channel {
    /// The link that it is a part of.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Its number on that link.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Whether calls can still be sent.
    pub fn is_open(&self) -> bool {
        let state = self.link.lock();
        state.ended.is_none() && state.session.has_channel(self.id)
    }

    /// Unanswered calls of ours.
    pub fn calls_in_flight(&self) -> usize {
        self.link.lock().session.calls_in_flight(self.id)
    }

    /// Sends a call and waits for its one answer, at most `timeout`. Dropping the future gives the call up.
    ///
    /// # Errors
    /// Those of the other side; `timeout`; `connection_failed`; `busy`. [`Error::may_have_run`] says whether the call had left.
    pub async fn call(&self, head: &CallHead, payload: &Bytes, timeout: Duration) -> CallAnswer {
        let (answer, _) = self.send_call(head, payload, false)?;
        answer.wait(timeout).await
    }

    /// Sends a call that carries a stream: the stream, and the answer to wait for.
    ///
    /// # Errors
    /// As [`Channel::call`], when nothing was sent.
    pub fn call_with_stream(&self, head: &CallHead, payload: &Bytes) -> Result<(PendingAnswer, ByteStream), Error> {
        let (answer, stream) = self.send_call(head, payload, true)?;
        let key = stream.ok_or_else(|| Error::new(ErrorCode::Internal, "the session opened no stream"))?;
        Ok((answer, ByteStream::new(self.link.clone(), key)))
    }

    fn send_call(&self, head: &CallHead, payload: &Bytes, with_stream: bool) -> Result<(PendingAnswer, Option<StreamKey>), Error> {
        let (token, answer) = oneshot::channel();
        let mut state = self.link.lock();
        if let Some(reason) = &state.ended {
            let what = format!("{} is not connected: {}; nothing was sent", self.link.peer().id, reason.message());
            return Err(Error::new(ErrorCode::ConnectionFailed, what));
        }
        let (call, stream) = state.session.call(self.id, head, payload, with_stream, token).map_err(|unsent| unsent.error)?;
        let company = Company::of(state.session.calls_in_flight(self.id));
        drop(state);
        self.link.push(company);
        Ok((PendingAnswer::new(self.clone(), call, answer), stream))
    }

    /// Sends an entry of the journal.
    pub fn event(&self, head: &EventHead, payload: &[u8]) {
        self.link.with_session(|session| session.event(self.id, head, payload));
    }

    /// Sends a control message. It is lost if the link has ended, as any message on the way would be.
    pub fn message(&self, message: &Message) {
        self.link.with_session(|session| session.message(self.id, message));
    }

    /// Measures a round trip; also returns the peer's wall clock in milliseconds since 1970.
    ///
    /// # Errors
    /// `timeout`, `connection_failed`.
    pub async fn ping(&self, rank: Rank, timeout: Duration) -> Result<(Duration, u64), Error> {
        let (token, pong) = oneshot::channel();
        let sent = Instant::now();
        let seq = {
            let mut state = self.link.lock();
            if let Some(reason) = &state.ended {
                return Err(reason.clone());
            }
            let seq = state.next_ping;
            state.next_ping += 1;
            state.pings.insert(seq, token);
            state.session.ping(self.id, &Ping { seq, time_ms: unix_time_ms(), rank });
            seq
        };
        self.link.wake_writer();
        match tokio::time::timeout(timeout, pong).await {
            Ok(Ok(pong)) => Ok((pong.at.saturating_duration_since(sent), pong.time_ms)),
            Ok(Err(_)) => Err(Error::new(ErrorCode::ConnectionFailed, format!("the connection to {} ended", self.link.peer().id))),
            Err(_) => {
                self.link.lock().pings.remove(&seq);
                Err(Error::new(ErrorCode::Timeout, format!("{} did not answer a ping within {timeout:?}", self.link.peer().id)))
            }
        }
    }

    /// Closes the channel: calls that wait on it fail with `reason`. On channel 0 nothing happens: close the link.
    pub fn close(&self, reason: &Error) {
        if self.id == LINK_CHANNEL {
            return;
        }
        let closed = self.link.with_session(|session| session.close_channel(self.id, reason));
        let error = reason.clone().after_sending();
        for token in closed.tokens {
            let _ = token.send(Err(error.clone()));
        }
        self.link.wake_streams(&closed.streams);
        self.link.cancel_channel(self.id);
    }
}

impl Link {
    fn wake_writable(&self, keys: &mut Vec<StreamKey>) {
        let mut state = self.lock();
        let wakers: Vec<Waker> = keys.drain(..).filter_map(|key| state.writers.remove(&key)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nobody waits for the calls of a channel any more.
    fn cancel_channel(&self, channel: u16) {
        self.lock().cancels.retain(|(of, _), _| *of != channel);
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.inner.kept.load(Ordering::Relaxed) + self.output().kept_bytes()
    }

    fn wake_streams(&self, keys: &[StreamKey]) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        for key in keys {
            wakers.extend(state.readers.remove(key));
            wakers.extend(state.writers.remove(key));
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Wall clock, milliseconds since 1970.
pub(crate) fn unix_time_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
