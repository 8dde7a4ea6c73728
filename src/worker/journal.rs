//! Events on their way to the control side: at least once, in order, in bounded memory.
//!
//! A worker is often out of reach, and its control node may be slow. Events therefore wait in a
//! journal until the holder acknowledges them, which it does after the class has handled them.
//! Each class has its own sequence from 1, so that a class whose handler is slow stalls only
//! itself.
//!
//! ```text
//!        acknowledged │ sent, not acknowledged │ not sent yet
//!   ──────────────────┼────────────────────────┼──────────────────►  seq of one class
//!        forgotten    └─ at most `window`      └─ next_to_send
//! ```
//!
//! **Those who follow live** must not wait for a class that hangs. What the window has no room for is sent ahead, for them only, with a window and
//! acknowledgements of its own ([`Journal::followed`]), and sent again for the class when its turn comes: each event at most twice.
//!
//! A new channel knows nothing of what the old one carried: [`Journal::rewind`] starts again behind
//! the last acknowledgement, and the receiver skips what it has seen. Every number up to the last one
//! appended arrives, either as an entry or inside a gap.
//!
//! **When the bytes run out** the oldest event of the class that occupies most of them makes room,
//! and a gap takes its place. Starts and ends of tasks, and the last status, are not ordinary events:
//! they are never lost alone. Once no ordinary event is left, tasks whose start was never sent are taken
//! out, start and end together. What then remains is bounded by what the worker is, not by how
//! long it was alone: the starts of running tasks, the ends of tasks whose start was sent
//! (at most the tasks that ran when the link broke, plus a window), and one status for each class.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

pub use crate::proto::entry::{EndReason, Entry, EntryKind};
use crate::types::{ClassName, Payload, TaskId};
use crate::{Error, ErrorCode, Result};

/// Most classes that one journal serves. A class stays in the journal for the life of the worker, because its
/// sequence must not start again.
pub const CLASSES_MAX: usize = 1024;

/// What an entry costs beside its texts and its payload, roughly as measured with 64-bit pointers.
const ENTRY_BYTES: usize = 192;

/// What a gap costs. Smaller than an entry, so that making room always makes room.
const GAP_BYTES: usize = 64;

/// What is to be sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing<'a> {
    /// An event.
    Entry(&'a Entry),
    /// The events `from..=to` of the class were dropped for lack of room. A receiver that has seen a part
    /// of them ignores that part.
    Gap {
        /// The class.
        class: &'a ClassName,
        /// First number that was dropped.
        from: u64,
        /// Last number that was dropped; acknowledged like an entry with this number.
        to: u64,
    },
}

impl Outgoing<'_> {
    /// Class whose sequence this belongs to.
    pub fn class(&self) -> &ClassName {
        match self {
            Self::Entry(entry) => &entry.class,
            Self::Gap { class, .. } => class,
        }
    }

    /// The number that acknowledges this.
    pub fn last(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.seq,
            Self::Gap { to, .. } => *to,
        }
    }
}

/// How far one class has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Everything up to this number is acknowledged; 0 at first.
    pub acknowledged: u64,
    /// Last number that was given out; 0 at first.
    pub appended: u64,
}

/// The event journal of one worker incarnation.
#[derive(Debug)]
pub struct Journal {
    bytes_max: usize,
    bytes: usize,
    classes: BTreeMap<ClassName, ClassLog>,
    /// Class that was served last; the round continues behind it.
    served: Option<ClassName>,
}

