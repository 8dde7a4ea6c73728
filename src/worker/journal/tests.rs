use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::types::NodeStatus;

fn class(name: &str) -> ClassName {
    ClassName::new(name).expect("a valid name")
}

fn task(name: &str) -> TaskId {
    TaskId::new(name).expect("a valid name")
}

fn payload(bytes: usize) -> Payload {
    Payload::from_bytes(Bytes::from(vec![0xc0; bytes]))
}

fn no_payload() -> Payload {
    payload(0)
}

/// Room for this many entries without payload, but with short task ids, and not for one more.
fn room_for(entries: usize) -> usize {
    entries * ENTRY_BYTES + 32
}

fn event(journal: &mut Journal, name: &str) -> u64 {
    journal.append(&class(name), EntryKind::Class, no_payload(), 0).expect("appended")
}

fn start(journal: &mut Journal, name: &str) -> u64 {
    journal.append(&class("a"), EntryKind::TaskStarted(task(name)), no_payload(), 0).expect("appended")
}

fn stop(journal: &mut Journal, name: &str) -> u64 {
    let kind = EntryKind::TaskStopped { id: task(name), reason: EndReason::Normal };
    journal.append(&class("a"), kind, no_payload(), 0).expect("appended")
}

fn status(journal: &mut Journal, status: NodeStatus) -> u64 {
    journal.append(&class("a"), EntryKind::NodeStatus(status), no_payload(), 0).expect("appended")
}

/// Everything that can be sent now, as `a1` for an entry and `a2..5` for a gap.
fn sent(journal: &mut Journal, window: usize) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(out) = journal.next_to_send(window) {
        all.push(match out {
            Outgoing::Entry(entry) => format!("{}{}", entry.class, entry.seq),
            Outgoing::Gap { class, from, to } => format!("{class}{from}..{to}"),
        });
    }
    all
}

#[test]
fn each_class_counts_from_one() {
    let mut journal = Journal::new(room_for(10));
    assert_eq!(event(&mut journal, "a"), 1);
    assert_eq!(event(&mut journal, "b"), 1);
    assert_eq!(event(&mut journal, "a"), 2);
    assert_eq!(journal.marks(&class("a")), Marks { acknowledged: 0, appended: 2 });
    assert_eq!(journal.marks(&class("c")), Marks::default());
}

#[test]
fn classes_take_turns_within_their_windows() {
    let mut journal = Journal::new(room_for(100));
    for name in ["a", "a", "a", "b", "b", "b", "c"] {
        event(&mut journal, name);
    }
    assert_eq!(sent(&mut journal, 2), ["a1", "b1", "c1", "a2", "b2"]);
    journal.ack(&class("b"), 1).expect("it was sent");
    assert_eq!(sent(&mut journal, 2), ["b3"], "class a stalls only itself");
}

#[test]
fn an_empty_window_sends_nothing() {
    let mut journal = Journal::new(room_for(10));
    event(&mut journal, "a");
    assert_eq!(journal.next_to_send(0), None);
}

/// Everything that can be sent ahead now.
fn sent_ahead(journal: &mut Journal, window: usize) -> Vec<u64> {
    let mut all = Vec::new();
    while let Some(out) = journal.next_for_followers(window) {
        all.push(out.last());
    }
    all
}

