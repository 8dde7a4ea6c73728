//! Streams of links as readers and writers.

use super::*;

/// A stream, both ends of it, with what keeps their links alive.
pub(super) struct Streams {
    pub(super) near: ByteStream,
    pub(super) far: ByteStream,
    pub(super) ends: (End, End),
    /// Answered calls end no stream; this one stays open to show that streams need no answer.
    _call: IncomingCall,
    _answer: PendingAnswer,
}

async fn streams() -> Streams {
    over(linked()).await
}

pub(super) async fn over((caller, mut answerer): (End, End)) -> Streams {
    let (answer, near) = caller.link.channel_zero().call_with_stream(&head(), &Bytes::new()).expect("there is room");
    let mut call = answerer.next().await;
    let far = call.stream.take().expect("it came with a stream");
    Streams { near, far, ends: (caller, answerer), _call: call, _answer: answer }
}

pub(super) fn bytes_of(seed: usize, count: usize) -> Vec<u8> {
    (seed..seed + count).map(|position| (position.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

#[tokio::test]
async fn eight_mebibytes_pass_both_ways_at_once() {
    const BYTES: usize = 8 * 1024 * 1024;
    let Streams { near, far, ends, .. } = streams().await;
    let side = |stream: ByteStream, sends: usize, expects: usize| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = async {
            writer.write_all(&bytes_of(sends, BYTES)).await.expect("open");
            writer.flush().await.expect("flushes");
            writer.shutdown().await.expect("finishes");
        };
        let mut received = Vec::new();
        let read = async { reader.read_to_end(&mut received).await.expect("readable") };
        tokio::join!(write, read);
        assert!(received == bytes_of(expects, BYTES));
    };
    in_time("both copies", async { tokio::join!(side(near, 1, 2), side(far, 2, 1)) }).await;
    drop(ends);
}

#[tokio::test]
async fn a_stream_passes_a_wire_that_moves_single_bytes() {
    let (one, other) = duplex(1);
    let Streams { mut near, mut far, .. } = over(both(wire(one), wire(other), NO_KEEPALIVE)).await;
    let copy = async {
        near.write_all(&bytes_of(0, 20_000)).await.expect("open");
        near.shutdown().await.expect("finishes");
    };
    let mut received = Vec::new();
    let (_, read) = in_time("the copy", async { tokio::join!(copy, far.read_to_end(&mut received)) }).await;
    read.expect("readable");
    assert!(received == bytes_of(0, 20_000));
}

#[tokio::test]
async fn what_was_finished_before_the_drop_arrives() {
    let Streams { mut near, mut far, ends, .. } = streams().await;
    near.write_all(&bytes_of(0, 200_000)).await.expect("open");
    near.shutdown().await.expect("finishes");
    drop(near);
    let mut received = Vec::new();
    in_time("the rest", far.read_to_end(&mut received)).await.expect("readable");
    assert!(received == bytes_of(0, 200_000));
    // And nobody reads what we would send.
    let refused = in_time("the word that nobody reads", async {
        loop {
            if let Err(error) = far.write_all(b"x").await {
                return error;
            }
        }
    });
    assert_eq!(refused.await.kind(), std::io::ErrorKind::ConnectionAborted);
    drop(ends);
}

#[tokio::test]
async fn a_drop_without_finishing_is_an_error_at_the_other_end() {
    let Streams { mut near, mut far, ends, .. } = streams().await;
    near.write_all(b"some").await.expect("open");
    near.flush().await.expect("flushes");
    drop(near);
    let mut received = Vec::new();
    let error = in_time("the reset", far.read_to_end(&mut received)).await.expect_err("it was not finished");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(error.get_ref().is_some_and(|inner| inner.downcast_ref::<Error>().is_some()), "it has our error inside");
    drop(ends);
}

#[tokio::test]
async fn one_direction_may_end_before_the_other() {
    let Streams { mut near, mut far, ends, .. } = streams().await;
    near.write_all(b"question").await.expect("open");
    near.shutdown().await.expect("finishes");
    let mut question = Vec::new();
    in_time("the question", far.read_to_end(&mut question)).await.expect("readable");
    assert_eq!(question, b"question");
    far.write_all(b"answer").await.expect("open");
    far.shutdown().await.expect("finishes");
    let mut answer = Vec::new();
    in_time("the answer", near.read_to_end(&mut answer)).await.expect("readable");
    assert_eq!(answer, b"answer");
    assert!(near.write_all(b"x").await.is_err(), "it was finished");
    drop(ends);
}

#[tokio::test]
async fn the_end_of_the_link_is_the_end_of_its_streams() {
    let Streams { mut near, mut far, ends, .. } = streams().await;
    let filled = tokio::spawn(async move {
        // Nobody reads: the writer waits for credit when the link ends.
        near.write_all(&bytes_of(0, 4 * 1024 * 1024)).await
    });
    let mut begun = [0; 1000];
    far.read_exact(&mut begun).await.expect("readable");
    ends.1.link.close(gone());
    assert!(in_time("the writer is told", filled).await.expect("no panic").is_err());
    let mut rest = Vec::new();
    assert!(in_time("the reader is told", far.read_to_end(&mut rest)).await.is_err());
}

#[tokio::test]
async fn a_thousand_streams_of_little_data_pass_at_once() {
    let (caller, mut answerer) = linked();
    let echoing = tokio::spawn(async move {
        while let Some(mut call) = answerer.calls.recv().await {
            let stream = call.stream.take().expect("it came with a stream");
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::io::copy(&mut reader, &mut writer).await.expect("copies");
                writer.shutdown().await.expect("finishes");
                call.reply(&Ok(Bytes::new()));
            });
        }
    });
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let (answer, mut stream) = caller.link.channel_zero().call_with_stream(&head(), &Bytes::new()).expect("there is room");
        streams.spawn(async move {
            let sent = bytes_of(number, 100 + number % 900);
            stream.write_all(&sent).await.expect("open");
            stream.shutdown().await.expect("finishes");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.expect("readable");
            assert!(received == sent);
            answer.wait(DEADLINE).await.expect("answered");
        });
    }
    in_time("all of them", streams.join_all()).await;
    // All are forgotten: there is room for as many again.
    for _ in 0..1000 {
        drop(caller.link.channel_zero().call_with_stream(&head(), &Bytes::new()).expect("there is room"));
    }
    echoing.abort();
}

