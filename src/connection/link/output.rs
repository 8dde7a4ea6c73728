//! The way out of a link: from the lanes to the socket.
//!
//! ```text
//!   call, reply, few in flight ─► write at once ──┐
//!                                  └ not possible │
//!   everything else ───────────────► wake ─► writer task ─► Output (under a lock): lanes ─► outbox ─► socket
//! ```
//!
//! A single call is written by whoever makes it: waking a task for it would cost more than the write. Where many are under way the writer's task does it, and lets
//! everybody who is ready to run put a frame into the lanes first, so that one write takes them all. Either way the frames leave in the order of the lanes, which
//! only [`Output`] empties.
//!
//! The lock of the output is taken before that of the session, never the other way round, and neither is held across an await.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::AsyncWrite as _;

use super::Link;
use super::bulk::{self, Bulk};
use super::drive::read_error;
use super::pace;
use crate::error::{Error, ErrorCode};
use crate::proto::session::{Outbox, StreamKey};
use crate::transport::WriteHalf;

/// Bytes that one turn takes from the lanes. Small, so that an urgent frame waits for little.
pub(super) const WRITE_BYTES: usize = 128 * 1024;
/// Pieces of one vectored write.
pub(super) const PIECES_MAX: usize = 32;
/// How long a closing link may take to send what is queued, or to read what the peer has sent before it went.
pub(super) const CLOSE_FLUSH: Duration = Duration::from_secs(1);
/// Calls in one direction up to which each is written by itself.
pub(super) const ALONE_MAX: usize = 2;

/// How much else is under way with a frame that was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Little: it leaves at once.
    Alone,
    /// Others will come in this moment, and leave together with it.
    Crowd,
}

impl Company {
    /// Of a call or reply, with the number of those that wait.
    pub(super) fn of(calls: usize) -> Self {
        if calls <= ALONE_MAX { Company::Alone } else { Company::Crowd }
    }
}

/// What was taken from the lanes and has not left, and where it goes.
#[derive(Default)]
pub(super) struct Output {
    /// None when the link has ended.
    half: Option<WriteHalf>,
    outbox: Outbox,
    /// Streams that may send again.
    writable: Vec<StreamKey>,
    /// Something was written that the transport may still hold.
    is_unflushed: bool,
    /// Bytes that were written since the writer's task gave way, and after how many it does again.
    burst: usize,
    burst_max: usize,
    /// Met by whoever wrote at once; the writer's task tells it.
    failed: Option<io::Error>,
}

impl Output {
    pub(super) fn new(half: WriteHalf, burst_max: usize) -> Self {
        Self { half: Some(half), burst_max, ..Self::default() }
    }

    /// Whether everything that was taken has left, so that the writer's task waits for nothing but news.
    fn is_idle(&self) -> bool {
        self.outbox.is_empty() && !self.is_unflushed && self.failed.is_none()
    }

    /// Writes what the lanes hold, at most `turns` times and until it is a burst; ready when nothing of it is left here.
    fn poll_drain(&mut self, link: &Link, turns: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let Some(half) = &mut self.half else { return Poll::Ready(Ok(())) };
        for _ in 0..turns {
            if self.burst >= self.burst_max {
                break;
            }
            // What has not left yet is not added to: a peer that does not read would be written for without bound, and the session would never notice.
            if self.outbox.is_empty() {
                let is_relaying = {
                    let mut state = link.lock();
                    state.session.transmit(&mut self.outbox, WRITE_BYTES, &mut self.writable);
                    state.session.is_relaying()
                };
                if is_relaying {
                    link.inner.relayed.notify_waiters();
                }
                bulk::calls_left(link);
                if !self.writable.is_empty() {
                    link.wake_writable(&mut self.writable);
                }
            }
            if self.outbox.is_empty() {
                break;
            }
            while !self.outbox.is_empty() {
                let mut slices = [io::IoSlice::new(&[]); PIECES_MAX];
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(self.outbox.pieces()) {
                    *slice = io::IoSlice::new(piece);
                    used += 1;
                }
                let half = Pin::new(&mut *half);
                // The usual case is one piece, which the system takes more cheaply by itself.
                let written = if used == 1 { half.poll_write(cx, &slices[0]) } else { half.poll_write_vectored(cx, &slices[..used]) };
                let count = ready!(written)?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.outbox.advance(count);
                self.burst += count;
                self.is_unflushed = true;
            }
        }
        if self.is_unflushed {
            ready!(Pin::new(half).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        self.outbox.drained();
        Poll::Ready(Ok(()))
    }

    /// Ends our direction; the peer reads what was written before.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.half {
            Some(half) => Pin::new(half).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.outbox.kept_bytes()
    }
}

impl Link {
    pub(super) fn output(&self) -> MutexGuard<'_, Output> {
        // As with the session: after a panic it is still a value that can be closed.
        self.inner.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the writer's task look at the lanes.
    pub(super) fn wake_writer(&self) {
        self.inner.writer.wake();
        self.inner.bulk.iter().for_each(Bulk::wake);
    }

