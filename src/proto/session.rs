//! A trusted link as a machine: channels, calls, streams with credit, lanes and fragments.
//!
//! ```text
//!   call, reply, event …  ──►  lanes ──► transmit() ──► bytes for the socket
//!   bytes of the socket   ──►  handle_frame()       ──► Incoming …
//! ```
//!
//! The shell (`connection`) owns the socket, the clock and the wakers. The session never waits: what has no room or credit is refused with an answer.
//!
//! - A **channel** is opened by either side and has its own call ids, stream ids and term; channel 0 is the link itself.
//! - A **call** gets exactly one answer: a reply, or the reason why its channel or link ended. `T` is whatever the shell wants back with that answer.
//! - A **stream** belongs to a call and carries bytes both ways; each side sends only what the other has granted ([`STREAM_WINDOW_BYTES`]
//!   at first, up to [`STREAM_WINDOW_BYTES_MAX`] for a reader that keeps up with a sender far away).
//! - **Lanes**: urgent, hot, bulk (`session/lanes.rs`). **Fragments**: what is larger than a frame (`session/assembly.rs`).

mod apart;
mod assembly;
mod incoming;
mod lanes;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use bytes::{BufMut, Bytes, BytesMut};

use self::apart::Announced;
pub use self::apart::stream_of;
use self::assembly::{Assembly, Piece};
pub use self::incoming::Incoming;
pub use self::lanes::Outbox;
use self::lanes::{Lanes, Outgoing};
pub use self::streams::{STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES_MAX, StreamKey, StreamRead, WINDOW_BUDGET_BYTES};
use self::streams::{STREAMS_MAX, STREAMS_MAX_CONTROL, Streams};
use super::auth::Role;
use super::frame::{self, Fault, Frame, Kind, LINK_CHANNEL};
use super::head::{self, CallHead, EventHead, Outcome, Ping, Pong};
use super::message::{self, Closed, FaultNotice, Message};
use super::roles;
use crate::error::{Error, ErrorCode};

/// Calls of one channel that may be unanswered, in each direction.
pub const CALLS_MAX: usize = 4096;
/// Channels of one link.
pub const CHANNELS_MAX: usize = 256;
/// Payload of one call or reply.
pub const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Payload of one event.
pub const EVENT_BYTES_MAX: usize = 60 * 1024;
/// Bytes that may wait for a peer before new calls are refused as busy.
pub const BACKLOG_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes that may wait for a peer before relayed ones have to wait elsewhere.
const RELAYED_BYTES_MAX: usize = 1024 * 1024;
/// Envelopes of membership up to this size are urgent.
const ENVELOPE_URGENT_BYTES_MAX: usize = 512;
/// Payloads up to this size are copied behind the header of their frame.
const COPIED_BYTES_MAX: usize = 4096;
/// Room for calls that is kept while there are none.
const CALLS_KEPT_WHEN_IDLE: usize = 64;

/// Which end of the link this is: it decides who numbers odd and who even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end dialled: its ids are odd.
    Dialler,
    /// This end listened: its ids are even.
    Listener,
}

/// A call that could not be sent, with what the shell gave along.
#[derive(Debug)]
pub struct Unsent<T> {
    /// Why.
    pub error: Error,
    /// Given back.
    pub token: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Yes,
    Cancelled,
}

struct Channel<T> {
    calls_out: HashMap<u32, T>,
    /// With whether the caller still waits.
    calls_in: HashMap<u32, Waiting>,
    next_call: u32,
    /// Its frames are those of another session, which is elsewhere.
    relayed: bool,
}

impl<T> Channel<T> {
    fn new() -> Self {
        Self { calls_out: HashMap::new(), calls_in: HashMap::new(), next_call: 1, relayed: false }
    }
}

