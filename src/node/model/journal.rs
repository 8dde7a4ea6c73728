//! Events of a worker on their way to a class and to those who follow, over links that are cut, with both sides restarted and a class that hangs.
//!
//! ```text
//!   worker: Journal ─► events, resync ─► control node: Intake, Story ─┬─ queue ─► the class ─► acknowledgement
//!                                                                     └─ those who follow, at once
//! ```
//!
//! The reference knows what was appended and what the two listeners were told. Whatever happens: in order, nothing twice, nothing missing without a word, nothing
//! dropped while there is room, starts and ends of tasks never lost, nothing acknowledged that no class has taken in, and nobody who follows waits for a class.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{Dice, Found, finds, holds};
use crate::control::events::intake::{Arrival, Intake, Resynced};
use crate::control::events::story::{Item, Story, Told, What};
use crate::proto::entry::{EndReason, EntryKind};
use crate::proto::head::{Audience, EventHead, EventKind};
use crate::proto::message::{BuiltinEvent, EventAck, RESYNC_TASKS_MAX, Resync};
use crate::types::{ClassName, Incarnation, Payload, TaskId};
use crate::worker::event_frame;
use crate::worker::journal::Journal;

const STEPS: usize = 300;
const WINDOW: usize = 4;

/// What is built in to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// After a reconnect the worker goes on where it was.
    NoReplay,
    /// The control node acknowledges what its class has not taken in.
    AckBeforeHandler,
    /// The end of a task is dropped like any other event.
    DropTaskEnd,
    /// Nobody is told what was dropped.
    NoGap,
    /// The worker does not introduce itself on a new link.
    NoResync,
    /// What comes again is told again.
    NoDeduplication,
    /// Those who follow get what the class gets, when it gets it.
    NothingAhead,
    /// What is sent ahead is taken for the class as well.
    AheadForTheClass,
    /// The tasks of a worker that was restarted are left running.
    NoNodeRestarted,
    /// A resync names tasks whose start is still to come, and may be dropped together with its end.
    StartToldTwice,
}

const FAULTS: [Fault; 10] = [
    Fault::StartToldTwice,
    Fault::NoReplay,
    Fault::AckBeforeHandler,
    Fault::DropTaskEnd,
    Fault::NoGap,
    Fault::NoResync,
    Fault::NoDeduplication,
    Fault::NothingAhead,
    Fault::AheadForTheClass,
    Fault::NoNodeRestarted,
];

enum ToControl {
    Event(EventHead, Bytes),
    Resync(Resync),
}

/// What one listener was told by one life of the control node.
#[derive(Default)]
struct Heard {
    /// Of each life of the worker: the last number.
    marks: BTreeMap<Incarnation, u64>,
    /// Tasks that it believes to run, by the life of the worker.
    tasks: BTreeMap<Incarnation, BTreeSet<TaskId>>,
}

struct World {
    dice: Dice,
    fault: Option<Fault>,
    ample: bool,
    lives: u8,
    journal: Journal,
    /// What was appended, of all lives.
    appended: BTreeMap<(Incarnation, u64), What>,
    running: BTreeSet<TaskId>,
    tasks_made: u32,
    /// The link, if there is one, by its number.
    link: Option<u32>,
    links: u32,
    to_control: VecDeque<ToControl>,
    to_worker: VecDeque<EventAck>,
    // The control node, as its dispatcher.
    taken: Incarnation,
    class_intake: Intake<u32>,
    live_intake: Intake<u32>,
    class_story: Story,
    live_story: Story,
    queue: VecDeque<Item>,
    delivered: u64,
    fresh: bool,
    // The listeners.
    class: Heard,
    live: Heard,
    /// Numbers that a class has taken in, or knows to be lost.
    settled: BTreeSet<(Incarnation, u64)>,
    /// Numbers that those who follow were told, or know to be lost.
    followed: BTreeSet<(Incarnation, u64)>,
    /// What those who follow were told wrong.
    wrong: Option<String>,
}

fn class() -> ClassName {
    ClassName::new("model").expect("a valid name")
}

fn life(number: u8) -> Incarnation {
    Incarnation::from_bytes([number; 16])
}

