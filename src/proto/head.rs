//! Fixed headers of the hot kinds.
//!
//! Calls, replies, events, pings and stream data carry a small binary header, then bytes that nobody on the way reads. Numbers are big-endian; a
//! name is one length byte and its UTF-8. Flags that a version does not know are refused, so that they can get a meaning later.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{Fault, Kind};
use super::identity::CallIdentity;
pub use super::identity::Rank;
use crate::error::{Error, ErrorCode};
use crate::types::{ClassName, Incarnation, NodeId, TaskId};

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verb {
    /// A request of a class.
    Request = 1,
    /// Start of a task.
    Task = 2,
    /// A command for a task.
    Command = 3,
    /// An operation of the cluster itself, answered by a control node.
    Cluster = 4,
    /// An operation between two control nodes.
    Peer = 5,
}

/// Header of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallHead {
    /// What it asks for.
    pub verb: Verb,
    /// How long the caller waits, in milliseconds.
    pub timeout_ms: u32,
    /// Kept over retries.
    pub identity: CallIdentity,
    /// Whether an earlier attempt may have arrived.
    pub retry: bool,
    /// Control nodes that have passed it on, at most [`HOPS_MAX`].
    pub hops: u8,
    /// Whether it asks for a connection to its worker that no other call uses.
    pub exclusive: bool,
    /// The worker incarnation first addressed; zero if any.
    pub incarnation: Incarnation,
    /// The worker that is meant; none where the channel says it.
    pub node: Option<NodeId>,
    /// The class that is meant; none for operations of the cluster.
    pub class: Option<ClassName>,
    /// The task: of a command, or the wanted id of a new task.
    pub task: Option<TaskId>,
}

const FLAG_RETRY: u8 = 1;
const FLAG_EXCLUSIVE: u8 = 2;
/// Two bits with the number of hops.
const HOPS_SHIFT: u8 = 2;
const HOPS_MASK: u8 = 0b1100;

/// Control nodes that a call may cross behind the one where it came in.
pub const HOPS_MAX: u8 = 3;

fn put_name(out: &mut BytesMut, name: Option<&str>) {
    let bytes = name.unwrap_or_default().as_bytes();
    debug_assert!(bytes.len() <= usize::from(u8::MAX), "names are bounded by their types");
    out.put_u8(bytes.len() as u8);
    out.put_slice(bytes);
}

/// A reader that knows which kind it reads, for its faults.
struct Reader<'a> {
    kind: Kind,
    body: &'a mut Bytes,
}

impl Reader<'_> {
    fn need(&self, count: usize) -> Result<(), Fault> {
        if self.body.len() < count { Err(Fault::malformed(self.kind, "it is too short")) } else { Ok(()) }
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        self.need(1)?;
        Ok(self.body.get_u8())
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.need(4)?;
        Ok(self.body.get_u32())
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.need(8)?;
        Ok(self.body.get_u64())
    }

    fn incarnation(&mut self) -> Result<Incarnation, Fault> {
        self.need(16)?;
        let mut bytes = [0; 16];
        self.body.copy_to_slice(&mut bytes);
        Ok(Incarnation::from_bytes(bytes))
    }

    fn name<N>(&mut self, parse: impl FnOnce(&str) -> Result<N, Error>) -> Result<Option<N>, Fault> {
        let length = usize::from(self.u8()?);
        self.need(length)?;
        let bytes = self.body.split_to(length);
        if bytes.is_empty() {
            return Ok(None);
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| Fault::malformed(self.kind, "a name is not UTF-8"))?;
        parse(text).map(Some).map_err(|_| Fault::malformed(self.kind, "a name has characters or a length that is not allowed"))
    }
}

/// Appends id, stream (0 = none) and header of a call; the payload follows.
pub fn put_call(out: &mut BytesMut, call: u32, stream: u32, head: &CallHead) {
    out.put_u32(call);
    out.put_u32(stream);
    out.put_u8(head.verb as u8);
    let flags = if head.retry { FLAG_RETRY } else { 0 } | if head.exclusive { FLAG_EXCLUSIVE } else { 0 };
    out.put_u8(flags | head.hops.min(HOPS_MAX) << HOPS_SHIFT);
    out.put_u32(head.timeout_ms);
    out.put_slice(head.identity.edge.as_bytes());
    out.put_u64(head.identity.number);
    out.put_slice(head.incarnation.as_bytes());
    put_name(out, head.node.as_ref().map(NodeId::as_str));
    put_name(out, head.class.as_ref().map(ClassName::as_str));
    put_name(out, head.task.as_ref().map(TaskId::as_str));
}

