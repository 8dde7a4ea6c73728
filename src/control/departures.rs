//! How those who must leave a control node are spread over time: told to go at once, thousands would stand before the others' doors in one moment.

use std::time::Duration;

/// Longest time over which a fleet is spread. Whoever waits longer than that would be told more by a control node that is too busy.
const LONGEST: Duration = Duration::from_secs(30);

/// When each of `count` may come again: so many a second as the others take in together, from now on, within [`LONGEST`].
pub(super) fn pauses(count: usize, rate: u32, others: usize) -> impl Iterator<Item = Duration> {
    let per_second = f64::from(rate.max(1)) * others.max(1) as f64;
    let step = (1.0 / per_second).min(LONGEST.as_secs_f64() / count.max(1) as f64);
    (0..count).map(move |place| Duration::from_secs_f64(step * place as f64))
}

/// The same as it stands on the wire.
pub(super) fn millis(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_come_in_a_second_as_the_others_take_in() {
        for (count, rate, others) in [(10_000, 2000, 1), (10_000, 2000, 2), (3, 1, 1), (1, 2000, 0)] {
            let pauses: Vec<Duration> = pauses(count, rate, others).collect();
            let per_second = rate as usize * others.max(1);
            assert_eq!(pauses.len(), count);
            assert_eq!(pauses[0], Duration::ZERO);
            assert!(pauses.is_sorted());
            for second in 0..=pauses[count - 1].as_secs() {
                let come = pauses.iter().filter(|pause| pause.as_secs() == second).count();
                assert!(come <= per_second + 1, "{come} in second {second} of {count} at {per_second} a second");
            }
        }
    }

    #[test]
    fn nobody_is_sent_away_for_long() {
        let last = pauses(1_000_000, 1, 1).last().expect("a million");
        assert!(last <= LONGEST && last > LONGEST * 9 / 10, "{last:?}");
        assert_eq!(pauses(0, 2000, 2).count(), 0);
        assert_eq!(millis(Duration::from_micros(1500)), 1);
    }
}
