//! How fast bytes come, without a clock.
//!
//! A reader that gets a whole burst and never finds its socket empty is slower than the way: decryption is, and everything else that is done with the bytes. Then
//! two things help that would harm elsewhere. It *gives way* after each burst: a thread of the runtime that has work does not look at the sockets, and those that
//! sleep do not either, so one thread would do all that a stream needs, at both ends of a process or of a relay. And the windows of its streams may be
//! larger than the way is long, so that sender and receiver need not wait for each other's threads; what waits then, waits here, and for a moment.

use std::future::poll_fn;
use std::task::Poll;

/// Bytes after which the reader or writer of a link gives way whose bytes cost much.
pub(super) const BURST_BYTES: usize = 128 * 1024;
/// What a whole burst adds to the score; a pause within one takes one away. It may be a pause of the writer, which had the stream just then.
const WHOLE: u8 = 4;
/// Score of a link that is fast, and the highest one: some pauses in a row make it slow again.
const FAST: u8 = 16;
const SCORE_MAX: u8 = 32;

/// The reader of one link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    burst: usize,
    burst_max: usize,
    score: u8,
}

impl Pace {
    /// With bursts of so many bytes.
    pub(super) fn new(burst_max: usize) -> Self {
        Self { burst: 0, burst_max, score: 0 }
    }

    /// Bytes came. Whether that was a burst, so that it is time to give way.
    pub(super) fn came(&mut self, bytes: usize) -> bool {
        self.burst = self.burst.saturating_add(bytes);
        let is_whole = self.burst >= self.burst_max;
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

/// Lets whoever is ready to run go first, and wakes a thread that sleeps: it looks for work, and at the sockets.
pub(super) async fn give_way() {
    let mut has_given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_given, true) {
            return Poll::Ready(());
        }
        // Into the queue, where other threads find it; `yield_now` would keep the task for this one.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
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
        let mut pace = Pace::new(BURST_BYTES);
        let bursts = (0..32).filter(|_| pace.came(BURST_BYTES / 4)).count();
        assert_eq!((bursts, pace.is_fast()), (8, true));
        one_by_one(&mut pace, 17, 1000);
        assert!(!pace.is_fast(), "and no longer");
    }

    #[test]
    fn a_window_that_ends_within_a_burst_does_not_make_it_slow() {
        let mut pace = Pace::new(BURST_BYTES);
        for _ in 0..20 {
            // 240 KiB, as of a window with something on its way.
            (0..15).for_each(|_| _ = pace.came(16 * 1024));
            pace.waits();
        }
        assert!(pace.is_fast());
    }

    #[test]
    fn what_a_slow_way_has_piled_up_meanwhile_makes_no_link_fast() {
        let mut pace = Pace::new(BURST_BYTES);
        for _ in 0..20 {
            one_by_one(&mut pace, 15, 16 * 1024);
            // This node stood still for a moment.
            for _ in 0..3 {
                pace.came(BURST_BYTES);
            }
            pace.came(1000);
            pace.waits();
            assert!(!pace.is_fast());
        }
    }
}