#[test]
fn those_who_follow_do_not_wait_for_a_class_that_hangs() {
    let mut journal = Journal::new(room_for(20));
    for _ in 0..9 {
        event(&mut journal, "a");
    }
    assert_eq!(sent_ahead(&mut journal, 2), [0; 0], "the window of the class comes first");
    assert_eq!(sent(&mut journal, 2), ["a1", "a2"]);
    assert_eq!(sent_ahead(&mut journal, 2), [3, 4]);
    journal.followed(&class("a"), 3);
    assert_eq!(sent_ahead(&mut journal, 2), [5]);
    journal.followed(&class("a"), 5);
    assert_eq!(sent_ahead(&mut journal, 2), [6, 7]);
    assert!(journal.ack(&class("a"), 3).is_err(), "the class was never sent it");
    journal.ack(&class("a"), 2).expect("it was sent");
    assert_eq!(sent(&mut journal, 2), ["a3", "a4"], "the class gets everything");
    assert_eq!(sent_ahead(&mut journal, 2), [0; 0], "nobody gets anything ahead twice");
    journal.rewind();
    assert_eq!(sent(&mut journal, 2), ["a3", "a4"]);
    assert_eq!(sent_ahead(&mut journal, 2), [5, 6], "who follows on another channel may know nothing");
}

#[test]
fn millions_of_events_take_bounded_memory_and_tasks_are_never_lost() {
    // A worker that is alone for weeks, with tasks that come and go and some that stay.
    let mut journal = Journal::new(1024 * 1024);
    for stays in 0..10 {
        start(&mut journal, &format!("stays{stays}"));
    }
    sent(&mut journal, 256);
    let mut most = 0;
    for round in 0..500_000 {
        event(&mut journal, "a");
        event(&mut journal, "b");
        start(&mut journal, &format!("t{round}"));
        stop(&mut journal, &format!("t{round}"));
        most = most.max(journal.bytes());
    }
    assert!(most <= 1024 * 1024 + 8 * ENTRY_BYTES, "{most} bytes");
    stop(&mut journal, "stays3");
    journal.rewind();
    let items = journal.classes.values().map(|log| log.items.len()).sum::<usize>();
    assert!(items <= 1024 * 1024 / GAP_BYTES, "{items} things");
    let mut told = BTreeSet::new();
    let mut numbers = BTreeMap::from([(class("a"), 0), (class("b"), 0)]);
    while let Some(out) = journal.next_to_send(usize::MAX) {
        let mark = numbers.get_mut(out.class()).expect("one of the two");
        let from = match &out {
            Outgoing::Entry(entry) => entry.seq,
            Outgoing::Gap { from, .. } => *from,
        };
        assert_eq!(from, *mark + 1, "nothing is missing without a word");
        *mark = out.last();
        if let Outgoing::Entry(Entry { kind: EntryKind::TaskStarted(id), .. }) = &out {
            told.insert(id.clone());
        }
        if let Outgoing::Entry(Entry { kind: EntryKind::TaskStopped { id, .. }, .. }) = &out {
            assert!(told.remove(id), "the end of {id} without its start");
        }
    }
    let left: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(left, ["stays0", "stays1", "stays2", "stays4", "stays5", "stays6", "stays7", "stays8", "stays9"]);
    assert_eq!(numbers.into_values().collect::<Vec<_>>(), [10 + 3 * 500_000 + 1, 500_000]);
}

#[test]
fn a_new_channel_starts_behind_the_last_acknowledgement() {
    let mut journal = Journal::new(room_for(10));
    for _ in 0..4 {
        event(&mut journal, "a");
    }
    assert_eq!(sent(&mut journal, 3), ["a1", "a2", "a3"]);
    journal.ack(&class("a"), 1).expect("it was sent");
    journal.rewind();
    assert_eq!(sent(&mut journal, 9), ["a2", "a3", "a4"]);
}

#[test]
fn acknowledgements_are_cumulative_and_old_ones_change_nothing() {
    let mut journal = Journal::new(room_for(10));
    for _ in 0..4 {
        event(&mut journal, "a");
    }
    sent(&mut journal, 9);
    journal.ack(&class("a"), 3).expect("it was sent");
    journal.ack(&class("a"), 2).expect("old");
    assert_eq!(journal.marks(&class("a")), Marks { acknowledged: 3, appended: 4 });
    journal.ack(&class("a"), 4).expect("it was sent");
    assert!(journal.is_settled());
    assert_eq!(journal.bytes(), 0);
}

