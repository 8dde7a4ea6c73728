use proptest::prelude::*;

use super::*;
use crate::types::ClassName;

fn run(number: u8) -> Incarnation {
    Incarnation::from_bytes([number; 16])
}

fn task(name: &str) -> TaskId {
    TaskId::new(name).expect("a valid name")
}

fn page(next_seq: u64, tasks: &[&str], more: bool) -> Resync {
    let class = ClassName::new("probe").expect("a valid name");
    Resync { class, next_seq, tasks: tasks.iter().map(|name| task(name)).collect(), more }
}

fn plain(seq: u64) -> Arrival {
    Arrival { first: seq, before: None }
}

fn done(gap: Option<Gap>, mark: u64, tasks: &[&str]) -> Resynced {
    Resynced::Done { gap, mark, tasks: tasks.iter().map(|name| task(name)).collect() }
}

#[test]
fn a_number_is_new_once() {
    let mut intake = Intake::<u8>::new(run(1));
    assert!(!intake.is_new(run(1), 0), "numbers begin at 1");
    for seq in 1..=3 {
        assert!(intake.is_new(run(1), seq));
        assert_eq!(intake.event(run(1), seq, EventKind::Class), plain(seq));
        assert!(!intake.is_new(run(1), seq));
    }
    assert!(!intake.is_new(run(1), 2));
}

#[test]
fn a_gap_begins_behind_what_was_seen() {
    let mut intake = Intake::<u8>::new(run(1));
    for seq in 1..=3 {
        intake.event(run(1), seq, EventKind::Class);
    }
    // The worker dropped 2 to 5 meanwhile; 2 and 3 had arrived.
    assert_eq!(intake.event(run(1), 5, EventKind::Gap), Arrival { first: 4, before: None });
    assert!(!intake.is_new(run(1), 5));
    assert_eq!(intake.event(run(1), 6, EventKind::Class), plain(6));
}

#[test]
fn numbers_that_are_skipped_without_a_word_are_a_gap() {
    let mut intake = Intake::<u8>::new(run(1));
    intake.event(run(1), 1, EventKind::Class);
    assert_eq!(intake.event(run(1), 5, EventKind::Builtin), Arrival { first: 5, before: Some(Before::Gap((2, 4))) });
}

#[test]
fn a_mere_reconnect_is_no_news() {
    let mut intake = Intake::<u8>::new(run(1));
    intake.event(run(1), 1, EventKind::Class);
    intake.event(run(1), 2, EventKind::Class);
    for next_seq in 0..=3 {
        assert!(!intake.resync_is_news(run(1), next_seq));
    }
    assert!(intake.resync_is_news(run(1), 4));
    assert_eq!(intake.resync(1, run(1), page(4, &["a"], false)), done(Some((3, 3)), 3, &["a"]));
    assert_eq!(intake.event(run(1), 4, EventKind::Class), plain(4));
}

#[test]
fn an_unknown_mark_is_a_resync_with_its_gap() {
    // This control node has just been started; the worker has not.
    let mut intake = Intake::<u8>::new(run(1));
    assert!(intake.resync_is_news(run(1), 1));
    assert_eq!(intake.resync(1, run(1), page(10, &["a", "b"], false)), done(Some((1, 9)), 9, &["a", "b"]));
    assert!(!intake.is_new(run(1), 9));
    assert_eq!(intake.event(run(1), 10, EventKind::Class), plain(10));
}

#[test]
fn the_first_word_of_a_new_incarnation_is_a_resync() {
    let mut intake = Intake::<u8>::new(run(1));
    intake.event(run(1), 1, EventKind::Class);
    assert!(intake.resync_is_news(run(2), 1));
    assert_eq!(intake.resync(1, run(2), page(1, &["a"], false)), done(None, 0, &["a"]));
    assert_eq!(intake.event(run(2), 1, EventKind::Class), plain(1));

    // Also where its class had nothing to say when it was adopted.
    assert_eq!(intake.event(run(3), 1, EventKind::Class), Arrival { first: 1, before: Some(Before::Resync(None)) });
    assert_eq!(intake.event(run(4), 3, EventKind::Class), Arrival { first: 3, before: Some(Before::Resync(Some((1, 2)))) });
}

#[test]
fn pages_are_one_resync() {
    let mut intake = Intake::<u8>::new(run(1));
    assert_eq!(intake.resync(1, run(1), page(1, &["a"], true)), Resynced::More);
    assert!(intake.resync_is_news(run(1), 1));
    assert_eq!(intake.resync(1, run(1), page(1, &["b"], true)), Resynced::More);
    assert_eq!(intake.resync(1, run(1), page(1, &["c"], false)), done(None, 0, &["a", "b", "c"]));
}

#[test]
fn pages_that_were_cut_are_forgotten() {
    let mut intake = Intake::<u8>::new(run(1));
    assert_eq!(intake.resync(1, run(1), page(1, &["a"], true)), Resynced::More);
    // The link broke; the worker begins anew on another one, without `a`, which has ended.
    assert_eq!(intake.resync(2, run(1), page(1, &["b"], true)), Resynced::More);
    assert_eq!(intake.resync(2, run(1), page(1, &["c"], false)), done(None, 0, &["b", "c"]));
    // So they are when the worker is another one.
    intake.resync(2, run(2), page(1, &["d"], true));
    assert_eq!(intake.resync(2, run(3), page(1, &["e"], false)), done(None, 0, &["e"]));
}

