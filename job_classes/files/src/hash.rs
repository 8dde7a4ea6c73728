//! The hash task: a [`Walk`] that goes on step by step on the blocking pool, and rests or ends when it is told to.
//!
//! ```text
//!             pause                    cancel, `stopping`
//!   Go ──────────────────► Rest      Go, Rest ──────────► End: `progress`, reason `normal`, no summary
//!      ◄──────────────────
//!             resume                 nothing left: `summary`, reason `normal`
//! ```
//!
//! Events are paced: while they are not taken in, because the control node is slow or out of reach, the task waits. It never overruns the journal, and what
//! reaches the control node has no gaps.
//!
//! A worker that stops has little time, and a hash that was not finished is cheap to start again: so `stopping` cancels, and who wants to know whether
//! everything was hashed looks for the summary. Killing the task ends it after the step in hand, whose events are not told.

use std::sync::{Arc, Mutex, PoisonError};

use nkcluster::Result;
use nkcluster::job::TaskContext;
use tokio::sync::{Semaphore, watch};

use crate::api::{Command, Event, Progress, shown};
use crate::walk::{Found, Walk};
use crate::{Files, blocking};

/// Files between two events that tell the progress.
const PROGRESS_FILES: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Go,
    Rest,
    End,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    files: u64,
    bytes: u64,
    errors: u64,
}

/// What reaches a running hash task.
#[derive(Debug)]
pub struct HashTask {
    wanted: watch::Sender<Wanted>,
    counts: Arc<Mutex<Counts>>,
}

/// What runs it.
pub(crate) struct HashJob {
    walk: Walk,
    wanted: watch::Receiver<Wanted>,
    counts: Arc<Mutex<Counts>>,
    steps: Arc<Semaphore>,
}

impl HashTask {
    pub(crate) fn new(walk: Walk, steps: Arc<Semaphore>) -> (Self, HashJob) {
        let (sender, wanted) = watch::channel(Wanted::Go);
        let counts = Arc::new(Mutex::new(Counts::default()));
        (Self { wanted: sender, counts: Arc::clone(&counts) }, HashJob { walk, wanted, counts, steps })
    }

    pub(crate) fn command(&self, command: Command) -> Progress {
        let wanted = match command {
            Command::Progress => None,
            Command::Pause => Some(Wanted::Rest),
            Command::Resume => Some(Wanted::Go),
            Command::Cancel => Some(Wanted::End),
        };
        if let Some(wanted) = wanted {
            // An end is an end: nothing brings the task back.
            self.wanted.send_if_modified(|now| *now != Wanted::End && std::mem::replace(now, wanted) != wanted);
        }
        let counts = *lock(&self.counts);
        Progress { files: counts.files, bytes: counts.bytes, paused: *self.wanted.borrow() == Wanted::Rest }
    }
}

/// Whether the task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    All,
    /// It was told to end meanwhile.
    Ended,
}

impl HashJob {
    /// Walks to the end, or until it is told to end.
    pub(crate) async fn run(mut self, ctx: TaskContext<Files>) -> Result<()> {
        let task = ctx.task_id().to_string();
        loop {
            let wanted = *self.wanted.borrow_and_update();
            match wanted {
                Wanted::Go => {}
                Wanted::Rest => {
                    // Without anybody who could say `resume`, this rest would have no end.
                    if self.wanted.changed().await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                Wanted::End => break,
            }
            // Never closed.
            let permit = Arc::clone(&self.steps).acquire_owned().await;
            let mut walk = self.walk;
            let (back, step) = blocking(move || {
                let step = walk.step();
                drop(permit);
                Ok((walk, step))
            })
            .await?;
            self.walk = back;
            if self.tell(&ctx, &task, step.found).await? == Told::Ended {
                break;
            }
            if step.done {
                let Counts { files, bytes, errors } = *lock(&self.counts);
                // Few enough to need no pace.
                ctx.emit(&Event::Summary { task, files, bytes, errors })?;
                return Ok(());
            }
        }
        let Counts { files, bytes, .. } = *lock(&self.counts);
        ctx.emit(&Event::Progress { task, files, bytes })?;
        Ok(())
    }

    /// Tells what one step found. What counts is what was told.
    async fn tell(&mut self, ctx: &TaskContext<Files>, task: &str, found: Vec<Found>) -> Result<Told> {
        for found in found {
            let task = task.to_owned();
            let (event, size) = match found {
                Found::Hashed { path, bytes, xxh3 } => {
                    let (path, raw) = shown(&path);
                    (Event::Hashed { task: task.clone(), path, raw, bytes, xxh3 }, Some(bytes))
                }
                Found::Failed { path, error } => {
                    let (path, raw) = shown(&path);
                    (Event::Failed { task: task.clone(), path, raw, error }, None)
                }
            };
            tokio::select! {
                emitted = ctx.emit_paced(&event) => emitted?,
                // A sender that is gone has nothing to say any more, and the task is about to be dropped.
                _ = self.wanted.wait_for(|wanted| *wanted == Wanted::End) => return Ok(Told::Ended),
            };
            let counts = lock(&self.counts).with(size);
            if size.is_some() && counts.files.is_multiple_of(PROGRESS_FILES) {
                ctx.emit(&Event::Progress { task, files: counts.files, bytes: counts.bytes })?;
            }
        }
        Ok(Told::All)
    }
}

impl Counts {
    /// Counts a file of this size, or one that failed.
    fn with(&mut self, size: Option<u64>) -> Self {
        match size {
            Some(bytes) => {
                self.files += 1;
                self.bytes += bytes;
            }
            None => self.errors += 1,
        }
        *self
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    // Nothing can panic between two of its changes.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
