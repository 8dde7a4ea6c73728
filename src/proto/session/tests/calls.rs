//! Every call gets exactly one answer.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::pair::Mutant;
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Open(usize),
    CloseChannel { end: usize, which: usize },
    Call { end: usize, which: usize, payload: usize, stream: bool },
    Reply { which: usize, payload: usize },
    GiveUp { which: usize },
    Turns(usize),
    Cut,
}

fn payload_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0_usize..200, 2 => 4000_usize..5000, 2 => 60_000_usize..70_000, 1 => 200_000_usize..300_000]
}

fn op() -> impl Strategy<Value = Op> {
    let (end, which) = (0_usize..2, any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20)));
    prop_oneof![
        1 => end.clone().prop_map(Op::Open),
        1 => (end.clone(), which.clone()).prop_map(|(end, which)| Op::CloseChannel { end, which }),
        8 => (end, which.clone(), payload_bytes(), any::<bool>())
            .prop_map(|(end, which, payload, stream)| Op::Call { end, which, payload, stream }),
        6 => (which.clone(), payload_bytes()).prop_map(|(which, payload)| Op::Reply { which, payload }),
        2 => which.prop_map(|which| Op::GiveUp { which }),
        12 => (1_usize..40).prop_map(Op::Turns),
        1 => Just(Op::Cut),
    ]
}

/// A payload that names the call it belongs to.
fn named(token: u64, bytes: usize) -> Bytes {
    let mut payload = token.to_be_bytes().to_vec();
    payload.extend(patterned(token as usize, bytes));
    payload.into()
}

fn name_of(payload: &[u8]) -> Option<u64> {
    let (name, rest) = payload.split_first_chunk::<8>()?;
    let token = u64::from_be_bytes(*name);
    (rest == patterned(token as usize, rest.len())).then_some(token)
}

/// What a shell knows of its calls.
#[derive(Default)]
struct Model {
    next_token: u64,
    /// Calls that wait for their answer, with what names them at their end.
    waiting: BTreeMap<u64, (usize, u16, u32)>,
    given_up: BTreeSet<u64>,
    /// Calls that arrived and were not answered: end, channel, number, token.
    to_answer: Vec<(usize, u16, u32, u64)>,
    arrived: BTreeSet<u64>,
}

impl Model {
    fn answered(&mut self, token: u64) -> Result<(), TestCaseError> {
        prop_assert!(self.waiting.remove(&token).is_some(), "call {} was answered twice or after it was given up", token);
        Ok(())
    }

