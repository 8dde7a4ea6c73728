//! All other bodies: named MessagePack, one frame kind each, unknown fields tolerated.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::frame::{BODY_BYTES_MAX, Fault, Kind};
use super::identity::{Rank, Ticket};
use crate::error::Error;
use crate::types::{ClassName, Incarnation, Meta, NodeId, NodeStats, NodeStatus, NodeUri, TaskId};

/// Nesting that a body may have.
const DEPTH_MAX: usize = 32;
/// Tasks that one [`Resync`] names; the rest follows in further ones.
pub const RESYNC_TASKS_MAX: usize = 256;

/// A worker describes itself, in its first trusted frame and whenever asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Describe {
    /// Where it listens; empty for a worker that only dials.
    #[serde(default)]
    pub listen: Vec<NodeUri>,
    /// Its labels.
    #[serde(default)]
    pub meta: Meta,
    /// Its status.
    pub status: NodeStatus,
    /// Classes that it runs.
    #[serde(default)]
    pub classes: Vec<ClassName>,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
    /// Its current term.
    pub term: u64,
    /// Who holds it.
    #[serde(default)]
    pub holder: Option<NodeId>,
}

/// A worker's news, sent every `stats_time` and at each change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Its status.
    pub status: NodeStatus,
    /// Its labels.
    #[serde(default)]
    pub meta: Meta,
    /// Where it listens.
    #[serde(default)]
    pub listen: Vec<NodeUri>,
    /// Statistics, if measured already.
    #[serde(default)]
    pub stats: Option<NodeStats>,
    /// Running tasks.
    #[serde(default)]
    pub tasks: u32,
}

/// Asks a worker to accept a holder, on the channel which that holder will use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adopt {
    /// The incarnation that is meant.
    pub worker_incarnation: Incarnation,
    /// The term that the asking side saw last.
    pub seen_term: u64,
    /// Who asks.
    pub owner: NodeId,
    /// Its incarnation.
    pub owner_incarnation: Incarnation,
    /// How strong its claim is.
    pub rank: Rank,
    /// Passed on by the present holder in a hand-over.
    #[serde(default)]
    pub ticket: Option<Ticket>,
    /// Milliseconds between two pings of the holder: twice as long is silence, unless the worker is more patient. 0: it does not say.
    #[serde(default)]
    pub ping_ms: u32,
}

/// A worker's answer to [`Adopt`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adopted {
    /// This channel is the current one.
    Granted {
        /// The new term.
        term: u64,
        /// Lets a hand-over name its successor.
        ticket: Ticket,
    },
    /// Another holder stays.
    Refused {
        /// The current term.
        term: u64,
        /// Who holds the worker.
        holder: Option<NodeId>,
        /// Why, in words for a log.
        reason: String,
    },
}

/// What came on a channel of an older term changed nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fenced {
    /// The current term.
    pub term: u64,
    /// Who holds the worker.
    #[serde(default)]
    pub holder: Option<NodeId>,
}

/// Events of a class up to `seq` were taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventAck {
    /// The class.
    pub class: ClassName,
    /// The last one that was taken.
    pub seq: u64,
    /// The last one that has arrived for those who follow live while the class is behind; 0 if none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub followed: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An edge needs the outcomes of these calls no more: it has them, or its callers have given up. It may be lost: the next one says the same again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutcomeAck {
    /// Who gave the calls their identities.
    pub edge: Incarnation,
    /// The worker that is meant; none where the channel says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Every number below it.
    pub below: u64,
    /// Further ones, first and last, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(u64, u64)>,
}

/// A worker starts to send its journal again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resync {
    /// The class.
    pub class: ClassName,
    /// Number of the first event that will follow.
    pub next_seq: u64,
    /// Tasks of the class that run now, but for those whose start will follow as an event.
    #[serde(default)]
    pub tasks: Vec<TaskId>,
    /// Whether further tasks follow in another one.
    #[serde(default)]
    pub more: bool,
}

/// The peer should go elsewhere; the link ends soon. A worker looks for another control node at once, or after the pause, while the link goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoAway {
    /// Why.
    pub reason: Error,
    /// When to come back, milliseconds; none if at will.
    #[serde(default)]
    pub reconnect_after_ms: Option<u64>,
}

