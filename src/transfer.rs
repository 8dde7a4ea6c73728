//! Files over streams: send, fetch, resume, confined to a root.
//!
//! One regular file crosses one bidirectional stream of bytes. It either appears under its final name, whole, verified
//! and synced, or not at all; and after a broken link the same transfer goes on where it stopped. Both directions are one protocol between a
//! *source* that reads and a *sink* that writes; only the opening differs.
//!
//! ```text
//!  send: client = source, worker = sink         fetch: client = sink, worker = source
//!
//!  client ── Send{id, path, offer} ──► worker   client ── Fetch{id, path} ──► worker
//!                                               client ◄── Offer ──────────── worker
//!
//!  source ◄── Resume{offset, xxh3} ── sink      what the temporary of this transfer holds already
//!  source ─── Start{offset} ────────► sink      that offset, if the source's own prefix has this hash, or else 0
//!  source ─── data … ───────────────► sink      a temporary beside the file
//!  source ─── End{size, xxh3} ──────► sink      after a look whether the file changed meanwhile
//!  source ◄── Done{bytes, xxh3} ───── sink      verified, mode and time set, fsync, rename, fsync of the directory
//! ```
//!
//! At any moment either side may say `Failed{error}`, and one that hashes or syncs for long says `Wait`. The frames are described
//! in `transfer/wire.rs`.
//!
//! What becomes of the temporary (`.nkcluster-partial-…`, mode 0600): it stays only if the stream breaks or the future is dropped, at most 24 hours (the
//! next transfer into the directory removes it); every other failure removes it. Two attempts of one transfer
//! exclude each other by a lock; the later waits two seconds for the earlier to notice its broken stream, then it is `busy`.
//!
//! The reading, hashing and writing of files runs on the blocking pool, one chunk ahead of the stream. There is no
//! timeout here except for farewells: the caller, who owns the stream, knows what silence means.
//!
//! Not kept: owners, extended attributes, holes. Symbolic links inside of the root are followed when reading; a link
//! is never written through.

mod client;
mod exchange;
mod partial;
mod path;
mod root;
mod source;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteArray;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Error, ErrorCode, Result};

pub use self::client::FileCalls;
pub use self::path::{PATH_BYTES_MAX, RESERVED_PREFIX, RelPath};
pub use self::root::FileRoot;

use self::root::Place;
use self::source::Source;
use self::wire::{Failure, Message, VERSION, Wire};

/// How far a transfer is, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that need not be transferred any more, those of an earlier attempt included.
    pub offset: u64,
    /// Length of the file.
    pub total: u64,
}

/// A file that was sent or fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    /// Length of the file.
    pub bytes: u64,
    /// XXH3-128 of the file, computed on both sides.
    pub xxh3: Checksum,
    /// Bytes that an earlier attempt had brought already.
    pub resumed_from: u64,
}

/// What [`send_file`] did.
pub type Sent = Transferred;

/// What [`fetch_file`] did.
pub type Fetched = Transferred;

/// What [`handle`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A file came and is in place.
    Received {
        /// Its path below the root.
        path: RelPath,
        /// What was transferred.
        file: Transferred,
    },
    /// A file was read, and the client has it.
    Served {
        /// Its path below the root.
        path: RelPath,
        /// What was transferred.
        file: Transferred,
    },
}

/// Sends a local file to a worker, where [`handle`] receives it.
///
/// The file at `remote` is replaced in one step, with the permissions and the time of `local`; its directory is made.
/// A retry with the same `id` goes on where a broken attempt stopped. `progress` is called on this task at the start
/// and after every chunk.
///
/// # Errors
/// `invalid_file`: `local` is no regular file or changed meanwhile, or something else than a regular file is at
/// `remote`. `invalid_path`: `remote` leads out of the worker's root. `write_error`: the worker cannot write, with the
/// reason. `checksum_mismatch`: damaged on the way. `busy`: an earlier attempt is still running there.
/// `connection_failed`: the stream broke; if [`Error::may_have_run`], the file may be in place already.
///
/// # Cancellation
/// Dropping the future breaks the stream; on the worker stays the temporary, for a retry.
pub async fn send_file<S>(stream: S, local: &Path, remote: &RelPath, id: TransferId, progress: impl Fn(Progress)) -> Result<Sent>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let local = local.to_owned();
    let source = blocking(move || Source::local(&local)).await?;
    let opening = Message::Send { version: VERSION, id, path: remote.to_string(), offer: source.offer() };
    let mut wire = Wire::new(stream);
    let result = async {
        wire.writer.message(&opening).await?;
        exchange::push(&mut wire, source, progress).await
    }
    .await;
    wire.close(result).await
}

