//! The handle of a link and the two tasks that drive it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::establish::Established;
use super::stream::ByteStream;
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Peer;
use crate::proto::frame::{self, LINK_CHANNEL};
use crate::proto::head::{CallHead, EventHead, Outcome, Ping, Pong, Rank};
use crate::proto::message::Message;
use crate::proto::session::{ClosedChannel, Incoming, Outbox, Session, Side, StreamKey};
use crate::transport::{ReadHalf, WriteHalf};
use crate::types::Transport;

/// Bytes that one turn of the writer takes from the lanes. Small, so that an urgent frame waits for little.
const WRITE_BYTES: usize = 128 * 1024;
/// The reader's buffer grows between these while the peer sends much, and shrinks again.
const READ_BYTES_MIN: usize = 2 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;
/// How long a closing link may take to send what is queued.
const CLOSE_FLUSH: Duration = Duration::from_secs(1);
/// Silences of `keepalive` after which a peer is taken for gone.
const KEEPALIVE_MISSES: u32 = 3;
/// Pieces of one vectored write.
const PIECES_MAX: usize = 32;

/// What a link does with what arrives. Methods are called by the reader in order of arrival and must not block.
pub trait LinkHandler: Send + Sync + 'static {
    /// A call to be answered, now or later.
    fn call(&self, call: IncomingCall);
    /// An entry of the peer's journal.
    fn event(&self, channel: &Channel, head: EventHead, payload: Bytes);
    /// A control message.
    fn message(&self, channel: &Channel, message: Message);
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

/// How a call of ours ended, with whether a late answer may still come to nobody.
pub type CallAnswer = Outcome;

type Token = oneshot::Sender<CallAnswer>;

struct State {
    session: Session<Token>,
    readers: HashMap<StreamKey, Waker>,
    writers: HashMap<StreamKey, Waker>,
    pings: HashMap<u64, oneshot::Sender<PongReceived>>,
    cancels: HashMap<(u16, u32), oneshot::Sender<()>>,
    next_ping: u64,
    ended: Option<Error>,
}

struct PongReceived {
    at: Instant,
    time_ms: u64,
}

struct Inner {
    peer: Peer,
    transport: Transport,
    remote: String,
    state: Mutex<State>,
    output: Notify,
    closing: watch::Sender<Option<Error>>,
    ended: watch::Sender<Option<Error>>,
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
        let (reader, writer) = wire.into_split();
        let state = State {
            session: Session::new(parts.side, peer.role),
            readers: HashMap::new(),
            writers: HashMap::new(),
            pings: HashMap::new(),
            cancels: HashMap::new(),
            next_ping: 1,
            ended: None,
        };
        let inner = Inner {
            peer,
            transport,
            remote,
            state: Mutex::new(state),
            output: Notify::new(),
            closing: watch::Sender::new(None),
            ended: watch::Sender::new(None),
        };
        let link = Link { inner: Arc::new(inner) };
        let handler = handler(&link);
        let writer = tokio::spawn(write_loop(link.clone(), writer));
        let reader = ReadLoop { link: link.clone(), reader, buffer: BytesMut::new(), handler: Arc::clone(&handler), options };
        let driven = link.clone();
        tokio::spawn(async move {
            let reason = reader.run().await;
            driven.end(&reason);
            handler.closed(&reason);
            // The writer ends by itself: `end` closes it, with a bound on what it may still flush.
            let _ = writer.await;
        });
        link
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.inner.peer
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

    /// Calls of the peer that are being answered.
    pub fn calls_being_answered(&self) -> usize {
        self.lock().session.calls_being_answered()
    }

    /// Ends the link after what is queued has left, within a second.
    pub fn close(&self, reason: Error) {
        self.inner.closing.send_if_modified(|closing| closing.is_none().then(|| *closing = Some(reason)).is_some());
    }

