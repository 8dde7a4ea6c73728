//! What a worker has at the moment, and who writes it down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::queue::name::{JobName, WorkerId};
use crate::queue::status::{Finished, WorkerStatus};
use crate::queue::store::{QueueStore, SharedStore};
use crate::queue::work::Work;

/// The batches of a worker. Statuses are written beside its other work, since a slow storage must not make it look dead.
#[derive(Debug)]
pub(super) struct Board {
    id: WorkerId,
    life: String,
    inner: Mutex<(BTreeMap<String, Arc<Work>>, Finished)>,
    changed: Notify,
}

impl Board {
    pub(super) fn new(id: WorkerId, life: String) -> Self {
        Self { id, life, inner: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn life(&self) -> &str {
        &self.life
    }

    pub(super) fn begin(&self, job: &JobName, work: Arc<Work>) {
        self.lock().0.insert(job.to_string(), work);
        self.changed.notify_one();
    }

    pub(super) fn end(&self, job: &JobName, is_finished: bool) {
        let mut inner = self.lock();
        inner.0.remove(job.as_str());
        if is_finished {
            inner.1.push(job.to_string());
        }
        drop(inner);
        self.changed.notify_one();
    }

    fn is_idle(&self) -> bool {
        self.lock().0.is_empty()
    }

    fn status(&self) -> WorkerStatus {
        let inner = self.lock();
        let running = inner.0.iter().map(|(job, work)| (job.clone(), work.progress())).collect();
        inner.1.status(&self.id, &self.life, running, SystemTime::now())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (BTreeMap<String, Arc<Work>>, Finished)> {
        self.inner.lock().expect("nothing panics while it is held")
    }
}

/// Writes the status of a worker until it is stopped or dropped.
pub(super) struct Writer {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Writes at least every `interval` while there is work, and every `idle` else, if at all; and whenever a batch begins or ends.
    pub(super) fn start(store: SharedStore, board: Arc<Board>, interval: Duration, idle: Option<Duration>) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let path = WorkerStatus::path(&board.id);
            loop {
                let content = board.status().to_json();
                if let Err(error) = store.replace(&path, content.into()).await {
                    tracing::warn!(%error, "the status of the worker could not be written");
                }
                let wait = if board.is_idle() { idle } else { Some(interval) };
                tokio::select! {
                    biased;
                    _ = stopped.changed() => return,
                    () = board.changed.notified() => {}
                    () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                }
            }
        });
        Self { stop, task }
    }

    /// Ends it and removes the status: the worker has not died.
    pub(super) async fn stop(mut self, store: &dyn QueueStore, id: &WorkerId) {
        self.stop.send_replace(true);
        let _ = (&mut self.task).await;
        if let Err(error) = store.delete(&WorkerStatus::path(id)).await {
            tracing::warn!(%error, "the status of the worker could not be removed");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
