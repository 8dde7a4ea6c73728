//! Fragments: calls and replies that are larger than a frame.
//!
//! ```text
//!   first:  u32 id │ u8 1 │ u8 kind │ u32 total bytes │ bytes …
//!   middle: u32 id │ u8 0 │ bytes …
//! ```
//!
//! The whole is known by its total; there is no "last" flag that could be missing or lie. A link assembles a bounded number of them at once; one that
//! exceeds the bound is refused with an answer and its remaining fragments are skipped. So are those of a reply for which nobody waits any more.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::super::auth::Role;
use super::super::frame::{BODY_BYTES_MAX, Fault, Frame, Kind};
use super::super::roles;
use super::PAYLOAD_BYTES_MAX;
use crate::error::{Error, ErrorCode};

/// Largest whole: a payload and its header.
const WHOLE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 1024;
/// Calls being assembled on one link, and their bytes.
const CALLS: Bound = Bound { count: 64, bytes: 64 * 1024 * 1024 };
/// Replies being assembled on one link, and their bytes. More than calls: our side has asked for them.
const REPLIES: Bound = Bound { count: 1024, bytes: 256 * 1024 * 1024 };
/// Wholes whose remaining fragments are skipped.
const SKIPPED_MAX: usize = 4096;
/// Bytes in front of the data of the first fragment.
const FIRST_HEAD_BYTES: usize = 10;
/// Bytes in front of the data of the others.
const MIDDLE_HEAD_BYTES: usize = 5;

/// Splits a body: heads and data of the fragments. `head` is small, see [`super::super::head`].
pub(super) fn split(id: u32, kind: Kind, head: Bytes, body: Bytes) -> Vec<(Bytes, Bytes)> {
    let total = head.len() + body.len();
    let mut fragments = Vec::with_capacity(total / BODY_BYTES_MAX + 1);
    let mut first = BytesMut::with_capacity(FIRST_HEAD_BYTES + head.len());
    first.put_u32(id);
    first.put_u8(1);
    first.put_u8(kind as u8);
    first.put_u32(total as u32);
    first.put_slice(&head);
    let mut rest = body;
    let data = rest.split_to(rest.len().min(BODY_BYTES_MAX.saturating_sub(first.len())));
    fragments.push((first.freeze(), data));
    while !rest.is_empty() {
        let mut head = BytesMut::with_capacity(MIDDLE_HEAD_BYTES);
        head.put_u32(id);
        head.put_u8(0);
        let data = rest.split_to(rest.len().min(BODY_BYTES_MAX - MIDDLE_HEAD_BYTES));
        fragments.push((head.freeze(), data));
    }
    fragments
}

/// What a fragment completes.
pub(super) enum Piece {
    /// More is to come, or it was skipped.
    Incomplete,
    /// A whole body, as if it had come in one frame.
    Whole(Frame),
    /// No room for a call; its first bytes tell which.
    RefusedCall {
        /// Where it came in.
        channel: u16,
        /// The beginning of the body.
        first: Bytes,
        /// What to answer.
        error: Error,
    },
    /// No room for a reply that somebody waits for.
    RefusedReply {
        /// Where it came in.
        channel: u16,
        /// The call that it answers.
        call: u32,
        /// What to tell whoever waits.
        error: Error,
    },
}

struct Bound {
    count: usize,
    bytes: usize,
}

#[derive(Default)]
struct Used {
    count: usize,
    bytes: usize,
}

impl Used {
    fn has_room(&self, bound: &Bound, total: usize) -> bool {
        self.count < bound.count && self.bytes + total <= bound.bytes
    }
}

struct Partial {
    /// The call that a reply answers; none if it is a call itself.
    answers: Option<u32>,
    total: usize,
    bytes: BytesMut,
}

/// Channel and id: sessions that share a link by relayed channels number for themselves.
type Key = (u16, u32);

pub(super) struct Assembly {
    peer_role: Role,
    partials: HashMap<Key, Partial>,
    calls: Used,
    replies: Used,
    /// Refused ones, with the bytes that are still to be skipped.
    skipped: HashMap<Key, usize>,
}

impl Assembly {
    pub(super) fn new(peer_role: Role) -> Self {
        Self { peer_role, partials: HashMap::new(), calls: Used::default(), replies: Used::default(), skipped: HashMap::new() }
    }

    /// Takes in a fragment. `waits` tells whether a call of ours, by channel and number, is unanswered.
    pub(super) fn handle(&mut self, frame: Frame, waits: impl FnOnce(u16, u32) -> bool) -> Result<Piece, Fault> {
        let mut body = frame.body;
        if body.len() < MIDDLE_HEAD_BYTES {
            return Err(malformed("it is too short"));
        }
        let id = body.get_u32();
        match body.get_u8() {
            1 => self.begin(id, frame.channel, body, waits),
            0 => self.go_on(id, frame.channel, &body),
            _ => Err(malformed("it has unknown flags")),
        }
    }

