//! A stream of a link as `AsyncRead` and `AsyncWrite`.

use std::any::Any;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::Link;
use crate::error::Error;
use crate::proto::session::{StreamKey, StreamRead};

/// Bytes both ways, beside the calls of a link and without delaying them.
///
/// Reading ends when the other side has shut its direction down; writing waits for the other side's credit. Dropping the stream before both directions
/// have ended ends it for the other side by an error. Errors of the cluster come as `io::Error` with an [`Error`] inside.
pub struct ByteStream {
    link: Link,
    key: StreamKey,
    /// What must live as long as the stream.
    kept: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream").field("link", &self.link).field("key", &self.key).finish_non_exhaustive()
    }
}

impl ByteStream {
    pub(super) fn new(link: Link, key: StreamKey) -> Self {
        Self { link, key, kept: None }
    }

    /// Keeps something until the stream is dropped.
    pub(crate) fn keeping(mut self, kept: Arc<dyn Any + Send + Sync>) -> Self {
        self.kept = Some(kept);
        self
    }

    /// Polls for the next bytes without copying them; empty at the end.
    ///
    /// # Errors
    /// An [`Error`] inside `io::Error` if the other side or the link ended the stream.
    pub fn poll_read_bytes(&mut self, cx: &mut Context<'_>, bytes_max: usize) -> Poll<io::Result<Bytes>> {
        loop {
            match self.link.with_session(|session| session.stream_read(self.key, bytes_max)) {
                StreamRead::Bytes(bytes) => return Poll::Ready(Ok(bytes)),
                StreamRead::End => return Poll::Ready(Ok(Bytes::new())),
                StreamRead::Reset(error) => return Poll::Ready(Err(io_error(error))),
                StreamRead::Pending => {
                    self.link.wait_readable(self.key, cx.waker());
                    // What arrived between the look and the registration would otherwise be missed.
                    match self.link.with_session(|session| session.stream_read(self.key, 0)) {
                        StreamRead::Pending => return Poll::Pending,
                        _ => continue,
                    }
                }
            }
        }
    }
}

fn io_error(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let bytes = ready!(self.poll_read_bytes(cx, buf.remaining()))?;
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // Registered before the look, so that credit which comes in between wakes us.
        self.link.wait_writable(self.key, cx.waker());
        match self.link.with_session(|session| session.stream_write(self.key, buf)) {
            Ok(0) => Poll::Pending,
            Ok(count) => Poll::Ready(Ok(count)),
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.wait_writable(self.key, cx.waker());
        if self.link.with_session(|session| session.stream_flushed(self.key)) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.link.with_session(|session| session.stream_finish(self.key));
        Poll::Ready(Ok(()))
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        self.link.release_stream(self.key);
    }
}