impl World {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut dice = Dice::new(seed ^ 0x1234);
        let ample = dice.percent(40);
        Self {
            dice,
            fault,
            ample,
            lives: 1,
            journal: Journal::new(if ample { usize::MAX } else { 2500 }),
            appended: BTreeMap::new(),
            running: BTreeSet::new(),
            tasks_made: 0,
            link: None,
            links: 0,
            to_control: VecDeque::new(),
            to_worker: VecDeque::new(),
            taken: life(1),
            class_intake: Intake::new(life(1)),
            live_intake: Intake::new(life(1)),
            class_story: Story::default(),
            live_story: Story::default(),
            queue: VecDeque::new(),
            delivered: 0,
            fresh: true,
            class: Heard::default(),
            live: Heard::default(),
            settled: BTreeSet::new(),
            followed: BTreeSet::new(),
            wrong: None,
        }
    }

    // ---- the worker

    fn append(&mut self, kind: EntryKind, what: What) -> Found {
        let payload = match &what {
            What::Class(payload) => payload.clone(),
            _ => Payload::nil(),
        };
        let seq = self.journal.append(&class(), kind, payload, 0).map_err(|error| error.to_string())?;
        self.appended.insert((life(self.lives), seq), what);
        self.pump();
        Ok(())
    }

    fn happens(&mut self) -> Found {
        match self.dice.below(6) {
            0 => {
                self.tasks_made += 1;
                let id = TaskId::new(format!("t{}", self.tasks_made)).expect("a valid name");
                self.running.insert(id.clone());
                self.append(EntryKind::TaskStarted(id.clone()), What::Builtin(BuiltinEvent::TaskStarted(id)))
            }
            1 if !self.running.is_empty() => {
                let id = self.running.iter().nth(self.dice.below(self.running.len())).expect("one of them").clone();
                self.running.remove(&id);
                let kind = EntryKind::TaskStopped { id: id.clone(), reason: EndReason::Normal };
                self.append(kind, What::Builtin(BuiltinEvent::TaskStopped { id, reason: "normal".to_owned() }))
            }
            _ => {
                let bytes = 8 + self.dice.below(300);
                let mut payload = vec![0; bytes];
                payload[..8].copy_from_slice(&self.dice.next().to_be_bytes());
                let payload = Payload::from_bytes(payload);
                let kind = match self.running.first() {
                    Some(task) if self.dice.percent(50) => EntryKind::OfTask(task.clone()),
                    _ => EntryKind::Class,
                };
                self.append(kind, What::Class(payload))
            }
        }
    }

    fn pump(&mut self) {
        if self.link.is_none() {
            return;
        }
        while let Some(outgoing) = self.journal.next_to_send(WINDOW) {
            let (head, payload) = event_frame(outgoing, Audience::Everybody);
            self.to_control.push_back(ToControl::Event(head, payload));
        }
        while self.fault != Some(Fault::NothingAhead)
            && let Some(outgoing) = self.journal.next_for_followers(WINDOW)
        {
            let (head, payload) = event_frame(outgoing, Audience::Followers);
            self.to_control.push_back(ToControl::Event(head, payload));
        }
    }

    fn cut(&mut self) {
        self.link = None;
        self.to_control.clear();
        self.to_worker.clear();
    }

    fn connect(&mut self) {
        self.cut();
        self.links += 1;
        self.link = Some(self.links);
        if self.taken != life(self.lives) {
            self.taken = life(self.lives);
            self.delivered = 0;
            let told = self.live_story.tell(Item::NewIncarnation(self.taken), 0);
            self.live_told(told);
            self.queue.push_back(Item::NewIncarnation(self.taken));
        }
        if self.fault != Some(Fault::NoReplay) {
            self.journal.rewind();
        }
        let marks: Vec<u64> = self.journal.classes().map(|(_, marks)| marks.acknowledged + 1).collect();
        if self.fault != Some(Fault::NoResync) {
            for next_seq in marks {
                let told_later = |id: &TaskId| self.journal.will_tell_start(&class(), id) && self.fault != Some(Fault::StartToldTwice);
                let tasks: Vec<TaskId> = self.running.iter().filter(|id| !told_later(id)).cloned().collect();
                assert!(tasks.len() <= RESYNC_TASKS_MAX, "one page is all");
                self.to_control.push_back(ToControl::Resync(Resync { class: class(), next_seq, tasks, more: false }));
            }
        }
        self.pump();
    }

    fn restart_worker(&mut self) {
        self.cut();
        self.lives += 1;
        self.running.clear();
        self.journal = Journal::new(if self.ample { usize::MAX } else { 2500 });
    }

    fn acknowledged(&mut self) -> Found {
        let Some(ack) = self.to_worker.pop_front() else { return Ok(()) };
        if ack.seq > 0 {
            for seq in 1..=ack.seq {
                if !self.settled.contains(&(life(self.lives), seq)) {
                    return Err(format!("event {seq} of life {} was acknowledged, but no class has taken it in", self.lives));
                }
            }
            self.journal.ack(&ack.class, ack.seq).map_err(|error| error.to_string())?;
        }
        self.journal.followed(&ack.class, ack.followed);
        self.pump();
        Ok(())
    }

    // ---- the control node

    fn arrives(&mut self) -> Found {
        let Some(arrived) = self.to_control.pop_front() else { return Ok(()) };
        let (of, channel) = (self.taken, self.link.unwrap_or_default());
        match arrived {
            ToControl::Resync(resync) => {
                if self.live_intake.resync_is_news(of, resync.next_seq)
                    && let Resynced::Done { gap, mark, tasks } = self.live_intake.resync(channel, of, resync.clone())
                {
                    let told = self.live_story.tell(Item::Resync { incarnation: of, gap, mark, tasks }, 0);
                    self.live_told(told);
                }
                if self.class_intake.resync_is_news(of, resync.next_seq)
                    && let Resynced::Done { gap, mark, tasks } = self.class_intake.resync(channel, of, resync)
                {
                    self.queue.push_back(Item::Resync { incarnation: of, gap, mark, tasks });
                }
            }
            ToControl::Event(mut head, mut payload) => {
                let is_end = || matches!(rmp_serde::from_slice(&payload), Ok(BuiltinEvent::TaskStopped { .. }));
                if self.fault == Some(Fault::DropTaskEnd) && head.kind == EventKind::Builtin && is_end() {
                    payload = rmp_serde::to_vec_named(&BuiltinEvent::Gap { from: head.seq, to: head.seq }).expect("encodes").into();
                    head.kind = EventKind::Gap;
                }
                let again = self.fault == Some(Fault::NoDeduplication);
                if again || self.live_intake.is_new(of, head.seq) {
                    let Arrival { first, before } = self.live_intake.event(of, head.seq, head.kind);
                    let item = Item::Event { incarnation: of, head: head.clone(), payload: payload.clone(), first, before };
                    let told = self.live_story.tell(item, 0);
                    self.live_told(told);
                }
                if head.audience == Audience::Followers && self.fault != Some(Fault::AheadForTheClass) {
                    self.to_worker.push_back(EventAck { class: class(), seq: self.delivered, followed: head.seq });
                } else if again || self.class_intake.is_new(of, head.seq) {
                    let Arrival { first, before } = self.class_intake.event(of, head.seq, head.kind);
                    if self.fault == Some(Fault::AckBeforeHandler) {
                        self.to_worker.push_back(EventAck { class: class(), seq: head.seq, followed: 0 });
                    }
                    self.queue.push_back(Item::Event { incarnation: of, head, payload, first, before });
                } else if head.seq <= self.delivered {
                    self.to_worker.push_back(EventAck { class: class(), seq: self.delivered, followed: 0 });
                }
            }
        }
        // What came in a wrong order is found where it is told.
        Ok(())
    }

    fn class_takes_in(&mut self) -> Found {
        let Some(item) = self.queue.pop_front() else { return Ok(()) };
        let (of, done, acknowledges) = match &item {
            Item::Event { incarnation, head, .. } => (*incarnation, head.seq, true),
            Item::Resync { incarnation, mark, .. } => (*incarnation, *mark, false),
            _ => (Incarnation::NONE, 0, false),
        };
        for told in self.class_story.tell(item, 0) {
            self.told(told, false)?;
        }
        if of == self.taken {
            self.delivered = self.delivered.max(done);
            if acknowledges && self.link.is_some() {
                self.to_worker.push_back(EventAck { class: class(), seq: done, followed: 0 });
            }
        }
        Ok(())
    }

    /// The control node dies with everything that is in it; another one knows nothing.
    fn restart_control(&mut self) {
        self.cut();
        self.taken = life(self.lives);
        (self.class_intake, self.live_intake) = (Intake::new(self.taken), Intake::new(self.taken));
        (self.class_story, self.live_story) = (Story::default(), Story::default());
        (self.class, self.live) = (Heard::default(), Heard::default());
        self.queue.clear();
        (self.delivered, self.fresh) = (0, false);
    }

    // ---- the reference

    fn live_told(&mut self, told: Vec<Told>) {
        for told in told {
            if let Err(wrong) = self.told(told, true) {
                self.wrong.get_or_insert(wrong);
            }
        }
    }

    fn told(&mut self, told: Told, live: bool) -> Found {
        let Told { incarnation, seq, what, .. } = told;
        let who = if live { "who follows" } else { "the class" };
        let (heard, known) = if live { (&mut self.live, &mut self.followed) } else { (&mut self.class, &mut self.settled) };
        let mark = heard.marks.entry(incarnation).or_default();
        match &what {
            What::Builtin(BuiltinEvent::TaskStopped { .. }) if seq == 0 && self.fault == Some(Fault::NoNodeRestarted) => return Ok(()),
            What::Builtin(BuiltinEvent::TaskStopped { id, .. }) if seq == 0 => {
                heard.tasks.entry(incarnation).or_default().remove(id);
                return Ok(());
            }
            What::Builtin(BuiltinEvent::Gap { .. }) if self.fault == Some(Fault::NoGap) => return Ok(()),
            What::Resync { gap, tasks } => {
                heard.tasks.insert(incarnation, tasks.iter().cloned().collect());
                if let Some((from, to)) = gap {
                    if *from != *mark + 1 {
                        return Err(format!("{who} was told of a gap from {from} behind {mark}"));
                    }
                    if self.ample && self.fresh {
                        return Err(format!("{who} was told of a gap {from}-{to}, but nothing was dropped"));
                    }
                    *mark = *to;
                    known.extend((*from..=*to).map(|seq| (incarnation, seq)));
                }
                return Ok(());
            }
            What::Builtin(BuiltinEvent::Gap { from, to }) => {
                if *from != *mark + 1 || to < from {
                    return Err(format!("{who} was told of a gap {from}-{to} behind {mark}"));
                }
                if self.ample {
                    return Err(format!("{who} was told of a gap {from}-{to}, but there was room for all"));
                }
                *mark = *to;
                known.extend((*from..=*to).map(|seq| (incarnation, seq)));
                return Ok(());
            }
            _ => {}
        }
        if seq != *mark + 1 {
            return Err(format!("{who} was told of event {seq} behind {mark}"));
        }
        if self.appended.get(&(incarnation, seq)) != Some(&what) {
            return Err(format!("{who} was told something else than event {seq}: {what:?}"));
        }
        *mark = seq;
        known.insert((incarnation, seq));
        let tasks = heard.tasks.entry(incarnation).or_default();
        match what {
            What::Builtin(BuiltinEvent::TaskStarted(id)) => drop(tasks.insert(id)),
            What::Builtin(BuiltinEvent::TaskStopped { id, .. }) => drop(tasks.remove(&id)),
            _ => {}
        }
        Ok(())
    }

    fn live_was_right(&self) -> Found {
        self.wrong.clone().map_or(Ok(()), Err)
    }

    fn step(&mut self) -> Found {
        match self.dice.below(100) {
            0..30 => self.happens()?,
            30..58 => self.arrives()?,
            58..70 => self.class_takes_in()?,
            70..86 => self.acknowledged()?,
            86..90 => self.cut(),
            90..96 if self.link.is_none() => self.connect(),
            96 => self.restart_worker(),
            97 if self.dice.percent(50) => self.restart_control(),
            _ => {}
        }
        self.live_was_right()
    }

    /// Everything on its way arrives, while the class takes in nothing.
    fn flow(&mut self) -> Found {
        while !self.to_control.is_empty() || !self.to_worker.is_empty() {
            self.arrives()?;
            self.acknowledged()?;
        }
        self.live_was_right()
    }

    fn script(mut self) -> Found {
        for _ in 0..STEPS {
            self.step()?;
        }
        // A class that hangs, for long: nobody else waits.
        self.connect();
        self.happens()?;
        self.flow()?;
        for _ in 0..5 * WINDOW {
            self.happens()?;
            self.flow()?;
            let appended = self.journal.marks(&class()).appended;
            let seen = self.live.marks.get(&self.taken).copied().unwrap_or_default();
            if seen != appended {
                return Err(format!("those who follow are at {seen} of {appended}, because the class hangs"));
            }
        }
        // And in the end it has everything, too.
        while !self.queue.is_empty() || !self.journal.is_settled() {
            if self.queue.is_empty() && self.to_control.is_empty() && self.to_worker.is_empty() {
                return Err("the journal is stuck".to_owned());
            }
            self.class_takes_in()?;
            self.flow()?;
        }
        let appended = self.journal.marks(&class()).appended;
        if self.class.marks.get(&self.taken).copied().unwrap_or_default() != appended {
            return Err("the class was not told everything".to_owned());
        }
        for (who, heard) in [("the class", &self.class), ("who follows", &self.live)] {
            let believed = heard.tasks.get(&self.taken).cloned().unwrap_or_default();
            // Those who follow may have seen the start of a task whose end was dropped: they know that something is missing.
            let may_miss = who != "the class" && !self.ample;
            if !(believed == self.running || (may_miss && believed.is_superset(&self.running))) {
                return Err(format!("{who} believes that {believed:?} run, but {:?} do", self.running));
            }
            if let Some((life, tasks)) = heard.tasks.iter().find(|(life, tasks)| **life != self.taken && !tasks.is_empty()) {
                return Err(format!("{who} believes that {tasks:?} of the life {life:?} still run"));
            }
        }
        Ok(())
    }
}

#[test]
fn events_come_in_order_and_nothing_is_lost_without_a_word() {
    holds("events_come_in_order_and_nothing_is_lost_without_a_word", 1500, |seed| World::new(seed, None).script());
}

#[test]
fn every_fault_that_is_built_in_is_found() {
    for fault in FAULTS {
        finds(&format!("{fault:?}"), |seed| World::new(seed, Some(fault)).script());
    }
}
