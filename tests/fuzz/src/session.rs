//! A trusted link: sequences of frames from a peer of any role, between the things that its shell does.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, Bytes, BytesMut};
use nkcluster::error::{Error, ErrorCode};
use nkcluster::proto::auth::Role;
use nkcluster::proto::frame::{self, BYTES_MAX, Fault, Frame, Kind, LINK_CHANNEL};
use nkcluster::proto::head::{self, CallHead, EventHead, EventKind, Ping, Pong, Rank, Verb};
use nkcluster::proto::identity::CallIdentity;
use nkcluster::proto::message::Message;
use nkcluster::proto::roles;
use nkcluster::proto::session::{CALLS_MAX, CHANNELS_MAX, Incoming, Outbox, STREAM_WINDOW_BYTES, Session, Side, StreamKey, StreamRead};
use nkcluster::types::{ClassName, Incarnation, NodeId};

use crate::input::Input;
use crate::seeded::seeded_crash;

/// Bytes that one input may make, whatever it asks for, so that a run stays short.
const WORK_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Bodies of which messages are written again; larger ones could grow beyond a frame, which no shell does.
const ECHOED_BYTES_MAX: usize = 8 * 1024;

/// Whatever frames a peer sends between whatever its shell does: nothing panics; each call of ours gets exactly one answer, each of the peer can be answered exactly
/// once; a role sends what it may; a stream holds no more than its window and sends no more than its credit; what leaves are frames that a peer can read. Any fault
/// ends the link, and then everything that waited comes back.
pub fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let setting = input.byte();
    let mut end = End::new(setting);
    while !input.is_empty() && end.work < WORK_BYTES_MAX && !end.has_failed {
        end.turn(&mut input);
    }
    end.close();
}

/// What is known of a stream by watching.
#[derive(Default)]
struct Watched {
    received: usize,
    read: usize,
    sent: usize,
    granted: usize,
    /// Its id served an earlier stream, of which bytes may still be on their way.
    is_reused: bool,
    reset: bool,
}

/// What happened, for the seeded crash.
#[derive(Default)]
struct Seen {
    call_with_stream: bool,
    cancelled: bool,
}

struct End {
    side: Side,
    peer: Role,
    session: Session<u64>,
    /// Bytes of the peer that are no whole frame.
    buffer: BytesMut,
    outbox: Outbox,
    next_token: u64,
    /// Calls of ours without an answer.
    waiting: BTreeSet<u64>,
    /// The same, with what names them on the wire.
    ours: Vec<(u16, u32)>,
    /// Calls of the peer without an answer.
    theirs: Vec<(u16, u32)>,
    channels: Vec<u16>,
    streams: Vec<StreamKey>,
    watched: BTreeMap<StreamKey, Watched>,
    has_failed: bool,
    work: usize,
    seen: Seen,
}

impl End {
    fn new(setting: u8) -> Self {
        let side = if setting & 1 == 0 { Side::Listener } else { Side::Dialler };
        let peer = Role::ALL[usize::from(setting >> 1) % Role::ALL.len()];
        Self {
            side,
            peer,
            session: Session::new(side, peer),
            buffer: BytesMut::new(),
            outbox: Outbox::default(),
            next_token: 0,
            waiting: BTreeSet::new(),
            ours: Vec::new(),
            theirs: Vec::new(),
            channels: vec![LINK_CHANNEL],
            streams: Vec::new(),
            watched: BTreeMap::new(),
            has_failed: false,
            work: 0,
            seen: Seen::default(),
        }
    }

