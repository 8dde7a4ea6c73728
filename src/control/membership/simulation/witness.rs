//! Who stands beside a node and notes what really arrived, whatever its machine makes of it.
//!
//! What is checked in every step: a life that a node had lost is named in its row again only after it was heard steadily, without a gap of [`SUSPECT`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::control::membership::machine::{REENTER, SUSPECT};
use crate::control::membership::table::Life;

#[derive(Default)]
pub(super) struct Witness {
    /// Envelopes of each life, the last of [`REENTER`] and one before.
    came: BTreeMap<Life, Vec<Instant>>,
    named: BTreeSet<Life>,
    lost: BTreeSet<Life>,
}

impl Witness {
    /// An envelope of this life arrived.
    pub(super) fn came(&mut self, life: Life, now: Instant) {
        let came = self.came.entry(life).or_default();
        let before = came.iter().filter(|at| **at + REENTER <= now).count();
        came.drain(..before.saturating_sub(1));
        came.push(now);
    }

    /// The row of the node names these lives.
    pub(super) fn named(&mut self, named: BTreeSet<Life>, now: Instant) -> Result<(), String> {
        if named == self.named {
            return Ok(());
        }
        self.lost.extend(self.named.difference(&named).cloned());
        let again: Vec<Life> = named.difference(&self.named).filter(|life| self.lost.remove(life)).cloned().collect();
        self.named = named;
        for life in again {
            let longest = self.longest_silence(&life, now);
            if longest >= SUSPECT {
                return Err(format!("hears {} again, which was silent for {longest:?} within the last {REENTER:?}", life.0));
            }
        }
        Ok(())
    }

    /// Within the last [`REENTER`].
    fn longest_silence(&self, life: &Life, now: Instant) -> Duration {
        let Some(came) = self.came.get(life) else { return REENTER };
        let from = now.checked_sub(REENTER).unwrap_or(now);
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in came {
            if *at <= from {
                continue;
            }
            longest = longest.max(*at - last);
            last = *at;
        }
        longest.max(now - last)
    }
}
