//! Frames: what every byte on a link belongs to.
//!
//! ```text
//!  0        4      5         7
//!  ├─ u32 ──┼─ u8 ─┼── u16 ──┼───────────────┐
//!  │ length │ kind │ channel │ body          │      big-endian; the length counts kind, channel and body
//!  └────────┴──────┴─────────┴───────────────┘
//! ```
//!
//! The length is compared with the limit of the moment before anything is allocated: [`BYTES_MAX_UNTRUSTED`] until the peer is trusted,
//! [`BYTES_MAX`] afterwards.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of length, kind and channel.
pub const HEADER_BYTES: usize = 7;
/// Bytes of kind and channel, which the length counts.
const COUNTED_HEADER_BYTES: usize = 3;
/// Largest frame (without its length field) before the peer is trusted.
pub const BYTES_MAX_UNTRUSTED: usize = 4 * 1024;
/// Largest body of a frame after the peer is trusted; what is larger travels in fragments or as a stream.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest frame (without its length field) after the peer is trusted.
pub const BYTES_MAX: usize = BODY_BYTES_MAX + COUNTED_HEADER_BYTES;

/// The channel of the link itself.
pub const LINK_CHANNEL: u16 = 0;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $value:literal,)+) => {
        /// What a frame is. The values are part of wire version 1.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[doc = $doc])+ $variant = $value,)+
        }

        impl Kind {
            /// Every kind of this version.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)+];

            /// The kind of a byte, if this version has it.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($value => Some(Kind::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Handshake, first message of the dialler.
    ClientFirst = 1,
    /// Handshake, first message of the listener.
    ServerFirst = 2,
    /// Handshake, proof of the dialler.
    ClientProof = 3,
    /// Handshake, proof of the listener.
    ServerProof = 4,
    /// The peer is not let in; the last frame of such a connection.
    Refusal = 5,
    /// Measures a round trip and shows that the holder is alive.
    Ping = 16,
    /// Answer to a ping.
    Pong = 17,
    /// A request, task, command or cluster operation.
    Call = 18,
    /// The one answer to a call.
    Reply = 19,
    /// The caller no longer waits for a call.
    Cancel = 20,
    /// One entry of a worker's journal.
    Event = 21,
    /// Bytes of a stream.
    StreamData = 22,
    /// Credit for a stream.
    StreamCredit = 23,
    /// End of a stream by an error.
    StreamReset = 24,
    /// Part of a call or reply that is larger than a frame.
    Fragment = 25,
    /// A worker describes itself; its first trusted frame.
    Describe = 32,
    /// A worker's status, labels or statistics changed.
    Update = 33,
    /// Opens a channel.
    ChannelOpen = 34,
    /// Closes a channel.
    ChannelClose = 35,
    /// Asks a worker to accept a holder.
    Adopt = 36,
    /// The worker's answer to that.
    Adopted = 37,
    /// What came on a channel of an older term changed nothing.
    Fenced = 38,
    /// Events up to a number were taken.
    EventAck = 39,
    /// A worker starts to send its journal again: what runs there, what is lost.
    Resync = 40,
    /// The peer should go elsewhere, the link ends soon.
    GoAway = 41,
    /// Addresses that a worker should try first.
    Preferred = 42,
    /// The link ends because of a fault.
    Fault = 43,
    /// Membership of the control nodes; read by them only.
    Envelope = 48,
    /// The holder asks a worker for a direct link.
    Redirect = 49,
    /// Asks a worker for one more connection to where it is connected.
    ExclusiveDial = 44,
    /// That connection, in its first frame; or why there is none.
    ExclusiveHere = 45,
    /// Calls on this channel belong to an adoption on another link.
    ExclusiveBind = 46,
    /// Calls of an edge whose outcomes nobody needs any more.
    OutcomeAck = 47,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The channel it belongs to.
    pub channel: u16,
    /// Its body.
    pub body: Bytes,
}

/// Why a peer's bytes were refused. Numbered: the number travels, the words stay in our log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// 1: a length above the limit of the moment.
    #[error("frame of {length} bytes is larger than {limit}")]
    Oversized {
        /// Announced length.
        length: usize,
        /// Limit of the moment.
        limit: usize,
    },
    /// 2: a length too small for a header.
    #[error("frame of {0} bytes has no room for a header")]
    Undersized(usize),
    /// 3: a kind that this version does not have.
    #[error("unknown kind of frame {0}")]
    UnknownKind(u8),
    /// 4: a kind that the peer's role may not send.
    #[error("kind of frame {0:?} is not allowed for the peer's role")]
    NotAllowed(Kind),
    /// 5: a body that cannot be read.
    #[error("body of {kind:?} cannot be read: {what}")]
    Malformed {
        /// Kind of the frame.
        kind: Kind,
        /// What is wrong.
        what: &'static str,
    },
    /// 6: more bytes than were granted.
    #[error("stream {stream} of channel {channel} exceeds its credit")]
    CreditExceeded {
        /// Channel of the stream.
        channel: u16,
        /// The stream.
        stream: u32,
    },
    /// 7: an id that is in use was opened again.
    #[error("id {id} of channel {channel} is in use")]
    IdInUse {
        /// Channel of the id.
        channel: u16,
        /// The call or stream.
        id: u32,
    },
    /// 8: the peer sends, but reads nothing.
    #[error("peer does not read: {queued_bytes} bytes wait for it")]
    PeerNotReading {
        /// Bytes that wait.
        queued_bytes: usize,
    },
    /// 9: more channels than the limit.
    #[error("more than {0} channels")]
    TooManyChannels(usize),
}

