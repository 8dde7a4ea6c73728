//! The visitor that turns what a walk meets into steps.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{Semaphore, mpsc};

use super::known::Known;
use super::step::{Notice, NoticeKind, Problem, ProblemKind, Step};
use super::suffix::backup_path;
use super::{DirectoryTime, PlanCounts, PlanRequest, Root, Task};
use crate::comparison::content::same_content;
use crate::comparison::{Comparison, Verdict};
use crate::entry::Entry;
use crate::listing::{Descend, ForeignForms, Item, ItemKind, Side, Visitor, WalkedDirectory, retried};
use crate::operation::{Operation, Planned, Seen};
use crate::path::EntryPath;
use crate::storage::{ErrorKind, StorageError};

/// What one walk over both trees is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Transfers alone.
    Transfer,
    /// Transfers, and deletes at once.
    SyncDuring,
    /// Transfers, and deletes kept for later.
    SyncAfter,
    /// Deletes alone of what the source does not have.
    DeleteBefore,
    /// Deletes everything.
    Delete,
}

impl Pass {
    fn transfers(self) -> bool {
        matches!(self, Self::Transfer | Self::SyncDuring | Self::SyncAfter)
    }

    fn deletes(self) -> bool {
        self != Self::Transfer
    }
}

/// What must wait for the end of the walk.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    pub(super) deletes: Vec<Operation>,
    /// Directories that may have become empty: of the source for a move, else of the destination.
    pub(super) removable: Vec<EntryPath>,
    pub(super) times: Vec<DirectoryTime>,
    /// Deletes that were left out, as something had failed before.
    pub(super) suppressed: usize,
}

impl Deferred {
    fn append(&mut self, other: &mut Self) {
        self.deletes.append(&mut other.deletes);
        self.removable.append(&mut other.removable);
        self.times.append(&mut other.times);
        self.suppressed += std::mem::take(&mut other.suppressed);
    }
}

/// Turns pairs into steps.
pub(super) struct Comparing {
    request: Arc<PlanRequest>,
    pass: Pass,
    rules: Comparison,
    takes_links: bool,
    has_directories: bool,
    sets_directory_times: bool,
    counts: Arc<PlanCounts>,
    steps: mpsc::Sender<Step>,
    deferred: Mutex<Deferred>,
    deletes: DeleteLimit,
    /// Bounds the files about which storages are asked at the same time.
    asking: Semaphore,
}

/// Counts deletes up to `--max-delete`.
#[derive(Debug)]
pub(super) struct DeleteLimit {
    most: Option<u64>,
    deleted: AtomicU64,
    is_told: AtomicBool,
}

impl DeleteLimit {
    pub(super) fn of(request: &PlanRequest) -> Self {
        Self { most: request.options.max_delete, deleted: AtomicU64::new(request.deleted), is_told: AtomicBool::new(false) }
    }

    /// The step for one more delete: itself, once a problem, and then nothing.
    pub(super) fn step(&self, operation: Operation) -> Option<Step> {
        let deleted = self.deleted.fetch_add(1, Ordering::Relaxed);
        match self.most {
            Some(most) if deleted >= most => {
                let what = format!("--max-delete was reached: no more than {most} files are deleted");
                let problem = Problem { side: Side::Destination, path: EntryPath::root(), kind: ProblemKind::MaxDelete, what };
                (!self.is_told.swap(true, Ordering::Relaxed)).then_some(Step::Problem(problem))
            }
            _ => Some(Step::Delete { side: Side::Destination, operation }),
        }
    }
}

/// What is kept of a directory in work.
pub(super) struct State {
    directory: WalkedDirectory,
    steps: Vec<Step>,
    open: Vec<Open>,
    deferred: Deferred,
    forms: ForeignForms,
    /// Whether something in it comes or goes, which changes its time.
    is_modified: bool,
    has_failed: bool,
    listed: u64,
    compared: u64,
}

/// A file for which the listings do not tell enough.
struct Open {
    source: Known,
    destination: Option<Known>,
    verdict: Verdict,
}

