//! Streams with credit.
//!
//! ```text
//!   data:   u32 stream │ u8 flags (1 = end, 2 = out of credit) │ bytes …
//!   credit: u32 stream │ u32 bytes
//!   reset:  u32 stream
//! ```
//!
//! A sender never has more on the way than the receiver granted, a receiver grants more as its reader takes bytes ([`window`]). So a reader that stalls holds up its
//! own stream and nothing else. Exceeding the credit ends the link.

mod window;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use self::window::{Budget, Window};
pub use self::window::{STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES_MAX, WINDOW_BUDGET_BYTES};
use super::super::frame::{BODY_BYTES_MAX, Fault, Kind};
use super::super::head::take_u32;
use super::lanes::Lanes;
use super::{Incoming, Side};
use crate::error::{Error, ErrorCode};

/// Bytes of one stream that may wait in the lane.
const QUEUED_BYTES_MAX: usize = 256 * 1024;
/// Streams of one link that one side opened. Each side has its own bound, so that neither can use up the other's.
pub(super) const STREAMS_MAX: usize = 1024;
/// The same between control nodes, where each relayed worker is a stream.
pub(super) const STREAMS_MAX_CONTROL: usize = 32_768;
/// Frames up to this size are joined, so that a peer which sends single bytes costs no more than its bytes.
const JOINED_BYTES_MAX: usize = 2 * 1024;
/// Size from which a joined piece is complete.
const JOINED_PIECE_BYTES: usize = 16 * 1024;
/// Room for streams that is kept while there are none.
const STREAMS_KEPT_WHEN_IDLE: usize = 64;
/// Stream id and flags in front of the data.
const DATA_HEAD_BYTES: usize = 5;
/// Nothing follows.
const FLAG_END: u8 = 1;
/// The sender has more, and no credit for it. Said once for each time that it runs out.
const FLAG_STARVED: u8 = 2;

/// Names a stream of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    /// Its channel.
    pub channel: u16,
    /// Its id: odd if the dialler opened it.
    pub stream: u32,
}

/// What reading a stream gives.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamRead {
    /// Some bytes.
    Bytes(Bytes),
    /// The peer has ended its direction.
    End,
    /// Nothing yet: wait for [`Incoming::Readable`].
    Pending,
    /// The stream was ended by an error.
    Reset(Error),
}

struct Stream {
    // Sending.
    credit: usize,
    /// Whether the receiver was told that there is no credit left.
    starved: bool,
    queued_bytes: usize,
    finished: bool,
    end_sent: bool,
    writer_waits: bool,
    // Receiving.
    received: VecDeque<Bytes>,
    /// Small frames, behind `received`.
    joined: BytesMut,
    window: Window,
    end_received: bool,
    // Both.
    failed: Option<Error>,
}

impl Stream {
    fn new() -> Self {
        Self {
            credit: STREAM_WINDOW_BYTES,
            starved: false,
            queued_bytes: 0,
            finished: false,
            end_sent: false,
            writer_waits: false,
            received: VecDeque::new(),
            joined: BytesMut::new(),
            window: Window::new(),
            end_received: false,
            failed: None,
        }
    }

    /// Gives the sender what its window has room for.
    fn grant(&mut self, key: StreamKey, lanes: &mut Lanes) {
        if !self.end_received
            && self.failed.is_none()
            && let Some(credit) = self.window.top_up()
        {
            let mut body = BytesMut::with_capacity(8);
            body.put_u32(key.stream);
            body.put_u32(credit);
            lanes.urgent(Kind::StreamCredit, key.channel, &body);
        }
    }

    fn both_ended(&self) -> bool {
        self.end_sent && self.end_received && self.received.is_empty() && self.joined.is_empty()
    }

    fn receive(&mut self, body: Bytes) {
        if body.len() <= JOINED_BYTES_MAX {
            self.joined.put_slice(&body);
            if self.joined.len() >= JOINED_PIECE_BYTES {
                self.close_piece();
            }
        } else {
            self.close_piece();
            self.received.push_back(body);
        }
    }

    fn close_piece(&mut self) {
        if !self.joined.is_empty() {
            self.received.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }
}

pub(super) struct Streams {
    side: Side,
    streams_max: usize,
    streams: HashMap<StreamKey, Stream>,
    budget: Budget,
    /// How many of them this side opened.
    opened: usize,
    next: u32,
}

impl Streams {
    pub(super) fn new(side: Side, streams_max: usize) -> Self {
        let next = match side {
            Side::Dialler => 1,
            Side::Listener => 2,
        };
        Self { side, streams_max, streams: HashMap::new(), budget: Budget::new(), opened: 0, next }
    }