/// The machine. `T` comes back with the answer of a call.
pub struct Session<T> {
    side: Side,
    peer_role: Role,
    /// Boxed: a node of the map has room for eleven, and most links have two.
    channels: BTreeMap<u16, Box<Channel<T>>>,
    next_channel: u16,
    streams: Streams,
    lanes: Lanes,
    assembly: Assembly,
    /// Channels that are relayed.
    relayed: usize,
    /// There if each stream has a way of its own.
    announced: Option<Announced>,
}

impl<T> Session<T> {
    /// A session with a peer that has proved to be of `peer_role`.
    pub fn new(side: Side, peer_role: Role) -> Self {
        let first = match side {
            Side::Dialler => 1,
            Side::Listener => 2,
        };
        let channels = BTreeMap::from([(LINK_CHANNEL, Box::new(Channel::new()))]);
        Self {
            side,
            peer_role,
            channels,
            next_channel: first,
            streams: Streams::new(side, if peer_role == Role::Control { STREAMS_MAX_CONTROL } else { STREAMS_MAX }),
            lanes: Lanes::new(),
            assembly: Assembly::new(peer_role),
            relayed: 0,
            announced: None,
        }
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// `busy` when the link has [`CHANNELS_MAX`] channels.
    pub fn open_channel(&mut self) -> Result<u16, Error> {
        if self.channels.len() >= CHANNELS_MAX {
            return Err(Error::new(ErrorCode::Busy, format!("the link has {CHANNELS_MAX} channels, the most it may have")));
        }
        let mut channel = self.next_channel;
        while self.channels.contains_key(&channel) || channel == LINK_CHANNEL {
            channel = channel.wrapping_add(2);
        }
        self.next_channel = channel.wrapping_add(2);
        self.channels.insert(channel, Box::new(Channel::new()));
        self.lanes.urgent(Kind::ChannelOpen, channel, &[]);
        Ok(channel)
    }

    /// Opens a channel for another session, which is elsewhere and has the same side as this one: what comes on it is handed out as [`Incoming::Relayed`].
    ///
    /// # Errors
    /// `busy`, as [`Session::open_channel`].
    pub fn open_relayed_channel(&mut self) -> Result<u16, Error> {
        let channel = self.open_channel()?;
        if let Some(state) = self.channels.get_mut(&channel) {
            state.relayed = true;
            self.relayed += 1;
        }
        Ok(channel)
    }

    /// Whether any channel is relayed.
    pub fn is_relaying(&self) -> bool {
        self.relayed > 0
    }

    /// Whether a channel is relayed.
    pub fn relays(&self, channel: u16) -> bool {
        self.channels.get(&channel).is_some_and(|state| state.relayed)
    }

    /// Sends a frame of the other session on a relayed channel, in the lane where it belongs; on a closed channel it is lost. Whoever relays looks at
    /// [`Session::has_room_to_relay`] first.
    pub fn relay(&mut self, channel: u16, kind: Kind, body: Bytes) {
        if self.relays(channel) {
            self.lanes.relayed(kind, channel, body);
        }
    }

    /// Whether little enough waits that more frames of other sessions may come: their own lanes say what is urgent, so they should wait there.
    pub fn has_room_to_relay(&self) -> bool {
        self.lanes.queued_bytes() < RELAYED_BYTES_MAX
    }

    /// Closes a channel: the peer is told, and what waited on it comes back.
    pub fn close_channel(&mut self, channel: u16, reason: &Error) -> ClosedChannel<T> {
        if channel != LINK_CHANNEL && self.channels.contains_key(&channel) {
            // In the lane of the replies, so that those already given arrive before it.
            self.lanes.hot(Kind::ChannelClose, channel, message::encode(&Closed { reason: reason.bounded() }));
        }
        self.drop_channel(channel, reason)
    }

    fn drop_channel(&mut self, channel: u16, reason: &Error) -> ClosedChannel<T> {
        let state = self.channels.remove(&channel);
        if state.as_ref().is_some_and(|state| state.relayed) {
            self.relayed -= 1;
            self.lanes.drop_relayed(channel);
        }
        self.assembly.drop_channel(channel);
        let tokens = state.map(|state| state.calls_out.into_values().collect()).unwrap_or_default();
        ClosedChannel { tokens, streams: self.streams.reset_channel(channel, reason) }
    }

    /// Which end of the link this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Whether the channel is open.
    pub fn has_channel(&self, channel: u16) -> bool {
        self.channels.contains_key(&channel)
    }

    /// Unanswered calls of ours on a channel.
    pub fn calls_in_flight(&self, channel: u16) -> usize {
        self.channels.get(&channel).map_or(0, |state| state.calls_out.len())
    }

    /// Unanswered calls of the peer on a channel.
    pub fn calls_unanswered(&self, channel: u16) -> usize {
        self.channels.get(&channel).map_or(0, |state| state.calls_in.len())
    }

    /// Unanswered calls of the peer on all channels.
    pub fn calls_being_answered(&self) -> usize {
        self.channels.values().map(|state| state.calls_in.len()).sum()
    }

    /// Whether the peer waits for the answer of a call.
    pub fn answers_awaited(&self) -> bool {
        self.channels.values().any(|state| state.calls_in.values().any(|waiting| *waiting == Waiting::Yes))
    }

    /// Sends a call, with a stream if `with_stream`.
    ///
    /// # Errors
    /// `connection_failed` if the channel is closed, `busy` if too much is in flight, `payload_too_large`. Nothing was sent then.
    pub fn call(
        &mut self,
        channel: u16,
        head: &CallHead,
        payload: &Bytes,
        with_stream: bool,
        token: T,
    ) -> Result<(u32, Option<StreamKey>), Unsent<T>> {
        let Some(state) = self.channels.get_mut(&channel) else {
            return Err(Unsent { error: Error::new(ErrorCode::ConnectionFailed, "the channel is closed; nothing was sent"), token });
        };
        if payload.len() > PAYLOAD_BYTES_MAX {
            let error = Error::new(
                ErrorCode::PayloadTooLarge,
                format!("a call of {} bytes is larger than {PAYLOAD_BYTES_MAX}; send it as a stream", payload.len()),
            );
            return Err(Unsent { error, token });
        }
        if state.calls_out.len() >= CALLS_MAX || self.lanes.queued_bytes() > BACKLOG_BYTES_MAX {
            let error = Error::new(ErrorCode::Busy, format!("{} calls wait for this peer already; try again", state.calls_out.len()));
            return Err(Unsent { error, token });
        }
        let stream = match with_stream.then(|| self.streams.open(channel)).transpose() {
            Ok(stream) => stream,
            Err(error) => return Err(Unsent { error, token }),
        };
        let call = state.next_free_call();
        state.calls_out.insert(call, token);
        let mut header = BytesMut::with_capacity(160);
        head::put_call(&mut header, call, stream.map_or(0, |key| key.stream), head);
        self.enqueue_sized(Kind::Call, channel, header, payload, (stream, Some(call)));
        Ok((call, stream))
    }

    /// Gives up a call; a late reply is ignored. Returns the token if the call was still unanswered.
    pub fn forget_call(&mut self, channel: u16, call: u32) -> Option<T> {
        let token = self.channels.get_mut(&channel)?.take_call_out(call)?;
        self.lanes.cancel(channel, call);
        Some(token)
    }

    /// Answers a call; false if it was answered before or its channel is closed. Whoever has given the call up is spared the bytes.
    pub fn reply(&mut self, channel: u16, call: u32, outcome: &Outcome) -> bool {
        let Some(state) = self.channels.get_mut(&channel) else { return false };
        match state.calls_in.remove(&call) {
            None => return false,
            Some(Waiting::Cancelled) => return true,
            Some(Waiting::Yes) => {}
        }
        if state.calls_in.is_empty() && state.calls_in.capacity() > CALLS_KEPT_WHEN_IDLE {
            state.calls_in = HashMap::new();
        }
        let too_large;
        let outcome = match outcome {
            Ok(payload) if payload.len() > PAYLOAD_BYTES_MAX => {
                let what = format!("the reply of {} bytes is larger than {PAYLOAD_BYTES_MAX}; use a stream", payload.len());
                too_large = Err(Error::new(ErrorCode::PayloadTooLarge, what).after_sending());
                &too_large
            }
            other => other,
        };
        let mut header = BytesMut::with_capacity(8);
        head::put_reply(&mut header, call, outcome);
        let empty = Bytes::new();
        self.enqueue_sized(Kind::Reply, channel, header, outcome.as_ref().unwrap_or(&empty), (None, None));
        true
    }

    /// Whether the caller of an unanswered call still waits.
    pub fn caller_waits(&self, channel: u16, call: u32) -> bool {
        self.channels.get(&channel).and_then(|state| state.calls_in.get(&call)) == Some(&Waiting::Yes)
    }

    /// Sends an entry of the journal; on a closed channel it is lost, as it would be on the way.
    pub fn event(&mut self, channel: u16, event: &EventHead, payload: &[u8]) {
        if !self.has_channel(channel) {
            return;
        }
        let mut body = BytesMut::with_capacity(32 + payload.len());
        head::put_event(&mut body, event);
        body.put_slice(payload);
        self.lanes.hot(Kind::Event, channel, body.freeze());
    }

    /// Sends a ping.
    pub fn ping(&mut self, channel: u16, ping: &Ping) {
        if self.has_ended() {
            return;
        }
        let mut body = BytesMut::with_capacity(28);
        head::put_ping(&mut body, ping);
        self.lanes.urgent(Kind::Ping, channel, &body);
    }

    /// Answers a ping.
    pub fn pong(&mut self, channel: u16, pong: &Pong) {
        if self.has_ended() {
            return;
        }
        let mut body = BytesMut::with_capacity(16);
        head::put_pong(&mut body, pong);
        self.lanes.urgent(Kind::Pong, channel, &body);
    }

    /// Sends a control message; on a closed channel it is lost. Acknowledgements are urgent; what speaks of calls or events keeps its place among them.
    pub fn message(&mut self, channel: u16, message: &Message) {
        if !self.has_channel(channel) {
            return;
        }
        match message {
            Message::EventAck(_) => self.lanes.urgent(message.kind(), channel, &message.encode()),
            // Signs of life pass what waits; news, which is larger, takes its turn.
            Message::Envelope(bytes) if bytes.len() <= ENVELOPE_URGENT_BYTES_MAX => self.lanes.urgent(message.kind(), channel, bytes),
            // The next one says the same again, so it never waits behind much else.
            Message::OutcomeAck(_) if self.lanes.queued_bytes() > BACKLOG_BYTES_MAX => {}
            Message::GoAway(away) => {
                let away = Message::GoAway(message::GoAway { reason: away.reason.bounded(), ..away.clone() });
                self.lanes.hot(away.kind(), channel, away.encode());
            }
            _ => self.lanes.hot(message.kind(), channel, message.encode()),
        }
    }

    /// Tells the peer why the link ends.
    pub fn fault(&mut self, fault: &Fault) {
        self.lanes.urgent(Kind::Fault, LINK_CHANNEL, &message::encode(&FaultNotice { number: fault.number() }));
    }

    /// Offers bytes to a stream; returns how many were taken (0: wait for [`Incoming::Writable`]).
    pub fn stream_write(&mut self, key: StreamKey, bytes: &[u8]) -> Result<usize, Error> {
        self.streams.write(key, bytes, &mut self.lanes)
    }

    /// Ends our direction of a stream after what was written.
    pub fn stream_finish(&mut self, key: StreamKey) {
        self.streams.finish(key, &mut self.lanes);
    }

    /// Whether everything written to the stream has left towards the socket.
    pub fn stream_flushed(&self, key: StreamKey) -> bool {
        self.streams.flushed(key)
    }

    /// Takes what can be read from a stream.
    pub fn stream_read(&mut self, key: StreamKey, bytes_max: usize) -> StreamRead {
        self.streams.read(key, bytes_max, &mut self.lanes)
    }

    /// A round trip was measured: streams over a long way may have more on it.
    pub fn round_trip(&mut self, measured: std::time::Duration) {
        self.streams.round_trip(measured);
    }

    /// Whether bytes come as fast as they can be looked at: then streams may have more on the way than it is long.
    pub fn set_fast(&mut self, is_fast: bool) {
        self.streams.set_fast(is_fast);
    }

    /// Ends a stream by an error, in both directions.
    pub fn stream_reset(&mut self, key: StreamKey) {
        self.streams.reset(key, &mut self.lanes);
    }

    /// Whether there is anything to send.
    pub fn has_output(&self) -> bool {
        self.lanes.has_output()
    }

    /// Moves the next frames, in the order of the lanes, to `out`, until it holds about `bytes_max`. Streams that may send again are appended to `writable`.
    pub fn transmit(&mut self, out: &mut Outbox, bytes_max: usize, writable: &mut Vec<StreamKey>) {
        self.lanes.transmit(out, bytes_max, |key, bytes| {
            if self.streams.sent(key, bytes) {
                writable.push(key);
            }
        });
    }

    /// Takes in one frame of the peer.
    ///
    /// # Errors
    /// A [`Fault`]: the link must end.
    pub fn handle_frame(&mut self, frame: Frame, out: &mut Vec<Incoming<T>>) -> Result<(), Fault> {
        if !roles::may_send(self.peer_role, frame.kind) {
            return Err(Fault::NotAllowed(frame.kind));
        }
        if self.lanes.urgent_bytes() > lanes::URGENT_BYTES_MAX || self.lanes.message_bytes() > lanes::MESSAGE_BYTES_MAX {
            // Each of its frames is answered by at most a few small ones, so it has not read for long.
            return Err(Fault::PeerNotReading { queued_bytes: self.lanes.urgent_bytes() + self.lanes.queued_bytes() });
        }
        if self.relayed > 0 && self.is_relayed(&frame) {
            out.push(Incoming::Relayed(frame));
            return Ok(());
        }
        match frame.kind {
            // The rest of what was on its way when the channel was closed.
            Kind::Fragment if !self.has_channel(frame.channel) => {
                if let Some((call, stream)) = assembly::begins_call(frame.body)? {
                    self.refuse(frame.channel, call, stream, channel_closed());
                }
                Ok(())
            }
            Kind::Fragment => {
                let channels = &self.channels;
                let waits = |channel, call| channels.get(&channel).is_some_and(|state| state.calls_out.contains_key(&call));
                match self.assembly.handle(frame, waits)? {
                    Piece::Incomplete => {}
                    Piece::Whole(whole) => self.handle_whole(whole, out)?,
                    Piece::RefusedCall { channel, mut first, error } => {
                        // One whose header is not in its first fragment was not made by a session.
                        let (call, stream, _) = head::take_call(&mut first)?;
                        self.refuse(channel, call, stream, error);
                    }
                    Piece::RefusedReply { channel, call, error } => {
                        if let Some(token) = self.channels.get_mut(&channel).and_then(|state| state.take_call_out(call)) {
                            out.push(Incoming::Reply { token, outcome: Err(error) });
                        }
                    }
                }
                Ok(())
            }
            _ => self.handle_whole(frame, out),
        }
    }

    /// Whether a frame belongs to the session behind a relayed channel. That the channel was closed concerns both.
    fn is_relayed(&self, frame: &Frame) -> bool {
        !matches!(frame.kind, Kind::ChannelOpen | Kind::ChannelClose | Kind::Fault) && self.relays(frame.channel)
    }

    fn handle_whole(&mut self, frame: Frame, out: &mut Vec<Incoming<T>>) -> Result<(), Fault> {
        let Frame { kind, channel, mut body } = frame;
        match kind {
            Kind::ChannelOpen => {
                if self.channels.len() >= CHANNELS_MAX {
                    return Err(Fault::TooManyChannels(CHANNELS_MAX));
                }
                let theirs = match self.side {
                    Side::Dialler => channel.is_multiple_of(2),
                    Side::Listener => !channel.is_multiple_of(2),
                };
                if !theirs || channel == LINK_CHANNEL || self.channels.contains_key(&channel) {
                    return Err(Fault::IdInUse { channel, id: u32::from(channel) });
                }
                self.channels.insert(channel, Box::new(Channel::new()));
                out.push(Incoming::ChannelOpened(channel));
            }
            Kind::ChannelClose => {
                let Closed { reason } = message::decode(kind, &body)?;
                if channel != LINK_CHANNEL && self.channels.contains_key(&channel) {
                    // Everybody who waits gets a copy.
                    let reason = reason.bounded();
                    let closed = self.drop_channel(channel, &reason);
                    closed.report(&reason, out);
                    out.push(Incoming::ChannelClosed { channel, reason });
                }
            }
            Kind::Call => self.handle_call(channel, body, out)?,
            Kind::Reply => {
                let (call, outcome) = head::take_reply(&mut body)?;
                // A reply after its timeout finds nobody: it is dropped.
                if let Some(token) = self.channels.get_mut(&channel).and_then(|state| state.take_call_out(call)) {
                    out.push(Incoming::Reply { token, outcome });
                }
            }
            Kind::Cancel => {
                let call = head::take_u32(kind, &mut body)?;
                if let Some(waiting) = self.channels.get_mut(&channel).and_then(|state| state.calls_in.get_mut(&call)) {
                    *waiting = Waiting::Cancelled;
                    out.push(Incoming::Cancelled { channel, call });
                }
            }
            Kind::Event => {
                let head = head::take_event(&mut body)?;
                // On a closed channel it was under way when we closed it, and comes again on another one.
                if self.has_channel(channel) {
                    out.push(Incoming::Event { channel, head, payload: body });
                }
            }
            Kind::Ping => out.push(Incoming::Ping { channel, ping: head::take_ping(&mut body)? }),
            Kind::Pong => out.push(Incoming::Pong { channel, pong: head::take_pong(&mut body)? }),
            Kind::StreamData | Kind::StreamCredit | Kind::StreamReset => {
                self.streams.handle(kind, channel, body, &mut self.lanes, out)?;
            }
            Kind::Fault => {
                let FaultNotice { number } = message::decode(kind, &body)?;
                out.push(Incoming::PeerFault(number));
            }
            _ => {
                let message = Message::decode(kind, &body)?.ok_or(Fault::NotAllowed(kind))?;
                if self.has_channel(channel) {
                    out.push(Incoming::Message { channel, message });
                }
            }
        }
        Ok(())
    }

    fn handle_call(&mut self, channel: u16, mut body: Bytes, out: &mut Vec<Incoming<T>>) -> Result<(), Fault> {
        let (call, stream, head) = head::take_call(&mut body)?;
        let backlog = self.lanes.queued_bytes();
        let Some(state) = self.channels.get_mut(&channel) else {
            self.refuse(channel, call, stream, channel_closed());
            return Ok(());
        };
        if state.calls_in.contains_key(&call) {
            return Err(Fault::IdInUse { channel, id: call });
        }
        if state.calls_in.len() >= CALLS_MAX || backlog > BACKLOG_BYTES_MAX {
            let what = format!("{} calls are being answered on this channel; try again", state.calls_in.len());
            self.refuse(channel, call, stream, Error::new(ErrorCode::Busy, what));
            return Ok(());
        }
        let key = match stream {
            0 => None,
            stream => match self.streams.accept(channel, stream)? {
                Some(key) => Some(key),
                None => {
                    self.refuse(channel, call, stream, Error::new(ErrorCode::Busy, "too many streams on this link; try again"));
                    return Ok(());
                }
            },
        };
        state.calls_in.insert(call, Waiting::Yes);
        self.announce(channel, stream);
        out.push(Incoming::Call { channel, call, head, payload: body, stream: key });
        Ok(())
    }

    /// Answers a call that was not taken in, and ends the stream that came with it.
    ///
    /// It goes ahead of everything else: a peer that calls without reading must not fill the lane of the answers.
    fn refuse(&mut self, channel: u16, call: u32, stream: u32, error: Error) {
        let mut body = BytesMut::new();
        head::put_reply(&mut body, call, &Err(error));
        self.lanes.urgent(Kind::Reply, channel, &body);
        self.announce(channel, stream);
        if stream != 0 {
            self.lanes.urgent(Kind::StreamReset, channel, &stream.to_be_bytes());
        }
    }

    fn has_ended(&self) -> bool {
        self.channels.is_empty()
    }

    /// Ends the session: everything that waited comes back, nothing more is taken in. What is queued may still leave.
    pub fn close(&mut self, reason: &Error) -> ClosedChannel<T> {
        let mut all = ClosedChannel { tokens: Vec::new(), streams: Vec::new() };
        while let Some((&channel, _)) = self.channels.first_key_value() {
            let closed = self.drop_channel(channel, reason);
            all.tokens.extend(closed.tokens);
            all.streams.extend(closed.streams);
        }
        self.assembly = Assembly::new(self.peer_role);
        all
    }

    /// Forgets what is queued; for a link that has ended, whose handles may live on.
    pub fn discard_output(&mut self) {
        self.lanes = Lanes::new();
    }

    /// `of`: the stream that comes with it, and the number if it is a call.
    fn enqueue_sized(&mut self, kind: Kind, channel: u16, mut header: BytesMut, payload: &Bytes, of: (Option<StreamKey>, Option<u32>)) {
        // One copy into the frame is cheaper than a second piece for the socket, up to about a page.
        let body = if payload.len() <= COPIED_BYTES_MAX {
            header.put_slice(payload);
            Bytes::new()
        } else {
            payload.clone()
        };
        self.lanes.sized(Outgoing { kind, channel, head: header.freeze(), body, opens: of.0, call: of.1 });
    }
}

impl<T> Channel<T> {
    fn take_call_out(&mut self, call: u32) -> Option<T> {
        let token = self.calls_out.remove(&call)?;
        if self.calls_out.is_empty() && self.calls_out.capacity() > CALLS_KEPT_WHEN_IDLE {
            self.calls_out = HashMap::new();
        }
        Some(token)
    }

