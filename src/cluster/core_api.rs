//! The vocabulary of the built-in class `core` (checklist A8). The class itself is `job::core`.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::operation::NodeInfo;
use crate::types::{ClassName, Meta, NodeStatus, TaskId, WantedStatus};

/// Name of the class.
pub const CORE_CLASS: &str = "core";

/// Name of the class, as a value.
pub fn core_class() -> ClassName {
    static NAME: OnceLock<ClassName> = OnceLock::new();
    NAME.get_or_init(|| ClassName::new(CORE_CLASS).expect("`core` is a valid name")).clone()
}

/// A request of the class `core`. In JSON: `"ping"`, `{"set_status":"standby"}`, `{"call":{"function":"echo","args":[1]}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoreRequest {
    /// The worker's wall clock.
    Ping,
    /// What the worker knows of itself.
    Info,
    /// Its status.
    Status,
    /// Changes its status.
    SetStatus(WantedStatus),
    /// Its tasks, of one class or all.
    Tasks {
        /// Only of this class.
        #[serde(default)]
        class: Option<ClassName>,
    },
    /// Ends a task.
    StopTask {
        /// Its class.
        class: ClassName,
        /// Its id.
        id: TaskId,
    },
    /// Its labels.
    Meta,
    /// Replaces the value of each of these labels, adds new ones.
    UpdateMeta(Meta),
    /// Removes labels by name.
    RemoveMeta(Vec<String>),
    /// A value of the key/value store; null if missing.
    GetData(String),
    /// Stores a value.
    PutData {
        /// The key.
        key: String,
        /// The value.
        value: serde_json::Value,
    },
    /// Deletes a value.
    DelData(String),
    /// Calls a registered function.
    Call {
        /// Its name.
        function: String,
        /// Its arguments.
        #[serde(default)]
        args: Vec<serde_json::Value>,
    },
    /// Names of the registered functions.
    Functions,
    /// Moves a file over the stream of the call.
    File(FileRequest),
}

/// What the stream of a [`CoreRequest::File`] carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRequest {
    /// The protocol of `transfer`, which says itself which file goes which way.
    Transfer,
}

/// What the class `core` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoreReply {
    /// Milliseconds since 1970.
    Pong {
        /// The worker's wall clock.
        time_ms: u64,
    },
    /// Of itself.
    Info(Box<NodeInfo>),
    /// Its status.
    Status(NodeStatus),
    /// Its tasks.
    Tasks(Vec<TaskEntry>),
    /// Its labels.
    Meta(Meta),
    /// A value.
    Value(serde_json::Value),
    /// Names of functions.
    Functions(Vec<String>),
    /// Done, with nothing to tell.
    Done,
    /// A file was moved.
    File {
        /// Bytes of the file.
        bytes: u64,
    },
}

/// A task as it stands in lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// Its class.
    pub class: ClassName,
    /// Its id.
    pub id: TaskId,
    /// When it started, milliseconds since 1970.
    pub started: u64,
    /// What it does now.
    pub state: TaskState,
}

/// State of a listed task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Its class is starting it.
    Starting,
    /// It runs.
    Running,
    /// It was told to stop.
    Stopping,
}
