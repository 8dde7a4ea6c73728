//! Links over QUIC: streams beside the link.

use super::streams::{Streams, bytes_of, over};
use super::*;
use crate::proto::frame::{self, Frame, Kind};
use crate::transport::{DialOptions, ListenOptions, Listener, SideStreams, WriteHalf, dial};
use bytes::BytesMut;
use futures_util::FutureExt as _;

/// Two wires, the one that dialled first.
async fn wires() -> (Wire, Wire) {
    let listener = Listener::bind(&"nkcluster://127.0.0.1:0;transport=quic".parse().expect("valid"), &ListenOptions::default()).await;
    let listener = listener.expect("binds");
    let options = DialOptions::default();
    let dialled = async {
        let mut wire = dial(listener.uri(), &options).await.expect("connects");
        // QUIC tells the listener of a stream with its first byte.
        wire.write_u8(1).await.expect("writes");
        wire
    };
    let accepted = async {
        let mut wire = listener.accept().await.into_wire().await.expect("a wire");
        assert_eq!(wire.read_u8().await.expect("reads"), 1);
        wire
    };
    in_time("the connection", async { tokio::join!(dialled, accepted) }).await
}

async fn linked_by_quic() -> (End, End) {
    let (dialled, accepted) = wires().await;
    both(dialled, accepted, NO_KEEPALIVE)
}

/// A peer that writes what it likes, and reads what it gets.
struct Raw {
    read: crate::transport::ReadHalf,
    write: WriteHalf,
    sides: SideStreams,
    buffer: BytesMut,
}

impl Raw {
    /// One that dialled a link.
    async fn start() -> (Self, End) {
        let (dialled, accepted) = wires().await;
        let sides = dialled.side_streams().expect("quic has them");
        let (read, write) = dialled.into_split();
        (Self { read, write, sides, buffer: BytesMut::new() }, End::start(accepted, Side::Listener, NO_KEEPALIVE))
    }

    /// The next frame, without the pings of the link itself.
    async fn frame(&mut self) -> Frame {
        loop {
            let frame = in_time("a frame", next_frame(&mut self.read, &mut self.buffer)).await.expect("a frame");
            if frame.kind != Kind::Ping {
                return frame;
            }
        }
    }

    async fn send(&mut self, kind: Kind, body: &[u8]) {
        self.write.write_all(&frame_of(kind, body)).await.expect("writes");
    }

    /// A side stream that begins with these bytes.
    async fn side(&self, bytes: &[u8]) -> WriteHalf {
        let mut side = in_time("a side stream", self.sides.open()).await.expect("opens");
        side.write_all(bytes).await.expect("writes");
        side
    }

    /// Sends a call with a stream.
    async fn call(&mut self, call: u32, stream: u32) {
        let mut body = BytesMut::new();
        crate::proto::head::put_call(&mut body, call, stream, &head());
        self.send(Kind::Call, &body).await;
    }
}

async fn next_frame(read: &mut crate::transport::ReadHalf, buffer: &mut BytesMut) -> Option<Frame> {
    loop {
        if let Some(frame) = frame::take_frame(buffer, frame::BYTES_MAX).expect("a good frame") {
            return Some(frame);
        }
        if read.read_buf(buffer).await.expect("reads") == 0 {
            return None;
        }
    }
}

fn frame_of(kind: Kind, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::put_frame(&mut bytes, kind, 0, body);
    bytes
}

fn data(stream: u32, end: bool, bytes: &[u8]) -> BytesMut {
    frame_of(Kind::StreamData, &[&stream.to_be_bytes()[..], &[u8::from(end)], bytes].concat())
}

/// The number of the fault by which a link ends.
async fn fault_of(raw: &mut Raw) -> Vec<u8> {
    loop {
        let frame = raw.frame().await;
        if frame.kind == Kind::Fault {
            return frame.body.to_vec();
        }
    }
}