    /// Looks at what arrived at both ends.
    fn look(&mut self, pair: &mut Pair) -> Result<(), TestCaseError> {
        for end in [DIALLER, LISTENER] {
            for incoming in pair.incoming(end) {
                match incoming {
                    Incoming::Call { channel, call, payload, stream, .. } => {
                        let token = name_of(&payload);
                        prop_assert!(token.is_some(), "a payload was changed on the way");
                        let token = token.unwrap_or_default();
                        prop_assert!(self.arrived.insert(token), "call {} arrived twice", token);
                        self.to_answer.push((end, channel, call, token));
                        if let Some(key) = stream {
                            pair.session(end).stream_reset(key);
                        }
                    }
                    Incoming::Reply { token, outcome } => {
                        if let Ok(payload) = outcome {
                            prop_assert_eq!(name_of(&payload), Some(token), "the answer of another call");
                        }
                        self.answered(token)?;
                    }
                    Incoming::ChannelClosed { channel, .. } => self.to_answer.retain(|call| (call.0, call.1) != (end, channel)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, pair: &mut Pair, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Open(end) => {
                if !pair.cut {
                    let _ = pair.session(end).open_channel();
                }
            }
            Op::CloseChannel { end, which } => {
                let channels: Vec<u16> = pair.session(end).channels.keys().copied().filter(|channel| *channel != LINK_CHANNEL).collect();
                if !channels.is_empty() {
                    let channel = channels[which % channels.len()];
                    for token in pair.session(end).close_channel(channel, &error("closed by us")).tokens {
                        self.answered(token)?;
                    }
                    self.to_answer.retain(|call| (call.0, call.1) != (end, channel));
                }
            }
            Op::Call { end, which, payload, stream } => {
                let token = self.next_token;
                self.next_token += 1;
                let channels: Vec<u16> = pair.session(end).channels.keys().copied().collect();
                let channel = channels.get(which % channels.len().max(1)).copied().unwrap_or(1);
                match pair.session(end).call(channel, &head(), &named(token, payload), stream, token) {
                    Ok((call, key)) => {
                        self.waiting.insert(token, (end, channel, call));
                        if let Some(key) = key {
                            // Nothing of this must arrive before its call.
                            let _ = pair.session(end).stream_write(key, b"early");
                            pair.session(end).stream_finish(key);
                            pair.session(end).stream_reset(key);
                        }
                    }
                    Err(unsent) => prop_assert_eq!(unsent.token, token),
                }
            }
            Op::Reply { which, payload } => {
                if !self.to_answer.is_empty() {
                    let (end, channel, call, token) = self.to_answer.swap_remove(which % self.to_answer.len());
                    pair.session(end).reply(channel, call, &Ok(named(token, payload)));
                    prop_assert!(!pair.session(end).reply(channel, call, &Ok(Bytes::new())), "a second answer was taken");
                }
            }
            Op::GiveUp { which } => {
                if !self.waiting.is_empty() {
                    let chosen = self.waiting.iter().nth(which % self.waiting.len()).map(|(token, at)| (*token, *at));
                    if let Some((token, (end, channel, call))) = chosen {
                        // Its answer may lie unread in front of the shell: then there is nothing to give up.
                        if let Some(returned) = pair.session(end).forget_call(channel, call) {
                            prop_assert_eq!(returned, token);
                            self.answered(token)?;
                            self.given_up.insert(token);
                        }
                    }
                }
            }
            Op::Turns(count) => (0..count).for_each(|_| pair.turn()),
            Op::Cut => {
                if !pair.cut {
                    // What had arrived before the cut was handed on before it.
                    self.look(pair)?;
                    for token in pair.cut().into_iter().flatten() {
                        self.answered(token)?;
                    }
                    self.to_answer.clear();
                }
            }
        }
        self.look(pair)
    }
}

fn exactly_one_answer(seed: u64, ops: Vec<Op>, mutant: Mutant) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(seed).with(mutant);
    let mut model = Model::default();
    for op in ops {
        model.apply(&mut pair, op)?;
    }
    loop {
        pair.settle();
        model.look(&mut pair)?;
        if model.to_answer.is_empty() {
            break;
        }
        while !model.to_answer.is_empty() {
            model.apply(&mut pair, Op::Reply { which: 0, payload: 10 })?;
        }
    }
    prop_assert_eq!(&pair.ends[DIALLER].fault, &None);
    prop_assert_eq!(&pair.ends[LISTENER].fault, &None);
    prop_assert!(model.waiting.is_empty(), "calls without an answer: {:?}", model.waiting);
    for end in [DIALLER, LISTENER] {
        prop_assert_eq!(pair.session(end).calls_being_answered(), 0);
        prop_assert_eq!(pair.session(end).assembly.held_bytes(), 0);
        prop_assert_eq!(pair.session(end).lanes.queued_bytes(), 0);
        prop_assert_eq!(pair.session(end).lanes.message_bytes(), 0);
        prop_assert_eq!(pair.session(end).streams.len(), 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_call_gets_exactly_one_answer(seed in any::<u64>(), ops in prop::collection::vec(op(), 1..80)) {
        exactly_one_answer(seed, ops, Mutant::None)?;
    }
}

#[test]
fn the_property_notices_a_lost_reply() {
    let ops = vec![
        Op::Call { end: DIALLER, which: 0, payload: 10, stream: false },
        Op::Call { end: LISTENER, which: 0, payload: 10, stream: false },
        Op::Turns(20),
    ];
    assert!(exactly_one_answer(1, ops.clone(), Mutant::None).is_ok());
    assert!(exactly_one_answer(1, ops, Mutant::LosesReply).is_err());
}

/// Sends one call and lets it arrive.
fn one_call(pair: &mut Pair, payload: &[u8]) -> u32 {
    let payload = Bytes::copy_from_slice(payload);
    let (call, _) = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &payload, false, 1).expect("there is room");
    pair.settle();
    call
}

#[test]
fn reply_after_timeout_is_ignored() {
    let mut pair = Pair::new(1);
    let call = one_call(&mut pair, b"ask");
    // The reply is on its way when the caller gives up.
    assert!(pair.session(LISTENER).reply(LINK_CHANNEL, call, &Ok(Bytes::from_static(b"late"))));
    assert_eq!(pair.session(DIALLER).forget_call(LINK_CHANNEL, call), Some(1));
    pair.settle();
    assert_eq!(pair.incoming(DIALLER), []);
    pair.assert_no_fault();
}

#[test]
fn whoever_gave_up_is_spared_the_reply() {
    let mut pair = Pair::new(1);
    let call = one_call(&mut pair, b"ask");
    assert_eq!(pair.session(DIALLER).forget_call(LINK_CHANNEL, call), Some(1));
    pair.settle();
    let incoming = pair.incoming(LISTENER);
    assert!(matches!(incoming[..], [Incoming::Call { .. }, Incoming::Cancelled { channel: LINK_CHANNEL, call: c }] if c == call));
    assert!(!pair.session(LISTENER).caller_waits(LINK_CHANNEL, call));
    assert!(pair.session(LISTENER).reply(LINK_CHANNEL, call, &Ok(Bytes::from_static(b"late"))));
    assert!(!pair.session(LISTENER).has_output());
    assert_eq!(pair.session(LISTENER).calls_being_answered(), 0);
}

#[test]
fn more_calls_than_the_limit_are_busy_and_nothing_is_sent() {
    let mut session = session(Side::Dialler);
    for token in 0..CALLS_MAX as u64 {
        session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, token).expect("below the limit");
    }
    let unsent = session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 9).expect_err("above the limit");
    assert_eq!((unsent.error.code(), unsent.error.may_have_run(), unsent.token), (&ErrorCode::Busy, false, 9));
    assert_eq!(session.calls_in_flight(LINK_CHANNEL), CALLS_MAX);
}

#[test]
fn a_peer_that_exceeds_the_limit_of_calls_gets_an_answer_to_each() {
    let mut session = session(Side::Listener);
    for call in 1..=CALLS_MAX as u32 {
        assert_eq!(take(&mut session, call_frame(LINK_CHANNEL, call, 0, b"")).expect("allowed").len(), 1);
    }
    assert_eq!(take(&mut session, call_frame(LINK_CHANNEL, 5000, 7, b"")).expect("allowed"), []);
    let frames = sent(&mut session);
    assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [Kind::Reply, Kind::StreamReset]);
    let (call, outcome) = head::take_reply(&mut frames[0].body.clone()).expect("readable");
    assert_eq!((call, outcome.expect_err("refused").code().clone()), (5000, ErrorCode::Busy));
    assert_eq!(frames[1].body[..], 7_u32.to_be_bytes());
}