    pub(super) fn round_trip(&mut self, measured: Duration) {
        self.budget.round_trip(measured);
    }

    pub(super) fn set_fast(&mut self, is_fast: bool) {
        self.budget.set_fast(is_fast);
    }

    pub(super) fn ours(&self, stream: u32) -> bool {
        (stream % 2 == 1) == (self.side == Side::Dialler)
    }

    pub(super) fn has(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key)
    }

    pub(super) fn open(&mut self, channel: u16) -> Result<StreamKey, Error> {
        if self.opened >= self.streams_max {
            return Err(Error::new(ErrorCode::Busy, format!("{} streams are open on this link; try again", self.opened)));
        }
        let mut key = StreamKey { channel, stream: self.next };
        while key.stream == 0 || self.streams.contains_key(&key) {
            key.stream = key.stream.wrapping_add(2);
        }
        self.next = key.stream.wrapping_add(2);
        self.streams.insert(key, Stream::new());
        self.opened += 1;
        Ok(key)
    }

    /// Takes in a stream that the peer opened; nothing if there is no room.
    pub(super) fn accept(&mut self, channel: u16, stream: u32) -> Result<Option<StreamKey>, Fault> {
        let key = StreamKey { channel, stream };
        if self.ours(stream) || self.streams.contains_key(&key) {
            return Err(Fault::IdInUse { channel, id: stream });
        }
        if self.streams.len() - self.opened >= self.streams_max {
            return Ok(None);
        }
        self.streams.insert(key, Stream::new());
        Ok(Some(key))
    }

    fn remove(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.remove(&key) else { return };
        stream.window.release(&mut self.budget);
        if self.ours(key.stream) {
            self.opened -= 1;
        }
        if self.streams.is_empty() && self.streams.capacity() > STREAMS_KEPT_WHEN_IDLE {
            self.streams = HashMap::new();
        }
    }

    pub(super) fn write(&mut self, key: StreamKey, bytes: &[u8], lanes: &mut Lanes) -> Result<usize, Error> {
        let stream = self.streams.get_mut(&key).ok_or_else(gone)?;
        if let Some(error) = &stream.failed {
            return Err(error.clone());
        }
        if stream.finished {
            return Err(Error::new(ErrorCode::NotAllowed, "the stream was finished already"));
        }
        let room = QUEUED_BYTES_MAX.saturating_sub(stream.queued_bytes);
        let count = bytes.len().min(stream.credit).min(room);
        stream.writer_waits = count < bytes.len();
        let starves = count < bytes.len() && count == stream.credit && !stream.starved;
        let mut left = count;
        for chunk in bytes[..count].chunks(BODY_BYTES_MAX - DATA_HEAD_BYTES) {
            left -= chunk.len();
            let flags = if starves && left == 0 { FLAG_STARVED } else { 0 };
            lanes.stream(key, Kind::StreamData, data_head(key.stream, flags), Bytes::copy_from_slice(chunk));
        }
        if starves && count == 0 {
            lanes.stream(key, Kind::StreamData, data_head(key.stream, FLAG_STARVED), Bytes::new());
        }
        stream.starved |= starves;
        stream.credit -= count;
        stream.queued_bytes += count;
        Ok(count)
    }

    pub(super) fn finish(&mut self, key: StreamKey, lanes: &mut Lanes) {
        if let Some(stream) = self.streams.get_mut(&key)
            && !stream.finished
            && stream.failed.is_none()
        {
            stream.finished = true;
            stream.end_sent = true;
            lanes.stream(key, Kind::StreamData, data_head(key.stream, FLAG_END), Bytes::new());
        }
    }

    pub(super) fn flushed(&self, key: StreamKey) -> bool {
        self.streams.get(&key).is_none_or(|stream| stream.queued_bytes == 0 || stream.failed.is_some())
    }

    pub(super) fn read(&mut self, key: StreamKey, bytes_max: usize, lanes: &mut Lanes) -> StreamRead {
        let Some(stream) = self.streams.get_mut(&key) else { return StreamRead::Reset(gone()) };
        if stream.received.is_empty() {
            stream.close_piece();
        }
        let Some(first) = stream.received.front_mut() else {
            return match &stream.failed {
                _ if stream.end_received => StreamRead::End,
                Some(error) => StreamRead::Reset(error.clone()),
                None => StreamRead::Pending,
            };
        };
        let bytes = first.split_to(first.len().min(bytes_max));
        if first.is_empty() {
            stream.received.pop_front();
        }
        stream.window.taken(bytes.len(), &mut self.budget);
        stream.grant(key, lanes);
        StreamRead::Bytes(bytes)
    }