#[test]
fn the_tasks_of_a_resync_are_bounded() {
    let mut intake = Intake::<u8>::new(run(1));
    let names: Vec<String> = (0..1000).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut pages = 0;
    while intake.resync(1, run(1), page(1, &names, true)) == Resynced::More {
        pages += 1;
        assert!(pages < 100, "never full");
    }
    assert_eq!(pages, TASKS_MAX / 1000);
}

#[test]
fn numbers_at_their_end_do_no_harm() {
    for last in [u64::MAX - 1, u64::MAX] {
        let mut intake = Intake::<u8>::new(run(1));
        assert_eq!(intake.event(run(1), last, EventKind::Class).before, Some(Before::Resync(Some((1, last - 1)))));
        assert!(!intake.is_new(run(1), last));
        intake.resync_is_news(run(1), u64::MAX);
        let mut intake = Intake::<u8>::new(run(1));
        assert_eq!(intake.resync(1, run(1), page(last, &[], false)), done(Some((1, last - 1)), last - 1, &[]));
        intake.event(run(1), u64::MAX, EventKind::Gap);
        assert!(!intake.resync_is_news(run(1), u64::MAX));
    }
    assert_eq!(Intake::<u8>::new(run(1)).resync(1, run(1), page(0, &[], false)), done(None, 0, &[]));
}

/// What happens between a worker and its control node.
#[derive(Clone, Debug)]
enum Step {
    /// The worker appends an event.
    Append,
    /// It drops the oldest that is not acknowledged, which becomes part of a gap.
    Drop,
    /// So many of what is unsent on this link arrive.
    Arrive(usize),
    /// An acknowledgement arrives at the worker.
    Acknowledge,
    /// The link is cut, another is made: everything unacknowledged is sent again.
    Reconnect,
    /// The worker is started anew.
    Restart,
    /// The control node is started anew and knows nothing.
    Forget,
}

/// A journal as simple as can be: the numbers that are not acknowledged, and which of them are dropped.
#[derive(Default)]
struct Journal {
    appended: u64,
    acknowledged: u64,
    dropped: Vec<u64>,
    next: u64,
}

impl Journal {
    /// The next thing to send: its number, and whether it is a gap.
    fn send(&mut self) -> Option<(u64, bool)> {
        self.next = self.next.max(self.acknowledged) + 1;
        if self.next > self.appended {
            self.next -= 1;
            return None;
        }
        let gap = self.dropped.contains(&self.next);
        // A gap is as long as it can be.
        while gap && self.dropped.contains(&(self.next + 1)) {
            self.next += 1;
        }
        Some((self.next, gap))
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Append),
        2 => Just(Step::Drop),
        6 => (1_usize..5).prop_map(Step::Arrive),
        3 => Just(Step::Acknowledge),
        3 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => Just(Step::Forget),
    ]
}

proptest! {
    #[test]
    fn each_number_is_told_once_and_in_order(steps in prop::collection::vec(step(), 1..120)) {
        let (mut incarnation, mut channel) = (1, 1);
        let mut journal = Journal::default();
        let mut intake = Intake::<u8>::new(run(incarnation));
        // What the class was told of this incarnation: every number up to here, none twice.
        let mut told = 0;
        let mut introduced = true;
        let tell = |told: &mut u64, from: u64, to: u64| {
            prop_assert_eq!(from, *told + 1, "told {}..={} behind {}", from, to, *told);
            prop_assert!(to >= from);
            *told = to;
            Ok(())
        };
        for step in steps {
            match step {
                Step::Append => journal.appended += 1,
                Step::Drop => {
                    let oldest = (journal.acknowledged + 1..=journal.appended).find(|seq| !journal.dropped.contains(seq));
                    journal.dropped.extend(oldest);
                }
                Step::Arrive(count) => {
                    for _ in 0..count {
                        let Some((seq, gap)) = journal.send() else { break };
                        if !intake.is_new(run(incarnation), seq) {
                            prop_assert!(seq <= told, "{} was never told", seq);
                            continue;
                        }
                        let kind = if gap { EventKind::Gap } else { EventKind::Class };
                        let arrival = intake.event(run(incarnation), seq, kind);
                        match arrival.before {
                            Some(Before::Resync(lost)) => {
                                prop_assert!(!introduced, "introduced twice");
                                introduced = true;
                                if let Some((from, to)) = lost {
                                    tell(&mut told, from, to)?;
                                }
                            }
                            Some(Before::Gap(_)) => prop_assert!(false, "the journal has no holes"),
                            None => prop_assert!(introduced || told == 0),
                        }
                        tell(&mut told, arrival.first, seq)?;
                    }
                }
                Step::Acknowledge => journal.acknowledged = journal.acknowledged.max(told.min(journal.next)),
                Step::Reconnect | Step::Restart | Step::Forget => {
                    channel += 1;
                    if matches!(step, Step::Restart) {
                        incarnation += 1;
                        journal = Journal::default();
                        (told, introduced) = (0, false);
                    }
                    if matches!(step, Step::Forget) {
                        intake = Intake::<u8>::new(run(incarnation));
                        // What an earlier control node was told is nothing to this one.
                        (told, introduced) = (0, true);
                    }
                    journal.next = journal.acknowledged;
                    // A class without events is not introduced.
                    if journal.appended > 0 && intake.resync_is_news(run(incarnation), journal.acknowledged + 1) {
                        let outcome = intake.resync(channel, run(incarnation), page(journal.acknowledged + 1, &[], false));
                        let Resynced::Done { gap, mark, .. } = outcome else {
                            return Err(TestCaseError::fail("one page is all"));
                        };
                        if let Some((from, to)) = gap {
                            tell(&mut told, from, to)?;
                        }
                        prop_assert_eq!(mark, told);
                        introduced = true;
                    }
                }
            }
        }
    }
}
