//! Pairs of sessions on a simulated wire: everything is really serialised, split anywhere, delayed and cut, under a virtual clock.

mod apart;
mod calls;
mod faults;
mod fragments;
mod golden;
mod lanes;
mod pair;
mod streams;

use bytes::{BufMut, Bytes, BytesMut};

use self::pair::{DIALLER, LISTENER, Pair};
use super::*;
use crate::proto::head::Verb;
use crate::proto::identity::CallIdentity;
use crate::types::{ClassName, Incarnation};

/// Bytes that one turn of a writer takes, as in the shell.
const WRITE_BYTES: usize = 128 * 1024;

fn head() -> CallHead {
    CallHead {
        verb: Verb::Request,
        timeout_ms: 30_000,
        identity: CallIdentity { edge: Incarnation::from_bytes([1; 16]), number: 7 },
        retry: false,
        exclusive: false,
        hops: 0,
        incarnation: Incarnation::default(),
        node: None,
        class: Some(class()),
        task: None,
    }
}

fn class() -> ClassName {
    ClassName::new("core").expect("a valid name")
}

fn error(what: &str) -> Error {
    Error::new(ErrorCode::ConnectionFailed, what)
}

fn frame(kind: Kind, channel: u16, body: impl Into<Bytes>) -> Frame {
    Frame { kind, channel, body: body.into() }
}

/// A call as it stands on the wire.
fn call_frame(channel: u16, call: u32, stream: u32, payload: &[u8]) -> Frame {
    let mut body = BytesMut::new();
    head::put_call(&mut body, call, stream, &head());
    body.put_slice(payload);
    frame(Kind::Call, channel, body.freeze())
}

fn stream_data(channel: u16, stream: u32, flags: u8, data: &[u8]) -> Frame {
    let mut body = BytesMut::new();
    body.put_u32(stream);
    body.put_u8(flags);
    body.put_slice(data);
    frame(Kind::StreamData, channel, body.freeze())
}

/// A session whose peer may do everything.
fn session(side: Side) -> Session<u64> {
    Session::new(side, Role::Control)
}

/// Hands a session one frame of its peer.
fn take(session: &mut Session<u64>, frame: Frame) -> Result<Vec<Incoming<u64>>, Fault> {
    let mut out = Vec::new();
    session.handle_frame(frame, &mut out).map(|()| out)
}

/// Everything that a session has to send, as frames.
fn sent(session: &mut Session<u64>) -> Vec<Frame> {
    let mut frames = Vec::new();
    let (mut outbox, mut buffer) = (Outbox::default(), BytesMut::new());
    while session.has_output() {
        session.transmit(&mut outbox, WRITE_BYTES, &mut Vec::new());
        drain(&mut outbox, &mut buffer);
    }
    while let Some(frame) = frame::take_frame(&mut buffer, frame::BYTES_MAX).expect("a session sends valid frames") {
        frames.push(frame);
    }
    assert!(buffer.is_empty(), "a session sends whole frames");
    frames
}

fn drain(outbox: &mut Outbox, into: &mut BytesMut) {
    for piece in outbox.pieces() {
        into.put_slice(piece);
    }
    let all = outbox.len();
    outbox.advance(all);
    outbox.drained();
}

/// The byte at a position of a test stream: no two neighbourhoods look alike.
fn pattern(position: usize) -> u8 {
    (position.wrapping_mul(0x9e37_79b9) >> 11) as u8
}

fn patterned(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(pattern).collect()
}
