//! Labels, and changes of them.

use nkcluster::types::Meta;

use crate::input::{Input, text};
use crate::seeded::seeded_crash;

/// Labels are read or refused. What was read returns from its text, from JSON and from MessagePack; an update replaces by name, keeps the order and the bounds, and
/// does nothing if done twice; what is removed is gone.
pub fn labels(data: &[u8]) {
    let mut input = Input::new(data);
    let first = text(input.until_nul());
    let rest = input.rest();
    // What a peer sends needs no text.
    if let Ok(meta) = rmp_serde::from_slice::<Meta>(rest) {
        check(&meta);
    }
    let Ok(meta) = first.parse::<Meta>() else { return };
    check(&meta);
    let Ok(changes) = text(rest).parse::<Meta>() else { return };
    let mut changed = meta.clone();
    match changed.update(&changes) {
        Err(_) => assert_eq!(changed, meta, "a refused update changes nothing"),
        Ok(()) => {
            check(&changed);
            for label in &changes {
                assert_eq!(changed.find(label.name()), Some(label));
            }
            let kept: Vec<&str> = changed.iter().map(|label| label.name()).take(meta.len()).collect();
            assert_eq!(kept, meta.iter().map(|label| label.name()).collect::<Vec<_>>(), "the order changed");
            let once = changed.clone();
            assert_eq!(changed.update(&changes), Ok(()));
            assert_eq!(changed, once);
        }
    }
    let names: Vec<&str> = changes.iter().map(|label| label.name()).collect();
    changed.remove(&names);
    assert!(names.iter().all(|name| changed.find(name).is_none()));
    let replaced = changes.iter().filter(|label| meta.find(label.name()).is_some()).count();
    seeded_crash!("labels", meta.len() > 2, replaced > 1, changes.len() > replaced,);
}

fn check(meta: &Meta) {
    assert!(meta.len() <= Meta::ENTRIES_MAX);
    let printed = meta.to_string();
    assert_eq!(printed.parse().as_ref(), Ok(meta), "{printed}");
    let packed = rmp_serde::to_vec_named(meta).unwrap_or_else(|error| panic!("labels always encode: {error}"));
    let unpacked: Meta = rmp_serde::from_slice(&packed).unwrap_or_else(|error| panic!("{printed}: {error}"));
    assert_eq!(&unpacked, meta);
    let json = serde_json::to_string(meta).unwrap_or_else(|error| panic!("labels always encode: {error}"));
    let back: Meta = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert_eq!(&back, meta);
}
