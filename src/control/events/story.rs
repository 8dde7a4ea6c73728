//! What is told of one class of one worker, out of what has arrived: with the ends of tasks that nobody could report, and gaps in words.
//!
//! There are two listeners, the class and those who follow live, and they need not be equally far; each has a story of its own.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::intake::{Before, Gap, TASKS_MAX};
use crate::proto::head::{EventHead, EventKind};
use crate::proto::message::BuiltinEvent;
use crate::types::{Incarnation, NodeStatus, Payload, TaskId};

/// What has arrived and is new.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// An event, or a gap that begins with `first`.
    Event { incarnation: Incarnation, head: EventHead, payload: Bytes, first: u64, before: Option<Before> },
    /// The worker has introduced itself.
    Resync { incarnation: Incarnation, gap: Option<Gap>, mark: u64, tasks: Vec<TaskId> },
    /// Word of our own.
    Status { incarnation: Incarnation, status: NodeStatus },
    /// The worker was restarted.
    NewIncarnation(Incarnation),
}

/// One thing that is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) incarnation: Incarnation,
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
    /// The task that sent it, or that it is about.
    pub(crate) task: Option<TaskId>,
    pub(crate) what: What,
}

/// What a listener is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Class(Payload),
    Builtin(BuiltinEvent),
    Resync { gap: Option<Gap>, tasks: Vec<TaskId> },
}

/// What one listener has been told.
#[derive(Debug, Default)]
pub(crate) struct Story {
    incarnation: Option<Incarnation>,
    /// Tasks that the listener believes to run.
    tasks: BTreeSet<TaskId>,
}

impl Story {
    /// What to tell now, in order. `now_ms` is our wall clock.
    pub(crate) fn tell(&mut self, item: Item, now_ms: u64) -> Vec<Told> {
        let mut told = Vec::with_capacity(1);
        match item {
            Item::Event { incarnation, head, payload, first, before } => {
                self.enter(incarnation, now_ms, &mut told);
                match before {
                    None => {}
                    Some(Before::Gap((from, to))) => {
                        told.push(builtin(incarnation, to, head.time_ms, BuiltinEvent::Gap { from, to }));
                    }
                    Some(Before::Resync(gap)) => self.resync(incarnation, gap, Vec::new(), now_ms, &mut told),
                }
                self.event(incarnation, head, payload, first, &mut told);
            }
            Item::Resync { incarnation, gap, tasks, .. } => {
                self.enter(incarnation, now_ms, &mut told);
                self.resync(incarnation, gap, tasks, now_ms, &mut told);
            }
            Item::Status { incarnation, status } => told.push(builtin(incarnation, 0, now_ms, BuiltinEvent::NodeStatus(status))),
            Item::NewIncarnation(incarnation) => self.enter(incarnation, now_ms, &mut told),
        }
        told
    }

    /// The worker was restarted: its old tasks are gone.
    fn enter(&mut self, incarnation: Incarnation, now_ms: u64, told: &mut Vec<Told>) {
        if self.incarnation == Some(incarnation) {
            return;
        }
        let old = self.incarnation.replace(incarnation).unwrap_or_default();
        for id in std::mem::take(&mut self.tasks) {
            let ended = BuiltinEvent::TaskStopped { id, reason: "node_restarted".to_owned() };
            told.push(builtin(old, 0, now_ms, ended));
        }
    }

    fn resync(&mut self, incarnation: Incarnation, gap: Option<Gap>, tasks: Vec<TaskId>, now_ms: u64, told: &mut Vec<Told>) {
        self.tasks = tasks.iter().cloned().collect();
        told.push(Told { incarnation, seq: 0, time_ms: now_ms, task: None, what: What::Resync { gap, tasks } });
    }

    fn event(&mut self, incarnation: Incarnation, head: EventHead, payload: Bytes, first: u64, told: &mut Vec<Told>) {
        let EventHead { seq, time_ms, kind, task, .. } = head;
        match kind {
            EventKind::Class => {
                told.push(Told { incarnation, seq, time_ms, task, what: What::Class(Payload::from_bytes(payload)) });
            }
            // What it says of its beginning may have been seen in part; its end is its number.
            EventKind::Gap => told.push(builtin(incarnation, seq, time_ms, BuiltinEvent::Gap { from: first, to: seq })),
            EventKind::Builtin => match rmp_serde::from_slice::<BuiltinEvent>(&payload) {
                Ok(event) => {
                    match &event {
                        BuiltinEvent::TaskStarted(id) if self.tasks.len() < TASKS_MAX => {
                            self.tasks.insert(id.clone());
                        }
                        BuiltinEvent::TaskStopped { id, .. } => {
                            self.tasks.remove(id);
                        }
                        _ => {}
                    }
                    told.push(builtin(incarnation, seq, time_ms, event));
                }
                Err(error) => tracing::warn!(class = %head.class, seq, %error, "an event of ours cannot be read"),
            },
        }
    }
}

fn builtin(incarnation: Incarnation, seq: u64, time_ms: u64, event: BuiltinEvent) -> Told {
    let task = match &event {
        BuiltinEvent::TaskStarted(id) | BuiltinEvent::TaskStopped { id, .. } => Some(id.clone()),
        BuiltinEvent::NodeStatus(_) | BuiltinEvent::Gap { .. } => None,
    };
    Told { incarnation, seq, time_ms, task, what: What::Builtin(event) }
}
