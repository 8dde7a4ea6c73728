//! The common part of send and fetch: a source pushes, a sink pulls.
//!
//! Both keep one chunk on the blocking pool and one on the stream, so that disk and network work at the same time.

use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, ErrorCode, Result};

use super::partial::Partial;
use super::root::Place;
use super::source::Source;
use super::wire::{Failure, Frame, Message, Offer, Wire};
use super::{Progress, TransferId, Transferred, blocking, joined};

/// How long the last word of a sink is awaited after the stream broke.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How long a new attempt waits for an earlier one to notice that its stream broke.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The source's part, after the offer.
pub(super) async fn push<S>(wire: &mut Wire<S>, mut source: Source, progress: impl Fn(Progress)) -> Result<Transferred, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let total = source.size();
    let (offset, xxh3) = match wire.reader.message().await? {
        Message::Resume { offset, xxh3 } => (offset, xxh3),
        other => return Err(Failure::unexpected(&other, "a resume offset")),
    };
    let skipping = blocking(move || source.skip(offset, xxh3).map(|start| (source, start)));
    let (source, start) = wire.writer.wait_for(skipping).await?;
    wire.writer.message(&Message::Start { offset: start }).await?;
    progress(Progress { offset: start, total });

    // The sink speaks next when the file is in place, or earlier when it gives up.
    let Wire { reader, writer } = wire;
    let mut answer = pin!(reader.message());
    let mut offset = start;
    let mut reading = read_ahead(source, Vec::new());
    let mut spare = Vec::new();
    let source = loop {
        let (source, mut chunk) = joined(reading).await??;
        let bytes = chunk.len() - super::wire::HEADER_BYTES;
        if bytes == 0 {
            break source;
        }
        reading = read_ahead(source, spare);
        let written = tokio::select! {
            biased;
            early = &mut answer => return Err(Failure::unexpected(&early?, "nothing, before the end of the data")),
            written = writer.data(&mut chunk) => written,
        };
        if let Err(cut) = written {
            // A sink that gave up may have closed before its reason was read.
            return Err(match timeout(LAST_WORD, &mut answer).await {
                Ok(Err(said @ Failure::Theirs(_))) => said,
                _ => cut,
            });
        }
        offset += bytes as u64;
        progress(Progress { offset, total });
        spare = chunk;
    };

    let xxh3 = source.checksum();
    blocking(move || source.check_unchanged()).await?;
    let end = writer.message(&Message::End { size: offset, xxh3 }).await;
    match answer.await.map_err(Failure::after_sending)? {
        Message::Done { bytes, xxh3: theirs } if (bytes, theirs) == (offset, xxh3) => Ok(Transferred { bytes, xxh3, resumed_from: start }),
        Message::Done { bytes, xxh3: theirs } => {
            let text = format!("the other side kept {bytes} bytes with xxh3 {theirs} instead of {offset} with {xxh3}");
            Err(Error::new(ErrorCode::ChecksumMismatch, text).after_sending().into())
        }
        other => match end {
            Ok(()) => Err(Failure::unexpected(&other, "its result")),
            Err(cut) => Err(cut.after_sending()),
        },
    }
}

fn read_ahead(mut source: Source, mut buffer: Vec<u8>) -> JoinHandle<Result<(Source, Vec<u8>)>> {
    spawn_blocking(move || source.chunk(&mut buffer).map(|()| (source, buffer)))
}