    /// Gives a stream up. What was finished still leaves; otherwise both directions end by an error.
    pub(super) fn reset(&mut self, key: StreamKey, lanes: &mut Lanes) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        lanes.look_again(key);
        if stream.failed.is_some() || stream.both_ended() {
            self.remove(key);
            return;
        }
        let body = Bytes::copy_from_slice(&key.stream.to_be_bytes());
        if stream.finished {
            // Behind the data, so that it does not overtake what was finished.
            if !stream.end_received {
                lanes.stream(key, Kind::StreamReset, body, Bytes::new());
            }
        } else {
            lanes.drop_stream(key);
            lanes.stream(key, Kind::StreamReset, body, Bytes::new());
        }
        self.remove(key);
    }

    pub(super) fn reset_channel(&mut self, channel: u16, reason: &Error) -> Vec<StreamKey> {
        let mut keys: Vec<StreamKey> = self.streams.keys().filter(|key| key.channel == channel).copied().collect();
        keys.sort_unstable();
        for key in &keys {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.failed.get_or_insert_with(|| reason.clone());
            }
        }
        keys
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    #[cfg(test)]
    pub(super) fn credit(&self, key: StreamKey) -> usize {
        self.streams[&key].credit
    }

    #[cfg(test)]
    pub(super) fn queued(&self, key: StreamKey) -> usize {
        self.streams[&key].queued_bytes
    }

    /// Bytes that the peer may still send.
    #[cfg(test)]
    pub(super) fn granted(&self, key: StreamKey) -> usize {
        self.streams[&key].window.granted()
    }

    /// Pieces of memory in which received bytes lie.
    #[cfg(test)]
    pub(super) fn pieces(&self, key: StreamKey) -> usize {
        self.streams[&key].received.len() + usize::from(!self.streams[&key].joined.is_empty())
    }

    /// Data of the stream has left; true if its writer may look again.
    pub(super) fn sent(&mut self, key: StreamKey, bytes: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        stream.queued_bytes -= bytes;
        let waits = stream.writer_waits && stream.credit > 0;
        stream.writer_waits &= !waits;
        waits || stream.queued_bytes == 0
    }

    pub(super) fn handle<T>(
        &mut self,
        kind: Kind,
        channel: u16,
        mut body: Bytes,
        lanes: &mut Lanes,
        out: &mut Vec<Incoming<T>>,
    ) -> Result<(), Fault> {
        let id = take_u32(kind, &mut body)?;
        let key = StreamKey { channel, stream: id };
        // A stream that we gave up is unknown: what is still on the way to it is dropped.
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        match kind {
            Kind::StreamData => {
                if body.is_empty() {
                    return Err(Fault::malformed(kind, "it has no flags"));
                }
                let flags = body.get_u8();
                if flags & !(FLAG_END | FLAG_STARVED) != 0 {
                    return Err(Fault::malformed(kind, "it has unknown flags"));
                }
                if stream.end_received && !body.is_empty() {
                    return Err(Fault::malformed(kind, "it comes after the end"));
                }
                if body.len() > stream.window.granted() {
                    return Err(Fault::CreditExceeded { channel, stream: id });
                }
                if stream.failed.is_some() {
                    // What it carries is lost, so its end is no end either: a reader must not take the beginning for the whole.
                    stream.window.dropped(body.len());
                    return Ok(());
                }
                stream.window.arrived(body.len(), flags & FLAG_STARVED != 0, &mut self.budget);
                stream.receive(body);
                stream.end_received |= flags & FLAG_END != 0;
                if flags & FLAG_STARVED != 0 {
                    stream.grant(key, lanes);
                }
                out.push(Incoming::Readable(key));
            }
            Kind::StreamCredit => {
                let bytes = take_u32(kind, &mut body)? as usize;
                if bytes > STREAM_WINDOW_BYTES_MAX || stream.credit + bytes > STREAM_WINDOW_BYTES_MAX {
                    return Err(Fault::CreditExceeded { channel, stream: id });
                }
                stream.credit += bytes;
                stream.starved = false;
                if std::mem::take(&mut stream.writer_waits) {
                    out.push(Incoming::Writable(key));
                }
            }
            _ => {
                stream.failed.get_or_insert_with(|| Error::new(ErrorCode::ConnectionFailed, "the other side ended the stream"));
                out.push(Incoming::Readable(key));
                out.push(Incoming::Writable(key));
            }
        }
        Ok(())
    }
}

fn data_head(stream: u32, flags: u8) -> Bytes {
    let mut head = BytesMut::with_capacity(DATA_HEAD_BYTES);
    head.put_u32(stream);
    head.put_u8(flags);
    head.freeze()
}

fn gone() -> Error {
    Error::new(ErrorCode::ConnectionFailed, "the stream has ended")
}
