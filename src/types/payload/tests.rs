use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    item: String,
    count: Option<u32>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Envelope {
    class: String,
    body: Payload,
}

fn raw(bytes: &[u8]) -> Payload {
    Payload::from_bytes(bytes.to_vec())
}

fn assert_invalid<T: fmt::Debug>(result: Result<T>) {
    assert_eq!(result.expect_err("is refused").code(), &ErrorCode::InvalidPayload);
}

#[test]
fn struct_is_a_map_with_names_and_equals_its_json() {
    let order = Order { item: "tea".into(), count: None };
    let payload = Payload::encode(&order).expect("encodes");
    assert_eq!(payload.decode::<Order>().expect("decodes"), order);
    assert_eq!(payload.to_json().expect("is JSON"), json!({"item": "tea", "count": null}));
    assert_eq!(Payload::from_json(r#"{"item":"tea","count":null}"#), Ok(payload));
}

#[test]
fn unknown_fields_are_ignored() {
    let payload = Payload::from_json(r#"{"item":"tea","count":2,"colour":"green"}"#).expect("is JSON");
    assert_eq!(payload.decode(), Ok(Order { item: "tea".into(), count: Some(2) }));
}

#[test]
fn nil_is_unit_and_null_and_the_default() {
    assert_eq!(Payload::encode(&()).expect("encodes"), Payload::default());
    assert_eq!(Payload::nil().decode(), Ok(()));
    assert_eq!(Payload::nil().to_json(), Ok(Value::Null));
    assert_eq!(Payload::from_json(" null "), Ok(Payload::nil()));
    assert!(!Payload::nil().is_empty());
}

#[test]
fn what_json_has_not_is_shown_as_near_as_it_can_be() {
    let bytes = Payload::encode(serde_bytes::Bytes::new(b"\x00\xff")).expect("encodes");
    assert_eq!(bytes.to_json(), Ok(json!([0, 255])));
    let keys = Payload::encode(&BTreeMap::from([(-1, "a"), (7, "b")])).expect("encodes");
    assert_eq!(keys.to_json(), Ok(json!({"-1": "a", "7": "b"})));
    assert_eq!(Payload::encode(&f64::NAN).and_then(|nan| nan.to_json()), Ok(Value::Null));
    assert_eq!(Payload::encode(&u64::MAX).and_then(|max| max.to_json()), Ok(json!(u64::MAX)));
    // A map whose key is an array, and an extension.
    assert_invalid(raw(&[0x81, 0x90, 0xc0]).to_json());
    assert_invalid(raw(&[0xd4, 0x01, 0x00]).to_json());
}

#[test]
fn broken_bytes_are_invalid() {
    for bytes in [
        &[][..],
        &[0xc1],
        &[0xc0, 0xc0],
        &[0xc0, 0x91],
        &[0xc0, 0xcd],
        &[0xc0, 0xc7],
        &[0x92, 0xc0],
        &[0xd9, 0x05, b'a'],
        &[0xa1, 0xff, 0xc0],
    ] {
        assert_invalid(raw(bytes).to_json());
        assert_invalid(raw(bytes).decode::<Order>());
    }
    assert_invalid(Payload::encode("text").and_then(|text| text.decode::<u8>()));
}

#[test]
fn claimed_lengths_reserve_no_memory() {
    let longest = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
    ];
    for bytes in longest {
        assert_invalid(raw(bytes).to_json());
        assert_invalid(raw(bytes).decode::<Vec<u64>>());
        assert_invalid(raw(bytes).decode::<BTreeMap<String, u64>>());
        assert_invalid(raw(bytes).decode::<String>());
        assert_invalid(raw(bytes).decode::<Payload>());
    }
}

#[test]
fn depth_is_bounded_both_ways() {
    let nested = |depth: usize| [vec![0x91; depth], vec![0xc0]].concat();
    let deepest = raw(&nested(Payload::DEPTH_MAX - 1));
    assert!(deepest.to_json().is_ok());
    assert!(deepest.decode::<IgnoredAny>().is_ok());
    let text = deepest.to_json().expect("is JSON").to_string();
    assert_eq!(Payload::from_json(&text), Ok(deepest));
    for depth in [Payload::DEPTH_MAX + 1, 100_000] {
        assert_invalid(raw(&nested(depth)).to_json());
        assert_invalid(raw(&nested(depth)).decode::<IgnoredAny>());
    }
    let too_deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    assert_invalid(Payload::from_json(&too_deep));
    assert_invalid(Payload::from_json(&"[".repeat(100_000)));
}

#[test]
fn json_of_many_values_is_refused() {
    let many = Payload::encode(&vec![(); Payload::JSON_VALUES_MAX]).expect("encodes");
    assert_invalid(many.to_json());
    assert!(many.decode::<Vec<()>>().is_ok());
    let long = Payload::encode(serde_bytes::Bytes::new(&vec![0; Payload::JSON_VALUES_MAX])).expect("encodes");
    assert_invalid(long.to_json());
}

#[test]
fn large_payload_is_refused() {
    let text = "x".repeat(Payload::BYTES_MAX);
    let error = Payload::encode(&text).expect_err("is too large");
    assert_eq!(error.code(), &ErrorCode::PayloadTooLarge);
    assert!(Payload::encode(&text[16..]).is_ok());
}

#[test]
fn broken_json_is_invalid() {
    for text in ["", "{", "nul", "1 2", "{\"a\":1,}", "'a'"] {
        assert_invalid(Payload::from_json(text));
    }
}

#[test]
fn payload_travels_as_bytes_and_is_json_for_people() {
    let envelope = Envelope { class: "core".into(), body: Payload::from_json("[1,{\"a\":null}]").expect("is JSON") };
    let binary = rmp_serde::to_vec_named(&envelope).expect("encodes");
    assert_eq!(rmp_serde::from_slice::<Envelope>(&binary).expect("decodes"), envelope);
    let text = serde_json::to_string(&envelope).expect("encodes");
    assert_eq!(text, r#"{"class":"core","body":[1,{"a":null}]}"#);
    assert_eq!(serde_json::from_str::<Envelope>(&text).expect("decodes"), envelope);
}

#[test]
fn debug_shows_no_content() {
    assert_eq!(format!("{:?}", Payload::encode("hunter2")), "Ok(Payload(8 bytes))");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e9..1e9).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn json_returns_from_a_payload(value in any_json()) {
        let payload = Payload::from_json(&value.to_string()).expect("is JSON");
        prop_assert_eq!(payload.to_json(), Ok(value));
    }

    #[test]
    fn no_bytes_make_us_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let payload = Payload::from_bytes(bytes);
        let is_json = payload.to_json().is_ok();
        let is_read = payload.decode::<IgnoredAny>().is_ok();
        prop_assert!(is_read || !is_json);
    }

    #[test]
    fn no_cut_makes_us_panic(value in any_json(), at in any::<prop::sample::Index>()) {
        let payload = Payload::from_json(&value.to_string()).expect("is JSON");
        let cut = at.index(payload.len());
        prop_assert!(Payload::from_bytes(payload.into_bytes().slice(..cut)).to_json().is_err());
    }
}
