//! The receiving half of credit: how much a sender may have on its way.
//!
//! ```text
//!   ├── unread ──┼───── granted ─────┤
//!   ├────────────── size ────────────┤     unread: arrived, not read; granted: may still arrive
//! ```
//!
//! A window that is smaller than rate × round trip starves its sender. Nobody here has a clock, so the sender tells when it has used up its credit and has
//! more to send, and the receiver looks when its reader comes to that place: if there is **nothing behind it**, the reader has waited for a sender that waited
//! for credit, and the window doubles; if there is, the reader is the slower one, and the window gives an eighth back. A sender that is out of credit has used
//! what came with the last growth: one that says so before is not believed, or said it while more was on its way.
//!
//! No window is larger than the shortest round trip of the link asks for: a link whose socket is the bottleneck looks starved as well, and more on its way
//! would only wait there, with the pings behind it. Unless the receiver is slower than the way: what waits then, waits at its end and for milliseconds, and both
//! ends work at the same time instead of in turns ([`WINDOW_BYTES_FAST`]).
//!
//! Every window has [`STREAM_WINDOW_BYTES`]. What it has beyond that comes out of the [`Budget`] of its link, of which a stream may take as much as it leaves to all
//! others together: the first one finds plenty, and a thousand of them share it without any of them being asked. Credit that was given cannot be taken
//! back, so a window shrinks by giving less of it.

use std::time::Duration;

/// Bytes that each side may send at first, and may always have on the way.
pub const STREAM_WINDOW_BYTES: usize = 256 * 1024;
/// Most that one stream may have on the way: 1 Gbit/s over 130 ms.
pub const STREAM_WINDOW_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What all streams of a link may have on the way beyond their first windows.
pub const WINDOW_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// Credit is given in steps, so that there are few frames of it.
const STEP_BYTES: usize = 128 * 1024;
/// The rate for which windows are made: 160 MB/s.
const BYTES_PER_MICROSECOND: usize = 168;
/// Largest window of a link whose receiver is slower than the way, however short that is.
const WINDOW_BYTES_FAST: usize = 2 * 1024 * 1024;
/// The part of itself that a window gives back when its reader is the slower one.
const SHRINK_PART: usize = 8;

/// Bytes of a link that its windows have beyond their first.
#[derive(Debug)]
pub(super) struct Budget {
    used: usize,
    /// Shortest round trip that was seen on the link.
    round_trip: Option<Duration>,
    /// Whether bytes come as fast as they can be looked at.
    is_fast: bool,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { used: 0, round_trip: None, is_fast: false }
    }

    /// A round trip was measured.
    pub(super) fn round_trip(&mut self, measured: Duration) {
        self.round_trip = Some(self.round_trip.map_or(measured, |known| known.min(measured)));
    }

    pub(super) fn set_fast(&mut self, is_fast: bool) {
        self.is_fast = is_fast;
    }

    /// The largest window that the way is long enough for. What is more than that waits in buffers on the way, and pings wait behind it.
    fn window_max(&self) -> usize {
        let micros = self.round_trip.map_or(0, |round_trip| usize::try_from(round_trip.as_micros()).unwrap_or(usize::MAX));
        let least = if self.is_fast { WINDOW_BYTES_FAST } else { STREAM_WINDOW_BYTES };
        micros.saturating_mul(BYTES_PER_MICROSECOND).clamp(least, STREAM_WINDOW_BYTES_MAX)
    }
}

