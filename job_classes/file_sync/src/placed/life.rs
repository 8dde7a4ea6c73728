//! One life of a run.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use nkcluster::types::Selector;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Inner, RUNS_MAX, now_ms};
use crate::path::EntryPath;
use crate::plan::Task;
use crate::remote::without_secrets;
use crate::run::closing::Patience;
use crate::run::ledger::Life;
use crate::run::{Control, End, Keep, Persistent, Summary, Told, Workers, run};
use crate::storage::ErrorKind;

/// How often what was done is noted for the case that this control node is lost.
const NOTE_PAUSE: Duration = Duration::from_secs(1);
/// Lines that wait to be kept.
const TOLD_MAX: usize = 64;
/// Pause before a follower that is slow is looked at again.
const ROOM_PAUSE: Duration = Duration::from_millis(500);

impl Inner {
    /// One life of the run, to its end; and then until nobody needs to know of it any more.
    pub(super) async fn live(self: Arc<Self>) {
        if self.has_work() {
            let mut work = JoinSet::new();
            work.spawn(self.clone().follow());
            let summary = match work.join_next().await {
                Some(Ok(Some(summary))) => summary,
                // It goes on elsewhere.
                Some(Ok(None)) | None => return,
                Some(Err(error)) => {
                    let why = format!("the run ended by a bug: {error}");
                    tracing::error!(run = %self.ctx.key, why);
                    self.failed(End::Fatal, why)
                }
            };
            self.note();
            tracing::info!(run = %self.ctx.key, end = ?summary.end, transfers = summary.stats.transfers, errors = summary.stats.errors, "a run has ended");
            if let Some(record) = &mut self.state().record {
                record.finish(summary, now_ms());
            }
            self.ctx.record_changed();
        }
        let leaving = self.control().leaving().clone();
        loop {
            let kept_for = self.state().record.as_ref().and_then(|record| record.kept_for(now_ms()));
            match kept_for {
                None => return,
                Some(Duration::ZERO) => return self.ctx.record_changed(),
                Some(kept_for) => tokio::select! {
                    () = tokio::time::sleep(kept_for) => {}
                    () = leaving.cancelled() => return,
                },
            }
        }
    }

