//! Selectors, and the nodes that they mean.

use nkcluster::types::{ClassName, Meta, NodeId, NodeStatus, Selector, SelectorInput};

use crate::input::{Input, text};
use crate::seeded::seeded_crash;

/// A selector is read or refused. What was read returns from its own text, which means the same nodes, and its negation means the others.
pub fn selector(data: &[u8]) {
    let mut input = Input::new(data);
    let written = text(input.until_nul());
    let Ok(selector) = written.parse::<Selector>() else { return };
    let printed = selector.to_string();
    assert!(printed.len() <= Selector::BYTES_MAX);
    assert_eq!(printed.parse().as_ref(), Ok(&selector), "{printed}");
    let seen_by_peer: Selector =
        serde_json::from_value(serde_json::Value::String(printed.clone())).unwrap_or_else(|error| panic!("{error}"));

    let status = NodeStatus::ALL[input.below(NodeStatus::ALL.len())];
    let word = |input: &mut Input<'_>| text(input.until_nul());
    let id = NodeId::new(word(&mut input)).unwrap_or_else(|_| NodeId::new("w1").expect("letters and a digit are a name"));
    let owner = NodeId::new(word(&mut input)).ok();
    let class = ClassName::new(word(&mut input)).ok();
    let meta: Meta = text(input.rest()).parse().unwrap_or_default();
    let node = SelectorInput { id: &id, status, meta: &meta, owner: owner.as_ref(), classes: class.as_slice() };
    let is_meant = selector.matches(&node);
    assert_eq!(seen_by_peer.matches(&node), is_meant, "{printed}");
    if let Ok(negated) = format!("!({written})").parse::<Selector>() {
        assert_eq!(negated.matches(&node), !is_meant, "{printed}");
    }
    seeded_crash!("selector", is_meant, printed.contains(" || "), printed.contains("!("), printed.contains("status="),);
}
