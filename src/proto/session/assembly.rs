//! Fragments: calls and replies that are larger than a frame.
//!
//! ```text
//!   first:  u32 id │ u8 1 │ u8 kind │ u32 total bytes │ bytes …
//!   middle: u32 id │ u8 0 │ bytes …
//! ```
//!
//! The whole is known by its total; there is no "last" flag that could be missing or lie. A link assembles a bounded number of them at once; one that
//! exceeds the bound is refused with an answer and its remaining fragments are skipped.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::super::frame::{BODY_BYTES_MAX, Fault, Frame, Kind};
use super::PAYLOAD_BYTES_MAX;
use crate::error::{Error, ErrorCode};

/// Largest whole: a payload and its header.
const WHOLE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 1024;
/// Wholes being assembled on one link.
const ASSEMBLED_AT_ONCE_MAX: usize = 64;
/// Bytes being assembled on one link.
const ASSEMBLED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Refused ones whose remaining fragments are skipped.
const SKIPPED_MAX: usize = 4096;
/// Bytes in front of the data of the first fragment.
const FIRST_HEAD_BYTES: usize = 10;

/// Splits a body: heads and data of the fragments.
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
    let data = rest.split_to(rest.len().min(BODY_BYTES_MAX - first.len()));
    fragments.push((first.freeze(), data));
    while !rest.is_empty() {
        let mut head = BytesMut::with_capacity(5);
        head.put_u32(id);
        head.put_u8(0);
        let data = rest.split_to(rest.len().min(BODY_BYTES_MAX - head.len()));
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
    /// No room for it; its first bytes tell which call it is.
    Refused {
        /// Where it came in.
        channel: u16,
        /// The beginning of the body.
        first: Bytes,
        /// What to answer.
        error: Error,
    },
}

struct Partial {
    kind: Kind,
    channel: u16,
    total: usize,
    bytes: BytesMut,
}

pub(super) struct Assembly {
    partials: HashMap<u32, Partial>,
    announced_bytes: usize,
    /// Refused ones, with the bytes that are still to be skipped.
    skipped: HashMap<u32, usize>,
}

impl Assembly {
    pub(super) fn new() -> Self {
        Self { partials: HashMap::new(), announced_bytes: 0, skipped: HashMap::new() }
    }

    pub(super) fn handle(&mut self, frame: Frame) -> Result<Piece, Fault> {
        let malformed = |what| Fault::malformed(Kind::Fragment, what);
        let mut body = frame.body;
        if body.len() < 5 {
            return Err(malformed("it is too short"));
        }
        let id = body.get_u32();
        match body.get_u8() {
            1 => {
                if body.len() < 5 {
                    return Err(malformed("its first part is too short"));
                }
                let kind = Kind::from_byte(body.get_u8()).filter(|kind| matches!(kind, Kind::Call | Kind::Reply));
                let kind = kind.ok_or(malformed("its kind may not be split"))?;
                let total = body.get_u32() as usize;
                if body.len() > total {
                    return Err(malformed("it has more bytes than announced"));
                }
                if self.partials.contains_key(&id) || self.skipped.contains_key(&id) {
                    return Err(Fault::IdInUse { channel: frame.channel, id });
                }
                if total > WHOLE_BYTES_MAX {
                    return Err(Fault::Oversized { length: total, limit: WHOLE_BYTES_MAX });
                }
                let full = self.partials.len() >= ASSEMBLED_AT_ONCE_MAX || self.announced_bytes + total > ASSEMBLED_BYTES_MAX;
                if full && kind == Kind::Call {
                    if self.skipped.len() >= SKIPPED_MAX {
                        return Err(malformed("too many large calls at once"));
                    }
                    if body.len() < total {
                        self.skipped.insert(id, total - body.len());
                    }
                    let error = Error::new(ErrorCode::Busy, "too many large calls are arriving on this link; try again");
                    return Ok(Piece::Refused { channel: frame.channel, first: body, error });
                }
                // Replies are bounded by our own calls, whose senders were ready for them.
                self.announced_bytes += total;
                let mut bytes = BytesMut::new();
                bytes.put_slice(&body);
                let partial = Partial { kind, channel: frame.channel, total, bytes };
                self.partials.insert(id, partial);
            }
            0 => {
                if let Some(missing) = self.skipped.get_mut(&id) {
                    *missing = missing.checked_sub(body.len()).ok_or(malformed("it has more bytes than announced"))?;
                    if *missing == 0 {
                        self.skipped.remove(&id);
                    }
                    return Ok(Piece::Incomplete);
                }
                let partial = self.partials.get_mut(&id).ok_or(malformed("its beginning is missing"))?;
                if partial.channel != frame.channel || partial.bytes.len() + body.len() > partial.total {
                    return Err(malformed("it does not fit to its beginning"));
                }
                partial.bytes.put_slice(&body);
            }
            _ => return Err(malformed("it has unknown flags")),
        }
        let complete = self.partials.get(&id).is_some_and(|partial| partial.bytes.len() == partial.total);
        match complete.then(|| self.partials.remove(&id)).flatten() {
            Some(partial) => {
                self.announced_bytes -= partial.total;
                Ok(Piece::Whole(Frame { kind: partial.kind, channel: partial.channel, body: partial.bytes.freeze() }))
            }
            None => Ok(Piece::Incomplete),
        }
    }
}
