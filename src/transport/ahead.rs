//! Reads more of a socket than it was asked for, while much comes.
//!
//! rustls asks for 4 KiB at a time, so a record of 16 KiB costs five calls of the system. Here they are one for many records. Nothing is kept while little
//! comes: the first read that would block gives the memory back.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Bytes that are read at once.
const AHEAD_BYTES: usize = 128 * 1024;

/// A stream that may read ahead; writing is that of the stream.
pub(super) struct ReadAhead<S> {
    stream: S,
    ahead: BytesMut,
    /// Whether the peer is trusted to have memory of ours.
    may_read_ahead: bool,
    /// Whether the last read took all that it could.
    is_busy: bool,
}

impl<S> ReadAhead<S> {
    /// Reads what it is asked for, until [`ReadAhead::begin`].
    pub(super) fn new(stream: S) -> Self {
        Self { stream, ahead: BytesMut::new(), may_read_ahead: false, is_busy: false }
    }

    /// Reads ahead from now on.
    pub(super) fn begin(&mut self) {
        self.may_read_ahead = true;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if !this.is_busy {
                let room = buf.remaining();
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                this.is_busy = this.may_read_ahead && room > 0 && buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            // Empty, and nobody else has a part of it: this is the block that it had before.
            this.ahead.reserve(AHEAD_BYTES);
            let mut reading = std::pin::pin!(this.stream.read_buf(&mut this.ahead));
            if reading.as_mut().poll(cx)?.is_pending() {
                (this.ahead, this.is_busy) = (BytesMut::new(), false);
                return Poll::Pending;
            }
        }
        let count = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Has so many bytes, and counts the reads; then it blocks.
    struct Source {
        bytes: Vec<u8>,
        reads: usize,
    }

    impl AsyncRead for Source {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.reads += 1;
            if self.bytes.is_empty() {
                return Poll::Pending;
            }
            let count = self.bytes.len().min(buf.remaining());
            buf.put_slice(&self.bytes[..count]);
            self.bytes.drain(..count);
            Poll::Ready(Ok(()))
        }
    }

    fn source(count: usize) -> ReadAhead<Source> {
        let bytes = (0..count).map(|position| (position % 251) as u8).collect();
        ReadAhead::new(Source { bytes, reads: 0 })
    }

    /// What one read brings; nothing if it would block.
    fn read(from: &mut ReadAhead<Source>, room: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; room];
        let mut buf = ReadBuf::new(&mut bytes);
        let read = Pin::new(from).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
        read.is_ready().then(|| buf.filled().to_vec())
    }

    #[test]
    fn many_small_reads_are_few_of_the_socket_and_leave_nothing_behind() {
        let mut stream = source(1024 * 1024);
        stream.begin();
        let mut came = Vec::new();
        while let Some(bytes) = read(&mut stream, 4096) {
            came.extend(bytes);
        }
        assert_eq!(came.len(), 1024 * 1024);
        // One as large as was asked for, eight and a bit ahead, and the one that would have blocked.
        assert!(stream.stream.reads <= 11, "{} reads", stream.stream.reads);
        assert_eq!(stream.ahead.capacity(), 0, "an idle connection has no buffer");
    }

    #[test]
    fn nothing_is_read_ahead_of_a_peer_that_is_not_trusted() {
        let mut stream = source(64 * 1024);
        for _ in 0..4 {
            assert_eq!(read(&mut stream, 4096).map(|bytes| bytes.len()), Some(4096));
        }
        assert_eq!((stream.stream.reads, stream.stream.bytes.len()), (4, 48 * 1024));
    }

    proptest! {
        #[test]
        fn reads_of_any_sizes_bring_the_same_bytes(count in 0_usize..300_000, sizes in proptest::collection::vec(1_usize..40_000, 1..20), trusted in 0_usize..10) {
            let mut stream = source(count);
            let mut came = Vec::new();
            for (turn, size) in sizes.iter().cycle().enumerate() {
                if turn == trusted {
                    stream.begin();
                }
                match read(&mut stream, *size) {
                    Some(bytes) => came.extend(bytes),
                    None => break,
                }
            }
            prop_assert_eq!(came, (0..count).map(|position| (position % 251) as u8).collect::<Vec<_>>());
        }
    }
}
