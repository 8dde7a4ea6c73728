//! `check`: what differs between two trees, without changing anything.

use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::known::Known;
use super::{PlanRequest, STEPS_WAITING_MAX};
use crate::comparison::Answer;
use crate::comparison::content::same_content;
use crate::listing::{Descend, Item, ItemKind, Side, Visitor, Walk, WalkedDirectory, retried, walk};
use crate::options::Options;
use crate::path::EntryPath;
use crate::storage::StorageError;

/// What was found out about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which file.
    pub path: EntryPath,
    /// What about it.
    pub difference: Difference,
}

/// How one file compares. It is shown by the sign that rclone puts into `--combined`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is the same, as far as could be told: `=`.
    Same {
        /// Whether content was compared, not only sizes.
        is_content_known: bool,
    },
    /// It is only at the source: `+`.
    MissingAtDestination,
    /// It is only at the destination: `-`.
    MissingAtSource,
    /// It differs: `*`.
    Differs,
    /// It, or a directory, could not be read: `!`.
    Failed(StorageError),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same { .. } => "=",
            Self::MissingAtDestination => "+",
            Self::MissingAtSource => "-",
            Self::Differs => "*",
            Self::Failed(_) => "!",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.difference, self.path)
    }
}

/// The findings of a check, in no particular order. Dropped, it stops.
pub struct Checking {
    findings: mpsc::Receiver<Finding>,
    task: Option<JoinHandle<()>>,
}

