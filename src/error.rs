//! The one error that callers see, with stable names.
//!
//! Every failed call ends in an [`Error`]: a [`code`](Error::code) for programs, a message for people that says what happened, to whom and what to do,
//! and, where a call was cut off, whether its work [may have been done](Error::may_have_run). The names are those of the original (checklist A10) and
//! ours; a job class may use its own through [`ErrorCode::Class`].

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::types::Incarnation;

/// Result of everything that ends in an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Stable name of an error.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $variant,)+
            /// A name of a job class, or of a newer peer.
            Class(Box<str>),
        }

        impl ErrorCode {
            /// Every code that this version knows by name.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)+];

            /// The name as it stands on the wire, in logs and in `error[…]`.
            pub fn name(&self) -> &str {
                match self {
                    $(ErrorCode::$variant => $name,)+
                    ErrorCode::Class(name) => name,
                }
            }

            /// The code of a name; an unknown name becomes [`ErrorCode::Class`].
            pub fn from_name(name: &str) -> Self {
                match name {
                    $($name => ErrorCode::$variant,)+
                    other => ErrorCode::Class(other.into()),
                }
            }
        }
    };
}

codes! {
    /// A task of this class and id runs already.
    AlreadyStarted = "already_started",
    /// The peer or the node has no room for another call now; nothing was done, try again.
    Busy = "busy",
    /// An address to listen on cannot be had.
    CannotBind = "cannot_bind",
    /// The content that arrived is not the content that was sent.
    ChecksumMismatch = "checksum_mismatch",
    /// A job class refused, without a name of its own.
    ClassError = "class_error",
    /// The link ended before the answer came.
    ConnectionFailed = "connection_failed",
    /// Another control node holds the worker under a newer term; nothing was done.
    Fenced = "fenced",
    /// Control nodes have different numbers of partitions.
    DifferentRingSizes = "different_ring_sizes",
    /// A handler of a job class panicked; the worker goes on.
    HandlerPanicked = "handler_panicked",
    /// A configuration value is wrong.
    InvalidConfig = "invalid_config",
    /// Not a regular file, or no such file.
    InvalidFile = "invalid_file",
    /// A node id, task id or class name has a character or length that is not allowed.
    InvalidName = "invalid_name",
    /// Wrong secret, or wrong name of the cluster.
    InvalidPassword = "invalid_password",
    /// A path that leads out of the file root, or is not a path.
    InvalidPath = "invalid_path",
    /// A payload that the class cannot read.
    InvalidPayload = "invalid_payload",
    /// A URL whose scheme is not `nkcluster`.
    InvalidScheme = "invalid_scheme",
    /// A selector that cannot be parsed.
    InvalidSelector = "invalid_selector",
    /// Labels that cannot be parsed.
    InvalidTokens = "invalid_tokens",
    /// A URL with a transport that does not exist.
    InvalidTransport = "invalid_transport",
    /// A URL that cannot be parsed.
    InvalidUri = "invalid_uri",
    /// An error that should not happen: a bug.
    Internal = "internal",
    /// A node called itself in a circle.
    LoopedRequest = "looped_request",
    /// Another control node owns it now; nothing was done.
    Moved = "moved",
    /// No control node could be reached, or none let us in.
    NoConnections = "no_connections",
    /// The peer has the id of another node that is alive.
    NodeIdInUse = "node_id_in_use",
    /// The worker takes no tasks in its present status.
    NodeNotReady = "node_not_ready",
    /// The worker was restarted: what ran there is gone.
    NodeRestarted = "node_restarted",
    /// The operation is not allowed, for this role or in this state.
    NotAllowed = "not_allowed",
    /// A frame that needs trust came before the proof.
    NotAuthenticated = "not_authenticated",
    /// The worker is known but has no link now; nothing was done.
    NotConnected = "not_connected",
    /// The address of a control node answers nobody, or lets nobody in.
    NotReachable = "not_reachable",
    /// The control node is a member of another cluster of several nodes.
    NotSingleNode = "not_single_node",
    /// No such node.
    NotFound = "not_found",
    /// The answer was evicted: nobody knows any more whether the work was done.
    OutcomeUnknown = "outcome_unknown",
    /// More bytes than the limit.
    PayloadTooLarge = "payload_too_large",
    /// The peer broke the protocol.
    ProtocolError = "protocol_error",
    /// The process that held the call ended.
    ProcessFailed = "process_failed",
    /// A control node was asked to join itself.
    SelfJoin = "self_join",
    /// The node is stopping; another control node will answer.
    ShuttingDown = "shutting_down",
    /// A value that cannot be parsed; the message names the key.
    SyntaxError = "syntax_error",
    /// The class has no such task, or it has ended.
    TaskNotFound = "task_not_found",
    /// No answer in time.
    Timeout = "timeout",
    /// The certificate was refused, or TLS failed otherwise.
    TlsError = "tls_error",
    /// The class has no such command.
    UnknownCommand = "unknown_command",
    /// The worker has no such class, or does not enable it.
    UnknownClass = "unknown_class",
    /// No function of this name is registered on the worker.
    UnknownFunction = "unknown_function",
    /// The class has no such request.
    UnknownRequest = "unknown_request",
    /// The class has no such kind of task.
    UnknownTask = "unknown_task",
    /// This transport is not available here.
    UnsupportedTransport = "unsupported_transport",
    /// The peers share no version of the protocol.
    UnsupportedVersion = "unsupported_version",
    /// A control node was found, but did not tell what it knows of the ring.
    UnableToGetJoinRing = "unable_to_get_join_ring",
    /// The worker failed during the call.
    WorkerFailed = "worker_failed",
    /// Writing on the other side failed; the message has the reason.
    WriteError = "write_error",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::from_name(&name))
    }
}