impl Journal {
    /// An empty journal that keeps at most `bytes_max` bytes of events, not counting those that are
    /// never dropped (see the chapter).
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, classes: BTreeMap::new(), served: None }
    }

    /// Adds an event and returns its number. Older events may be dropped to make room for it.
    ///
    /// A start must be appended before the end of the same task. A reason is cut to its bound.
    ///
    /// # Errors
    /// `payload_too_large` if the event alone is larger than the journal, `busy` if there are too many
    /// classes. In both cases nothing was appended.
    pub fn append(&mut self, class: &ClassName, kind: EntryKind, payload: Payload, time_ms: u64) -> Result<u64> {
        let kind = match kind {
            EntryKind::TaskStopped { id, reason } => EntryKind::TaskStopped { id, reason: reason.bounded() },
            other => other,
        };
        let bytes = entry_bytes(&kind, &payload);
        if matches!(kind, EntryKind::Class | EntryKind::OfTask(_)) && bytes > self.bytes_max {
            let message = format!("event of class {class} has {} bytes, its journal holds {}", payload.len(), self.bytes_max);
            return Err(Error::new(ErrorCode::PayloadTooLarge, message));
        }
        let full = self.classes.len() >= CLASSES_MAX;
        let log = match self.classes.entry(class.clone()) {
            MapEntry::Vacant(_) if full => {
                let message = format!("event journal serves {CLASSES_MAX} classes already, none is left for {class}");
                return Err(Error::new(ErrorCode::Busy, message));
            }
            entry => entry.or_insert_with(|| ClassLog::new(class.clone())),
        };
        let seq = log.append(kind, payload, time_ms);
        self.bytes += bytes;
        self.make_room();
        Ok(seq)
    }

    /// The next thing to send on the current channel, which counts as sent from now on. Classes take turns.
    ///
    /// `window` bounds the things sent and not yet acknowledged **for each class**: it is the credit
    /// of its events. `None` means that there is nothing to send before the next `append`,
    /// [`ack`](Self::ack) or [`rewind`](Self::rewind).
    pub fn next_to_send(&mut self, window: usize) -> Option<Outgoing<'_>> {
        let ready = |(name, log): (&ClassName, &ClassLog)| log.has_unsent(window).then(|| name.clone());
        let after = self.served.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.classes.range::<ClassName, _>((after, Bound::Unbounded)).find_map(ready);
        let name = behind.or_else(|| self.classes.iter().find_map(ready))?;
        let log = self.classes.get_mut(&name)?;
        self.served = Some(name);
        log.send_next()
    }

    /// The next thing for those who follow a class that is a `window` behind; as much again may be on its way to them.
    ///
    /// `None` means that there is nothing before the next `append`, [`followed`](Self::followed), [`ack`](Self::ack) or [`rewind`](Self::rewind).
    pub fn next_for_followers(&mut self, window: usize) -> Option<Outgoing<'_>> {
        self.classes.values_mut().find(|log| log.has_ahead(window))?.send_ahead()
    }

    /// The holder has handled everything of a class up to `seq`. Older acknowledgements change nothing.
    ///
    /// # Errors
    /// `protocol_error` if that number was never sent; nothing is changed.
    pub fn ack(&mut self, class: &ClassName, seq: u64) -> Result<()> {
        let log = self.classes.get_mut(class).filter(|log| seq <= log.sent_ever);
        let Some(log) = log else {
            let message = format!("acknowledged event {seq} of class {class}, which was never sent");
            return Err(Error::new(ErrorCode::ProtocolError, message));
        };
        self.bytes -= log.acknowledge(seq);
        Ok(())
    }

    /// What was sent ahead to those who follow has arrived up to `seq`. Of a number that was not sent nothing changes.
    pub fn followed(&mut self, class: &ClassName, seq: u64) {
        let Some(log) = self.classes.get_mut(class) else { return };
        while log.ahead_in_flight.front().is_some_and(|last| *last <= seq) {
            log.ahead_in_flight.pop_front();
        }
    }

    /// A new channel became current: everything that is not acknowledged is sent again, in order.
    pub fn rewind(&mut self) {
        for log in self.classes.values_mut() {
            log.next = log.acknowledged + 1;
            log.in_flight.clear();
            log.ahead = log.next;
            log.ahead_in_flight.clear();
        }
    }

    /// Whether the start of a task that runs is still to be told, or told again: then nobody may be told by another way that it runs, because its start and its end
    /// may be dropped together.
    pub fn will_tell_start(&self, class: &ClassName, id: &TaskId) -> bool {
        self.classes.get(class).is_some_and(|log| log.open_starts.contains_key(id))
    }

    /// How far a class has come; zeros if it never had an event.
    pub fn marks(&self, class: &ClassName) -> Marks {
        self.classes.get(class).map(ClassLog::marks).unwrap_or_default()
    }

    /// Every class that ever had an event, with its marks, in order of names.
    pub fn classes(&self) -> impl Iterator<Item = (&ClassName, Marks)> {
        self.classes.iter().map(|(name, log)| (name, log.marks()))
    }

    /// Bytes in use, overhead included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `true` if everything that was ever appended is acknowledged.
    pub fn is_settled(&self) -> bool {
        self.classes.values().all(|log| log.items.is_empty())
    }

    fn make_room(&mut self) {
        while self.bytes > self.bytes_max && self.drop_one() {}
    }

    /// Drops the oldest ordinary event, or else one task with its start and its end. `false` if there is neither.
    fn drop_one(&mut self) -> bool {
        let heaviest = self.classes.values_mut().max_by_key(|log| log.ordinary_bytes);
        if let Some(log) = heaviest
            && let Some(seq) = log.ordinary.first().copied()
        {
            self.bytes -= log.replace_by_gap(seq);
            return true;
        }
        for log in self.classes.values_mut() {
            if let Some((start, end)) = log.take_unseen_task() {
                self.bytes -= log.replace_by_gap(start);
                self.bytes -= log.replace_by_gap(end);
                return true;
            }
        }
        false
    }
}