/// What one stream may receive.
#[derive(Debug)]
pub(super) struct Window {
    /// Where the sum of the two below should be.
    size: usize,
    granted: usize,
    unread: usize,
    /// Counted in the budget: what `size`, or what is out already, has beyond the first window.
    extra: usize,
    /// Unread bytes in front of the place where the sender ran out of credit.
    starved_behind: Option<usize>,
    /// Bytes that have arrived since the window grew.
    since_growth: usize,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { size: STREAM_WINDOW_BYTES, granted: STREAM_WINDOW_BYTES, unread: 0, extra: 0, starved_behind: None, since_growth: 0 }
    }

    /// Bytes that may still arrive.
    pub(super) fn granted(&self) -> usize {
        self.granted
    }

    /// Bytes have arrived; `starved` if the sender ran out of credit behind them. At most [`Window::granted`], which the caller has looked at.
    pub(super) fn arrived(&mut self, bytes: usize, starved: bool, budget: &mut Budget) {
        self.granted -= bytes;
        self.unread += bytes;
        self.since_growth = self.since_growth.saturating_add(bytes);
        if starved {
            // Not the last one: a reader that is behind would never come to it.
            self.starved_behind.get_or_insert(self.unread);
            self.judge(budget);
        }
    }

    /// Bytes have arrived which nobody will read.
    pub(super) fn dropped(&mut self, bytes: usize) {
        self.granted -= bytes;
    }

    /// The reader has taken bytes.
    pub(super) fn taken(&mut self, bytes: usize, budget: &mut Budget) {
        self.unread -= bytes;
        if let Some(behind) = &mut self.starved_behind {
            *behind = behind.saturating_sub(bytes);
        }
        self.judge(budget);
    }

    /// Credit to be given now; none if it is not worth a frame.
    pub(super) fn top_up(&mut self) -> Option<u32> {
        let credit = self.size.saturating_sub(self.granted + self.unread);
        if credit < STEP_BYTES {
            return None;
        }
        self.granted += credit;
        u32::try_from(credit).ok()
    }

    /// The stream has ended.
    pub(super) fn release(self, budget: &mut Budget) {
        budget.used -= self.extra;
    }

    fn judge(&mut self, budget: &mut Budget) {
        let fair = STREAM_WINDOW_BYTES + (WINDOW_BUDGET_BYTES - (budget.used - self.extra)) / 2;
        if self.starved_behind == Some(0) {
            self.starved_behind = None;
            if self.unread > 0 {
                self.size -= self.size / SHRINK_PART;
            } else if self.since_growth >= self.size / 2 {
                self.size *= 2;
                self.since_growth = 0;
            }
        }
        self.size = self.size.min(fair).clamp(STREAM_WINDOW_BYTES, budget.window_max());
        let extra = self.size.max(self.granted + self.unread) - STREAM_WINDOW_BYTES;
        budget.used = budget.used - self.extra + extra;
        self.extra = extra;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn far() -> Budget {
        let mut budget = Budget::new();
        budget.round_trip(Duration::from_millis(100));
        budget
    }

    #[test]
    fn a_window_is_no_larger_than_its_way_is_long() {
        for (millis, most) in [(0, STREAM_WINDOW_BYTES), (1, STREAM_WINDOW_BYTES), (10, 1_680_000), (500, STREAM_WINDOW_BYTES_MAX)] {
            let (mut window, mut budget) = (Window::new(), Budget::new());
            budget.round_trip(Duration::from_millis(millis));
            budget.round_trip(Duration::from_secs(9));
            for _ in 0..20 {
                window.arrived(window.granted(), true, &mut budget);
                window.taken(window.unread, &mut budget);
                window.top_up();
            }
            assert_eq!(window.size, most, "{millis} ms");
        }
    }

    #[test]
    fn a_receiver_that_is_slower_than_the_way_has_more_on_it_for_as_long_as_it_is() {
        let (mut window, mut budget) = (Window::new(), Budget::new());
        budget.round_trip(Duration::from_micros(50));
        for (is_fast, most) in [(false, STREAM_WINDOW_BYTES), (true, WINDOW_BYTES_FAST), (false, STREAM_WINDOW_BYTES)] {
            budget.set_fast(is_fast);
            for _ in 0..20 {
                window.arrived(window.granted(), true, &mut budget);
                window.taken(window.unread, &mut budget);
                window.top_up();
            }
            assert_eq!(window.size, most, "fast: {is_fast}");
        }
    }

    /// A stream whose sender takes everything at once, and waits `round_trips` for credit; `reads` of each round are read.
    fn rounds(count: usize, reads: impl Fn(usize) -> usize) -> (Window, Budget, usize) {
        let (mut window, mut budget) = (Window::new(), far());
        let (mut credit, mut most) = (STREAM_WINDOW_BYTES, 0);
        for round in 0..count {
            let sent = std::mem::take(&mut credit);
            most = most.max(sent);
            window.arrived(sent, true, &mut budget);
            let read = reads(window.unread).min(window.unread);
            window.taken(read, &mut budget);
            credit += window.top_up().map_or(0, |bytes| bytes as usize);
            assert!(window.granted + window.unread <= STREAM_WINDOW_BYTES_MAX, "round {round}");
        }
        (window, budget, most)
    }

    #[test]
    fn a_sender_that_starves_a_waiting_reader_gets_more() {
        let (window, _, most) = rounds(10, |unread| unread);
        assert_eq!((window.size, most), (STREAM_WINDOW_BYTES_MAX, STREAM_WINDOW_BYTES_MAX));
    }

    #[test]
    fn a_reader_that_is_behind_gives_back_what_it_does_not_need() {
        let (mut window, mut budget, _) = rounds(10, |unread| unread);
        let before = window.size;
        // Half of each round is left, so there is always something behind the place.
        for _ in 0..200 {
            let sent = window.granted;
            window.arrived(sent, true, &mut budget);
            let half = window.unread / 2;
            window.taken(half, &mut budget);
            window.top_up();
        }
        assert!(window.size < before / 8, "{} of {before}", window.size);
        assert!(budget.used < before / 4, "what is given back can be used by others");
    }

    #[test]
    fn a_reader_that_stalls_is_never_granted_more() {
        let (window, budget, most) = rounds(10, |_| 0);
        assert_eq!((window.size, budget.used, most), (STREAM_WINDOW_BYTES, 0, STREAM_WINDOW_BYTES));
    }

    #[test]
    fn many_streams_share_the_budget_evenly() {
        let mut budget = far();
        let mut windows: Vec<Window> = (0..200).map(|_| Window::new()).collect();
        for _ in 0..400 {
            for window in &mut windows {
                let sent = window.granted;
                window.arrived(sent, true, &mut budget);
                window.taken(window.unread, &mut budget);
                window.top_up();
            }
        }
        let share = WINDOW_BUDGET_BYTES / (windows.len() + 1);
        for window in &windows {
            let extra = window.size - STREAM_WINDOW_BYTES;
            assert!((share / 2..2 * share).contains(&extra), "{extra} instead of about {share}");
        }
    }

    #[test]
    fn a_sender_that_lies_gets_no_more_than_it_has_used() {
        let (mut window, mut budget) = (Window::new(), far());
        for arrived in 1..=1000 {
            window.arrived(1000, true, &mut budget);
            window.taken(1000, &mut budget);
            window.top_up();
            assert!(window.size <= STREAM_WINDOW_BYTES + 2 * 1000 * arrived, "{} after {arrived} kB", window.size);
        }
        assert!(window.size > STREAM_WINDOW_BYTES);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(usize, usize, bool),
        Read(usize, usize),
        Renew(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let stream = 0_usize..8;
        prop_oneof![
            (stream.clone(), 0_usize..8_000_000, any::<bool>()).prop_map(|(stream, bytes, starved)| Step::Arrive(stream, bytes, starved)),
            (stream.clone(), 0_usize..8_000_000).prop_map(|(stream, bytes)| Step::Read(stream, bytes)),
            (stream.clone(), Just(usize::MAX)).prop_map(|(stream, bytes)| Step::Read(stream, bytes)),
            stream.prop_map(Step::Renew),
        ]
    }

    proptest! {
        #[test]
        fn windows_keep_their_bounds_and_never_run_dry(steps in proptest::collection::vec(step(), 0..600)) {
            let mut budget = far();
            let mut windows: Vec<Window> = (0..8).map(|_| Window::new()).collect();
            for step in steps {
                match step {
                    Step::Arrive(stream, bytes, starved) => {
                        let bytes = bytes.min(windows[stream].granted());
                        windows[stream].arrived(bytes, starved, &mut budget);
                        windows[stream].top_up();
                    }
                    Step::Read(stream, bytes) => {
                        let bytes = bytes.min(windows[stream].unread);
                        windows[stream].taken(bytes, &mut budget);
                        windows[stream].top_up();
                        prop_assert!(windows[stream].unread > 0 || windows[stream].granted > 0, "a sender would wait for ever");
                    }
                    Step::Renew(stream) => std::mem::replace(&mut windows[stream], Window::new()).release(&mut budget),
                }
                prop_assert!(budget.used <= WINDOW_BUDGET_BYTES);
                prop_assert_eq!(budget.used, windows.iter().map(|window| window.extra).sum::<usize>());
                for window in &windows {
                    prop_assert!(window.granted + window.unread <= STREAM_WINDOW_BYTES + window.extra, "more is out than is counted");
                    prop_assert!((STREAM_WINDOW_BYTES..=STREAM_WINDOW_BYTES_MAX).contains(&window.size));
                }
            }
            windows.into_iter().for_each(|window| window.release(&mut budget));
            prop_assert_eq!(budget.used, 0);
        }
    }
}
