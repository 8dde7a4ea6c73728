//! Frames and messages of a transfer, and their way over a byte stream.
//!
//! Every frame says its kind and length, so a side can speak at any moment, also in the middle of the data:
//!
//! ```text
//! u8 kind   0 = message, 1 = data
//! u32 n     length of the body, big-endian; message ≤ 4 KiB, data 1 B ..= 1 MiB
//! n bytes   message: MessagePack with named fields; data: the next bytes of the file
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::error::{Error, ErrorCode, Result};

use super::{Checksum, TransferId};

/// Version of everything in this file. 1: the first.
pub(super) const VERSION: u16 = 1;

/// Largest message; every string in one is bounded so that it fits.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// Largest data frame that is accepted.
pub(super) const DATA_BYTES_MAX: usize = 1024 * 1024;

/// Nesting of a message; ours need four levels.
const DEPTH_MAX: usize = 8;

/// Longest error text that is sent, in bytes.
const ERROR_TEXT_BYTES_MAX: usize = 2048;

const KIND_MESSAGE: u8 = 0;
const KIND_DATA: u8 = 1;

/// Room for kind and length in front of the data.
pub(super) const HEADER_BYTES: usize = 5;

/// Size of reads that are smaller than a data frame.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// How often a side that works silently says that it is alive.
const WAIT_EVERY: Duration = Duration::from_secs(5);

/// How long a side that ends with an error gives the other to hear of it.
const CLOSING: Duration = Duration::from_secs(2);

/// What the source says of its file before the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Length in bytes; exactly as many follow.
    pub(super) size: u64,
    /// Permission bits; only `0o777` count.
    pub(super) mode: u32,
    /// Time of the last change.
    #[serde(default)]
    pub(super) modified: Option<Modified>,
}

/// A point in time, as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modified {
    /// Seconds since 1970; earlier ones are negative.
    pub(super) seconds: i64,
    /// Nanoseconds, below 1 000 000 000.
    pub(super) nanos: u32,
}

/// One message; the order of a transfer stands in the chapter of [`super`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Opens a transfer to the worker.
    Send { version: u16, id: TransferId, path: String, offer: Offer },
    /// Opens a transfer from the worker.
    Fetch { version: u16, id: TransferId, path: String },
    /// The worker's answer to `Fetch`.
    Offer(Offer),
    /// The sink has this many bytes already, with this hash.
    Resume { offset: u64, xxh3: Checksum },
    /// The data begins here: at the offset of `Resume`, or at 0.
    Start { offset: u64 },
    /// The data is complete: length and hash of the whole file.
    End { size: u64, xxh3: Checksum },
    /// The file is in place.
    Done { bytes: u64, xxh3: Checksum },
    /// Still hashing or syncing; says nothing else.
    Wait,
    /// The sender of this has given up, for this reason.
    Failed(Error),
}

impl Message {
    fn name(&self) -> &'static str {
        match self {
            Message::Send { .. } => "send",
            Message::Fetch { .. } => "fetch",
            Message::Offer(_) => "offer",
            Message::Resume { .. } => "resume",
            Message::Start { .. } => "start",
            Message::End { .. } => "end",
            Message::Done { .. } => "done",
            Message::Wait => "wait",
            Message::Failed(_) => "failed",
        }
    }
}

/// Why a transfer ends early, which decides what becomes of the temporary and of the stream.
#[derive(Debug)]
pub(super) enum Failure {
    /// The stream broke: the temporary stays, so that a retry resumes.
    Cut(Error),
    /// The other side gave up and said why: the temporary goes.
    Theirs(Error),
    /// This side gave up: the temporary goes, and the other side is told.
    Ours(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Ours(error)
    }
}

impl Failure {
    pub(super) fn cut(reason: impl std::fmt::Display) -> Self {
        Failure::Cut(Error::new(
            ErrorCode::ConnectionFailed,
            format!("the stream of the file transfer broke: {reason}; the same transfer can be resumed"),
        ))
    }

    pub(super) fn protocol(what: impl Into<String>) -> Self {
        Failure::Ours(Error::new(ErrorCode::ProtocolError, what))
    }

