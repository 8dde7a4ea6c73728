//! Streams deliver exactly what was written, within their credit, and hold up nobody but themselves.

use proptest::prelude::*;

use super::super::STREAM_WINDOW_BYTES as WINDOW;
use super::super::STREAM_WINDOW_BYTES_MAX as WINDOW_MAX;
use super::super::streams::STREAMS_MAX;
use super::pair::Mutant;
use super::*;

/// Opens a stream with a call and lets both sides know it.
fn open(pair: &mut Pair) -> StreamKey {
    let (_, key) = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), true, 1).expect("there is room");
    pair.settle();
    pair.incoming(LISTENER);
    for end in [DIALLER, LISTENER] {
        pair.session(end).round_trip(std::time::Duration::from_millis(100));
    }
    key.expect("a stream was asked for")
}

/// One direction of a stream, as its two users see it.
#[derive(Clone, Copy, Default)]
struct Direction {
    total: usize,
    written: usize,
    read: usize,
    finished: bool,
    ended: bool,
}

impl Direction {
    fn write(&mut self, session: &mut Session<u64>, key: StreamKey, most: usize) -> Result<(), TestCaseError> {
        if self.finished {
            return Ok(());
        }
        let count = most.min(self.total - self.written);
        let taken = session.stream_write(key, &patterned(self.written, count));
        self.written += taken.map_err(|error| TestCaseError::fail(format!("writing failed: {error}")))?;
        prop_assert!(self.written - self.read <= WINDOW_MAX, "more is on the way than was granted");
        if self.written == self.total && !self.finished {
            self.finished = true;
            session.stream_finish(key);
        }
        Ok(())
    }

    fn read(&mut self, session: &mut Session<u64>, key: StreamKey, most: usize) -> Result<(), TestCaseError> {
        match session.stream_read(key, most) {
            StreamRead::Bytes(bytes) => {
                prop_assert!(!bytes.is_empty() && bytes.len() <= most);
                prop_assert!(bytes == patterned(self.read, bytes.len()), "other bytes than were written, behind {}", self.read);
                self.read += bytes.len();
            }
            StreamRead::End => {
                prop_assert_eq!(self.read, self.total, "the end came early");
                self.ended = true;
            }
            StreamRead::Pending => prop_assert!(!self.ended),
            StreamRead::Reset(error) => return Err(TestCaseError::fail(format!("reading failed: {error}"))),
        }
        Ok(())
    }
}

fn everything_arrives(seed: u64, totals: Vec<(usize, usize)>, payload: usize, mutant: Mutant) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(seed).with(mutant);
    let mut streams = Vec::new();
    for (forth, back) in totals {
        let payload = Bytes::from(vec![0; payload]);
        let (_, key) = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &payload, true, 1).expect("there is room");
        let directions = [forth, back].map(|total| Direction { total, ..Direction::default() });
        streams.push((key.expect("asked for"), directions, false));
    }
    let mut idle = 0;
    while !streams.iter().all(|(_, directions, _)| directions.iter().all(|direction| direction.ended)) {
        let before: usize = streams.iter().map(|(_, directions, _)| directions[0].read + directions[1].read).sum();
        for _ in 0..8 {
            pair.turn();
        }
        for incoming in pair.incoming(LISTENER) {
            if let Incoming::Call { stream: Some(key), .. } = incoming {
                streams.iter_mut().filter(|stream| stream.0 == key).for_each(|stream| stream.2 = true);
            }
        }
        for (key, directions, known) in &mut streams {
            for (writer, direction) in [DIALLER, LISTENER].into_iter().zip(directions) {
                let most = [1, 100, 70_000, 400_000][pair.below(4) as usize];
                let most = 1 + pair.below(most) as usize;
                if *known || writer == DIALLER {
                    direction.write(pair.session(writer), *key, most)?;
                }
                if !direction.ended && (*known || writer == LISTENER) {
                    direction.read(pair.session(1 - writer), *key, most)?;
                }
            }
        }
        prop_assert_eq!(&pair.ends[DIALLER].fault, &None);
        prop_assert_eq!(&pair.ends[LISTENER].fault, &None);
        let after: usize = streams.iter().map(|(_, directions, _)| directions[0].read + directions[1].read).sum();
        idle = if before == after { idle + 1 } else { 0 };
        prop_assert!(idle < 100_000, "the streams do not come to their end");
    }
    for (key, ..) in streams {
        pair.session(DIALLER).stream_reset(key);
        pair.session(LISTENER).stream_reset(key);
    }
    for end in [DIALLER, LISTENER] {
        prop_assert_eq!(pair.session(end).streams.len(), 0);
    }
    Ok(())
}

