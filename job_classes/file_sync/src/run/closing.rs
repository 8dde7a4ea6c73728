//! Ends what earlier lives of a run have under way, before the next one lists.
//!
//! ```text
//!   workers ◄── close the run: begin nothing more of it ──┐
//!   batches ──► what was begun is finished, and counted   ├──► the fence of the life is retired ──► the next life
//!               in time, or abandoned                     ┘
//! ```
//!
//! A worker that had batches and does not answer is waited for, but not for ever: what it still does is impossible once the fence is retired. Only what it has done by then is not counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use nkcluster::ErrorCode;
use nkcluster::cluster::{CallOptions, Cluster, NodeInfo};
use nkcluster::job::{JobClass as _, TypedCalls as _};
use nkcluster::types::{NodeId, NodeStatus};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ledger::{Ledger, Life, WORKERS_MAX};
use super::tries::Told;
use super::workers::{ABANDON_TIMEOUT, CALL_TIMEOUT, FENCE_TRIES_MAX, LONGEST_OPERATION, REFUSED_PAUSE, WAIT, task_id};
use crate::attempt::{Attempt, RunId};
use crate::class::{BatchEnd, Command, FileSync, Reply, Request};
use crate::fence::{self, FenceStrength};
use crate::remote::Remotes;

/// Workers and batches that are asked at the same time.
const ASKED_MAX: usize = 64;
/// Pause before workers that did not answer are asked again.
const ASK_PAUSE: Duration = Duration::from_millis(250);

/// How long is waited for workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For those that do not answer: they may be on their way to another control node.
    pub(crate) answers: Duration,
    /// For files that they have begun.
    pub(crate) files: Duration,
    /// Whether what is not over then is made impossible; otherwise somebody else will.
    pub(crate) is_last: bool,
}

impl Patience {
    /// Of whoever takes a run over.
    pub(crate) const OF_HEIR: Self = Self { answers: Duration::from_secs(20), files: Duration::from_secs(30), is_last: true };
    /// Of whoever hands it over.
    pub(crate) const OF_LEAVER: Self = Self { answers: Duration::from_millis(500), files: Duration::from_secs(1), is_last: false };
}

/// What is needed to end a life.
pub(crate) struct Closing<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) remotes: &'a Remotes,
    pub(crate) ledger: &'a Ledger,
    pub(crate) told: Option<&'a mpsc::Sender<Told>>,
    pub(crate) patience: Patience,
}

/// What workers have answered.
struct Asked {
    batches: Vec<(NodeId, Attempt)>,
    /// Whether all of them have.
    is_complete: bool,
}

