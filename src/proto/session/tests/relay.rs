//! A session whose frames travel through another one: owner, lender and worker.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The owner's session, the lender's with the worker, and the worker's.
struct Chain {
    owner: Session<u64>,
    lender: Session<u64>,
    worker: Session<u64>,
    /// Channels of the owner's session, and those of the lender's link.
    channels: BTreeMap<u16, u16>,
}

impl Chain {
    /// `side` is that of the lender.
    fn new(side: Side) -> Self {
        let other = if side == Side::Dialler { Side::Listener } else { Side::Dialler };
        let mut chain = Self {
            owner: Session::new(side, Role::Worker),
            lender: Session::new(side, Role::Worker),
            worker: Session::new(other, Role::Control),
            channels: BTreeMap::new(),
        };
        // The lender has a channel of its own, so that the numbers differ.
        chain.lender.open_channel().expect("there is room");
        let opened = chain.lender.open_relayed_channel().expect("there is room");
        chain.channels.insert(LINK_CHANNEL, opened);
        chain
    }

    /// Moves everything that is on its way; returns what the owner and the worker see.
    fn settle(&mut self) -> (Vec<Incoming<u64>>, Vec<Incoming<u64>>) {
        let (mut at_owner, mut at_worker) = (Vec::new(), Vec::new());
        loop {
            let mut moved = false;
            for frame in sent(&mut self.owner) {
                moved = true;
                if frame.kind == Kind::ChannelOpen {
                    let opened = self.lender.open_relayed_channel().expect("there is room");
                    self.channels.insert(frame.channel, opened);
                } else {
                    self.lender.relay(self.channels[&frame.channel], frame.kind, frame.body);
                }
            }
            for frame in sent(&mut self.lender) {
                moved = true;
                self.worker.handle_frame(frame, &mut at_worker).expect("allowed");
            }
            for frame in sent(&mut self.worker) {
                moved = true;
                let mut at_lender = Vec::new();
                self.lender.handle_frame(frame, &mut at_lender).expect("allowed");
                for incoming in at_lender {
                    let Incoming::Relayed(mut frame) = incoming else { panic!("the lender keeps {incoming:?}") };
                    frame.channel = *self.channels.iter().find(|(_, opened)| **opened == frame.channel).expect("known").0;
                    self.owner.handle_frame(frame, &mut at_owner).expect("allowed");
                }
            }
            if !moved {
                return (at_owner, at_worker);
            }
        }
    }
}

proptest! {
    #[test]
    fn calls_and_streams_pass_a_lent_link_as_they_are(
        dialled in any::<bool>(),
        payload in 0_usize..200_000,
        reply in 0_usize..200_000,
        data in 0_usize..400_000,
    ) {
        let mut chain = Chain::new(if dialled { Side::Dialler } else { Side::Listener });
        let channel = chain.owner.open_channel().expect("there is room");
        let asked = Bytes::from(patterned(1, payload));
        // One without a stream comes after it, and may be first: it is not held up by what is bulk.
        let (_, key) = chain.owner.call(channel, &head(), &asked, true, 7).expect("sent");
        let key = key.expect("a stream");
        chain.owner.call(channel, &head(), &Bytes::from_static(b"small"), false, 8).expect("sent");
        let bytes = patterned(5, data);
        let mut written = chain.owner.stream_write(key, &bytes).expect("open");
        let mut got = Vec::new();
        let (mut calls, mut at_owner) = (Vec::new(), Vec::new());
        loop {
            let (mine, theirs) = chain.settle();
            at_owner.extend(mine);
            for incoming in theirs {
                if let Incoming::Call { channel, call, payload, stream, .. } = incoming {
                    calls.push((channel, call, payload, stream));
                }
            }
            let before = (got.len(), written);
            if let Some((.., Some(stream))) = calls.iter().find(|(.., stream)| stream.is_some()) {
                while let StreamRead::Bytes(bytes) = chain.worker.stream_read(*stream, 70_000) {
                    got.extend_from_slice(&bytes);
                }
            }
            written += chain.owner.stream_write(key, &bytes[written..]).expect("open");
            if before == (got.len(), written) && !chain.owner.has_output() && !chain.worker.has_output() {
                break;
            }
        }
        prop_assert_eq!(calls.len(), 2);
        prop_assert!(calls.iter().any(|(_, _, payload, stream)| *payload == asked && stream.is_some()));
        prop_assert!(calls.iter().any(|(_, _, payload, stream)| &payload[..] == b"small" && stream.is_none()));
        prop_assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
        let answered = Bytes::from(patterned(9, reply));
        for (channel, call, ..) in calls {
            chain.worker.reply(channel, call, &Ok(answered.clone()));
        }
        at_owner.extend(chain.settle().0);
        let tokens: Vec<u64> = at_owner
            .iter()
            .filter_map(|incoming| match incoming {
                Incoming::Reply { token, outcome: Ok(bytes) } if *bytes == answered => Some(*token),
                _ => None,
            })
            .collect();
        prop_assert!(tokens.contains(&7) && tokens.contains(&8) && tokens.len() == 2, "{:?}", tokens);
    }
}

