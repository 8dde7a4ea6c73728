//! Calls over links.

use super::*;

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let (caller, answerer) = linked();
    let (_link, _) = answerer.echo();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..2000_u32 {
        let channel = caller.link.channel_zero();
        calls.spawn(async move {
            let payload = Bytes::copy_from_slice(&number.to_be_bytes());
            assert_eq!(channel.call(&head(), &payload, DEADLINE).await, Ok(payload));
        });
    }
    in_time("all answers", calls.join_all()).await;
    assert_eq!(caller.link.channel_zero().calls_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn every_call_is_answered_once_wherever_the_link_is_cut() {
    // About what the conversation below needs; behind it the link is whole.
    for bytes in (0..1200).chain([usize::MAX]) {
        let ((near, near_far), (far, far_near)) = (duplex(256), duplex(256));
        let (caller, answerer) = both(wire(near), wire(far), NO_KEEPALIVE);
        let cut = tokio::spawn(cut_after(near_far, far_near, bytes));
        let (answering, answerer_saw) = answerer.echo();
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..5_usize {
            let channel = caller.link.channel_zero();
            calls.spawn(async move {
                let payload = Bytes::from(vec![number as u8; 10 * number]);
                let answer = channel.call(&head(), &payload, DEADLINE).await;
                match answer {
                    Ok(answer) => assert_eq!(answer, payload),
                    Err(error) => {
                        assert_eq!(error.code(), &ErrorCode::ConnectionFailed, "cut at {bytes}: {error}");
                    }
                }
            });
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap_or_else(|error| panic!("cut at {bytes}: {error}"));
        }
        caller.link.close(gone());
        in_time("the end at the caller", caller.link.ended()).await;
        in_time("the end at the answerer", answering.ended()).await;
        cut.abort();
        eventually("both handlers are told", || [&caller.seen, &answerer_saw].iter().all(|seen| seen.closed.load(Ordering::SeqCst) == 1))
            .await;
        assert_eq!(caller.seen.after_closed.load(Ordering::SeqCst) + answerer_saw.after_closed.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_call_on_an_ended_link_fails_at_once_and_had_no_effect() {
    let (caller, answerer) = linked();
    answerer.link.close(gone());
    in_time("the end", caller.link.ended()).await;
    let error = caller.call(b"x", DEADLINE).await.expect_err("nobody is there");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::ConnectionFailed, false));
    assert!(!caller.link.channel_zero().is_open());
}

#[tokio::test]
async fn a_call_dropped_by_its_handler_is_answered() {
    let (caller, mut answerer) = linked();
    let (answer, ()) = tokio::join!(caller.call(b"x", DEADLINE), async { drop(answerer.next().await) });
    let error = answer.expect_err("nobody answered");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::ProcessFailed, true));
    assert_eq!(answerer.link.calls_being_answered(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_changes_nothing() {
    let (caller, mut answerer) = linked();
    let error = caller.call(b"slow", Duration::from_secs(1)).await.expect_err("nobody answers in time");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::Timeout, true));
    let late = answerer.next().await;
    in_time("the word that nobody waits", late.cancellation().cancelled()).await;
    late.reply(&Ok(Bytes::from_static(b"late")));
    let (_link, _) = answerer.echo();
    assert_eq!(caller.call(b"next", DEADLINE).await, Ok(Bytes::from_static(b"next")));
}

#[tokio::test]
async fn a_call_whose_future_is_dropped_is_given_up() {
    let (caller, mut answerer) = linked();
    let channel = caller.link.channel_zero();
    let waiting = tokio::spawn(async move { channel.call(&head(), &Bytes::new(), DEADLINE).await });
    let call = answerer.next().await;
    let cancellation = call.cancellation();
    let (one, two) = (cancellation.cancelled(), cancellation.cancelled());
    tokio::pin!(one, two);
    // Whoever asks a second time does not end the first.
    for _ in 0..2 {
        let both_wait =
            std::future::poll_fn(|cx| std::task::Poll::Ready(one.as_mut().poll(cx).is_pending() && two.as_mut().poll(cx).is_pending()));
        assert!(both_wait.await);
    }
    waiting.abort();
    in_time("both are told", async { tokio::join!(one, two) }).await;
    assert_eq!(caller.link.channel_zero().calls_in_flight(), 0);
    in_time("asked afterwards it ends at once", call.cancellation().cancelled()).await;
}

#[tokio::test]
async fn the_end_of_the_link_cancels_its_calls() {
    let (caller, mut answerer) = linked();
    let channel = caller.link.channel_zero();
    let waiting = tokio::spawn(async move { channel.call(&head(), &Bytes::new(), DEADLINE).await });
    let call = answerer.next().await;
    let cancellation = call.cancellation();
    caller.link.close(gone());
    in_time("the answerer is told", cancellation.cancelled()).await;
    let error = in_time("the caller is told", waiting).await.expect("no panic").expect_err("it was cut");
    assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::ConnectionFailed, true));
    call.reply(&Ok(Bytes::new()));
}

