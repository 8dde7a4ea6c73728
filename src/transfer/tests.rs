//! Both ends over one pipe in memory, which can be cut, and can damage what it carries.

mod confine;
mod faults;
mod pipe;

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::FlockOperation;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::path::RESERVED_PREFIX;
use super::wire::{Frame, Modified, Offer};
use super::*;

const ID: TransferId = TransferId(7);

/// Smaller than a chunk, so that both sides work at the same time.
const PIPE_BYTES: usize = 64 * 1024;

/// A worker's root, a directory of the client, and one outside of both.
struct Site {
    dir: TempDir,
    root: FileRoot,
}

impl Site {
    fn new() -> Self {
        // Memory, where there is some: the tests sync a lot.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a directory");
        let root = FileRoot::open(dir.path().join("root")).expect("a root");
        fs::create_dir(dir.path().join("local")).expect("made");
        Self { dir, root }
    }

    fn local(&self, name: &str) -> PathBuf {
        self.dir.path().join("local").join(name)
    }

    fn remote(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn local_file(&self, content: &[u8]) -> PathBuf {
        let path = self.local("file");
        fs::write(&path, content).expect("written");
        path
    }

    async fn send(&self, local: &Path, remote: &str) -> (Result<Sent>, Result<Outcome>) {
        let (near, far) = duplex(PIPE_BYTES);
        both(send_file(near, local, &rel(remote), ID, |_| ()), handle(far, &self.root)).await
    }

    async fn fetch(&self, remote: &str, local: &Path) -> (Result<Fetched>, Result<Outcome>) {
        let (near, far) = duplex(PIPE_BYTES);
        both(fetch_file(near, &rel(remote), local, ID, |_| ()), handle(far, &self.root)).await
    }
}

/// Both futures to their ends.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    tokio::join!(a, b)
}

fn rel(path: &str) -> RelPath {
    RelPath::parse(path).expect("a valid path")
}

fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("listed");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("listed").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Bytes in the only temporary of the directory; `None` if there is none.
fn partial(directory: &Path) -> Option<u64> {
    let all = names(directory);
    let mut found = all.iter().filter(|name| name.starts_with(RESERVED_PREFIX));
    let first = found.next()?;
    assert_eq!(found.next(), None, "one transfer has one temporary");
    Some(fs::metadata(directory.join(first)).expect("there").len())
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: &Result<T>) -> &ErrorCode {
    result.as_ref().expect_err("must fail").code()
}
#[tokio::test]
async fn files_of_every_size_arrive_in_a_directory_that_is_made() {
    let site = Site::new();
    for size in [0, 1, 500, 4096, 512 * 1024, 2 * 1024 * 1024, 20 * 1024 * 1024 + 3] {
        let bytes = content(size);
        let local = site.local_file(&bytes);
        let remote = format!("made/for/{size}/copy");
        let expected = Transferred { bytes: size as u64, xxh3: Checksum::of(&bytes), resumed_from: 0 };

        let (sent, received) = site.send(&local, &remote).await;
        assert_eq!(sent.expect("sent"), expected);
        assert_eq!(received.expect("received"), Outcome::Received { path: rel(&remote), file: expected });
        // The copy, not the source (checklist A14-15).
        assert!(fs::read(site.remote(&remote)).expect("there") == bytes, "{size}");
        assert_eq!(names(&site.remote(&format!("made/for/{size}"))), ["copy"]);

        let back = site.local("back");
        let (fetched, served) = site.fetch(&remote, &back).await;
        assert_eq!(fetched.expect("fetched"), expected);
        assert_eq!(served.expect("served"), Outcome::Served { path: rel(&remote), file: expected });
        assert!(fs::read(back).expect("there") == bytes, "{size}");
        assert_eq!(names(&site.dir.path().join("local")), ["back", "file"]);
    }
}

#[tokio::test]
async fn mode_and_time_are_carried() {
    let site = Site::new();
    let local = site.local_file(b"#!/bin/sh\n");
    fs::set_permissions(&local, fs::Permissions::from_mode(0o4751)).expect("set");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    fs::File::options().append(true).open(&local).and_then(|file| file.set_modified(time)).expect("set");

    site.send(&local, "copy").await.0.expect("sent");
    let back = site.local("back");
    site.fetch("copy", &back).await.0.expect("fetched");

    for path in [site.remote("copy"), back] {
        let found = fs::metadata(path).expect("there");
        assert_eq!(found.mode() & 0o7777, 0o751);
        assert_eq!(found.modified().expect("known"), time);
    }
}

#[tokio::test]
async fn progress_grows_from_the_start_to_the_total() {
    let site = Site::new();
    let total = 3 * 1024 * 1024 + 1;
    let local = site.local_file(&content(total as usize));
    let last = Cell::new(None);
    let watch = |now: Progress| {
        assert_eq!(now.total, total);
        assert!(last.get().is_none_or(|before| before < now.offset));
        last.set(Some(now.offset));
    };

    let (near, far) = duplex(PIPE_BYTES);
    let (sent, _) = both(send_file(near, &local, &rel("copy"), ID, watch), handle(far, &site.root)).await;
    sent.expect("sent");
    assert_eq!(last.take(), Some(total));

    let (near, far) = duplex(PIPE_BYTES);
    let back = site.local("back");
    let (fetched, _) = both(fetch_file(near, &rel("copy"), &back, ID, watch), handle(far, &site.root)).await;
    fetched.expect("fetched");
    assert_eq!(last.take(), Some(total));
}

