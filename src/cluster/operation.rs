//! Operations that a control node answers itself, and the values that they return.

use serde::{Deserialize, Serialize};

use super::placed::{PlacedAnswer, PlacedCall, PlacedKeys, PlacedSearch};
use crate::proto::head::Rank;
use crate::proto::message::BuiltinEvent;
use crate::types::{ClassName, Incarnation, Meta, NodeId, NodeStats, NodeStatus, NodeUri, Payload, TaskId};

/// An operation of the cluster itself; travels as the payload of a call with the verb `cluster`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Every node that matches a selector.
    Nodes {
        /// Text of the selector.
        #[serde(default)]
        select: Option<String>,
    },
    /// One node.
    Info {
        /// Which.
        node: NodeId,
    },
    /// Attaches a worker by address.
    Connect {
        /// Where it listens.
        uri: FullUri,
    },
    /// Drops the proxy of a node.
    Forget {
        /// Which.
        node: NodeId,
    },
    /// Every control node.
    Members,
    /// Who owns which partition.
    Ring,
    /// Makes the control node that is asked and the one at an address members of one cluster.
    Join {
        /// Where it listens.
        uri: FullUri,
    },
    /// Asks a control node to leave for good.
    Leave {
        /// Which.
        node: NodeId,
    },
    /// What a commit would move.
    Plan,
    /// Lets every staged node join.
    Commit,
    /// Live events over the stream of the call.
    Subscribe(EventFilter),
    /// A message for a placed actor.
    Placed(Box<PlacedCall>),
    /// The placed actors of a kind.
    PlacedKeys(PlacedSearch),
    /// The control node that owns the name of a class.
    Leader {
        /// The class.
        class: ClassName,
    },
}

/// What an operation returns.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationReply {
    /// Of `nodes`.
    Nodes(NodesReply),
    /// Of `info`.
    Info(Box<NodeInfo>),
    /// Of `connect`.
    Connected {
        /// Who answered there.
        node: NodeId,
    },
    /// Of `placed`.
    Placed(PlacedAnswer),
    /// Of `placed_keys`.
    PlacedKeys(PlacedKeys),
    /// Of `leader`.
    Leader {
        /// The control node.
        node: NodeId,
    },
    /// Of `members`.
    Members(Vec<MemberInfo>),
    /// Of `ring`.
    Ring(RingInfo),
    /// Of `join`.
    Joined {
        /// Who answered there.
        node: NodeId,
        /// What it is for the node that was asked, as in `members`.
        state: String,
    },
    /// Of `plan`.
    Plan(PlanInfo),
    /// Of `commit`.
    Committed {
        /// Who has joined.
        nodes: Vec<NodeId>,
    },
    /// Nothing to tell.
    Done,
}

/// A control node, as the one that was asked sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its id.
    pub id: NodeId,
    /// `joined`, `suspected`, `staged`, `leaving`, `left` (still running), `stopped` (as asked), `unreachable`, or `refused` (it cannot be a member; see `problem`).
    pub state: String,
    /// One life of its process; none if it was not heard of since the node that was asked started.
    pub incarnation: Option<Incarnation>,
    /// Where it listens.
    pub listen: Vec<NodeUri>,
    /// Partitions that it owns.
    pub partitions: u32,
    /// Proxies that it hosts; none if it did not say.
    pub proxies: Option<u32>,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
    /// What somebody should look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<crate::error::Error>,
    /// Only of the node that was asked: it changes nothing now, because it was asleep, sees too few others, or its id is another's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

/// Who owns which partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingInfo {
    /// Number of partitions.
    pub size: u32,
    /// Digest of the live set, in hexadecimal digits: equal where the rings are.
    pub epoch: String,
    /// The owner of each partition, in their order; empty if nobody owns anything.
    pub owners: Vec<NodeId>,
}

/// What a commit would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanInfo {
    /// Who would join.
    pub staged: Vec<NodeId>,
    /// Partitions of the ring.
    pub size: u32,
    /// Partitions that would move.
    pub moved: u32,
    /// From whom to whom.
    pub transfers: Vec<TransferInfo>,
}

/// Partitions that one control node gives to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferInfo {
    /// Who gives; nobody if nobody owned them.
    pub from: Option<NodeId>,
    /// Who gets.
    pub to: Option<NodeId>,
    /// How many.
    pub partitions: u32,
}

