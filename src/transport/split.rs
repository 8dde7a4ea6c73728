//! Reader and writer of a stream whose two directions share their state, as those of TLS and WebSocket do.
//!
//! Each half takes the stream for one poll. One that finds it taken waits until it is given back, as for a socket that is not ready, and does not hold up its
//! thread: with a lock that blocks, a credit that comes while 64 KiB are encrypted would cost a processor for all that time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

struct Shared<T> {
    stream: Mutex<T>,
    /// Each waits for the stream while the other half has it.
    reader: AtomicWaker,
    writer: AtomicWaker,
    is_write_vectored: bool,
}

pub(super) struct Reader<T> {
    shared: Arc<Shared<T>>,
}

pub(super) struct Writer<T> {
    shared: Arc<Shared<T>>,
}

/// Splits a stream for two tasks.
pub(super) fn split<T: AsyncRead + AsyncWrite + Unpin>(stream: T) -> (Reader<T>, Writer<T>) {
    let is_write_vectored = stream.is_write_vectored();
    let shared = Shared { stream: Mutex::new(stream), reader: AtomicWaker::new(), writer: AtomicWaker::new(), is_write_vectored };
    let shared = Arc::new(shared);
    (Reader { shared: Arc::clone(&shared) }, Writer { shared })
}

impl<T> Shared<T> {
    /// Does something with the stream if nobody has it; else `waiting` is woken when it is free.
    fn poll_with<R>(
        &self,
        waiting: &AtomicWaker,
        other: &AtomicWaker,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        let stream = match self.take() {
            Some(stream) => stream,
            None => {
                waiting.register(cx.waker());
                // It may have been given back before anybody knew of us.
                match self.take() {
                    Some(stream) => stream,
                    None => return Poll::Pending,
                }
            }
        };
        // Dropped behind the stream, in reverse order; also if this half panics.
        let (_wakes, mut stream) = (WakeOnDrop(other), stream);
        act(&mut stream, cx)
    }

    fn take(&self) -> Option<MutexGuard<'_, T>> {
        match self.stream.try_lock() {
            Ok(stream) => Some(stream),
            // A panic of the other half ends its task; this one finds the stream as it is.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Tells the other half that the stream is free.
struct WakeOnDrop<'a>(&'a AtomicWaker);

impl Drop for WakeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Reader<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &*self.shared;
        shared.poll_with(&shared.reader, &shared.writer, cx, |stream, cx| Pin::new(stream).poll_read(cx, buf))
    }
}

impl<T: AsyncWrite + Unpin> Writer<T> {
    fn poll_with<R>(&self, cx: &mut Context<'_>, act: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<R>) -> Poll<R> {
        let shared = &*self.shared;
        shared.poll_with(&shared.writer, &shared.reader, cx, |stream, cx| act(Pin::new(stream), cx))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Writer<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.shared.is_write_vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Waker;
    use std::time::Duration;

    use futures_util::task::ArcWake;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A write of it takes until it is told that it has taken long enough; a read brings one byte at once.
    struct Slow {
        begun: mpsc::Sender<()>,
        ends: mpsc::Receiver<()>,
    }

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buf.put_slice(&[7]);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.begun.send(()).expect("the test listens");
            self.ends.recv_timeout(PATIENCE).expect("the test tells");
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Woken(mpsc::Sender<()>);

    impl ArcWake for Woken {
        fn wake_by_ref(woken: &Arc<Self>) {
            let _ = woken.0.send(());
        }
    }

    #[test]
    fn a_reader_that_finds_the_stream_taken_goes_on_with_something_else_and_is_woken() {
        let ((begun, has_begun), (end, ends)) = (mpsc::channel(), mpsc::channel());
        let (mut reader, mut writer) = split(Slow { begun, ends });
        let writing = std::thread::spawn(move || {
            let mut cx = Context::from_waker(Waker::noop());
            Pin::new(&mut writer).poll_write(&mut cx, &[1, 2]).map(|written| written.expect("writes"))
        });
        has_begun.recv_timeout(PATIENCE).expect("the write begins");

        let (woken, is_woken) = mpsc::channel();
        let waker = futures_util::task::waker(Arc::new(Woken(woken)));
        let mut cx = Context::from_waker(&waker);
        let mut bytes = [0; 4];
        let mut buf = ReadBuf::new(&mut bytes);
        assert!(Pin::new(&mut reader).poll_read(&mut cx, &mut buf).is_pending(), "the write has the stream");
        assert!(is_woken.try_recv().is_err(), "and still has it");

        end.send(()).expect("the write waits");
        assert_eq!(writing.join().expect("no panic"), Poll::Ready(2));
        is_woken.recv_timeout(PATIENCE).expect("the stream was given back");
        assert!(Pin::new(&mut reader).poll_read(&mut cx, &mut buf).is_ready());
        assert_eq!(buf.filled(), [7]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn both_directions_at_once_lose_no_wake_up() {
        const BYTES: usize = 4 * 1024 * 1024;
        let (near, far) = tokio::io::duplex(1024);
        let mut ends = tokio::task::JoinSet::new();
        for stream in [near, far] {
            let (mut reader, mut writer) = split(stream);
            ends.spawn(async move {
                let chunk = [5; 700];
                for sent in (0..BYTES).step_by(chunk.len()) {
                    writer.write_all(&chunk[..chunk.len().min(BYTES - sent)]).await.expect("writes");
                }
                writer.shutdown().await.expect("shuts down");
            });
            ends.spawn(async move {
                let mut came = Vec::new();
                reader.read_to_end(&mut came).await.expect("reads");
                assert_eq!(came.len(), BYTES);
            });
        }
        let all = async { while ends.join_next().await.transpose().expect("no panic").is_some() {} };
        tokio::time::timeout(PATIENCE, all).await.expect("nobody waits for ever");
    }
}