#[tokio::test]
async fn a_stalled_stream_holds_up_neither_calls_nor_other_streams() {
    let Streams { mut near, far: _stalled, ends: (caller, mut answerer), .. } = streams().await;
    let stuck = tokio::spawn(async move { near.write_all(&bytes_of(0, 4 * 1024 * 1024)).await });
    let (_answer, mut other) = caller.link.channel_zero().call_with_stream(&head(), &Bytes::new()).expect("there is room");
    let mut far = answerer.next().await.stream.take().expect("it came with a stream");
    let copy = async {
        other.write_all(&bytes_of(0, 2 * 1024 * 1024)).await.expect("open");
        other.shutdown().await.expect("finishes");
    };
    let mut received = Vec::new();
    in_time("the other stream", async { tokio::join!(copy, far.read_to_end(&mut received)) }).await.1.expect("readable");
    assert_eq!(received.len(), 2 * 1024 * 1024);
    let (_link, _) = answerer.echo();
    assert!(caller.call(b"x", DEADLINE).await.is_ok());
    assert!(caller.link.channel_zero().ping(Rank::default(), DEADLINE).await.is_ok());
    assert!(!stuck.is_finished());
    stuck.abort();
}

#[tokio::test]
async fn data_written_with_a_large_call_is_not_lost() {
    let (caller, mut answerer) = linked();
    let payload = Bytes::from(vec![3; 1024 * 1024]);
    let (_answer, mut stream) = caller.link.channel_zero().call_with_stream(&head(), &payload).expect("there is room");
    stream.write_all(b"first bytes").await.expect("open");
    stream.shutdown().await.expect("finishes");
    let mut call = answerer.next().await;
    assert_eq!(call.payload, payload);
    let mut received = Vec::new();
    let mut far = call.stream.take().expect("it came with a stream");
    in_time("its bytes", far.read_to_end(&mut received)).await.expect("readable");
    assert_eq!(received, b"first bytes");
}

#[tokio::test]
async fn a_reader_may_take_bytes_without_a_copy() {
    let Streams { mut near, mut far, ends, .. } = streams().await;
    near.write_all(&bytes_of(0, 200_000)).await.expect("open");
    near.shutdown().await.expect("finishes");
    let mut received = Vec::new();
    loop {
        let bytes = in_time("more", std::future::poll_fn(|cx| far.poll_read_bytes(cx, 10_000))).await.expect("readable");
        if bytes.is_empty() {
            break;
        }
        assert!(bytes.len() <= 10_000);
        received.extend_from_slice(&bytes);
    }
    assert!(received == bytes_of(0, 200_000));
    drop(ends);
}
