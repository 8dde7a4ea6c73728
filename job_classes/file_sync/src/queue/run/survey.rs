//! Looks at the queue, for one run.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;

use super::files::Files;
use crate::queue::controller::{StatusSeen, Survey};
use crate::queue::name::{JobName, WorkerId};
use crate::queue::status::{STATUS_BYTES_MAX, WorkerStatus};
use crate::queue::store::{Content, Listed, StoreError};

/// Status files that are read at one time.
const READS_IN_FLIGHT: usize = 32;
/// Files that are no part of a queue and are told of; more are only logged.
const STRANGERS_MAX: usize = 1_000;

/// What was last read of a status.
#[derive(Debug, Default)]
struct Read {
    seen: StatusSeen,
    running: BTreeMap<String, Value>,
    life: Option<String>,
}

/// What was last read of each status, so that only those that changed are read again.
#[derive(Debug, Default)]
pub(super) struct Eyes {
    statuses: BTreeMap<WorkerId, Read>,
    strangers: std::collections::BTreeSet<String>,
    /// What is to be told: files that are no part of a queue, or cannot be read.
    pub(super) told: Vec<String>,
}

impl Eyes {
    /// One look. Directories come in the order in which a batch passes through them.
    pub(super) async fn look(&mut self, files: &Files, holders: &std::collections::BTreeSet<WorkerId>) -> Result<Survey, StoreError> {
        let mut survey = Survey::default();
        let is_ours = |job: &JobName| job.attempt().is_some_and(|attempt| attempt.run == files.run);
        for file in files.store.list("queue/pending").await? {
            match JobName::parse(&file.name) {
                Some(job) if is_ours(&job) => drop(survey.pending.insert(job)),
                Some(_) => {}
                None if file.name.starts_with("QUIT") => {}
                None => self.stranger("queue/pending", &file),
            }
        }
        for file in files.store.list("queue/processing").await? {
            match JobName::parse_claimed(&file.name) {
                Some((job, worker)) if is_ours(&job) => drop(survey.processing.insert(job, worker)),
                Some(_) => {}
                None => self.stranger("queue/processing", &file),
            }
        }
        for file in files.store.list("queue/claims").await? {
            match JobName::parse_log(&file.name) {
                Some((job, record)) if is_ours(&job) => {
                    let records = survey.logs.entry(job).or_default();
                    *records = (*records).max(record.saturating_add(1));
                }
                Some(_) => {}
                None => self.stranger("queue/claims", &file),
            }
        }
        for file in files.store.list("queue/done").await? {
            match JobName::parse(&file.name) {
                Some(job) if is_ours(&job) => drop(survey.done.insert(job)),
                Some(_) => {}
                None => self.stranger("queue/done", &file),
            }
        }
        survey.statuses = self.look_at_workers(files, holders).await?;
        Ok(survey)
    }

    async fn look_at_workers(
        &mut self,
        files: &Files,
        holders: &std::collections::BTreeSet<WorkerId>,
    ) -> Result<BTreeMap<WorkerId, StatusSeen>, StoreError> {
        let mut listed = BTreeMap::new();
        for file in files.store.list("queue/status").await? {
            match file.name.strip_suffix(".json").and_then(|name| name.parse::<WorkerId>().ok()) {
                Some(worker) => drop(listed.insert(worker, file.marker)),
                None => self.stranger("queue/status", &file),
            }
        }
        self.statuses.retain(|worker, _| listed.contains_key(worker));
        let is_new = |worker: &WorkerId, marker: u64| match self.statuses.get(worker) {
            Some(read) => read.seen.marker != marker && holders.contains(worker),
            None => true,
        };
        let changed: Vec<_> =
            listed.iter().filter(|(worker, marker)| is_new(worker, **marker)).map(|(worker, marker)| (worker.clone(), *marker)).collect();
        let read = |(worker, marker): (WorkerId, u64)| async move {
            let content = files.store.read(&WorkerStatus::path(&worker), STATUS_BYTES_MAX).await?;
            Ok::<_, StoreError>((worker, marker, content))
        };
        let contents: Vec<_> =
            futures_util::stream::iter(changed.into_iter().map(read)).buffer_unordered(READS_IN_FLIGHT).try_collect().await?;
        for (worker, marker, content) in contents {
            let status = match content {
                Content::Bytes(bytes) => WorkerStatus::from_json(&bytes).map_err(|error| error.to_string()),
                Content::TooLong => Err("it is too long".to_owned()),
                // A worker that just stopped.
                Content::Missing => continue,
            };
            match status {
                Ok(status) => {
                    let seen = StatusSeen { marker, running: status.running.keys().cloned().collect(), is_ours: status.note.is_some() };
                    let life = status.note.map(|note| note.life);
                    self.statuses.insert(worker, Read { seen, running: status.running, life });
                }
                Err(error) => {
                    self.tell(format!("{}: {error}", WorkerStatus::path(&worker)));
                    let seen = StatusSeen { marker, ..StatusSeen::default() };
                    self.statuses.insert(worker, Read { seen, ..Read::default() });
                }
            }
        }
        let seen = self.statuses.iter().filter_map(|(worker, read)| {
            // A worker without a batch of this run is only alive or not; the marker of the listing tells.
            Some((worker.clone(), StatusSeen { marker: *listed.get(worker)?, ..read.seen.clone() }))
        });
        Ok(seen.collect())
    }

    /// What the workers do at the moment.
    pub(super) fn running(&self) -> impl Iterator<Item = (&WorkerId, &str, &Value)> {
        self.statuses.iter().flat_map(|(worker, read)| read.running.iter().map(move |(job, stats)| (worker, job.as_str(), stats)))
    }

    /// Which life a worker said it has; none for a worker of rclone.
    pub(super) fn life(&self, worker: &WorkerId) -> Option<&str> {
        self.statuses.get(worker)?.life.as_deref()
    }

    fn stranger(&mut self, directory: &str, file: &Listed) {
        if self.strangers.len() < STRANGERS_MAX && self.strangers.insert(format!("{directory}/{}", file.name)) {
            self.tell(format!("{directory}/{} is no file of a queue", file.name));
        }
    }

    fn tell(&mut self, what: String) {
        tracing::warn!(%what, "a file in the queue is not what it should be");
        if self.told.len() < STRANGERS_MAX {
            self.told.push(what);
        }
    }
}