/// Whether the work of a failed call may have been done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The request was refused or never delivered: safe to try again.
    #[default]
    None,
    /// The request was sent and its answer is missing: it may have been done.
    Possible,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: ErrorCode,
    message: String,
    #[serde(default)]
    effect: Effect,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    addressed: Option<Incarnation>,
}

impl Error {
    /// Longest text of an error on the wire, in bytes; the rest is cut off.
    pub const TEXT_BYTES_MAX: usize = 8 * 1024;
    /// Longest name of a class's own error on the wire, in bytes.
    pub const NAME_BYTES_MAX: usize = 256;

    /// An error whose call had no effect.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), effect: Effect::None, addressed: None }
    }

    /// An error with a name of a job class.
    pub fn class(name: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::from_name(name), message)
    }

    /// The same error of a call whose work may have been done.
    pub fn after_sending(mut self) -> Self {
        self.effect = Effect::Possible;
        self
    }

    /// The same error of a call that was sent to this incarnation of a worker.
    pub fn addressed_to(mut self, incarnation: Incarnation) -> Self {
        self.addressed = Some(incarnation);
        self
    }

    /// The incarnation of the worker that the call was first sent to; a retry must reach the same one.
    pub fn addressed(&self) -> Option<Incarnation> {
        self.addressed
    }

    /// The same error with words in front that say what was tried.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same error with a text of at most [`Error::TEXT_BYTES_MAX`] and a name of at most [`Error::NAME_BYTES_MAX`], as it travels. Texts grow with
    /// every hop that adds its words, and a class may have written a whole log into one.
    pub(crate) fn bounded(&self) -> Self {
        let cut = |text: &str, max: usize| text[..text.floor_char_boundary(max)].to_owned();
        let code = match &self.code {
            ErrorCode::Class(name) => ErrorCode::Class(cut(name, Self::NAME_BYTES_MAX).into()),
            known => known.clone(),
        };
        Self { code, message: cut(&self.message, Self::TEXT_BYTES_MAX), effect: self.effect, addressed: self.addressed }
    }

    /// Stable name.
    pub fn code(&self) -> &ErrorCode {
        &self.code
    }

    /// What happened, to whom, what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// `true` if the request was sent and may have been carried out.
    pub fn may_have_run(&self) -> bool {
        self.effect == Effect::Possible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_returns_from_its_name() {
        for code in ErrorCode::ALL {
            assert_eq!(&ErrorCode::from_name(code.name()), code);
        }
    }

    #[test]
    fn unknown_name_survives_the_wire() {
        let error = Error::class("quota_exceeded", "no room").after_sending();
        let bytes = rmp_serde::to_vec_named(&error).expect("encodes");
        let back: Error = rmp_serde::from_slice(&bytes).expect("decodes");
        assert_eq!(back, error);
        assert_eq!(back.code().name(), "quota_exceeded");
        assert!(back.may_have_run());
    }
}