/// The events of one class that are not acknowledged.
#[derive(Debug)]
struct ClassLog {
    class: ClassName,
    /// Last number given out.
    appended: u64,
    /// Everything up to here is acknowledged.
    acknowledged: u64,
    /// First number to send on the current channel.
    next: u64,
    /// Last number ever sent, on whatever channel: the receiver may know it.
    sent_ever: u64,
    /// Last numbers of the things sent on the current channel and not acknowledged.
    in_flight: VecDeque<u64>,
    /// First number that has not been sent at all on the current channel, if it is above `next`.
    ahead: u64,
    /// Last numbers of the things sent ahead and not known to have arrived.
    ahead_in_flight: VecDeque<u64>,
    /// Keyed by their last number; together they cover `acknowledged + 1 ..= appended` without holes.
    items: BTreeMap<u64, Item>,
    /// Entries that may be dropped, and their bytes.
    ordinary: BTreeSet<u64>,
    ordinary_bytes: usize,
    /// The last status, which stays until a newer one supersedes it.
    last_status: Option<u64>,
    /// Starts in `items` of tasks whose end has not been appended.
    open_starts: HashMap<TaskId, u64>,
    /// Start and end of tasks, while both are in `items`.
    ended_tasks: BTreeMap<u64, u64>,
}

#[derive(Debug)]
enum Item {
    Entry(Entry),
    Gap { from: u64 },
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Entry(entry) => entry_bytes(&entry.kind, &entry.payload),
            Self::Gap { .. } => GAP_BYTES,
        }
    }
}

impl ClassLog {
    fn new(class: ClassName) -> Self {
        Self {
            class,
            appended: 0,
            acknowledged: 0,
            next: 1,
            sent_ever: 0,
            in_flight: VecDeque::new(),
            ahead: 1,
            ahead_in_flight: VecDeque::new(),
            items: BTreeMap::new(),
            ordinary: BTreeSet::new(),
            ordinary_bytes: 0,
            last_status: None,
            open_starts: HashMap::new(),
            ended_tasks: BTreeMap::new(),
        }
    }

    fn marks(&self) -> Marks {
        Marks { acknowledged: self.acknowledged, appended: self.appended }
    }

    fn append(&mut self, kind: EntryKind, payload: Payload, time_ms: u64) -> u64 {
        self.appended += 1;
        let seq = self.appended;
        let mut now_ordinary = None;
        match &kind {
            EntryKind::Class | EntryKind::OfTask(_) => now_ordinary = Some(seq),
            EntryKind::NodeStatus(_) => now_ordinary = self.last_status.replace(seq),
            EntryKind::TaskStarted(id) => {
                self.open_starts.insert(id.clone(), seq);
            }
            EntryKind::TaskStopped { id, .. } => {
                if let Some(start) = self.open_starts.remove(id) {
                    self.ended_tasks.insert(start, seq);
                }
            }
        }
        let entry = Entry { seq, class: self.class.clone(), time_ms, kind, payload };
        self.items.insert(seq, Item::Entry(entry));
        if let Some((seq, item)) = now_ordinary.and_then(|seq| self.items.get_key_value(&seq)) {
            self.ordinary.insert(*seq);
            self.ordinary_bytes += item.bytes();
        }
        seq
    }

    fn has_unsent(&self, window: usize) -> bool {
        self.next <= self.appended && self.in_flight.len() < window
    }

