//! Chance within rules: shuffling, and the selection by weight of RFC 2782.

use super::Dice;

/// Any order, each as likely (Durstenfeld 1964).
pub(super) fn shuffle<T>(items: &mut [T], dice: Dice<'_>) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(dice, last as u64 + 1));
    }
}

/// Lower priorities first; within one, the first is drawn by weight, then the next of what is left.
pub(super) fn by_weight<T>(mut items: Vec<T>, key: impl Fn(&T) -> (u16, u16), dice: Dice<'_>) -> Vec<T> {
    shuffle(&mut items, dice);
    // RFC 2782: those without weight stand in front, so that they too have a small chance.
    items.sort_by_key(|item| {
        let (priority, weight) = key(item);
        (priority, weight != 0)
    });
    let mut ordered = Vec::with_capacity(items.len());
    while let Some(first) = items.first() {
        let (priority, _) = key(first);
        let group = items.iter().map(&key).take_while(|(other, _)| *other == priority);
        let weights: Vec<u64> = group.map(|(_, weight)| u64::from(weight)).collect();
        let drawn = below(dice, weights.iter().sum::<u64>() + 1) as u64;
        let mut sum = 0;
        let chosen = weights.iter().position(|weight| {
            sum += weight;
            sum >= drawn
        });
        ordered.push(items.remove(chosen.unwrap_or(0)));
    }
    ordered
}

/// What was thrown, whatever the dice do.
fn below(dice: Dice<'_>, limit: u64) -> usize {
    // Both numbers are small: there are few items, and weights have 16 bits.
    (dice(limit) % limit) as usize
}