    pub(super) fn unexpected(message: &Message, wanted: &str) -> Self {
        Self::protocol(format!("the other side sent `{}` instead of {wanted}", message.name()))
    }

    /// The same failure, marked as one whose transfer may have been completed.
    pub(super) fn after_sending(self) -> Self {
        match self {
            Failure::Cut(error) => Failure::Cut(error.after_sending()),
            other => other,
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Failure::Cut(error) | Failure::Theirs(error) | Failure::Ours(error) => error,
        }
    }
}

/// What the other side sent.
#[derive(Debug)]
pub(super) enum Frame {
    /// The buffer holds the next bytes of the file.
    Data,
    /// A message, neither `Wait` nor `Failed`.
    Message(Message),
}

/// Both directions of the stream.
pub(super) struct Wire<S> {
    pub(super) reader: Reader<S>,
    pub(super) writer: Writer<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Reader { stream: BufReader::with_capacity(READ_BUFFER_BYTES, reader), scratch: Vec::new() },
            writer: Writer { stream: writer, scratch: Vec::new() },
        }
    }

    /// Ends the stream: the other side is told of our failure and has a moment to hear it.
    pub(super) async fn close<T>(mut self, result: Result<T, Failure>) -> Result<T> {
        let telling = match &result {
            Err(Failure::Ours(error)) => Some(shortened(error)),
            _ => None,
        };
        let told = telling.is_some();
        // Nobody is helped by an error of the farewell: the outcome stands.
        let _ = timeout(CLOSING, async {
            if let Some(error) = telling {
                self.writer.message(&Message::Failed(error)).await.ok()?;
            }
            self.writer.stream.shutdown().await.ok()?;
            if told {
                // On TCP, unread data at the close would destroy the message on its way.
                tokio::io::copy_buf(&mut self.reader.stream, &mut tokio::io::sink()).await.ok()?;
            }
            Some(())
        })
        .await;
        result.map_err(Failure::into_error)
    }
}

/// The incoming half.
pub(super) struct Reader<S> {
    stream: BufReader<ReadHalf<S>>,
    scratch: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    /// The next frame; of data the bytes are in `data`, and when the stream breaks inside of data, those that came.
    pub(super) async fn frame(&mut self, data: &mut Vec<u8>) -> Result<Frame, Failure> {
        data.clear();
        loop {
            let mut header = [0; HEADER_BYTES];
            self.stream.read_exact(&mut header).await.map_err(Failure::cut)?;
            let [kind, length @ ..] = header;
            let length = u32::from_be_bytes(length) as usize;
            match kind {
                KIND_DATA if (1..=DATA_BYTES_MAX).contains(&length) => {
                    fill(&mut self.stream, data, length).await?;
                    return Ok(Frame::Data);
                }
                KIND_MESSAGE if length <= MESSAGE_BYTES_MAX => {
                    self.scratch.clear();
                    fill(&mut self.stream, &mut self.scratch, length).await?;
                    match decode(&self.scratch)? {
                        Message::Wait => continue,
                        Message::Failed(error) => return Err(Failure::Theirs(error)),
                        message => return Ok(Frame::Message(message)),
                    }
                }
                _ => {
                    return Err(Failure::protocol(format!("no frame of a file transfer has kind {kind} and {length} bytes")));
                }
            }
        }
    }

    /// The next message, where data would be wrong.
    pub(super) async fn message(&mut self) -> Result<Message, Failure> {
        match self.frame(&mut Vec::new()).await? {
            Frame::Message(message) => Ok(message),
            Frame::Data => Err(Failure::protocol("the other side sent data before its time")),
        }
    }
}

async fn fill<R: AsyncRead + Unpin>(stream: &mut R, buffer: &mut Vec<u8>, length: usize) -> Result<(), Failure> {
    buffer.reserve(length);
    let mut body = stream.take(length as u64);
    while buffer.len() < length {
        if body.read_buf(buffer).await.map_err(Failure::cut)? == 0 {
            return Err(Failure::cut("it ended inside of a frame"));
        }
    }
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<Message, Failure> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(DEPTH_MAX);
    Message::deserialize(&mut deserializer).map_err(|error| Failure::protocol(format!("unreadable message of a file transfer: {error}")))
}

