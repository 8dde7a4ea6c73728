//! How links end, and what they keep while they idle.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;
use crate::proto::frame::{self, Kind};
use crate::proto::message;
use crate::transport::memory::Flow;

const KEEPALIVE: LinkOptions = LinkOptions { keepalive: Some(Duration::from_secs(5)) };

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let (one, mut silent) = duplex(64 * 1024);
    let end = End::start(wire(one), Side::Dialler, KEEPALIVE);
    let reason = in_time("the end", end.link.ended()).await;
    assert_eq!(reason.code(), &ErrorCode::ConnectionFailed);
    assert!(reason.message().contains("silent"), "{reason}");
    // It was pinged before.
    let mut received = bytes::BytesMut::new();
    while silent.read_buf(&mut received).await.expect("readable") > 0 {}
    let first = frame::take_frame(&mut received, frame::BYTES_MAX).expect("valid").expect("whole");
    assert_eq!((first.kind, first.channel), (Kind::Ping, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_peer_that_answers_is_kept() {
    let (one, other) = duplex(64 * 1024);
    let (left, right) = both(wire(one), wire(other), KEEPALIVE);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!left.link.has_ended() && !right.link.has_ended());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_network_is_noticed_at_both_ends() {
    let net = MemoryNet::new();
    let listener = net.listen("b").expect("nobody else listens");
    let dialled = net.node("a").dial("b").expect("somebody listens");
    let (left, right) = both(dialled, listener.accept().await, KEEPALIVE);
    net.set_flow("a", "b", Flow::Frozen);
    net.set_flow("b", "a", Flow::Frozen);
    in_time("the end", async { tokio::join!(left.link.ended(), right.link.ended()) }).await;
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_peer_that_does_not_read() {
    let (one, _stuck) = duplex(16);
    let end = End::start(wire(one), Side::Dialler, NO_KEEPALIVE);
    let channel = end.link.channel_zero();
    let waiting = tokio::spawn(async move { channel.call(&head(), &Bytes::from(vec![0; 10_000]), DEADLINE).await });
    eventually("it is sent", || end.link.channel_zero().calls_in_flight() == 1).await;
    end.link.close(gone());
    assert_eq!(in_time("the end", end.link.ended()).await, gone());
    assert!(waiting.await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_the_number_of_its_fault() {
    let (one, mut other) = duplex(64 * 1024);
    let end = End::start(wire(one), Side::Dialler, NO_KEEPALIVE);
    other.write_all(&[0, 0, 0, 3, 99, 0, 0]).await.expect("open");
    let reason = in_time("the end", end.link.ended()).await;
    assert_eq!(reason.code(), &ErrorCode::ProtocolError);
    let mut received = bytes::BytesMut::new();
    while in_time("its last words", other.read_buf(&mut received)).await.expect("readable") > 0 {}
    let mut next = || frame::take_frame(&mut received, frame::BYTES_MAX).expect("valid").expect("whole");
    assert_eq!(next().kind, Kind::Ping, "the first word of every link");
    let notice = next();
    assert_eq!(notice.kind, Kind::Fault);
    assert_eq!(message::decode::<message::FaultNotice>(Kind::Fault, &notice.body), Ok(message::FaultNotice { number: 3 }));
}

/// A reply to the first call of a link, as bytes.
fn reply_bytes() -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    frame::put_frame(&mut bytes, Kind::Reply, 0, &[0, 0, 0, 1, 0, b'h', b'i']);
    bytes.to_vec()
}

#[tokio::test]
async fn answers_that_came_before_a_fault_are_given() {
    for last in [vec![0, 0, 0, 3, 99, 0, 0], {
        let mut bytes = bytes::BytesMut::new();
        let notice = message::encode(&message::FaultNotice { number: 3 });
        frame::put_frame(&mut bytes, Kind::Fault, 0, &notice);
        bytes.extend_from_slice(&[]);
        bytes.to_vec()
    }] {
        let (one, mut other) = duplex(64 * 1024);
        let end = End::start(wire(one), Side::Dialler, NO_KEEPALIVE);
        let channel = end.link.channel_zero();
        let waiting = tokio::spawn(async move { channel.call(&head(), &Bytes::new(), DEADLINE).await });
        eventually("it is sent", || end.link.channel_zero().calls_in_flight() == 1).await;
        // The reason to end first, where the order allows it.
        let bytes = if last[4] == 99 { [reply_bytes(), last].concat() } else { [last, reply_bytes()].concat() };
        other.write_all(&bytes).await.expect("open");
        assert_eq!(in_time("the answer", waiting).await.expect("no panic"), Ok(Bytes::from_static(b"hi")));
        assert_eq!(in_time("the end", end.link.ended()).await.code(), &ErrorCode::ProtocolError);
    }
}

/// Bytes that can be read after everything that is written fails, as on a socket whose peer has gone.
struct HalfDead {
    readable: std::io::Cursor<Vec<u8>>,
    write_failed: bool,
}

impl AsyncRead for HalfDead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.write_failed {
            // Only now is the race lost: the writer knows already that the peer has gone.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.readable).poll_read(cx, buf)
    }
}

impl AsyncWrite for HalfDead {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
        self.write_failed = true;
        Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_a_peer_said_before_it_went_is_read() {
    let stream = HalfDead { readable: std::io::Cursor::new(reply_bytes()), write_failed: false };
    let end = End::start(wire(stream), Side::Dialler, NO_KEEPALIVE);
    assert_eq!(in_time("the answer", end.call(b"x", DEADLINE)).await, Ok(Bytes::from_static(b"hi")));
    in_time("the end", end.link.ended()).await;
}

/// Gives a large answer, then fails, once: as a socket tells of a reset.
struct FailsOnce {
    answer: Option<Vec<u8>>,
    is_asked: bool,
    has_failed: bool,
}

impl AsyncRead for FailsOnce {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.is_asked {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(mut answer) = self.answer.take() {
            let rest = answer.split_off(answer.len().min(buf.remaining()));
            buf.put_slice(&answer);
            self.answer = Some(rest).filter(|rest| !rest.is_empty());
            return Poll::Ready(Ok(()));
        }
        if std::mem::replace(&mut self.has_failed, true) {
            Poll::Pending
        } else {
            Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
        }
    }
}

impl AsyncWrite for FailsOnce {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.is_asked = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_failure_that_comes_with_bytes_is_told_behind_them() {
    let payload = vec![7; 20_000];
    let mut answer = bytes::BytesMut::from(&[0, 0, 0, 1, 0][..]);
    answer.extend_from_slice(&payload);
    let mut frame = bytes::BytesMut::new();
    frame::put_frame(&mut frame, Kind::Reply, 0, &answer);
    let stream = FailsOnce { answer: Some(frame.to_vec()), is_asked: false, has_failed: false };
    let end = End::start(wire(stream), Side::Dialler, NO_KEEPALIVE);
    assert_eq!(in_time("the answer", end.call(b"x", DEADLINE)).await, Ok(Bytes::from(payload)));
    let reason = in_time("the end", end.link.ended()).await;
    assert!(reason.message().contains("closed the connection"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_gives_back_the_memory_of_a_burst() {
    let (one, other) = duplex(1024 * 1024);
    let (caller, answerer) = both(wire(one), wire(other), KEEPALIVE);
    let (answering, _) = answerer.echo();
    let payload = Bytes::from(vec![1; 60_000]);
    let mut calls = tokio::task::JoinSet::new();
    for size in (0..200).map(|number| if number % 2 == 0 { 60_000 } else { 300 }) {
        let (channel, payload) = (caller.link.channel_zero(), payload.slice(..size));
        calls.spawn(async move { channel.call(&head(), &payload, DEADLINE).await.expect("answered") });
    }
    calls.join_all().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    for link in [&caller.link, &answering] {
        assert!(link.kept_bytes() < 16 * 1024, "{} bytes are kept", link.kept_bytes());
    }
}

#[tokio::test]
async fn a_handle_of_an_ended_link_queues_nothing() {
    let (caller, answerer) = linked();
    let channel = caller.link.open_channel().expect("there is room");
    answerer.link.close(gone());
    in_time("the end", caller.link.ended()).await;
    let goodbye = Message::GoAway(message::GoAway { reason: gone(), reconnect_after_ms: None });
    channel.message(&goodbye);
    caller.link.channel_zero().message(&goodbye);
    assert!(!caller.link.with_session(|session| session.has_output()));
    assert!(caller.link.open_channel().is_err());
    assert!(channel.ping(Rank::default(), DEADLINE).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_answered_or_late() {
    let net = MemoryNet::new();
    let (left, right) = linked_in(&net).await;
    net.set_delay("a", "b", Duration::from_millis(30));
    let (round_trip, _) = left.link.channel_zero().ping(Rank::default(), DEADLINE).await.expect("answered");
    assert!(round_trip >= Duration::from_millis(30));
    net.set_flow("b", "a", Flow::Frozen);
    let late = left.link.channel_zero().ping(Rank::default(), Duration::from_secs(1)).await.expect_err("frozen");
    assert_eq!(late.code(), &ErrorCode::Timeout);
    let (link, waiting) = (left.link.clone(), left.link.channel_zero());
    let waiting = tokio::spawn(async move { waiting.ping(Rank::default(), DEADLINE).await });
    tokio::task::yield_now().await;
    link.close(gone());
    let cut = waiting.await.expect("no panic").expect_err("the link has ended");
    assert!(matches!(cut.code(), ErrorCode::ConnectionFailed | ErrorCode::ShuttingDown), "{cut}");
    drop(right);
}