#[test]
fn what_the_old_channel_delivered_may_be_acknowledged_on_the_new_one() {
    let mut journal = Journal::new(room_for(10));
    for _ in 0..3 {
        event(&mut journal, "a");
    }
    sent(&mut journal, 9);
    journal.rewind();
    journal.ack(&class("a"), 2).expect("it was sent once");
    assert_eq!(sent(&mut journal, 9), ["a3"]);
}

#[test]
fn a_class_that_has_caught_up_does_not_hold_up_the_others() {
    let mut journal = Journal::new(room_for(10));
    event(&mut journal, "a");
    sent(&mut journal, 9);
    journal.rewind();
    journal.ack(&class("a"), 1).expect("it was sent once");
    event(&mut journal, "b");
    event(&mut journal, "b");
    assert_eq!(sent(&mut journal, 9), ["b1", "b2"]);
}

#[test]
fn nobody_can_acknowledge_what_was_never_sent() {
    let mut journal = Journal::new(room_for(10));
    event(&mut journal, "a");
    event(&mut journal, "a");
    journal.next_to_send(1);
    for (name, seq) in [("a", 2), ("a", u64::MAX), ("b", 0)] {
        let error = journal.ack(&class(name), seq).expect_err("it was never sent");
        assert_eq!(error.code(), &ErrorCode::ProtocolError);
    }
    assert_eq!(journal.marks(&class("a")).acknowledged, 0);
}

#[test]
fn the_oldest_events_make_room_and_leave_one_gap() {
    let mut journal = Journal::new(room_for(4));
    for _ in 0..8 {
        event(&mut journal, "a");
    }
    assert!(journal.bytes() <= room_for(4));
    assert_eq!(sent(&mut journal, 9), ["a1..5", "a6", "a7", "a8"]);
    journal.ack(&class("a"), 5).expect("it was sent");
    journal.rewind();
    assert_eq!(sent(&mut journal, 9), ["a6", "a7", "a8"]);
}

#[test]
fn the_heaviest_class_makes_room() {
    let mut journal = Journal::new(room_for(5));
    event(&mut journal, "quiet");
    for _ in 0..20 {
        event(&mut journal, "noisy");
    }
    assert_eq!(sent(&mut journal, 9), ["noisy1..17", "quiet1", "noisy18", "noisy19", "noisy20"]);
}

#[test]
fn a_class_is_as_heavy_as_what_it_still_holds() {
    let mut journal = Journal::new(room_for(6));
    for _ in 0..12 {
        event(&mut journal, "a");
    }
    for _ in 0..12 {
        event(&mut journal, "b");
    }
    let out = sent(&mut journal, 99);
    assert!(out.contains(&"a12".to_owned()) && out.contains(&"b12".to_owned()), "{out:?}");
}

#[test]
fn an_event_larger_than_the_journal_is_refused() {
    let mut journal = Journal::new(room_for(4));
    event(&mut journal, "a");
    let result = journal.append(&class("a"), EntryKind::Class, payload(room_for(4)), 0);
    assert_eq!(result.map_err(|error| error.code().clone()), Err(ErrorCode::PayloadTooLarge));
    assert_eq!(event(&mut journal, "a"), 2, "no number was used up");
}

#[test]
fn classes_are_bounded() {
    let mut journal = Journal::new(room_for(4));
    for number in 0..CLASSES_MAX {
        event(&mut journal, &format!("c{number}"));
    }
    let result = journal.append(&class("more"), EntryKind::Class, no_payload(), 0);
    assert_eq!(result.map_err(|error| error.code().clone()), Err(ErrorCode::Busy));
    event(&mut journal, "c7");
}