fn total() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0_usize..2000, 2 => 50_000_usize..200_000, 1 => (WINDOW - 10)..(3 * WINDOW)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn streams_deliver_exactly_what_was_written(
        seed in any::<u64>(),
        totals in prop::collection::vec((total(), total()), 1..4),
        // Also where the call itself travels in fragments, beside the data of its stream.
        payload in prop_oneof![Just(0_usize), Just(200_000)],
    ) {
        everything_arrives(seed, totals, payload, Mutant::None)?;
    }
}

#[test]
fn the_property_notices_a_repeated_frame() {
    assert!(everything_arrives(1, vec![(1000, 0)], 0, Mutant::None).is_ok());
    assert!(everything_arrives(1, vec![(1000, 0)], 0, Mutant::RepeatsData).is_err());
}

#[test]
fn data_never_arrives_before_its_call() {
    // The hot lane is long enough for the bulk lane to get turns before the call leaves.
    let mut pair = Pair::new(1);
    let event = EventHead { seq: 1, time_ms: 0, kind: head::EventKind::Class, class: class(), task: None, audience: Default::default() };
    for _ in 0..100 {
        pair.session(DIALLER).event(LINK_CHANNEL, &event, &[0; 50_000]);
    }
    let (_, key) = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), true, 1).expect("there is room");
    let key = key.expect("asked for");
    assert_eq!(pair.session(DIALLER).stream_write(key, b"first bytes"), Ok(11));
    pair.settle();
    assert_eq!(pair.session(LISTENER).stream_read(key, 100), StreamRead::Bytes(Bytes::from_static(b"first bytes")));
}

#[test]
fn a_stalled_reader_holds_up_only_its_own_stream() {
    let mut pair = Pair::new(2);
    let (stalled, other) = (open(&mut pair), open(&mut pair));
    let mut direction = Direction { total: 10 * WINDOW, ..Direction::default() };
    for _ in 0..100 {
        direction.write(pair.session(DIALLER), stalled, WINDOW).expect("within the credit");
        pair.settle();
    }
    assert_eq!(direction.written, WINDOW, "a whole window and nothing more");

    let mut free = Direction { total: 4 * WINDOW, ..Direction::default() };
    let mut rounds = 0;
    while !free.ended {
        free.write(pair.session(DIALLER), other, WINDOW).expect("within the credit");
        pair.settle();
        free.read(pair.session(LISTENER), other, WINDOW).expect("right bytes");
        rounds += 1;
        assert!(rounds < 1000, "the other stream is stuck");
    }
    let ping = Ping { seq: 5, time_ms: 0, rank: head::Rank::default() };
    pair.session(DIALLER).ping(LINK_CHANNEL, &ping);
    pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), false, 2).expect("there is room");
    pair.incoming(LISTENER);
    pair.settle();
    let incoming = pair.incoming(LISTENER);
    assert!(matches!(&incoming[..], [Incoming::Ping { .. }, Incoming::Call { .. }]), "{incoming:?}");
    // The stalled one goes on where it was.
    direction.read(pair.session(LISTENER), stalled, WINDOW).expect("right bytes");
    assert!(direction.read > 0);
}

#[test]
fn a_writer_is_woken_when_there_is_room_or_credit_again() {
    let mut pair = Pair::new(2);
    let key = open(&mut pair);
    // A window that is larger than what one stream may have in the lane.
    flood(&mut pair, key);
    read_all(&mut pair, key);
    pair.settle();
    pair.incoming(DIALLER);
    let window = 2 * WINDOW;
    let bytes = vec![0; window];
    let first = pair.session(DIALLER).stream_write(key, &bytes).expect("open");
    assert!(first < window, "one stream does not fill the lane");
    assert_eq!(pair.session(DIALLER).stream_write(key, &bytes), Ok(0));
    pair.settle();
    assert!(pair.ends[DIALLER].writable.contains(&key));
    let second = pair.session(DIALLER).stream_write(key, &bytes).expect("open");
    assert_eq!(first + second, window);
    assert_eq!(pair.session(DIALLER).stream_write(key, &bytes), Ok(0));
    assert!(!pair.session(DIALLER).stream_flushed(key));
    pair.settle();
    assert!(pair.session(DIALLER).stream_flushed(key));
    assert_eq!(pair.incoming(DIALLER), []);
    while let StreamRead::Bytes(_) = pair.session(LISTENER).stream_read(key, window) {}
    pair.settle();
    assert!(pair.incoming(DIALLER).contains(&Incoming::Writable(key)));
}