impl Fault {
    /// The number that travels.
    pub fn number(&self) -> u16 {
        match self {
            Fault::Oversized { .. } => 1,
            Fault::Undersized(_) => 2,
            Fault::UnknownKind(_) => 3,
            Fault::NotAllowed(_) => 4,
            Fault::Malformed { .. } => 5,
            Fault::CreditExceeded { .. } => 6,
            Fault::IdInUse { .. } => 7,
            Fault::PeerNotReading { .. } => 8,
            Fault::TooManyChannels(_) => 9,
        }
    }

    /// A body that cannot be read.
    pub(crate) fn malformed(kind: Kind, what: &'static str) -> Self {
        Fault::Malformed { kind, what }
    }
}

/// Appends the header of a frame whose body has `body_bytes` bytes.
pub fn put_header(out: &mut BytesMut, kind: Kind, channel: u16, body_bytes: usize) {
    debug_assert!(body_bytes <= BODY_BYTES_MAX, "the session splits larger bodies");
    out.put_u32((COUNTED_HEADER_BYTES + body_bytes) as u32);
    out.put_u8(kind as u8);
    out.put_u16(channel);
}

/// Appends a whole frame.
pub fn put_frame(out: &mut BytesMut, kind: Kind, channel: u16, body: &[u8]) {
    out.reserve(HEADER_BYTES + body.len());
    put_header(out, kind, channel, body.len());
    out.put_slice(body);
}

/// Takes the next whole frame out of `buffer`, or nothing while it is incomplete.
///
/// # Errors
/// A [`Fault`] if the length exceeds `bytes_max` (found before anything is allocated), has no room for a header, or the kind is unknown.
pub fn take_frame(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<Frame>, Fault> {
    let Some(length) = buffer.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize) else {
        return Ok(None);
    };
    if length > bytes_max {
        return Err(Fault::Oversized { length, limit: bytes_max });
    }
    if length < COUNTED_HEADER_BYTES {
        return Err(Fault::Undersized(length));
    }
    if buffer.len() < 4 + length {
        // A kind that will be refused is refused before its body is waited for.
        if let Some(&byte) = buffer.get(4) {
            Kind::from_byte(byte).ok_or(Fault::UnknownKind(byte))?;
        }
        return Ok(None);
    }
    buffer.advance(4);
    let mut body = buffer.split_to(length).freeze();
    let byte = body.get_u8();
    let channel = body.get_u16();
    let kind = Kind::from_byte(byte).ok_or(Fault::UnknownKind(byte))?;
    Ok(Some(Frame { kind, channel, body }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let mut out = BytesMut::new();
        put_frame(&mut out, Kind::Cancel, 0x0102, &[0xaa, 0xbb]);
        assert_eq!(&out[..], [0, 0, 0, 5, 20, 1, 2, 0xaa, 0xbb]);
    }

    #[test]
    fn length_is_refused_before_the_body_is_there() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        let fault = take_frame(&mut buffer, BYTES_MAX).expect_err("4 GiB is too much");
        assert_eq!(fault, Fault::Oversized { length: u32::MAX as usize, limit: BYTES_MAX });
    }

    #[test]
    fn every_kind_returns_from_its_byte() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_byte(*kind as u8), Some(*kind));
        }
    }

    fn frames() -> impl Strategy<Value = Vec<(usize, u16, Vec<u8>)>> {
        proptest::collection::vec((0..Kind::ALL.len(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20)
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_frames(frames in frames(), cuts in proptest::collection::vec(1_usize..64, 1..200)) {
            let mut wire = BytesMut::new();
            for (kind, channel, body) in &frames {
                put_frame(&mut wire, Kind::ALL[*kind], *channel, body);
            }
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !wire.is_empty() {
                let cut = (*cuts.next().expect("cycles")).min(wire.len());
                buffer.extend_from_slice(&wire.split_to(cut));
                while let Some(frame) = take_frame(&mut buffer, BYTES_MAX).expect("valid frames") {
                    seen.push((frame.kind, frame.channel, frame.body.to_vec()));
                }
            }
            let sent: Vec<_> = frames.into_iter().map(|(kind, channel, body)| (Kind::ALL[kind], channel, body)).collect();
            prop_assert_eq!(seen, sent);
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&garbage[..]);
            while let Ok(Some(_)) = take_frame(&mut buffer, BYTES_MAX) {}
        }
    }
}
