//! Three lanes in front of the socket.
//!
//! 1. **urgent**: pings, acknowledgements, credit; always first.
//! 2. **hot**: calls, replies, events and the other messages, in the order given.
//! 3. **bulk**: stream data and fragments, round robin between their sources, one frame at a time.
//!
//! Hot and bulk share the socket 8 : 1 by bytes while both have something to send, so that neither starves the other.
//!
//! What speaks of a call whose fragments have not all left, its cancellation, goes behind them.
//!
//! A stream that was opened by a call waits in its lane until the whole call has left: bytes that come before their call are bytes of a stream that nobody
//! knows, and would be lost.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::{self, BODY_BYTES_MAX, Kind};
use super::streams::StreamKey;

mod apart;

/// Urgent bytes that may wait. More means that the peer asks and does not read.
pub(super) const URGENT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of control messages that may wait. The largest legitimate burst is a resync, which names every running task of a worker.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Hot bytes for each bulk byte.
const HOT_BYTES_PER_BULK_BYTE: usize = 8;
/// Lead of the hot lane at which the bulk lane gets its turn: one bulk frame makes up for it.
const HOT_LEAD_MAX: usize = HOT_BYTES_PER_BULK_BYTE * BODY_BYTES_MAX;
/// What a waiting frame costs in memory beside its bytes, roughly, so that many small frames count as what they are.
const FRAME_COST: usize = 128;
/// Tables and buffers up to this size are kept while idle.
const KEPT_WHEN_IDLE: usize = 64;
/// The same for buffers of bytes.
const BYTES_KEPT_WHEN_IDLE: usize = 4 * 1024;
/// Bodies up to this size are copied behind their header; larger ones go to the socket as they are.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// Bytes on their way to the socket: pieces that are written in order.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    /// Bytes that were copied in this turn, and lately, with less and less weight the longer ago.
    copied: usize,
    copied_lately: usize,
    /// Most that the block behind `tail` has held.
    block: usize,
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

    /// Everything was written: after a burst the buffer shrinks, over a few turns.
    pub fn drained(&mut self) {
        self.copied_lately = std::mem::take(&mut self.copied).max(self.copied_lately / 2);
        if self.tail.is_empty() && self.block > BYTES_KEPT_WHEN_IDLE.max(4 * self.copied_lately) {
            self.tail = BytesMut::new();
            self.block = 0;
        }
        if self.pieces.is_empty() && self.pieces.capacity() > KEPT_WHEN_IDLE {
            self.pieces = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.block + self.pieces.capacity() * size_of::<Bytes>()
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
            self.copied += self.tail.len();
            self.block = self.block.max(self.tail.capacity());
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
    /// The stream that may send once this frame has left.
    opens: Option<StreamKey>,
}

impl Queued {
    fn bytes(&self) -> usize {
        frame::HEADER_BYTES + self.head.len() + self.body.len()
    }

    fn cost(&self) -> usize {
        self.bytes() + FRAME_COST
    }

    /// Whether it is neither of a call nor of the journal, which have bounds of their own.
    fn is_message(&self) -> bool {
        !matches!(self.kind, Kind::Call | Kind::Reply | Kind::Cancel | Kind::Event)
    }
}

/// A body for the hot lane, in fragments if it is large.
pub(super) struct Outgoing {
    pub(super) kind: Kind,
    pub(super) channel: u16,
    pub(super) head: Bytes,
    pub(super) body: Bytes,
    /// The stream that comes with it.
    pub(super) opens: Option<StreamKey>,
    /// Its number, if it is a call.
    pub(super) call: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Stream(StreamKey),
    Fragments(u32),
    /// What another session, which is elsewhere, put into its lowest lane: in its order.
    Relayed(u16),
}

pub(super) struct Lanes {
    urgent: BytesMut,
    urgent_lately: usize,
    hot: VecDeque<Queued>,
    /// Hot bytes that have left since the bulk lane had its share.
    hot_lead: usize,
    bulk: HashMap<Source, VecDeque<Queued>>,
    turns: VecDeque<Source>,
    /// Streams whose call has not left.
    held: HashSet<StreamKey>,
    /// Calls of ours whose fragments have not all left, by channel and call.
    leaving: HashMap<(u16, u32), u32>,
    next_fragments: u32,
    queued_bytes: usize,
    message_bytes: usize,
    /// Streams to be looked at, if each has a way of its own beside the bulk lane (`session/apart.rs`).
    apart: Option<VecDeque<StreamKey>>,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self {
            apart: None,
            urgent: BytesMut::new(),
            urgent_lately: 0,
            hot: VecDeque::new(),
            hot_lead: 0,
            bulk: HashMap::new(),
            turns: VecDeque::new(),
            held: HashSet::new(),
            leaving: HashMap::new(),
            next_fragments: 1,
            queued_bytes: 0,
            message_bytes: 0,
        }
    }

    /// What waits beside the data of streams, with its cost in memory.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn urgent_bytes(&self) -> usize {
        self.urgent.len()
    }

    /// Control messages that wait, with their cost in memory.
    pub(super) fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    pub(super) fn has_output(&self) -> bool {
        !self.urgent.is_empty() || !self.hot.is_empty() || !self.turns.is_empty() || self.has_apart()
    }

    pub(super) fn urgent(&mut self, kind: Kind, channel: u16, body: &[u8]) {
        frame::put_frame(&mut self.urgent, kind, channel, body);
    }

    pub(super) fn hot(&mut self, kind: Kind, channel: u16, body: Bytes) {
        self.push_hot(Queued { kind, channel, head: body, body: Bytes::new(), opens: None });
    }

    /// Queues a call or reply; a body that is larger than a frame goes to the bulk lane, see [`super::assembly`] for the layout.
    pub(super) fn sized(&mut self, outgoing: Outgoing) {
        let Outgoing { kind, channel, head, body, opens, call } = outgoing;
        self.held.extend(opens);
        if head.len() + body.len() <= BODY_BYTES_MAX {
            self.push_hot(Queued { kind, channel, head, body, opens });
            return;
        }
        let id = self.next_fragments;
        self.next_fragments = self.next_fragments.wrapping_add(1);
        let fragments = super::assembly::split(id, kind, head, body).into_iter();
        let mut frames: VecDeque<Queued> =
            fragments.map(|(head, body)| Queued { kind: Kind::Fragment, channel, head, body, opens: None }).collect();
        if let Some(last) = frames.back_mut() {
            last.opens = opens;
        }
        self.queued_bytes += frames.iter().map(Queued::cost).sum::<usize>();
        if let Some(call) = call {
            self.leaving.insert((channel, call), id);
        }
        self.bulk.insert(Source::Fragments(id), frames);
        self.turns.push_back(Source::Fragments(id));
    }

    /// Queues the cancellation of a call: never in front of the call itself, which would then be carried out for nobody.
    pub(super) fn cancel(&mut self, channel: u16, call: u32) {
        let body = Bytes::copy_from_slice(&call.to_be_bytes());
        let queued = Queued { kind: Kind::Cancel, channel, head: body, body: Bytes::new(), opens: None };
        let source = self.leaving.remove(&(channel, call)).map(Source::Fragments);
        match source.and_then(|source| self.bulk.get_mut(&source)) {
            Some(frames) => {
                self.queued_bytes += queued.cost();
                frames.push_back(queued);
            }
            None => self.push_hot(queued),
        }
    }

    fn push_hot(&mut self, queued: Queued) {
        self.queued_bytes += queued.cost();
        if queued.is_message() {
            self.message_bytes += queued.cost();
        }
        self.hot.push_back(queued);
    }

    pub(super) fn stream(&mut self, key: StreamKey, kind: Kind, head: Bytes, body: Bytes) {
        let queued = Queued { kind, channel: key.channel, head, body, opens: None };
        if kind != Kind::StreamData {
            // Data is bounded by the stream it belongs to; what outlives its stream is not.
            self.queued_bytes += queued.cost();
        }
        let is_first = self.bulk.get(&Source::Stream(key)).is_none_or(VecDeque::is_empty);
        if is_first && !self.held.contains(&key) {
            self.take_turn(key);
        }
        self.bulk.entry(Source::Stream(key)).or_default().push_back(queued);
    }

    /// Queues a frame of another session, whose lanes have been sorted already: here only what is bulk gives way to what is not. A call that has a stream
    /// keeps its place in front of the data of that stream.
    pub(super) fn relayed(&mut self, kind: Kind, channel: u16, body: Bytes) {
        let has_stream = kind == Kind::Call && body.get(4..8).is_some_and(|stream| *stream != [0; 4]);
        match kind {
            Kind::Ping | Kind::Pong | Kind::EventAck | Kind::StreamCredit => self.urgent(kind, channel, &body),
            Kind::StreamData | Kind::StreamReset | Kind::Fragment => self.push_relayed(kind, channel, body),
            Kind::Call if has_stream => self.push_relayed(kind, channel, body),
            // It must not pass its call.
            Kind::Cancel if self.bulk.contains_key(&Source::Relayed(channel)) => self.push_relayed(kind, channel, body),
            _ => self.hot(kind, channel, body),
        }
    }

    fn push_relayed(&mut self, kind: Kind, channel: u16, body: Bytes) {
        let queued = Queued { kind, channel, head: body, body: Bytes::new(), opens: None };
        self.queued_bytes += queued.cost();
        let source = Source::Relayed(channel);
        let frames = self.bulk.entry(source).or_default();
        if frames.is_empty() {
            self.turns.push_back(source);
        }
        frames.push_back(queued);
    }

    /// Forgets what waits of the session behind a relayed channel.
    pub(super) fn drop_relayed(&mut self, channel: u16) {
        let source = Source::Relayed(channel);
        if let Some(frames) = self.bulk.remove(&source) {
            self.queued_bytes -= frames.iter().map(Queued::cost).sum::<usize>();
            self.turns.retain(|turn| *turn != source);
        }
    }

    /// Forgets the data that a stream has queued.
    pub(super) fn drop_stream(&mut self, key: StreamKey) {
        let source = Source::Stream(key);
        if let Some(frames) = self.bulk.remove(&source) {
            self.queued_bytes -= frames.iter().filter(|queued| queued.kind != Kind::StreamData).map(Queued::cost).sum::<usize>();
            if !self.held.contains(&key) {
                self.turns.retain(|turn| *turn != source);
            }
        }
    }

    /// Moves frames to `out` until it holds about `bytes_max`; `sent` is told of the data of streams that left.
    pub(super) fn transmit(&mut self, out: &mut Outbox, bytes_max: usize, mut sent: impl FnMut(StreamKey, usize)) {
        if !self.urgent.is_empty() {
            out.raw(&self.urgent);
            self.urgent_lately = self.urgent.len().max(self.urgent_lately / 2);
            self.urgent.clear();
            if self.urgent.capacity() > BYTES_KEPT_WHEN_IDLE.max(4 * self.urgent_lately) {
                self.urgent = BytesMut::new();
            }
        }
        while out.len() < bytes_max {
            let bulk_turn = self.hot.is_empty() || self.hot_lead >= HOT_LEAD_MAX;
            let left = if bulk_turn && let Some((source, queued)) = self.next_bulk() {
                self.hot_lead = self.hot_lead.saturating_sub(HOT_BYTES_PER_BULK_BYTE * queued.bytes());
                match source {
                    Source::Stream(key) if queued.kind == Kind::StreamData => sent(key, queued.body.len()),
                    _ => self.queued_bytes -= queued.cost(),
                }
                queued
            } else if let Some(queued) = self.hot.pop_front() {
                self.queued_bytes -= queued.cost();
                if queued.is_message() {
                    self.message_bytes -= queued.cost();
                }
                self.hot_lead = if self.turns.is_empty() { 0 } else { self.hot_lead + queued.bytes() };
                queued
            } else {
                self.shrink();
                return;
            };
            out.frame(left.kind, left.channel, &[&left.head, &left.body]);
            if let Some(key) = left.opens {
                self.release(key);
            }
        }
    }

    /// The call of a stream has left.
    fn release(&mut self, key: StreamKey) {
        let source = Source::Stream(key);
        if self.held.remove(&key) && self.bulk.contains_key(&source) {
            self.take_turn(key);
        }
    }

    fn take_turn(&mut self, key: StreamKey) {
        match &mut self.apart {
            None => self.turns.push_back(Source::Stream(key)),
            Some(apart) => apart.push_back(key),
        }
    }

    fn next_bulk(&mut self) -> Option<(Source, Queued)> {
        let source = self.turns.pop_front()?;
        let frames = self.bulk.get_mut(&source)?;
        let queued = frames.pop_front()?;
        if frames.is_empty() {
            self.bulk.remove(&source);
            if let Source::Fragments(id) = source {
                // Few calls are that large: 64 at a time, which is what a peer takes.
                self.leaving.retain(|_, leaving| *leaving != id);
            }
        } else {
            self.turns.push_back(source);
        }
        Some((source, queued))
    }

    /// Nothing waits: the room of a burst is given back.
    fn shrink(&mut self) {
        if self.hot.capacity() > KEPT_WHEN_IDLE {
            self.hot = VecDeque::new();
        }
        if self.turns.capacity() > KEPT_WHEN_IDLE {
            self.turns = VecDeque::new();
        }
        if self.bulk.is_empty() && self.bulk.capacity() > KEPT_WHEN_IDLE {
            self.bulk = HashMap::new();
        }
        if self.held.is_empty() && self.held.capacity() > KEPT_WHEN_IDLE {
            self.held = HashSet::new();
        }
        if self.leaving.is_empty() && self.leaving.capacity() > KEPT_WHEN_IDLE {
            self.leaving = HashMap::new();
        }
    }

    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.urgent.capacity() + (self.hot.capacity() + self.bulk.capacity()) * size_of::<Queued>()
    }
}
