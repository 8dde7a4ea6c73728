//! Streams beside the socket, where the transport has them (QUIC): each sends on one of its own, so that what one of them loses delays no other, and no
//! ping and no call.
//!
//! ```text
//!   session ── next_stream ──► send_stream (one task for each stream that sends) ──► side stream
//!   session ◄── handle_frame ── read_stream (one task for each side stream of the peer) ◄── side stream
//! ```
//!
//! All rules of the session hold as they do on the link. In addition a side stream carries data and reset of one stream only, and nothing else; and as it may
//! overtake the call that opens its stream, its reader waits for that, at most [`CALL_LATE_MAX`].

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::Link;
use super::drive::ReadBuffer;
use super::output::{CLOSE_FLUSH, PIECES_MAX, WRITE_BYTES};
use crate::error::{Error, ErrorCode};
use crate::proto::frame::{self, Fault};
use crate::proto::session::{Incoming, Outbox, StreamKey, stream_of};
use crate::transport::{ReadHalf, SideStreams, WriteHalf};

/// How late the call of a stream may come. Both were sent in order; what is later than this was lost with its call.
const CALL_LATE_MAX: Duration = Duration::from_secs(10);

/// What the tasks of a link share about its side streams.
pub(super) struct Bulk {
    sides: SideStreams,
    /// Something is to be sent.
    output: Notify,
    /// Calls have come.
    calls: Notify,
    /// Side streams of the peer that are being read.
    reading: watch::Sender<usize>,
    /// Whether the link is to end.
    closing: watch::Sender<bool>,
    /// Whether all has left that was queued when the link was closed.
    sent: watch::Sender<bool>,
}

impl Bulk {
    pub(super) fn new(sides: SideStreams) -> Self {
        let (closing, sent) = (watch::Sender::new(false), watch::Sender::new(false));
        Self { sides, output: Notify::new(), calls: Notify::new(), reading: watch::Sender::new(0), closing, sent }
    }

    pub(super) fn wake(&self) {
        self.output.notify_one();
    }

    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }
}

/// Starts what a link with side streams needs; it ends when the result is dropped.
pub(super) fn start(link: &Link) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    if link.inner.bulk.is_some() {
        tasks.spawn(run(link.clone()));
    }
    tasks
}

/// Calls were taken in: their streams may have come before them.
pub(super) fn calls_came(link: &Link) {
    if let Some(bulk) = &link.inner.bulk {
        bulk.calls.notify_waiters();
    }
}

/// Calls have left: what their streams have may follow.
pub(super) fn calls_left(link: &Link) {
    if let Some(bulk) = &link.inner.bulk
        && link.lock().session.has_next_stream()
    {
        bulk.wake();
    }
}

/// Waits until the peer has what was queued when the link was closed. The caller bounds the time.
pub(super) async fn sent(link: &Link) {
    if let Some(bulk) = &link.inner.bulk {
        // The sender lives as long as the link.
        let _ = bulk.sent.subscribe().wait_for(|sent| *sent).await;
    }
}

/// The peer has ended the link: takes in what it had sent on side streams before. At most [`CLOSE_FLUSH`].
pub(super) async fn read_rest(link: &Link) {
    let Some(bulk) = link.inner.bulk.as_ref().filter(|_| !link.is_closing()) else { return };
    let mut readers = JoinSet::new();
    while let Some(Ok(reader)) = bulk.sides.accept().now_or_never() {
        readers.spawn(read_stream(link.clone(), reader, Reading::new(link)));
    }
    let _ = tokio::time::timeout(CLOSE_FLUSH, bulk.reading.subscribe().wait_for(|reading| *reading == 0)).await;
}

async fn run(link: Link) {
    let Some(bulk) = &link.inner.bulk else { return };
    let mut closing = bulk.closing.subscribe();
    let (mut is_open, mut is_closing) = (true, false);
    let mut readers = JoinSet::new();
    let mut senders = JoinSet::new();
    let mut wakes: HashMap<StreamKey, Arc<Notify>> = HashMap::new();
    loop {
        while let Some(key) = next_stream(&link) {
            match wakes.get(&key) {
                Some(wake) => wake.notify_one(),
                None => {
                    let wake = Arc::new(Notify::new());
                    wakes.insert(key, Arc::clone(&wake));
                    senders.spawn(send_stream(link.clone(), key, wake));
                }
            }
        }
        if is_closing && senders.is_empty() {
            bulk.sent.send_replace(true);
        }
        tokio::select! {
            () = bulk.output.notified() => {}
            Some(ended) = senders.join_next() => {
                // A task that panicked leaves a name in the table, until the link ends.
                ended.into_iter().for_each(|key| drop(wakes.remove(&key)));
            }
            Some(_) = readers.join_next() => {}
            arrived = bulk.sides.accept(), if is_open => match arrived {
                Ok(reader) => drop(readers.spawn(read_stream(link.clone(), reader, Reading::new(&link)))),
                // The link's own reader learns the same.
                Err(_) => is_open = false,
            },
            _ = closing.wait_for(|closing| *closing), if !is_closing => {
                is_closing = true;
                wakes.values().for_each(|wake| wake.notify_one());
            }
        }
    }
}