#[tokio::test]
async fn the_end_of_a_channel_cancels_its_calls_and_no_others() {
    for closed_by_caller in [true, false] {
        let (caller, mut answerer) = linked();
        let channel = caller.link.open_channel().expect("there is room");
        let mut waiting = Vec::new();
        for channel in [channel.clone(), caller.link.channel_zero()] {
            waiting.push(tokio::spawn(async move { channel.call(&head(), &Bytes::new(), DEADLINE).await }));
            // In this order at the other end too.
            eventually("it is sent", || caller.link.channel_zero().calls_in_flight() + channel_calls(&caller, 1) == waiting.len()).await;
        }
        let (one, other) = (answerer.next().await, answerer.next().await);
        let (on_channel, on_zero) = if one.channel().id() == channel.id() { (one, other) } else { (other, one) };
        let (cancelled, stays) = (on_channel.cancellation(), on_zero.cancellation());
        if closed_by_caller {
            channel.close(&gone());
        } else {
            on_channel.channel().close(&gone());
        }
        in_time("the call of the channel is cancelled", cancelled.cancelled()).await;
        let error = in_time("its caller is told", waiting.remove(0)).await.expect("no panic").expect_err("it was closed");
        assert_eq!((error.code(), error.may_have_run()), (&ErrorCode::ShuttingDown, true));
        on_zero.reply(&Ok(Bytes::from_static(b"good")));
        assert_eq!(in_time("the other answer", waiting.remove(0)).await.expect("no panic"), Ok(Bytes::from_static(b"good")));
        stays.cancelled().await;
        assert!(!channel.is_open());
    }
}

fn channel_calls(end: &End, channel: u16) -> usize {
    end.link.channel(channel).calls_in_flight()
}

#[tokio::test]
async fn replies_given_before_the_link_was_closed_arrive() {
    let (caller, mut answerer) = linked();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let channel = caller.link.channel_zero();
        waiting.spawn(async move { channel.call(&head(), &Bytes::new(), DEADLINE).await });
    }
    let mut calls = Vec::new();
    for _ in 0..50 {
        calls.push(answerer.next().await);
    }
    let large = Bytes::from(vec![7; 100_000]);
    for call in calls {
        call.reply(&Ok(large.clone()));
    }
    answerer.link.close(gone());
    for answer in in_time("all answers", waiting.join_all()).await {
        assert_eq!(answer, Ok(large.clone()));
    }
}

#[tokio::test]
async fn calls_pass_a_wire_that_moves_single_bytes() {
    let (one, other) = duplex(1);
    let (caller, answerer) = both(wire(one), wire(other), NO_KEEPALIVE);
    let (_link, _) = answerer.echo();
    let payload = Bytes::from(vec![5; 20_000]);
    let answer = in_time("the answer", caller.link.channel_zero().call(&head(), &payload, DEADLINE)).await;
    assert_eq!(answer, Ok(payload));
}

#[tokio::test]
async fn large_payloads_pass_the_simulated_network() {
    let net = MemoryNet::new();
    let (caller, answerer) = linked_in(&net).await;
    let (_link, _) = answerer.echo();
    let payload = Bytes::from(vec![5; 16 * 1024 * 1024]);
    let answer = in_time("the answer", caller.link.channel_zero().call(&head(), &payload, DEADLINE)).await;
    assert!(answer == Ok(payload));
}
