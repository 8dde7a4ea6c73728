//! What is new of what a worker sends: the marks of one class, as a machine.
//!
//! A worker numbers the events of a class from 1, for each of its incarnations, without holes; after every reconnect it sends again what was not acknowledged.
//! The intake lets each number through once, and accounts for all of them: what does not come as an event comes inside a gap.
//!
//! What a class is told first of an incarnation is a resync, unless it has never heard of the worker and numbers begin at 1: then there is nothing to
//! reconcile.

use crate::proto::head::EventKind;
use crate::proto::message::Resync;
use crate::types::{Incarnation, TaskId};

/// Tasks that one resync may name: as many as a worker may run.
pub(crate) const TASKS_MAX: usize = 65_536;

/// First and last number of a gap.
pub(crate) type Gap = (u64, u64);

/// What is to be told before an event, because it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// The numbers up to the event were lost without a word.
    Gap(Gap),
    /// This incarnation has not been introduced; and what of it was lost.
    Resync(Option<Gap>),
}

/// An event that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// First number that it stands for; less than its own only for a gap.
    pub(crate) first: u64,
    /// What comes before it.
    pub(crate) before: Option<Before>,
}

/// What a page of a resync completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resynced {
    /// Further pages follow.
    More,
    /// The worker names more tasks than it may run.
    TooMany,
    /// The class is to be told.
    Done {
        /// Numbers that will not come.
        gap: Option<Gap>,
        /// Last number that is behind us now.
        mark: u64,
        /// Tasks that run.
        tasks: Vec<TaskId>,
    },
}

/// The marks of one class of one worker. `C` names a channel.
#[derive(Debug)]
pub(crate) struct Intake<C> {
    incarnation: Incarnation,
    /// Last number that was let through.
    mark: u64,
    /// Whether the class knows of this incarnation.
    introduced: bool,
    /// Whether an earlier incarnation was known: then the first word of a new one must be a resync.
    restarted: bool,
    /// Pages of a resync that is not complete, with the channel they came on: a cut one is begun anew on another channel.
    pages: Option<(C, Vec<TaskId>)>,
}

impl<C: PartialEq> Intake<C> {
    /// Of a class of which nothing was heard yet.
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, mark: 0, introduced: false, restarted: false, pages: None }
    }

    /// Whether a number has not been let through.
    pub(crate) fn is_new(&self, incarnation: Incarnation, seq: u64) -> bool {
        seq > 0 && (incarnation != self.incarnation || seq > self.mark)
    }

    /// Lets an event through that [is new](Self::is_new).
    pub(crate) fn event(&mut self, incarnation: Incarnation, seq: u64, kind: EventKind) -> Arrival {
        self.enter(incarnation);
        let first = self.mark.saturating_add(1);
        // A gap stands for everything from the mark on, however its front was cut or seen before.
        let lost = (kind != EventKind::Gap && first < seq).then(|| (first, seq - 1));
        let before = match lost {
            _ if !self.introduced && self.restarted => Some(Before::Resync(lost)),
            Some(gap) if !self.introduced => Some(Before::Resync(Some(gap))),
            Some(gap) => Some(Before::Gap(gap)),
            None => None,
        };
        self.introduced = true;
        self.mark = seq;
        Arrival { first: if kind == EventKind::Gap { first } else { seq }, before }
    }

    /// Whether a resync says anything: after a mere reconnect it does not.
    pub(crate) fn resync_is_news(&self, incarnation: Incarnation, next_seq: u64) -> bool {
        incarnation != self.incarnation || !self.introduced || next_seq > self.mark.saturating_add(1)
    }

    /// Takes in a page of a resync that [is news](Self::resync_is_news).
    pub(crate) fn resync(&mut self, channel: C, incarnation: Incarnation, page: Resync) -> Resynced {
        self.enter(incarnation);
        let (channel, mut tasks) = match self.pages.take() {
            Some((of, tasks)) if of == channel => (of, tasks),
            _ => (channel, Vec::new()),
        };
        if tasks.len() + page.tasks.len() > TASKS_MAX {
            return Resynced::TooMany;
        }
        tasks.extend(page.tasks);
        if page.more {
            self.pages = Some((channel, tasks));
            return Resynced::More;
        }
        let first = self.mark.saturating_add(1);
        let gap = (page.next_seq > first).then(|| (first, page.next_seq - 1));
        self.mark = self.mark.max(page.next_seq.saturating_sub(1));
        self.introduced = true;
        Resynced::Done { gap, mark: self.mark, tasks }
    }

    fn enter(&mut self, incarnation: Incarnation) {
        if self.incarnation != incarnation {
            *self = Self { restarted: true, ..Self::new(incarnation) };
        }
    }
}

#[cfg(test)]
mod tests;
