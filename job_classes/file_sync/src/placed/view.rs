//! A run as a list of runs shows it: what it is, where it stands, and what holds it up. It follows nothing, so a run waits for nobody who looks.

use nkcluster::types::NodeId;
use serde::{Deserialize, Serialize};

use super::record::RunStart;
use crate::plan::Task;
use crate::run::End;
use crate::stats::StatsReport;

/// Files that failed of which a view names each, the latest ones.
pub(super) const FAILURES_MAX: usize = 256;

/// What a run is, without secrets; also known when it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFacts {
    /// What it does.
    pub kind: Task,
    /// Where files come from, as it is shown to people; nothing for a delete.
    pub source: String,
    /// Where they go, or what is deleted, as it is shown to people.
    pub destination: String,
    /// Its workers.
    pub selector: String,
    /// When it was ordered, in milliseconds since 1970 by the clock of the control node that took the order.
    pub begun_ms: u64,
}

impl RunFacts {
    pub(super) fn of(start: &RunStart, now_ms: u64) -> Self {
        Self {
            kind: start.order.kind,
            source: start.order.shown_source(),
            destination: start.order.shown_destination(),
            selector: start.selector.clone(),
            begun_ms: now_ms,
        }
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It cannot go on at the moment.
    Waiting,
    /// It is at work.
    Running,
    /// It rests, as it was told to.
    Paused,
    /// It was cancelled, and ends what has begun.
    Ending,
    /// It is over.
    Ended,
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ending => "ending",
            Self::Ended => "ended",
        })
    }
}

/// A run at one moment, for whoever does not follow it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// The control node that directs it, or has its record.
    pub node: NodeId,
    /// What it is; none of a run that a control node of an earlier build took over.
    pub facts: Option<RunFacts>,
    /// Where it stands.
    pub state: RunState,
    /// What it waits for, if it does.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// Its numbers, over all lives.
    pub stats: StatsReport,
    /// Workers that have batches of it now.
    #[serde(default)]
    pub workers: u64,
    /// Bytes per second of each of its workers; none is no limit.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// How it has ended, if it has.
    #[serde(default)]
    pub end: Option<End>,
    /// The first errors of its end; only if they were asked for.
    #[serde(default)]
    pub errors: Vec<String>,
    /// Files that failed, the latest of those that are still known; only if they were asked for.
    #[serde(default)]
    pub failures: Vec<FailedFile>,
    /// Files that failed and are known, but are not named here.
    #[serde(default)]
    pub more_failures: u64,
}

/// A file that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedFile {
    /// Its path; nothing if it is the run that failed.
    pub path: String,
    /// Why.
    pub error: String,
}