#[tokio::test]
async fn megabytes_pass_both_ways_and_leave_nothing_behind() {
    const BYTES: usize = 8 * 1024 * 1024;
    let Streams { near, far, ends, .. } = over(linked_by_quic().await).await;
    let side = |stream: ByteStream, sends: usize, expects: usize| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = async {
            writer.write_all(&bytes_of(sends, BYTES)).await.expect("open");
            writer.shutdown().await.expect("finishes");
        };
        let mut received = Vec::new();
        let read = async { reader.read_to_end(&mut received).await.expect("readable") };
        tokio::join!(write, read);
        assert!(received == bytes_of(expects, BYTES));
    };
    in_time("both copies", async { tokio::join!(side(near, 1, 2), side(far, 2, 1)) }).await;
    for end in [&ends.0, &ends.1] {
        eventually("its tasks have ended", || end.link.side_streams_in_use() == 0).await;
    }
}

#[tokio::test]
async fn bytes_of_a_stream_never_travel_on_the_link() {
    let (mut raw, mut end) = Raw::start().await;
    raw.call(1, 1).await;
    let mut far = end.next().await.stream.take().expect("with a stream");
    let content = bytes_of(7, 200_000);
    let copy = content.clone();
    let writing = tokio::spawn(async move {
        far.write_all(&copy).await.expect("open");
        far.shutdown().await.expect("finishes");
        far
    });
    let mut side = in_time("the side stream", raw.sides.accept()).await.expect("a side stream");
    let (mut buffer, mut received, mut ended) = (BytesMut::new(), Vec::new(), false);
    while !ended {
        let frame = in_time("a frame", next_frame(&mut side, &mut buffer)).await.expect("a frame");
        assert_eq!((frame.kind, frame.channel, &frame.body[..4]), (Kind::StreamData, 0, &[0, 0, 0, 1][..]));
        ended = frame.body[4] == 1;
        received.extend_from_slice(&frame.body[5..]);
    }
    assert!(received == content);
    // On the link there was the answer of the call, which nobody gave, and after it the answer to a ping: no byte of the stream.
    raw.send(Kind::Ping, &[0; 28]).await;
    let kinds = [raw.frame().await.kind, raw.frame().await.kind];
    assert_eq!(kinds, [Kind::Reply, Kind::Pong]);
    // The end of both directions ends the side stream.
    let mut ours = raw.side(&data(1, true, b"")).await;
    let mut far = in_time("the writer", writing).await.expect("no panic");
    assert_eq!(in_time("the end", far.read_to_end(&mut Vec::new())).await.expect("readable"), 0);
    drop(far);
    assert_eq!(in_time("the last frame", next_frame(&mut side, &mut buffer)).await, None);
    ours.shutdown().await.expect("the peer has it");
}

#[tokio::test]
async fn bytes_that_overtake_their_call_wait_for_it() {
    let (mut raw, mut end) = Raw::start().await;
    let _side = raw.side(&data(1, true, b"early")).await;
    // Time for the early bytes to be read, if anybody would.
    raw.send(Kind::Ping, &[0; 28]).await;
    assert_eq!(raw.frame().await.kind, Kind::Pong);
    eventually("somebody waits", || end.link.side_streams_in_use() == 1).await;
    raw.call(1, 1).await;
    let mut stream = end.next().await.stream.take().expect("with a stream");
    let mut bytes = Vec::new();
    in_time("the bytes", stream.read_to_end(&mut bytes)).await.expect("readable");
    assert_eq!(bytes, b"early");
}

#[tokio::test]
async fn side_stream_that_carries_anything_else_ends_the_link() {
    let call = frame_of(Kind::Call, &[0; 80]);
    let too_large = u32::MAX.to_be_bytes();
    let other = [&data(1, false, b"x")[..], &data(3, false, b"x")[..]].concat();
    let beyond = [&data(1, true, b"x")[..], &data(1, false, b"x")[..]].concat();
    for (bytes, number) in [(&call[..], 4), (&too_large[..], 1), (&other[..], 5), (&beyond[..], 5)] {
        let (mut raw, mut end) = Raw::start().await;
        raw.call(1, 1).await;
        let _call = end.next().await;
        let _side = raw.side(bytes).await;
        let notice: crate::proto::message::FaultNotice =
            crate::proto::message::decode(Kind::Fault, &fault_of(&mut raw).await).expect("a notice");
        assert_eq!(notice.number, number);
        assert_eq!(in_time("the end", end.link.ended()).await.code(), &ErrorCode::ProtocolError);
    }
}