/// Addresses that a worker should try first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preferred {
    /// In this order.
    pub addresses: Vec<NodeUri>,
}

/// The holder uses the worker over the link of another control node, and would like one of its own: the worker dials one of these, and keeps the old link
/// until it is adopted over the new one. Obeyed only on the holder's channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Redirect {
    /// In this order.
    pub addresses: Vec<NodeUri>,
}

/// Asks a worker, on the holder's channel, for one more connection to where it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExclusiveDial {
    /// Random, so that nobody else can bring what was asked for.
    pub request: u64,
}

/// The first frame of a connection that was asked for; on the holder's channel: there will be none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExclusiveHere {
    /// Of the [`ExclusiveDial`].
    pub request: u64,
    /// Why there is none.
    #[serde(default)]
    pub refused: Option<Error>,
}

/// Calls on this channel are those of the holder under this term. Events and pings stay on its own channel; the link is no adoption.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExclusiveBind {
    /// The term of the holder: another one fences this channel too.
    pub term: u64,
    /// Shows that whoever binds is the holder.
    pub ticket: Ticket,
}

/// Why a channel or link was closed by the other side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// Told to all who wait.
    pub reason: Error,
}

/// The link ends because of a fault; only its number is told.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultNotice {
    /// See [`Fault::number`].
    pub number: u16,
}

/// Events of our own, of every class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuiltinEvent {
    /// A task runs.
    TaskStarted(TaskId),
    /// A task has ended.
    TaskStopped {
        /// Which.
        id: TaskId,
        /// `normal`, `killed`, `node_restarted`, or `error: …`.
        reason: String,
    },
    /// The status of the worker, `not_connected` included.
    NodeStatus(NodeStatus),
    /// Events that were dropped, first and last.
    Gap {
        /// First one that is missing.
        from: u64,
        /// Last one that is missing.
        to: u64,
    },
}

/// A body with a frame kind of its own.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is described at its type")]
pub enum Message {
    Describe(Describe),
    Update(Update),
    Adopt(Adopt),
    Adopted(Adopted),
    Fenced(Fenced),
    EventAck(EventAck),
    Resync(Resync),
    GoAway(GoAway),
    Preferred(Preferred),
    Redirect(Redirect),
    /// Between control nodes, about who is one; its bytes are read by membership.
    Envelope(Bytes),
    ExclusiveDial(ExclusiveDial),
    ExclusiveHere(ExclusiveHere),
    ExclusiveBind(ExclusiveBind),
    OutcomeAck(OutcomeAck),
}