#[test]
fn a_full_backlog_refuses_calls_of_both_sides() {
    let mut session = session(Side::Listener);
    let large = Bytes::from(vec![0; PAYLOAD_BYTES_MAX]);
    for token in 0..2 {
        session.call(LINK_CHANNEL, &head(), &large, false, token).expect("below the limit");
    }
    let unsent = session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 9).expect_err("the backlog is full");
    assert_eq!(unsent.error.code(), &ErrorCode::Busy);
    assert_eq!(take(&mut session, call_frame(LINK_CHANNEL, 1, 0, b"")).expect("allowed"), []);
    assert_eq!(session.calls_being_answered(), 0);
}

#[test]
fn a_call_on_a_closed_channel_is_answered_and_had_no_effect() {
    let mut session = session(Side::Listener);
    assert_eq!(take(&mut session, call_frame(3, 8, 5, b"")).expect("allowed"), []);
    let frames = sent(&mut session);
    let (call, outcome) = head::take_reply(&mut frames[0].body.clone()).expect("readable");
    let error = outcome.expect_err("refused");
    assert_eq!((call, error.code(), error.may_have_run()), (8, &ErrorCode::ConnectionFailed, false));
    assert_eq!(frames[1].kind, Kind::StreamReset);
}

#[test]
fn closing_a_channel_answers_its_calls_and_no_others() {
    let mut pair = Pair::new(3);
    let channel = pair.session(DIALLER).open_channel().expect("there is room");
    pair.session(DIALLER).call(channel, &head(), &Bytes::new(), false, 1).expect("open");
    pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), false, 2).expect("open");
    pair.settle();
    let closed = pair.session(LISTENER).close_channel(channel, &error("drained"));
    assert_eq!(closed.tokens, Vec::<u64>::new());
    pair.settle();
    let reason = error("drained");
    let expected =
        [Incoming::Reply { token: 1, outcome: Err(reason.clone().after_sending()) }, Incoming::ChannelClosed { channel, reason }];
    assert_eq!(pair.incoming(DIALLER), expected);
    assert_eq!(pair.session(DIALLER).calls_in_flight(LINK_CHANNEL), 1);
    let unsent = pair.session(DIALLER).call(channel, &head(), &Bytes::new(), false, 3).expect_err("it is closed");
    assert_eq!(unsent.error.code(), &ErrorCode::ConnectionFailed);
}