    fn next_free_call(&mut self) -> u32 {
        // Bounded by CALLS_MAX calls in flight, so a free number is near.
        while self.next_call == 0 || self.calls_out.contains_key(&self.next_call) {
            self.next_call = self.next_call.wrapping_add(1);
        }
        let call = self.next_call;
        self.next_call = self.next_call.wrapping_add(1);
        call
    }
}

fn channel_closed() -> Error {
    Error::new(ErrorCode::ConnectionFailed, "the channel is closed; nothing was done")
}

/// What waited on a channel or link that ended.
#[derive(Debug)]
pub struct ClosedChannel<T> {
    /// Of the unanswered calls.
    pub tokens: Vec<T>,
    /// Streams whose readers and writers must look again.
    pub streams: Vec<StreamKey>,
}

impl<T> ClosedChannel<T> {
    fn report(self, reason: &Error, out: &mut Vec<Incoming<T>>) {
        let reason = reason.clone().after_sending();
        out.extend(self.tokens.into_iter().map(|token| Incoming::Reply { token, outcome: Err(reason.clone()) }));
        for key in self.streams {
            out.push(Incoming::Readable(key));
            out.push(Incoming::Writable(key));
        }
    }
}

#[doc(no_inline)]
pub use frame::BYTES_MAX as FRAME_BYTES_MAX;
