//! The bytes of version 1, one frame of each kind that a trusted link knows. The handshake's are pinned beside the handshake.
//!
//! A change here is a change of the wire: it needs a version of its own.

use super::*;
use crate::proto::head::EventKind;
use crate::proto::identity::{Rank, Ticket};
use crate::proto::message::{
    Adopt, Adopted, Describe, EventAck, ExclusiveBind, ExclusiveDial, ExclusiveHere, Fenced, GoAway, OutcomeAck, Preferred, Resync, Update,
};
use crate::types::{Meta, NodeId, NodeStatus, TaskId};

fn node() -> NodeId {
    NodeId::new("c1").expect("a valid name")
}

fn messages() -> Vec<Message> {
    let meta: Meta = "a;b=1".parse().expect("valid labels");
    let listen = vec!["nkcluster://h:1;transport=tcp".parse().expect("a valid URL")];
    let describe = Describe {
        listen: listen.clone(),
        meta: meta.clone(),
        status: NodeStatus::Ready,
        classes: vec![class()],
        version: "0.1.0".to_owned(),
        term: 3,
        holder: Some(node()),
    };
    let adopt = Adopt {
        worker_incarnation: Incarnation::from_bytes([3; 16]),
        seen_term: 4,
        owner: node(),
        owner_incarnation: Incarnation::from_bytes([5; 16]),
        rank: Rank { view: 1, hash: 2 },
        ticket: Some(Ticket::from_bytes([6; 16])),
        ping_ms: 5000,
    };
    vec![
        Message::Describe(describe),
        Message::Update(Update { status: NodeStatus::Standby, meta, listen: listen.clone(), stats: None, tasks: 2 }),
        Message::Adopt(adopt),
        Message::Adopted(Adopted::Granted { term: 5, ticket: Ticket::from_bytes([7; 16]) }),
        Message::Adopted(Adopted::Refused { term: 5, holder: Some(node()), reason: "held".to_owned() }),
        Message::Fenced(Fenced { term: 6, holder: None }),
        Message::EventAck(EventAck { class: class(), seq: 9, followed: 0 }),
        Message::EventAck(EventAck { class: class(), seq: 9, followed: 12 }),
        Message::Resync(Resync { class: class(), next_seq: 10, tasks: vec![TaskId::new("t1").expect("a valid name")], more: false }),
        Message::GoAway(GoAway { reason: error("bye"), reconnect_after_ms: Some(50) }),
        Message::Preferred(Preferred { addresses: listen }),
        Message::ExclusiveDial(ExclusiveDial { request: 8 }),
        Message::ExclusiveHere(ExclusiveHere { request: 8, refused: None }),
        Message::ExclusiveBind(ExclusiveBind { term: 5, ticket: Ticket::from_bytes([7; 16]) }),
        Message::OutcomeAck(OutcomeAck {
            edge: Incarnation::from_bytes([4; 16]),
            node: Some(node()),
            below: 300,
            ranges: vec![(302, 302), (310, 320)],
        }),
        Message::OutcomeAck(OutcomeAck { edge: Incarnation::from_bytes([4; 16]), node: None, below: 7, ranges: Vec::new() }),
        Message::Envelope(Bytes::from_static(b"who")),
    ]
}

