//! Who writes, and how often.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::io::ReadBuf;

use super::*;

/// Counts the writes that it takes.
struct Counting {
    stream: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_single_call_leaves_before_any_other_task_runs() {
    let (near, mut far) = duplex(64 * 1024);
    let end = End::start(wire(near), Side::Dialler, NO_KEEPALIVE);
    let mut call = pin!(end.call(b"x", DEADLINE));
    assert!(call.as_mut().now_or_never().is_none(), "nobody has answered");
    let mut frame = [0; 256];
    let read = far.read(&mut frame).now_or_never();
    assert!(read.is_some_and(|read| read.is_ok_and(|count| count > 0)), "the frame is on its way");
}

#[tokio::test]
async fn calls_of_a_crowd_leave_in_few_writes() {
    let (near, far) = duplex(64 * 1024);
    let writes = Arc::new(AtomicUsize::new(0));
    let counting = Counting { stream: near, writes: Arc::clone(&writes) };
    let (caller, answerer) = both(wire(counting), wire(far), NO_KEEPALIVE);
    let (_link, _) = answerer.echo();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let channel = caller.link.channel_zero();
        calls.spawn(async move { channel.call(&head(), &Bytes::from_static(b"x"), DEADLINE).await.expect("answered") });
    }
    in_time("all answers", calls.join_all()).await;
    let writes = writes.load(Ordering::SeqCst);
    assert!(writes < 20, "200 calls took {writes} writes");
}

#[tokio::test]
async fn a_crowd_that_never_ends_is_served() {
    let (caller, mut answerer) = linked();
    // Unanswered, so that everybody else is one of many.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let channel = caller.link.channel_zero();
        waiting.spawn(async move { channel.call(&head(), &Bytes::new(), DEADLINE).await });
    }
    let mut unanswered = Vec::new();
    for _ in 0..8 {
        unanswered.push(answerer.next().await);
    }
    let channel = caller.link.channel_zero();
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let crowd = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::SeqCst);
            // Given up at once; the next one comes before anybody else had a turn.
            let _ = channel.call(&head(), &Bytes::new(), DEADLINE).now_or_never();
            // Behind whoever is ready to run, and no further: `yield_now` would wait until nobody is.
            let mut was_behind = false;
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                if std::mem::replace(&mut was_behind, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    });
    let (_link, _) = answerer.echo();
    assert_eq!(in_time("an answer", caller.call(b"hello", DEADLINE)).await, Ok(Bytes::from_static(b"hello")));
    // Without a bound the crowd would have its way until the lanes are full.
    let rounds = rounds.load(Ordering::SeqCst);
    assert!(rounds < 1000, "{rounds} others came first");
    crowd.abort();
}

#[tokio::test]
async fn a_call_that_cannot_be_written_fails_as_any_other() {
    let (near, far) = duplex(64 * 1024);
    let end = End::start(wire(near), Side::Dialler, NO_KEEPALIVE);
    drop(far);
    let error = in_time("an answer", end.call(b"x", DEADLINE)).await.expect_err("nobody is there");
    assert_eq!(error.code(), &ErrorCode::ConnectionFailed);
    in_time("the end", end.link.ended()).await;
}
