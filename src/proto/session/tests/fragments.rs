//! Bodies that are larger than a frame.

use proptest::prelude::*;

use super::*;
use crate::proto::frame::BODY_BYTES_MAX;

/// Sends a payload as a call, and back as its reply; returns both as they arrived.
fn there_and_back(seed: u64, payload: &Bytes) -> (Bytes, Bytes) {
    let mut pair = Pair::new(seed);
    pair.session(DIALLER).call(LINK_CHANNEL, &head(), payload, false, 1).expect("there is room");
    pair.settle();
    let mut incoming = pair.incoming(LISTENER);
    let Some(Incoming::Call { call, payload: asked, .. }) = incoming.pop() else { panic!("no call came: {incoming:?}") };
    assert!(pair.session(LISTENER).reply(LINK_CHANNEL, call, &Ok(payload.clone())));
    pair.settle();
    pair.assert_no_fault();
    let mut incoming = pair.incoming(DIALLER);
    let Some(Incoming::Reply { outcome: Ok(answered), .. }) = incoming.pop() else { panic!("no reply came: {incoming:?}") };
    (asked, answered)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn payloads_of_all_sizes_return(
        seed in any::<u64>(),
        bytes in prop_oneof![0_usize..10_000, BODY_BYTES_MAX - 200..BODY_BYTES_MAX + 200, 2 * BODY_BYTES_MAX - 300..2 * BODY_BYTES_MAX + 300, 0_usize..1_000_000],
    ) {
        let payload = Bytes::from(patterned(0, bytes));
        let (asked, answered) = there_and_back(seed, &payload);
        prop_assert!(asked == payload && answered == payload);
    }
}

#[test]
fn the_largest_payload_returns() {
    let payload = Bytes::from(patterned(0, PAYLOAD_BYTES_MAX));
    let (asked, answered) = there_and_back(1, &payload);
    assert!(asked == payload && answered == payload);
}

#[test]
fn a_larger_payload_is_refused_with_an_answer() {
    let mut pair = Pair::new(1);
    let large = Bytes::from(vec![0; PAYLOAD_BYTES_MAX + 1]);
    let unsent = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &large, false, 1).expect_err("it is too large");
    assert_eq!((unsent.error.code(), unsent.error.may_have_run()), (&ErrorCode::PayloadTooLarge, false));
    assert!(!pair.session(DIALLER).has_output());

    let (call, _) = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), false, 2).expect("there is room");
    pair.settle();
    assert!(pair.session(LISTENER).reply(LINK_CHANNEL, call, &Ok(large)));
    pair.settle();
    let incoming = pair.incoming(DIALLER);
    let [Incoming::Reply { token: 2, outcome: Err(error) }] = &incoming[..] else { panic!("unexpected: {incoming:?}") };
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::PayloadTooLarge, true));
}

