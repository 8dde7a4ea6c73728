//! One batch at one worker, from its start to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use nkcluster::cluster::{CallOptions, Cluster, Retry};
use nkcluster::job::TypedCalls as _;
use nkcluster::types::{NodeId, TaskId};
use nkcluster::{Error, ErrorCode};
use tokio::time::Instant;

use super::{ABANDON_TIMEOUT, CALL_TIMEOUT, Control, Keep, Ledger, SILENCE, Verdict, WAIT, lock};
use crate::attempt::Attempt;
use crate::class::{Command, FileSync, Reply, Request, Spec};
use crate::options::{Rate, rate_in};
use crate::queue::Batch;
use crate::stats::StatsReport;

/// One batch at one worker.
pub(super) struct Sending {
    pub(super) cluster: Cluster,
    pub(super) node: NodeId,
    pub(super) control: Control,
    pub(super) batch: Batch,
    pub(super) attempt: Attempt,
    pub(super) held: Arc<Mutex<BTreeMap<Attempt, (NodeId, TaskId)>>>,
    pub(super) ledger: Ledger,
    pub(super) keep: Option<Keep>,
    /// Workers of which is kept that they have batches.
    pub(super) kept: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Sending {
    pub(super) async fn carry(&self) -> Verdict {
        // Whoever goes on with the run must know whom to ask.
        self.ledger.employ(self.attempt.run, &self.node);
        // Each of the first batches waits: one may be on its way before the other is kept.
        if let Some(keep) = self.keep.as_ref().filter(|_| !lock(&self.kept).contains(&self.node)) {
            if let Err(why) = keep(self.attempt.run).await {
                return Verdict::Refused(Error::new(ErrorCode::Moved, why));
            }
            lock(&self.kept).insert(self.node.clone());
        }
        let Some(task) = task_id(self.attempt) else { return Verdict::Lost(format!("{} cannot name a task", self.attempt)) };
        let Ok(batch) = serde_json::from_slice(&self.batch.to_json()) else { return Verdict::Lost("the batch is no JSON".to_owned()) };
        let spec = Spec::Batch { attempt: self.attempt, batch };
        // Its identity keeps it from being started twice, whichever control node carries it.
        let options = CallOptions { task_id: Some(task.clone()), retry: Retry::UntilDeadline, ..CallOptions::timeout(CALL_TIMEOUT) };
        match self.cluster.start::<FileSync>(&self.node, &spec, options).await {
            Ok(_) => {}
            // An earlier call of ours has started it.
            Err(error) if *error.code() == ErrorCode::AlreadyStarted => {}
            Err(error) if error.may_have_run() => return Verdict::Lost(error.message().to_owned()),
            Err(error) => return Verdict::Refused(error),
        }
        lock(&self.held).insert(self.attempt, (self.node.clone(), task.clone()));
        self.control.does(self.node.as_str(), self.attempt.batch, StatsReport::default());
        let said = rate_in(&self.batch.config).ok().and_then(Rate::bytes_per_second);
        let (mut heard, mut rests) = (Instant::now(), false);
        let mut limit = said;
        loop {
            let wanted = self.control.bandwidth().unwrap_or(said);
            if limit != wanted {
                let command = Command::SetBandwidth(Rate::from_bytes_per_second(wanted).to_string());
                if self.cluster.tell::<FileSync>(&self.node, &task, &command, CallOptions::timeout(CALL_TIMEOUT)).await.is_ok() {
                    limit = wanted;
                }
            }
            if rests != self.control.gate().is_closed() {
                let command = if rests { Command::Resume } else { Command::Pause };
                rests ^= self.cluster.tell::<FileSync>(&self.node, &task, &command, CallOptions::timeout(CALL_TIMEOUT)).await.is_ok();
            }
            let request = Request::Wait { attempt: self.attempt, millis: WAIT.as_millis() as u64 };
            match self.cluster.ask::<FileSync>(&self.node, &request, CallOptions::timeout(CALL_TIMEOUT)).await {
                Ok(Reply::Ended(end)) => return Verdict::Ended(*end),
                Ok(Reply::Running { stats }) => {
                    heard = Instant::now();
                    self.control.does(self.node.as_str(), self.attempt.batch, *stats);
                }
                Ok(Reply::Unknown | Reply::Closed { .. } | Reply::Working(_)) => {
                    return Verdict::Lost("the worker does not know it; it was restarted".to_owned());
                }
                Err(error) if heard.elapsed() >= SILENCE => {
                    // Should it still be there, it must not go on.
                    let options = CallOptions::timeout(ABANDON_TIMEOUT);
                    let _ = self.cluster.tell::<FileSync>(&self.node, &task, &Command::Abandon, options).await;
                    return Verdict::Lost(error.message().to_owned());
                }
                Err(_) => tokio::time::sleep(WAIT).await,
            }
        }
    }
}

/// The id of the task that carries an attempt out.
pub(in crate::run) fn task_id(attempt: Attempt) -> Option<TaskId> {
    TaskId::new(format!("{}.{}.{}", attempt.run, attempt.batch, attempt.attempt)).ok()
}
