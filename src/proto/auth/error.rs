//! Why a handshake ended: in full for our log, in one careful word for the peer.

use crate::error::{Error, ErrorCode};
use crate::proto::auth::{Binding, KIND_REFUSAL, Refusal, Role};
use crate::types::NodeId;

/// What every peer hears whose cluster, secret or key settings are not ours, whichever of them it is.
const WRONG_SECRET: &str = "wrong secret, name of the cluster or pbkdf2_iters";

/// Why a handshake ended. The machine that returned it takes no further frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A frame that is not what its kind says.
    #[error("malformed handshake message: {0}")]
    Malformed(&'static str),
    /// A frame longer than [`FRAME_BYTES_MAX`](crate::proto::auth::FRAME_BYTES_MAX).
    #[error("handshake frame of {bytes} bytes is longer than allowed")]
    TooLarge {
        /// Length that the peer announced.
        bytes: u64,
    },
    /// A frame that does not belong here: out of order, or one that needs trust.
    #[error("frame of kind {kind} before the peer has proved itself")]
    UnexpectedFrame {
        /// Kind of the frame.
        kind: u8,
    },
    /// The dialler offers no version that we speak.
    #[error("no common version of the protocol: we speak {ours:?}, the peer {theirs:?}")]
    UnsupportedVersion {
        /// Our versions.
        ours: Vec<u16>,
        /// Those of the peer.
        theirs: Vec<u16>,
    },
    /// The sides stretch the password differently; nothing was computed.
    #[error("pbkdf2_iters differ: {ours} here, {theirs} at the peer; set the same value on all nodes")]
    Iterations {
        /// Our configuration.
        ours: u32,
        /// What the peer declared.
        theirs: u32,
    },
    /// The dialler did not prove the secret (or is of another cluster, which it is not told).
    #[error("{0}")]
    WrongSecret(&'static str),
    /// The listener could not prove that it knows the secret, although it accepted our proof: an impostor.
    #[error("the listener did not prove that it knows the secret")]
    ImpostorListener,
    /// A control node did not sign, or with another key than the configured one.
    #[error("the peer claims to be a control node, but its signature does not match control_key")]
    WrongSignature,
    /// The peers disagree about the channel under them, or would give up its protection.
    #[error("channel binding `{}` is not acceptable here (expected `{}`)", .offered.name(), .expected.name())]
    Binding {
        /// What the peer said.
        offered: Binding,
        /// What this channel needs.
        expected: Binding,
    },
    /// Our own message or nonce came back.
    #[error("the peer sent our own message back")]
    Reflected,
    /// The peer is not of the role that it should be.
    #[error("the peer is of role {found}, not {expected}")]
    UnexpectedRole {
        /// The role that was asked for.
        expected: Role,
        /// The role of the node.
        found: Role,
    },
    /// This node lets nobody of that role in.
    #[error("a listener of role {ours} accepts no peer of role {theirs}")]
    RoleNotAccepted {
        /// Our role.
        ours: Role,
        /// That of the peer.
        theirs: Role,
    },
    /// Another node than the one that was asked for.
    #[error("this is node {found}, not {expected}")]
    UnexpectedId {
        /// The id that was asked for.
        expected: NodeId,
        /// The id of the node.
        found: NodeId,
    },
    /// We have no secret for links of this kind.
    #[error("no secret for links of role {role}: set password or {role}_password")]
    NoSecret {
        /// The weaker role of the link.
        role: Role,
    },
    /// The listener refused.
    #[error("refused: {}", .0.message)]
    Refused(Refusal),
    /// The machine had ended before.
    #[error("the handshake is over")]
    Over,
}

impl AuthError {
    /// The stable name, as it stands in our log and in the error of a caller.
    pub fn code(&self) -> ErrorCode {
        match self {
            AuthError::Malformed(_) | AuthError::TooLarge { .. } | AuthError::Reflected | AuthError::Over => ErrorCode::ProtocolError,
            AuthError::UnexpectedFrame { kind } if *kind <= KIND_REFUSAL => ErrorCode::ProtocolError,
            AuthError::UnexpectedFrame { .. } => ErrorCode::NotAuthenticated,
            AuthError::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            AuthError::Iterations { .. } | AuthError::WrongSecret(_) | AuthError::ImpostorListener | AuthError::WrongSignature => {
                ErrorCode::InvalidPassword
            }
            AuthError::Binding { .. } => ErrorCode::TlsError,
            AuthError::UnexpectedRole { .. } | AuthError::RoleNotAccepted { .. } => ErrorCode::NotAllowed,
            AuthError::UnexpectedId { .. } => ErrorCode::NotFound,
            AuthError::NoSecret { .. } => ErrorCode::InvalidConfig,
            AuthError::Refused(refusal) => refusal.code.clone(),
        }
    }

    /// What a listener tells the dialler. Whatever has to do with secrets is one and the same word.
    pub fn refusal(&self) -> Refusal {
        let message = match self {
            AuthError::Iterations { .. } | AuthError::WrongSecret(_) | AuthError::WrongSignature | AuthError::NoSecret { .. } => {
                return Refusal::new(ErrorCode::InvalidPassword, WRONG_SECRET);
            }
            AuthError::ImpostorListener | AuthError::Refused(_) | AuthError::Over => "the handshake is over".to_owned(),
            public => public.to_string(),
        };
        Refusal::new(self.code(), message)
    }

    /// Whether the answer to this failure must be late, so that guessing costs time.
    pub fn is_wrong_secret(&self) -> bool {
        matches!(self, AuthError::WrongSecret(_) | AuthError::WrongSignature)
    }
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        Error::new(error.code(), error.to_string())
    }
}
