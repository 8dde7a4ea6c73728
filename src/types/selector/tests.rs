use proptest::prelude::*;

use super::*;

fn selector(text: &str) -> Selector {
    text.parse().expect("parses")
}

/// Whether the node of the tests is selected.
fn selects(text: &str) -> bool {
    let (id, owner) = (NodeId::new("w1").expect("is valid"), NodeId::new("c1").expect("is valid"));
    let meta = "core;group=group1;master, location;dc=here;zone=\"a b\"".parse().expect("parses");
    let classes = ["core", "files"].map(|class| ClassName::new(class).expect("is valid"));
    let input = SelectorInput { id: &id, status: NodeStatus::Ready, meta: &meta, owner: Some(&owner), classes: &classes };
    selector(text).matches(&input)
}

#[test]
fn terms_look_at_labels_flags_values_and_fields() {
    for text in [
        "core",
        "master",
        "group=group1",
        "dc!=eu",
        "nothing!=eu",
        "zone=\"a b\"",
        "id=w1",
        "status=ready",
        "owner=c1",
        "class=files",
        "class!=docker",
        "!dc=eu",
        "core && group=group1 && dc!=eu && status=ready && !slave",
    ] {
        assert!(selects(text), "{text}");
    }
    for text in [
        "Core",
        "group",
        "group1",
        "group=group2",
        "master=1",
        "dc!=here",
        "id=w2",
        "owner=w1",
        "class=core2",
        "core && !master",
        "status!=ready",
    ] {
        assert!(!selects(text), "{text}");
    }
}

#[test]
fn fields_are_not_read_from_labels() {
    let id = NodeId::new("w1").expect("is valid");
    let meta = "a;id=x;status=stopped;owner=x;class=x".parse().expect("parses");
    let input = SelectorInput { id: &id, status: NodeStatus::Ready, meta: &meta, owner: None, classes: &[] };
    for text in ["id=x", "status=stopped", "owner=x", "class=x"] {
        assert!(!selector(text).matches(&input), "{text}");
    }
    assert!(selector("owner!=x").matches(&input));
}

#[test]
fn and_binds_closer_than_or_and_parentheses_closest() {
    assert!(selects("core || nobody && nobody"));
    assert!(!selects("(core || nobody) && nobody"));
    assert!(selects("!(nobody || nothing) && !!core"));
    assert_eq!(selector("a&&b||!(c)&&d=\"e\"").to_string(), "a && b || !c && d=e");
    assert_eq!(selector("(a||b)&&(c&&(d))").to_string(), "(a || b) && (c && d)");
    assert_eq!(selector("!(a=b)").to_string(), "a!=b");
}

#[test]
fn broken_selectors_tell_the_position() {
    for (text, at, what) in [
        ("", 0, "expected at the end"),
        ("a &&", 4, "expected at the end"),
        ("a & b", 2, "`&&` or `||` expected"),
        ("a b", 2, "`&&` or `||` expected"),
        ("(a", 2, "`)` expected"),
        ("a)", 1, "found ')'"),
        ("a=", 2, "a value expected"),
        ("a==b", 2, "a value expected"),
        ("=b", 0, "found '='"),
        ("a = \"b", 5, "a quote that is not closed"),
        ("status=redy", 11, "status is one of launching"),
        ("a || || b", 5, "found '|'"),
    ] {
        let error = text.parse::<Selector>().expect_err(text);
        assert_eq!(error.code(), &ErrorCode::InvalidSelector);
        assert!(error.message().starts_with(&format!("selector, byte {at}: ")), "{text}: {error}");
        assert!(error.message().contains(what), "{text}: {error}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(nested(Selector::DEPTH_MAX).parse::<Selector>().is_ok());
    assert!(nested(Selector::DEPTH_MAX + 1).parse::<Selector>().is_err());
    assert!(format!("{}a", "!".repeat(2000)).parse::<Selector>().is_err());
    assert!("a".repeat(Selector::BYTES_MAX).parse::<Selector>().is_ok());
    assert!("a".repeat(Selector::BYTES_MAX + 1).parse::<Selector>().is_err());
    // It would be too long when printed with its spaces.
    assert!(["a"; 1300].join("&&").parse::<Selector>().is_err());
    assert!(["a"; 600].join("||").parse::<Selector>().is_ok());
}

#[test]
fn selector_travels_as_text() {
    let bytes = rmp_serde::to_vec(&selector("a&&b")).expect("encodes");
    assert_eq!(rmp_serde::from_slice::<String>(&bytes).expect("is text"), "a && b");
    assert_eq!(rmp_serde::from_slice::<Selector>(&bytes).expect("decodes"), selector("a && b"));
}

fn any_expr() -> impl Strategy<Value = Expr> {
    let word = || "[a-z]{1,3}|[^\\p{C}]{0,3}";
    let key = || word().prop_filter("is no field", |key| Field::ALL.iter().all(|field| field.name() != key));
    let leaf = prop_oneof![
        word().prop_map(Expr::Word),
        (key(), word()).prop_map(|(key, value)| Expr::Value(key, value)),
        word().prop_map(|id| Expr::Field(Field::Id, id)),
        prop::sample::select(&NodeStatus::ALL).prop_map(|status| Expr::Field(Field::Status, status.name().into())),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::Or),
            inner.prop_map(|expr| Expr::Not(Box::new(expr))),
        ]
    })
}

proptest! {
    #[test]
    fn selector_returns_from_its_text(expr in any_expr()) {
        let selector = Selector(expr);
        prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
    }

    #[test]
    fn no_text_makes_us_panic(text in "[ab()&|!=\" \\\\]{0,24}|\\PC{0,24}") {
        if let Ok(selector) = text.parse::<Selector>() {
            prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
        }
    }
}
