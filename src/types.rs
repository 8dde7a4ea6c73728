//! The words of the cluster as values: names, states, labels, addresses, payloads.
//!
//! Everything here is pure: no file, socket, clock or randomness, so each value can be tested by its properties alone and every other module may use it. A value that
//! exists is right: constructors and decoders check, and what they refuse they name. All of them arrive from peers, so all of them are bounded.
//!
//! | value | is |
//! |---|---|
//! | [`NodeId`], [`TaskId`], [`ClassName`] | names, cheap to clone |
//! | [`Incarnation`] | one run of one node |
//! | [`NodeStatus`], [`WantedStatus`], [`Transition`] | the seven states of a node and the legal moves between them |
//! | [`Meta`], [`Selector`] | labels of a node, and a question about them |
//! | [`NodeUri`], [`Transport`], [`Secret`] | where a node listens, how to talk to it, what to prove |
//! | [`IpRange`] | addresses that share a prefix |
//! | [`Payload`] | the opaque body of a request, reply or event |
//! | [`NodeStats`] | load, memory and disks of a node |

mod id;
mod ip_range;
mod meta;
mod payload;
mod secret;
mod selector;
mod stats;
mod status;
mod text;
mod transport;
mod uri;

pub use id::{ClassName, Incarnation, NodeId, TaskId};
pub use ip_range::IpRange;
pub use meta::{Label, Meta};
pub use payload::Payload;
pub use secret::Secret;
pub use selector::{Selector, SelectorInput};
pub use stats::{DiskStats, NodeStats};
pub use status::{NodeStatus, Transition, WantedStatus};
pub use transport::Transport;
pub use uri::{Binding, Host, NodeUri, Proxy, ProxyAddr, TlsVerify, TlsVersion, UriOptions};
