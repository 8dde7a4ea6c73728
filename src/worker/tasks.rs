//! The tasks of this worker, and the status that decides whether it takes more.
//!
//! The table knows which tasks exist, keyed by class and id; it neither runs nor stops them. The
//! status of the whole worker lives here too, because both move together: a worker that is asked
//! to stop is `stopping` while a task is left, and `stopped` by itself when the last one has ended
//! (checklist A6). Every method returns what the shell must do, in order.
//!
//! ```text
//!   start ──► starting ── started ──► running ── ended ──► gone, one `task_stopped`
//!                └─ ended: the class refused it; nobody is told
//! ```
//!
//! A task that was starting while the status changed is told as soon as it runs: no task
//! misses a status.

use std::collections::BTreeMap;

pub use crate::proto::entry::EndReason;
use crate::types::{ClassName, NodeStatus, TaskId, Transition, WantedStatus};
use crate::{Error, ErrorCode, Result};

/// Most tasks of one worker at a time. What the event journal never drops is bounded by it.
pub const TASKS_MAX: usize = 65_536;

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Call `status` of every running task. When the status has changed and a task runs.
    NotifyTasks(NodeStatus),
    /// Call `status` of one task. When the status changed while it was starting.
    NotifyTask {
        /// Class of the task.
        class: ClassName,
        /// The task.
        id: TaskId,
        /// The status to tell.
        status: NodeStatus,
    },
    /// Append `task_started` to the journal. Once for each task that runs.
    EmitStarted {
        /// Class of the task.
        class: ClassName,
        /// The task.
        id: TaskId,
    },
    /// Append `task_stopped` to the journal. Once for each task that ran.
    EmitStopped {
        /// Class of the task.
        class: ClassName,
        /// The task.
        id: TaskId,
        /// Why it ended.
        reason: EndReason,
    },
    /// Append `node_status` to the journal, for every class that has had an event. When the status has changed.
    EmitStatus(NodeStatus),
    /// Send the holder a fresh description of this node. Last, once, when the status has changed.
    PublishUpdate,
}

/// How far a task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Its class is starting it.
    Starting,
    /// It runs.
    Running,
}

impl TaskState {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
        }
    }
}

/// One task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// Wall clock at its start, in milliseconds since 1970, for people only.
    pub started_ms: u64,
    /// How far it has come.
    pub state: TaskState,
}

/// Task table and status of one worker.
#[derive(Debug)]
pub struct Tasks {
    status: NodeStatus,
    classes: BTreeMap<ClassName, BTreeMap<TaskId, TaskRow>>,
    len: usize,
}

impl Tasks {
    /// No tasks, status `ready` (checklist N6.3).
    pub fn new() -> Self {
        Self { status: NodeStatus::Ready, classes: BTreeMap::new(), len: 0 }
    }

    /// Takes the place of a task before its class starts it.
    ///
    /// # Errors
    /// `already_started` if the class has a task with this id, `node_not_ready` in any status but `ready`, `busy` if there are
    /// [`TASKS_MAX`] tasks. Nothing was done.
    pub fn start(&mut self, class: &ClassName, id: &TaskId, now_ms: u64) -> Result<()> {
        if self.row(class, id).is_some() {
            let message = format!("task {id} of class {class} runs already");
            return Err(Error::new(ErrorCode::AlreadyStarted, message));
        }
        if !self.status.accepts_tasks() {
            let message = format!("task {id} of class {class} was not started: {{node_not_ready, {}}}", self.status);
            return Err(Error::new(ErrorCode::NodeNotReady, message));
        }
        if self.len >= TASKS_MAX {
            let message = format!("task {id} of class {class} was not started: {TASKS_MAX} tasks run already");
            return Err(Error::new(ErrorCode::Busy, message));
        }
        let row = TaskRow { started_ms: now_ms, state: TaskState::Starting };
        self.classes.entry(class.clone()).or_default().insert(id.clone(), row);
        self.len += 1;
        Ok(())
    }

    /// The class has started the task. Of a task that is not starting nothing changes.
    pub fn started(&mut self, class: &ClassName, id: &TaskId) -> Vec<Action> {
        let row = self.classes.get_mut(class).and_then(|tasks| tasks.get_mut(id));
        let Some(row) = row.filter(|row| row.state == TaskState::Starting) else { return Vec::new() };
        row.state = TaskState::Running;
        let mut actions = vec![Action::EmitStarted { class: class.clone(), id: id.clone() }];
        // It began to start while the worker was ready, as every task does.
        if self.status != NodeStatus::Ready {
            actions.push(Action::NotifyTask { class: class.clone(), id: id.clone(), status: self.status });
        }
        actions
    }

    /// The task has ended, or could not be started. Of an unknown task nothing changes, so that each end is told once.
    pub fn ended(&mut self, class: &ClassName, id: &TaskId, reason: EndReason) -> Vec<Action> {
        let Some(tasks) = self.classes.get_mut(class) else { return Vec::new() };
        let Some(row) = tasks.remove(id) else { return Vec::new() };
        if tasks.is_empty() {
            self.classes.remove(class);
        }
        self.len -= 1;
        let mut actions = Vec::new();
        if row.state == TaskState::Running {
            actions.push(Action::EmitStopped { class: class.clone(), id: id.clone(), reason });
        }
        if self.drain(&mut actions) {
            actions.push(Action::PublishUpdate);
        }
        actions
    }

    /// Somebody wants another status. The same one, or the one that is under way, changes nothing.
    ///
    /// # Errors
    /// `not_allowed` if the present status does not permit it (checklist N6.12).
    pub fn set_status(&mut self, wanted: WantedStatus) -> Result<Vec<Action>> {
        let mut actions = Vec::new();
        if let Transition::To(status) = self.status.transition(wanted, self.len)? {
            self.change(status, &mut actions);
            self.drain(&mut actions);
            actions.push(Action::PublishUpdate);
        }
        Ok(actions)
    }

    /// Goes from stopping to stopped if no task is left.
    fn drain(&mut self, actions: &mut Vec<Action>) -> bool {
        if self.len == 0
            && let Transition::To(status) = self.status.drained()
        {
            self.change(status, actions);
            return true;
        }
        false
    }

    fn change(&mut self, status: NodeStatus, actions: &mut Vec<Action>) {
        self.status = status;
        if self.iter().any(|(_, _, row)| row.state == TaskState::Running) {
            actions.push(Action::NotifyTasks(status));
        }
        actions.push(Action::EmitStatus(status));
    }

    /// The present status.
    pub fn status(&self) -> NodeStatus {
        self.status
    }

    /// One task, or `None` if the class has no such task or it has ended.
    pub fn row(&self, class: &ClassName, id: &TaskId) -> Option<&TaskRow> {
        self.classes.get(class)?.get(id)
    }

    /// Every task, by class and id.
    pub fn iter(&self) -> impl Iterator<Item = (&ClassName, &TaskId, &TaskRow)> {
        self.classes.iter().flat_map(|(class, tasks)| tasks.iter().map(move |(id, row)| (class, id, row)))
    }

    /// The tasks of one class, by id.
    pub fn of_class(&self, class: &ClassName) -> impl Iterator<Item = (&TaskId, &TaskRow)> {
        self.classes.get(class).into_iter().flatten()
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `true` if there is no task.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tasks of one class.
    pub fn len_of_class(&self, class: &ClassName) -> usize {
        self.classes.get(class).map_or(0, BTreeMap::len)
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