#[tokio::test]
async fn credit_holds_on_side_streams() {
    let (mut raw, mut end) = Raw::start().await;
    raw.call(1, 1).await;
    let _call = end.next().await;
    let mut side = raw.side(b"").await;
    // The window to its last byte, and one more.
    let window = vec![0; crate::proto::session::STREAM_WINDOW_BYTES];
    for piece in window.chunks(32 * 1024) {
        side.write_all(&data(1, false, piece)).await.expect("within the window");
    }
    raw.send(Kind::Ping, &[0; 28]).await;
    assert_eq!(raw.frame().await.kind, Kind::Pong);
    side.write_all(&data(1, false, b"x")).await.expect("writes");
    assert_eq!(in_time("the end", end.link.ended()).await.code(), &ErrorCode::ProtocolError);
}

#[tokio::test]
async fn thousands_of_streams_that_nobody_knows_delay_nothing_and_are_bounded() {
    let (mut raw, end) = Raw::start().await;
    let mut held = Vec::new();
    for number in 0..2304 {
        held.push(raw.side(&data(2 * number + 1, false, b"nobody asked")).await);
    }
    raw.send(Kind::Ping, &[0; 28]).await;
    assert_eq!(raw.frame().await.kind, Kind::Pong);
    assert!(!end.link.has_ended());
    assert!(raw.sides.open().now_or_never().is_none(), "one more waits for room");
}

#[tokio::test]
async fn stream_that_was_given_up_takes_no_room() {
    let (mut raw, mut end) = Raw::start().await;
    for number in 0..100 {
        raw.call(number + 1, 2 * number + 1).await;
        // Dropped at once, before any of its bytes came.
        drop(end.next().await);
        let mut side = raw.side(b"").await;
        // It is told to stop, however much it would send.
        in_time("the stop", async { while side.write_all(&data(2 * number + 1, false, &[0; 50_000])).await.is_ok() {} }).await;
    }
    eventually("nobody reads them", || end.link.side_streams_in_use() == 0).await;
}

#[tokio::test]
async fn reader_that_stalls_holds_up_its_own_stream_only() {
    let (caller, mut answerer) = linked_by_quic().await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let (answer, mut near) = caller.link.channel_zero().call_with_stream(&head(), &Bytes::new()).expect("there is room");
        let far = answerer.next().await.stream.take().expect("with a stream");
        // All that may be sent, and nobody reads.
        let full = tokio::spawn(async move { near.write_all(&bytes_of(0, 4 << 20)).await });
        stalled.push((answer, far, full));
    }
    let Streams { mut near, mut far, ends, .. } = over((caller, answerer)).await;
    let copy = async {
        near.write_all(&bytes_of(1, 2 << 20)).await.expect("open");
        near.shutdown().await.expect("finishes");
    };
    let mut received = Vec::new();
    let (_, read) = in_time("the copy", async { tokio::join!(copy, far.read_to_end(&mut received)) }).await;
    read.expect("readable");
    assert!(received == bytes_of(1, 2 << 20));
    ends.0.link.channel_zero().ping(Rank::default(), DEADLINE).await.expect("answered");
    assert!(stalled.iter().all(|(_, _, full)| !full.is_finished()), "the others stand");
}

#[tokio::test]
async fn what_was_finished_before_the_link_was_closed_arrives() {
    for _ in 0..20 {
        let Streams { mut near, mut far, ends, .. } = over(linked_by_quic().await).await;
        near.write_all(&bytes_of(0, 200_000)).await.expect("open");
        near.shutdown().await.expect("finishes");
        ends.0.link.close(gone());
        let mut received = Vec::new();
        in_time("the rest", far.read_to_end(&mut received)).await.expect("readable");
        assert!(received == bytes_of(0, 200_000));
        in_time("the end", ends.1.link.ended()).await;
    }
}

#[tokio::test]
async fn peer_learns_at_once_that_a_link_has_ended() {
    let (one, other) = linked_by_quic().await;
    one.link.close(gone());
    let reason = in_time("the end", other.link.ended()).await;
    assert_eq!(reason.message(), "the peer closed the connection");
}