    /// Sends a frame that was queued on its way. Not to be called under a lock of whoever may be called by the link.
    pub(super) fn push(&self, company: Company) {
        if company == Company::Crowd {
            self.inner.is_crowded.store(true, Ordering::Relaxed);
            return self.wake_writer();
        }
        let mut output = match self.inner.output.try_lock() {
            Ok(output) if output.is_idle() => output,
            // Somebody writes, or waits for the socket: the task looks again when that is over.
            Ok(_) | Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return self.wake_writer(),
        };
        let drained = output.poll_drain(self, 1, &mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Err(error)) = drained {
            output.failed = Some(error);
        } else if drained.is_ready() && !self.lock().session.has_output() {
            return;
        }
        drop(output);
        // It registers itself where the socket knows nobody who is to be woken, and writes what is left.
        self.wake_writer();
    }
}

/// Writes what the lanes hold, until the link ends.
pub(super) async fn write_loop(link: Link) {
    let mut has_yielded = false;
    let written = loop {
        match poll_fn(|cx| poll_writing(&link, &mut has_yielded, cx)).await {
            Ok(Pause::GiveWay) => pace::give_way().await,
            Ok(Pause::Closing) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    match written {
        Ok(()) => {
            // The last words: replies that were given, the reason of a fault.
            let last = async {
                link.output().burst_max = usize::MAX;
                poll_fn(|cx| link.output().poll_drain(&link, usize::MAX, cx)).await?;
                bulk::sent(&link).await;
                poll_fn(|cx| link.output().poll_shutdown(cx)).await
            };
            let _ = tokio::time::timeout(CLOSE_FLUSH, last).await;
        }
        Err(error) => {
            // The peer has gone, but what it said before may lie unread: the reader comes to the end by itself.
            let closing = poll_fn(|cx| {
                link.inner.writer.register(cx.waker());
                if link.is_closing() { Poll::Ready(()) } else { Poll::Pending }
            });
            let _ = tokio::time::timeout(CLOSE_FLUSH, closing).await;
            link.close(Error::new(ErrorCode::ConnectionFailed, read_error(&error)));
        }
    }
    // Handles of the link may live on, its socket does not.
    *link.output() = Output::default();
}

/// Why the writer's task does not write just now.
enum Pause {
    /// It has written much.
    GiveWay,
    /// The link is to end.
    Closing,
}

/// Ready when much was written, when the link closes, or when the socket has failed.
fn poll_writing(link: &Link, has_yielded: &mut bool, cx: &mut Context<'_>) -> Poll<io::Result<Pause>> {
    // Registered before the look, so that what is queued from now on wakes us.
    link.inner.writer.register(cx.waker());
    if link.inner.is_crowded.swap(false, Ordering::Relaxed) && !*has_yielded && !link.is_closing() {
        // Behind everybody who is ready to run; once, or a crowd that never ends would never be served.
        *has_yielded = true;
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    *has_yielded = false;
    let mut output = link.output();
    match output.poll_drain(link, usize::MAX, cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        _ if link.is_closing() => Poll::Ready(Ok(Pause::Closing)),
        Poll::Ready(Ok(())) if output.burst >= output.burst_max => {
            output.burst = 0;
            Poll::Ready(Ok(Pause::GiveWay))
        }
        Poll::Ready(Ok(())) => Poll::Pending,
        // The socket tells when it goes on: somebody looks at it.
        Poll::Pending => {
            output.burst = 0;
            Poll::Pending
        }
    }
}
