//! The attempts of one call: whether another one may be made, and what its caller is told.
//!
//! What was refused without effect may be done by any incarnation of the worker; what may have been done, only by the one that has the call. A caller
//! is never told that nothing was done because the last attempt was refused, when an earlier one may have been carried out.

use super::call::worth_a_retry;
use crate::error::{Error, ErrorCode, Result};
use crate::proto::head::CallHead;
use crate::types::Incarnation;

/// A call on its way, over all of its attempts.
#[derive(Clone, Debug)]
pub(crate) struct Attempts {
    /// Of the next attempt.
    pub(crate) head: CallHead,
    /// Whether an attempt that was made here may have been carried out.
    may_have_run: bool,
}

/// What follows a failed attempt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failed {
    /// Another attempt may succeed; without one this is the answer.
    MayTryAgain(Error),
    /// This is the answer.
    Final(Error),
}

impl Attempts {
    /// Before the first one.
    pub(crate) fn new(head: CallHead) -> Self {
        Self { head, may_have_run: false }
    }

    /// An attempt has failed.
    pub(crate) fn failed(&mut self, error: Error) -> Failed {
        let earlier = self.may_have_run;
        self.may_have_run |= error.may_have_run();
        self.head.retry |= error.may_have_run();
        let first = match error.addressed() {
            Some(addressed) if self.head.incarnation.is_none() => addressed,
            _ => self.head.incarnation,
        };
        // Another incarnation answers, which will never know what the first one did; or nobody can say which one that was.
        let elsewhere = self.head.retry && error.addressed().is_some_and(|addressed| addressed != first);
        let lost = elsewhere || (error.may_have_run() && first.is_none());
        if self.head.retry {
            self.head.incarnation = first;
        }
        let again = !lost && worth_a_retry(&error);
        let told = match earlier && !error.may_have_run() {
            true => error.context("an earlier attempt may have been carried out, the last one was not").after_sending(),
            false => error,
        };
        if again { Failed::MayTryAgain(told) } else { Failed::Final(told) }
    }
}

/// Addresses a call to the incarnation of a worker that obeys us now, before it is sent.
///
/// # Errors
/// `not_connected` if a first attempt is meant for another one; `connection_failed` if an attempt that may have been carried out was.
pub(crate) fn address(head: &mut CallHead, current: Incarnation) -> Result<()> {
    let node = head.node.as_ref().map_or("the node", |node| node.as_str());
    if head.incarnation.is_none() {
        head.incarnation = current;
    } else if head.incarnation != current && !head.retry {
        let what = format!("{node} was restarted just now; nothing was done. Try again");
        return Err(Error::new(ErrorCode::NotConnected, what));
    } else if head.incarnation != current {
        let what = format!("{node} was restarted since the call was first sent; nobody knows whether it was done");
        return Err(Error::new(ErrorCode::ConnectionFailed, what).after_sending().addressed_to(current));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::head::Verb;
    use crate::proto::identity::CallIdentity;

    fn run(number: u8) -> Incarnation {
        Incarnation::from_bytes([number; 16])
    }

    fn call() -> Attempts {
        Attempts::new(CallHead {
            verb: Verb::Request,
            timeout_ms: 1000,
            identity: CallIdentity { edge: run(9), number: 1 },
            retry: false,
            incarnation: Incarnation::default(),
            node: None,
            class: None,
            task: None,
            exclusive: false,
            hops: 0,
        })
    }

    fn cut() -> Error {
        Error::new(ErrorCode::ConnectionFailed, "cut").after_sending()
    }

    fn away() -> Error {
        Error::new(ErrorCode::NotConnected, "away")
    }

    #[test]
    fn what_may_have_been_done_is_asked_of_the_same_incarnation() {
        let mut call = call();
        assert_eq!(call.failed(cut().addressed_to(run(1))), Failed::MayTryAgain(cut().addressed_to(run(1))));
        assert!(call.head.retry);
        assert_eq!(call.head.incarnation, run(1));
        assert!(matches!(call.failed(cut().addressed_to(run(2))), Failed::Final(_)));
    }

    #[test]
    fn what_was_refused_may_be_done_by_any_incarnation() {
        let mut call = call();
        assert_eq!(call.failed(away()), Failed::MayTryAgain(away()));
        assert!(!call.head.retry && call.head.incarnation.is_none());
    }

    #[test]
    fn a_refusal_after_an_attempt_that_may_have_run_does_not_deny_it() {
        let mut call = call();
        call.failed(cut().addressed_to(run(1)));
        let Failed::MayTryAgain(error) = call.failed(away()) else { panic!("it may come back") };
        assert!(error.may_have_run(), "{error}");
        assert_eq!(*error.code(), ErrorCode::NotConnected);
    }

    #[test]
    fn a_call_is_addressed_once() {
        let mut head = call().head;
        assert_eq!(address(&mut head, run(1)), Ok(()));
        assert_eq!(head.incarnation, run(1));
        assert_eq!(address(&mut head, run(2)).map_err(|error| error.may_have_run()), Err(false));
        head.retry = true;
        assert_eq!(address(&mut head, run(2)).map_err(|error| error.may_have_run()), Err(true));
    }
}