    /// Directs the run, and keeps what it tells. None if it goes on elsewhere.
    async fn follow(self: Arc<Self>) -> Option<Summary> {
        let control = self.control();
        let (told, mut hears) = mpsc::channel(TOLD_MAX);
        let directing = self.direct(told);
        tokio::pin!(directing);
        let mut tick = tokio::time::interval(NOTE_PAUSE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let summary = loop {
            tokio::select! {
                summary = &mut directing => break summary,
                Some(told) = hears.recv() => self.keep_line(told).await,
                _ = tick.tick() => if self.note() {
                    self.ctx.record_changed();
                },
            }
        };
        while let Ok(told) = hears.try_recv() {
            self.keep_line(told).await;
        }
        (!control.leaving().is_cancelled()).then_some(summary)
    }

    /// Keeps a line; a follower that is slow is waited for.
    async fn keep_line(&self, mut told: Told) {
        loop {
            let heard = self.heard.notified();
            let pushed = self.lines().push(told, Instant::now());
            match pushed {
                Ok(()) => return,
                Err(back) => told = back,
            }
            // It may have gone.
            let _ = tokio::time::timeout(ROOM_PAUSE, heard).await;
        }
    }

    /// An end that the run itself did not come to.
    fn failed(&self, end: End, why: String) -> Summary {
        let (control, attempts) = {
            let state = self.state();
            (state.control.clone(), state.attempts)
        };
        control.stats().error(&why, false);
        let mut stats = control.snapshot().stats;
        self.ledger.done_without(attempts).add_to(&mut stats);
        Summary { end, stats, errors: vec![why] }
    }

    /// Keeps what the attempts of this life are called.
    fn keeper(self: &Arc<Self>) -> Keep {
        let inner = Arc::clone(self);
        Arc::new(move |attempts| {
            let inner = Arc::clone(&inner);
            async move {
                let leaving = {
                    let mut state = inner.state();
                    state.attempts = Some(attempts);
                    if let Some(record) = &mut state.record {
                        record.lives = inner.ledger.lives();
                        record.hear(now_ms());
                    }
                    state.control.leaving().clone()
                };
                tokio::select! {
                    recorded = inner.ctx.recorded() => recorded.map_err(|error| error.message().to_owned()),
                    // The record goes with the run.
                    () = leaving.cancelled() => Err("the run goes on elsewhere".to_owned()),
                }
            }
            .boxed()
        })
    }

    async fn direct(self: &Arc<Self>, told: mpsc::Sender<Told>) -> Summary {
        let control = self.control();
        let stopped = async {
            tokio::select! {
                () = control.leaving().cancelled() => {}
                () = control.cancelling().cancelled(), if self.ledger.lives().iter().all(|life| life.is_closed) => {}
            }
        };
        let node = &self.ctx.node;
        let ready = async {
            if self.places.available_permits() == 0 {
                control.wait_for(Some(format!("control node {node} directs {RUNS_MAX} runs already, the most at the same time")));
            }
            let place = self.places.acquire().await.map_err(|_| "the control node stops".to_owned())?;
            control.wait_for(None);
            if let Some(why) = self.state().obstacle.clone() {
                return Err(why);
            }
            self.ctx.require_grant("go on with a run").map_err(|error| error.message().to_owned())?;
            let lives = self.ledger.lives();
            if !lives.is_empty() {
                let _ = told.send(Told::Notice(format!("control node {node} goes on with the run"))).await;
                control.wait_for(Some(format!("what was begun before control node {node} took the run over must have ended")));
            }
            self.look_at_trees(&lives).await?;
            self.closing(Some(&told), Patience::OF_HEIR).close_all().await?;
            self.look_at_source().await?;
            control.wait_for(None);
            Ok(place)
        };
        let place = tokio::select! {
            ready = ready => match ready {
                Ok(place) => place,
                Err(why) => {
                    let _ = told.send(Told::Failed { path: String::new(), error: why.clone() }).await;
                    return self.failed(End::Fatal, why);
                }
            },
            () = stopped => return self.failed(End::Cancelled, "cancelled".to_owned()),
        };
        let mut summary = self.carry_out(told, &control).await;
        drop(place);
        self.ledger.done_without(self.state().attempts).add_to(&mut summary.stats);
        summary
    }

    /// Refuses to go on where the trees are not that earlier lives have changed. Before its first batch a life makes a directory in each; so one that is empty is another
    /// one, such as a place where nothing is mounted. There attempts could not be fenced, and a move or delete would find nothing to do.
    async fn look_at_trees(&self, lives: &[Life]) -> Result<(), String> {
        for life in lives.iter().filter(|life| !life.is_closed && !life.workers.is_empty()) {
            for text in &life.changed {
                let Some(path) = self.remotes.open(text).ok().and_then(|remote| remote.local_path()) else { continue };
                let shown = path.display().to_string();
                let looked = tokio::task::spawn_blocking(move || std::fs::read_dir(path).map(|mut entries| entries.next().is_none())).await;
                let is_empty = match looked {
                    Ok(Ok(is_empty)) => is_empty,
                    Ok(Err(error)) => error.kind() == io::ErrorKind::NotFound,
                    Err(_) => false,
                };
                if is_empty {
                    let node = &self.ctx.node;
                    return Err(format!(
                        "control node {node} sees nothing in {shown}, where the run has been at work; is it mounted there?"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses to go on where the source of an earlier life is not to be seen. What is mounted on one control node may not be on another one, and its empty directory
    /// would be taken for the source: a sync would delete everything.
    async fn look_at_source(&self) -> Result<(), String> {
        let source = {
            let state = self.state();
            let order = state.record.as_ref().and_then(|record| record.work()).map(|work| &work.order);
            match order {
                // A move may have emptied it.
                Some(order) if matches!(order.kind, Task::Copy | Task::Sync) => order.source.clone(),
                _ => return Ok(()),
            }
        };
        // What cannot be opened here ends the run by itself.
        let Ok(remote) = self.remotes.open(&source) else { return Ok(()) };
        let is_empty = match remote.storage().list(&EntryPath::root()).next().await {
            Some(Ok(_)) => false,
            Some(Err(error)) if error.kind == ErrorKind::NotFound => true,
            // Whether there is anything is not known; a listing that fails deletes nothing.
            Some(Err(_)) => return Ok(()),
            None => true,
        };
        let mut state = self.state();
        let Some(record) = &mut state.record else { return Ok(()) };
        if record.has_source && is_empty {
            let (node, source) = (&self.ctx.node, without_secrets(&source));
            return Err(format!("control node {node} sees nothing in {source}, where an earlier one saw files; is it mounted there?"));
        }
        record.has_source |= !is_empty;
        Ok(())
    }

    async fn carry_out(self: &Arc<Self>, told: mpsc::Sender<Told>, control: &Control) -> Summary {
        let deleted = self.ledger.done_without(None).deletes;
        let (order, selector) = {
            let state = self.state();
            let work = state.record.as_ref().and_then(|record| Some((record.order(deleted)?, record.work()?.selector.parse::<Selector>())));
            match work {
                Some((order, Ok(selector))) => (order, selector),
                _ => return Summary { end: End::Fatal, errors: vec!["the order was lost".to_owned()], ..Summary::default() },
            }
        };
        if control.is_cancelled() {
            return Summary { end: End::Cancelled, errors: vec!["cancelled".to_owned()], ..Summary::default() };
        }
        let persistent = Persistent { ledger: self.ledger.clone(), keep: self.keeper() };
        let workers = Workers::new(self.ctx.cluster.clone(), selector).persistent(persistent);
        run(&order, &workers, &self.remotes, control, told).await
    }
}