    /// Waits until the link has ended; returns why.
    pub async fn ended(&self) -> Error {
        let mut ended = self.inner.ended.subscribe();
        let reason = match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        reason.unwrap_or_else(|| Error::new(ErrorCode::ConnectionFailed, "the link has ended"))
    }

    /// Whether the link has ended.
    pub fn has_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held would be a bug of the session; its state is still a value that can be closed.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_writer(&self) {
        self.inner.output.notify_one();
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
        self.inner.ended.send_replace(Some(reason.clone()));
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
        drop(state);
        self.link.wake_writer();
        Ok((PendingAnswer { channel: self.clone(), call, answer: Some(answer) }, stream))
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
    }
}

impl Link {
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

/// The answer of a call that was sent. Dropping it gives the call up.
#[derive(Debug)]
pub struct PendingAnswer {
    channel: Channel,
    call: u32,
    answer: Option<oneshot::Receiver<CallAnswer>>,
}

impl PendingAnswer {
    /// Waits for the answer, at most `timeout`.
    pub async fn wait(mut self, timeout: Duration) -> CallAnswer {
        let Some(answer) = self.answer.as_mut() else {
            return Err(Error::new(ErrorCode::Internal, "the answer was taken already"));
        };
        let result = tokio::time::timeout(timeout, answer).await;
        match result {
            Ok(answered) => {
                self.answer = None;
                answered.unwrap_or_else(|_| Err(Error::new(ErrorCode::ProcessFailed, "the link was dropped").after_sending()))
            }
            Err(_) => {
                let peer = &self.channel.link.peer().id;
                let what = format!("no answer from {peer} within {timeout:?}; it may still do the work");
                Err(Error::new(ErrorCode::Timeout, what).after_sending())
            }
        }
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.channel.link.with_session(|session| session.forget_call(self.channel.id, self.call));
        }
    }
}

/// A call of the peer. It is answered exactly once: dropped unanswered, its caller gets `process_failed`.
#[derive(Debug)]
pub struct IncomingCall {
    channel: Channel,
    call: u32,
    /// What it asks for.
    pub head: CallHead,
    /// Bytes of the class.
    pub payload: Bytes,
    /// The stream that came with it.
    pub stream: Option<ByteStream>,
    /// When it arrived.
    pub received: Instant,
    answered: bool,
}

impl IncomingCall {
    /// Where it came in.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// When its caller stops waiting.
    pub fn deadline(&self) -> Instant {
        self.received + Duration::from_millis(u64::from(self.head.timeout_ms))
    }

    /// Answers it.
    pub fn reply(mut self, outcome: &Outcome) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: &Outcome) {
        self.answered = true;
        let mut state = self.channel.link.lock();
        state.cancels.remove(&(self.channel.id, self.call));
        state.session.reply(self.channel.id, self.call, outcome);
        drop(state);
        self.channel.link.wake_writer();
    }

    /// What tells that the caller no longer waits. Costs nothing until it is asked.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation { channel: self.channel.clone(), call: self.call }
    }
}

/// Tells whether the caller of a call still waits.
#[derive(Debug)]
pub struct Cancellation {
    channel: Channel,
    call: u32,
}

impl Cancellation {
    /// Ends when the caller no longer waits, the call was answered, or its link is gone. One task at a time may wait.
    pub async fn cancelled(&self) {
        // It is never sent, only dropped.
        let _ = self.register().await;
    }

    fn register(&self) -> oneshot::Receiver<()> {
        let (token, cancelled) = oneshot::channel();
        let mut state = self.channel.link.lock();
        // Otherwise the sender is dropped here, and the wait ends at once.
        if state.session.caller_waits(self.channel.id, self.call) {
            state.cancels.insert((self.channel.id, self.call), token);
        }
        cancelled
    }
}

impl Drop for IncomingCall {
    fn drop(&mut self) {
        if !self.answered {
            let error = Error::new(ErrorCode::ProcessFailed, "the process that held the call ended without an answer").after_sending();
            self.answer(&Err(error));
        }
    }
}

