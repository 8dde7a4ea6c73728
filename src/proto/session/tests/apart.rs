//! Streams with ways of their own: no order between those and the link is assumed, and everything arrives.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::super::frame::{self, take_frame};
use super::*;

/// A session that dialled and one that listened, and what is on its way from the first to the second.
struct Ways {
    from: Session<u64>,
    to: Session<u64>,
    link: VecDeque<Frame>,
    sides: BTreeMap<StreamKey, VecDeque<Frame>>,
    /// Streams whose first frame was taken in.
    known: Vec<StreamKey>,
}

fn session(side: Side) -> Session<u64> {
    let mut session = Session::new(side, Role::Control);
    session.set_streams_apart();
    session
}

fn frames(out: &mut Outbox) -> VecDeque<Frame> {
    let mut bytes = BytesMut::new();
    out.pieces().iter().for_each(|piece| bytes.put_slice(piece));
    out.advance(out.len());
    std::iter::from_fn(|| take_frame(&mut bytes, frame::BYTES_MAX).expect("good frames")).collect()
}

impl Ways {
    fn new() -> Self {
        let (from, to) = (session(Side::Dialler), session(Side::Listener));
        Self { from, to, link: VecDeque::new(), sides: BTreeMap::new(), known: Vec::new() }
    }

    fn open(&mut self) -> StreamKey {
        let (_, key) = self.from.call(LINK_CHANNEL, &head(), &Bytes::new(), true, 1).expect("there is room");
        key.expect("a stream was asked for")
    }

    fn send_link(&mut self) {
        let mut out = Outbox::default();
        self.from.transmit(&mut out, WRITE_BYTES, &mut Vec::new());
        self.link.extend(frames(&mut out));
    }

    fn send_sides(&mut self) {
        while let Some(key) = self.from.next_stream() {
            let mut out = Outbox::default();
            while self.from.transmit_stream(key, &mut out, WRITE_BYTES, &mut Vec::new()) && !out.is_empty() {
                self.sides.entry(key).or_default().extend(frames(&mut out));
            }
        }
    }

    fn deliver_link(&mut self) {
        if let Some(frame) = self.link.pop_front() {
            assert!(!matches!(frame.kind, Kind::StreamData | Kind::StreamReset), "{frame:?} is on the link");
            self.to.handle_frame(frame, &mut Vec::new()).expect("good frames");
        }
    }

    /// Delivers the next frame of a side stream, if its call has come.
    fn deliver_side(&mut self, key: StreamKey) {
        if !self.known.contains(&key) {
            if !self.sides.contains_key(&key) || !self.to.take_announced(key) {
                return;
            }
            self.known.push(key);
        }
        if let Some(frame) = self.sides.get_mut(&key).and_then(VecDeque::pop_front) {
            assert_eq!(stream_of(&frame, Some(key)), Ok(key));
            self.to.handle_frame(frame, &mut Vec::new()).expect("good frames");
        }
    }
}

proptest! {
    #[test]
    fn bytes_arrive_whatever_overtakes_what(lengths in prop::collection::vec(0..200_000_usize, 1..6), steps in prop::collection::vec((0..5_u8, 0..6_usize), 0..200)) {
        let mut ways = Ways::new();
        let keys: Vec<StreamKey> = lengths.iter().map(|_| ways.open()).collect();
        for (key, length) in keys.iter().zip(&lengths) {
            let taken = ways.from.stream_write(*key, &patterned(0, *length)).expect("open");
            prop_assert_eq!(taken, *length, "it fits into window and lane");
            ways.from.stream_finish(*key);
        }
        for (step, which) in steps {
            let key = keys[which % keys.len()];
            match step {
                0 => ways.send_link(),
                1 => ways.send_sides(),
                2 => ways.deliver_link(),
                _ => ways.deliver_side(key),
            }
        }
        ways.send_link();
        ways.send_sides();
        while !ways.link.is_empty() {
            ways.deliver_link();
        }
        prop_assert!(!ways.from.has_output() && !ways.from.has_stream_output());
        for (key, length) in keys.iter().zip(&lengths) {
            while !ways.known.contains(key) || !ways.sides[key].is_empty() {
                ways.deliver_side(*key);
            }
            let mut read = 0;
            while let StreamRead::Bytes(bytes) = ways.to.stream_read(*key, usize::MAX) {
                prop_assert!(bytes == patterned(read, bytes.len()));
                read += bytes.len();
            }
            prop_assert_eq!(read, *length);
            prop_assert_eq!(ways.to.stream_read(*key, 1), StreamRead::End);
        }
    }
}

#[test]
fn stream_sends_nothing_before_its_call_has_left() {
    let mut ways = Ways::new();
    let key = ways.open();
    ways.from.stream_write(key, b"early").expect("open");
    ways.send_sides();
    assert!(ways.sides.is_empty());
    ways.send_link();
    assert!(ways.from.has_next_stream());
    ways.send_sides();
    assert_eq!(ways.sides[&key].len(), 1);
}

#[test]
fn end_of_a_stream_is_told_to_its_sender() {
    let mut ways = Ways::new();
    let key = ways.open();
    ways.send_link();
    ways.from.stream_write(key, b"some").expect("open");
    ways.send_sides();
    ways.from.stream_reset(key);
    assert_eq!(ways.from.next_stream(), Some(key), "there is a reset to be sent");
    let mut out = Outbox::default();
    ways.from.transmit_stream(key, &mut out, WRITE_BYTES, &mut Vec::new());
    assert_eq!(frames(&mut out).back().map(|frame| frame.kind), Some(Kind::StreamReset));
    assert!(!ways.from.transmit_stream(key, &mut out, WRITE_BYTES, &mut Vec::new()), "nothing follows");
}

#[test]
fn stream_is_announced_once_by_its_call_also_by_one_that_was_refused() {
    let mut ways = Ways::new();
    let key = ways.open();
    ways.send_link();
    assert!(!ways.to.take_announced(key));
    ways.deliver_link();
    assert!(ways.to.take_announced(key));
    assert!(!ways.to.take_announced(key));
    // On a channel that is closed.
    let channel = ways.from.open_channel().expect("there is room");
    let (_, refused) = ways.from.call(channel, &head(), &Bytes::new(), true, 1).expect("there is room");
    let refused = refused.expect("a stream was asked for");
    ways.send_link();
    while ways.link.front().is_some_and(|frame| frame.kind == Kind::ChannelOpen) {
        ways.deliver_link();
    }
    ways.to.close_channel(channel, &error("over"));
    ways.deliver_link();
    assert!(ways.to.take_announced(refused) && !ways.to.has_stream(refused));
    // Ours need no announcement.
    assert!(ways.from.take_announced(key));
}

#[test]
fn announcements_are_bounded() {
    let mut session = session(Side::Listener);
    for stream in 0..100_000_u32 {
        session.announce(LINK_CHANNEL, 2 * stream + 1);
    }
    assert!(!session.take_announced(StreamKey { channel: LINK_CHANNEL, stream: 1 }), "the oldest are forgotten");
    assert!(session.take_announced(StreamKey { channel: LINK_CHANNEL, stream: 199_999 }));
    let taken = (0..100_000).filter(|number| session.take_announced(StreamKey { channel: LINK_CHANNEL, stream: 2 * number + 1 })).count();
    assert!(taken <= 4096, "{taken}");
}
