//! One direction of a simulated link: a bounded queue of bytes with a moment before which they do not arrive.

use std::collections::VecDeque;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// What happens to bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// They arrive.
    #[default]
    Open,
    /// They wait, and arrive when the flow is open again; nor does the end of the stream arrive.
    Frozen,
    /// They vanish, and the writer does not notice. A link that lost something is of no use any more.
    Lost,
}

/// A poisoned lock only means that another test thread panicked; the state is still whole, since no change here can panic half-way.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Pipe {
    state: Mutex<State>,
}

struct State {
    chunks: VecDeque<(Instant, Bytes)>,
    /// Bytes in `chunks`.
    held: usize,
    capacity: usize,
    flow: Flow,
    delay: Duration,
    written: u64,
    writer_done: bool,
    reader_gone: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

impl Pipe {
    pub(super) fn new(capacity: usize, flow: Flow, delay: Duration) -> Arc<Self> {
        let state = State {
            chunks: VecDeque::new(),
            held: 0,
            capacity,
            flow,
            delay,
            written: 0,
            writer_done: false,
            reader_gone: false,
            reset: false,
            reader: None,
            writer: None,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(super) fn set(&self, flow: Flow, delay: Duration) {
        let mut state = lock(&self.state);
        state.flow = flow;
        state.delay = delay;
        if flow == Flow::Lost {
            state.chunks.clear();
            state.held = 0;
        }
        state.wake_reader();
        state.wake_writer();
    }

    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.reset = true;
        state.chunks.clear();
        state.held = 0;
        state.wake_reader();
        state.wake_writer();
    }

    pub(super) fn written(&self) -> u64 {
        lock(&self.state).written
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.state);
        if state.reset || state.writer_done {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if state.flow == Flow::Lost {
            state.written += bytes.len() as u64;
            return Poll::Ready(Ok(bytes.len()));
        }
        let room = state.capacity - state.held;
        if room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = &bytes[..bytes.len().min(room)];
        // Bytes never overtake each other, also where the delay has become shorter.
        let last = state.chunks.back().map(|(at, _)| *at);
        let now = Instant::now();
        let arrives = last.map_or(now + state.delay, |last| last.max(now + state.delay));
        state.chunks.push_back((arrives, Bytes::copy_from_slice(taken)));
        state.held += taken.len();
        state.written += taken.len() as u64;
        state.wake_reader();
        Poll::Ready(Ok(taken.len()))
    }

    fn finish(&self) {
        let mut state = lock(&self.state);
        state.writer_done = true;
        state.wake_reader();
    }

    fn leave(&self) {
        let mut state = lock(&self.state);
        state.reader_gone = true;
        state.wake_writer();
    }
}

/// The reading end.
pub struct MemoryReader {
    pipe: Arc<Pipe>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for MemoryReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let arrives = {
                let mut guard = lock(&this.pipe.state);
                let state = &mut *guard;
                if state.reset {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                state.reader = Some(cx.waker().clone());
                if state.flow != Flow::Open {
                    return Poll::Pending;
                }
                let now = Instant::now();
                match state.chunks.front_mut() {
                    None if state.writer_done => return Poll::Ready(Ok(())),
                    None => return Poll::Pending,
                    Some((arrives, _)) if *arrives > now => *arrives,
                    Some((_, chunk)) => {
                        let taken = chunk.len().min(buf.remaining());
                        buf.put_slice(&chunk[..taken]);
                        chunk.advance(taken);
                        if chunk.is_empty() {
                            state.chunks.pop_front();
                        }
                        state.held -= taken;
                        state.wake_writer();
                        return Poll::Ready(Ok(()));
                    }
                }
            };
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(arrives)));
            if timer.deadline() != arrives {
                timer.as_mut().reset(arrives);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.timer = None;
        }
    }
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        self.pipe.leave();
    }
}

/// The writing end.
pub struct MemoryWriter {
    pipe: Arc<Pipe>,
}

impl AsyncWrite for MemoryWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.pipe.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        self.pipe.finish();
    }
}

/// One end of a simulated link.
pub struct MemoryStream {
    reader: MemoryReader,
    writer: MemoryWriter,
}

impl MemoryStream {
    pub(super) fn new(read: Arc<Pipe>, write: Arc<Pipe>) -> Self {
        Self { reader: MemoryReader { pipe: read, timer: None }, writer: MemoryWriter { pipe: write } }
    }

    /// Reader and writer for separate tasks.
    pub fn into_split(self) -> (MemoryReader, MemoryWriter) {
        (self.reader, self.writer)
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().writer).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer).poll_shutdown(cx)
    }
}
