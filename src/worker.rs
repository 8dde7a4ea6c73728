//! The worker: what runs the jobs.
//!
//! ```text
//!   agent ── dials, watches ──► Link ──► handler ─┬─ calls ──► executor ──► classes, tasks
//!   listener (if any) ────────►                   ├─ adopt, ack, ping ──► adoption (term), journal
//!   exclusive ── dials once more for the holder ► │
//!                                                 └─ news ◄── status, labels, statistics
//! ```
//!
//! The worker arbitrates who controls it ([`adoption`]): exactly one channel is current. Tasks, their events and the outcomes of calls belong to the worker and
//! outlive every link. Pure machines: [`adoption`], [`backoff`], [`calls`], [`journal`], [`outcomes`], [`tasks`]; the other files are shells around them.

pub mod adoption;
mod agent;
pub mod backoff;
pub mod calls;
mod exclusive;
mod executor;
mod handler;
pub mod journal;
mod local;
pub mod outcomes;
mod running;
mod shared;
mod stats;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use self::agent::{Connector, DialFailure, Dialled};
use self::shared::Shared;
#[cfg(test)]
pub(crate) use self::shared::event_frame;
use crate::config::Config;
use crate::connection::{Link, LinkHandler};
use crate::error::{Error, ErrorCode};
use crate::job::Classes;
use crate::proto::message::{GoAway, Message};
use crate::types::{Incarnation, NodeId, NodeUri, WantedStatus};

/// How long each of the last steps of a stop may take: the end of killed tasks, answers after a drain that took all of its time, the last events.
const SETTLE: Duration = Duration::from_secs(2);
/// Pause between two looks at the answers that are missing.
const ANSWERS_PAUSE: Duration = Duration::from_millis(10);

/// A running worker.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Starts a worker. `connector` dials for it; without one it waits to be dialled.
    pub(crate) fn start(
        config: Arc<Config>,
        id: NodeId,
        incarnation: Incarnation,
        classes: Classes,
        listen: Vec<NodeUri>,
        connector: Option<Arc<dyn Connector>>,
    ) -> Self {
        let shared = Shared::new(config, id, incarnation, classes, listen, connector.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(stats::run(Arc::clone(&shared)));
        tasks.spawn(shared::expire_outcomes(Arc::clone(&shared)));
        if let Some(connector) = connector {
            tasks.spawn(agent::run(Arc::clone(&shared), connector));
        }
        Self { shared, tasks }
    }

    /// Forgets the addresses of control nodes: the worker stays where it is, but looks for nobody any more.
    pub(crate) fn clear_cluster_addr(&self) {
        self.shared.lock().preferred.clear();
        self.shared.dials.send_replace(false);
    }

    /// For whoever accepts links for this worker.
    pub(crate) fn door(&self) -> Door {
        Door { shared: Arc::clone(&self.shared) }
    }

    /// Cuts: nobody is told, tasks end with the runtime.
    pub(crate) fn cut(mut self) {
        self.tasks.abort_all();
        self.shared.kill_all_tasks();
        for link in self.shared.links() {
            link.close(Error::new(ErrorCode::ConnectionFailed, "the node was dropped"));
        }
    }

    /// Drains: no more tasks, those that run are told and get `grace` to end; no more calls, those that were begun are answered; the last events leave, the
    /// links close.
    pub(crate) async fn stop(mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        // Refused only in a state that has no tasks.
        if let Err(error) = self.shared.set_status(WantedStatus::Stopped) {
            tracing::debug!(%error, "the worker was not draining");
        }
        if tokio::time::timeout(grace, self.shared.no_tasks()).await.is_err() {
            let killed = self.shared.kill_all_tasks();
            tracing::warn!(killed, ?grace, "tasks did not end in time and were killed");
            // Killing is immediate; their last events follow at once.
            let _ = tokio::time::timeout(SETTLE, self.shared.no_tasks()).await;
        }
        // Not before: what drains is looked at, and commanded, by calls.
        self.shared.refuse_calls();
        if tokio::time::timeout_at(deadline.max(Instant::now() + SETTLE), self.answered()).await.is_err() {
            tracing::warn!(?grace, "calls were not answered in time and are cut off");
        }
        let _ = tokio::time::timeout(SETTLE, self.shared.settled()).await;
        self.tasks.abort_all();
        let reason = Error::new(ErrorCode::ShuttingDown, format!("worker {} is stopping", self.shared.id));
        for link in self.shared.links() {
            link.channel_zero().message(&Message::GoAway(GoAway { reason: reason.clone(), reconnect_after_ms: None }));
            link.close(reason.clone());
            let _ = tokio::time::timeout(SETTLE, link.ended()).await;
        }
    }
}

impl Worker {
    /// Ends when nobody waits for an answer of this worker any more.
    async fn answered(&self) {
        while self.shared.links().iter().any(Link::is_awaited) {
            tokio::time::sleep(ANSWERS_PAUSE).await;
        }
    }
}

/// Lets an acceptor hand links to a worker.
#[derive(Clone)]
pub(crate) struct Door {
    shared: Arc<Shared>,
}

impl Door {
    /// What handles a link of this worker, whoever dialled it.
    pub(crate) fn handler(&self, link: &Link) -> Arc<dyn LinkHandler> {
        handler::new(Arc::clone(&self.shared), link, None)
    }

    /// Describes the worker to the peer of a link that runs.
    pub(crate) fn introduce(&self, link: &Link) {
        self.shared.introduce(link);
    }
}