/// Takes id, stream and header of a call from `body`; the payload remains.
pub fn take_call(body: &mut Bytes) -> Result<(u32, u32, CallHead), Fault> {
    let kind = Kind::Call;
    let mut reader = Reader { kind, body };
    let call = reader.u32()?;
    let stream = reader.u32()?;
    let verb = match reader.u8()? {
        1 => Verb::Request,
        2 => Verb::Task,
        3 => Verb::Command,
        4 => Verb::Cluster,
        5 => Verb::Peer,
        _ => return Err(Fault::malformed(kind, "its verb is unknown")),
    };
    let flags = reader.u8()?;
    if flags & !(FLAG_RETRY | FLAG_EXCLUSIVE | HOPS_MASK) != 0 {
        return Err(Fault::malformed(kind, "it has unknown flags"));
    }
    let timeout_ms = reader.u32()?;
    let edge = reader.incarnation()?;
    let number = reader.u64()?;
    let incarnation = reader.incarnation()?;
    let node = reader.name(|name| NodeId::new(name))?;
    let class = reader.name(|name| ClassName::new(name))?;
    let task = reader.name(|name| TaskId::new(name))?;
    let identity = CallIdentity { edge, number };
    let (retry, exclusive) = (flags & FLAG_RETRY != 0, flags & FLAG_EXCLUSIVE != 0);
    let hops = (flags & HOPS_MASK) >> HOPS_SHIFT;
    Ok((call, stream, CallHead { verb, timeout_ms, identity, retry, hops, exclusive, incarnation, node, class, task }))
}

/// How a call ended, as bytes of its class or an error.
pub type Outcome = Result<Bytes, Error>;

/// Appends a reply without the bytes of a good outcome, which follow.
pub fn put_reply(out: &mut BytesMut, call: u32, outcome: &Outcome) {
    out.put_u32(call);
    match outcome {
        Ok(_) => out.put_u8(0),
        Err(error) => {
            out.put_u8(1);
            let body = rmp_serde::to_vec_named(&error.bounded()).unwrap_or_default();
            out.put_slice(&body);
        }
    }
}

/// Reads a reply.
pub fn take_reply(body: &mut Bytes) -> Result<(u32, Outcome), Fault> {
    let kind = Kind::Reply;
    let mut reader = Reader { kind, body };
    let call = reader.u32()?;
    match reader.u8()? {
        0 => Ok((call, Ok(std::mem::take(body)))),
        1 => {
            let error = rmp_serde::from_slice(body)
                .unwrap_or_else(|_| Error::new(ErrorCode::ProtocolError, "the peer sent an error that cannot be read"));
            Ok((call, Err(error)))
        }
        _ => Err(Fault::malformed(kind, "its outcome is unknown")),
    }
}

/// What an entry of the journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// Bytes of the class.
    Class = 0,
    /// One of our own: task started or stopped, status of the node (named MessagePack).
    Builtin = 1,
    /// Entries up to and including this number were dropped.
    Gap = 2,
}

/// Whom an event is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Audience {
    /// The class, and those who follow live.
    #[default]
    Everybody,
    /// Those who follow live: the class is behind, and gets it again when it has caught up.
    Followers,
}

/// Header of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventHead {
    /// Number within the class, from 1; the last one of a gap.
    pub seq: u64,
    /// Wall clock of the worker, milliseconds since 1970.
    pub time_ms: u64,
    /// What the payload is.
    pub kind: EventKind,
    /// The class.
    pub class: ClassName,
    /// The task that sent it; only of the kind `class`.
    pub task: Option<TaskId>,
    /// Whom it is for.
    pub audience: Audience,
}

/// On the wire: an event of a class with the name of its task behind that of the class.
const KIND_OF_TASK: u8 = 3;
/// Added to the kind if it is for [`Audience::Followers`].
const FOR_FOLLOWERS: u8 = 0x80;

/// Appends the header of an event; the payload follows.
pub fn put_event(out: &mut BytesMut, head: &EventHead) {
    out.put_u64(head.seq);
    out.put_u64(head.time_ms);
    let task = head.task.as_ref().filter(|_| head.kind == EventKind::Class);
    let kind = if task.is_some() { KIND_OF_TASK } else { head.kind as u8 };
    out.put_u8(if head.audience == Audience::Followers { kind | FOR_FOLLOWERS } else { kind });
    put_name(out, Some(head.class.as_str()));
    if let Some(task) = task {
        put_name(out, Some(task.as_str()));
    }
}

/// Takes the header of an event from `body`; the payload remains.
pub fn take_event(body: &mut Bytes) -> Result<EventHead, Fault> {
    let kind = Kind::Event;
    let mut reader = Reader { kind, body };
    let seq = reader.u64()?;
    let time_ms = reader.u64()?;
    let byte = reader.u8()?;
    let audience = if byte & FOR_FOLLOWERS == 0 { Audience::Everybody } else { Audience::Followers };
    let byte = byte & !FOR_FOLLOWERS;
    let event_kind = match byte {
        0 | KIND_OF_TASK => EventKind::Class,
        1 => EventKind::Builtin,
        2 => EventKind::Gap,
        _ => return Err(Fault::malformed(kind, "its kind is unknown")),
    };
    let class = reader.name(|name| ClassName::new(name))?.ok_or(Fault::malformed(kind, "it has no class"))?;
    let task = match byte {
        KIND_OF_TASK => Some(reader.name(|name| TaskId::new(name))?.ok_or(Fault::malformed(kind, "it has no task"))?),
        _ => None,
    };
    Ok(EventHead { seq, time_ms, kind: event_kind, class, task, audience })
}