#[test]
fn the_receiver_of_a_part_of_a_gap_gets_the_rest() {
    let mut journal = Journal::new(room_for(4));
    for _ in 0..4 {
        event(&mut journal, "a");
    }
    assert_eq!(sent(&mut journal, 2), ["a1", "a2"]);
    for _ in 0..3 {
        event(&mut journal, "a");
    }
    journal.ack(&class("a"), 1).expect("it was sent");
    assert_eq!(sent(&mut journal, 9), ["a3..4", "a5", "a6", "a7"], "1 and 2 are on their way as entries");
    journal.rewind();
    assert_eq!(sent(&mut journal, 9), ["a2..4", "a5", "a6", "a7"]);
}

#[test]
fn starts_and_ends_outlive_ordinary_events() {
    let mut journal = Journal::new(room_for(4));
    start(&mut journal, "t");
    for _ in 0..5 {
        event(&mut journal, "a");
    }
    stop(&mut journal, "t");
    event(&mut journal, "a");
    let out = sent(&mut journal, 9);
    assert_eq!((out[0].as_str(), out.contains(&"a7".to_owned())), ("a1", true), "{out:?}");
}

#[test]
fn a_task_that_nobody_saw_vanishes_with_start_and_end() {
    let mut journal = Journal::new(room_for(3));
    start(&mut journal, "t");
    event(&mut journal, "a");
    stop(&mut journal, "t");
    start(&mut journal, "u");
    start(&mut journal, "v");
    assert_eq!(sent(&mut journal, 9), ["a1..3", "a4", "a5"]);
}

#[test]
fn the_end_of_a_task_whose_start_was_sent_is_never_dropped() {
    let mut journal = Journal::new(room_for(2));
    start(&mut journal, "t");
    assert_eq!(sent(&mut journal, 9), ["a1"]);
    journal.rewind();
    stop(&mut journal, "t");
    for _ in 0..5 {
        event(&mut journal, "a");
    }
    assert_eq!(sent(&mut journal, 9), ["a1", "a2", "a3..7"]);
}

#[test]
fn a_task_whose_start_is_sent_after_its_end_stays_whole() {
    let mut journal = Journal::new(room_for(2));
    start(&mut journal, "t");
    stop(&mut journal, "t");
    assert_eq!(sent(&mut journal, 1), ["a1"]);
    start(&mut journal, "u");
    start(&mut journal, "v");
    journal.rewind();
    assert_eq!(sent(&mut journal, 9), ["a1", "a2", "a3", "a4"]);
}

#[test]
fn only_the_last_status_is_kept_for_ever() {
    let mut journal = Journal::new(room_for(2));
    status(&mut journal, NodeStatus::Standby);
    status(&mut journal, NodeStatus::Ready);
    for _ in 0..5 {
        event(&mut journal, "a");
    }
    assert_eq!(sent(&mut journal, 9), ["a1..1", "a2", "a3..7"]);
}

#[test]
fn a_long_reason_is_cut() {
    let mut journal = Journal::new(room_for(100));
    let reason = EndReason::Error("x".repeat(1_000_000));
    let kind = EntryKind::TaskStopped { id: task("t"), reason };
    journal.append(&class("a"), kind, no_payload(), 0).expect("appended");
    assert!(journal.bytes() < ENTRY_BYTES + 2000);
}

/// What happens to a journal and its receiver.
#[derive(Clone, Debug)]
enum Op {
    Event {
        class: usize,
        bytes: usize,
    },
    Status {
        class: usize,
    },
    Start {
        class: usize,
        task: usize,
    },
    Stop {
        class: usize,
        task: usize,
    },
    /// Moves so many things onto the channel.
    Send(usize),
    /// The receiver handles so many things; the acknowledgements are on their way back.
    Receive(usize),
    /// So many acknowledgements arrive.
    Acks(usize),
    /// The channel is lost with everything on it, and a new one becomes current.
    Cut,
}

