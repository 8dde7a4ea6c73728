//! What is known of each worker of a crew, and whom it is worth to tell that there is work.
//!
//! ```text
//!   away ──start──► starting ───────────────────► working ──watch──► working
//!    ▲ ▲               │ └─started before─► found ──▲ │
//!    │ └───refused─────┘                     │        │ unknown, or silent
//!    └───────────────────────────────────────┴────────┘
//! ```
//!
//! A worker that has work looks for more by itself. So only those without any are told, each time as many as there are batches that nobody has taken, those first who
//! were not told for the longest time.

use std::collections::{BTreeMap, BTreeSet};

use nkcluster::types::NodeId;
use nkcluster::{Error, ErrorCode};
use tokio::time::{Duration, Instant};

use crate::attempt::{Attempt, RunId};
use crate::class::{NO_QUEUE, NO_RUN, Reply, WorkReport, worker_id};
use crate::queue::{JobName, WorkerId};

/// Silence of a worker after which it is taken for lost.
const SILENCE: Duration = Duration::from_secs(15);
/// Pause before a worker is started again, and before one that did not answer is asked again.
const START_PAUSE: Duration = Duration::from_secs(1);
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// Said where nothing was heard yet, it is answered at once and with all that is still known.
const EVERYTHING: u64 = u64::MAX;
/// Times that a worker may see no such run before it is left out: a network file system may show late what is new.
const NO_RUN_MAX: u32 = 3;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Start the task there. Then [`Members::handle_started`].
    Start(NodeId),
    /// Ask what happens there. Then [`Members::handle_watched`].
    Watch { node: NodeId, seen: u64, pause: Duration },
    /// Tell the worker to look for work. Then [`Members::handle_looked`].
    Look(NodeId),
    /// Something for people.
    Tell(String),
    /// Something happened in the queue.
    WakeController,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Away,
    Starting,
    /// It was started before, by an earlier controller of the run or an earlier call of ours, and has not told yet that it has begun.
    Found,
    Working,
}

#[derive(Debug, Default)]
struct Member {
    at: At,
    /// Its node is ready.
    is_there: bool,
    /// Its node was asked to start it, so it may have left something.
    was_started: bool,
    /// Why it did not begin.
    why: Option<String>,
    /// It is not asked again.
    is_refused: bool,
    /// Times that it has seen no such run.
    no_run: u32,
    rests_until: Option<Instant>,
    heard: Option<Instant>,
    seen: u64,
    held: u64,
    ended: u64,
    /// It is being told to look.
    is_told: bool,
    /// When it was told last, in the order of tellings.
    told: u64,
}

impl Member {
    fn is_idle(&self) -> bool {
        self.at == At::Working && self.held == 0
    }
}

/// The workers of a crew.
#[derive(Debug)]
pub(super) struct Members {
    run: RunId,
    members: BTreeMap<NodeId, Member>,
    /// Batches that were offered and nobody is known to have, and at which attempt.
    open: BTreeMap<u64, u32>,
    /// Workers that are to be told, as soon as there are any without work.
    due: usize,
    tellings: u64,
    /// The run is over, and its workers are told to stop.
    is_over: bool,
    actions: Vec<Action>,
}

/// The node of a worker of a crew, for people.
pub(super) fn node_of(worker: &WorkerId, run: RunId) -> Option<String> {
    let node = worker.as_str().strip_suffix(run.as_str())?.strip_suffix('.')?;
    Some(node.replacen('=', ".", 1).replace('+', ":"))
}

impl Members {
    pub(super) fn new(run: RunId) -> Self {
        Self { run, members: BTreeMap::new(), open: BTreeMap::new(), due: 0, tellings: 0, is_over: false, actions: Vec::new() }
    }