impl Comparing {
    pub(super) fn new(request: Arc<PlanRequest>, pass: Pass, counts: Arc<PlanCounts>, steps: mpsc::Sender<Step>) -> Self {
        let there = request.destination.storage.abilities();
        let here = request.source.as_ref().map_or(there, |place| place.storage.abilities());
        let options = &request.options;
        Self {
            rules: Comparison::new(options, here, there),
            takes_links: options.links && there.has_links,
            has_directories: there.has_directories,
            sets_directory_times: pass.transfers() && there.has_directories && there.sets_times && !options.no_update_dir_modtime,
            deletes: DeleteLimit::of(&request),
            asking: Semaphore::new(options.checkers.max(1) as usize),
            request,
            pass,
            counts,
            steps,
            deferred: Mutex::default(),
        }
    }

    /// What was kept for later; asked for when the walk has ended.
    pub(super) fn take_deferred(&self) -> Deferred {
        std::mem::take(&mut self.deferred.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn source(&self) -> &Root {
        self.request.source.as_ref().unwrap_or(&self.request.destination)
    }

    fn may_delete(&self) -> bool {
        self.pass == Pass::Delete || self.request.options.ignore_errors || self.counts.problems() == 0
    }

    fn problem(&self, state: &mut State, side: Side, name: Option<&str>, kind: ProblemKind, what: String) {
        let directory = state.directory.path_at(side);
        let path = name.and_then(|name| directory.join(name).ok()).unwrap_or_else(|| directory.clone());
        state.steps.push(self.counted(Problem { side, path, kind, what }));
    }

    fn counted(&self, problem: Problem) -> Step {
        self.counts.problems.fetch_add(1, Ordering::Relaxed);
        Step::Problem(problem)
    }

    fn notice(&self, state: &mut State, name: &str, kind: NoticeKind) {
        if let Ok(path) = state.directory.path.join(name) {
            state.steps.push(Step::Notice(Notice { path, kind }));
        }
    }

    /// Whether a file of the source is one to be taken, and if not, tells why.
    fn takes(&self, state: &mut State, item: Item<'_>) -> bool {
        match item.kind {
            ItemKind::Link(_) if !self.takes_links => self.notice(state, item.name, NoticeKind::LinkSkipped),
            ItemKind::Other => self.notice(state, item.name, NoticeKind::SpecialSkipped),
            _ => return true,
        }
        false
    }

    fn only_source(&self, state: &mut State, item: Item<'_>) -> Descend {
        if !self.pass.transfers() {
            return Descend::No;
        }
        if item.is_directory() {
            state.is_modified = true;
            self.directory_of_source(state, item);
            if let Ok(path) = state.directory.path.join(item.name)
                && self.request.options.create_empty_src_dirs
                && self.has_directories
            {
                state.steps.push(Step::MakeDirectory { path, mode: item.mode });
            }
            return Descend::Source;
        }
        if self.takes(state, item) {
            self.found(state, item, None, Verdict::Transfer);
        }
        Descend::No
    }

    fn only_destination(&self, state: &mut State, item: Item<'_>) -> Descend {
        if !self.pass.deletes() {
            return Descend::No;
        }
        if item.is_directory() {
            state.is_modified = true;
            if self.has_directories
                && self.pass != Pass::Delete
                && let Ok(path) = state.directory.path_at(Side::Destination).join(item.name)
            {
                state.deferred.removable.push(path);
            }
            return Descend::Destination;
        }
        let is_ours = matches!(item.kind, ItemKind::File) || (matches!(item.kind, ItemKind::Link(_)) && self.takes_links);
        if is_ours {
            self.delete(state, item);
        }
        Descend::No
    }

    fn both(&self, state: &mut State, source: Item<'_>, destination: Item<'_>) -> Descend {
        match (source.is_directory(), destination.is_directory()) {
            (true, true) => {
                self.directory_of_source(state, source);
                return Descend::Both;
            }
            (false, false) => {}
            // What is no content of the source does not stand in the way.
            (false, true) if !self.is_content(source) => return self.only_destination(state, destination),
            _ if self.pass == Pass::DeleteBefore => return self.only_destination(state, destination),
            (is_directory, _) => {
                let (here, there) = if is_directory { ("directory", "file") } else { ("file", "directory") };
                let what = format!("a {here} at the source, but a {there} at the destination");
                self.problem(state, Side::Source, Some(source.name), ProblemKind::WrongKind, what);
                return Descend::No;
            }
        }
        if !self.pass.transfers() {
            return Descend::No;
        }
        if self.takes(state, source) {
            state.compared += 1;
            let verdict = self.rules.compare(source, destination);
            self.found(state, source, Some(destination), verdict);
        }
        Descend::No
    }

    fn is_content(&self, item: Item<'_>) -> bool {
        match item.kind {
            ItemKind::File | ItemKind::Directory => true,
            ItemKind::Link(_) => self.takes_links,
            ItemKind::Other => false,
        }
    }

    fn directory_of_source(&self, state: &mut State, item: Item<'_>) {
        if self.request.task == Task::Move
            && self.request.options.delete_empty_src_dirs
            && let Ok(path) = state.directory.path.join(item.name)
        {
            state.deferred.removable.push(path);
        }
    }

    /// Keeps a file about which something is to be done or to be asked.
    fn found(&self, state: &mut State, source: Item<'_>, destination: Option<Item<'_>>, verdict: Verdict) {
        let is_done = match verdict {
            Verdict::Same => self.request.task != Task::Move,
            Verdict::Leave => true,
            _ => false,
        };
        if is_done {
            return;
        }
        let Some(known) = Known::of(source, &state.directory.path) else {
            let what = format!("the path of {:?} is too long", source.name);
            return self.problem(state, Side::Source, None, ProblemKind::Unreadable(ErrorKind::InvalidName), what);
        };
        let there = destination.and_then(|item| Known::of(item, state.directory.path_at(Side::Destination)));
        state.open.push(Open { source: known, destination: there, verdict });
    }

    fn delete(&self, state: &mut State, item: Item<'_>) {
        state.is_modified = true;
        let Some(known) = Known::of(item, state.directory.path_at(Side::Destination)) else { return };
        self.counts.deletes.fetch_add(1, Ordering::Relaxed);
        // The tag of a very large directory may not be kept. The delete is then fenced by what is found just before it.
        let operation = match self.backup_of(&known.entry) {
            Ok(Some(backup)) => backup,
            Ok(None) => Operation::DeleteFile {
                fs: self.request.destination.fs.clone(),
                remote: known.entry.path.to_string(),
                planned: Some(Planned { size: known.entry.size, tag: known.entry.tag, destination: None }),
            },
            Err(problem) => return state.steps.push(self.counted(problem)),
        };
        match self.pass {
            Pass::SyncAfter => state.deferred.deletes.push(operation),
            _ => {
                let step = self.deletes.step(operation);
                state.steps.extend(step.map(|step| if let Step::Problem(problem) = step { self.counted(problem) } else { step }));
            }
        }
    }

    /// The move to where backups are kept, if they are.
    fn backup_of(&self, entry: &Entry) -> Result<Option<Operation>, Problem> {
        let PlanRequest { options, destination, backup_fs, .. } = &*self.request;
        if (options.suffix.is_none() && backup_fs.is_none()) || self.pass == Pass::Delete {
            return Ok(None);
        }
        let path = backup_path(&entry.path, options).map_err(|error| Problem {
            side: Side::Destination,
            path: entry.path.clone(),
            kind: ProblemKind::Unreadable(ErrorKind::InvalidName),
            what: format!("no name for its backup: {error}"),
        })?;
        Ok(Some(Operation::MoveFile {
            src_fs: destination.fs.clone(),
            src_remote: entry.path.to_string(),
            dst_fs: backup_fs.as_ref().unwrap_or(&destination.fs).clone(),
            dst_remote: path.to_string(),
            planned: Some(Planned { size: entry.size, tag: entry.tag.clone(), destination: None }),
        }))
    }

    /// Asks the storages until it is clear what is to be done with a file.
    async fn resolve(&self, open: Open) -> Result<Open, (Side, StorageError)> {
        let (here, there) = (&self.source().storage, &self.request.destination.storage);
        let tries = self.request.options.low_level_retries;
        let _permit = self.asking.acquire().await;
        let Open { mut source, mut destination, mut verdict } = open;
        if matches!(verdict, Verdict::Leave | Verdict::Immutable) {
            return Ok(Open { source, destination, verdict });
        }
        source.complete(here.as_ref(), tries).await.map_err(|error| (Side::Source, error))?;
        if let Some(known) = &mut destination {
            known.complete(there.as_ref(), tries).await.map_err(|error| (Side::Destination, error))?;
            if verdict == Verdict::AskTimes {
                source.ask_time(here.as_ref(), tries).await.map_err(|error| (Side::Source, error))?;
                known.ask_time(there.as_ref(), tries).await.map_err(|error| (Side::Destination, error))?;
                verdict = self.rules.compare_again(Item::of(&source.entry), Item::of(&known.entry));
            }
            if let Verdict::AskContent(question) = verdict {
                let compared = retried(tries, || same_content((here, &source.entry), (there, &known.entry), false)).await;
                verdict = self.rules.decide(question, compared.map_err(|error| (Side::Source, error))?);
            }
        }
        Ok(Open { source, destination, verdict })
    }

    /// What comes of a file, once it is clear.
    fn decided(&self, state: &mut State, open: Open) {
        let Open { source, destination, verdict } = open;
        match (verdict, source.entry.modified) {
            (Verdict::Transfer, _) => self.transfer(state, source.entry, destination.map(|known| known.entry)),
            (Verdict::Immutable, _) => {
                let what = "differs from its source, and --immutable forbids to change it".to_owned();
                let problem = Problem { side: Side::Destination, path: source.entry.path, kind: ProblemKind::Immutable, what };
                state.steps.push(self.counted(problem));
            }
            (Verdict::UpdateTimes, Some(modified)) => {
                if let Some(known) = destination {
                    state.steps.push(Step::UpdateTimes { path: known.entry.path, modified });
                }
                self.end_of_source(state, source.entry);
            }
            (Verdict::Same | Verdict::UpdateTimes, _) => self.end_of_source(state, source.entry),
            (Verdict::Leave | Verdict::AskTimes | Verdict::AskContent(_), _) => {}
        }
    }

    /// A move leaves no source, even where nothing was to be copied.
    fn end_of_source(&self, state: &mut State, entry: Entry) {
        if self.request.task != Task::Move {
            return;
        }
        let planned = Some(Planned { size: entry.size, tag: entry.tag, destination: None });
        let operation = Operation::DeleteFile { fs: self.source().fs.clone(), remote: entry.path.to_string(), planned };
        state.steps.push(Step::Delete { side: Side::Source, operation });
    }

    fn transfer(&self, state: &mut State, source: Entry, destination: Option<Entry>) {
        let backup = match destination.as_ref().map(|entry| self.backup_of(entry)).transpose() {
            Ok(backup) => backup.flatten(),
            Err(problem) => return state.steps.push(self.counted(problem)),
        };
        state.is_modified = true;
        self.counts.transfers.fetch_add(1, Ordering::Relaxed);
        self.counts.transfer_bytes.fetch_add(source.size, Ordering::Relaxed);
        let seen = match &destination {
            Some(entry) if backup.is_none() => entry.tag.clone().map(Seen::Tag),
            _ => Some(Seen::Nothing),
        };
        let planned = Some(Planned { size: source.size, tag: source.tag, destination: seen });
        let dst_path = match destination {
            Some(entry) => entry.path,
            None => state.directory.path_at(Side::Destination).join(source.path.name()).unwrap_or_else(|_| source.path.clone()),
        };
        let (src_fs, dst_fs) = (self.source().fs.clone(), self.request.destination.fs.clone());
        let (src_remote, dst_remote) = (source.path.to_string(), dst_path.to_string());
        let operation = match self.request.task {
            Task::Move => Operation::MoveFile { src_fs, src_remote, dst_fs, dst_remote, planned },
            _ => Operation::CopyFile { src_fs, src_remote, dst_fs, dst_remote, planned },
        };
        state.steps.push(Step::Transfer { operation, backup });
    }

    /// The time that a directory gets in the end, if it has another one by then.
    fn directory_time(&self, directory: &WalkedDirectory, is_modified: bool) -> Option<DirectoryTime> {
        let modified = directory.source_modified.filter(|_| self.sets_directory_times)?;
        let is_right = match directory.sides {
            Descend::Both => !is_modified && self.rules.is_same_time(Some(modified), directory.destination_modified),
            Descend::Source => false,
            _ => true,
        };
        (!is_right).then(|| DirectoryTime { path: directory.path_at(Side::Destination).clone(), modified })
    }

    async fn handed_over(&self, state: &mut State, is_end: bool) -> bool {
        let open = std::mem::take(&mut state.open);
        let (clear, unclear): (Vec<_>, Vec<_>) = open.into_iter().partition(|open| open.is_clear());
        for open in clear {
            self.decided(state, open);
        }
        if !unclear.is_empty() {
            let paths_and_answers = unclear.into_iter().map(|open| {
                let path = open.source.entry.path.clone();
                self.resolve(open).map(|resolved| (path, resolved))
            });
            let checkers = self.request.options.checkers.max(1) as usize;
            let mut answers = futures_util::stream::iter(paths_and_answers).buffered(checkers);
            while let Some((path, resolved)) = answers.next().await {
                match resolved {
                    Ok(open) => self.decided(state, open),
                    Err((side, error)) => {
                        let problem = Problem { side, path, kind: ProblemKind::Unreadable(error.kind), what: error.what };
                        state.steps.push(self.counted(problem));
                    }
                }
            }
        }
        self.counts.listed.fetch_add(std::mem::take(&mut state.listed), Ordering::Relaxed);
        self.counts.compared.fetch_add(std::mem::take(&mut state.compared), Ordering::Relaxed);
        for step in state.steps.drain(..) {
            if matches!(step, Step::Delete { side: Side::Destination, .. }) && !self.may_delete() {
                state.deferred.suppressed += 1;
            } else if self.steps.send(step).await.is_err() {
                return false;
            }
        }
        if is_end {
            if !state.has_failed {
                state.deferred.times.extend(self.directory_time(&state.directory, state.is_modified));
            }
            self.deferred.lock().unwrap_or_else(PoisonError::into_inner).append(&mut state.deferred);
        }
        !self.steps.is_closed()
    }
}

impl Open {
    /// Whether nothing needs to be asked.
    fn is_clear(&self) -> bool {
        let is_complete = self.source.is_complete && self.destination.as_ref().is_none_or(|known| known.is_complete);
        is_complete && !matches!(self.verdict, Verdict::AskTimes | Verdict::AskContent(_))
    }
}

impl Visitor for Comparing {
    type State = State;

    fn begin(&self, directory: &WalkedDirectory) -> State {
        State {
            directory: directory.clone(),
            steps: Vec::new(),
            open: Vec::new(),
            deferred: Deferred::default(),
            forms: ForeignForms::default(),
            is_modified: false,
            has_failed: false,
            listed: 0,
            compared: 0,
        }
    }

    fn visit(&self, state: &mut State, source: Option<Item<'_>>, destination: Option<Item<'_>>) -> Descend {
        state.listed += u64::from(source.is_some()) + u64::from(destination.is_some());
        if let Some(item) = source
            && self.pass.transfers()
            && state.forms.has_seen(item.name)
        {
            self.notice(state, item.name, NoticeKind::SameLook);
        }
        match (source, destination) {
            (Some(source), Some(destination)) => self.both(state, source, destination),
            (Some(source), None) => self.only_source(state, source),
            (None, Some(destination)) => self.only_destination(state, destination),
            (None, None) => Descend::No,
        }
    }

    fn clashes(&self, state: &mut State, source: Item<'_>) {
        if self.pass.transfers() {
            let what = "the destination takes its name for that of another file in this directory; it is not copied".to_owned();
            self.problem(state, Side::Source, Some(source.name), ProblemKind::Clash, what);
        }
    }

    fn failed(&self, state: &mut State, side: Side, error: StorageError) {
        state.has_failed = true;
        self.problem(state, side, None, ProblemKind::Unreadable(error.kind), error.what);
    }

    fn deliver<'a>(&'a self, state: &'a mut State, is_end: bool) -> BoxFuture<'a, bool> {
        self.handed_over(state, is_end).boxed()
    }
}