const WINDOW: usize = 4;
const CLASSES: usize = 2;
const TASKS: usize = 3;
const BYTES_MAX: usize = 10 * ENTRY_BYTES;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || (0..CLASSES, 0..TASKS);
    let op = prop_oneof![
        6 => (0..CLASSES, 0usize..600).prop_map(|(class, bytes)| Op::Event { class, bytes }),
        1 => (0..CLASSES).prop_map(|class| Op::Status { class }),
        4 => key().prop_map(|(class, task)| Op::Start { class, task }),
        4 => key().prop_map(|(class, task)| Op::Stop { class, task }),
        4 => (1usize..6).prop_map(Op::Send),
        3 => (1usize..6).prop_map(Op::Receive),
        3 => (1usize..6).prop_map(Op::Acks),
        1 => Just(Op::Cut),
    ];
    prop::collection::vec(op, 1..250)
}

#[derive(Clone, Debug, PartialEq)]
enum Sent {
    Entry(Entry),
    Gap { class: ClassName, from: u64, to: u64 },
}

/// A receiver that remembers its marks over all channels, as a hand-over or a record would.
#[derive(Default)]
struct Receiver {
    marks: BTreeMap<ClassName, u64>,
    entries: BTreeMap<(ClassName, u64), Entry>,
    gaps: BTreeSet<(ClassName, u64)>,
}

impl Receiver {
    /// Takes one thing and returns its acknowledgement; `Err` if something before it is missing.
    fn take(&mut self, thing: Sent) -> Result<(ClassName, u64), TestCaseError> {
        let (class, from, to) = match &thing {
            Sent::Entry(entry) => (entry.class.clone(), entry.seq, entry.seq),
            Sent::Gap { class, from, to } => (class.clone(), *from, *to),
        };
        let mark = self.marks.entry(class.clone()).or_default();
        prop_assert!(from <= *mark + 1, "{} arrived after {}", from, mark);
        for seq in from.max(*mark + 1)..=to {
            match &thing {
                Sent::Entry(entry) => drop(self.entries.insert((class.clone(), seq), entry.clone())),
                Sent::Gap { .. } => drop(self.gaps.insert((class.clone(), seq))),
            }
        }
        *mark = to.max(*mark);
        Ok((class, to))
    }
}

/// A journal, a channel that loses everything when it is cut, and a receiver.
struct World {
    journal: Journal,
    wire: VecDeque<Sent>,
    acks: VecDeque<(ClassName, u64)>,
    receiver: Receiver,
    appended: BTreeMap<(ClassName, u64), Entry>,
    running: BTreeSet<(usize, usize)>,
}

impl World {
    fn append(&mut self, class_number: usize, kind: EntryKind, payload: Payload) -> Result<(), TestCaseError> {
        let class = class(&format!("c{class_number}"));
        let result = self.journal.append(&class, kind.clone(), payload.clone(), 5);
        let seq = result.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let entry = Entry { seq, class: class.clone(), time_ms: 5, kind, payload };
        prop_assert!(self.appended.insert((class, seq), entry).is_none(), "a number was given out twice");
        Ok(())
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count {
            let Some(out) = self.journal.next_to_send(WINDOW) else { break };
            self.wire.push_back(match out {
                Outgoing::Entry(entry) => Sent::Entry(entry.clone()),
                Outgoing::Gap { class, from, to } => Sent::Gap { class: class.clone(), from, to },
            });
        }
    }

    fn receive(&mut self, count: usize) -> Result<(), TestCaseError> {
        for thing in self.wire.drain(..count.min(self.wire.len())) {
            self.acks.push_back(self.receiver.take(thing)?);
        }
        Ok(())
    }

