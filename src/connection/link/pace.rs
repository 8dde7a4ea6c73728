//! How fast bytes come, without a clock.
//!
//! A reader that gets a whole burst and never finds its socket empty is slower than the way: decryption is, and everything else that is done with the bytes. Then
//! two things help that would harm elsewhere. It *gives way* after each burst: a thread of the runtime that has work does not look at the sockets, and those that
//! sleep do not either, so one thread would do all that a stream needs, at both ends of a process or of a relay. And the windows of its streams may be
//! larger than the way is long, so that sender and receiver need not wait for each other's threads; what waits then, waits here, and for a moment.

/// Bytes after which the reader or writer of an encrypted link gives way.
pub(super) const BURST_BYTES: usize = 128 * 1024;
/// What a whole burst adds to the score; an end within one takes one away.
const WHOLE: u8 = 2;
/// Score of a link that is fast, and the highest one: some ends in a row make it slow again.
const FAST: u8 = 8;
const SCORE_MAX: u8 = 16;

/// The reader of one link.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    burst: usize,
    score: u8,
}

impl Pace {
    /// Bytes came. Whether that was a burst, so that it is time to give way.
    pub(super) fn came(&mut self, bytes: usize) -> bool {
        self.burst += bytes;
        let is_whole = self.burst >= BURST_BYTES;
        if is_whole {
            self.burst = 0;
            self.score = (self.score + WHOLE).min(SCORE_MAX);
        }
        is_whole
    }

    /// Nothing more is there.
    pub(super) fn waits(&mut self) {
        if std::mem::take(&mut self.burst) > 0 {
            self.score = self.score.saturating_sub(1);
        }
    }

    /// Whether the reader is what bounds the rate.
    pub(super) fn is_fast(&self) -> bool {
        self.score >= FAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of so many bytes, each of which finds the socket empty afterwards.
    fn one_by_one(pace: &mut Pace, reads: usize, bytes: usize) {
        for _ in 0..reads {
            pace.came(bytes);
            pace.waits();
        }
    }

    #[test]
    fn a_link_is_fast_while_bursts_come_without_a_pause() {
        let mut pace = Pace::default();
        let bursts = (0..32).filter(|_| pace.came(BURST_BYTES / 4)).count();
        assert_eq!((bursts, pace.is_fast()), (8, true));
        one_by_one(&mut pace, 9, 1000);
        assert!(!pace.is_fast(), "and no longer");
    }

    #[test]
    fn a_window_that_ends_within_a_burst_does_not_make_it_slow() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            // 240 KiB, as of a window with something on its way.
            (0..15).for_each(|_| _ = pace.came(16 * 1024));
            pace.waits();
        }
        assert!(pace.is_fast());
    }

    #[test]
    fn what_a_slow_way_has_piled_up_meanwhile_makes_no_link_fast() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            one_by_one(&mut pace, 5, 16 * 1024);
            // This node stood still for a moment.
            pace.came(3 * BURST_BYTES);
            pace.waits();
            assert!(!pace.is_fast());
        }
    }
}
