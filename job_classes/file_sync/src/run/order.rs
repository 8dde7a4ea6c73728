//! What a run is asked to do, in words that travel.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::options::{Audience, Options, OptionsJson};
use crate::plan::Task;
use crate::remote::without_secrets;

/// A copy, sync, move or delete, as an operator says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// What is done.
    pub kind: Task,
    /// Where files come from, in rclone's syntax; nothing for a delete.
    #[serde(default)]
    pub source: String,
    /// Where they go, or what is deleted.
    pub destination: String,
    /// Options that differ from their defaults, as in rclone's `_config`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// Filters that differ from their defaults, as in rclone's `_filter`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub filter: Map<String, Value>,
}

/// Why an order cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OrderError(pub(crate) String);

impl Order {
    /// An order with options.
    pub fn new(kind: Task, source: impl Into<String>, destination: impl Into<String>, options: &Options) -> Self {
        let OptionsJson { config, filter } = options.to_json(Audience::Controller);
        Self { kind, source: source.into(), destination: destination.into(), config, filter }
    }

    /// The options.
    ///
    /// # Errors
    /// A value that cannot be read, a name that is not known, or options that exclude each other.
    pub fn options(&self) -> Result<Options, OrderError> {
        let json = OptionsJson { config: self.config.clone(), filter: self.filter.clone() };
        let (options, unknown) = Options::from_json(&json).map_err(|error| OrderError(error.to_string()))?;
        if !unknown.is_empty() {
            return Err(OrderError(format!("unknown options: {}", unknown.join(", "))));
        }
        options.checked().map_err(|error| OrderError(error.to_string()))
    }

    /// The source for people, without secrets.
    pub fn shown_source(&self) -> String {
        without_secrets(&self.source)
    }

    /// The destination for people, without secrets.
    pub fn shown_destination(&self) -> String {
        without_secrets(&self.destination)
    }
}
