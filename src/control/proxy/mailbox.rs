//! The mailbox of a proxy.
//!
//! A control node has thousands of proxies, and nearly all of them wait: an empty mailbox holds no memory, where a channel keeps a block of 32 messages. It is
//! not bounded by itself. What a peer says takes a [`Turn`](super::Turn) or replaces what it said before, and the rest is our own and rare.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::task::AtomicWaker;

/// Messages for one task.
pub(super) struct Mailbox<M> {
    inside: Mutex<Inside<M>>,
    reader: AtomicWaker,
}

struct Inside<M> {
    messages: VecDeque<M>,
    is_closed: bool,
}

impl<M> Mailbox<M> {
    pub(super) fn new() -> Self {
        Self { inside: Mutex::new(Inside { messages: VecDeque::new(), is_closed: false }), reader: AtomicWaker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inside<M>> {
        // Nothing panics under the lock but for want of memory.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message; false if nobody will look at it.
    pub(super) fn leave(&self, message: M) -> bool {
        let mut inside = self.lock();
        if inside.is_closed {
            return false;
        }
        inside.messages.push_back(message);
        drop(inside);
        self.reader.wake();
        true
    }

    /// Ends it, and returns what nobody has looked at.
    pub(super) fn close(&self) -> VecDeque<M> {
        let mut inside = self.lock();
        inside.is_closed = true;
        let unread = std::mem::take(&mut inside.messages);
        // Outside of the lock the messages are looked at, or dropped: they may have handles whose end is told to others.
        drop(inside);
        self.reader.wake();
        unread
    }

    /// The next message, for the one task that reads; none when it is closed. Dropping the future loses nothing.
    pub(super) async fn next(&self) -> Option<M> {
        poll_fn(|cx| {
            if let Poll::Ready(next) = self.take() {
                return Poll::Ready(next);
            }
            self.reader.register(cx.waker());
            // What came between the look and the registration woke nobody.
            self.take()
        })
        .await
    }

    fn take(&self) -> Poll<Option<M>> {
        let mut inside = self.lock();
        let next = inside.messages.pop_front();
        if inside.messages.is_empty() {
            inside.messages = VecDeque::new();
        }
        match next {
            Some(message) => Poll::Ready(Some(message)),
            None if inside.is_closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn messages_come_in_order_and_wake_who_waits() {
        let mailbox = Arc::new(Mailbox::new());
        let reader = tokio::spawn({
            let mailbox = Arc::clone(&mailbox);
            async move {
                let mut read = Vec::new();
                while let Some(message) = mailbox.next().await {
                    read.push(message);
                    if read.len() == 3 {
                        mailbox.close();
                    }
                }
                read
            }
        });
        for message in 1..=3 {
            tokio::task::yield_now().await;
            assert!(mailbox.leave(message));
        }
        assert_eq!(reader.await.expect("no panic"), [1, 2, 3]);
        assert!(!mailbox.leave(4), "nobody reads any more");
    }

    #[tokio::test]
    async fn an_empty_mailbox_holds_no_memory_and_a_closed_one_nothing_of_others() {
        let (mailbox, message) = (Mailbox::new(), Arc::new(()));
        for _ in 0..100 {
            assert!(mailbox.leave(Arc::clone(&message)));
        }
        for _ in 0..99 {
            mailbox.next().await.expect("not closed");
        }
        assert_eq!(Arc::strong_count(&message), 2);
        assert_eq!(mailbox.close().len(), 1, "what nobody has looked at is handed back");
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(mailbox.next().await.is_none());
        assert_eq!(mailbox.lock().messages.capacity(), 0);
    }
}
