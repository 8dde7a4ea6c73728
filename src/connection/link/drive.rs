//! The reader of a link.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::super::stream::ByteStream;
use super::bulk;
use super::calls::{Arrived, IncomingCall};
use super::pace::{self, Pace};
use super::{Link, LinkHandler, LinkOptions, PongReceived, Token, unix_time_ms};
use crate::error::{Error, ErrorCode};
use crate::proto::frame::{self, LINK_CHANNEL};
use crate::proto::head::{Ping, Pong, Rank};
use crate::proto::session::Incoming;
use crate::transport::ReadHalf;

/// The reader's buffer grows between these while the peer sends much, and shrinks again.
const READ_BYTES_MIN: usize = 2 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;
/// A read that brings so much is followed by another one before its frames are looked at: TLS and WebSocket give a record or a message at a time.
const MORE_BYTES_MIN: usize = 4 * 1024;
/// Bytes after which they are looked at anyway.
const MORE_BYTES_MAX: usize = 128 * 1024;
/// Least room for a read.
const READ_ROOM_MIN: usize = 512;
/// Room for what one read brings that is kept.
const INCOMING_KEPT: usize = 512;
/// Silences of `keepalive` after which a peer is taken for gone.
const KEEPALIVE_MISSES: u32 = 3;
/// Later than anybody will wait, and still a time that can be added to another.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Bytes that were read and are not yet frames. It grows while much comes, and is small again when little comes or nothing.
pub(super) struct ReadBuffer {
    pub(super) bytes: BytesMut,
    want: usize,
    /// Size of the block behind `bytes`, which may be more than its capacity.
    block: usize,
    /// Room that the read under way has.
    room: usize,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::new(), want: READ_BYTES_MIN, block: 0, room: 0 }
    }

    /// Makes room for the next read. What is left of a small block is used up first, as bytes that were handed on keep it from being used again.
    pub(super) fn prepare(&mut self) {
        let room = self.bytes.capacity() - self.bytes.len();
        let missing = self.missing();
        if self.want > READ_BYTES_MIN || room < READ_ROOM_MIN || room < missing {
            self.bytes.reserve(self.want.max(missing));
        }
        self.block = self.block.max(self.bytes.capacity());
        if self.bytes.is_empty() && self.block > 2 * self.want {
            self.bytes = BytesMut::with_capacity(self.want);
            self.block = self.bytes.capacity();
        }
        self.room = self.bytes.capacity() - self.bytes.len();
    }

    /// What the frame that has begun still needs, so that its bytes are not moved again and again. Nothing for a frame that is little more than an announcement.
    fn missing(&self) -> usize {
        match self.bytes.first_chunk::<4>() {
            Some(length) if self.bytes.len() >= MORE_BYTES_MIN => {
                let whole = 4 + (u32::from_be_bytes(*length) as usize).min(frame::BYTES_MAX);
                whole.saturating_sub(self.bytes.len())
            }
            _ => 0,
        }
    }

    pub(super) fn read(&mut self, count: usize) {
        let is_full = count >= self.room.min(self.want);
        self.want = if is_full { self.want * 4 } else { (self.want / 2).max(count) }.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
    }

    fn silence(&mut self) {
        self.want = READ_BYTES_MIN;
    }
}

/// Reads frames and hands them on, until the link ends.
pub(super) struct ReadLoop {
    link: Link,
    reader: ReadHalf,
    buffer: ReadBuffer,
    handler: Arc<dyn LinkHandler>,
    options: LinkOptions,
    /// When the peer was heard last.
    heard: Instant,
    /// How the stream ended, behind bytes that came together with that.
    end: Option<io::Result<usize>>,
    pace: Pace,
}

/// What the reader waits for.
enum Turn {
    /// Bytes, the end of the stream, or its failure.
    Read(io::Result<usize>),
    /// Nothing has come for as long as the peer may be silent, if the timer is right.
    Timer,
    /// The link is to end.
    Closing,
}

impl ReadLoop {
    pub(super) fn new(link: Link, reader: ReadHalf, pace: Pace, handler: Arc<dyn LinkHandler>, options: LinkOptions) -> Self {
        Self { link, reader, buffer: ReadBuffer::new(), handler, options, heard: Instant::now(), end: None, pace }
    }