/// The outgoing half.
pub(super) struct Writer<S> {
    stream: WriteHalf<S>,
    scratch: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> Writer<S> {
    /// Sends one message and everything before it.
    pub(super) async fn message(&mut self, message: &Message) -> Result<(), Failure> {
        encode(message, &mut self.scratch)?;
        self.stream.write_all(&self.scratch).await.map_err(Failure::cut)?;
        self.stream.flush().await.map_err(Failure::cut)
    }

    /// Sends data that stands in `buffer` behind [`HEADER_BYTES`] free bytes.
    pub(super) async fn data(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        let length = (buffer.len() - HEADER_BYTES) as u32;
        buffer[0] = KIND_DATA;
        buffer[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(buffer).await.map_err(Failure::cut)
    }

    /// Waits for work of this side, telling the other that it goes on.
    ///
    /// The work is awaited to its end also when the stream breaks: a file that is complete shall be put in place.
    pub(super) async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = timeout(WAIT_EVERY, &mut work).await {
                return done;
            }
            if self.message(&Message::Wait).await.is_err() {
                return work.await;
            }
        }
    }
}

fn encode(message: &Message, buffer: &mut Vec<u8>) -> Result<(), Failure> {
    buffer.clear();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    rmp_serde::encode::write_named(buffer, message).map_err(|error| Error::new(ErrorCode::Internal, format!("cannot encode: {error}")))?;
    let length = buffer.len() - HEADER_BYTES;
    if length > MESSAGE_BYTES_MAX {
        let what = format!("the message `{}` has {length} bytes", message.name());
        return Err(Error::new(ErrorCode::PayloadTooLarge, what).into());
    }
    buffer[0] = KIND_MESSAGE;
    buffer[1..HEADER_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(())
}

/// The error with a text that surely fits a message.
fn shortened(error: &Error) -> Error {
    let text = error.message();
    let end = text.floor_char_boundary(ERROR_TEXT_BYTES_MAX);
    let short = Error::new(error.code().clone(), &text[..end]);
    if error.may_have_run() { short.after_sending() } else { short }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn version_1_has_these_bytes() {
        let mut bytes = Vec::new();
        let resume = Message::Resume { offset: 7, xxh3: Checksum::of(b"") };
        encode(&resume, &mut bytes).expect("encodes");
        assert_eq!(hex(&bytes), "000000002881a6726573756d6582a66f666673657407a478786833c41099aa06d3014798d86001c324468d497f");
        encode(&Message::Wait, &mut bytes).expect("encodes");
        assert_eq!(hex(&bytes), "0000000005a477616974");
    }

    #[tokio::test]
    async fn frame_beyond_the_limits_is_refused_before_its_body() {
        for header in [[0, 0, 0, 16, 1], [1, 0, 16, 0, 1], [1, 0, 0, 0, 0], [2, 0, 0, 0, 1]] {
            let (mut near, far) = tokio::io::duplex(64);
            near.write_all(&header).await.expect("there is room");
            let mut data = Vec::new();
            let outcome = Wire::new(far).reader.frame(&mut data).await;
            let Err(Failure::Ours(error)) = outcome else { panic!("{header:?}: {outcome:?}") };
            assert_eq!(error.code(), &ErrorCode::ProtocolError);
            assert_eq!(data.capacity(), 0);
        }
    }

    #[test]
    fn longest_error_fits_a_message() {
        let long = Error::class(&"c".repeat(200), "é".repeat(40_000));
        encode(&Message::Failed(shortened(&long)), &mut Vec::new()).expect("fits");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn message_returns_from_its_bytes(id: u128, path in ".{0,200}", size: u64, mode: u32, seconds: i64) {
            let modified = Some(Modified { seconds, nanos: 1 });
            let message = Message::Send {
                version: VERSION,
                id: TransferId::from_u128(id),
                path,
                offer: Offer { size, mode, modified },
            };
            let mut bytes = Vec::new();
            encode(&message, &mut bytes).expect("encodes");
            prop_assert_eq!(decode(&bytes[HEADER_BYTES..]).expect("decodes"), message);
        }
    }
}