/// Fetches a file of a worker, where [`handle`] serves it.
///
/// The file at `local`, whose directory must exist, is replaced in one step; a link leads to its target. Otherwise
/// this is [`send_file`] the other way round.
///
/// # Errors
/// `invalid_file`: there is no such regular file, it changed meanwhile, or something else than a regular file is at
/// `local`. `invalid_path`: `remote` leads out of the root. `write_error`: `local` cannot be written, with the reason.
/// `checksum_mismatch`, `busy`, `connection_failed` as above.
///
/// # Cancellation
/// Dropping the future leaves at most the temporary beside `local`, for a retry.
pub async fn fetch_file<S>(stream: S, remote: &RelPath, local: &Path, id: TransferId, progress: impl Fn(Progress)) -> Result<Fetched>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let local = local.to_owned();
    let place = blocking(move || Place::local(&local)).await?;
    let mut wire = Wire::new(stream);
    let result = async {
        let opening = Message::Fetch { version: VERSION, id, path: remote.to_string() };
        wire.writer.message(&opening).await?;
        let offer = match wire.reader.message().await? {
            Message::Offer(offer) => offer,
            other => return Err(Failure::unexpected(&other, "an offer")),
        };
        exchange::pull(&mut wire, place, id, offer, progress).await
    }
    .await;
    wire.close(result).await
}

/// The worker's side of one stream: reads the opening, then receives or serves the file.
///
/// # Errors
/// Those of [`send_file`] and [`fetch_file`]; the client has been told, unless its stream broke.
///
/// # Cancellation
/// Dropping the future leaves at most the temporary of an incoming file.
pub async fn handle<S>(stream: S, root: &FileRoot) -> Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = Wire::new(stream);
    let result = answer(&mut wire, root).await;
    wire.close(result).await
}

async fn answer<S>(wire: &mut Wire<S>, root: &FileRoot) -> Result<Outcome, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let opening = wire.reader.message().await?;
    if let Message::Send { version, .. } | Message::Fetch { version, .. } = &opening
        && *version != VERSION
    {
        let text = format!("file transfer version {version} is not known here, {VERSION} is");
        return Err(Error::new(ErrorCode::UnsupportedVersion, text).into());
    }
    let root = root.clone();
    match opening {
        Message::Send { id, path, offer, .. } => {
            let path = RelPath::parse(&path)?;
            let target = path.clone();
            let place = blocking(move || root.place(&target)).await?;
            let file = exchange::pull(wire, place, id, offer, |_| ()).await?;
            Ok(Outcome::Received { path, file })
        }
        Message::Fetch { path, .. } => {
            let path = RelPath::parse(&path)?;
            let target = path.clone();
            let source = blocking(move || Source::beneath(&root, &target)).await?;
            wire.writer.message(&Message::Offer(source.offer())).await?;
            let file = exchange::push(wire, source, |_| ()).await?;
            Ok(Outcome::Served { path, file })
        }
        other => Err(Failure::unexpected(&other, "an opening")),
    }
}

/// Identity of a transfer over its retries.
///
/// A retry under the same id and path finds what the broken attempt left. It is no secret and needs no trust: the
/// prefix is compared by content. Two different transfers under one id to one path exclude each other while they run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(u128);

impl TransferId {
    /// A new transfer, which only the holder of this value can resume.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The id that everybody derives from the same parts, such as user, host, absolute local path and remote path:
    /// so that a command that is run again resumes.
    pub fn derived<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Xxh3::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(hasher.digest128())
    }

    /// The id with this number.
    pub fn from_u128(id: u128) -> Self {
        Self(id)
    }

    /// The number.
    pub fn as_u128(self) -> u128 {
        self.0
    }
}

/// XXH3-128 of some content, seed 0. It finds damage, not malice: that is for the link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(u128);

impl Checksum {
    /// The checksum of these bytes.
    pub fn of(content: &[u8]) -> Self {
        Self(xxh3_128(content))
    }

    /// The checksum with this number.
    pub fn from_u128(xxh3: u128) -> Self {
        Self(xxh3)
    }

    /// The number; its big-endian bytes are the canonical form of XXH3-128.
    pub fn as_u128(self) -> u128 {
        self.0
    }
}

/// Both are 16 bytes in binary formats, and 32 hexadecimal digits in those for people.
macro_rules! hexadecimal {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
                match u128::from_str_radix(text, 16) {
                    Ok(number) if digits => Ok(Self(number)),
                    _ => Err(Error::new(ErrorCode::SyntaxError, concat!($what, " has 32 hexadecimal digits"))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0.to_be_bytes())
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    let bytes = ByteArray::<16>::deserialize(deserializer)?;
                    Ok(Self(u128::from_be_bytes(bytes.into_array())))
                }
            }
        }
    };
}

hexadecimal!(TransferId, "a transfer id");
hexadecimal!(Checksum, "a checksum");

/// Runs file I/O where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(work)).await?
}

/// The result of work on the blocking pool.
async fn joined<T>(work: JoinHandle<T>) -> Result<T> {
    work.await.map_err(|error| match error.is_panic() {
        true => Error::new(ErrorCode::Internal, "the file worker of a transfer panicked"),
        false => Error::new(ErrorCode::ShuttingDown, "the runtime of the transfer is stopping"),
    })
}
