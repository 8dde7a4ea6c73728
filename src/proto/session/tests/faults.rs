//! What a peer may not do, and that nothing it does costs more than a bound.

use proptest::prelude::*;

use super::*;
use crate::proto::frame::{BODY_BYTES_MAX, HEADER_BYTES};

fn listener_of(role: Role) -> Session<u64> {
    Session::new(Side::Listener, role)
}

#[test]
fn a_kind_that_the_role_may_not_send_ends_the_link_and_does_nothing_else() {
    for role in [Role::Worker, Role::Admin, Role::Control] {
        for kind in Kind::ALL.iter().copied().filter(|kind| !roles::may_send(role, *kind)) {
            let mut session = listener_of(role);
            // A body that would be good if the kind were allowed, where one kind's is easily made.
            let good = match kind {
                Kind::Call => call_frame(LINK_CHANNEL, 1, 0, b"").body,
                _ => message::encode(&message::Fenced { term: 1, holder: None }),
            };
            let mut out = Vec::new();
            let result = session.handle_frame(frame(kind, LINK_CHANNEL, good), &mut out);
            assert_eq!(result, Err(Fault::NotAllowed(kind)), "{role:?}");
            assert_eq!(out, []);
            assert!(!session.has_output());
            assert_eq!(session.calls_being_answered(), 0);
        }
    }
}

#[test]
fn a_role_cannot_smuggle_a_kind_in_fragments() {
    let body = call_frame(LINK_CHANNEL, 1, 0, b"").body;
    let mut fragment = BytesMut::from(&[0, 0, 0, 1, 1, Kind::Call as u8][..]);
    fragment.put_u32(1_000_000);
    fragment.put_slice(&body);
    let mut session = listener_of(Role::Worker);
    assert_eq!(take(&mut session, frame(Kind::Fragment, LINK_CHANNEL, fragment.clone().freeze())), Err(Fault::NotAllowed(Kind::Call)));
    assert_eq!(session.assembly.held_bytes(), 0, "refused at its first fragment");

    fragment[5] = Kind::Reply as u8;
    let mut session = listener_of(Role::Admin);
    assert_eq!(take(&mut session, frame(Kind::Fragment, LINK_CHANNEL, fragment.freeze())), Err(Fault::NotAllowed(Kind::Reply)));
}

#[test]
fn breaches_of_the_protocol_end_the_link() {
    let setup = [call_frame(LINK_CHANNEL, 1, 1, b""), frame(Kind::ChannelOpen, 1, Bytes::new())];
    let credit = |bytes: u32| frame(Kind::StreamCredit, 0, [&1_u32.to_be_bytes()[..], &bytes.to_be_bytes()].concat());
    let window = vec![0; BODY_BYTES_MAX - 5];
    let breaches: Vec<(&str, Vec<Frame>, u16)> = vec![
        ("a call with an id in use", vec![call_frame(LINK_CHANNEL, 1, 0, b"")], 7),
        ("a stream with an id in use", vec![call_frame(LINK_CHANNEL, 2, 1, b"")], 7),
        ("a stream with one of our numbers", vec![call_frame(LINK_CHANNEL, 2, 2, b"")], 7),
        ("a channel with an id in use", vec![frame(Kind::ChannelOpen, 1, Bytes::new())], 7),
        ("a channel with one of our numbers", vec![frame(Kind::ChannelOpen, 2, Bytes::new())], 7),
        ("the channel of the link", vec![frame(Kind::ChannelOpen, LINK_CHANNEL, Bytes::new())], 7),
        ("more data than was granted", vec![stream_data(LINK_CHANNEL, 1, 0, &window); 5], 6),
        ("more data than was granted, and a demand for more", vec![stream_data(LINK_CHANNEL, 1, 2, &window); 5], 6),
        ("credit beyond the largest window", vec![credit((STREAM_WINDOW_BYTES_MAX - STREAM_WINDOW_BYTES) as u32), credit(1)], 6),
        ("credit beyond all numbers", vec![credit(u32::MAX)], 6),
        ("stream data with unknown flags", vec![stream_data(LINK_CHANNEL, 1, 4, b"")], 5),
        ("stream data without flags", vec![frame(Kind::StreamData, LINK_CHANNEL, 1_u32.to_be_bytes().to_vec())], 5),
        ("stream data after the end", vec![stream_data(LINK_CHANNEL, 1, 1, b"x"), stream_data(LINK_CHANNEL, 1, 0, b"y")], 5),
        ("a stream frame without a stream", vec![frame(Kind::StreamReset, LINK_CHANNEL, vec![0, 0, 1])], 5),
        ("an unknown verb", vec![frame(Kind::Call, LINK_CHANNEL, vec![0, 0, 0, 9, 0, 0, 0, 0, 9, 0])], 5),
        ("unknown flags of a call", vec![frame(Kind::Call, LINK_CHANNEL, vec![0, 0, 0, 9, 0, 0, 0, 0, 1, 4])], 5),
        ("a reply without an outcome", vec![frame(Kind::Reply, LINK_CHANNEL, vec![0, 0, 0, 9])], 5),
        ("a reply with an unknown outcome", vec![frame(Kind::Reply, LINK_CHANNEL, vec![0, 0, 0, 9, 2])], 5),
        ("an event without a class", vec![frame(Kind::Event, LINK_CHANNEL, vec![0; 18])], 5),
        ("a short ping", vec![frame(Kind::Ping, LINK_CHANNEL, vec![0; 27])], 5),
        ("a short pong", vec![frame(Kind::Pong, LINK_CHANNEL, vec![0; 15])], 5),
        ("a message that is not MessagePack", vec![frame(Kind::Describe, LINK_CHANNEL, vec![0xc1])], 5),
        ("a close that is not MessagePack", vec![frame(Kind::ChannelClose, 1, vec![0xc1])], 5),
    ];
    for (what, frames, number) in breaches {
        let mut session = listener_of(Role::Control);
        for frame in setup.clone() {
            take(&mut session, frame).expect("the beginning is good");
        }
        let last = frames.len() - 1;
        for (index, frame) in frames.into_iter().enumerate() {
            match take(&mut session, frame) {
                Err(fault) => {
                    assert_eq!((index, fault.number()), (last, number), "{what}: {fault}");
                }
                Ok(_) => assert_ne!(index, last, "{what} was accepted"),
            }
        }
    }
}