    fn begin(&mut self, id: u32, channel: u16, mut body: Bytes, waits: impl FnOnce(u16, u32) -> bool) -> Result<Piece, Fault> {
        if body.len() < FIRST_HEAD_BYTES - MIDDLE_HEAD_BYTES {
            return Err(malformed("its first part is too short"));
        }
        let kind = Kind::from_byte(body.get_u8()).filter(|kind| matches!(kind, Kind::Call | Kind::Reply));
        let kind = kind.ok_or(malformed("its kind may not be split"))?;
        if !roles::may_send(self.peer_role, kind) {
            return Err(Fault::NotAllowed(kind));
        }
        let total = body.get_u32() as usize;
        if body.len() > total {
            return Err(malformed("it has more bytes than announced"));
        }
        if self.partials.contains_key(&(channel, id)) || self.skipped.contains_key(&(channel, id)) {
            return Err(Fault::IdInUse { channel, id });
        }
        if total > WHOLE_BYTES_MAX {
            return Err(Fault::Oversized { length: total, limit: WHOLE_BYTES_MAX });
        }
        let mut answers = None;
        if kind == Kind::Call {
            if !self.calls.has_room(&CALLS, total) {
                self.skip((channel, id), total - body.len())?;
                let error = Error::new(ErrorCode::Busy, "too many large calls are arriving on this link; try again");
                return Ok(Piece::RefusedCall { channel, first: body, error });
            }
        } else {
            let call = body.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(malformed("its first part is too short"))?;
            if !waits(channel, call) {
                // Its caller gave up.
                self.skip((channel, id), total - body.len())?;
                return Ok(Piece::Incomplete);
            }
            if self.partials.iter().any(|((of, _), partial)| *of == channel && partial.answers == Some(call)) {
                return Err(malformed("a call is answered twice"));
            }
            if !self.replies.has_room(&REPLIES, total) {
                self.skip((channel, id), total - body.len())?;
                let error = Error::new(ErrorCode::Busy, "too many large replies are arriving on this link").after_sending();
                return Ok(Piece::RefusedReply { channel, call, error });
            }
            answers = Some(call);
        }
        let used = self.used(answers);
        used.count += 1;
        used.bytes += total;
        self.partials.insert((channel, id), Partial { answers, total, bytes: BytesMut::from(&body[..]) });
        Ok(self.complete((channel, id)))
    }

    fn go_on(&mut self, id: u32, channel: u16, body: &Bytes) -> Result<Piece, Fault> {
        let key = (channel, id);
        if let Some(missing) = self.skipped.get_mut(&key) {
            *missing = missing.checked_sub(body.len()).ok_or(malformed("it has more bytes than announced"))?;
            if *missing == 0 {
                self.skipped.remove(&key);
            }
            return Ok(Piece::Incomplete);
        }
        let partial = self.partials.get_mut(&key).ok_or(malformed("its beginning is missing"))?;
        if partial.bytes.len() + body.len() > partial.total {
            return Err(malformed("it does not fit to its beginning"));
        }
        partial.bytes.put_slice(body);
        Ok(self.complete(key))
    }

    fn complete(&mut self, key: Key) -> Piece {
        let complete = self.partials.get(&key).is_some_and(|partial| partial.bytes.len() == partial.total);
        let Some(partial) = complete.then(|| self.partials.remove(&key)).flatten() else { return Piece::Incomplete };
        let used = self.used(partial.answers);
        used.count -= 1;
        used.bytes -= partial.total;
        let kind = if partial.answers.is_some() { Kind::Reply } else { Kind::Call };
        Piece::Whole(Frame { kind, channel: key.0, body: partial.bytes.freeze() })
    }

    fn used(&mut self, answers: Option<u32>) -> &mut Used {
        if answers.is_some() { &mut self.replies } else { &mut self.calls }
    }

    fn skip(&mut self, key: Key, missing: usize) -> Result<(), Fault> {
        if self.skipped.len() >= SKIPPED_MAX {
            return Err(malformed("too many large bodies at once"));
        }
        if missing > 0 {
            self.skipped.insert(key, missing);
        }
        Ok(())
    }

    /// A channel was closed: what has begun on it is never completed.
    pub(super) fn drop_channel(&mut self, channel: u16) {
        let (calls, replies) = (&mut self.calls, &mut self.replies);
        self.partials.retain(|(of, _), partial| {
            if *of == channel {
                let used = if partial.answers.is_some() { &mut *replies } else { &mut *calls };
                used.count -= 1;
                used.bytes -= partial.total;
            }
            *of != channel
        });
        self.skipped.retain(|(of, _), _| *of != channel);
    }

    /// Bytes that are held for wholes which are not complete.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.partials.values().map(|partial| partial.bytes.capacity()).sum()
    }
}

/// The call and stream that a fragment begins; none if it continues something, or begins a reply.
pub(super) fn begins_call(mut body: Bytes) -> Result<Option<(u32, u32)>, Fault> {
    if body.len() < MIDDLE_HEAD_BYTES {
        return Err(malformed("it is too short"));
    }
    body.advance(MIDDLE_HEAD_BYTES - 1);
    if body.get_u8() == 0 {
        return Ok(None);
    }
    if body.len() < FIRST_HEAD_BYTES - MIDDLE_HEAD_BYTES {
        return Err(malformed("its first part is too short"));
    }
    let kind = body.get_u8();
    body.advance(4);
    if kind != Kind::Call as u8 {
        return Ok(None);
    }
    let (call, stream, _) = super::super::head::take_call(&mut body)?;
    Ok(Some((call, stream)))
}

fn malformed(what: &'static str) -> Fault {
    Fault::malformed(Kind::Fragment, what)
}