/// One frame of each kind, in the order in which the session below sends them.
fn every_kind() -> Vec<(Kind, String)> {
    let mut session = session(Side::Dialler);
    let mut bytes = Vec::new();
    let mut one = |session: &mut Session<u64>| {
        let frames = sent(session);
        for frame in frames {
            let mut out = BytesMut::new();
            frame::put_frame(&mut out, frame.kind, frame.channel, &frame.body);
            bytes.push((frame.kind, hex(&out)));
        }
    };
    session.ping(LINK_CHANNEL, &Ping { seq: 1, time_ms: 2, rank: Rank { view: 3, hash: 4 } });
    one(&mut session);
    session.pong(LINK_CHANNEL, &Pong { seq: 1, time_ms: 2 });
    one(&mut session);
    let channel = session.open_channel().expect("there is room");
    one(&mut session);
    let full = CallHead {
        verb: Verb::Command,
        retry: true,
        hops: 0,
        incarnation: Incarnation::from_bytes([2; 16]),
        node: Some(node()),
        task: Some(TaskId::new("t1").expect("a valid name")),
        ..head()
    };
    let (call, key) = session.call(channel, &full, &Bytes::from_static(b"ask"), true, 1).expect("there is room");
    one(&mut session);
    let key = key.expect("asked for");
    session.stream_write(key, b"data").expect("open");
    session.stream_finish(key);
    one(&mut session);
    for _ in 0..3 {
        take(&mut session, stream_data(channel, key.stream, 0, &[0; 60_000])).expect("within the credit");
    }
    while let StreamRead::Bytes(_) = session.stream_read(key, 60_000) {}
    one(&mut session);
    let (_, starved) = session.call(channel, &head(), &Bytes::new(), true, 2).expect("there is room");
    let starved = starved.expect("asked for");
    session.stream_write(starved, &vec![0; STREAM_WINDOW_BYTES]).expect("open");
    sent(&mut session);
    session.stream_write(starved, b"more").expect("open");
    one(&mut session);
    session.stream_reset(key);
    one(&mut session);
    session.forget_call(channel, call);
    one(&mut session);
    for (call, outcome) in [(2, Ok(Bytes::from_static(b"done"))), (4, Err(error("no").after_sending()))] {
        take(&mut session, call_frame(channel, call, 0, b"")).expect("allowed");
        session.reply(channel, call, &outcome);
        one(&mut session);
    }
    session.event(
        channel,
        &EventHead { seq: 7, time_ms: 8, kind: EventKind::Builtin, class: class(), task: None, audience: Default::default() },
        b"event",
    );
    one(&mut session);
    for message in messages() {
        session.message(channel, &message);
        one(&mut session);
    }
    session.close_channel(channel, &error("over"));
    one(&mut session);
    session.fault(&Fault::UnknownKind(99));
    one(&mut session);
    for (head, data) in super::assembly::split(1, Kind::Call, Bytes::from_static(b"head"), Bytes::from(vec![0; 65_530])) {
        let body = [head, data].concat();
        let mut out = BytesMut::new();
        frame::put_frame(&mut out, Kind::Fragment, channel, &body);
        bytes.push((Kind::Fragment, hex(&out[..out.len().min(24)])));
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn bytes_of_version_1() {
    let golden = [
        (Kind::Ping, "0000001f10000000000000000000010000000000000002000000030000000000000004"),
        (Kind::Pong, "0000001311000000000000000000010000000000000002"),
        (Kind::ChannelOpen, "00000003220001"),
        (
            Kind::Call,
            "0000004712000100000001000000010301000075300101010101010101010101010101010100000000000000070202020202020202020202020202020202633104636f726502743161736b",
        ),
        (Kind::StreamData, "0000000c160001000000010064617461"),
        (Kind::StreamData, "000000081600010000000101"),
        (Kind::StreamCredit, "0000000b170001000000010002bf20"),
        (Kind::StreamData, "000000081600010000000302"),
        (Kind::StreamReset, "0000000718000100000001"),
        (Kind::Cancel, "0000000714000100000001"),
        (Kind::Reply, "0000000c1300010000000200646f6e65"),
        (
            Kind::Reply,
            "0000003b130001000000040183a4636f6465b1636f6e6e656374696f6e5f6661696c6564a76d657373616765a26e6fa6656666656374a8706f737369626c65",
        ),
        (Kind::Event, "0000001e150001000000000000000700000000000000080104636f72656576656e74"),
        (
            Kind::Describe,
            "0000007d20000187a66c697374656e91bd6e6b636c75737465723a2f2f683a313b7472616e73706f72743d746370a46d6574619182a46e616d65a161a676616c75657381a162a131a6737461747573a57265616479a7636c617373657391a4636f7265a776657273696f6ea5302e312e30a47465726d03a6686f6c646572a26331",
        ),
        (
            Kind::Update,
            "0000006121000185a6737461747573a77374616e646279a46d6574619182a46e616d65a161a676616c75657381a162a131a66c697374656e91bd6e6b636c75737465723a2f2f683a313b7472616e73706f72743d746370a57374617473c0a57461736b7302",
        ),
        (
            Kind::Adopt,
            "0000009724000187b2776f726b65725f696e6361726e6174696f6ec41003030303030303030303030303030303a97365656e5f7465726d04a56f776e6572a26331b16f776e65725f696e6361726e6174696f6ec41005050505050505050505050505050505a472616e6b82a47669657701a46861736802a67469636b6574c41006060606060606060606060606060606a770696e675f6d73cd1388",
        ),
        (Kind::Adopted, "0000002c25000181a76772616e74656482a47465726d05a67469636b6574c41007070707070707070707070707070707"),
        (Kind::Adopted, "0000002925000181a77265667573656483a47465726d05a6686f6c646572a26331a6726561736f6ea468656c64"),
        (Kind::Fenced, "0000001226000182a47465726d06a6686f6c646572c0"),
        (Kind::EventAck, "0000001427000182a5636c617373a4636f7265a373657109"),
        (Kind::EventAck, "0000001e27000183a5636c617373a4636f7265a373657109a8666f6c6c6f7765640c"),
        (Kind::Resync, "0000002928000184a5636c617373a4636f7265a86e6578745f7365710aa57461736b7391a27431a46d6f7265c2"),
        (
            Kind::GoAway,
            "0000004f29000182a6726561736f6e83a4636f6465b1636f6e6e656374696f6e5f6661696c6564a76d657373616765a3627965a6656666656374a46e6f6e65b27265636f6e6e6563745f61667465725f6d7332",
        ),
        (Kind::Preferred, "0000002d2a000181a961646472657373657391bd6e6b636c75737465723a2f2f683a313b7472616e73706f72743d746370"),
        (Kind::ExclusiveDial, "0000000d2c000181a77265717565737408"),
        (Kind::ExclusiveHere, "000000162d000182a77265717565737408a772656675736564c0"),
        (Kind::ExclusiveBind, "000000232e000182a47465726d05a67469636b6574c41007070707070707070707070707070707"),
        (
            Kind::OutcomeAck,
            "000000422f000184a465646765c41004040404040404040404040404040404a46e6f6465a26331a562656c6f77cd012ca672616e6765739292cd012ecd012e92cd0136cd0140",
        ),
        (Kind::OutcomeAck, "000000222f000182a465646765c41004040404040404040404040404040404a562656c6f7707"),
        (Kind::Envelope, "0000000630000177686f"),
        (
            Kind::ChannelClose,
            "0000003c23000181a6726561736f6e83a4636f6465b1636f6e6e656374696f6e5f6661696c6564a76d657373616765a46f766572a6656666656374a46e6f6e65",
        ),
        (Kind::Fault, "0000000c2b000081a66e756d62657203"),
        (Kind::Fragment, "000100031900010000000101120000fffe68656164000000"),
        (Kind::Fragment, "0000001019000100000001000000000000000000"),
    ];
    let made = every_kind();
    for (made, golden) in made.iter().zip(golden) {
        assert_eq!((made.0, made.1.as_str()), golden);
    }
    assert_eq!(made.len(), golden.len());
    let handshake = [Kind::ClientFirst, Kind::ServerFirst, Kind::ClientProof, Kind::ServerProof, Kind::Refusal];
    for kind in Kind::ALL {
        assert!(handshake.contains(kind) || golden.iter().any(|(pinned, _)| pinned == kind), "{kind:?} is not pinned");
    }
}

#[test]
fn messages_return_from_their_bytes() {
    for message in messages() {
        assert_eq!(Message::decode(message.kind(), &message.encode()), Ok(Some(message)));
    }
}