    /// Returns why the link ends.
    pub(super) async fn run(mut self) -> Error {
        let silence = self.options.keepalive.unwrap_or(NEVER);
        // One timer, which is set again when it has run out and not at each read.
        let mut timer = pin!(tokio::time::sleep(silence));
        let mut incoming = Vec::new();
        let mut misses = 0;
        let (mut is_fast, mut gives_way) = (false, false);
        // Nothing is on its way yet, so this is the round trip of the network alone.
        self.probe();
        loop {
            let taken = self.take_frames(&mut incoming);
            let mut over = None;
            for message in incoming.drain(..) {
                // All of it: what came before and beside a reason to end is as good as ever.
                let reason = self.dispatch(message);
                over = over.or(reason);
            }
            if let Err(fault) = taken {
                tracing::warn!(peer = %self.link.peer().id, remote = self.link.remote(), %fault, "the peer broke the protocol; its link ends");
                self.link.with_session(|session| session.fault(&fault));
                return Error::new(ErrorCode::ProtocolError, format!("the peer broke the protocol: {fault}"));
            }
            if let Some(reason) = over {
                return reason;
            }
            if incoming.capacity() > INCOMING_KEPT {
                incoming = Vec::new();
            }
            if self.pace.is_fast() != is_fast {
                is_fast = !is_fast;
                self.link.lock().session.set_fast(is_fast);
            }
            if std::mem::take(&mut gives_way) {
                // Whoever waits for what came gets to it, and somebody looks at the sockets.
                pace::give_way().await;
            }
            self.buffer.prepare();
            #[cfg(test)]
            self.link.inner.kept.store(self.buffer.block, std::sync::atomic::Ordering::Relaxed);
            let turn = {
                let (reader, bytes, end) = (&mut self.reader, &mut self.buffer.bytes, &mut self.end);
                let pace = &mut self.pace;
                let incoming = &mut incoming;
                let link = &self.link;
                poll_fn(|cx| {
                    if link.is_closing() {
                        return Poll::Ready(Turn::Closing);
                    }
                    if let Poll::Ready(read) = poll_read(reader, bytes, end, cx) {
                        return Poll::Ready(Turn::Read(read));
                    }
                    // Nothing is there, and on most links nothing will be for seconds.
                    *incoming = Vec::new();
                    pace.waits();
                    link.inner.reader.register(cx.waker());
                    if link.is_closing() {
                        return Poll::Ready(Turn::Closing);
                    }
                    ready!(timer.as_mut().poll(cx));
                    Poll::Ready(Turn::Timer)
                })
                .await
            };
            match turn {
                Turn::Read(Ok(0)) => return Error::new(ErrorCode::ConnectionFailed, "the peer closed the connection"),
                Turn::Read(Ok(count)) => {
                    misses = 0;
                    self.heard = Instant::now();
                    self.buffer.read(count);
                    gives_way = self.pace.came(count);
                }
                Turn::Read(Err(error)) => return Error::new(ErrorCode::ConnectionFailed, read_error(&error)),
                Turn::Closing => {
                    let reason = self.link.lock().closing.clone();
                    return reason.unwrap_or_else(|| Error::new(ErrorCode::ConnectionFailed, "the link was closed"));
                }
                Turn::Timer => {
                    let due = self.heard + silence * (misses + 1);
                    if Instant::now() < due {
                        // It was heard since the timer was set.
                        timer.as_mut().reset(due);
                        continue;
                    }
                    misses += 1;
                    self.buffer.silence();
                    if misses >= KEEPALIVE_MISSES {
                        let what = format!("the peer has been silent for {:?}", silence * KEEPALIVE_MISSES);
                        return Error::new(ErrorCode::ConnectionFailed, what);
                    }
                    timer.as_mut().reset(self.heard + silence * (misses + 1));
                    self.probe();
                }
            }
        }
    }

    /// A ping of the link itself: shows whether the peer is there, and how far.
    fn probe(&self) {
        self.link.lock().probed = Some(Instant::now());
        let ping = Ping { seq: 0, time_ms: unix_time_ms(), rank: Rank::default() };
        self.link.with_session(|session| session.ping(LINK_CHANNEL, &ping));
    }

    fn take_frames(&mut self, incoming: &mut Vec<Incoming<Token>>) -> Result<(), frame::Fault> {
        if self.buffer.bytes.len() < frame::HEADER_BYTES {
            return Ok(());
        }
        let mut state = self.link.lock();
        while let Some(frame) = frame::take_frame(&mut self.buffer.bytes, frame::BYTES_MAX)? {
            tracing::trace!(kind = ?frame.kind, channel = frame.channel, bytes = frame.body.len(), "frame");
            state.session.handle_frame(frame, incoming)?;
        }
        let has_output = state.session.has_output();
        drop(state);
        if has_output {
            self.link.wake_writer();
        }
        bulk::calls_came(&self.link);
        Ok(())
    }

    /// Hands one thing on; returns a reason if the link must end.
    fn dispatch(&self, incoming: Incoming<Token>) -> Option<Error> {
        let link = &self.link;
        match incoming {
            Incoming::Call { channel, call, head, payload, stream } => {
                let stream = stream.map(|key| ByteStream::new(link.clone(), key));
                let channel = link.channel(channel);
                self.handler.call(IncomingCall::new(Arrived { channel, call, head, payload, stream, received: self.heard }));
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
                let mut state = link.lock();
                if pong.seq == 0
                    && let Some(sent) = state.probed.take()
                {
                    state.session.round_trip(sent.elapsed());
                }
                if let Some(token) = state.pings.remove(&pong.seq) {
                    let _ = token.send(PongReceived { at: Instant::now(), time_ms: pong.time_ms });
                }
            }
            Incoming::Message { channel, message } => self.handler.message(&link.channel(channel), message),
            Incoming::Relayed(frame) => self.handler.relayed(frame),
            Incoming::ChannelOpened(channel) => self.handler.channel_opened(&link.channel(channel)),
            Incoming::ChannelClosed { channel, reason } => {
                link.cancel_channel(channel);
                self.handler.channel_closed(channel, &reason);
            }
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

/// Reads until nothing more is there, or enough.
fn poll_read(
    reader: &mut ReadHalf,
    bytes: &mut BytesMut,
    end: &mut Option<io::Result<usize>>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if let Some(end) = end.take() {
        return Poll::Ready(end);
    }
    let mut total = 0;
    while total < MORE_BYTES_MAX && bytes.len() < bytes.capacity() {
        match pin!(reader.read_buf(bytes)).poll(cx) {
            Poll::Ready(Ok(count)) if count > 0 => {
                total += count;
                if count < MORE_BYTES_MIN {
                    break;
                }
            }
            Poll::Ready(ended) if total == 0 => return Poll::Ready(ended),
            Poll::Ready(ended) => {
                *end = Some(ended);
                break;
            }
            Poll::Pending if total == 0 => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(total))
}

pub(super) fn read_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection".into()
        }
        _ => format!("the connection failed: {error}"),
    }
}
