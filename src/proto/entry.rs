//! What the event journal of a worker tells the control side.
//!
//! Beside the events of the job classes themselves the journal carries those that the framework
//! makes (checklist N7.12): a task has started or stopped, the status of the worker has changed.
//! Sequence numbers count from 1 per worker incarnation and class, without holes: a number that
//! does not come as an entry comes inside a gap.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{ClassName, NodeStatus, Payload, TaskId};

/// Longest text of an [`EndReason`], in bytes; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 1024;

/// Why a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// It was done.
    Normal,
    /// It was stopped from outside.
    Killed,
    /// It failed, in its own words.
    Error(String),
    /// It panicked, with this message.
    Panicked(String),
    /// Its worker was restarted; only the control side says so.
    NodeRestarted,
}

impl EndReason {
    /// A failure; a text longer than [`REASON_BYTES_MAX`] is cut.
    pub fn error(text: impl Into<String>) -> Self {
        Self::Error(cut(text.into()))
    }

    /// A panic; a text longer than [`REASON_BYTES_MAX`] is cut.
    pub fn panicked(text: impl Into<String>) -> Self {
        Self::Panicked(cut(text.into()))
    }

    /// The same reason with a text of at most [`REASON_BYTES_MAX`].
    pub fn bounded(self) -> Self {
        match self {
            Self::Error(text) => Self::error(text),
            Self::Panicked(text) => Self::panicked(text),
            short => short,
        }
    }

    /// Text of a failure or panic; empty for the others.
    pub fn text(&self) -> &str {
        match self {
            Self::Error(text) | Self::Panicked(text) => text,
            Self::Normal | Self::Killed | Self::NodeRestarted => "",
        }
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    text
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::Killed => f.write_str("killed"),
            Self::Error(text) => write!(f, "error: {text}"),
            Self::Panicked(text) => write!(f, "panicked: {text}"),
            Self::NodeRestarted => f.write_str("node_restarted"),
        }
    }
}

/// What an entry of the journal is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// An event of the class; the payload is its own.
    Class,
    /// The same, sent by one of its tasks.
    OfTask(TaskId),
    /// A task has started.
    TaskStarted(TaskId),
    /// A task has ended, however it came.
    TaskStopped {
        /// The task.
        id: TaskId,
        /// Why.
        reason: EndReason,
    },
    /// The status of the worker has changed.
    NodeStatus(NodeStatus),
}

/// One event on its way from a worker to the control side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number within the class, from 1.
    pub seq: u64,
    /// Class whose event it is.
    pub class: ClassName,
    /// Wall clock of the worker when it happened, in milliseconds since 1970, for people only.
    pub time_ms: u64,
    /// What it is about.
    pub kind: EntryKind,
    /// Opaque to everybody but the class; empty unless `kind` is [`EntryKind::Class`] or [`EntryKind::OfTask`].
    pub payload: Payload,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_reason_is_cut_at_a_character(text in "(\\PC|é){0,2000}") {
            let EndReason::Error(short) = EndReason::Error(text.clone()).bounded() else {
                return Err(TestCaseError::fail("the kind of a reason changed"));
            };
            prop_assert!(text.starts_with(&short));
            prop_assert!(short.len() <= REASON_BYTES_MAX);
            prop_assert!(short.len() == text.len() || short.len() > REASON_BYTES_MAX - 4);
        }
    }

    #[test]
    fn names_are_those_of_the_original() {
        let json = |reason: EndReason| serde_json::to_string(&reason).expect("encodes");
        assert_eq!(json(EndReason::Normal), r#""normal""#);
        assert_eq!(json(EndReason::Killed), r#""killed""#);
        assert_eq!(json(EndReason::error("disk full")), r#"{"error":"disk full"}"#);
        assert_eq!(json(EndReason::NodeRestarted), r#""node_restarted""#);
        assert_eq!(EndReason::panicked("index").to_string(), "panicked: index");
    }
}
