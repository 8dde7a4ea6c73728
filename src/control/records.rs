//! What outlives the proxy of a worker, and its control node.
//!
//! The owner of a worker keeps a small record of it, and sends each change to the two control nodes that would own it next. So a worker that is away stays known
//! when its owner dies, `nodes` shows it as `not_connected`, and the next owner dials it. A worker that was forgotten leaves a mark in the same place, so that
//! a record which comes late does not bring it back; the worker itself does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::messages::{PeerRequest, Record};
use super::shared::Shared;
use crate::types::NodeId;

/// Control nodes beside the owner that keep a record.
const COPIES: usize = 2;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Records of one control node.
const RECORDS_MAX: usize = 131_072;

/// The records of a control node, its own and those of others.
#[derive(Default)]
pub(super) struct Records {
    records: Mutex<BTreeMap<NodeId, Record>>,
}

impl Records {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, worker: &NodeId) -> Option<Record> {
        self.lock().get(worker).cloned()
    }

    /// Those of workers that a test wants, but for those that were forgotten.
    pub(super) fn of(&self, wants: impl Fn(&NodeId) -> bool) -> Vec<Record> {
        self.lock().values().filter(|record| !record.forgotten && wants(&record.worker)).cloned().collect()
    }

    /// Keeps a record if it is newer than what is known; whether it is.
    fn keep(&self, record: Record) -> bool {
        let mut records = self.lock();
        let is_full = records.len() >= RECORDS_MAX;
        match records.get_mut(&record.worker) {
            Some(known) if known.version >= record.version => return false,
            Some(known) => *known = record,
            None if is_full => {
                tracing::warn!(worker = %record.worker, "too many workers are known; forget those that will not return");
                return false;
            }
            None => drop(records.insert(record.worker.clone(), record)),
        }
        true
    }

    /// Leaves a mark that the worker was forgotten; whether it was known.
    pub(super) fn forget(&self, worker: &NodeId) -> bool {
        let mut records = self.lock();
        let Some(record) = records.get_mut(worker).filter(|record| !record.forgotten) else { return false };
        *record = Record {
            worker: worker.clone(),
            incarnation: None,
            describe: None,
            found_at: None,
            marks: Vec::new(),
            forgotten: true,
            version: record.version + 1,
        };
        true
    }
}

/// The owner knows something new of a worker: it is kept here, and by those that would own it next. The version of `record` is set here.
pub(super) fn share(shared: &Arc<Shared>, mut record: Record) {
    record.version = shared.records.find(&record.worker).map_or(0, |known| known.version) + 1;
    if !shared.records.keep(record.clone()) {
        return;
    }
    let view = shared.view();
    let partition = view.ring.partition(record.worker.as_str());
    let next = view.ring.successors(partition, COPIES + 1).into_iter().filter(|node| **node != view.me).take(COPIES);
    for node in next.cloned().collect::<Vec<_>>() {
        send(shared, node, record.clone());
    }
}

/// Tells one control node.
pub(super) fn send(shared: &Arc<Shared>, to: NodeId, record: Record) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let request = PeerRequest::Record(Box::new(record));
        if let Err(error) = shared.peers.ask(&shared.view(), &to, &request, PATIENCE).await {
            tracing::debug!(%to, %error, "a record was not taken");
        }
    });
}

/// Another control node knows something of a worker.
pub(super) fn learn(shared: &Arc<Shared>, record: Record) {
    let worker = record.worker.clone();
    if shared.records.keep(record) && shared.owns(&worker) && shared.directory.find(&worker).is_none() {
        super::placement::wanted(shared, &worker);
    }
}
