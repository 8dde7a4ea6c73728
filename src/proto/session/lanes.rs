//! Three lanes in front of the socket.
//!
//! 1. **urgent**: pings, acknowledgements, credit; always first.
//! 2. **hot**: calls, replies, events and the other messages, in the order given.
//! 3. **bulk**: stream data and fragments, round robin between their sources, one frame at a time.
//!
//! Hot and bulk share the socket 8 : 1 by bytes while both have something to send, so that neither starves the other.

use std::collections::{HashMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::{self, BODY_BYTES_MAX, Kind};
use super::streams::StreamKey;

/// Urgent bytes that may wait. More means that the peer asks and does not read.
pub(super) const URGENT_BYTES_MAX: usize = 1024 * 1024;
/// Hot bytes that may pass before one bulk frame gets its turn.
const HOT_BYTES_PER_BULK_FRAME: usize = 8 * BODY_BYTES_MAX;
/// Bodies up to this size are copied behind their header; larger ones go to the socket as they are.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// Bytes on their way to the socket: pieces that are written in order.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn frame(&mut self, kind: Kind, channel: u16, parts: &[&Bytes]) {
        let body_bytes = parts.iter().map(|part| part.len()).sum();
        self.bytes += frame::HEADER_BYTES + body_bytes;
        frame::put_header(&mut self.tail, kind, channel, body_bytes);
        for part in parts {
            if part.len() <= COPIED_BYTES_MAX {
                self.tail.put_slice(part);
            } else {
                self.seal();
                self.pieces.push_back(Bytes::clone(part));
            }
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.tail.put_slice(bytes);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// The pieces, for a vectored write.
    pub fn pieces(&mut self) -> &VecDeque<Bytes> {
        self.seal();
        &self.pieces
    }

    /// Forgets the first `count` bytes, which were written.
    pub fn advance(&mut self, mut count: usize) {
        self.seal();
        self.bytes -= count;
        while count > 0 {
            let first = self.pieces.front_mut().expect("no more is written than was there");
            if first.len() > count {
                bytes::Buf::advance(first, count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }
}

struct Queued {
    kind: Kind,
    channel: u16,
    head: Bytes,
    body: Bytes,
}

impl Queued {
    fn bytes(&self) -> usize {
        frame::HEADER_BYTES + self.head.len() + self.body.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Stream(StreamKey),
    Fragments(u32),
}

pub(super) struct Lanes {
    urgent: BytesMut,
    hot: VecDeque<Queued>,
    hot_since_bulk: usize,
    bulk: HashMap<Source, VecDeque<Queued>>,
    turns: VecDeque<Source>,
    next_fragments: u32,
    queued_bytes: usize,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            urgent: BytesMut::new(),
            hot: VecDeque::new(),
            hot_since_bulk: 0,
            bulk: HashMap::new(),
            turns: VecDeque::new(),
            next_fragments: 1,
            queued_bytes: 0,
        }
    }

    /// Bytes of the hot lane and of fragments: what calls and replies have queued.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn urgent_bytes(&self) -> usize {
        self.urgent.len()
    }

    pub(super) fn has_output(&self) -> bool {
        !self.urgent.is_empty() || !self.hot.is_empty() || !self.turns.is_empty()
    }

    pub(super) fn urgent(&mut self, kind: Kind, channel: u16, body: &[u8]) {
        frame::put_frame(&mut self.urgent, kind, channel, body);
    }

    pub(super) fn hot(&mut self, kind: Kind, channel: u16, body: Bytes) {
        self.hot_parts(kind, channel, body, Bytes::new());
    }

    pub(super) fn hot_parts(&mut self, kind: Kind, channel: u16, head: Bytes, body: Bytes) {
        let queued = Queued { kind, channel, head, body };
        self.queued_bytes += queued.bytes();
        self.hot.push_back(queued);
    }

    /// Splits a body that is larger than a frame; see [`super::assembly`] for the layout.
    pub(super) fn fragments(&mut self, kind: Kind, channel: u16, head: Bytes, body: Bytes) {
        let id = self.next_fragments;
        self.next_fragments = self.next_fragments.wrapping_add(1);
        let frames: VecDeque<Queued> = super::assembly::split(id, kind, head, body)
            .into_iter()
            .map(|(head, body)| Queued { kind: Kind::Fragment, channel, head, body })
            .collect();
        self.queued_bytes += frames.iter().map(Queued::bytes).sum::<usize>();
        self.bulk.insert(Source::Fragments(id), frames);
        self.turns.push_back(Source::Fragments(id));
    }

    pub(super) fn stream(&mut self, key: StreamKey, kind: Kind, head: Bytes, body: Bytes) {
        let frames = self.bulk.entry(Source::Stream(key)).or_default();
        if frames.is_empty() {
            self.turns.push_back(Source::Stream(key));
        }
        frames.push_back(Queued { kind, channel: key.channel, head, body });
    }

    /// Forgets what a stream has queued.
    pub(super) fn drop_stream(&mut self, key: StreamKey) {
        if self.bulk.remove(&Source::Stream(key)).is_some() {
            self.turns.retain(|source| *source != Source::Stream(key));
        }
    }

    /// Moves frames to `out` until it holds about `bytes_max`; `sent` is told of the data of streams that left.
    pub(super) fn transmit(&mut self, out: &mut Outbox, bytes_max: usize, mut sent: impl FnMut(StreamKey, usize)) {
        if !self.urgent.is_empty() {
            out.raw(&self.urgent);
            self.urgent.clear();
        }
        while out.len() < bytes_max {
            let bulk_turn = self.hot.is_empty() || self.hot_since_bulk >= HOT_BYTES_PER_BULK_FRAME;
            if bulk_turn && let Some((source, queued)) = self.next_bulk() {
                self.hot_since_bulk = 0;
                out.frame(queued.kind, queued.channel, &[&queued.head, &queued.body]);
                match source {
                    Source::Stream(key) if queued.kind == Kind::StreamData => sent(key, queued.body.len()),
                    Source::Stream(_) => {}
                    Source::Fragments(_) => self.queued_bytes -= queued.bytes(),
                }
            } else if let Some(queued) = self.hot.pop_front() {
                let bytes = queued.bytes();
                self.queued_bytes -= bytes;
                self.hot_since_bulk = if self.turns.is_empty() { 0 } else { self.hot_since_bulk + bytes };
                out.frame(queued.kind, queued.channel, &[&queued.head, &queued.body]);
            } else {
                return;
            }
        }
    }

    fn next_bulk(&mut self) -> Option<(Source, Queued)> {
        let source = self.turns.pop_front()?;
        let frames = self.bulk.get_mut(&source)?;
        let queued = frames.pop_front()?;
        if frames.is_empty() {
            self.bulk.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        Some((source, queued))
    }
}