    fn acknowledge(&mut self, count: usize) -> Result<(), TestCaseError> {
        for (class, seq) in self.acks.drain(..count.min(self.acks.len())) {
            self.journal.ack(&class, seq).map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        Ok(())
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        let id = |number: usize| task(&format!("t{number}"));
        match op {
            Op::Event { class, bytes } => self.append(class, EntryKind::Class, payload(bytes))?,
            Op::Status { class } => self.append(class, EntryKind::NodeStatus(NodeStatus::Ready), no_payload())?,
            Op::Start { class, task } if self.running.insert((class, task)) => {
                self.append(class, EntryKind::TaskStarted(id(task)), no_payload())?;
            }
            Op::Stop { class, task } if self.running.remove(&(class, task)) => {
                let kind = EntryKind::TaskStopped { id: id(task), reason: EndReason::Killed };
                self.append(class, kind, no_payload())?;
            }
            Op::Start { .. } | Op::Stop { .. } => {}
            Op::Send(count) => self.send(count),
            Op::Receive(count) => self.receive(count)?,
            Op::Acks(count) => self.acknowledge(count)?,
            Op::Cut => {
                self.wire.clear();
                self.acks.clear();
                self.journal.rewind();
            }
        }
        Ok(())
    }

    /// What the journal may hold: its bytes, or what it must not drop: for each class a status, starts that
    /// run, ends of tasks that ran when the link broke or were in the window, and the gaps between them.
    fn check_bounds(&self) -> Result<(), TestCaseError> {
        let kept = CLASSES * (2 * TASKS + WINDOW + 1);
        let bound = BYTES_MAX.max(kept * (ENTRY_BYTES + GAP_BYTES + 16)) + CLASSES * GAP_BYTES;
        prop_assert!(self.journal.bytes() <= bound, "{} bytes of {bound}", self.journal.bytes());
        let items = self.journal.classes.values().flat_map(|log| log.items.values());
        prop_assert_eq!(self.journal.bytes(), items.map(Item::bytes).sum::<usize>());
        for log in self.journal.classes.values() {
            prop_assert!(log.in_flight.len() <= WINDOW);
            let ordinary = log.ordinary.iter().map(|seq| log.items[seq].bytes()).sum::<usize>();
            prop_assert_eq!(log.ordinary_bytes, ordinary);
        }
        Ok(())
    }

    /// In the end every number has arrived, as an entry or in a gap, and tasks arrived whole.
    fn check_all_arrived(&self) -> Result<(), TestCaseError> {
        let mut open = BTreeMap::new();
        for (key, entry) in &self.appended {
            let arrived = self.receiver.entries.get(key);
            prop_assert!(arrived.is_none_or(|arrived| arrived == entry));
            prop_assert!(arrived.is_some() != self.receiver.gaps.contains(key), "{:?}", key);
            match &entry.kind {
                EntryKind::Class | EntryKind::OfTask(_) | EntryKind::NodeStatus(_) => {}
                EntryKind::TaskStarted(id) => {
                    open.insert((key.0.clone(), id.clone()), arrived.is_some());
                }
                EntryKind::TaskStopped { id, .. } => {
                    let start = open.remove(&(key.0.clone(), id.clone()));
                    prop_assert_eq!(start, Some(arrived.is_some()), "start and end of {:?}", id);
                }
            }
        }
        prop_assert!(open.values().all(|arrived| *arrived), "the start of a running task is missing");
        prop_assert!(self.journal.is_settled());
        prop_assert_eq!(self.journal.bytes(), 0);
        for log in self.journal.classes.values() {
            prop_assert!(log.ordinary.is_empty() && log.open_starts.is_empty() && log.ended_tasks.is_empty());
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn everything_arrives_in_order_or_in_a_gap(ops in ops()) {
        let mut world = World {
            journal: Journal::new(BYTES_MAX),
            wire: VecDeque::new(),
            acks: VecDeque::new(),
            receiver: Receiver::default(),
            appended: BTreeMap::new(),
            running: BTreeSet::new(),
        };
        for op in ops {
            world.step(op)?;
            world.check_bounds()?;
        }
        world.step(Op::Cut)?;
        while !world.journal.is_settled() {
            world.send(usize::MAX);
            prop_assert!(!world.wire.is_empty(), "the journal is stuck");
            world.receive(usize::MAX)?;
            world.acknowledge(usize::MAX)?;
        }
        world.check_all_arrived()?;
    }
}
