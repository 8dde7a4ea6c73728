//! Who goes first.

use proptest::prelude::*;

use super::*;

/// A session with `count` open streams of its own.
fn with_streams(count: u64) -> (Session<u64>, Vec<StreamKey>) {
    let mut session = session(Side::Dialler);
    let keys = (0..count)
        .map(|token| {
            let (_, key) = session.call(LINK_CHANNEL, &head(), &Bytes::new(), true, token).expect("there is room");
            key.expect("asked for")
        })
        .collect();
    sent(&mut session);
    (session, keys)
}

fn event(session: &mut Session<u64>, seq: u64, bytes: usize) {
    session.event(
        LINK_CHANNEL,
        &EventHead { seq, time_ms: 0, kind: head::EventKind::Class, class: class(), task: None, audience: Default::default() },
        &vec![0; bytes],
    );
}

fn kinds(session: &mut Session<u64>) -> Vec<Kind> {
    sent(session).iter().map(|frame| frame.kind).collect()
}

#[test]
fn urgent_frames_pass_everything_that_waits() {
    let (mut session, keys) = with_streams(1);
    event(&mut session, 1, 100);
    session.stream_write(keys[0], &[0; 100_000]).expect("open");
    session.ping(LINK_CHANNEL, &Ping { seq: 1, time_ms: 0, rank: head::Rank::default() });
    let ack = message::EventAck { class: class(), seq: 4, followed: 0 };
    session.message(LINK_CHANNEL, &Message::EventAck(ack));
    assert_eq!(kinds(&mut session), [Kind::Ping, Kind::EventAck, Kind::Event, Kind::StreamData, Kind::StreamData]);
}

#[test]
fn an_urgent_frame_waits_for_one_turn_of_the_writer_at_most() {
    let (mut session, keys) = with_streams(8);
    for key in &keys {
        session.stream_write(*key, &[0; 250_000]).expect("open");
    }
    let mut outbox = Outbox::default();
    session.transmit(&mut outbox, WRITE_BYTES, &mut Vec::new());
    assert!(outbox.len() < WRITE_BYTES + frame::BYTES_MAX + frame::HEADER_BYTES);
    let before = outbox.len();
    session.ping(LINK_CHANNEL, &Ping { seq: 1, time_ms: 0, rank: head::Rank::default() });
    session.transmit(&mut outbox, WRITE_BYTES, &mut Vec::new());
    assert_eq!(outbox.len(), before + frame::HEADER_BYTES + 28, "the ping was added, and nothing else");
}

#[test]
fn hot_frames_keep_their_order() {
    let mut session = session(Side::Dialler);
    event(&mut session, 1, 10);
    session.message(LINK_CHANNEL, &Message::Fenced(message::Fenced { term: 1, holder: None }));
    session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 1).expect("there is room");
    event(&mut session, 2, 10);
    assert_eq!(kinds(&mut session), [Kind::Event, Kind::Fenced, Kind::Call, Kind::Event]);
}

#[test]
fn streams_and_fragments_take_turns() {
    let (mut session, keys) = with_streams(3);
    for key in &keys {
        session.stream_write(*key, &[0; 250_000]).expect("open");
    }
    session.call(LINK_CHANNEL, &head(), &Bytes::from(vec![0; 250_000]), false, 9).expect("there is room");
    let frames = sent(&mut session);
    // Of each source four frames: in each round every source once.
    let source = |frame: &Frame| match frame.kind {
        Kind::StreamData => u32::from_be_bytes(*frame.body.first_chunk().expect("has a stream")),
        _ => 0,
    };
    for round in frames[..16].chunks(4) {
        let mut sources: Vec<u32> = round.iter().map(source).collect();
        sources.sort_unstable();
        assert_eq!(sources, [0, keys[0].stream, keys[1].stream, keys[2].stream]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn hot_and_bulk_share_the_socket_eight_to_one(event_bytes in 10_usize..60_000, write_bytes in 20_usize..65_000) {
        let (mut session, keys) = with_streams(8);
        let (mut outbox, mut buffer) = (Outbox::default(), BytesMut::new());
        let (mut hot, mut bulk) = (0, 0);
        while hot + bulk < 8 * 1024 * 1024 {
            while session.lanes.queued_bytes() < 1024 * 1024 {
                event(&mut session, 1, event_bytes);
            }
            for key in &keys {
                while session.stream_write(*key, &vec![0; write_bytes]).is_ok_and(|count| count == write_bytes) {}
                // As a reader at the other end would.
                let mut credit = BytesMut::new();
                credit.put_u32(key.stream);
                credit.put_u32(0);
                let window = STREAM_WINDOW_BYTES - session.streams.credit(*key) - session.streams.queued(*key);
                credit[4..].copy_from_slice(&(window as u32).to_be_bytes());
                take(&mut session, frame(Kind::StreamCredit, key.channel, credit.freeze())).expect("within the window");
            }
            session.transmit(&mut outbox, WRITE_BYTES, &mut Vec::new());
            drain(&mut outbox, &mut buffer);
            while let Some(frame) = frame::take_frame(&mut buffer, frame::BYTES_MAX).expect("valid") {
                let bytes = frame.body.len() + frame::HEADER_BYTES;
                if frame.kind == Kind::StreamData { bulk += bytes } else { hot += bytes }
            }
        }
        let ratio = hot as f64 / bulk as f64;
        prop_assert!((7.0..=9.5).contains(&ratio), "hot {} : bulk {} = {}", hot, bulk, ratio);
    }
}

#[test]
fn bulk_has_all_of_the_socket_while_nothing_else_waits() {
    let (mut session, keys) = with_streams(1);
    session.stream_write(keys[0], &[0; 200_000]).expect("open");
    assert_eq!(kinds(&mut session), vec![Kind::StreamData; 4]);
}

#[test]
fn an_idle_session_gives_back_the_room_of_a_burst() {
    let mut session = session(Side::Dialler);
    let mut outbox = Outbox::default();
    let mut buffer = BytesMut::new();
    for call in 0..4000_u32 {
        session.call(LINK_CHANNEL, &head(), &Bytes::from(vec![0; 200]), false, 1).expect("there is room");
        session.ping(LINK_CHANNEL, &Ping { seq: u64::from(call), time_ms: 0, rank: head::Rank::default() });
    }
    while session.has_output() {
        session.transmit(&mut outbox, WRITE_BYTES, &mut Vec::new());
        drain(&mut outbox, &mut buffer);
    }
    while let Some(frame) = frame::take_frame(&mut buffer, frame::BYTES_MAX).expect("valid") {
        if let Ok((call, _, _)) = head::take_call(&mut frame.body.clone())
            && frame.kind == Kind::Call
        {
            let mut reply = BytesMut::new();
            head::put_reply(&mut reply, call, &Ok(Bytes::new()));
            take(&mut session, super::frame(Kind::Reply, LINK_CHANNEL, reply.freeze())).expect("allowed");
        }
    }
    // The idle time: a ping now and then.
    for seq in 0..16 {
        session.ping(LINK_CHANNEL, &Ping { seq, time_ms: 0, rank: head::Rank::default() });
        session.transmit(&mut outbox, WRITE_BYTES, &mut Vec::new());
        drain(&mut outbox, &mut buffer);
    }
    assert!(outbox.kept_bytes() < 8 * 1024, "outbox keeps {}", outbox.kept_bytes());
    assert!(session.lanes.kept_bytes() < 16 * 1024, "lanes keep {}", session.lanes.kept_bytes());
    assert!(session.channels[&LINK_CHANNEL].calls_out.capacity() <= 2 * CALLS_KEPT_WHEN_IDLE);
}