#[test]
fn frames_for_what_has_ended_are_dropped() {
    let mut session = listener_of(Role::Control);
    let credit = [&9_u32.to_be_bytes()[..], &5_u32.to_be_bytes()].concat();
    for frame in [
        stream_data(LINK_CHANNEL, 9, 0, b"x"),
        stream_data(77, 9, 0, b"x"),
        frame(Kind::StreamCredit, LINK_CHANNEL, credit),
        frame(Kind::StreamReset, LINK_CHANNEL, 9_u32.to_be_bytes().to_vec()),
        frame(Kind::Cancel, LINK_CHANNEL, 9_u32.to_be_bytes().to_vec()),
        frame(Kind::Cancel, 77, 9_u32.to_be_bytes().to_vec()),
        frame(Kind::Reply, LINK_CHANNEL, vec![0, 0, 0, 9, 0]),
        frame(Kind::ChannelClose, 77, message::encode(&Closed { reason: error("x") })),
        frame(Kind::ChannelClose, LINK_CHANNEL, message::encode(&Closed { reason: error("x") })),
    ] {
        assert_eq!(take(&mut session, frame), Ok(vec![]));
        assert!(!session.has_output());
    }
    assert!(session.has_channel(LINK_CHANNEL), "the channel of the link is never closed");
}

/// Feeds a peer's frames and never sends anything; returns the fault that ends it.
fn never_reads(
    mut session: Session<u64>,
    mut frames: impl FnMut(u32) -> Frame,
    mut react: impl FnMut(&mut Session<u64>, Incoming<u64>),
) -> Fault {
    for number in 1..2_000_000 {
        match take(&mut session, frames(number)) {
            Err(fault) => {
                assert!(session.lanes.urgent_bytes() < 2 * 1024 * 1024, "{} urgent bytes", session.lanes.urgent_bytes());
                assert!(session.lanes.queued_bytes() < 48 * 1024 * 1024, "{} queued bytes", session.lanes.queued_bytes());
                return fault;
            }
            Ok(incoming) => incoming.into_iter().for_each(|incoming| react(&mut session, incoming)),
        }
    }
    panic!("the peer was never cut off");
}

#[test]
fn a_peer_that_pings_and_never_reads_is_cut_off() {
    let mut body = BytesMut::new();
    head::put_ping(&mut body, &Ping { seq: 1, time_ms: 0, rank: head::Rank::default() });
    let ping = frame(Kind::Ping, LINK_CHANNEL, body.freeze());
    let fault = never_reads(
        session(Side::Listener),
        |_| ping.clone(),
        |session, incoming| {
            if let Incoming::Ping { channel, ping } = incoming {
                session.pong(channel, &Pong { seq: ping.seq, time_ms: 0 });
            }
        },
    );
    assert_eq!(fault.number(), 8);
}