    fn turn(&mut self, input: &mut Input<'_>) {
        self.work += 64;
        match input.below(24) {
            // The peer.
            0 => {
                let kind = Kind::ALL[input.below(Kind::ALL.len())];
                let channel = self.any_channel(input);
                self.frame(kind, channel, Bytes::copy_from_slice(input.bytes()));
            }
            1 => self.raw(input.bytes()),
            2 => self.peer_calls(input),
            3 => self.peer_replies(input),
            4 => self.peer_sends_data(input),
            5 => {
                let (channel, stream) = self.any_stream(input);
                let bytes = [1, 4096, 131_072, 524_288, u32::MAX][input.below(5)];
                self.frame_of(Kind::StreamCredit, channel, |body| {
                    body.put_u32(stream);
                    body.put_u32(bytes);
                });
            }
            6 => {
                let (channel, stream) = self.any_stream(input);
                self.frame_of(Kind::StreamReset, channel, |body| body.put_u32(stream));
            }
            7 => self.peer_sends_fragment(input),
            8 => {
                let channel = u16::from(input.byte());
                self.frame(Kind::ChannelOpen, channel, Bytes::new());
            }
            9 => {
                let (channel, call) = pick(&self.theirs, input).unwrap_or_else(|| (0, u32::from(input.byte())));
                self.frame_of(Kind::Cancel, channel, |body| body.put_u32(call));
            }
            10 => {
                let channel = self.any_channel(input);
                let kind = Kind::ALL[input.below(Kind::ALL.len())];
                self.peer_sends_message(kind, channel, input);
            }
            // The shell.
            11 | 12 => self.call(input),
            13 => self.reply(input),
            14 => self.write(input),
            15 => self.read(input),
            16 => {
                if let Some(key) = pick(&self.streams, input) {
                    self.session.stream_finish(key);
                    let _ = self.session.stream_flushed(key);
                }
            }
            17 => {
                if let Some(key) = pick(&self.streams, input) {
                    self.session.stream_reset(key);
                    self.streams.retain(|known| *known != key);
                    if let Some(watched) = self.watched.get_mut(&key) {
                        watched.reset = true;
                    }
                }
            }
            18 => {
                if let Ok(channel) = self.session.open_channel() {
                    assert!(!self.channels.contains(&channel));
                    self.channels.push(channel);
                }
            }
            19 => self.close_channel(input),
            20 => {
                if let Some((channel, call)) = pick(&self.ours, input)
                    && let Some(token) = self.session.forget_call(channel, call)
                {
                    assert!(self.waiting.remove(&token), "a forgotten call had an answer");
                }
            }
            21 => self.say(input),
            _ => {
                let bytes = [1, 300, 70_000, 1 << 20][input.below(4)];
                self.transmit(bytes);
            }
        }
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.session.calls_being_answered(), self.theirs.len());
        assert!(self.channels.len() <= CHANNELS_MAX);
        for &channel in &self.channels {
            assert!(self.session.has_channel(channel), "channel {channel}");
            assert!(self.session.calls_in_flight(channel) <= CALLS_MAX);
        }
        for (key, watched) in &self.watched {
            assert!(watched.received - watched.read <= STREAM_WINDOW_BYTES, "{key:?} holds more than its window");
            assert!(watched.is_reused || watched.sent <= STREAM_WINDOW_BYTES + watched.granted, "{key:?} sends more than its credit");
        }
    }

    fn any_channel(&self, input: &mut Input<'_>) -> u16 {
        match input.byte() {
            choice @ 0..=0xf7 => self.channels[usize::from(choice) % self.channels.len()],
            _ => input.u16(),
        }
    }

    /// A stream, or an id of the kind that the peer may open.
    fn any_stream(&self, input: &mut Input<'_>) -> (u16, u32) {
        match pick(&self.streams, input) {
            Some(key) => (key.channel, key.stream),
            None => (LINK_CHANNEL, self.their_stream(input)),
        }
    }

    fn their_stream(&self, input: &mut Input<'_>) -> u32 {
        let even = u32::from(input.byte()) * 2 + 2;
        if self.side == Side::Dialler { even } else { even + 1 }
    }

    fn frame_of(&mut self, kind: Kind, channel: u16, write: impl FnOnce(&mut BytesMut)) {
        let mut body = BytesMut::new();
        write(&mut body);
        self.frame(kind, channel, body.freeze());
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        loop {
            match frame::take_frame(&mut self.buffer, BYTES_MAX) {
                Ok(Some(frame)) => self.frame(frame.kind, frame.channel, frame.body),
                Ok(None) => return,
                Err(fault) => return self.fail(&fault),
            }
            if self.has_failed {
                return;
            }
        }
    }

    /// A frame of the peer arrives.
    fn frame(&mut self, kind: Kind, channel: u16, body: Bytes) {
        if self.has_failed {
            return;
        }
        self.work += body.len();
        let before = (kind == Kind::StreamData).then(|| data_of(channel, &body)).flatten();
        let credit = (kind == Kind::StreamCredit).then(|| credit_of(channel, &body)).flatten();
        let mut incoming = Vec::new();
        match self.session.handle_frame(Frame { kind, channel, body }, &mut incoming) {
            Err(fault) => return self.fail(&fault),
            Ok(()) => assert!(roles::may_send(self.peer, kind), "a {} may not send {kind:?}", self.peer),
        }
        // A stream that the session has given up takes nothing; neither does one that we do not know.
        if let Some((key, bytes)) = before
            && let Some(watched) = self.watched.get_mut(&key)
            && !watched.reset
            && incoming.contains(&Incoming::Readable(key))
        {
            watched.received += bytes;
        }
        if let Some((key, bytes)) = credit
            && let Some(watched) = self.watched.get_mut(&key)
        {
            watched.granted += bytes;
        }
        for event in incoming {
            self.take_in(event);
        }
    }

    fn take_in(&mut self, event: Incoming<u64>) {
        match event {
            Incoming::Call { channel, call, stream, .. } => {
                assert!(!self.theirs.contains(&(channel, call)), "a call came twice");
                self.theirs.push((channel, call));
                if let Some(key) = stream {
                    self.seen.call_with_stream = true;
                    self.watch(key);
                }
            }
            Incoming::Reply { token, .. } => assert!(self.waiting.remove(&token), "a call got two answers"),
            Incoming::Cancelled { channel, call } => {
                assert!(!self.session.caller_waits(channel, call));
                self.seen.cancelled = true;
            }
            Incoming::Message { message, .. } => {
                let body = message.encode();
                if body.len() <= ECHOED_BYTES_MAX {
                    let again = Message::decode(message.kind(), &body).unwrap_or_else(|fault| panic!("{message:?}: {fault}"));
                    assert_eq!(again.map(|again| again.encode()), Some(body), "{message:?}");
                }
            }
            Incoming::ChannelOpened(channel) => {
                assert!(!self.channels.contains(&channel));
                self.channels.push(channel);
            }
            Incoming::ChannelClosed { channel, .. } => {
                assert!(!self.session.has_channel(channel));
                self.forget_channel(channel);
            }
            Incoming::Ping { channel, ping } => self.session.pong(channel, &Pong { seq: ping.seq, time_ms: 0 }),
            Incoming::Event { .. } | Incoming::Pong { .. } | Incoming::Readable(_) | Incoming::Writable(_) | Incoming::PeerFault(_) => {}
        }
    }

    fn watch(&mut self, key: StreamKey) {
        let is_reused = self.watched.contains_key(&key);
        self.watched.insert(key, Watched { is_reused, ..Watched::default() });
        self.streams.push(key);
    }

    fn forget_channel(&mut self, channel: u16) {
        self.channels.retain(|known| *known != channel);
        self.theirs.retain(|(known, _)| *known != channel);
        self.ours.retain(|(known, _)| *known != channel);
    }

    fn fail(&mut self, fault: &Fault) {
        assert!((1..=9).contains(&fault.number()), "{fault}");
        self.session.fault(fault);
        self.has_failed = true;
    }

    fn head(&self, input: &mut Input<'_>) -> CallHead {
        CallHead {
            verb: [Verb::Request, Verb::Task, Verb::Command, Verb::Cluster][input.below(4)],
            timeout_ms: u32::from(input.byte()) * 100,
            identity: CallIdentity { edge: Incarnation::from_bytes([3; 16]), number: self.next_token },
            retry: false,
            hops: 0,
            exclusive: false,
            incarnation: Incarnation::from_bytes([0; 16]),
            node: None,
            class: Some(class()),
            task: None,
        }
    }

    fn peer_calls(&mut self, input: &mut Input<'_>) {
        let channel = self.any_channel(input);
        let call = u32::from(input.byte());
        let stream = if input.below(2) == 0 { 0 } else { self.their_stream(input) };
        let head = self.head(input);
        let payload = input.bytes();
        self.frame_of(Kind::Call, channel, |body| {
            head::put_call(body, call, stream, &head);
            body.put_slice(payload);
        });
    }

    fn peer_replies(&mut self, input: &mut Input<'_>) {
        let (channel, call) = pick(&self.ours, input).unwrap_or_else(|| (LINK_CHANNEL, u32::from(input.byte())));
        let outcome = match input.below(2) {
            0 => Ok(Bytes::copy_from_slice(input.bytes())),
            _ => Err(Error::new(ErrorCode::NotFound, "no")),
        };
        self.frame_of(Kind::Reply, channel, |body| {
            head::put_reply(body, call, &outcome);
            body.put_slice(outcome.as_ref().map_or(&[], |payload| &payload[..]));
        });
    }

    fn peer_sends_data(&mut self, input: &mut Input<'_>) {
        let (channel, stream) = self.any_stream(input);
        let flags = [0, 1, 0, 2][input.below(4)];
        let bytes = [0, 1, 100, 3_000, 30_000, 65_531][input.below(6)];
        self.frame_of(Kind::StreamData, channel, |body| {
            body.put_u32(stream);
            body.put_u8(flags);
            body.put_bytes(b'x', bytes);
        });
    }

    /// A part of a large call or reply; ids and totals often fit to each other.
    fn peer_sends_fragment(&mut self, input: &mut Input<'_>) {
        let id = u32::from(input.byte() % 4);
        let what = input.below(4);
        let total = [10_000_u32, 100_000, 1 << 20, 17 << 20][input.below(4)];
        let length = [5, 9_000, 34_470, 65_526][input.below(4)];
        let channel = self.any_channel(input);
        let (answered_on, answered) = pick(&self.ours, input).unwrap_or((channel, 1));
        let head = self.head(input);
        let channel = if what == 2 { answered_on } else { channel };
        self.frame_of(Kind::Fragment, channel, |body| {
            body.put_u32(id);
            match what {
                0 => body.put_u8(0),
                1 => {
                    body.put_u8(1);
                    body.put_u8(Kind::Call as u8);
                    body.put_u32(total);
                    head::put_call(body, id + 1000, 0, &head);
                }
                2 => {
                    body.put_u8(1);
                    body.put_u8(Kind::Reply as u8);
                    body.put_u32(total);
                    head::put_reply(body, answered, &Ok(Bytes::new()));
                }
                _ => {
                    body.put_u8(1);
                    body.put_u8(Kind::ALL[id as usize] as u8);
                    body.put_u32(total);
                }
            }
            body.put_bytes(b'f', length);
            body.truncate(frame::BODY_BYTES_MAX);
        });
    }

    fn peer_sends_message(&mut self, kind: Kind, channel: u16, input: &mut Input<'_>) {
        // MessagePack with named fields; the names come from the input, or from the messages themselves.
        const NAMES: [&str; 20] = [
            "listen",
            "meta",
            "status",
            "classes",
            "version",
            "term",
            "holder",
            "stats",
            "tasks",
            "class",
            "seq",
            "next_seq",
            "more",
            "reason",
            "addresses",
            "number",
            "code",
            "message",
            "name",
            "values",
        ];
        let mut body = BytesMut::new();
        let fields = input.below(9);
        body.put_u8(0x80 | fields as u8);
        for _ in 0..fields {
            let name = NAMES[input.below(NAMES.len())];
            body.put_u8(0xa0 | name.len() as u8);
            body.put_slice(name.as_bytes());
            match input.below(8) {
                0 => body.put_u8(input.byte()),
                1 => {
                    body.put_u8(0xcf);
                    body.put_u64(u64::from(input.u32()) << 20);
                }
                2 => {
                    let text = input.bytes();
                    body.put_u8(0xd9);
                    body.put_u8(text.len() as u8);
                    body.put_slice(text);
                }
                3 => body.put_slice(&[0x91, 0xa2, b'w', b'1']),
                4 => body.put_slice(b"\xa5ready"),
                5 => body.put_slice(b"\x91\xd9\x14nkcluster://10.0.0.1"),
                6 => body.put_slice(b"\x82\xa4code\xa4busy\xa7message\xa2no"),
                _ => body.put_slice(input.bytes()),
            }
        }
        self.frame(kind, channel, body.freeze());
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let channel = self.any_channel(input);
        let head = self.head(input);
        let payload = Bytes::from(vec![b'p'; [0, 10, 5_000, 70_000, 300_000][input.below(5)]]);
        let with_stream = input.below(2) == 1;
        self.next_token += 1;
        let token = self.next_token;
        self.work += payload.len();
        match self.session.call(channel, &head, &payload, with_stream, token) {
            Err(unsent) => assert_eq!(unsent.token, token),
            Ok((call, stream)) => {
                assert_eq!(stream.is_some(), with_stream);
                self.waiting.insert(token);
                self.ours.push((channel, call));
                if let Some(key) = stream {
                    self.watch(key);
                }
            }
        }
    }

    fn reply(&mut self, input: &mut Input<'_>) {
        let Some((channel, call)) = pick(&self.theirs, input) else { return };
        let outcome = match input.below(3) {
            0 => Ok(Bytes::from_static(b"reply")),
            1 => Ok(Bytes::from(vec![b'r'; 150_000])),
            _ => Err(Error::class("own", "e".repeat(usize::from(input.u16())))),
        };
        assert!(self.session.reply(channel, call, &outcome), "a call could not be answered");
        assert!(!self.session.reply(channel, call, &outcome), "a call was answered twice");
        self.theirs.retain(|known| *known != (channel, call));
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let Some(key) = pick(&self.streams, input) else { return };
        let bytes = vec![b'w'; [1, 4_000, 65_531, 200_000][input.below(4)]];
        if let Ok(count) = self.session.stream_write(key, &bytes) {
            assert!(count <= bytes.len());
            self.work += count;
        }
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let Some(key) = pick(&self.streams, input) else { return };
        let bytes_max = [1, 1_000, usize::MAX][input.below(3)];
        match self.session.stream_read(key, bytes_max) {
            StreamRead::Bytes(bytes) => {
                assert!((1..=bytes_max).contains(&bytes.len()));
                let watched = self.watched.get_mut(&key).expect("every stream is watched from its beginning");
                watched.read += bytes.len();
                assert!(watched.read <= watched.received, "bytes that nobody sent");
            }
            StreamRead::End => {
                let watched = &self.watched[&key];
                assert_eq!(watched.read, watched.received, "the end came before the last bytes");
            }
            StreamRead::Pending | StreamRead::Reset(_) => {}
        }
    }

    fn close_channel(&mut self, input: &mut Input<'_>) {
        let channel = self.any_channel(input);
        if channel == LINK_CHANNEL || !self.session.has_channel(channel) {
            return;
        }
        let closed = self.session.close_channel(channel, &Error::new(ErrorCode::ShuttingDown, "bye"));
        for token in closed.tokens {
            assert!(self.waiting.remove(&token), "a call got two answers");
        }
        self.forget_channel(channel);
    }

    fn say(&mut self, input: &mut Input<'_>) {
        let channel = self.any_channel(input);
        let number = u64::from(input.byte());
        match input.below(3) {
            0 => self.session.ping(channel, &Ping { seq: number, time_ms: 1, rank: Rank { view: 1, hash: number } }),
            1 => {
                let head =
                    EventHead { seq: number, time_ms: 1, kind: EventKind::Class, class: class(), task: None, audience: Default::default() };
                self.session.event(channel, &head, input.bytes());
            }
            _ => {
                let holder = NodeId::new("c1").ok();
                self.session.message(channel, &Message::Fenced(nkcluster::proto::message::Fenced { term: number, holder }));
            }
        }
    }

    /// One turn of the writer: what leaves are frames of this version, and streams keep to their credit.
    fn transmit(&mut self, bytes_max: usize) {
        let mut writable = Vec::new();
        self.session.transmit(&mut self.outbox, bytes_max, &mut writable);
        let mut wire = BytesMut::with_capacity(self.outbox.len());
        for piece in self.outbox.pieces() {
            wire.extend_from_slice(piece);
        }
        let all = self.outbox.len();
        assert_eq!(wire.len(), all);
        self.outbox.advance(all);
        self.outbox.drained();
        self.work += all;
        while let Some(frame) = frame::take_frame(&mut wire, BYTES_MAX).unwrap_or_else(|fault| panic!("no peer can read this: {fault}")) {
            assert!(frame.kind as u8 >= Kind::Ping as u8, "a frame of the handshake");
            if frame.kind == Kind::StreamData
                && let Some((key, bytes)) = data_of(frame.channel, &frame.body)
                && let Some(watched) = self.watched.get_mut(&key)
            {
                watched.sent += bytes;
            }
        }
        assert!(wire.is_empty(), "a part of a frame");
    }

    fn close(&mut self) {
        self.transmit(1 << 20);
        let closed = self.session.close(&Error::new(ErrorCode::ConnectionFailed, "the link ended"));
        let tokens: BTreeSet<u64> = closed.tokens.iter().copied().collect();
        assert_eq!(tokens.len(), closed.tokens.len(), "a call got two answers");
        assert_eq!(tokens, self.waiting, "a call got no answer");
        assert_eq!(self.session.calls_being_answered(), 0);
        let seen = &self.seen;
        seeded_crash!("session", seen.call_with_stream, seen.cancelled, self.channels.len() > 1, !self.has_failed,);
    }
}

fn class() -> ClassName {
    ClassName::new("core").expect("letters are a name")
}

fn pick<T: Copy>(from: &[T], input: &mut Input<'_>) -> Option<T> {
    let choice = usize::from(input.byte());
    // Sometimes none, where there are some.
    if choice == 0xff { None } else { from.get(choice % from.len().max(1)).copied() }
}

fn stream_of(channel: u16, body: &[u8]) -> Option<StreamKey> {
    let stream = body.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))?;
    Some(StreamKey { channel, stream })
}

/// The stream and length of a body of data.
fn data_of(channel: u16, body: &[u8]) -> Option<(StreamKey, usize)> {
    Some((stream_of(channel, body)?, body.len().checked_sub(5)?))
}

/// The stream and amount of a body of credit.
fn credit_of(channel: u16, body: &[u8]) -> Option<(StreamKey, usize)> {
    let amount = body.get(4..)?.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))?;
    Some((stream_of(channel, body)?, amount as usize))
}
