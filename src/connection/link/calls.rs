//! Calls on their way: ours, which wait for an answer, and the peer's, which wait for ours.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::stream::ByteStream;
use super::output::Company;
use super::{CallAnswer, Channel};
use crate::error::{Error, ErrorCode};
use crate::proto::head::{CallHead, Outcome};

/// The answer of a call that was sent. Dropping it gives the call up.
#[derive(Debug)]
pub struct PendingAnswer {
    channel: Channel,
    call: u32,
    answer: Option<oneshot::Receiver<CallAnswer>>,
}

impl PendingAnswer {
    pub(super) fn new(channel: Channel, call: u32, answer: oneshot::Receiver<CallAnswer>) -> Self {
        Self { channel, call, answer: Some(answer) }
    }
}

impl PendingAnswer {
    /// Waits for the answer, at most `timeout`.
    pub async fn wait(mut self, timeout: Duration) -> CallAnswer {
        let Some(answer) = self.answer.as_mut() else {
            return Err(Error::new(ErrorCode::Internal, "the answer was taken already"));
        };
        let result = tokio::time::timeout(timeout, answer).await;
        match result {
            Ok(answered) => {
                self.answer = None;
                answered.unwrap_or_else(|_| Err(Error::new(ErrorCode::ProcessFailed, "the link was dropped").after_sending()))
            }
            Err(_) => {
                let peer = &self.channel.link.peer().id;
                let what = format!("no answer from {peer} within {timeout:?}; it may still do the work");
                Err(Error::new(ErrorCode::Timeout, what).after_sending())
            }
        }
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.channel.link.with_session(|session| session.forget_call(self.channel.id, self.call));
        }
    }
}

/// A call of the peer. It is answered exactly once: dropped unanswered, its caller gets `process_failed`.
#[derive(Debug)]
pub struct IncomingCall {
    channel: Channel,
    call: u32,
    /// What it asks for.
    pub head: CallHead,
    /// Bytes of the class.
    pub payload: Bytes,
    /// The stream that came with it.
    pub stream: Option<ByteStream>,
    /// When it arrived.
    pub received: Instant,
    answered: bool,
}

/// A call as the session hands it out.
pub(super) struct Arrived {
    pub(super) channel: Channel,
    pub(super) call: u32,
    pub(super) head: CallHead,
    pub(super) payload: Bytes,
    pub(super) stream: Option<ByteStream>,
    pub(super) received: Instant,
}

impl IncomingCall {
    pub(super) fn new(arrived: Arrived) -> Self {
        let Arrived { channel, call, head, payload, stream, received } = arrived;
        Self { channel, call, head, payload, stream, received, answered: false }
    }

    /// Where it came in.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// When its caller stops waiting.
    pub fn deadline(&self) -> Instant {
        self.received + Duration::from_millis(u64::from(self.head.timeout_ms))
    }

    /// Answers it.
    pub fn reply(mut self, outcome: &Outcome) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: &Outcome) {
        self.answered = true;
        let mut state = self.channel.link.lock();
        state.cancels.remove(&(self.channel.id, self.call));
        state.session.reply(self.channel.id, self.call, outcome);
        let company = Company::of(state.session.calls_unanswered(self.channel.id));
        drop(state);
        self.channel.link.push(company);
    }

    /// What tells that the caller no longer waits. Costs nothing until it is asked.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation { channel: self.channel.clone(), call: self.call }
    }
}

/// Tells whether the caller of a call still waits.
#[derive(Debug)]
pub struct Cancellation {
    channel: Channel,
    call: u32,
}

impl Cancellation {
    /// Ends when the caller no longer waits, the call was answered, or its channel or link is gone. Any number of tasks may wait.
    pub async fn cancelled(&self) {
        // It is never sent, only dropped.
        let _ = self.register().await;
    }

    fn register(&self) -> oneshot::Receiver<()> {
        let (token, cancelled) = oneshot::channel();
        let mut state = self.channel.link.lock();
        // Otherwise the sender is dropped here, and the wait ends at once.
        if state.session.caller_waits(self.channel.id, self.call) {
            let waiting = state.cancels.entry((self.channel.id, self.call)).or_default();
            // Those that gave up waiting, as the losers of a `select!` do each time.
            waiting.retain(|other| !other.is_closed());
            waiting.push(token);
        }
        cancelled
    }
}

impl Drop for IncomingCall {
    fn drop(&mut self) {
        if !self.answered {
            let error = Error::new(ErrorCode::ProcessFailed, "the process that held the call ended without an answer").after_sending();
            self.answer(&Err(error));
        }
    }
}