/// Body of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Returned by the pong.
    pub seq: u64,
    /// Wall clock of the sender, milliseconds since 1970.
    pub time_ms: u64,
    /// Rank of the holder that pings; zero on channel 0.
    pub rank: Rank,
}

/// Body of a pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Of the ping.
    pub seq: u64,
    /// Wall clock of the answering node, milliseconds since 1970.
    pub time_ms: u64,
}

/// Appends a ping.
pub fn put_ping(out: &mut BytesMut, ping: &Ping) {
    out.put_u64(ping.seq);
    out.put_u64(ping.time_ms);
    out.put_u32(ping.rank.view);
    out.put_u64(ping.rank.hash);
}

/// Reads a ping.
pub fn take_ping(body: &mut Bytes) -> Result<Ping, Fault> {
    let mut reader = Reader { kind: Kind::Ping, body };
    let (seq, time_ms) = (reader.u64()?, reader.u64()?);
    let rank = Rank { view: reader.u32()?, hash: reader.u64()? };
    Ok(Ping { seq, time_ms, rank })
}

/// Appends a pong.
pub fn put_pong(out: &mut BytesMut, pong: &Pong) {
    out.put_u64(pong.seq);
    out.put_u64(pong.time_ms);
}

/// Reads a pong.
pub fn take_pong(body: &mut Bytes) -> Result<Pong, Fault> {
    let mut reader = Reader { kind: Kind::Pong, body };
    Ok(Pong { seq: reader.u64()?, time_ms: reader.u64()? })
}

/// Reads two numbers: the bodies of cancel (the second is absent), credit and reset.
pub(crate) fn take_u32(kind: Kind, body: &mut Bytes) -> Result<u32, Fault> {
    Reader { kind, body }.u32()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> CallHead {
        CallHead {
            verb: Verb::Task,
            timeout_ms: 30_000,
            identity: CallIdentity { edge: Incarnation::from_bytes([1; 16]), number: 7 },
            retry: true,
            hops: 2,
            exclusive: false,
            incarnation: Incarnation::from_bytes([2; 16]),
            node: None,
            class: Some(ClassName::new("core").expect("valid")),
            task: Some(TaskId::new("t1").expect("valid")),
        }
    }

    #[test]
    fn golden_bytes_of_a_call() {
        let mut out = BytesMut::new();
        put_call(&mut out, 5, 0, &head());
        let mut expected = vec![0, 0, 0, 5, 0, 0, 0, 0, 2, 0b1001, 0, 0, 0x75, 0x30];
        expected.extend([1; 16]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 7]);
        expected.extend([2; 16]);
        expected.extend([0, 4, b'c', b'o', b'r', b'e', 2, b't', b'1']);
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn call_returns_with_its_payload() {
        for (exclusive, flags) in [(false, 1), (true, 3)] {
            let head = CallHead { exclusive, ..head() };
            let mut out = BytesMut::new();
            put_call(&mut out, 5, 9, &head);
            out.extend_from_slice(b"payload");
            assert_eq!(out[9], flags | 2 << HOPS_SHIFT);
            let mut body = out.freeze();
            assert_eq!(take_call(&mut body), Ok((5, 9, head)));
            assert_eq!(&body[..], b"payload");
        }
    }

    #[test]
    fn golden_bytes_of_an_event_of_a_task() {
        let class = ClassName::new("core").expect("valid");
        let task = Some(TaskId::new("t1").expect("valid"));
        let head = EventHead { seq: 7, time_ms: 8, kind: EventKind::Class, class, task, audience: Audience::Everybody };
        for (head, kind) in [(head.clone(), 3), (EventHead { audience: Audience::Followers, ..head }, 0x83)] {
            let mut out = BytesMut::new();
            put_event(&mut out, &head);
            let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 8, kind];
            expected.extend(b"\x04core\x02t1");
            assert_eq!(&out[..], expected);
            out.extend_from_slice(b"payload");
            let mut body = out.freeze();
            assert_eq!(take_event(&mut body), Ok(head));
            assert_eq!(&body[..], b"payload");
        }
    }

    #[test]
    fn error_returns_from_a_reply() {
        let outcome: Outcome = Err(Error::new(ErrorCode::TaskNotFound, "no task t1"));
        let mut out = BytesMut::new();
        put_reply(&mut out, 3, &outcome);
        assert_eq!(take_reply(&mut out.freeze()), Ok((3, outcome)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(garbage);
            let _ = take_call(&mut bytes.clone());
            let _ = take_reply(&mut bytes.clone());
            let _ = take_event(&mut bytes.clone());
            let _ = take_ping(&mut bytes.clone());
            let _ = take_pong(&mut bytes.clone());
        }
    }
}