#[test]
fn what_was_finished_arrives_though_its_writer_is_gone() {
    let mut pair = Pair::new(2);
    let key = open(&mut pair);
    pair.session(DIALLER).stream_write(key, b"all of it").expect("open");
    pair.session(DIALLER).stream_finish(key);
    pair.session(DIALLER).stream_reset(key);
    pair.settle();
    assert_eq!(pair.session(LISTENER).stream_read(key, 100), StreamRead::Bytes(Bytes::from_static(b"all of it")));
    assert_eq!(pair.session(LISTENER).stream_read(key, 100), StreamRead::End);
    assert!(pair.session(LISTENER).stream_write(key, b"nobody reads").is_err(), "the other side is gone");
    pair.session(LISTENER).stream_reset(key);
    pair.settle();
    pair.assert_no_fault();
}

#[test]
fn what_was_not_finished_ends_by_an_error() {
    let mut pair = Pair::new(2);
    let key = open(&mut pair);
    pair.session(DIALLER).stream_write(key, b"some").expect("open");
    pair.settle();
    pair.session(DIALLER).stream_write(key, b"more").expect("open");
    pair.session(DIALLER).stream_reset(key);
    pair.settle();
    assert_eq!(pair.session(LISTENER).stream_read(key, 100), StreamRead::Bytes(Bytes::from_static(b"some")));
    assert!(matches!(pair.session(LISTENER).stream_read(key, 100), StreamRead::Reset(_)));
}

#[test]
fn an_end_that_comes_after_lost_bytes_is_no_end() {
    let mut pair = Pair::new(2);
    let channel = pair.session(DIALLER).open_channel().expect("there is room");
    let (_, key) = pair.session(DIALLER).call(channel, &head(), &Bytes::new(), true, 1).expect("open");
    let key = key.expect("asked for");
    pair.settle();
    pair.session(LISTENER).stream_write(key, b"on its way").expect("open");
    pair.session(LISTENER).stream_finish(key);
    pair.session(DIALLER).close_channel(channel, &error("closed"));
    pair.settle();
    assert!(matches!(pair.session(DIALLER).stream_read(key, 100), StreamRead::Reset(_)), "the beginning was taken for the whole");
}

#[test]
fn half_a_stream_may_end_while_the_other_half_goes_on() {
    let mut pair = Pair::new(2);
    let key = open(&mut pair);
    pair.session(DIALLER).stream_finish(key);
    pair.settle();
    assert_eq!(pair.session(LISTENER).stream_read(key, 10), StreamRead::End);
    assert_eq!(pair.session(LISTENER).stream_write(key, b"answer"), Ok(6));
    pair.settle();
    assert_eq!(pair.session(DIALLER).stream_read(key, 10), StreamRead::Bytes(Bytes::from_static(b"answer")));
    assert!(pair.session(DIALLER).stream_write(key, b"x").is_err(), "it was finished");
}

#[test]
fn a_refused_call_ends_its_stream_at_the_caller() {
    let mut pair = Pair::new(2);
    let channel = pair.session(DIALLER).open_channel().expect("there is room");
    pair.settle();
    pair.session(LISTENER).close_channel(channel, &error("away"));
    let (_, key) = pair.session(DIALLER).call(channel, &head(), &Bytes::new(), true, 1).expect("still open here");
    pair.settle();
    let key = key.expect("asked for");
    assert!(matches!(pair.session(DIALLER).stream_read(key, 10), StreamRead::Reset(_)));
    assert!(pair.session(DIALLER).stream_write(key, b"x").is_err());
}

#[test]
fn each_side_has_its_own_limit_of_streams() {
    let mut pair = Pair::between(2, Role::Admin, Role::Admin);
    for call in 0..STREAMS_MAX as u64 {
        pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), true, call).expect("below the limit");
    }
    let unsent = pair.session(DIALLER).call(LINK_CHANNEL, &head(), &Bytes::new(), true, 9).expect_err("above the limit");
    assert_eq!((unsent.error.code(), unsent.token), (&ErrorCode::Busy, 9));
    pair.settle();
    assert!(pair.session(LISTENER).call(LINK_CHANNEL, &head(), &Bytes::new(), true, 10).is_ok(), "the other side has room");
    // A peer that opens more than it may gets an answer.
    pair.incoming(LISTENER);
    assert_eq!(take(pair.session(LISTENER), call_frame(LINK_CHANNEL, 4000, 60_001, b"")).expect("allowed"), []);
    let frames = sent(pair.session(LISTENER));
    assert!(frames.iter().any(|frame| frame.kind == Kind::StreamReset && frame.body[..] == 60_001_u32.to_be_bytes()));
}