#[test]
fn replies_given_before_a_channel_is_closed_arrive() {
    let mut pair = Pair::new(3);
    let channel = pair.session(DIALLER).open_channel().expect("there is room");
    let (call, _) = pair.session(DIALLER).call(channel, &head(), &Bytes::new(), false, 1).expect("open");
    pair.settle();
    pair.session(LISTENER).reply(channel, call, &Ok(Bytes::from_static(b"done")));
    pair.session(LISTENER).close_channel(channel, &error("drained"));
    pair.settle();
    assert_eq!(pair.incoming(DIALLER)[0], Incoming::Reply { token: 1, outcome: Ok(Bytes::from_static(b"done")) });
}

#[test]
fn events_and_messages_of_a_channel_that_we_closed_are_dropped() {
    let mut pair = Pair::new(3);
    let channel = pair.session(DIALLER).open_channel().expect("there is room");
    pair.settle();
    let event = EventHead { seq: 1, time_ms: 0, kind: head::EventKind::Class, class: class(), task: None, audience: Default::default() };
    pair.session(LISTENER).event(channel, &event, b"x");
    pair.session(LISTENER).message(channel, &Message::Fenced(message::Fenced { term: 1, holder: None }));
    pair.session(DIALLER).close_channel(channel, &error("away"));
    pair.settle();
    assert_eq!(pair.incoming(DIALLER), []);
    // The other side now knows it as closed too: nothing is queued for nobody.
    pair.session(LISTENER).event(channel, &event, b"x");
    assert!(!pair.session(LISTENER).has_output());
}

#[test]
fn an_error_of_any_length_travels_as_its_beginning() {
    let mut pair = Pair::new(5);
    let call = one_call(&mut pair, b"ask");
    let long = Error::class(&"n".repeat(1000), "é".repeat(100_000)).after_sending();
    assert!(pair.session(LISTENER).reply(LINK_CHANNEL, call, &Err(long)));
    pair.session(LISTENER)
        .message(LINK_CHANNEL, &Message::GoAway(message::GoAway { reason: error(&"x".repeat(200_000)), reconnect_after_ms: None }));
    pair.settle();
    pair.assert_no_fault();
    let incoming = pair.incoming(DIALLER);
    let [Incoming::Reply { token: 1, outcome: Err(told) }, Incoming::Message { .. }] = &incoming[..] else {
        panic!("unexpected: {incoming:?}");
    };
    assert_eq!((told.message().len(), told.code().name().len()), (Error::TEXT_BYTES_MAX, Error::NAME_BYTES_MAX));
    assert!(told.may_have_run());
}

#[test]
fn channels_have_a_limit_on_both_sides() {
    let mut pair = Pair::new(5);
    for _ in 1..CHANNELS_MAX {
        pair.session(DIALLER).open_channel().expect("below the limit");
    }
    assert_eq!(pair.session(DIALLER).open_channel().map_err(|error| error.code().clone()), Err(ErrorCode::Busy));
    pair.settle();
    pair.assert_no_fault();
    assert_eq!(pair.session(LISTENER).open_channel().map_err(|error| error.code().clone()), Err(ErrorCode::Busy));
    let fault = take(pair.session(LISTENER), frame(Kind::ChannelOpen, 999, Bytes::new()));
    assert_eq!(fault, Err(Fault::TooManyChannels(CHANNELS_MAX)));
}

#[test]
fn numbers_of_channels_are_not_used_again_soon() {
    let mut session = session(Side::Listener);
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        let channel = session.open_channel().expect("there is room");
        assert!(channel.is_multiple_of(2) && seen.insert(channel));
        session.close_channel(channel, &error("done"));
    }
    for _ in 0..40_000 {
        let channel = session.open_channel().expect("there is room");
        assert_ne!(channel, LINK_CHANNEL);
        session.close_channel(channel, &error("done"));
    }
}

#[test]
fn an_ended_session_takes_nothing_in_and_queues_nothing() {
    let mut session = session(Side::Dialler);
    session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 4).expect("open");
    assert_eq!(session.close(&error("cut")).tokens, [4]);
    session.discard_output();
    let event = EventHead { seq: 1, time_ms: 0, kind: head::EventKind::Class, class: class(), task: None, audience: Default::default() };
    session.event(LINK_CHANNEL, &event, b"x");
    session.message(LINK_CHANNEL, &Message::Fenced(message::Fenced { term: 1, holder: None }));
    session.ping(LINK_CHANNEL, &Ping { seq: 1, time_ms: 0, rank: head::Rank::default() });
    assert!(session.call(LINK_CHANNEL, &head(), &Bytes::new(), false, 5).is_err());
    assert!(!session.has_output());
}
