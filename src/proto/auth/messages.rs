//! The four messages and the refusal: MessagePack maps with named fields, so that a newer peer may say more.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::error::ErrorCode;
use crate::proto::auth::{
    AuthError, AuthFrame, Binding, FEATURES_MAX, FRAME_BYTES_MAX, KIND_CLIENT_FIRST, KIND_CLIENT_PROOF, KIND_REFUSAL, KIND_SERVER_FIRST,
    KIND_SERVER_PROOF, NONCE_BYTES, Role, VERSIONS_MAX,
};
use crate::types::{Incarnation, NodeId};

/// Deepest nesting in a message of the handshake, unknown fields included.
const DEPTH_MAX: usize = 16;
/// Most bytes of a code or message of a refusal that we keep.
const REFUSAL_TEXT_MAX: usize = 400;
/// Longest pause that an untrusted peer may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How a side stretches passwords: declared, compared, never obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kdf {
    /// Iterations of PBKDF2-HMAC-SHA-256.
    pub iterations: u32,
}

/// 1: the dialler introduces itself and says whom it wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFirst {
    /// Versions of the wire that it speaks.
    pub versions: Vec<u16>,
    /// Optional features that it offers.
    #[serde(default)]
    pub features: Vec<String>,
    /// Name of its cluster.
    pub cluster: String,
    /// Its role on this link.
    pub role: Role,
    /// Its id.
    pub id: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The role that it wants to talk to.
    pub expect_role: Role,
    /// The node that it wants to talk to; any, if missing.
    #[serde(default)]
    pub expect_id: Option<NodeId>,
    /// Random bytes.
    pub nonce: ByteArray<NONCE_BYTES>,
    /// How it ties the handshake to the channel.
    pub binding: Binding,
    /// How it stretches passwords.
    pub kdf: Kdf,
}

/// 2: the listener introduces itself; nothing here is made of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFirst {
    /// The version of this link.
    pub version: u16,
    /// Those of the dialler's features that the listener has too.
    #[serde(default)]
    pub features: Vec<String>,
    /// Its role.
    pub role: Role,
    /// Its id.
    pub id: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Random bytes.
    pub nonce: ByteArray<NONCE_BYTES>,
    /// How it ties the handshake to the channel.
    pub binding: Binding,
    /// How it stretches passwords.
    pub kdf: Kdf,
}

/// 3: the dialler proves itself. Holds nothing but proofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientProof {
    /// Proof of the secret.
    pub proof: ByteArray<32>,
    /// Signature of a control node.
    #[serde(default)]
    pub signature: Option<ByteArray<64>>,
}

/// 4: the listener proves itself. Holds nothing but proofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerProof {
    /// Proof of the secret.
    pub proof: ByteArray<32>,
    /// Signature of a control node.
    #[serde(default)]
    pub signature: Option<ByteArray<64>>,
}

/// 5: the listener ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable name of the reason.
    pub code: ErrorCode,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// When to try again, in milliseconds.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal that says nothing about another attempt.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    /// The same refusal, with a time for the next attempt.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The pause that was asked for; an untrusted peer gets at most a minute.
    pub fn pause(&self) -> Option<Duration> {
        self.retry_after_ms.map(|ms| Duration::from_millis(ms).min(RETRY_AFTER_MAX))
    }

    /// What a stranger wrote, made fit for logs and terminals: bounded, without control characters.
    fn cleaned(self) -> Self {
        let code = ErrorCode::from_name(&clean(self.code.name()));
        Self { code, message: clean(&self.message), retry_after_ms: self.retry_after_ms }
    }
}

/// A message with its place in the exchange.
pub(super) trait Message: Serialize + DeserializeOwned {
    const KIND: u8;

    /// Bounds that the type alone does not give.
    fn check(&self) -> Result<(), AuthError> {
        Ok(())
    }

    fn encode(&self) -> AuthFrame {
        let body = rmp_serde::to_vec_named(self).expect("plain structs of strings, numbers and bytes always encode");
        AuthFrame { kind: Self::KIND, body }
    }

    fn decode(body: &[u8]) -> Result<Self, AuthError> {
        // Kind and channel count to the frame.
        if body.len() + 3 > FRAME_BYTES_MAX {
            return Err(AuthError::TooLarge { bytes: body.len() as u64 + 3 });
        }
        let mut decoder = rmp_serde::Deserializer::from_read_ref(body);
        decoder.set_max_depth(DEPTH_MAX);
        let message = Self::deserialize(&mut decoder).map_err(|_| AuthError::Malformed("not the expected fields"))?;
        message.check()?;
        Ok(message)
    }
}

impl Message for ClientFirst {
    const KIND: u8 = KIND_CLIENT_FIRST;

    fn check(&self) -> Result<(), AuthError> {
        if self.versions.len() > VERSIONS_MAX {
            return Err(AuthError::Malformed("too many versions"));
        }
        check_features(&self.features)
    }
}

impl Message for ServerFirst {
    const KIND: u8 = KIND_SERVER_FIRST;

    fn check(&self) -> Result<(), AuthError> {
        check_features(&self.features)
    }
}

impl Message for ClientProof {
    const KIND: u8 = KIND_CLIENT_PROOF;
}

impl Message for ServerProof {
    const KIND: u8 = KIND_SERVER_PROOF;
}

impl Message for Refusal {
    const KIND: u8 = KIND_REFUSAL;
}

impl Refusal {
    /// The frame that carries it.
    pub fn to_frame(&self) -> AuthFrame {
        self.encode()
    }

    /// Reads the body of a frame of kind [`KIND_REFUSAL`].
    ///
    /// # Errors
    /// If it is not a refusal.
    pub fn from_body(body: &[u8]) -> Result<Self, AuthError> {
        Self::decode(body).map(Self::cleaned)
    }
}

fn check_features(features: &[String]) -> Result<(), AuthError> {
    if features.len() > FEATURES_MAX {
        return Err(AuthError::Malformed("too many features"));
    }
    Ok(())
}

fn clean(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut bytes = 0;
    printable
        .take_while(|c| {
            bytes += c.len_utf8();
            bytes <= REFUSAL_TEXT_MAX
        })
        .collect()
}
