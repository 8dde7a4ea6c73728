use proptest::prelude::*;
use serde_json::json;

use super::*;

fn meta(text: &str) -> Meta {
    text.parse().expect("parses")
}

fn assert_invalid<T: fmt::Debug>(result: Result<T>) {
    assert_eq!(result.expect_err("is refused").code(), &ErrorCode::InvalidTokens);
}

#[test]
fn labels_of_the_original_are_read_and_printed() {
    let meta = meta("core;group=group1;master, meta2;labelA=1;labelB=2");
    let names: Vec<_> = meta.iter().map(Label::name).collect();
    assert_eq!(names, ["core", "meta2"]);
    let values: Vec<_> = meta.iter().flat_map(Label::values).collect();
    let expected = [("group", Some("group1")), ("master", None), ("labelA", Some("1")), ("labelB", Some("2"))];
    assert_eq!(values, expected);
    assert_eq!(meta.to_string(), "core;group=group1;master, meta2;labelA=1;labelB=2");
}

#[test]
fn spaces_and_quotes_are_allowed_around_words() {
    assert_eq!(meta(" a ; b = \"x, \\\"y\\\"\" ,c "), meta("a;b=\"x, \\\"y\\\"\",c"));
    assert_eq!(meta("a;b=\"\"").find("a").and_then(|label| label.value("b")), Some(Some("")));
    assert!(meta("  ").is_empty());
}

#[test]
fn broken_labels_are_invalid() {
    for text in [
        ",",
        "a,",
        ",a",
        ";",
        "a;",
        "a;;b",
        "a;=1",
        "a;b=",
        "a=1",
        "a b",
        "a;b=c=d",
        "\"a",
        "a;b=\"c",
        "\"\"",
        "a,a",
        "a;b;b=1",
        "a\nb",
        "a;b=\u{7f}",
    ] {
        assert_invalid(text.parse::<Meta>());
    }
}

#[test]
fn message_tells_where_and_what() {
    let error = "a;b=1 c".parse::<Meta>().expect_err("is refused");
    assert_eq!(error.message(), "labels cannot be read: `,` or `;` expected at byte 6, found \"c\"");
}

#[test]
fn update_replaces_in_place_and_appends() {
    let mut labels = meta("a;x=1;y, b, c;z=3");
    labels.update(&meta("d, a;w=9")).expect("fits");
    assert_eq!(labels, meta("a;w=9, b, c;z=3, d"));
    labels.remove(&["b", "nobody", "d"]);
    assert_eq!(labels, meta("a;w=9, c;z=3"));
}

#[test]
fn update_that_does_not_fit_changes_nothing() {
    let many = |from: usize| (from..from + 40).map(|i| format!("l{i}")).collect::<Vec<_>>().join(",");
    let mut labels = meta(&many(0));
    let before = labels.clone();
    assert_invalid(labels.update(&meta(&many(30))));
    assert_eq!(labels, before);
}

#[test]
fn sizes_are_bounded() {
    let labels = |n: usize| (0..n).map(|i| format!("l{i}")).collect::<Vec<_>>();
    assert!(labels(64).join(",").parse::<Meta>().is_ok());
    assert_invalid(labels(65).join(",").parse::<Meta>());
    assert!(format!("a;{}", labels(64).join(";")).parse::<Meta>().is_ok());
    assert_invalid(format!("a;{}", labels(65).join(";")).parse::<Meta>());
    assert!("x".repeat(256).parse::<Meta>().is_ok());
    assert_invalid("x".repeat(257).parse::<Meta>());
    let large: Vec<_> = labels(64).iter().map(|name| format!("{name};k={};m={}", "v".repeat(200), "w".repeat(200))).collect();
    assert_invalid(large.join(",").parse::<Meta>());
}

#[test]
fn json_is_an_array_of_labels() {
    let labels = meta("a;z=1;f;b=2, c");
    let text = serde_json::to_string(&labels).expect("encodes");
    assert_eq!(text, r#"[{"name":"a","values":{"z":"1","f":null,"b":"2"}},{"name":"c","values":{}}]"#);
    assert_eq!(serde_json::from_str::<Meta>(&text).expect("decodes"), labels);
    let sparse = serde_json::from_value::<Meta>(json!([{"name": "c", "more": 1}]));
    assert_eq!(sparse.expect("decodes"), meta("c"));
}

#[test]
fn labels_of_a_peer_are_checked_too() {
    let many: Vec<_> = (0..65).map(|i| json!({"name": i.to_string()})).collect();
    let pairs: serde_json::Map<_, _> = (0..65).map(|i| (i.to_string(), json!(null))).collect();
    for value in [
        json!([{"name": ""}]),
        json!([{"name": "a"}, {"name": "a"}]),
        json!([{"name": "a\n"}]),
        json!([{"name": "x".repeat(257)}]),
        json!([{"name": "a", "values": {"k": "x".repeat(257)}}]),
        json!([{"name": "a", "values": pairs}]),
        json!(many),
    ] {
        let bytes = rmp_serde::to_vec_named(&value).expect("encodes");
        assert!(rmp_serde::from_slice::<Meta>(&bytes).is_err(), "{value}");
    }
}

fn any_meta() -> impl Strategy<Value = Meta> {
    let word = || "[^\\p{C}]{1,6}|[a-z0-9]{1,6}";
    let values = prop::collection::btree_map(word(), prop::option::of("[^\\p{C}]{0,6}"), 0..5);
    let labels = prop::collection::btree_map(word(), values, 0..5).prop_map(|labels| {
        let label = |(name, values): (String, std::collections::BTreeMap<_, _>)| Label { name, values: values.into_iter().collect() };
        labels.into_iter().map(label).collect::<Vec<_>>()
    });
    labels.prop_shuffle().prop_map(|labels| Meta::new(labels).expect("is within the bounds"))
}

proptest! {
    #[test]
    fn labels_return_from_their_text(labels in any_meta()) {
        prop_assert_eq!(labels.to_string().parse::<Meta>(), Ok(labels));
    }

    #[test]
    fn labels_return_from_the_wire(labels in any_meta()) {
        let bytes = rmp_serde::to_vec_named(&labels).expect("encodes");
        prop_assert_eq!(&rmp_serde::from_slice::<Meta>(&bytes).expect("decodes"), &labels);
        let text = serde_json::to_string(&labels).expect("encodes");
        prop_assert_eq!(serde_json::from_str::<Meta>(&text).expect("decodes"), labels);
    }

    #[test]
    fn no_text_makes_us_panic(text in "[a-z,;= \"\\\\\\PC]{0,32}") {
        if let Ok(labels) = text.parse::<Meta>() {
            prop_assert_eq!(labels.to_string().parse::<Meta>(), Ok(labels));
        }
    }

    #[test]
    fn update_twice_is_update_once(old in any_meta(), new in any_meta()) {
        let mut once = old;
        once.update(&new).expect("fits");
        let mut twice = once.clone();
        twice.update(&new).expect("fits");
        prop_assert_eq!(&twice, &once);
        for label in &new {
            prop_assert_eq!(once.find(label.name()), Some(label));
        }
    }
}
