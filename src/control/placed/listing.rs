//! Which actors of a kind are known here.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::shared::Shared;
use super::place;
use crate::cluster::{PLACED_KEYS_MAX, PlacedInfo, PlacedKey, PlacedKeys, PlacedSearch};
use crate::types::ClassName;

/// Those that live here, and, of a durable kind, those of which a record is kept here: some of them may live elsewhere, or nowhere.
pub(in super::super) fn local_keys(shared: &Shared, search: PlacedSearch) -> PlacedKeys {
    let PlacedSearch { kind, after } = search;
    let is_durable = shared.classes.placed(&kind).is_some_and(|kind| kind.is_durable);
    let after = after.map(|key| PlacedKey { kind: kind.clone(), key });
    let view = shared.view();
    let state = shared.placed.lock();
    // One more than an answer may name, so that it is known whether there are more.
    // One that has not started yet may wait for another node, or be nothing: of a durable kind its record is named.
    let hosted = of_kind(&state.actors, &kind, after.as_ref()).filter(|(_, host)| host.has_started).take(PLACED_KEYS_MAX + 1);
    let hosted = hosted.map(|(key, _)| PlacedInfo { key: key.key.clone(), node: shared.id.clone(), is_alive: true, problem: None });
    let mut found = PlacedKeys { actors: hosted.collect(), ..PlacedKeys::default() };
    if is_durable {
        let kept = state.copies.behind(&kind, after.as_ref(), PLACED_KEYS_MAX + 1);
        let kept = kept.map(|(key, hash)| PlacedInfo {
            key: key.key.clone(),
            node: place(&view, hash).unwrap_or(&shared.id).clone(),
            is_alive: false,
            problem: state.troubles.of(key).cloned(),
        });
        found.join(PlacedKeys { actors: kept.collect(), ..PlacedKeys::default() });
    }
    found.cut();
    found
}

/// What a map has of one kind, behind a key if there is one.
pub(super) fn of_kind<'a, T>(
    map: &'a BTreeMap<PlacedKey, T>,
    kind: &'a ClassName,
    after: Option<&PlacedKey>,
) -> impl Iterator<Item = (&'a PlacedKey, &'a T)> {
    let first = PlacedKey { kind: kind.clone(), key: String::new() };
    let from = after.map_or(Bound::Included(&first), Bound::Excluded);
    map.range((from, Bound::Unbounded)).take_while(move |(key, _)| key.kind == *kind)
}
