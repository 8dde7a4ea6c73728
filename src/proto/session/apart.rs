//! Streams with a way of their own.
//!
//! Some transports carry streams beside the link, each in order by itself and not delayed by the losses of the others. There the data of a stream, its end and
//! its reset leave by [`Session::transmit_stream`] instead of the bulk lane; credit and all the rest stay on the link. Since nothing keeps the order between
//! the two, what arrives for a stream may be ahead of the call that opens it: the session remembers whose call has come ([`Session::take_announced`]), and
//! the shell waits for it.

use std::collections::{HashSet, VecDeque};

use super::super::frame::{Fault, Frame, Kind};
use super::super::head;
use super::{Outbox, Session, StreamKey};

/// Most streams that were announced by a call and have sent nothing. Each side opens fewer at once.
const ANNOUNCED_MAX: usize = 4 * super::streams::STREAMS_MAX;

/// Streams of the peer whose call has come, and of which nothing else was seen so far.
#[derive(Default)]
pub(super) struct Announced {
    keys: HashSet<StreamKey>,
    /// The same, oldest first, with some that were taken meanwhile.
    order: VecDeque<StreamKey>,
}

impl Announced {
    fn insert(&mut self, key: StreamKey) {
        if self.keys.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > ANNOUNCED_MAX {
            let oldest = self.order.pop_front();
            oldest.inspect(|oldest| {
                self.keys.remove(oldest);
            });
        }
    }

    fn take(&mut self, key: StreamKey) -> bool {
        let taken = self.keys.remove(&key);
        if self.keys.is_empty() {
            *self = Self::default();
        }
        taken
    }
}

/// The stream of a frame that came on the way of a stream: only that stream's own data and reset may come there.
///
/// # Errors
/// `NotAllowed` for other kinds, `Malformed` without an id or with that of another stream than `of`.
pub fn stream_of(frame: &Frame, of: Option<StreamKey>) -> Result<StreamKey, Fault> {
    let Frame { kind, channel, body } = frame;
    if !matches!(kind, Kind::StreamData | Kind::StreamReset) {
        return Err(Fault::NotAllowed(*kind));
    }
    let key = StreamKey { channel: *channel, stream: head::take_u32(*kind, &mut body.clone())? };
    match of {
        Some(of) if of != key => Err(Fault::malformed(*kind, "it is of another stream than those before it")),
        _ => Ok(key),
    }
}

impl<T> Session<T> {
    /// From now on each stream has a way of its own. To be called before anything else.
    pub fn set_streams_apart(&mut self) {
        self.lanes.set_apart();
        self.announced = Some(Announced::default());
    }

    /// Whether there is a stream to be looked at.
    pub fn has_next_stream(&self) -> bool {
        self.lanes.has_apart()
    }

    /// A stream to be looked at by [`Session::transmit_stream`].
    pub fn next_stream(&mut self) -> Option<StreamKey> {
        self.lanes.next_apart()
    }

    /// Moves frames of one stream to `out`, until it holds about `bytes_max`; the stream is appended to `writable` if it may send again. False if nothing
    /// will follow after that.
    pub fn transmit_stream(&mut self, key: StreamKey, out: &mut Outbox, bytes_max: usize, writable: &mut Vec<StreamKey>) -> bool {
        self.lanes.transmit_apart(key, out, bytes_max, |key, bytes| {
            if self.streams.sent(key, bytes) {
                writable.push(key);
            }
        });
        writable.dedup();
        self.has_stream(key) || !out.is_empty()
    }

    /// Whether data of any stream waits.
    pub fn has_stream_output(&self) -> bool {
        self.lanes.has_streams()
    }

    /// Whether the stream is open, for us at least.
    pub fn has_stream(&self, key: StreamKey) -> bool {
        self.streams.has(key)
    }

    /// Whether the stream is one of ours, or its call has come; true once for each stream of the peer.
    pub fn take_announced(&mut self, key: StreamKey) -> bool {
        self.streams.ours(key.stream) || self.announced.as_mut().is_some_and(|announced| announced.take(key))
    }

    pub(super) fn announce(&mut self, channel: u16, stream: u32) {
        if let Some(announced) = &mut self.announced
            && stream != 0
        {
            announced.insert(StreamKey { channel, stream });
        }
    }
}
