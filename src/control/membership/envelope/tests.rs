use proptest::prelude::*;

use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid name")
}

fn row(name: &str) -> Row {
    Row {
        id: id(name),
        incarnation: Incarnation::from_bytes([1; 16]),
        generation: 7,
        version: 3,
        program: "0.1.0".to_owned(),
        listen: vec!["nkcluster://h:1;transport=tcp".parse().expect("a valid URL")],
        state: RowState::Joined,
        heard: BTreeMap::from([(id("c2"), Incarnation::from_bytes([2; 16]))]),
        orders: vec![Order { node: id("c3"), incarnation: Incarnation::from_bytes([3; 16]), kind: OrderKind::Join }],
    }
}

fn envelope(body: Body) -> Envelope {
    Envelope { from: id("c1"), incarnation: Incarnation::from_bytes([9; 16]), to: 5, body }
}

#[test]
fn golden_bytes_of_version_1() {
    let heartbeat = envelope(Body::Heartbeat { digest: 0x0102 }).encode();
    let mut expected = vec![1, 0x84];
    for (name, value) in [("from", b"\xa2c1".to_vec()), ("incarnation", [&[0xc4, 16][..], &[9; 16]].concat()), ("to", vec![5])] {
        expected.push(0xa0 | name.len() as u8);
        expected.extend(name.as_bytes());
        expected.extend(value);
    }
    expected.extend(b"\xa4body\x81\xa9heartbeat\x81\xa6digest\xcd\x01\x02");
    assert_eq!(heartbeat[..], expected);
}

#[test]
fn every_envelope_returns_from_its_bytes() {
    let tombstone = Tombstone { node: id("c9"), generation: 4 };
    let bodies = [
        Body::Hello(Hello { number: 1, answer: Some(2), generation: 3, ring_size: 256 }),
        Body::Heartbeat { digest: u64::MAX },
        Body::Summary { rows: vec![Known(id("c1"), Incarnation::NONE, 9)], forgotten: vec![tombstone.clone()] },
        Body::Rows { rows: vec![row("c1")], forgotten: vec![tombstone] },
        Body::Refused { reason: Error::new(ErrorCode::NodeIdInUse, "twice") },
    ];
    for body in bodies {
        let envelope = envelope(body);
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
}

#[test]
fn another_version_is_told_as_such() {
    let mut bytes = envelope(Body::Heartbeat { digest: 1 }).encode().to_vec();
    bytes[0] = 2;
    assert_eq!(Envelope::decode(&bytes).expect_err("version 2").code(), &ErrorCode::UnsupportedVersion);
}

#[test]
fn a_state_of_a_newer_release_is_kept_apart() {
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Newer {
        Sleeping,
    }
    let bytes = rmp_serde::to_vec_named(&Newer::Sleeping).expect("encodes");
    assert_eq!(rmp_serde::from_slice::<RowState>(&bytes).expect("decodes"), RowState::Unknown);
}

#[test]
fn a_row_that_names_too_many_is_refused() {
    let mut many = row("c1");
    many.heard = (0..=NODES_MAX).map(|n| (id(&format!("n{n}")), Incarnation::NONE)).collect();
    let bytes = envelope(Body::Rows { rows: vec![many], forgotten: Vec::new() }).encode();
    assert_eq!(Envelope::decode(&bytes).expect_err("too many").code(), &ErrorCode::ProtocolError);
}

#[test]
fn packed_rows_fit_into_envelopes_and_none_is_lost() {
    let rows = (0..NODES_MAX).map(|n| {
        let heard = (0..NODES_MAX).map(|n| (id(&format!("{n:064}")), Incarnation::from_bytes([7; 16]))).collect();
        Row { id: id(&format!("{n:064}")), heard, ..row("c1") }
    });
    let bodies = packed(rows, vec![Tombstone { node: id("c9"), generation: 4 }]);
    let mut count = 0;
    for body in bodies {
        let bytes = envelope(body.clone()).encode();
        assert!(bytes.len() <= ENVELOPE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Envelope::decode(&bytes).expect("within bounds").body, body);
        if let Body::Rows { rows, .. } = body {
            count += rows.len();
        }
    }
    assert_eq!(count, NODES_MAX);
}

proptest! {
    #[test]
    fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..300), flip in any::<(usize, u8)>()) {
        let _ = Envelope::decode(&garbage);
        let mut bytes = envelope(Body::Rows { rows: vec![row("c1")], forgotten: Vec::new() }).encode().to_vec();
        let place = flip.0 % bytes.len();
        bytes[place] ^= flip.1;
        let _ = Envelope::decode(&bytes);
    }
}