#[tokio::test]
async fn another_version_is_refused_by_name() {
    let site = Site::new();
    let (near, far) = duplex(PIPE_BYTES);
    let mut wire = Wire::new(near);
    let client = async {
        wire.writer.message(&Message::Fetch { version: 99, id: ID, path: "x".into() }).await.expect("sent");
        let told = wire.reader.message().await;
        drop(wire);
        told
    };
    let (told, outcome) = tokio::join!(client, handle(far, &site.root));
    assert_eq!(code(&told.map_err(Failure::into_error)), &ErrorCode::UnsupportedVersion);
    assert_eq!(code(&outcome), &ErrorCode::UnsupportedVersion);
}

#[tokio::test(start_paused = true)]
async fn long_work_is_announced_every_five_seconds() {
    let (near, mut far) = duplex(PIPE_BYTES);
    let mut wire = Wire::new(near);
    wire.writer.wait_for(tokio::time::sleep(Duration::from_secs(12))).await;
    wire.writer.message(&Message::Start { offset: 0 }).await.expect("sent");
    drop(wire);
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.expect("read");
    assert_eq!(bytes.windows(5).filter(|window| window == b"\xa4wait").count(), 2);

    // The reader passes over them.
    let (mut near, far) = duplex(PIPE_BYTES);
    near.write_all(&bytes).await.expect("written");
    let frame = Wire::new(far).reader.frame(&mut Vec::new()).await.expect("a frame");
    assert!(matches!(frame, Frame::Message(Message::Start { offset: 0 })));
}

#[tokio::test]
async fn futures_can_be_spawned() {
    let site = Site::new();
    let local = site.local_file(b"x");
    let root = site.root.clone();
    let (near, far) = duplex(PIPE_BYTES);
    let worker = tokio::spawn(async move { handle(far, &root).await });
    let client = tokio::spawn(async move { send_file(near, &local, &rel("copy"), ID, |_| ()).await });
    client.await.expect("ran").expect("sent");
    worker.await.expect("ran").expect("received");

    let (near, far) = duplex(PIPE_BYTES);
    let (root, back) = (site.root.clone(), site.local("back"));
    let worker = tokio::spawn(async move { handle(far, &root).await });
    let client = tokio::spawn(async move { fetch_file(near, &rel("copy"), &back, ID, |_| ()).await });
    client.await.expect("ran").expect("fetched");
    worker.await.expect("ran").expect("served");
}

#[test]
fn ids_and_checksums_return_from_their_text() {
    let id = TransferId::derived([b"a".as_slice(), b"bc"]);
    assert_ne!(id, TransferId::derived([b"ab".as_slice(), b"c"]));
    assert_ne!(TransferId::random(), TransferId::random());
    assert_eq!(id.to_string().parse::<TransferId>().expect("parses"), id);
    assert_eq!(Checksum::of(b"").to_string(), "99aa06d3014798d86001c324468d497f");
    let json = serde_json::to_string(&Checksum::of(b"x")).expect("encodes");
    assert_eq!(serde_json::from_str::<Checksum>(&json).expect("decodes"), Checksum::of(b"x"));
    for wrong in ["", "+9aa06d3014798d86001c324468d497f", "99aa06d3014798d86001c324468d497", "é"] {
        assert_eq!(code(&wrong.parse::<Checksum>()), &ErrorCode::SyntaxError);
    }
}

/// What a hostile or broken client may send after its opening.
fn hostile_frames() -> impl Strategy<Value = Vec<u8>> {
    let junk = proptest::collection::vec(any::<u8>(), 0..64);
    let frame = (0..3_u8, 0..80_u32, junk).prop_map(|(kind, length, body)| {
        let mut frame = vec![kind];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        frame
    });
    proptest::collection::vec(frame, 0..6).prop_map(|frames| frames.concat())
}

fn run_handle(opening: Option<&Message>, junk: &[u8]) -> (Result<Outcome>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let site = Site::new();
        let (near, far) = duplex(PIPE_BYTES);
        let client = async {
            let (mut reader, mut writer) = tokio::io::split(near);
            let write = async {
                let mut bytes = Vec::new();
                if let Some(opening) = opening {
                    let (hidden, mut shown) = duplex(PIPE_BYTES);
                    Wire::new(hidden).writer.message(opening).await.expect("encoded");
                    shown.read_to_end(&mut bytes).await.expect("read");
                }
                bytes.extend_from_slice(junk);
                let _ = writer.write_all(&bytes).await;
                let _ = writer.shutdown().await;
            };
            let mut heard = Vec::new();
            let _ = tokio::join!(write, reader.read_to_end(&mut heard));
        };
        let (outcome, ()) = tokio::join!(handle(far, &site.root), client);
        (outcome, names(site.root.path()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_end_in_an_error_and_no_file(junk in proptest::collection::vec(any::<u8>(), 0..512)) {
        let (outcome, names) = run_handle(None, &junk);
        prop_assert!(outcome.is_err());
        prop_assert_eq!(names, Vec::<String>::new());
    }

    #[test]
    fn any_bytes_after_an_opening_end_in_an_error_and_no_file(
        size in prop_oneof![0..100_u64, Just(u64::MAX)],
        seconds: i64,
        nanos: u32,
        mode: u32,
        junk in hostile_frames(),
        fetch: bool,
    ) {
        let offer = Offer { size, mode, modified: Some(Modified { seconds, nanos }) };
        let send = Message::Send { version: VERSION, id: ID, path: "f".into(), offer };
        let opening = if fetch { Message::Fetch { version: VERSION, id: ID, path: "f".into() } } else { send };
        let (outcome, names) = run_handle(Some(&opening), &junk);
        prop_assert!(outcome.is_err());
        prop_assert!(names.iter().all(|name| name.starts_with(RESERVED_PREFIX)));
    }
}
