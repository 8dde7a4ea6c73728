//! A pipe that can be cut, and can damage what it carries.

use super::*;

/// A stream that ends after a number of bytes in both directions together, or damages one that is written.
pub(super) struct Wired<S> {
    stream: Option<S>,
    left: u64,
    pub(super) seen: Arc<AtomicU64>,
    written: u64,
    flip: Option<u64>,
}

impl<S> Wired<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream: Some(stream), left: u64::MAX, seen: Arc::default(), written: 0, flip: None }
    }

    pub(super) fn cut_after(stream: S, bytes: u64) -> Self {
        Self { left: bytes, ..Self::new(stream) }
    }

    pub(super) fn flip_at(stream: S, position: u64) -> Self {
        Self { flip: Some(position), ..Self::new(stream) }
    }

    fn count(&mut self, bytes: usize) {
        self.left -= bytes as u64;
        self.seen.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.left == 0 {
            self.stream = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wired<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.remaining());
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        let mut part = buf.take(room);
        let polled = Pin::new(stream).poll_read(cx, &mut part);
        let read = part.filled().len();
        buf.advance(read);
        self.count(read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wired<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let mut bytes = buf[..room].to_vec();
        let inside = self.flip.and_then(|at| at.checked_sub(self.written)).and_then(|at| bytes.get_mut(at as usize));
        if let Some(byte) = inside {
            *byte ^= 0x10;
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let polled = Pin::new(stream).poll_write(cx, &bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.written += written as u64;
            self.count(written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().map_or(Poll::Ready(Ok(())), |stream| Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().map_or(Poll::Ready(Ok(())), |stream| Pin::new(stream).poll_shutdown(cx))
    }
}
