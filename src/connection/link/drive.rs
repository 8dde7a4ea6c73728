//! The two tasks of a link.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::super::stream::ByteStream;
use super::calls::{Arrived, IncomingCall};
use super::{Link, LinkHandler, LinkOptions, PongReceived, Token, unix_time_ms};
use crate::error::{Error, ErrorCode};
use crate::proto::frame::{self, LINK_CHANNEL};
use crate::proto::head::{Ping, Pong, Rank};
use crate::proto::session::{Incoming, Outbox, StreamKey};
use crate::transport::{ReadHalf, WriteHalf};

/// Bytes that one turn of the writer takes from the lanes. Small, so that an urgent frame waits for little.
const WRITE_BYTES: usize = 128 * 1024;
/// The reader's buffer grows between these while the peer sends much, and shrinks again.
const READ_BYTES_MIN: usize = 2 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;
/// Room for what one read brings that is kept.
const INCOMING_KEPT: usize = 512;
/// How long a closing link may take to send what is queued, or to read what the peer has sent before it went.
const CLOSE_FLUSH: Duration = Duration::from_secs(1);
/// Silences of `keepalive` after which a peer is taken for gone.
const KEEPALIVE_MISSES: u32 = 3;
/// Pieces of one vectored write.
const PIECES_MAX: usize = 32;

/// Bytes that were read and are not yet frames. It grows while much comes, and is small again when little comes or nothing.
struct ReadBuffer {
    bytes: BytesMut,
    want: usize,
    /// Size of the block behind `bytes`, which may be more than its capacity.
    block: usize,
}

impl ReadBuffer {
    fn new() -> Self {
        Self { bytes: BytesMut::new(), want: READ_BYTES_MIN, block: 0 }
    }

    /// Makes room for the next read.
    fn prepare(&mut self) {
        self.bytes.reserve(self.want);
        self.block = self.block.max(self.bytes.capacity());
        if self.bytes.is_empty() && self.block > 2 * self.want {
            self.bytes = BytesMut::with_capacity(self.want);
            self.block = self.bytes.capacity();
        }
    }

    fn read(&mut self, count: usize) {
        self.want = if count >= self.want { self.want * 4 } else { (self.want / 2).max(count) }.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
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
}

impl ReadLoop {
    pub(super) fn new(link: Link, reader: ReadHalf, handler: Arc<dyn LinkHandler>, options: LinkOptions) -> Self {
        Self { link, reader, buffer: ReadBuffer::new(), handler, options }
    }

    /// Returns why the link ends.
    pub(super) async fn run(mut self) -> Error {
        let mut incoming = Vec::new();
        let mut misses = 0;
        // Nothing is on its way yet, so this is the round trip of the network alone.
        self.probe();
        let mut closing = self.link.inner.closing.subscribe();
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
            self.buffer.prepare();
            #[cfg(test)]
            self.link.inner.kept.0.store(self.buffer.block, std::sync::atomic::Ordering::Relaxed);
            let silence = self.options.keepalive.unwrap_or(Duration::MAX / 4);
            tokio::select! {
                biased;
                reason = closing.wait_for(Option::is_some) => {
                    let reason = reason.ok().and_then(|reason| reason.clone());
                    return reason.unwrap_or_else(|| Error::new(ErrorCode::ConnectionFailed, "the link was closed"));
                }
                read = tokio::time::timeout(silence, self.reader.read_buf(&mut self.buffer.bytes)) => match read {
                    Ok(Ok(0)) => return Error::new(ErrorCode::ConnectionFailed, "the peer closed the connection"),
                    Ok(Ok(count)) => {
                        misses = 0;
                        self.buffer.read(count);
                    }
                    Ok(Err(error)) => return Error::new(ErrorCode::ConnectionFailed, read_error(&error)),
                    Err(_) => {
                        misses += 1;
                        self.buffer.silence();
                        incoming = Vec::new();
                        if misses >= KEEPALIVE_MISSES {
                            let what = format!("the peer has been silent for {:?}", silence * KEEPALIVE_MISSES);
                            return Error::new(ErrorCode::ConnectionFailed, what);
                        }
                        self.probe();
                    }
                },
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
        Ok(())
    }

    /// Hands one thing on; returns a reason if the link must end.
    fn dispatch(&self, incoming: Incoming<Token>) -> Option<Error> {
        let link = &self.link;
        match incoming {
            Incoming::Call { channel, call, head, payload, stream } => {
                let stream = stream.map(|key| ByteStream::new(link.clone(), key));
                let channel = link.channel(channel);
                self.handler.call(IncomingCall::new(Arrived { channel, call, head, payload, stream }));
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

/// Writes what the lanes hold, until the link ends.
pub(super) async fn write_loop(link: Link, mut writer: WriteHalf) {
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
        #[cfg(test)]
        link.inner.kept.1.store(outbox.kept_bytes(), std::sync::atomic::Ordering::Relaxed);
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
        Err(error) => {
            // The peer has gone, but what it said before may lie unread: the reader comes to the end by itself.
            let _ = tokio::time::timeout(CLOSE_FLUSH, closing.wait_for(Option::is_some)).await;
            link.close(Error::new(ErrorCode::ConnectionFailed, read_error(&error)));
        }
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
    outbox.drained();
    if wrote { writer.flush().await } else { Ok(()) }
}

fn read_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection".into()
        }
        _ => format!("the connection failed: {error}"),
    }
}