struct ReadLoop {
    link: Link,
    reader: ReadHalf,
    buffer: BytesMut,
    handler: Arc<dyn LinkHandler>,
    options: LinkOptions,
}

impl ReadLoop {
    async fn run(mut self) -> Error {
        let mut incoming = Vec::new();
        let mut want = READ_BYTES_MIN;
        let mut misses = 0;
        let mut closing = self.link.inner.closing.subscribe();
        loop {
            if let Err(fault) = self.take_frames(&mut incoming) {
                tracing::warn!(peer = %self.link.peer().id, remote = self.link.remote(), %fault, "the peer broke the protocol; its link ends");
                self.link.with_session(|session| session.fault(&fault));
                return Error::new(ErrorCode::ProtocolError, format!("the peer broke the protocol: {fault}"));
            }
            for message in incoming.drain(..) {
                if let Some(reason) = self.dispatch(message) {
                    return reason;
                }
            }
            if self.buffer.is_empty() && self.buffer.capacity() > 2 * want {
                self.buffer = BytesMut::new();
            }
            self.buffer.reserve(want);
            let silence = self.options.keepalive.unwrap_or(Duration::MAX / 4);
            tokio::select! {
                biased;
                reason = closing.wait_for(Option::is_some) => {
                    let reason = reason.ok().and_then(|reason| reason.clone());
                    return reason.unwrap_or_else(|| Error::new(ErrorCode::ConnectionFailed, "the link was closed"));
                }
                read = tokio::time::timeout(silence, self.reader.read_buf(&mut self.buffer)) => match read {
                    Ok(Ok(0)) => return Error::new(ErrorCode::ConnectionFailed, "the peer closed the connection"),
                    Ok(Ok(count)) => {
                        misses = 0;
                        want = if count >= want { (want * 4).min(READ_BYTES_MAX) } else { (want / 2).max(count).max(READ_BYTES_MIN) };
                    }
                    Ok(Err(error)) => return Error::new(ErrorCode::ConnectionFailed, read_error(&error)),
                    Err(_) => {
                        misses += 1;
                        if misses >= KEEPALIVE_MISSES {
                            let what = format!("the peer has been silent for {:?}", silence * KEEPALIVE_MISSES);
                            return Error::new(ErrorCode::ConnectionFailed, what);
                        }
                        let ping = Ping { seq: 0, time_ms: unix_time_ms(), rank: Rank::default() };
                        self.link.with_session(|session| session.ping(LINK_CHANNEL, &ping));
                    }
                },
            }
        }
    }

    fn take_frames(&mut self, incoming: &mut Vec<Incoming<Token>>) -> Result<(), frame::Fault> {
        if self.buffer.len() < frame::HEADER_BYTES {
            return Ok(());
        }
        let mut state = self.link.lock();
        while let Some(frame) = frame::take_frame(&mut self.buffer, frame::BYTES_MAX)? {
            tracing::trace!(kind = ?frame.kind, channel = frame.channel, bytes = frame.body.len(), "frame");
            state.session.handle_frame(frame, incoming)?;
        }
        let has_output = state.session.has_output();
        drop(state);
        if has_output {
            self.link.wake_writer();
        }
        Ok(())
    }

