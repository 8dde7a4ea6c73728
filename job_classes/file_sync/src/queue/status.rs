//! What a worker tells of itself, in `queue/status/<id>.json`: rclone's shape, written every second while it has work.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::queue::batch::{FormatError, indented, parse};
use crate::queue::name::WorkerId;

/// Finished jobs that a status remembers.
const DONE_MAX: usize = 16;
/// Longest file of a status.
pub const STATUS_BYTES_MAX: u64 = 1 << 20;

/// What a worker does at the moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Ours: which life of the worker it is. A worker of rclone says none.
    #[serde(rename = "_nkcluster", default, skip_serializing_if = "Option::is_none")]
    pub note: Option<StatusNote>,
    /// The worker.
    pub id: WorkerId,
    /// Its jobs and their progress, with the keys of rclone's `core/stats`.
    #[serde(default)]
    pub running: BTreeMap<String, Value>,
    /// The jobs that it finished last as true, the running ones as false.
    #[serde(default)]
    pub done: BTreeMap<String, bool>,
    /// When it was written, by the clock of the worker. Only people look at it.
    #[serde(default)]
    pub updated: String,
}

/// What a worker of ours says in `_nkcluster` of its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusNote {
    /// Drawn at random when the worker starts.
    pub life: String,
}

impl WorkerStatus {
    /// The file of the status.
    pub fn to_json(&self) -> Vec<u8> {
        indented(self)
    }

    /// Reads the file of a status, ours or rclone's.
    ///
    /// # Errors
    /// Whatever is no status.
    pub fn from_json(bytes: &[u8]) -> Result<Self, FormatError> {
        parse(bytes)
    }

    /// Where it stands.
    pub fn path(worker: &WorkerId) -> String {
        format!("queue/status/{worker}.json")
    }
}

/// The jobs that a worker finished last.
#[derive(Debug, Default)]
pub(crate) struct Finished(VecDeque<String>);

impl Finished {
    pub(crate) fn push(&mut self, job: String) {
        self.0.push_back(job);
        if self.0.len() > DONE_MAX {
            self.0.pop_front();
        }
    }

    /// The status of a worker with these jobs.
    pub(crate) fn status(&self, id: &WorkerId, life: &str, running: BTreeMap<String, Value>, now: SystemTime) -> WorkerStatus {
        let finished = self.0.iter().map(|job| (job.clone(), true));
        let done = finished.chain(running.keys().map(|job| (job.clone(), false))).collect();
        WorkerStatus { note: Some(StatusNote { life: life.to_owned() }), id: id.clone(), running, done, updated: rfc3339(now) }
    }
}

fn rfc3339(time: SystemTime) -> String {
    let text = crate::queue::name::time_text(time);
    let (date, clock) = text.split_at(text.find('T').unwrap_or(0));
    format!("{date}{}", clock.replace('-', ":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_shape_of_rclone_and_remembers_sixteen_jobs() {
        let mut finished = Finished::default();
        (0..20).for_each(|job| finished.push(format!("j{job:02}")));
        let running = BTreeMap::from([("k".to_owned(), serde_json::json!({"bytes": 3}))]);
        let status = finished.status(&"w-1".parse().expect("an id"), "a", running, SystemTime::UNIX_EPOCH);
        assert_eq!((status.done.len(), status.done["j04"], status.done["k"]), (17, true, false));
        let value: Value = serde_json::from_slice(&status.to_json()).expect("JSON");
        assert_eq!((&value["id"], &value["updated"]), (&"w-1".into(), &"1970-01-01T00:00:00.000000000Z".into()));
        assert_eq!(WorkerStatus::from_json(&status.to_json()), Ok(status));
        let rclone = br#"{"id":"5","running":{"j":{"bytes":1}},"done":{"j":false},"updated":"2025-11-26T22:52:10.5+01:00"}"#;
        assert_eq!(WorkerStatus::from_json(rclone).expect("rclone's").note, None);
        assert!(WorkerStatus::from_json(br#"{"id":"../x"}"#).is_err());
    }
}
