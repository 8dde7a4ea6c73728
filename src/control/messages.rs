//! What control nodes say to each other: everything that crosses from one to another stands here.
//!
//! It travels as the payload of a call with the verb `peer` on channel 0 of a control link, as named MessagePack, whose unknown fields are tolerated: nodes of
//! different releases work together during a rolling upgrade. A request that a node does not know is answered `unknown_request`.
//!
//! Version 1: the first.

use serde::{Deserialize, Serialize};

use crate::cluster::{NodeInfo, NodesReply};
use crate::types::NodeId;

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
    /// Of `proxies`.
    Proxies(u32),
    /// Of `membership`.
    Membership(JoinFacts),
    /// Nothing to tell.
    Done,
}

/// What decides whether two control nodes can be members of one cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JoinFacts {
    pub(super) ring_size: u32,
    /// Everybody in its live set.
    pub(super) live: Vec<NodeId>,
}
