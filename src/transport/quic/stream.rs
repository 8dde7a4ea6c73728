//! The link stream of a connection as a stream of bytes, and the order among the writers of one connection.
//!
//! What QUIC has taken and not sent cannot be overtaken, so it takes little: what is on its way, and [`UNSENT_BYTES_MAX`] more, as `TCP_NOTSENT_LOWAT` does
//! for tcp. All streams of the connection share that. The link stream goes first: its bytes are sent before those of side streams, and while it waits for
//! room no side stream gets any.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use quinn::{Connection, ReadError, RecvStream, SendStream, StoppedError, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io_error;
use super::side::SideStreams;

/// Bytes that QUIC takes beyond those which the path holds.
const UNSENT_BYTES_MAX: u64 = 128 * 1024;
/// Bounds of what QUIC keeps for a connection until it is acknowledged.
pub(super) const WINDOW_BYTES_MIN: u64 = UNSENT_BYTES_MAX;
const WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// After so many bytes the path is looked at again.
const LOOK_AGAIN_BYTES: u64 = 64 * 1024;
/// Priority of the link stream; side streams have 0.
const PRIORITY: i32 = 1;

/// What the streams of one connection share.
pub(super) struct Shared {
    pub(super) connection: Connection,
    window: AtomicU64,
    written: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    link_waits: bool,
    side: Vec<Waker>,
}

impl Shared {
    fn new(connection: Connection) -> Self {
        Self { connection, window: AtomicU64::new(WINDOW_BYTES_MIN), written: AtomicU64::new(0), turn: Mutex::default() }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        // Nothing in these few lines can panic half-way.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link_waits(&self, waits: bool) {
        let mut turn = self.turn();
        turn.link_waits = waits;
        let wakers = if waits { Vec::new() } else { std::mem::take(&mut turn.side) };
        drop(turn);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether a side stream must let the link stream go first.
    pub(super) fn must_wait(&self, waker: &Waker) -> bool {
        let mut turn = self.turn();
        if turn.link_waits && !turn.side.iter().any(|other| other.will_wake(waker)) {
            turn.side.push(waker.clone());
        }
        turn.link_waits
    }

    /// Offers bytes to a stream, and looks at the path from time to time.
    pub(super) fn poll_write(&self, send: &mut SendStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match Pin::new(&mut *send).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => {
                    let count_u64 = u64::try_from(count).unwrap_or(u64::MAX);
                    if self.written.fetch_add(count_u64, Ordering::Relaxed) + count_u64 >= LOOK_AGAIN_BYTES {
                        self.look_at_path();
                    }
                    return Poll::Ready(Ok(count));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(write_error(&error))),
                Poll::Pending if self.look_at_path() => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Makes the window fit what the path holds now; true if there is more room.
    fn look_at_path(&self) -> bool {
        self.written.store(0, Ordering::Relaxed);
        let path = self.connection.stats().path.cwnd;
        let window = (path + UNSENT_BYTES_MAX).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let before = self.window.swap(window, Ordering::Relaxed);
        if before != window {
            self.connection.set_send_window(window);
        }
        before < window
    }
}

/// The link stream of one connection. Dropping it, its halves and its side streams closes the connection.
pub(in crate::transport) struct Stream {
    read: Reader,
    write: Writer,
}

impl Stream {
    pub(super) fn new(connection: Connection, send: SendStream, recv: RecvStream) -> Self {
        // A stream that was reset already has no order.
        let _ = send.set_priority(PRIORITY);
        let shared = Arc::new(Shared::new(connection));
        let read = Reader { recv, _shared: Arc::clone(&shared) };
        Self { read, write: Writer { send, shared, kind: Kind::Link, finishing: None } }
    }

    pub(in crate::transport) fn into_split(self) -> (Reader, Writer) {
        (self.read, self.write)
    }

    /// Side streams, from now on also those of the peer.
    pub(in crate::transport) fn side_streams(&self) -> SideStreams {
        SideStreams::new(Arc::clone(&self.write.shared))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

/// What the peer sends on one stream. Dropped before its end, the peer is told that nobody reads.
pub(in crate::transport) struct Reader {
    recv: RecvStream,
    _shared: Arc<Shared>,
}

impl Reader {
    pub(super) fn side(recv: RecvStream, shared: Arc<Shared>) -> Self {
        Self { recv, _shared: shared }
    }
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.recv.poll_read_buf(cx, buf).map_err(|error| match error {
            ReadError::ConnectionLost(error) => io_error(&error),
            other => other.into(),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Link,
    Side,
}

/// What we send on one stream.
pub(in crate::transport) struct Writer {
    send: SendStream,
    shared: Arc<Shared>,
    kind: Kind,
    /// Waits until the peer has everything.
    finishing: Option<Finishing>,
}

type Finishing = Pin<Box<dyn Future<Output = Result<Option<quinn::VarInt>, StoppedError>> + Send + Sync>>;

impl Writer {
    pub(super) fn side(send: SendStream, shared: Arc<Shared>) -> Self {
        Self { send, shared, kind: Kind::Side, finishing: None }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.kind == Kind::Link {
            self.shared.link_waits(false);
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { send, shared, kind, .. } = &mut *self;
        match kind {
            Kind::Link => {
                let result = shared.poll_write(send, cx, buf);
                shared.link_waits(result.is_pending());
                result
            }
            Kind::Side if shared.must_wait(cx.waker()) => Poll::Pending,
            Kind::Side => shared.poll_write(send, cx, buf),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.as_mut().poll_write(cx, buf) {
                Poll::Ready(Ok(taken)) => {
                    count += taken;
                    if taken < buf.len() {
                        break;
                    }
                }
                // What was taken is told first; the rest is offered again.
                _ if count > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends our direction, and waits until the peer has all of it: what is unsent when the connection closes is lost.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { send, shared, kind, finishing } = &mut *self;
        let wait = finishing.get_or_insert_with(|| {
            if *kind == Kind::Link {
                shared.link_waits(false);
            }
            // Stopped by the peer: there is nothing to add.
            let _ = send.finish();
            Box::pin(send.stopped())
        });
        Poll::Ready(match ready!(wait.as_mut().poll(cx)) {
            Ok(_) => Ok(()),
            Err(StoppedError::ConnectionLost(error)) => Err(io_error(&error)),
            Err(error) => Err(io::Error::other(error)),
        })
    }
}

fn write_error(error: &WriteError) -> io::Error {
    match error {
        WriteError::ConnectionLost(error) => io_error(error),
        WriteError::Stopped(_) => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other.clone()),
    }
}
