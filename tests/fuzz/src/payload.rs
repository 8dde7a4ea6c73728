//! Payloads between MessagePack and JSON.

use nkcluster::types::Payload;
use serde_json::Value;

use crate::input::{Input, text};
use crate::seeded::seeded_crash;

/// JSON that becomes a payload is the same JSON when it comes back. Any MessagePack either becomes JSON, which then returns unchanged over a payload, or is refused.
pub fn payload(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(2) {
        0 => from_json(&text(input.rest())),
        _ => from_peer(input.rest()),
    }
}

fn from_json(json: &str) {
    let Ok(payload) = Payload::from_json(json) else { return };
    let expected: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("a payload was made of what is no JSON: {error}"));
    assert_eq!(payload.to_json().as_ref(), Ok(&expected), "{json}");
    let again: Payload = serde_json::from_value(expected.clone()).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert_eq!(again.to_json(), Ok(expected.clone()));
    let packed = rmp_serde::to_vec_named(&payload).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rmp_serde::from_slice::<Payload>(&packed).ok().as_ref(), Some(&payload));
    let number = |at: usize| expected.get(at).and_then(Value::as_i64);
    seeded_crash!(
        "payload",
        number(0).is_some_and(|number| number > 0),
        number(1).is_some_and(|number| number < -1),
        number(2).is_some_and(|number| number > 255),
    );
}

fn from_peer(bytes: &[u8]) {
    let payload = Payload::from_bytes(bytes.to_vec());
    let Ok(value) = payload.to_json() else { return };
    let json = value.to_string();
    let again = Payload::from_json(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert_eq!(again.to_json(), Ok(value), "{json}");
}
