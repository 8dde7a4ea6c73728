//! The hash task: a [`Walk`] that goes on step by step on the blocking pool, and rests or ends when it is told to.
//!
//! ```text
//!             pause                    cancel, `stopping`
//!   Go ──────────────────► Rest      Go, Rest ──────────► End: `progress`, reason `normal`, no summary
//!      ◄──────────────────
//!             resume                 nothing left: `summary`, reason `normal`
//! ```
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
                Wanted::End => {
                    let Counts { files, bytes, .. } = *lock(&self.counts);
                    ctx.emit(&Event::Progress { task, files, bytes })?;
                    return Ok(());
                }
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
            for found in step.found {
                self.tell(&ctx, &task, found)?;
            }
            if step.done {
                let Counts { files, bytes, errors } = *lock(&self.counts);
                ctx.emit(&Event::Summary { task, files, bytes, errors })?;
                return Ok(());
            }
        }
    }

    fn tell(&self, ctx: &TaskContext<Files>, task: &str, found: Found) -> Result<()> {
        let task = task.to_owned();
        match found {
            Found::Hashed { path, bytes, xxh3 } => {
                let (path, raw) = shown(&path);
                ctx.emit(&Event::Hashed { task: task.clone(), path, raw, bytes, xxh3 })?;
                let counts = {
                    let mut counts = lock(&self.counts);
                    counts.files += 1;
                    counts.bytes += bytes;
                    *counts
                };
                if counts.files.is_multiple_of(PROGRESS_FILES) {
                    ctx.emit(&Event::Progress { task, files: counts.files, bytes: counts.bytes })?;
                }
            }
            Found::Failed { path, error } => {
                let (path, raw) = shown(&path);
                ctx.emit(&Event::Failed { task, path, raw, error })?;
                lock(&self.counts).errors += 1;
            }
        }
        Ok(())
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    // Nothing can panic between two of its changes.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