#[test]
fn single_bytes_cost_no_more_than_their_bytes() {
    let mut session = session(Side::Listener);
    take(&mut session, call_frame(LINK_CHANNEL, 1, 1, b"")).expect("allowed");
    for position in 0..50_000 {
        take(&mut session, stream_data(LINK_CHANNEL, 1, 0, &[pattern(position)])).expect("within the credit");
    }
    let key = StreamKey { channel: LINK_CHANNEL, stream: 1 };
    assert!(session.streams.pieces(key) < 10, "{} pieces", session.streams.pieces(key));
    let mut read = 0;
    while let StreamRead::Bytes(bytes) = session.stream_read(key, 777) {
        assert_eq!(bytes, patterned(read, bytes.len()));
        read += bytes.len();
    }
    assert_eq!(read, 50_000);
}

/// Writes until nothing is taken any more, and lets it arrive; how much it was.
fn flood(pair: &mut Pair, key: StreamKey) -> usize {
    let bytes = vec![0; WINDOW_MAX];
    let mut written = 0;
    loop {
        let taken = pair.session(DIALLER).stream_write(key, &bytes).expect("open");
        written += taken;
        pair.settle();
        if taken == 0 {
            return written;
        }
    }
}

fn read_all(pair: &mut Pair, key: StreamKey) -> usize {
    let mut read = 0;
    while let StreamRead::Bytes(bytes) = pair.session(LISTENER).stream_read(key, WINDOW_MAX) {
        read += bytes.len();
    }
    read
}

#[test]
fn a_reader_that_keeps_up_with_a_sender_out_of_credit_gets_a_larger_window() {
    let mut pair = Pair::new(2);
    let key = open(&mut pair);
    let mut rounds = Vec::new();
    for _ in 0..8 {
        let written = flood(&mut pair, key);
        assert_eq!(read_all(&mut pair, key), written);
        pair.settle();
        rounds.push(written);
    }
    assert_eq!(rounds[0], WINDOW);
    assert_eq!(rounds[1], 2 * WINDOW);
    assert!((WINDOW_MAX / 8 * 7..=WINDOW_MAX).contains(&rounds[7]), "{rounds:?}");
    pair.assert_no_fault();
}

#[test]
fn a_reader_that_stalls_holds_no_more_than_the_first_window() {
    let mut pair = Pair::new(2);
    let key = open(&mut pair);
    assert_eq!(flood(&mut pair, key), WINDOW);
    for _ in 0..50 {
        pair.session(LISTENER).stream_read(key, WINDOW / 16);
        pair.settle();
        flood(&mut pair, key);
        assert!(pair.session(LISTENER).streams.granted(key) <= WINDOW);
    }
    pair.session(LISTENER).stream_reset(key);
    pair.settle();
    pair.assert_no_fault();
}

#[test]
fn a_sender_tells_once_that_it_is_out_of_credit() {
    let mut session = session(Side::Dialler);
    let (_, key) = session.call(LINK_CHANNEL, &head(), &Bytes::new(), true, 1).expect("there is room");
    let key = key.expect("asked for");
    sent(&mut session);
    let starved = |frames: &[Frame]| frames.iter().filter(|frame| frame.kind == Kind::StreamData && frame.body[4] == 2).count();
    assert_eq!(session.stream_write(key, &vec![0; WINDOW]), Ok(WINDOW), "all of the credit, and no more");
    assert_eq!(starved(&sent(&mut session)), 0);
    for _ in 0..3 {
        assert_eq!(session.stream_write(key, b"more"), Ok(0));
    }
    let frames = sent(&mut session);
    assert_eq!((frames.len(), starved(&frames)), (1, 1));
    let credit = [&key.stream.to_be_bytes()[..], &100_u32.to_be_bytes()].concat();
    take(&mut session, frame(Kind::StreamCredit, LINK_CHANNEL, credit)).expect("allowed");
    assert_eq!(session.stream_write(key, &[0; 101]), Ok(100));
    let frames = sent(&mut session);
    assert_eq!((frames.len(), starved(&frames)), (1, 1), "with the last bytes");
}