#[cfg(test)]
impl Link {
    /// Side streams of the peer that are being read.
    pub(in crate::connection) fn side_streams_in_use(&self) -> usize {
        self.inner.bulk.as_ref().map_or(0, |bulk| *bulk.reading.borrow())
    }
}

fn next_stream(link: &Link) -> Option<StreamKey> {
    link.lock().session.next_stream()
}

/// Sends what a stream has, until nothing can follow; returns its name.
async fn send_stream(link: Link, key: StreamKey, wake: Arc<Notify>) -> StreamKey {
    let mut outbox = Outbox::default();
    let mut writable = Vec::new();
    let mut side = Side::Unopened;
    loop {
        let more = link.lock().session.transmit_stream(key, &mut outbox, WRITE_BYTES, &mut writable);
        if !writable.is_empty() {
            link.wake_writable(&mut writable);
        }
        if !outbox.is_empty() {
            // When the peer reads no more, or is gone, the stream itself hears of it from the link.
            side = side.write(&link, &mut outbox).await.unwrap_or(Side::Broken);
            outbox.advance(outbox.len());
        } else if !more || link.is_closing() {
            break;
        } else {
            outbox.drained();
            wake.notified().await;
        }
    }
    if let Side::Open(mut writer) = side {
        let _ = writer.shutdown().await;
    }
    key
}

/// The side stream of a sender.
enum Side {
    Unopened,
    Open(WriteHalf),
    /// What is written goes nowhere.
    Broken,
}

impl Side {
    /// Writes all of it.
    async fn write(self, link: &Link, outbox: &mut Outbox) -> io::Result<Self> {
        let mut writer = match (self, &link.inner.bulk) {
            (Side::Open(writer), _) => writer,
            (Side::Unopened, Some(bulk)) => bulk.sides.open().await?,
            (Side::Broken, _) | (Side::Unopened, None) => return Ok(Side::Broken),
        };
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
        Ok(Side::Open(writer))
    }
}

/// Counts a side stream that is being read.
struct Reading(Link);

impl Reading {
    fn new(link: &Link) -> Self {
        let reading = Self(link.clone());
        reading.count(|count| count + 1);
        reading
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        if let Some(bulk) = &self.0.inner.bulk {
            bulk.reading.send_modify(|count| *count = change(*count));
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.count(|count| count - 1);
    }
}

/// Reads a side stream of the peer to its end. A fault ends the link, as one on the link itself does.
async fn read_stream(link: Link, reader: ReadHalf, _reading: Reading) {
    let Err(fault) = read_frames(&link, reader).await else { return };
    tracing::warn!(peer = %link.peer().id, remote = link.remote(), %fault, "the peer broke the protocol; its link ends");
    link.with_session(|session| session.fault(&fault));
    link.close(Error::new(ErrorCode::ProtocolError, format!("the peer broke the protocol: {fault}")));
}

async fn read_frames(link: &Link, mut reader: ReadHalf) -> Result<(), Fault> {
    let mut buffer = ReadBuffer::new();
    let mut of = None;
    let mut incoming = Vec::new();
    loop {
        while let Some(frame) = frame::take_frame(&mut buffer.bytes, frame::BYTES_MAX)? {
            let key = stream_of(&frame, of)?;
            if of.replace(key).is_none() && !call_has_come(link, key).await {
                tracing::debug!(peer = %link.peer().id, stream = key.stream, "the call of a stream did not come");
                return Ok(());
            }
            let mut state = link.lock();
            if !state.session.has_stream(key) {
                // We gave it up. The peer is told to send no more.
                return Ok(());
            }
            state.session.handle_frame(frame, &mut incoming)?;
            let wakers: Vec<Waker> = incoming
                .drain(..)
                .filter_map(|incoming| match incoming {
                    Incoming::Readable(key) => state.readers.remove(&key),
                    Incoming::Writable(key) => state.writers.remove(&key),
                    // Data and resets mean nothing else.
                    _ => None,
                })
                .collect();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
        buffer.prepare();
        match reader.read_buf(&mut buffer.bytes).await {
            // What the end of a stream is, frames say.
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => buffer.read(count),
        }
    }
}

/// Waits for the call that opens a stream of the peer.
async fn call_has_come(link: &Link, key: StreamKey) -> bool {
    let Some(bulk) = &link.inner.bulk else { return false };
    let wait = async {
        loop {
            // Registered before the look, so that a call which comes in between is not missed.
            let mut calls = std::pin::pin!(bulk.calls.notified());
            calls.as_mut().enable();
            if link.lock().session.take_announced(key) {
                return;
            }
            calls.await;
        }
    };
    tokio::time::timeout(CALL_LATE_MAX, wait).await.is_ok()
}