/// The sink's part, after the offer.
pub(super) async fn pull<S>(
    wire: &mut Wire<S>,
    place: Place,
    id: TransferId,
    offer: Offer,
    progress: impl Fn(Progress),
) -> Result<Transferred, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut partial = open_partial(place, id).await?;
    let total = offer.size;
    let hashing = blocking(move || partial.prefix(total).map(|()| partial));
    let partial = wire.writer.wait_for(hashing).await?;
    let have = partial.offset();
    let resume = Message::Resume { offset: have, xxh3: partial.checksum() };
    wire.writer.message(&resume).await?;
    let start = match wire.reader.message().await {
        Ok(Message::Start { offset }) if offset == 0 || offset == have => offset,
        other => {
            let failure = match other {
                Ok(Message::Start { offset }) => Failure::protocol(format!("the data starts at {offset} instead of 0 or {have}")),
                Ok(other) => Failure::unexpected(&other, "its start"),
                Err(failure) => failure,
            };
            return Err(give_up(partial, failure).await);
        }
    };
    progress(Progress { offset: start, total });

    let mut received = start;
    let mut chunk = Vec::new();
    let mut writing = spawn_blocking(move || Written::from(partial, Vec::new(), |p, _| p.begin_at(start)));
    let (partial, end) = loop {
        let frame = wire.reader.frame(&mut chunk).await;
        let Written { partial, spare, result } = joined(writing).await?;
        if let Err(error) = result {
            return Err(give_up(partial, error.into()).await);
        }
        let room = total.saturating_sub(received);
        let bytes = chunk.len() as u64;
        match frame {
            Ok(Frame::Data) if bytes <= room => {}
            Ok(Frame::Data) => {
                let failure = Failure::protocol(format!("more than the {total} bytes of the offer came"));
                return Err(give_up(partial, failure).await);
            }
            Ok(Frame::Message(Message::End { size, xxh3 })) => break (partial, (size, xxh3)),
            Ok(Frame::Message(other)) => {
                let failure = Failure::unexpected(&other, "data or the end of it");
                return Err(give_up(partial, failure).await);
            }
            // Also the part of a frame is kept, so that every attempt gets further.
            Err(cut @ Failure::Cut(_)) if bytes > 0 && bytes <= room => {
                let rest = spawn_blocking(move || Written::from(partial, chunk, Partial::write));
                let Written { partial, result, .. } = joined(rest).await?;
                return Err(match result {
                    Ok(()) => cut,
                    Err(error) => give_up(partial, error.into()).await,
                });
            }
            Err(failure) => return Err(give_up(partial, failure).await),
        }
        received += bytes;
        let full = std::mem::replace(&mut chunk, spare);
        writing = spawn_blocking(move || Written::from(partial, full, Partial::write));
        progress(Progress { offset: received, total });
    };

    let (size, xxh3) = end;
    let committing = blocking(move || partial.commit(&offer, size, xxh3));
    wire.writer.wait_for(committing).await?;
    // The file is in place, whether the source hears of it or not.
    let done = wire.writer.message(&Message::Done { bytes: size, xxh3 }).await;
    if let Err(failure) = done {
        tracing::debug!(error = %failure.into_error(), "the source was not told that its file is in place");
    }
    Ok(Transferred { bytes: size, xxh3, resumed_from: start })
}

/// The temporary and the buffer, back from the blocking pool.
struct Written {
    partial: Partial,
    spare: Vec<u8>,
    result: Result<()>,
}

impl Written {
    fn from(mut partial: Partial, bytes: Vec<u8>, work: impl FnOnce(&mut Partial, &[u8]) -> Result<()>) -> Self {
        let result = work(&mut partial, &bytes);
        Self { partial, spare: bytes, result }
    }
}

async fn open_partial(mut place: Place, id: TransferId) -> Result<Partial> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        // The place travels to the blocking pool and, if the lock was taken, back.
        let opening = spawn_blocking(move || Partial::open(place, id));
        match joined(opening).await? {
            Ok(partial) => return Ok(partial),
            Err((back, error)) => {
                if error.code() != &ErrorCode::Busy || Instant::now() >= deadline {
                    return Err(error);
                }
                place = back;
            }
        }
        sleep(LOCK_POLL).await;
    }
}

/// Removes the temporary, unless the stream just broke.
async fn give_up(partial: Partial, failure: Failure) -> Failure {
    if !matches!(failure, Failure::Cut(_)) {
        // A panic of the pool is no better reason than the one at hand.
        let _ = spawn_blocking(move || partial.discard()).await;
    }
    failure
}
