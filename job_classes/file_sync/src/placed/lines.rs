//! What a run has told, until whoever follows it has heard it; in bounded room.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::run::Told;

/// Lines that are kept.
const LINES_MAX: usize = 2_048;
/// Bytes of all of them.
const BYTES_MAX: usize = 512 * 1024;
/// Bytes of one line; what is longer is cut.
const LINE_BYTES_MAX: usize = 4 * 1024;
/// Lines of one answer.
const ANSWER_LINES_MAX: usize = 256;
/// A run waits for its follower if that has asked within this time.
const FOLLOWED: Duration = Duration::from_secs(5);

/// How far somebody has heard a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Who told it: one life of the run, which numbers its lines from 0.
    pub teller: u64,
    /// Lines that were heard.
    pub lines: u64,
}

/// The lines of one life.
#[derive(Debug)]
pub(super) struct Lines {
    teller: u64,
    kept: VecDeque<Told>,
    bytes: usize,
    /// Number of the first one that is kept.
    first: u64,
    /// Lines that a follower has said to have heard.
    heard: u64,
    asked_at: Option<Instant>,
}

/// Lines for somebody who follows.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) lines: Vec<Told>,
    /// How far they reach.
    pub(super) seen: Heard,
    /// Lines before them that are not kept any more.
    pub(super) missed: u64,
}

impl Lines {
    pub(super) fn new(teller: u64) -> Self {
        Self { teller, kept: VecDeque::new(), bytes: 0, first: 0, heard: 0, asked_at: None }
    }

    /// Keeps a line; gives it back if there is no room, and somebody follows who will make some. Without a follower the oldest goes.
    pub(super) fn push(&mut self, told: Told, now: Instant) -> Result<(), Told> {
        let told = cut(told);
        let is_followed = self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < FOLLOWED);
        while self.kept.len() >= LINES_MAX || self.bytes + size(&told) > BYTES_MAX {
            let Some(oldest) = self.kept.front() else { break };
            if self.first >= self.heard && is_followed {
                return Err(told);
            }
            self.bytes -= size(oldest);
            self.kept.pop_front();
            self.first += 1;
        }
        self.bytes += size(&told);
        self.kept.push_back(told);
        Ok(())
    }

    /// What follows what was seen.
    pub(super) fn after(&mut self, seen: Option<Heard>, now: Instant) -> Answer {
        let last = self.first + self.kept.len() as u64;
        // Of another life nothing was heard of this one.
        let heard = seen.filter(|seen| seen.teller == self.teller).map_or(0, |seen| seen.lines.min(last));
        // Whoever never says what it has heard looks now and then, and is not waited for, but at first: it may be about to follow.
        if seen.is_some_and(|seen| seen.teller == self.teller) || self.asked_at.is_none() {
            self.asked_at = Some(now);
        }
        self.heard = self.heard.max(heard);
        let from = heard.max(self.first);
        let lines: Vec<Told> = self.kept.iter().skip((from - self.first) as usize).take(ANSWER_LINES_MAX).cloned().collect();
        Answer { seen: Heard { teller: self.teller, lines: from + lines.len() as u64 }, lines, missed: from - heard }
    }
}

impl Lines {
    /// The files that failed of which something is kept, the earliest first. It is no following: nobody waits for whoever asks.
    pub(super) fn failures(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.kept.iter().filter_map(|told| match told {
            Told::Failed { path, error } => Some((path.as_str(), error.as_str())),
            _ => None,
        })
    }
}

fn size(told: &Told) -> usize {
    match told {
        Told::Failed { path, error } => path.len() + error.len(),
        Told::Notice(what) | Told::Would(what) | Told::Did(what) => what.len(),
    }
}

fn cut(told: Told) -> Told {
    let cut = |mut text: String| {
        text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
        text
    };
    match told {
        // A path of ours is shorter; one that a worker tells may have any length.
        Told::Failed { path, error } => Told::Failed { path: cut(path), error: cut(error) },
        Told::Notice(what) => Told::Notice(cut(what)),
        Told::Would(what) => Told::Would(cut(what)),
        Told::Did(path) => Told::Did(cut(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> Told {
        Told::Would(format!("line {number}"))
    }

    fn seen(teller: u64, lines: u64) -> Option<Heard> {
        Some(Heard { teller, lines })
    }

    #[test]
    fn a_follower_hears_each_line_once_and_a_run_waits_for_it() {
        let (mut lines, now) = (Lines::new(7), Instant::now());
        lines.after(None, now);
        let (mut told, mut heard, mut at) = (0, Vec::new(), None);
        while heard.len() < 3 * LINES_MAX {
            while told < 3 * LINES_MAX && lines.push(line(told), now).is_ok() {
                told += 1;
            }
            let Answer { lines, seen, missed } = lines.after(at, now);
            assert_eq!(missed, 0);
            heard.extend(lines);
            at = Some(seen);
        }
        assert!(heard.into_iter().eq((0..3 * LINES_MAX).map(line)));
    }

    #[test]
    fn whoever_comes_late_hears_what_is_kept_and_how_much_is_not() {
        let (mut lines, now) = (Lines::new(7), Instant::now());
        for number in 0..LINES_MAX + 10 {
            lines.push(line(number), now).expect("nobody follows");
        }
        let answer = lines.after(None, now);
        assert_eq!((answer.missed, &answer.lines[0], answer.seen.teller), (10, &line(10), 7));
        assert_eq!(lines.after(seen(7, LINES_MAX as u64 + 9), now).lines, [line(LINES_MAX + 9)]);
        // Of an earlier life, or more than there are.
        assert_eq!(lines.after(seen(6, 2_000), now).missed, 10);
        assert_eq!(lines.after(seen(7, u64::MAX), now).lines, []);
    }

    #[test]
    fn whoever_only_looks_now_and_then_holds_nothing_up_and_no_line_is_too_long() {
        let (mut lines, mut now) = (Lines::new(7), Instant::now());
        for number in 0..4 * LINES_MAX {
            // As a dashboard does.
            if number % 100 == 0 {
                now += FOLLOWED / 2;
                lines.after(None, now);
            }
            let pushed = lines.push(line(number), now);
            assert!(pushed.is_ok() || now < Instant::now() + FOLLOWED, "{number} waits for nobody");
        }
        let long = Told::Failed { path: "p".repeat(2 * BYTES_MAX), error: String::new() };
        assert_eq!(lines.failures().count(), 0);
        lines.after(seen(7, u64::MAX), now);
        lines.push(long, now).expect("it is cut");
        assert_eq!(lines.failures().map(|(path, _)| path.len()).collect::<Vec<_>>(), [LINE_BYTES_MAX]);
    }

    #[test]
    fn a_follower_that_has_gone_holds_nothing_up() {
        let (mut lines, now) = (Lines::new(7), Instant::now());
        lines.after(None, now);
        let pushed = (0..).take_while(|number| lines.push(line(*number), now).is_ok()).count();
        assert_eq!(pushed, LINES_MAX);
        lines.push(line(0), now + FOLLOWED).expect("the oldest goes");
        let long = Told::Notice("ä".repeat(LINE_BYTES_MAX));
        lines.push(long, now + FOLLOWED).expect("kept");
        assert!(size(lines.kept.back().expect("it is there")) <= LINE_BYTES_MAX);
    }
}
