//! What control nodes say to each other: everything that crosses from one to another stands here.
//!
//! It travels as the payload of a call with the verb `peer` on channel 0 of a control link, as named MessagePack, whose unknown fields are tolerated: nodes of
//! different releases work together during a rolling upgrade. A request that a node does not know is answered `unknown_request`. A call that names a node is
//! for that one: whoever stands between passes it on, with its stream.
//!
//! Version 1: the first.

use serde::{Deserialize, Serialize};

use super::events::Marks;
use super::placed::{self, Belongings, HandOvers, Stamp};
use super::proxy::state::LinkKey;
use crate::cluster::{EventFilter, FullUri, NodeInfo, NodesReply, PlacedAnswer, PlacedCall, PlacedKey, PlacedKeys, PlacedSearch};
use crate::proto::identity::Ticket;
use crate::proto::message::Describe;
use crate::types::{Incarnation, NodeId, Transport};

/// A question of another control node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PeerRequest {
    /// The workers whose proxies are there, if they match a selector.
    Nodes {
        #[serde(default)]
        select: Option<String>,
    },
    /// What is known there of one worker.
    Info { node: NodeId },
    /// A message for a placed actor that should live there.
    Placed(Box<PlacedCall>),
    /// The placed actors of a kind of which it knows.
    PlacedKeys(PlacedSearch),
    /// An actor that belongs there and comes from here.
    Arrive(Box<Belongings>),
    /// A copy to be kept for the case that we die.
    Keep(Box<Belongings>),
    /// The actor is over: a copy that is not newer goes.
    Discard {
        key: PlacedKey,
        stamp: Stamp,
        /// Those that it went back to.
        #[serde(default)]
        hand_overs: HandOvers,
    },
    /// What is known there of an actor that starts here; a live one ends there.
    Surrender { key: PlacedKey, hash: u64 },
    /// Drop the proxy of a worker.
    Forget { node: NodeId },
    /// Live events of the workers whose proxies are there, over the stream of the call.
    Subscribe(EventFilter),
    /// The owner gets a worker's link: the stream of the call is that link, as if the worker had dialled the owner itself.
    Lend(Box<Lent>),
    /// The worker whose link was lent moves to another owner: lend it to that one, with what it must know.
    Pass {
        /// The link, as it was named when it was lent.
        lease: LinkKey,
        /// The new owner.
        to: NodeId,
        /// What the old owner knows.
        package: Box<Package>,
    },
    /// What is known of a worker that is away.
    Record(Box<Record>),
    /// How many proxies are there.
    Proxies,
    /// Whom it knows as members: asked before it is joined.
    Membership,
    /// Makes the stream of this call a session of ractor_cluster, for the membership of the link on which it comes. Its envelopes carry this number.
    Session { token: u64 },
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PeerReply {
    /// Of `nodes`.
    Nodes(NodesReply),
    /// Of `info`.
    Info(Option<Box<NodeInfo>>),
    /// Of `placed`.
    Placed(PlacedAnswer),
    /// Of `placed_keys`.
    PlacedKeys(PlacedKeys),
    /// Of `surrender`.
    Surrendered {
        #[serde(default)]
        record: Option<placed::Record>,
        /// The last record of an actor of the key that is over.
        #[serde(default)]
        over: Option<Stamp>,
    },
    /// Of `keep`: the actor is over, and this was its last record. Nothing was kept.
    Over { stamp: Stamp },
    /// Of `proxies`.
    Proxies(u32),
    /// Of `membership`.
    Membership(JoinFacts),
    /// Nothing to tell.
    Done,
}

/// A link that one control node has with a worker, and another one uses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lent {
    /// Who has the socket.
    pub(super) via: NodeId,
    /// How it calls the link.
    pub(super) lease: LinkKey,
    /// The worker, as it has proved itself there.
    pub(super) worker: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) version: u16,
    /// What it said of itself.
    pub(super) describe: Describe,
    /// Whether the worker was dialled there: decides who numbers odd and who even.
    pub(super) dialled: bool,
    /// Where it was found, if it was dialled.
    #[serde(default)]
    pub(super) found_at: Option<FullUri>,
    pub(super) transport: Transport,
    /// Its address, as shown to people.
    pub(super) remote: String,
    /// Of a hand-over: the worker obeys the sender, which passes it on.
    #[serde(default)]
    pub(super) package: Option<Box<Package>>,
}

/// What the old owner of a worker gives to the new one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Package {
    /// Lets the worker accept the new owner.
    pub(super) ticket: Ticket,
    /// The term under which it obeys the old one.
    pub(super) term: u64,
    /// What the worker said last of itself, with that term.
    pub(super) describe: Describe,
    /// Running tasks, as it counted them last.
    #[serde(default)]
    pub(super) tasks: u32,
    /// How far each class has come.
    #[serde(default)]
    pub(super) marks: Vec<Marks>,
    /// The record of the worker, so that those of the new owner are newer.
    #[serde(default)]
    pub(super) record: Option<Box<Record>>,
}

/// What outlives the proxy of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) worker: NodeId,
    #[serde(default)]
    pub(super) incarnation: Option<Incarnation>,
    /// What it said last of itself.
    #[serde(default)]
    pub(super) describe: Option<Describe>,
    /// Where it was dialled last, with success.
    #[serde(default)]
    pub(super) found_at: Option<FullUri>,
    /// How far each class has come.
    #[serde(default)]
    pub(super) marks: Vec<Marks>,
    /// It was forgotten: nobody brings it back but the worker itself.
    #[serde(default)]
    pub(super) forgotten: bool,
    /// Grows with each change at its owner; the newer one stays.
    #[serde(default)]
    pub(super) version: u64,
}

/// What decides whether two control nodes can be members of one cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JoinFacts {
    pub(super) ring_size: u32,
    /// Everybody in its live set.
    pub(super) live: Vec<NodeId>,
}