impl Checking {
    /// The next finding; none at the end.
    ///
    /// # Panics
    /// If the check panicked: one that ends early must not look complete.
    pub async fn next(&mut self) -> Option<Finding> {
        let finding = self.findings.recv().await;
        if finding.is_none()
            && let Some(task) = &mut self.task
        {
            let ended = task.await;
            self.task = None;
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        finding
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Compares source and destination of a request; its task does not matter. Must be called within a runtime.
///
/// Sizes are compared, and then content: by hashes where a storage tells them, else by reading, unless `--size-only` is set.
pub fn check(request: PlanRequest) -> Checking {
    let (sender, findings) = mpsc::channel(STEPS_WAITING_MAX);
    let plan = Walk {
        source: request.source.as_ref().map(|place| (place.storage.clone(), request.source_scope())),
        destination: Some((request.destination.storage.clone(), request.destination_scope())),
        checkers: request.options.checkers as usize,
        max_depth: request.options.max_depth,
        folds: request.folds_names,
        tries: request.options.low_level_retries,
    };
    let task = tokio::spawn(walk(Arc::new(plan), Arc::new(Check { request, findings: sender })));
    Checking { findings, task: Some(task) }
}

struct Check {
    request: PlanRequest,
    findings: mpsc::Sender<Finding>,
}

struct State {
    directory: WalkedDirectory,
    findings: Vec<Finding>,
    /// Files of the same size, whose content decides.
    open: Vec<(Known, Known)>,
}

impl Check {
    fn found(state: &mut State, side: Side, name: &str, difference: Difference) {
        let directory = state.directory.path_at(side);
        let path = directory.join(name).unwrap_or_else(|_| directory.clone());
        state.findings.push(Finding { path, difference });
    }

    fn is_content(&self, item: Option<Item<'_>>) -> bool {
        item.is_some_and(|item| match item.kind {
            ItemKind::File | ItemKind::Directory => true,
            ItemKind::Link(_) => self.request.options.links,
            ItemKind::Other => false,
        })
    }

    fn only_source(state: &mut State, item: Item<'_>) -> Descend {
        if item.is_directory() {
            return Descend::Source;
        }
        Self::found(state, Side::Source, item.name, Difference::MissingAtDestination);
        Descend::No
    }

    fn only_destination(&self, state: &mut State, item: Item<'_>) -> Descend {
        match (self.request.options.one_way, item.is_directory()) {
            (true, _) => return Descend::No,
            (false, true) => return Descend::Destination,
            (false, false) => Self::found(state, Side::Destination, item.name, Difference::MissingAtSource),
        }
        Descend::No
    }

    fn both(&self, state: &mut State, source: Item<'_>, destination: Item<'_>) -> Descend {
        match (source.is_directory(), destination.is_directory()) {
            (true, true) => return Descend::Both,
            // A directory has no content of its own: the file is missing on the other side, and so is what is in the directory.
            (true, false) => {
                self.only_destination(state, destination);
                return Self::only_source(state, source);
            }
            (false, true) => {
                Self::only_source(state, source);
                return self.only_destination(state, destination);
            }
            (false, false) => {}
        }
        let options = &self.request.options;
        let is_same_kind = std::mem::discriminant(&source.kind) == std::mem::discriminant(&destination.kind);
        if !is_same_kind || (!options.ignore_size && source.size != destination.size) {
            Self::found(state, Side::Source, source.name, Difference::Differs);
        } else if options.size_only {
            Self::found(state, Side::Source, source.name, Difference::Same { is_content_known: false });
        } else if let (Some(here), Some(there)) =
            (Known::of(source, &state.directory.path), Known::of(destination, state.directory.path_at(Side::Destination)))
        {
            state.open.push((here, there));
        }
        Descend::No
    }

    async fn compared(&self, source: Known, destination: Known) -> Finding {
        let path = source.entry.path.clone();
        let difference = match self.answer(source, destination).await {
            Ok(Answer::Same) => Difference::Same { is_content_known: true },
            Ok(Answer::Unknown) => Difference::Same { is_content_known: false },
            Ok(Answer::Differs) => Difference::Differs,
            Err(error) => Difference::Failed(error),
        };
        Finding { path, difference }
    }

    async fn answer(&self, mut source: Known, mut destination: Known) -> Result<Answer, StorageError> {
        let here = self.request.source.as_ref().map_or(&self.request.destination.storage, |place| &place.storage);
        let there = &self.request.destination.storage;
        let Options { download, low_level_retries: tries, .. } = self.request.options;
        source.complete(here.as_ref(), tries).await?;
        destination.complete(there.as_ref(), tries).await?;
        retried(tries, || same_content((here, &source.entry), (there, &destination.entry), download)).await
    }

    async fn handed_over(&self, state: &mut State) -> bool {
        for finding in state.findings.drain(..) {
            if self.findings.send(finding).await.is_err() {
                return false;
            }
        }
        let open = std::mem::take(&mut state.open).into_iter();
        let checkers = self.request.options.checkers.max(1) as usize;
        let mut findings =
            futures_util::stream::iter(open.map(|(source, destination)| self.compared(source, destination))).buffered(checkers);
        while let Some(finding) = findings.next().await {
            if self.findings.send(finding).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl Visitor for Check {
    type State = State;

    fn begin(&self, directory: &WalkedDirectory) -> State {
        State { directory: directory.clone(), findings: Vec::new(), open: Vec::new() }
    }

    fn visit(&self, state: &mut State, source: Option<Item<'_>>, destination: Option<Item<'_>>) -> Descend {
        match (source.filter(|_| self.is_content(source)), destination.filter(|_| self.is_content(destination))) {
            (Some(source), Some(destination)) => self.both(state, source, destination),
            (Some(source), None) => Self::only_source(state, source),
            (None, Some(destination)) => self.only_destination(state, destination),
            (None, None) => Descend::No,
        }
    }

    fn clashes(&self, state: &mut State, source: Item<'_>) {
        Self::found(state, Side::Source, source.name, Difference::MissingAtDestination);
    }

    fn failed(&self, state: &mut State, side: Side, error: StorageError) {
        let path = state.directory.path_at(side).clone();
        state.findings.push(Finding { path, difference: Difference::Failed(error) });
    }

    fn deliver<'a>(&'a self, state: &'a mut State, _is_end: bool) -> BoxFuture<'a, bool> {
        self.handed_over(state).boxed()
    }
}