    fn has_ahead(&self, window: usize) -> bool {
        self.in_flight.len() >= window && self.next.max(self.ahead) <= self.appended && self.ahead_in_flight.len() < window
    }

    fn send_next(&mut self) -> Option<Outgoing<'_>> {
        let next = self.next;
        let (&last, item) = self.items.range(next..).next()?;
        self.next = last + 1;
        self.ahead = self.ahead.max(self.next);
        self.sent_ever = self.sent_ever.max(last);
        self.in_flight.push_back(last);
        Some(outgoing(&self.class, next, last, item))
    }

    /// What the class has not been sent may still be compacted, or a class that hangs would make the journal grow without end: so this is no sending.
    fn send_ahead(&mut self) -> Option<Outgoing<'_>> {
        let next = self.next.max(self.ahead);
        let (&last, item) = self.items.range(next..).next()?;
        self.ahead = last + 1;
        self.ahead_in_flight.push_back(last);
        Some(outgoing(&self.class, next, last, item))
    }

    /// Forgets everything up to `seq`; returns the bytes that became free.
    fn acknowledge(&mut self, seq: u64) -> usize {
        let mut freed = 0;
        self.acknowledged = self.acknowledged.max(seq);
        self.next = self.next.max(seq + 1);
        while self.in_flight.front().is_some_and(|last| *last <= seq) {
            self.in_flight.pop_front();
        }
        while let Some(first) = self.items.first_entry() {
            if *first.key() > seq {
                break;
            }
            let (last, item) = first.remove_entry();
            freed += item.bytes();
            self.forget(last, &item);
        }
        freed
    }

    /// Takes an item that has left `items` out of the indexes.
    fn forget(&mut self, seq: u64, item: &Item) {
        if self.ordinary.remove(&seq) {
            self.ordinary_bytes -= item.bytes();
        }
        let Item::Entry(entry) = item else { return };
        match &entry.kind {
            EntryKind::NodeStatus(_) => {
                self.last_status.take_if(|last| *last == seq);
            }
            EntryKind::TaskStarted(id) => {
                self.ended_tasks.remove(&seq);
                if self.open_starts.get(id) == Some(&seq) {
                    self.open_starts.remove(id);
                }
            }
            EntryKind::Class | EntryKind::OfTask(_) | EntryKind::TaskStopped { .. } => {}
        }
    }

    /// Drops an entry, and joins its gap with those beside it; returns the bytes that became free.
    fn replace_by_gap(&mut self, seq: u64) -> usize {
        let Some(item) = self.items.remove(&seq) else { return 0 };
        self.forget(seq, &item);
        let mut freed = item.bytes();
        let mut gap_from = seq;
        if let Some(Item::Gap { from }) = self.items.get(&(seq - 1)) {
            gap_from = *from;
            self.items.remove(&(seq - 1));
            freed += GAP_BYTES;
        }
        match self.items.range_mut(seq..).next() {
            Some((_, Item::Gap { from })) => *from = gap_from,
            _ => {
                self.items.insert(seq, Item::Gap { from: gap_from });
                freed -= GAP_BYTES;
            }
        }
        freed
    }

    /// Start and end of the oldest task of which the receiver cannot know.
    fn take_unseen_task(&mut self) -> Option<(u64, u64)> {
        while let Some(task) = self.ended_tasks.pop_first() {
            if task.0 > self.sent_ever {
                return Some(task);
            }
        }
        None
    }
}

fn outgoing<'a>(class: &'a ClassName, next: u64, last: u64, item: &'a Item) -> Outgoing<'a> {
    match item {
        Item::Entry(entry) => Outgoing::Entry(entry),
        // The front of the gap may have been sent, or acknowledged, while it still was entries.
        Item::Gap { from } => Outgoing::Gap { class, from: next.max(*from), to: last },
    }
}

/// Bytes that an entry counts for.
fn entry_bytes(kind: &EntryKind, payload: &Payload) -> usize {
    let texts = match kind {
        EntryKind::Class | EntryKind::NodeStatus(_) => 0,
        EntryKind::TaskStarted(id) | EntryKind::OfTask(id) => id.as_str().len(),
        EntryKind::TaskStopped { id, reason } => id.as_str().len() + reason.text().len(),
    };
    ENTRY_BYTES + texts + payload.len()
}

#[cfg(test)]
mod tests;
