//! How often somebody looks.

use std::time::Duration;

/// Shortest time between two looks.
pub(crate) const SHORTEST: Duration = Duration::from_millis(10);
/// Longest time between two looks.
pub(crate) const LONGEST: Duration = Duration::from_secs(2);

/// Looks come quickly while something happens, and twice as far apart each time nothing did.
#[derive(Clone, Debug)]
pub(crate) struct Pacing {
    wait: Duration,
    longest: Duration,
}

impl Pacing {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { wait: SHORTEST, longest: longest.max(SHORTEST) }
    }

    /// Something happened.
    pub(crate) fn hurry(&mut self) {
        self.wait = SHORTEST;
    }

    /// It has slowed down as far as it does.
    pub(crate) fn is_slow(&self) -> bool {
        self.wait >= self.longest
    }

    /// The time until the next look, between half and the whole of what is due, so that many do not look at once. `random` is any number.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(self.longest);
        let half = wait / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }
}

/// Any number. Tests draw from a seed, so that whatever they find is found again.
pub(crate) fn random() -> u64 {
    #[cfg(test)]
    if let Some(drawn) = seed::draw() {
        return drawn;
    }
    rand::random()
}

/// Numbers of this thread that follow from a seed.
#[cfg(test)]
pub(crate) mod seed {
    thread_local! {
        static STATE: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
    }

    /// From now on numbers follow from this one; none returns to chance.
    pub(crate) fn plant(seed: Option<u64>) {
        STATE.set(seed.map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }

    /// The next number, by SplitMix64.
    pub(crate) fn draw() -> Option<u64> {
        let state = STATE.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
        STATE.set(Some(state));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ (mixed >> 31))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_slows_down_to_its_longest_wait_and_hurries_again() {
        let mut pacing = Pacing::new(LONGEST);
        let waits: Vec<_> = (0..12).map(|_| pacing.next(u64::MAX)).collect();
        assert!(waits[0] == SHORTEST && waits.is_sorted() && waits[11] == LONGEST);
        assert!(pacing.next(0) == LONGEST / 2);
        pacing.hurry();
        assert!(pacing.next(u64::MAX) == SHORTEST);
    }
}