/// Text of an address, its password included; only travels on authenticated links and never stands in a log.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FullUri(String);

impl FullUri {
    /// The text of an address with its password.
    pub(crate) fn new(uri: &NodeUri) -> Self {
        let mut text = uri.clone().without_secrets().to_string();
        if let Some(password) = &uri.options().password {
            // In quotes, so that no character of it means anything else.
            text.push_str(";password=\"");
            text.extend(password.expose().chars().flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c])));
            text.push('"');
        }
        Self(text)
    }

    /// Reads the address.
    pub fn parse(&self) -> crate::Result<NodeUri> {
        self.0.parse()
    }
}

impl std::fmt::Debug for FullUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FullUri(***)")
    }
}

/// Nodes, and the control nodes that did not answer in time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodesReply {
    /// In the order of their ids.
    pub nodes: Vec<NodeInfo>,
    /// Control nodes whose workers may be missing.
    #[serde(default)]
    pub silent: Vec<NodeId>,
}

/// What the cluster knows of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its status; `not_connected` if it has no link.
    pub status: NodeStatus,
    /// The control node that holds its proxy.
    pub owner: Option<NodeId>,
    /// Its address on the link, as `tcp:127.0.0.1:15004`.
    pub remote: Option<String>,
    /// Where it listens.
    pub listen: Vec<NodeUri>,
    /// Its labels.
    pub meta: Meta,
    /// Median of the last round trips, milliseconds.
    pub latency_ms: Option<f64>,
    /// Running tasks.
    pub tasks: u32,
    /// Version of its program.
    pub version: String,
    /// Classes that it runs.
    pub classes: Vec<ClassName>,
    /// Its last statistics.
    pub stats: Option<NodeStats>,
    /// One life of its process.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
    /// The last round trips in percentiles, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyInfo>,
    /// Difference of its wall clock to the control node's, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_ms: Option<i64>,
    /// Its proxies; more than one while a split heals. Only in `info`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<ProxyInfo>,
}

/// The last round trips of a proxy's pings, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LatencyInfo {
    pub count: u32,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// A proxy of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProxyInfo {
    /// The control node that hosts it.
    pub owner: NodeId,
    /// Incarnation of that control node.
    pub incarnation: Incarnation,
    /// The term under which the worker obeys it; 0 if it never did.
    pub term: u64,
    /// How strong its claim is.
    pub rank: Rank,
    /// Whether the worker obeys it now.
    pub active: bool,
}

/// Which events a subscriber wants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventFilter {
    /// Only of this class.
    #[serde(default)]
    pub class: Option<ClassName>,
    /// Only of this node.
    #[serde(default)]
    pub node: Option<NodeId>,
}

impl EventFilter {
    /// Whether it wants an event.
    pub fn wants(&self, record: &EventRecord) -> bool {
        self.class.as_ref().is_none_or(|class| *class == record.class) && self.node.as_ref().is_none_or(|node| *node == record.node)
    }
}

/// One event, as it comes to a subscriber.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The worker.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The class.
    pub class: ClassName,
    /// Number within worker incarnation and class; 0 for what the control node says itself.
    pub seq: u64,
    /// Wall clock of the worker, milliseconds since 1970.
    pub time_ms: u64,
    /// The task that sent it, or that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// What happened.
    pub event: EventBody,
}

/// Content of an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventBody {
    /// Of the class.
    Class(Payload),
    /// Of ours.
    Nkcluster(BuiltinEvent),
}

impl EventRecord {
    /// The record as the command line prints it.
    ///
    /// # Errors
    /// `invalid_payload` if the class sent something that is not MessagePack.
    pub fn to_json(&self) -> crate::Result<serde_json::Value> {
        let event = match &self.event {
            EventBody::Class(payload) => payload.to_json()?,
            EventBody::Nkcluster(event) => serde_json::json!({ "nkcluster": event }),
        };
        let mut document =
            serde_json::json!({ "node": self.node, "class": self.class, "seq": self.seq, "time": self.time_ms, "event": event });
        if let Some(task) = &self.task {
            document["task"] = serde_json::json!(task);
        }
        Ok(document)
    }
}