    /// What is to be done now.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        self.tell_idle();
        std::mem::take(&mut self.actions)
    }

    /// How many are at work, or wait for some.
    pub(super) fn working(&self) -> usize {
        self.members.values().filter(|member| member.at == At::Working).count()
    }

    /// Nodes that may have a task.
    pub(super) fn employed(&self) -> impl Iterator<Item = &NodeId> {
        self.members.iter().filter(|(_, member)| member.was_started || member.at == At::Starting).map(|(node, _)| node)
    }

    /// Nodes whose answer whether they have begun is awaited.
    pub(super) fn starting(&self) -> impl Iterator<Item = &NodeId> {
        self.members.iter().filter(|(_, member)| member.at == At::Starting).map(|(node, _)| node)
    }

    /// Workers that did not begin, and why.
    pub(super) fn unused(&self) -> impl Iterator<Item = (&NodeId, &str)> {
        self.members.iter().filter_map(|(node, member)| Some((node, member.why.as_deref()?)))
    }

    /// These nodes are ready, and no others.
    pub(super) fn handle_nodes(&mut self, ready: BTreeSet<NodeId>, now: Instant) {
        for (node, member) in &mut self.members {
            member.is_there = ready.contains(node);
            if !member.is_there {
                // When it is back, it may be another: started with another configuration, with the storage mounted.
                (member.is_refused, member.no_run) = (false, 0);
            }
        }
        for node in ready {
            self.members.entry(node).or_default().is_there = true;
        }
        self.start_some(now);
    }

    /// Some time has passed.
    pub(super) fn handle_tick(&mut self, now: Instant) {
        self.start_some(now);
        // What was told may have been lost.
        if !self.open.is_empty() {
            self.is_due(self.open.len());
        }
    }

    /// The task of a node was started, or was not.
    pub(super) fn handle_started(&mut self, node: &NodeId, started: Result<(), Error>, now: Instant) {
        let Some(member) = self.members.get_mut(node) else { return };
        match started {
            Ok(()) => {
                *member =
                    Member { at: At::Working, is_there: true, was_started: true, heard: Some(now), told: member.told, ..Member::default() };
                self.actions.push(Action::Tell(format!("worker {node} takes part")));
                self.actions.push(Action::Watch { node: node.clone(), seen: 0, pause: Duration::ZERO });
            }
            Err(error) if *error.code() == ErrorCode::AlreadyStarted => {
                let why = member.why.take();
                *member = Member {
                    at: At::Found,
                    is_there: true,
                    was_started: true,
                    why,
                    heard: Some(now),
                    seen: EVERYTHING,
                    told: member.told,
                    ..Member::default()
                };
                self.actions.push(Action::Watch { node: node.clone(), seen: EVERYTHING, pause: Duration::ZERO });
            }
            Err(error) => {
                // Nobody knows whether one was started whose answer was lost.
                member.was_started |= error.may_have_run();
                member.at = At::Away;
                member.no_run += u32::from(error.code().name() == NO_RUN);
                member.why = Some(error.message().to_owned());
                if is_final(&error) || member.no_run >= NO_RUN_MAX {
                    member.is_refused = true;
                    self.actions.push(Action::Tell(format!("worker {node} is not used: {}", error.message())));
                } else {
                    tracing::debug!(%node, %error, "a worker did not begin");
                    member.rests_until = Some(now + START_PAUSE);
                }
            }
        }
    }

    /// What happens at a worker.
    pub(super) fn handle_watched(&mut self, node: &NodeId, watched: Result<Reply, Error>, now: Instant) {
        let Some(member) = self.members.get_mut(node).filter(|member| matches!(member.at, At::Found | At::Working)) else { return };
        match watched {
            Ok(Reply::Working(report)) => self.hear(node, report, now),
            Err(_) if member.heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE) => {
                self.actions.push(Action::Watch { node: node.clone(), seen: member.seen, pause: ASK_PAUSE });
            }
            lost => {
                let has_begun = member.at == At::Working;
                member.at = At::Away;
                member.rests_until = Some(now + START_PAUSE);
                if has_begun && !self.is_over {
                    let why = lost.map_or_else(|error| error.message().to_owned(), |_| "it has ended, or was restarted".to_owned());
                    self.actions.push(Action::Tell(format!("worker {node} is lost: {why}")));
                }
            }
        }
    }

    fn hear(&mut self, node: &NodeId, report: WorkReport, now: Instant) {
        let Some(member) = self.members.get_mut(node) else { return };
        if member.at == At::Found {
            (member.at, member.why) = (At::Working, None);
            // A new one looks by itself.
            self.actions.extend([Action::Tell(format!("worker {node} takes part")), Action::Look(node.clone())]);
        }
        let WorkReport { seen, held, ended, gave, lines } = report;
        let (has_ended, is_free) = (ended != member.ended, held == 0 && member.held > 0);
        (member.heard, member.seen, member.held, member.ended) = (Some(now), seen, held, ended);
        self.actions.push(Action::Watch { node: node.clone(), seen, pause: Duration::ZERO });
        self.actions.extend(lines.into_iter().map(|line| Action::Tell(format!("worker {node}: {line}"))));
        if has_ended || !gave.is_empty() {
            self.actions.push(Action::WakeController);
        }
        for asked in gave {
            // Whoever asked has it, if nobody is quicker; who is no member looks by itself.
            let asks = |node: &NodeId| asked.is_some() && worker_id(node, self.run).map(|id| id.to_string()) == asked;
            match self.members.iter().find(|(node, member)| member.at == At::Working && asks(node)) {
                Some((node, _)) => self.actions.push(Action::Look(node.clone())),
                None => self.is_due(1),
            }
        }
        if is_free && !self.open.is_empty() {
            self.is_due(1);
        }
    }

    /// A worker was told to look.
    pub(super) fn handle_looked(&mut self, node: &NodeId) {
        if let Some(member) = self.members.get_mut(node) {
            member.is_told = false;
        }
    }

    /// A batch was offered.
    pub(super) fn handle_offered(&mut self, job: &JobName) {
        let Some(Attempt { batch, attempt, .. }) = job.attempt() else { return };
        // An earlier attempt may have gone without anybody ever having had it.
        if self.open.insert(batch, attempt) != Some(attempt) {
            self.is_due(self.due + 1);
        }
    }

    /// A batch is somebody's, or is over.
    pub(super) fn handle_taken(&mut self, job: &JobName) {
        if let Some(Attempt { batch, .. }) = job.attempt() {
            self.open.remove(&batch);
        }
    }

    /// A worker of the queue is to stop, as the run is over; one of ours must look to learn it.
    pub(super) fn handle_told_to_stop(&mut self, worker: &WorkerId) {
        self.is_over = true;
        let node = self.members.keys().find(|node| worker_id(node, self.run).as_ref() == Some(worker));
        self.actions.extend(node.cloned().map(Action::Look));
    }

    fn start_some(&mut self, now: Instant) {
        if self.is_over {
            return;
        }
        for (node, member) in &mut self.members {
            let is_free = member.at == At::Away && member.is_there && !member.is_refused;
            if is_free && member.rests_until.is_none_or(|until| until <= now) {
                member.at = At::Starting;
                self.actions.push(Action::Start(node.clone()));
            }
        }
    }

    /// At least so many are to be told.
    fn is_due(&mut self, count: usize) {
        self.due = self.due.max(count).min(self.members.len());
    }

    fn tell_idle(&mut self) {
        while self.due > 0 {
            let idle = self.members.iter_mut().filter(|(_, member)| member.is_idle() && !member.is_told);
            let Some((node, member)) = idle.min_by_key(|(_, member)| member.told) else { break };
            self.tellings += 1;
            (member.is_told, member.told) = (true, self.tellings);
            self.due -= 1;
            self.actions.push(Action::Look(node.clone()));
        }
        // Whoever is at work looks by itself.
        if !self.members.values().any(Member::is_idle) {
            self.due = 0;
        }
    }
}

/// Whether it will be the same again, as long as the node is not started anew.
fn is_final(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::NotAllowed | ErrorCode::UnknownClass | ErrorCode::InvalidPayload | ErrorCode::UnknownRequest)
        || error.code().name() == NO_QUEUE
}

#[cfg(test)]
mod tests;