impl Closing<'_> {
    /// Ends all lives that are open.
    ///
    /// # Errors
    /// Why one may still have effects.
    pub(crate) async fn close_all(&self) -> Result<(), String> {
        for life in self.ledger.lives().into_iter().filter(|life| !life.is_closed) {
            self.close(&life).await?;
        }
        Ok(())
    }

    async fn close(&self, life: &Life) -> Result<(), String> {
        let mut asked = self.ask_workers(life).await;
        asked.batches.retain(|(_, attempt)| !life.counted.contains(attempt.batch));
        let (ends, are_all_over) = self.hear(asked.batches).await;
        for (batch, (_, end)) in ends {
            self.ledger.count_late(life.run, batch, &end.stats);
        }
        let is_over = asked.is_complete && are_all_over;
        if !is_over && !self.patience.is_last {
            return Err("not every worker has ended its batches".to_owned());
        }
        let mut weakest = FenceStrength::Staged;
        for text in &life.changed {
            weakest = weakest.min(self.retire(text, life.run).await?);
        }
        if weakest < life.firm && !is_over {
            self.tell(format!(
                "what workers that do not answer may still do cannot be refused by the storage; waiting {LONGEST_OPERATION:?}"
            ))
            .await;
            tokio::time::sleep(LONGEST_OPERATION).await;
        }
        self.ledger.close(life.run);
        Ok(())
    }

    /// Tells every worker of a life to begin nothing more of it, and asks which of its batches it has had.
    async fn ask_workers(&self, life: &Life) -> Asked {
        let deadline = Instant::now() + self.patience.answers;
        let (run, mut missing, mut batches) = (life.run, life.workers.clone(), Vec::new());
        let mut are_all_named = life.workers.len() < WORKERS_MAX;
        let mut answered = BTreeSet::new();
        while !(missing.is_empty() && are_all_named) {
            if let Ok(reply) = self.cluster.nodes(None, CALL_TIMEOUT).await {
                if !are_all_named {
                    let run_it = reply.nodes.iter().filter(|node| node.classes.iter().any(|class| class.as_str() == FileSync::NAME));
                    missing.extend(run_it.map(|node| node.id.clone()).filter(|node| !answered.contains(node)));
                    are_all_named = reply.silent.is_empty();
                }
                let is_there = |node: &NodeInfo| node.status != NodeStatus::NotConnected && missing.contains(&node.id);
                let to_ask: Vec<NodeId> = reply.nodes.into_iter().filter(is_there).map(|node| node.id).collect();
                let left = deadline.saturating_duration_since(Instant::now()).clamp(ASK_PAUSE, CALL_TIMEOUT);
                let mut answers = stream::iter(to_ask)
                    .map(|node| async move {
                        let answer = self.cluster.ask::<FileSync>(&node, &Request::Close { run }, CallOptions::timeout(left)).await;
                        (node, answer)
                    })
                    .buffer_unordered(ASKED_MAX);
                while let Some((node, answer)) = answers.next().await {
                    match answer {
                        Ok(Reply::Closed { batches: had }) => batches.extend(had.into_iter().map(|attempt| (node.clone(), attempt))),
                        Ok(_) => {}
                        // It cannot have any.
                        Err(error) if matches!(error.code(), ErrorCode::UnknownClass | ErrorCode::NotFound) => {}
                        Err(_) => continue,
                    }
                    missing.remove(&node);
                    answered.insert(node);
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            if !(missing.is_empty() && are_all_named) {
                tokio::time::sleep(ASK_PAUSE).await;
            }
        }
        Asked { batches, is_complete: missing.is_empty() && are_all_named }
    }

    /// How these batches have ended, of each the latest attempt; and whether all have.
    async fn hear(&self, batches: Vec<(NodeId, Attempt)>) -> (BTreeMap<u64, (u32, BatchEnd)>, bool) {
        let deadline = Instant::now() + self.patience.files;
        let mut ended = stream::iter(batches)
            .map(|(node, attempt)| async move { (attempt, self.end_of(&node, attempt, deadline).await) })
            .buffer_unordered(ASKED_MAX);
        let (mut ends, mut are_all_over): (BTreeMap<u64, (u32, BatchEnd)>, _) = (BTreeMap::new(), true);
        while let Some((Attempt { batch, attempt, .. }, end)) = ended.next().await {
            match end {
                Some(end) if ends.get(&batch).is_none_or(|(known, _)| *known < attempt) => drop(ends.insert(batch, (attempt, end))),
                Some(_) => {}
                None => are_all_over = false,
            }
        }
        (ends, are_all_over)
    }

    async fn end_of(&self, node: &NodeId, attempt: Attempt, deadline: Instant) -> Option<BatchEnd> {
        let request = Request::Wait { attempt, millis: WAIT.as_millis() as u64 };
        let mut is_abandoned = !self.patience.is_last;
        let mut deadline = deadline;
        loop {
            match self.cluster.ask::<FileSync>(node, &request, CallOptions::timeout(CALL_TIMEOUT)).await {
                Ok(Reply::Ended(end)) => return Some(*end),
                // It was restarted: nothing of it goes on.
                Ok(Reply::Unknown) => return Some(BatchEnd::default()),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(ASK_PAUSE).await,
            }
            if Instant::now() < deadline {
                continue;
            }
            if is_abandoned {
                return None;
            }
            is_abandoned = true;
            deadline = Instant::now() + ABANDON_TIMEOUT;
            if let Some(task) = task_id(attempt) {
                let _ = self.cluster.tell::<FileSync>(node, &task, &Command::Abandon, CallOptions::timeout(ABANDON_TIMEOUT)).await;
            }
        }
    }

    /// Makes every attempt of a run impossible on one remote.
    async fn retire(&self, text: &str, run: RunId) -> Result<FenceStrength, String> {
        let mut tries = 0;
        loop {
            let retired = async {
                let remote = self.remotes.open(text).map_err(|error| error.to_string())?;
                let kept = fence::retire(&remote, run).await.map_err(|error| error.to_string())?;
                let strength = fence::strength(&remote).await.map_err(|error| error.to_string())?;
                Ok::<_, String>((remote, kept, strength))
            };
            match retired.await {
                Ok((remote, kept, strength)) => {
                    for path in kept {
                        self.tell(format!("{remote}: {path} was kept, as it is not what an attempt was to remove")).await;
                    }
                    return Ok(strength);
                }
                Err(why) if tries >= FENCE_TRIES_MAX => {
                    return Err(format!("what an earlier life of the run may still do cannot be prevented: {why}"));
                }
                Err(why) => tracing::warn!(%run, why, "the attempts of an earlier life cannot be fenced yet"),
            }
            tries += 1;
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }

    async fn tell(&self, what: String) {
        if let Some(told) = self.told {
            let _ = told.send(Told::Notice(what)).await;
        }
    }
}
