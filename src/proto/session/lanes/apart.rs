//! The lane of each stream where every stream has a way of its own.

use super::*;

impl Lanes {
    /// From now on streams do not take part in the turns of the bulk lane. To be called before there are any.
    pub(in super::super) fn set_apart(&mut self) {
        self.apart.get_or_insert_default();
    }

    pub(in super::super) fn has_apart(&self) -> bool {
        self.apart.as_ref().is_some_and(|apart| !apart.is_empty())
    }

    /// Whether data of any stream waits.
    pub(in super::super) fn has_streams(&self) -> bool {
        self.bulk.keys().any(|source| matches!(source, Source::Stream(_)))
    }

    /// A stream that has something to send, or whose end should be noticed.
    pub(in super::super) fn next_apart(&mut self) -> Option<StreamKey> {
        self.apart.as_mut()?.pop_front()
    }

    /// A stream has ended.
    pub(in super::super) fn look_again(&mut self, key: StreamKey) {
        if let Some(apart) = &mut self.apart {
            apart.push_back(key);
        }
    }

    /// Moves frames of one stream to `out` until it holds about `bytes_max`, but not before the call of the stream has left.
    pub(in super::super) fn transmit_apart(
        &mut self,
        key: StreamKey,
        out: &mut Outbox,
        bytes_max: usize,
        mut sent: impl FnMut(StreamKey, usize),
    ) {
        if self.held.contains(&key) {
            return;
        }
        let Some(frames) = self.bulk.get_mut(&Source::Stream(key)) else { return };
        while out.len() < bytes_max
            && let Some(queued) = frames.pop_front()
        {
            if queued.kind == Kind::StreamData {
                sent(key, queued.body.len());
            } else {
                self.queued_bytes -= queued.cost();
            }
            out.frame(queued.kind, queued.channel, &[&queued.head, &queued.body]);
        }
        if frames.is_empty() {
            self.bulk.remove(&Source::Stream(key));
        }
    }
}