impl Message {
    /// The kind of frame that carries it.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Describe(_) => Kind::Describe,
            Message::Update(_) => Kind::Update,
            Message::Adopt(_) => Kind::Adopt,
            Message::Adopted(_) => Kind::Adopted,
            Message::Fenced(_) => Kind::Fenced,
            Message::EventAck(_) => Kind::EventAck,
            Message::Resync(_) => Kind::Resync,
            Message::GoAway(_) => Kind::GoAway,
            Message::Preferred(_) => Kind::Preferred,
            Message::Redirect(_) => Kind::Redirect,
            Message::Envelope(_) => Kind::Envelope,
            Message::ExclusiveDial(_) => Kind::ExclusiveDial,
            Message::ExclusiveHere(_) => Kind::ExclusiveHere,
            Message::ExclusiveBind(_) => Kind::ExclusiveBind,
            Message::OutcomeAck(_) => Kind::OutcomeAck,
        }
    }

    /// Its body.
    pub fn encode(&self) -> Bytes {
        match self {
            Message::Describe(body) => encode(body),
            Message::Update(body) => encode(body),
            Message::Adopt(body) => encode(body),
            Message::Adopted(body) => encode(body),
            Message::Fenced(body) => encode(body),
            Message::EventAck(body) => encode(body),
            Message::Resync(body) => encode(body),
            Message::GoAway(body) => encode(body),
            Message::Preferred(body) => encode(body),
            Message::Redirect(body) => encode(body),
            Message::Envelope(bytes) => bytes.clone(),
            Message::ExclusiveDial(body) => encode(body),
            Message::ExclusiveHere(body) => encode(body),
            Message::ExclusiveBind(body) => encode(body),
            Message::OutcomeAck(body) => encode(body),
        }
    }

    /// Reads the body of a frame of `kind`; nothing if that kind is none of these.
    pub fn decode(kind: Kind, body: &[u8]) -> Result<Option<Self>, Fault> {
        Ok(Some(match kind {
            Kind::Describe => Message::Describe(decode(kind, body)?),
            Kind::Update => Message::Update(decode(kind, body)?),
            Kind::Adopt => Message::Adopt(decode(kind, body)?),
            Kind::Adopted => Message::Adopted(decode(kind, body)?),
            Kind::Fenced => Message::Fenced(decode(kind, body)?),
            Kind::EventAck => Message::EventAck(decode(kind, body)?),
            Kind::Resync => Message::Resync(decode(kind, body)?),
            Kind::GoAway => Message::GoAway(decode(kind, body)?),
            Kind::Preferred => Message::Preferred(decode(kind, body)?),
            Kind::Redirect => Message::Redirect(decode(kind, body)?),
            Kind::Envelope => Message::Envelope(Bytes::copy_from_slice(body)),
            Kind::ExclusiveDial => Message::ExclusiveDial(decode(kind, body)?),
            Kind::ExclusiveHere => Message::ExclusiveHere(decode(kind, body)?),
            Kind::ExclusiveBind => Message::ExclusiveBind(decode(kind, body)?),
            Kind::OutcomeAck => Message::OutcomeAck(decode(kind, body)?),
            _ => return Ok(None),
        }))
    }
}

/// A body as named MessagePack.
pub(crate) fn encode<T: Serialize>(body: &T) -> Bytes {
    let bytes = rmp_serde::to_vec_named(body).expect("plain structs of strings and numbers always encode");
    debug_assert!(bytes.len() <= BODY_BYTES_MAX, "control messages are bounded by their parts");
    bytes.into()
}

/// A body from named MessagePack, bounded in depth.
pub(crate) fn decode<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, Fault> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(body);
    decoder.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut decoder).map_err(|_| Fault::malformed(kind, "it is not the MessagePack that this kind has"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorCode;

    fn adopt() -> Adopt {
        Adopt {
            worker_incarnation: Incarnation::from_bytes([3; 16]),
            seen_term: 4,
            owner: NodeId::new("c1").expect("valid"),
            owner_incarnation: Incarnation::from_bytes([5; 16]),
            rank: Rank { view: 1, hash: 2 },
            ticket: Some(Ticket::from_bytes([6; 16])),
            ping_ms: 0,
        }
    }

    #[test]
    fn messages_return_from_their_bytes() {
        let messages = [
            Message::Adopt(adopt()),
            Message::Adopted(Adopted::Granted { term: 5, ticket: Ticket::from_bytes([7; 16]) }),
            Message::GoAway(GoAway { reason: Error::new(ErrorCode::ShuttingDown, "bye"), reconnect_after_ms: Some(50) }),
            Message::EventAck(EventAck { class: ClassName::new("core").expect("valid"), seq: 9, followed: 0 }),
        ];
        for message in messages {
            assert_eq!(Message::decode(message.kind(), &message.encode()), Ok(Some(message.clone())));
        }
    }

    #[test]
    fn unknown_fields_of_a_newer_peer_are_tolerated() {
        #[derive(Serialize)]
        struct Newer {
            term: u64,
            holder: Option<NodeId>,
            colour: &'static str,
        }
        let body = encode(&Newer { term: 3, holder: None, colour: "blue" });
        assert_eq!(Message::decode(Kind::Fenced, &body), Ok(Some(Message::Fenced(Fenced { term: 3, holder: None }))));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut body = vec![0x91; 10_000];
        body.push(0xc0);
        assert!(Message::decode(Kind::Describe, &body).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(kind in 0..Kind::ALL.len(), garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(Kind::ALL[kind], &garbage);
        }
    }
}
