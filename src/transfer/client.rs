//! Files to and from a worker, through a [`Cluster`].

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::{Fetched, Progress, RelPath, Sent, TransferId, fetch_file, send_file};
use crate::cluster::{CallOptions, Cluster, CoreRequest, FileRequest, PendingCall, core_class};
use crate::connection::ByteStream;
use crate::error::{Error, ErrorCode, Result};
use crate::types::{NodeId, Payload};

/// A transfer may take as long as it moves: its call is bounded by silence, not by this.
const CALL_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the stream may say nothing after its call was answered.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Transfers as an extension of [`Cluster`].
pub trait FileCalls {
    /// Sends a local file to a path below the worker's file root.
    ///
    /// The same `id` resumes where an earlier attempt was cut. It ends with `timeout` when nothing moves for `silence`.
    ///
    /// # Errors
    /// Those of [`send_file`], and of calls.
    fn send_file(
        &self,
        node: &NodeId,
        local: &Path,
        remote: &RelPath,
        id: TransferId,
        silence: Duration,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> impl Future<Output = Result<Sent>> + Send;

    /// Fetches a file from below the worker's file root.
    ///
    /// # Errors
    /// Those of [`fetch_file`], and of calls.
    fn fetch_file(
        &self,
        node: &NodeId,
        remote: &RelPath,
        local: &Path,
        id: TransferId,
        silence: Duration,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> impl Future<Output = Result<Fetched>> + Send;
}

impl FileCalls for Cluster {
    async fn send_file(
        &self,
        node: &NodeId,
        local: &Path,
        remote: &RelPath,
        id: TransferId,
        silence: Duration,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Sent> {
        let (call, stream, watch) = open(self, node).await?;
        settle(send_file(stream, local, remote, id, progress), call, watch, silence).await
    }

    async fn fetch_file(
        &self,
        node: &NodeId,
        remote: &RelPath,
        local: &Path,
        id: TransferId,
        silence: Duration,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Fetched> {
        let (call, stream, watch) = open(self, node).await?;
        settle(fetch_file(stream, remote, local, id, progress), call, watch, silence).await
    }
}

async fn open(cluster: &Cluster, node: &NodeId) -> Result<(PendingCall, Watched, Arc<Moves>)> {
    let request = Payload::encode(&CoreRequest::File(FileRequest::Transfer))?;
    let (call, stream) = cluster.request_with_stream(node, &core_class(), request, CallOptions::timeout(CALL_TIMEOUT)).await?;
    let moves = Arc::new(Moves { start: Instant::now(), last_ms: AtomicU64::new(0) });
    Ok((call, Watched { stream, moves: Arc::clone(&moves) }, moves))
}

/// Runs a transfer beside its call: whichever knows best why it failed is told.
async fn settle<T>(transfer: impl Future<Output = Result<T>>, call: PendingCall, moves: Arc<Moves>, silence: Duration) -> Result<T> {
    let answered = call.wait();
    tokio::pin!(transfer, answered);
    let mut answer = None;
    loop {
        let patience = if answer.is_some() { silence.min(LAST_WORDS) } else { silence };
        tokio::select! {
            biased;
            result = &mut transfer => return match (result, answer) {
                // A stream that broke does not know why; its call does, or will in a moment.
                (Err(broken), None) if *broken.code() == ErrorCode::ConnectionFailed => {
                    match tokio::time::timeout(LAST_WORDS, answered).await {
                        Ok(Err(refused)) => Err(refused),
                        _ => Err(broken),
                    }
                }
                (Err(broken), Some(Err(refused))) if *broken.code() == ErrorCode::ConnectionFailed => Err(refused),
                (result, _) => result,
            },
            // The worker has ended the call: its stream follows, with better words if it has any.
            answered = &mut answered, if answer.is_none() => {
                moves.moved();
                answer = Some(answered);
            }
            () = moves.silent(patience) => {
                let late = Error::new(ErrorCode::Timeout, format!("the transfer has not moved for {patience:?}")).after_sending();
                return Err(answer.and_then(Result::err).unwrap_or(late));
            }
        }
    }
}

/// When bytes last moved.
struct Moves {
    start: Instant,
    last_ms: AtomicU64,
}

impl Moves {
    fn moved(&self) {
        self.last_ms.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn silent(&self, silence: Duration) {
        loop {
            let until = self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + silence;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A stream that notes when bytes move.
struct Watched {
    stream: ByteStream,
    moves: Arc<Moves>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.moves.moved();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if written.is_ready() {
            self.moves.moved();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