    /// Hands one thing on; returns a reason if the link must end.
    fn dispatch(&self, incoming: Incoming<Token>) -> Option<Error> {
        let link = &self.link;
        match incoming {
            Incoming::Call { channel, call, head, payload, stream } => {
                let stream = stream.map(|key| ByteStream::new(link.clone(), key));
                let channel = link.channel(channel);
                self.handler.call(IncomingCall { channel, call, head, payload, stream, received: Instant::now(), answered: false });
            }
            Incoming::Reply { token, outcome } => {
                // A caller that has just given up finds its answer gone, as after its timeout.
                let _ = token.send(outcome);
            }
            Incoming::Cancelled { channel, call } => {
                link.lock().cancels.remove(&(channel, call));
            }
            Incoming::Event { channel, head, payload } => self.handler.event(&link.channel(channel), head, payload),
            Incoming::Ping { channel, ping } => {
                self.handler.pinged(channel, ping.rank);
                let pong = Pong { seq: ping.seq, time_ms: unix_time_ms() };
                link.with_session(|session| session.pong(channel, &pong));
            }
            Incoming::Pong { pong, .. } => {
                if let Some(token) = link.lock().pings.remove(&pong.seq) {
                    let _ = token.send(PongReceived { at: Instant::now(), time_ms: pong.time_ms });
                }
            }
            Incoming::Message { channel, message } => self.handler.message(&link.channel(channel), message),
            Incoming::ChannelOpened(channel) => self.handler.channel_opened(&link.channel(channel)),
            Incoming::ChannelClosed { channel, reason } => self.handler.channel_closed(channel, &reason),
            Incoming::Readable(key) => {
                let waker = link.lock().readers.remove(&key);
                waker.into_iter().for_each(Waker::wake);
            }
            Incoming::Writable(key) => {
                let waker = link.lock().writers.remove(&key);
                waker.into_iter().for_each(Waker::wake);
            }
            Incoming::PeerFault(number) => {
                return Some(Error::new(ErrorCode::ProtocolError, format!("the peer ended the link because of our fault number {number}")));
            }
        }
        None
    }
}

async fn write_loop(link: Link, mut writer: WriteHalf) {
    let mut closing = link.inner.closing.subscribe();
    let mut outbox = Outbox::default();
    let mut writable = Vec::new();
    let written = loop {
        let drained = tokio::select! {
            biased;
            written = write_queued(&link, &mut writer, &mut outbox, &mut writable) => written,
            _ = closing.wait_for(Option::is_some) => break Ok(()),
        };
        if let Err(error) = drained {
            break Err(error);
        }
        tokio::select! {
            () = link.inner.output.notified() => {}
            _ = closing.wait_for(Option::is_some) => break Ok(()),
        }
    };
    match written {
        Ok(()) => {
            // The last words: replies that were given, the reason of a fault.
            let last = async {
                write_queued(&link, &mut writer, &mut outbox, &mut writable).await?;
                writer.shutdown().await
            };
            let _ = tokio::time::timeout(CLOSE_FLUSH, last).await;
        }
        Err(error) => link.close(Error::new(ErrorCode::ConnectionFailed, read_error(&error))),
    }
}

async fn write_queued(
    link: &Link,
    writer: &mut (dyn AsyncWrite + Send + Unpin),
    outbox: &mut Outbox,
    writable: &mut Vec<StreamKey>,
) -> io::Result<()> {
    let mut wrote = false;
    loop {
        link.lock().session.transmit(outbox, WRITE_BYTES, writable);
        if !writable.is_empty() {
            link.wake_writable(writable);
        }
        if outbox.is_empty() {
            break;
        }
        while !outbox.is_empty() {
            let mut slices = [io::IoSlice::new(&[]); PIECES_MAX];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(outbox.pieces()) {
                *slice = io::IoSlice::new(piece);
                used += 1;
            }
            let count = writer.write_vectored(&slices[..used]).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            outbox.advance(count);
        }
        wrote = true;
    }
    if wrote { writer.flush().await } else { Ok(()) }
}

impl Link {
    fn wake_writable(&self, keys: &mut Vec<StreamKey>) {
        let mut state = self.lock();
        let wakers: Vec<Waker> = keys.drain(..).filter_map(|key| state.writers.remove(&key)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

fn read_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection".into()
        }
        _ => format!("the connection failed: {error}"),
    }
}

/// Wall clock, milliseconds since 1970.
pub(crate) fn unix_time_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