#[test]
fn the_data_of_a_relayed_stream_never_overtakes_its_call() {
    let mut chain = Chain::new(Side::Listener);
    let channel = chain.channels[&LINK_CHANNEL];
    // So much that is hot waits that the bulk lane gets its turns in between.
    for call in 0..20 {
        let body = call_frame(channel, 100 + call, 0, &[0; 60_000]).body;
        chain.lender.relay(channel, Kind::Call, body);
    }
    chain.lender.relay(channel, Kind::Call, call_frame(channel, 1, 2, b"with a stream").body);
    chain.lender.relay(channel, Kind::StreamData, stream_data(channel, 2, 0, b"its data").body);
    let frames = sent(&mut chain.lender);
    let place = |wanted: &dyn Fn(&Frame) -> bool| frames.iter().position(wanted).expect("sent");
    let call = place(&|frame| frame.kind == Kind::Call && frame.body[..8] == [0, 0, 0, 1, 0, 0, 0, 2]);
    assert!(call < place(&|frame| frame.kind == Kind::StreamData));
}

#[test]
fn a_cancellation_never_overtakes_the_call_that_it_ends() {
    let mut chain = Chain::new(Side::Listener);
    let channel = chain.channels[&LINK_CHANNEL];
    // A call with a stream waits in the bulk lane, which its cancellation would pass in the other one.
    for part in 0..10 {
        chain.lender.relay(channel, Kind::StreamData, stream_data(channel, 4, part, &[0; 60_000]).body);
    }
    chain.lender.relay(channel, Kind::Call, call_frame(channel, 1, 2, b"with a stream").body);
    chain.lender.relay(channel, Kind::Cancel, Bytes::from_static(&[0, 0, 0, 1]));
    let kinds: Vec<Kind> = sent(&mut chain.lender).iter().map(|frame| frame.kind).collect();
    let place = |wanted: Kind| kinds.iter().position(|kind| *kind == wanted).expect("sent");
    assert!(place(Kind::Call) < place(Kind::Cancel), "{kinds:?}");
}

#[test]
fn a_role_is_checked_before_a_frame_is_relayed() {
    let mut chain = Chain::new(Side::Listener);
    let channel = chain.channels[&LINK_CHANNEL];
    let call = call_frame(channel, 1, 0, b"");
    assert_eq!(chain.lender.handle_frame(call, &mut Vec::new()), Err(Fault::NotAllowed(Kind::Call)));
}

#[test]
fn what_waits_for_a_worker_is_bounded_and_forgotten_with_its_channel() {
    let mut chain = Chain::new(Side::Listener);
    let channel = chain.channels[&LINK_CHANNEL];
    assert!(chain.lender.has_room_to_relay());
    while chain.lender.has_room_to_relay() {
        chain.lender.relay(channel, Kind::StreamData, stream_data(channel, 2, 0, &[0; 60_000]).body);
    }
    assert!(chain.lender.lanes.queued_bytes() < 2 * 1024 * 1024);
    chain.lender.close_channel(channel, &error("over"));
    assert!(!chain.lender.is_relaying());
    assert!(sent(&mut chain.lender).iter().all(|frame| frame.kind != Kind::StreamData));
    assert_eq!(chain.lender.lanes.queued_bytes(), 0);
    // What comes late is nobody's.
    chain.lender.relay(channel, Kind::StreamData, stream_data(channel, 2, 0, b"late").body);
    assert!(!chain.lender.has_output());
}
