//! How two nodes prove to each other that they belong to one cluster.
//!
//! The problem: whoever reaches a port may be anybody, and whoever answers at an address may be anybody too. Both hold a secret, and neither may give
//! away anything of it to the other before the other has shown that it holds it as well.
//!
//! The answer is a SCRAM-SHA-256 exchange (RFC 5802) of four messages in which **the dialler proves first**:
//!
//! ```text
//!   dialler                                                                        listener
//!      │ 1 ClientFirst  versions, features, cluster, role, id, expectations, nonce     │
//!      ├──────────────────────────────────────────────────────────────────────────────►│
//!      │ 2 ServerFirst  version, features, role, id, nonce: nothing made of a secret   │
//!      │◄──────────────────────────────────────────────────────────────────────────────┤
//!      │ 3 ClientProof  proof over 1, 2 and the channel (and a signature)              │
//!      ├──────────────────────────────────────────────────────────────────────────────►│
//!      │ 4 ServerProof  proof over 1, 2, 3 and the channel (and a signature)           │
//!      │◄──────────────────────────────────────────────────────────────────────────────┤
//! ```
//!
//! Instead of an answer, the listener may send a [`Refusal`]. What makes this safe:
//!
//! - Salt and iterations are configuration, never taken from a peer; keys are computed once per process ([`Keyring`]).
//! - Proofs are made over a [`Transcript`] of the raw bytes of all messages, the kind of channel binding and the exporter of the TLS connection
//!   (RFC 9266), so nothing can be replayed, reflected, downgraded or relayed to another channel.
//! - A link uses the secret of its [weaker](Role::weaker) role, so a worker never holds anything of the control secret; a control node may also sign
//!   ([`ControlKey`]), so that a stolen worker cannot play a control node.
//! - A wrong name of the cluster, an unknown secret and a wrong proof take one path and get one answer.
//!
//! Everything here is pure: bytes, nonces and facts of the channel come in as arguments, messages and verdicts come out. Limits of time and the delay
//! after a wrong proof belong to the shell, `connection::establish`.

mod control_key;
mod dialler;
mod error;
mod keyring;
mod keys;
mod listener;
mod messages;
#[cfg(test)]
mod tests;
mod transcript;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, NodeId};

pub use control_key::ControlKey;
pub use dialler::{Dialler, DiallerChannel, DiallerSetup, DiallerStep};
pub use error::AuthError;
pub use keyring::{Keyring, KeyringInput};
pub use keys::{LinkKeys, NodeToken, SaltedPassword};
pub use listener::{Listener, ListenerChannel, ListenerSetup, ListenerStep};
pub use messages::{ClientFirst, ClientProof, Kdf, Refusal, ServerFirst, ServerProof};
pub use transcript::{Binding, Direction, Transcript};

/// Versions of the wire that this program speaks. 1: the first.
pub const VERSIONS: &[u16] = &[1];
/// Most bytes of one frame (kind, channel and body) before the peer is trusted.
pub const FRAME_BYTES_MAX: usize = 4096;
/// Most versions that a peer may offer.
pub const VERSIONS_MAX: usize = 32;
/// Most features that a peer may offer.
pub const FEATURES_MAX: usize = 64;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// Kind of the frame that carries [`ClientFirst`].
pub const KIND_CLIENT_FIRST: u8 = 1;
/// Kind of the frame that carries [`ServerFirst`].
pub const KIND_SERVER_FIRST: u8 = 2;
/// Kind of the frame that carries [`ClientProof`].
pub const KIND_CLIENT_PROOF: u8 = 3;
/// Kind of the frame that carries [`ServerProof`].
pub const KIND_SERVER_PROOF: u8 = 4;
/// Kind of the frame that carries a [`Refusal`].
pub const KIND_REFUSAL: u8 = 5;

/// What a peer is on a link, and whose secret the link needs.
///
/// Ordered by power: worker < admin < control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Offers its job classes to the control nodes.
    Worker,
    /// A person, a script or an application that uses the cluster.
    Admin,
    /// A control node.
    Control,
}

impl Role {
    /// Every role, weakest first.
    pub const ALL: [Role; 3] = [Role::Worker, Role::Admin, Role::Control];

    /// The weaker of two roles: the secret of a link between them is that of this role.
    pub fn weaker(a: Role, b: Role) -> Role {
        a.min(b)
    }

    /// Name on the wire, in configuration and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Role::Worker => "worker",
            Role::Admin => "admin",
            Role::Control => "control",
        }
    }

    /// The roles that a listener of this role lets in: workers accept only control nodes, control nodes everybody, an admin nobody.
    pub fn accepts(self) -> &'static [Role] {
        match self {
            Role::Worker => &[Role::Control],
            Role::Admin => &[],
            Role::Control => &Role::ALL,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who this process is, as it tells its peers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the cluster; part of the salt, and compared.
    pub cluster: String,
    /// Own role.
    pub role: Role,
    /// Own id.
    pub id: NodeId,
    /// Random bits of this start of the process.
    pub incarnation: Incarnation,
    /// Versions of the wire that are offered; see [`VERSIONS`].
    pub versions: Vec<u16>,
    /// Names of optional features that are offered, at most [`FEATURES_MAX`].
    pub features: Vec<String>,
}

/// The other side of a link, proved and agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its role on this link.
    pub role: Role,
    /// Its id.
    pub id: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The highest version of the wire that both speak.
    pub version: u16,
    /// The features that both offer, sorted.
    pub features: Vec<String>,
}

/// A frame of the handshake, without its length and channel (which is 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthFrame {
    /// One of the `KIND_…` constants.
    pub kind: u8,
    /// MessagePack body.
    pub body: Vec<u8>,
}