#[test]
fn a_peer_that_calls_and_never_reads_is_cut_off() {
    // First the answers fill the backlog, then the refusals their own bound.
    let answer = Bytes::from(vec![0; 3000]);
    let fault = never_reads(
        session(Side::Listener),
        |number| call_frame(LINK_CHANNEL, number, 0, b""),
        |session, incoming| {
            if let Incoming::Call { channel, call, .. } = incoming {
                session.reply(channel, call, &Ok(answer.clone()));
            }
        },
    );
    assert_eq!(fault.number(), 8);
}

#[test]
fn a_peer_that_opens_streams_and_never_reads_is_cut_off() {
    let fault = never_reads(
        session(Side::Listener),
        |number| call_frame(LINK_CHANNEL, number, 2 * number + 1, b""),
        |session, incoming| {
            if let Incoming::Call { channel, call, stream: Some(key), .. } = incoming {
                session.reply(channel, call, &Ok(Bytes::new()));
                session.stream_reset(key);
            }
        },
    );
    assert_eq!(fault.number(), 8);
}

#[test]
fn a_peer_that_asks_by_messages_and_never_reads_is_cut_off() {
    let fenced = Message::Fenced(message::Fenced { term: 1, holder: None });
    let ack = frame(Kind::EventAck, LINK_CHANNEL, Message::EventAck(message::EventAck { class: class(), seq: 1, followed: 0 }).encode());
    let fault = never_reads(
        session(Side::Listener),
        |_| ack.clone(),
        |session, incoming| {
            if let Incoming::Message { channel, .. } = incoming {
                session.message(channel, &fenced);
            }
        },
    );
    assert_eq!(fault.number(), 8);
}

#[test]
fn a_fault_is_the_first_thing_that_leaves() {
    let mut session = session(Side::Listener);
    session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 1).expect("there is room");
    session.fault(&Fault::UnknownKind(99));
    let frames = sent(&mut session);
    assert_eq!(frames[0].kind, Kind::Fault);
    let mut other = listener_of(Role::Worker);
    assert_eq!(take(&mut other, frames[0].clone()), Ok(vec![Incoming::PeerFault(3)]));
}

/// Frames that look right more or less: right kinds, small numbers, bodies that begin like good ones.
fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        // Ids and flags that hit something.
        (0_u32..6, 0_u8..3, prop::collection::vec(any::<u8>(), 0..100)).prop_map(|(id, flags, rest)| [
            &id.to_be_bytes()[..],
            &[flags],
            &rest
        ]
        .concat()),
        (0_u32..6, 0_u32..6).prop_map(|(call, stream)| call_frame(0, call, stream, b"payload").body.to_vec()),
        (0_u32..6, prop_oneof![Just(18_u8), Just(19)], 0_u32..3000, prop::collection::vec(any::<u8>(), 0..500))
            .prop_map(|(id, kind, total, rest)| [&id.to_be_bytes()[..], &[1, kind], &total.to_be_bytes(), &rest].concat()),
        Just(message::encode(&Closed { reason: error("x") }).to_vec()),
        Just(vec![]),
    ];
    let kinds: Vec<Kind> = Kind::ALL.to_vec();
    let one = (prop::sample::select(kinds), 0_u16..4, body).prop_map(|(kind, channel, body)| frame(kind, channel, body));
    prop::collection::vec(one, 0..200)
}

proptest! {
    #[test]
    fn nothing_that_a_peer_sends_can_panic_or_grow(
        frames in frames(),
        role in prop_oneof![Just(Role::Worker), Just(Role::Admin), Just(Role::Control)],
        answers in any::<bool>(),
    ) {
        let mut session = listener_of(role);
        let own = session.open_channel().expect("there is room");
        for token in 0..3 {
            session.call([LINK_CHANNEL, own][token as usize % 2], &head(), &Bytes::new(), true, token).expect("there is room");
        }
        let mut bytes = 0;
        for frame in frames {
            bytes += frame.body.len() + HEADER_BYTES;
            // After a fault a shell stops; here the machine must stand even if it does not.
            for incoming in take(&mut session, frame).unwrap_or_default() {
                match incoming {
                    Incoming::Call { channel, call, stream, .. } if answers => {
                        session.reply(channel, call, &Ok(Bytes::from_static(b"answer")));
                        if let Some(key) = stream {
                            let _ = session.stream_write(key, b"data");
                            session.stream_reset(key);
                        }
                    }
                    Incoming::Readable(key) if answers => {
                        let _ = session.stream_read(key, 10);
                    }
                    _ => {}
                }
            }
        }
        // A small factor of what came: an answer is a little larger than what asks for it.
        let bound = 10_000 + 10 * bytes;
        prop_assert!(session.assembly.held_bytes() <= bound);
        prop_assert!(session.lanes.queued_bytes() + session.lanes.urgent_bytes() <= bound);
        sent(&mut session);
        session.close(&error("over"));
        prop_assert!(!session.has_output());
    }
}