#[test]
fn a_cancellation_does_not_overtake_its_call() {
    let (mut sender, mut receiver) = (session(Side::Dialler), session(Side::Listener));
    let large = Bytes::from(patterned(0, 500_000));
    let mut calls = Vec::new();
    for payload in [&large, &Bytes::new(), &large] {
        calls.push(sender.call(LINK_CHANNEL, &head(), payload, false, 1).expect("there is room").0);
    }
    // The last one is on its way in part.
    let (mut outbox, mut buffer) = (Outbox::default(), BytesMut::new());
    sender.transmit(&mut outbox, 1, &mut Vec::new());
    drain(&mut outbox, &mut buffer);
    let mut frames = vec![frame::take_frame(&mut buffer, frame::BYTES_MAX).expect("valid").expect("whole")];
    for call in &calls {
        assert!(sender.forget_call(LINK_CHANNEL, *call).is_some());
    }
    frames.extend(sent(&mut sender));
    let mut heard: Vec<(u32, &str)> = Vec::new();
    for frame in frames {
        for incoming in take(&mut receiver, frame).expect("allowed") {
            match incoming {
                Incoming::Call { call, .. } => heard.push((call, "call")),
                Incoming::Cancelled { call, .. } => heard.push((call, "cancelled")),
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    for call in calls {
        let of_call: Vec<&str> = heard.iter().filter(|(of, _)| *of == call).map(|(_, what)| *what).collect();
        assert_eq!(of_call, ["call", "cancelled"], "call {call}");
        assert!(!receiver.caller_waits(LINK_CHANNEL, call));
    }
    assert_eq!(sender.lanes.queued_bytes(), 0);
}

#[test]
fn too_many_large_calls_at_once_are_busy_and_each_has_its_answer() {
    let mut pair = Pair::new(1);
    let payload = Bytes::from(vec![7; 130_000]);
    for token in 0..70 {
        pair.session(DIALLER).call(LINK_CHANNEL, &head(), &payload, false, token).expect("there is room");
    }
    pair.settle();
    pair.assert_no_fault();
    let calls: Vec<u32> = pair
        .incoming(LISTENER)
        .into_iter()
        .map(|incoming| match incoming {
            Incoming::Call { call, payload: arrived, .. } if arrived == payload => call,
            other => panic!("unexpected: {other:?}"),
        })
        .collect();
    assert_eq!(calls.len(), 64);
    for call in calls {
        pair.session(LISTENER).reply(LINK_CHANNEL, call, &Ok(Bytes::new()));
    }
    pair.settle();
    let mut answered: Vec<(u64, bool)> = pair
        .incoming(DIALLER)
        .into_iter()
        .map(|incoming| match incoming {
            Incoming::Reply { token, outcome: Ok(_) } => (token, true),
            Incoming::Reply { token, outcome: Err(error) } if error.code() == &ErrorCode::Busy => (token, false),
            other => panic!("unexpected: {other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered.iter().map(|(token, _)| *token).collect::<Vec<_>>(), (0..70).collect::<Vec<_>>());
    assert_eq!(answered.iter().filter(|(_, good)| *good).count(), 64);
    // There is room again.
    pair.session(DIALLER).call(LINK_CHANNEL, &head(), &payload, false, 99).expect("there is room");
    pair.settle();
    assert_eq!(pair.incoming(LISTENER).len(), 1);
}

fn first(id: u32, kind: Kind, total: usize, data: &[u8]) -> Frame {
    let mut body = BytesMut::new();
    body.put_u32(id);
    body.put_u8(1);
    body.put_u8(kind as u8);
    body.put_u32(total as u32);
    body.put_slice(data);
    frame(Kind::Fragment, LINK_CHANNEL, body.freeze())
}

fn middle(id: u32, data: &[u8]) -> Frame {
    let mut body = BytesMut::new();
    body.put_u32(id);
    body.put_u8(0);
    body.put_slice(data);
    frame(Kind::Fragment, LINK_CHANNEL, body.freeze())
}

/// Header and payload of a call.
fn call_body(call: u32, payload: &[u8]) -> Bytes {
    call_frame(LINK_CHANNEL, call, 0, payload).body
}

#[test]
fn announced_bytes_are_bounded_before_they_come() {
    let mut session = session(Side::Listener);
    for id in 1..=4 {
        let body = call_body(id, b"");
        take(&mut session, first(id, Kind::Call, PAYLOAD_BYTES_MAX + 500, &body)).expect("allowed");
    }
    assert!(session.assembly.held_bytes() < 4096, "nothing is allocated for an announcement");
    let frames = sent(&mut session);
    assert_eq!(frames.len(), 1, "three fit into 64 MiB, the fourth is refused");
    let (call, outcome) = head::take_reply(&mut frames[0].body.clone()).expect("readable");
    assert_eq!((call, outcome.expect_err("refused").code().clone()), (4, ErrorCode::Busy));
    // What is left of the refused one is skipped, and not a byte more.
    let rest = PAYLOAD_BYTES_MAX + 500 - call_body(4, b"").len();
    for chunk in vec![0; rest].chunks(60_000) {
        assert_eq!(take(&mut session, middle(4, chunk)), Ok(vec![]));
    }
    assert!(matches!(take(&mut session, middle(4, b"x")), Err(Fault::Malformed { .. })));
}

#[test]
fn fragments_that_lie_end_the_link() {
    let whole = call_body(1, &[0; 1000]);
    let part = &whole[..500];
    let lies: Vec<(&str, Vec<Frame>)> = vec![
        ("no beginning", vec![middle(1, b"x")]),
        ("more in the first than announced", vec![first(1, Kind::Call, 499, part)]),
        ("more in all than announced", vec![first(1, Kind::Call, 600, part), middle(1, &[0; 101])]),
        ("an id twice", vec![first(1, Kind::Call, 1000, part), first(1, Kind::Call, 1000, part)]),
        ("a total above the limit", vec![first(1, Kind::Call, PAYLOAD_BYTES_MAX + 2000, part)]),
        ("a total of 4 GiB", vec![first(1, Kind::Call, u32::MAX as usize, part)]),
        ("a kind that is never split", vec![first(1, Kind::Event, 1000, part)]),
        ("a fragment of fragments", vec![first(1, Kind::Fragment, 1000, part)]),
        ("unknown flags", vec![frame(Kind::Fragment, 0, vec![0, 0, 0, 1, 2, 0, 0, 0, 0, 0])]),
        ("too short", vec![frame(Kind::Fragment, 0, vec![0, 0, 0, 1])]),
        ("too short for a first", vec![frame(Kind::Fragment, 0, vec![0, 0, 0, 1, 1, 18, 0, 0])]),
        ("another channel", vec![first(1, Kind::Call, 1000, part), Frame { channel: 8, ..middle(1, b"x") }]),
        ("a call that is none", vec![first(1, Kind::Call, 3, b"xyz")]),
        ("an empty call", vec![first(1, Kind::Call, 0, b"")]),
    ];
    for (what, frames) in lies {
        let mut session = session(Side::Listener);
        let last = frames.len() - 1;
        for (number, frame) in frames.into_iter().enumerate() {
            let result = take(&mut session, frame);
            assert_eq!(result.is_err(), number == last, "{what}: {result:?}");
        }
    }
}

#[test]
fn a_whole_in_one_fragment_is_a_whole() {
    let mut session = session(Side::Listener);
    let body = call_body(1, b"small");
    let incoming = take(&mut session, first(1, Kind::Call, body.len(), &body)).expect("allowed");
    assert!(matches!(&incoming[..], [Incoming::Call { call: 1, payload, .. }] if &payload[..] == b"small"));
    assert_eq!(session.assembly.held_bytes(), 0);
}

/// Call id, good outcome, payload.
fn reply_body(call: u32, payload: &[u8]) -> Vec<u8> {
    let mut body = call.to_be_bytes().to_vec();
    body.push(0);
    body.extend_from_slice(payload);
    body
}

#[test]
fn nobody_collects_replies_that_nobody_waits_for() {
    let mut session = session(Side::Dialler);
    for id in 0..1000 {
        let body = reply_body(id, &[0; 60_000]);
        assert_eq!(take(&mut session, first(id, Kind::Reply, 10_000_000, &body)), Ok(vec![]));
        assert_eq!(take(&mut session, middle(id, &[0; 60_000])), Ok(vec![]));
    }
    assert_eq!(session.assembly.held_bytes(), 0);
    let endless = (1000..10_000).map(|id| take(&mut session, first(id, Kind::Reply, 10_000_000, &reply_body(id, b""))));
    assert!(endless.into_iter().any(|result| result.is_err()), "what is to be skipped is bounded too");
}

#[test]
fn a_call_is_not_answered_twice_at_once() {
    let mut session = session(Side::Dialler);
    let (call, _) = session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 1).expect("there is room");
    assert_eq!(take(&mut session, first(1, Kind::Reply, 1000, &reply_body(call, b""))), Ok(vec![]));
    assert!(matches!(take(&mut session, first(2, Kind::Reply, 1000, &reply_body(call, b""))), Err(Fault::Malformed { .. })));
}

#[test]
fn a_reply_without_room_is_told_to_whoever_waits() {
    let mut session = session(Side::Dialler);
    let mut refused = 0;
    for token in 0..20 {
        let (call, _) = session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, token).expect("there is room");
        let incoming = take(&mut session, first(call, Kind::Reply, PAYLOAD_BYTES_MAX, &reply_body(call, b""))).expect("allowed");
        match &incoming[..] {
            [] => assert_eq!(refused, 0),
            [Incoming::Reply { token: told, outcome: Err(error) }] => {
                assert_eq!((*told, error.code(), error.may_have_run()), (token, &ErrorCode::Busy, true));
                refused += 1;
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert_eq!(refused, 4, "sixteen of 16 MiB fit into 256 MiB");
}

#[test]
fn an_ended_session_keeps_no_fragments() {
    let mut session = session(Side::Listener);
    let body = call_body(1, &[0; 60_000]);
    take(&mut session, first(1, Kind::Call, 1_000_000, &body)).expect("allowed");
    assert!(session.assembly.held_bytes() > 0);
    session.close(&error("cut"));
    assert_eq!(session.assembly.held_bytes(), 0);
}
